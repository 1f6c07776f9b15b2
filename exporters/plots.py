"""The plots of a validation, in the style that all pages share (reports/layout.py).

Shapes: K classes.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ncfmkit.exporters.accuracy import Confusion
from ncfmkit.exporters.timing import COMPILED, EAGER, SpeedRow, SpeedSection
from ncfmkit.progress import printable
from ncfmkit.reports.curves import MARKERS
from ncfmkit.reports.layout import INK, PAPER, SERIES, SOFT, Draw, Plot, log_ticks, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ncfmkit.exporters.results import ComparedRun

NAMED = {False: 60, True: 20}  # classes whose names fit, on a screen and in a narrow plot; above are label numbers
FIGURED = {False: 20, True: 10}  # classes whose cells have room for a figure
LONGEST = {False: 18, True: 10}  # characters of a class name
SMALLEST = 8  # points: 10 pixels, on a narrow screen too
CHARACTER = 0.08  # inches: the width of a character of that size, and a little room
TORCH_COLORS = {EAGER: SERIES[1], COMPILED: SERIES[4]}
COLORS = (SERIES[0], SERIES[3], SERIES[2], SERIES[5])  # of what is validated


def shortened_name(name: str, longest: int) -> str:
    """A class name without control characters, cut to that many."""
    text = printable(name)
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def confusion_plot(confusion: Confusion, classes: Sequence[str], *, name: str) -> Plot:
    """Rows are true classes, columns the model's; the color is the share of the true class's images.

    Args:
        confusion: images.
        classes: K names.
        name: of the plot, unique in its page.
    """
    count_KK = np.array(confusion, np.float64)
    total_K1 = count_KK.sum(axis=1, keepdims=True)
    share_KK = np.divide(count_KK, total_K1, out=np.zeros_like(count_KK), where=total_K1 > 0)

    def draw(figure: "Figure", narrow: bool) -> None:
        axis = figure.subplots()
        cell = min(0.27, 2.7 / len(classes)) if narrow else min(0.36, 7.2 / len(classes))  # inches
        figure.set_figheight(cell * len(classes) + (1.1 if narrow else 1.5))
        _draw_cells(axis, share_KK)
        axis.set(xlabel="the model's class", ylabel="true class", aspect="equal", anchor="W")
        axis.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
        axis.grid(visible=False)
        axis.spines[:].set_visible(True)
        axis.tick_params(length=0, labelsize=SMALLEST)
        if len(classes) <= NAMED[narrow]:
            names = [shortened_name(name, LONGEST[narrow]) for name in classes]
            upright = max(map(len, names)) * CHARACTER <= cell
            axis.set_xticks(range(len(classes)), names, rotation=0 if upright else 90)
            axis.set_yticks(range(len(classes)), names)
        if len(classes) <= FIGURED[narrow]:
            _write_cells(axis, share_KK)

    with warnings.catch_warnings():  # the browser draws the names, in fonts of its own
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        return plot(draw, name=name, label="Confusion matrix: rows are true classes, columns the model's")


def _opacity(share_KK: np.ndarray) -> np.ndarray:
    """A root scale that begins above 0: a few percent, as off-diagonal cells hold, would hardly show on a plain one."""
    return np.where(share_KK > 0, 0.15 + 0.85 * np.sqrt(share_KK), 0)


def _draw_cells(axis: "Axes", share_KK: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    opacity_KK = _opacity(share_KK)
    if len(share_KK) > NAMED[False]:  # too many for shapes; the page turns this picture's color in dark mode
        color = np.broadcast_to(to_rgb(SERIES[0]), (*share_KK.shape, 3))
        axis.imshow(np.dstack([color, opacity_KK]), interpolation="nearest")
        return
    cells = [tuple(map(int, cell)) for cell in np.argwhere(share_KK)]
    shapes = [Rectangle((guess - 0.5, true - 0.5), 1, 1) for true, guess in cells]
    colors = [(*to_rgb(SERIES[0]), float(opacity_KK[cell])) for cell in cells]
    axis.add_collection(PatchCollection(shapes, facecolors=colors, linewidths=0))


def _write_cells(axis: "Axes", share_KK: np.ndarray) -> None:
    for (true, guess), share in np.ndenumerate(share_KK):
        if share >= 0.005:
            color = PAPER if share > 0.4 else INK
            axis.text(guess, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=SMALLEST, color=color)


def speed_plot(section: SpeedSection, *, name: str) -> Plot:
    """Images per second against the batch, and latencies at batch 1; `name` is unique in the page."""
    rows = [row for row in section.rows if row.batches]
    own = itertools.cycle(COLORS)
    colors = {row.name: TORCH_COLORS.get(row.name) or next(own) for row in rows}
    marks = itertools.chain.from_iterable(itertools.repeat(mark, len(COLORS)) for mark in itertools.cycle(MARKERS))
    markers = {row.name: "o" if row.name in TORCH_COLORS else next(marks) for row in rows}  # where colors repeat

    def draw(figure: "Figure", narrow: bool) -> None:
        more = 0.3 * max(0, len(rows) - 6)  # inches
        figure.set_figheight(6 + more if narrow else 3.4 + more)
        axes = figure.subplots(2, 1, height_ratios=[5, 4]) if narrow else figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_throughput(axes[0], rows, colors, markers)
        _draw_latency(axes[1], rows, colors)

    return plot(
        draw, name=name, label=f"Images per second against the batch, and latency of one image, on {section.device}"
    )


def _draw_throughput(axis: "Axes", rows: Sequence[SpeedRow], colors: dict[str, str], markers: dict[str, str]) -> None:
    for row in rows:
        batches, rates = [t.batch for t in row.batches], [t.images_per_second for t in row.batches]
        axis.plot(batches, rates, color=colors[row.name], marker=markers[row.name], label=row.name)
    batches = sorted({timed.batch for row in rows for timed in row.batches})
    low, high, ticks = log_ticks([timed.images_per_second for row in rows for timed in row.batches])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(batches, [f"{b:,}" for b in batches])
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{t:,.10g}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images per call")
    axis.set_title("images per second")
    axis.legend(fontsize=SMALLEST)


def milliseconds(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _draw_latency(axis: "Axes", rows: Sequence[SpeedRow], colors: dict[str, str]) -> None:
    low, high, ticks = log_ticks([value for row in rows for value in (row.batches[0].p50_ms, row.batches[0].p99_ms)])
    for y, row in enumerate(rows):
        first, color = row.batches[0], colors[row.name]
        axis.plot([first.p50_ms, first.p99_ms], [y, y], color=color, linewidth=1.2)
        for value, marker, size in ((first.p50_ms, "o", 6), (first.p95_ms, "|", 9), (first.p99_ms, "|", 14)):
            axis.plot(value, y, marker=marker, color=color, markersize=size, markeredgewidth=1.6)
        side, end = ("left", first.p50_ms) if first.p50_ms**2 < low * high else ("right", first.p99_ms)
        label = f"{row.name}  {milliseconds(first.p50_ms)} ms"
        axis.annotate(label, (end, y), (0, 9), textcoords="offset points", fontsize=SMALLEST, color=INK, ha=side)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{t:.10g}" for t in ticks])
    axis.set_ylim(len(rows) - 0.5, -0.8)
    axis.set_yticks([])
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("ms: dot median, bars p95 and p99", color=SOFT)
    axis.set_title("latency of one image")


def pareto(runs: "Sequence[ComparedRun]") -> Draw:
    """Accuracy against the bytes of each run, and against its latency where all are timed. Runs on the front are filled
    and joined by a line."""
    panels = [("KiB of the model", [run.bytes / 1024 for run in runs], [run.smallest for run in runs])]
    latencies = [run.latency_ms for run in runs if run.latency_ms is not None]
    if len(latencies) == len(runs):
        panels.insert(0, ("ms for one image", latencies, [bool(run.fastest) for run in runs]))
    marks = list(zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), runs, strict=False))

    def draw(figure: "Figure", narrow: bool) -> None:
        across = (len(panels), 1) if narrow else (1, len(panels))
        figure.set_figheight(2.6 * across[0] + 0.2 * len(runs) if narrow else max(3.2, 1.2 + 0.2 * len(runs)))
        axes = figure.subplots(*across, squeeze=False).ravel()
        for axis, (label, costs, on_front) in zip(axes, panels, strict=True):
            front = sorted((c, 100 * run.accuracy) for c, run, on in zip(costs, runs, on_front, strict=True) if on)
            axis.step(*zip(*front, strict=True), where="post", color=SOFT, linewidth=0.8)
            for (color, marker, run), cost, on in zip(marks, costs, on_front, strict=True):
                fill = color if on else "none"
                axis.plot(
                    cost,
                    100 * run.accuracy,
                    color=color,
                    marker=marker,
                    markersize=7,
                    markerfacecolor=fill,
                    linestyle="none",
                    clip_on=False,
                    label=shortened_name(run.name, 30),
                )
            low, high, ticks = log_ticks(costs)
            axis.set_xscale("log")
            axis.set_xlim(low, high)
            axis.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
            axis.minorticks_off()
            axis.margins(y=0.15)
            axis.set_xlabel(label)
            axis.set_ylabel("test accuracy %")
        handles, _ = axes[0].get_legend_handles_labels()
        figure.legend(handles=handles, loc="outside lower left" if narrow else "outside right upper", ncols=1)

    return draw
