"""Plots of a run's losses."""

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.files import write_atomic

MAX_LR_MARKS = 40  # an lr that changes more often is a schedule, not a series of events


def curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draws the losses of `metrics` against the step: thin the values, thick their running mean, dotted a change of lr.

    The calibration panel is left out where no row has a calibration loss; no rows give a picture that says so.
    """
    # matplotlib takes a third of a second to import, and commands that only print a table need none of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("matching", "matching loss"), ("calibration", "calibration loss")]
    panels = [p for p in panels if any(row.get(p[0]) is not None for row in metrics)]
    figure = Figure(figsize=(8, 0.7 + 2.3 * max(len(panels), 1)), dpi=160, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    if panels:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (key, label) in zip(axes, panels, strict=True):
            _draw_loss(axis, metrics, key, label)
        _mark_lr(axes, metrics)
        axes[-1].set_xlabel("step", fontsize=9, color="#444444")
    else:
        figure.text(0.5, 0.5, "no steps were run", ha="center", va="center", fontsize=12, color="#444444")
    png = io.BytesIO()
    canvas.print_png(png)
    write_atomic(path, png.getvalue())


def _draw_loss(axis: Any, metrics: list[dict[str, Any]], key: str, label: str) -> None:
    points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None and math.isfinite(row[key])]
    axis.set_ylabel(label, fontsize=9, color="#444444")
    axis.tick_params(which="both", labelsize=8, color="#999999", labelcolor="#444444")
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    if not points:
        axis.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=axis.transAxes, fontsize=9)
        return
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    single = {"marker": "o", "markersize": 4} if len(values) == 1 else {}
    axis.plot(steps, values, color="#8fb3d9", linewidth=0.6)
    axis.plot(steps, _smooth(values), color="#1f5a99", linewidth=1.6, **single)
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")


def _smooth(values_N: np.ndarray) -> np.ndarray:
    """Centered running mean over a twentieth of the run; the window is cut off at the ends, not padded."""
    half = len(values_N) // 40
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    low = np.maximum(np.arange(len(values_N)) - half, 0)
    high = np.minimum(np.arange(len(values_N)) + half + 1, len(values_N))
    return (sums[high] - sums[low]) / (high - low)


def _mark_lr(axes: Any, metrics: list[dict[str, Any]]) -> None:
    rates = [(row["step"], row["lr"]) for row in metrics if row.get("lr") is not None]
    if not rates:
        return
    first, last = rates[0], rates[-1]
    changes = [now for before, now in itertools.pairwise(rates) if now[1] != before[1]]
    title = f"lr {first[1]:.3g} throughout"
    if changes:
        title = f"lr {first[1]:.3g} at first, {last[1]:.3g} at last"
    axes[0].set_title(title, fontsize=8, color="#666666", loc="left")
    if len(changes) > MAX_LR_MARKS:
        return
    labeled = -math.inf
    for step, rate in changes:
        for axis in axes:
            axis.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        if step - labeled > 0.025 * (last[0] - first[0]):
            labeled = step
            axes[0].annotate(
                f"lr {rate:.3g}",
                (step, 1),
                (2, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                ha="left",
                va="top",
                fontsize=7,
                color="#666666",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
