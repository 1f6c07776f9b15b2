"""Plots of a run: its losses, and the accuracy of its students while they train."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ncfmkit.files import write_atomic
from ncfmkit.reports.layout import INK, LINE, PAPER, SERIES, SOFT, Draw, log_ticks, plot_png
from ncfmkit.run_records import MetricsRow, Score

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

LONGEST_LABEL = 40  # characters of a row's label
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colors, so that pairs of both repeat late
MAX_LR_MARKS = 40  # an lr that changes more often is a schedule, not a series of events


def curves(metrics: Sequence[MetricsRow], path: Path) -> None:
    """Writes the plot of :func:`losses` as a PNG file."""
    write_atomic(path, plot_png(losses(metrics)))


def losses(metrics: Sequence[MetricsRow]) -> Draw:
    """The losses against the step: thin the values, thick their running mean, dotted a change of lr.

    The calibration panel is left out where no row has a calibration loss; no rows give a picture that says so.
    """

    def draw(figure: "Figure", narrow: bool) -> None:
        steps_N = np.array([row.step for row in metrics])
        panels = {
            "matching loss": np.array([row.matching for row in metrics]),
            "calibration loss": np.array([row.calibration for row in metrics if row.calibration is not None]),
        }
        panels = {name: values_N for name, values_N in panels.items() if len(values_N)}
        figure.set_figheight(0.6 + 2.1 * max(len(panels), 1))
        if not panels:
            figure.text(0.5, 0.5, "no steps were run", ha="center", va="center")
            return
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, values_N) in zip(axes, panels.items(), strict=True):
            axis.set_ylabel(name)
            axis.plot(steps_N[: len(values_N)], values_N, color=SERIES[0], alpha=0.4, linewidth=0.6)
            axis.plot(
                steps_N[: len(values_N)],
                _running_mean(values_N),
                color=SERIES[0],
                marker="o" if len(values_N) == 1 else None,
            )
            if values_N.min() > 0 and values_N.max() > 20 * values_N.min():
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:,.10g}")  # matplotlib's own is mathematical text
                axis.yaxis.set_minor_formatter("")
        _mark_lr(list(axes), metrics, labeled=not narrow)
        axes[-1].set_xlabel("step")

    return draw


def _running_mean(values_N: np.ndarray) -> np.ndarray:
    """Centered, over a twentieth of the run; the window is cut off at the ends, not padded."""
    half = len(values_N) // 40
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    low = np.maximum(np.arange(len(values_N)) - half, 0)
    high = np.minimum(np.arange(len(values_N)) + half + 1, len(values_N))
    return (sums[high] - sums[low]) / (high - low)


def _mark_lr(axes: "Sequence[Axes]", metrics: Sequence[MetricsRow], *, labeled: bool) -> None:
    first, last = metrics[0], metrics[-1]
    changes = [now for before, now in itertools.pairwise(metrics) if now.lr != before.lr]
    title = f"lr {first.lr:.3g} to {last.lr:.3g}" if changes else f"lr {first.lr:.3g} throughout"
    axes[0].set_title(title)
    if len(changes) > MAX_LR_MARKS:
        return
    written = -math.inf
    for row in changes:
        for axis in axes:
            axis.axvline(row.step, color=SOFT, linewidth=0.8, linestyle=":")
        if labeled and row.step - written > 0.025 * (last.step - first.step):
            written = row.step
            axes[0].annotate(
                f"lr {row.lr:.3g}",
                (row.step, 1),
                (2, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                ha="left",
                va="top",
                fontsize=7,
                color=SOFT,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            )


def accuracies(rows: Sequence[Score], *, chance: float) -> Draw:
    """Test accuracy of the students of each row against their gradient steps: mean, and one standard deviation beside.

    Args:
        rows: such as have a curve and a number of steps; above the plot are the epochs of the first.
        chance: accuracy of guessing, in [0, 1].
    """

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(3.2 + (0.2 * len(rows) if narrow else 0))
        axis = figure.subplots()
        for color, row in zip(itertools.cycle(SERIES), rows, strict=False):
            assert row.curve is not None
            assert row.steps is not None
            steps_E = np.array(row.curve.epochs) * row.steps / row.epochs
            mean_E, std_E = 100 * np.array(row.curve.mean), 100 * np.array(row.curve.std)
            axis.plot(steps_E, mean_E, color=color, marker="o", markersize=3, label=_label(row))
            if row.n > 1:
                axis.fill_between(steps_E, mean_E - std_E, mean_E + std_E, color=color, alpha=0.2, linewidth=0)
        axis.axhline(100 * chance, color=SOFT, linewidth=0.8, linestyle="--", label="chance")
        axis.set_xlabel("gradient steps")
        axis.set_ylabel("test accuracy %")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        per_epoch = (rows[0].steps or 0) / rows[0].epochs
        above = axis.secondary_xaxis(
            "top", functions=(lambda x: np.divide(x, per_epoch), lambda x: np.multiply(x, per_epoch))
        )
        above.set_xlabel(f"epochs of {_label(rows[0])}")
        above.xaxis.set_major_formatter("{x:,.0f}")
        above.spines["top"].set_color(LINE)
        figure.legend(loc="outside lower left" if narrow else "outside right upper", ncols=1)

    return draw


def accuracies_by_bytes(rows: Sequence[Score], *, chance: float | None) -> Draw:
    """Test accuracy of the students of each row against its bytes per class: mean, and one standard deviation.

    Args:
        rows: such as know their bytes per class; colors and markers follow their order.
        chance: accuracy of guessing, in [0, 1]; None leaves it out, and shows small differences.
    """

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(3.2 + (0.2 * len(rows) if narrow else 0))
        axis = figure.subplots()
        points: list[Artist | ErrorbarContainer] = []
        for color, marker, row in zip(itertools.cycle(SERIES), itertools.cycle(MARKERS), rows, strict=False):
            mean, std = 100 * row.last.mean, 100 * row.last.std if row.n > 1 else None
            assert row.bytes_per_class is not None
            point = axis.errorbar(
                row.bytes_per_class,
                mean,
                std,
                color=color,
                marker=marker,
                markersize=6,
                linestyle="none",
                elinewidth=1.2,
                clip_on=False,
                label=_label(row),
            )
            points.append(point)
        if chance is not None:
            points.append(axis.axhline(100 * chance, color=SOFT, linewidth=0.8, linestyle="--", label="chance"))
        log_bytes(axis, [row.bytes_per_class for row in rows if row.bytes_per_class])
        axis.set_ylabel("test accuracy %")
        figure.legend(handles=points, loc="outside lower left" if narrow else "outside right upper", ncols=1)

    return draw


def accuracy_dots(rows: Sequence[Score]) -> Draw:
    """Test accuracy of every student of each row: a dot each, equal ones above each other; an upright line is the mean.

    Colors follow the order of the rows, and names stand above the dots.
    """

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(0.7 + 0.6 * len(rows))
        axis = figure.subplots()
        values = [100 * np.array(row.last.values) for row in rows]
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        room = max(0.05 * (high - low), 0.2)
        axis.set_xlim(low - room, high + room)
        near = (0.030 if narrow else 0.012) * (high - low + 2 * room)  # the width of a dot
        for k, (color, row, values_N) in enumerate(zip(itertools.cycle(SERIES), rows, values, strict=False)):
            top, sorted_N = len(rows) - k, np.sort(values_N)
            axis.plot(sorted_N, top + _apart(sorted_N, near), "o", color=color, markersize=5, alpha=0.75, clip_on=False)
            axis.plot([values_N.mean()] * 2, [top - 0.28, top + 0.28], color=color, linewidth=2)
            axis.text(0, top + 0.36, _label(row), transform=axis.get_yaxis_transform(), va="bottom", color=INK)
        axis.set_ylim(0.5, len(rows) + 0.75)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("test accuracy %")

    return draw


def _apart(sorted_N: np.ndarray, near: float) -> np.ndarray:
    """Heights of dots in a row, so that none hides another: those within `near` of the first of a group are spread."""
    first = [0]
    for n, value in enumerate(sorted_N.tolist()):
        if value - sorted_N[first[-1]] >= near:
            first.append(n)
    sizes = np.diff([*first, len(sorted_N)])
    return np.concatenate([min(0.12, 0.6 / size) * (np.arange(size) - (size - 1) / 2) for size in sizes])


def log_bytes(axis: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis of bytes per class, around those values."""
    low, high, ticks = log_ticks(values)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("bytes per class")


def _label(row: Score) -> str:
    return row.label if len(row.label) <= LONGEST_LABEL else row.label[: LONGEST_LABEL - 1] + "…"
