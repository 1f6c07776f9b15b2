"""The curves as pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ncfmkit.reports.curves import curves


def metrics(steps: int, calibration: bool = True) -> list[dict]:
    return [
        {
            "step": i,
            "matching": 300.0 / (i + 1),
            "calibration": 2.0 if calibration else None,
            "lr": 1e-3 if i < 5 else 5e-4,
            "seconds": 0.1 * i,
        }
        for i in range(steps)
    ]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def bluish(pixels: np.ndarray) -> int:
    """Pixels of the loss lines."""
    values = pixels.astype(int)
    return int((values[..., 2] - values[..., 0] > 40).sum())


def test_curves_draw_one_panel_or_two(tmp_path):
    curves(metrics(50), tmp_path / "two.png")
    curves(metrics(50, calibration=False), tmp_path / "one.png")
    two, one = picture(tmp_path / "two.png"), picture(tmp_path / "one.png")
    assert two.shape[0] > one.shape[0]
    assert bluish(two) > bluish(one) > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_curves_without_steps_say_so(tmp_path):
    curves([], tmp_path / "curves.png")
    pixels = picture(tmp_path / "curves.png")
    assert bluish(pixels) == 0
    assert (pixels < 100).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_curves_leave_out_values_that_are_not_finite(tmp_path, value):
    rows = metrics(50)
    rows[20]["matching"] = value
    curves(rows, tmp_path / "some.png")
    curves([row | {"matching": value, "calibration": None} for row in rows], tmp_path / "all.png")
    assert bluish(picture(tmp_path / "some.png")) > 500
    assert bluish(picture(tmp_path / "all.png")) == 0


def test_curves_mark_a_change_of_lr(tmp_path):
    rows = metrics(50)
    curves(rows, tmp_path / "marked.png")
    curves([row | {"lr": 1e-3} for row in rows], tmp_path / "plain.png")

    def upright_gray_lines(name: str) -> int:
        pixels = picture(tmp_path / name).astype(int)
        gray = (np.ptp(pixels, axis=-1) < 8) & (pixels[..., 0] > 0x60) & (pixels[..., 0] < 0xD8)
        return int((gray.sum(axis=0) > 150).sum())

    assert upright_gray_lines("marked.png") > upright_gray_lines("plain.png")


def test_curves_draw_a_single_step_and_a_very_long_run(tmp_path):
    curves(metrics(1), tmp_path / "single.png")
    noise = np.random.default_rng(0).random(100_000)
    curves([{"step": i, "matching": v, "lr": 1e-3} for i, v in enumerate(noise.tolist())], tmp_path / "long.png")
    assert bluish(picture(tmp_path / "single.png")) > 20
    assert bluish(picture(tmp_path / "long.png")) > 500
