"""The curves as pictures."""

from pathlib import Path

import numpy as np
from PIL import Image
from recorded import metrics

from ncfmkit.reports.curves import curves


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


def test_curves_mark_a_change_of_lr(tmp_path):
    rows = metrics(50)
    curves(rows, tmp_path / "marked.png")
    curves([row.model_copy(update={"lr": 1e-3}) for row in rows], tmp_path / "plain.png")

    def upright_gray_lines(name: str) -> int:
        pixels = picture(tmp_path / name).astype(int)
        gray = (np.ptp(pixels, axis=-1) < 14) & (pixels[..., 0] > 0x50) & (pixels[..., 0] < 0xD8)
        return int((gray.sum(axis=0) > 150).sum())

    assert upright_gray_lines("marked.png") > upright_gray_lines("plain.png")


def test_curves_draw_a_single_step_and_a_very_long_run(tmp_path):
    curves(metrics(1), tmp_path / "single.png")
    noise = np.random.default_rng(0).random(100_000)
    one = metrics(1)[0]
    rows = [one.model_copy(update={"step": i, "matching": v}) for i, v in enumerate(noise.tolist())]
    curves(rows, tmp_path / "long.png")
    assert bluish(picture(tmp_path / "single.png")) > 20
    assert bluish(picture(tmp_path / "long.png")) > 500
