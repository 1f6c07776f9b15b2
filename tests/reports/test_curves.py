"""The curves as pictures."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from recorded import metrics, score

from ncfmkit.reports.curves import accuracies_by_bytes, curves


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


@pytest.mark.parametrize("narrow", [False, True])
def test_points_stand_where_bytes_and_accuracies_are(narrow):
    sizes = (60.0, 55.5, 192.0, 8620.0)
    rows = [score(f"row {k}", 0.9 - k / 10, n=1 if k == 1 else 5, bytes_per_class=b) for k, b in enumerate(sizes)]
    figure = Figure(layout="constrained")
    accuracies_by_bytes(rows, chance=0.1)(figure, narrow)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert axis.get_yscale() == "linear"
    for row, size, points in zip(rows, sizes, axis.containers, strict=True):
        mark, _, bars = points
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (size, pytest.approx(100 * row.last.mean))
        assert len(bars) == (row.n > 1)
        if bars:  # one standard deviation to either side
            ((low, high),) = bars[0].get_segments()
            assert low.tolist() == [size, pytest.approx(100 * (row.last.mean - row.last.std))]
            assert high.tolist() == [size, pytest.approx(100 * (row.last.mean + row.last.std))]
    looks = [(points[0].get_color(), points[0].get_marker()) for points in axis.containers]
    assert len(set(looks)) == len(rows)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(row.label for row in rows), "chance"]
    low, high = axis.get_xlim()
    assert low <= min(sizes)
    assert high >= max(sizes)
