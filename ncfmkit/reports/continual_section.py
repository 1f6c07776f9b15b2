"""How well a set serves as a replay buffer: accuracy by the number of classes seen."""

from typing import TYPE_CHECKING

import numpy as np

from ncfmkit.assessment import Continual
from ncfmkit.reports.layout import SERIES, SOFT, Draw
from ncfmkit.reports.scores import byte_count, percent
from ncfmkit.reports.sections import Section, SectionPlot, SectionTable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

NAMES = {  # in a table and beside a curve
    "distilled": "the set",
    "random": "random real",
    "webp": "random real as WebP",
    "herding": "herding",
}
MARKERS = ("o", "s", "^", "D")


def section(found: Continual) -> Section:
    """What a table and a plot say of each buffer, stage by stage."""
    the_set, others = found.buffers[0], found.buffers[1:]
    seen = [stage.seen for stage in the_set.stages]
    final = {buffer.set: buffer.stages[-1].accuracy for buffer in found.buffers}
    rivals = ", ".join(f"{100 * final[buffer.set].mean:.1f}% ({NAMES[buffer.set]})" for buffer in others)
    sentences = [
        f"As a replay buffer the set reaches {100 * final['distilled'].mean:.1f}% when all {seen[-1]} classes have "
        f"arrived; buffers of real images reach {rivals}.",
        f"{seen[-1]} classes arrive in {len(seen)} stages, {_orders(found.n)}. At each stage a fresh student is "
        "trained from scratch on what the buffer holds of the classes seen, and tested on the test images of "
        "these.",
        "The set, and the images that herding chooses, come from extractors that know all classes from the start. In a "
        "real stream, extractors could know only those that have arrived.",
    ]
    return Section(
        sentences=sentences,
        tables=[
            SectionTable(
                columns=[
                    "buffer",
                    "images per class",
                    "bytes per class",
                    "average incremental accuracy %",
                    "final accuracy %",
                ],
                rows=[
                    [
                        NAMES[buffer.set],
                        f"{buffer.per_class:,}",
                        byte_count(buffer.stages[-1].bytes_per_class),
                        percent(buffer.average, found.n),
                        percent(final[buffer.set], found.n),
                    ]
                    for buffer in found.buffers
                ],
                caption=f"Percent, {_of(found)}; the average incremental accuracy is the mean over the stages.",
                strong=[0],
            ),
            SectionTable(
                columns=["seen", *(NAMES[buffer.set] for buffer in found.buffers), "chance", "gradient steps"],
                rows=[
                    [
                        f"{at_stage[0].seen} classes",
                        *(percent(stage.accuracy, found.n) for stage in at_stage),
                        f"{100 / at_stage[0].seen:.1f}",
                        _range([stage.steps for stage in at_stage]),
                    ]
                    for at_stage in zip(*(buffer.stages for buffer in found.buffers), strict=True)
                ],
                caption=f"Test accuracy in percent on all classes seen, {_of(found)}. Students of all buffers take as "
                "many gradient steps, in whole epochs.",
            ),
        ],
        plots=[
            SectionPlot(
                draw=curves(found),
                label="test accuracy by the number of classes seen, a curve for each buffer",
                caption="Test accuracy on all classes seen, after each stage, and one standard deviation.",
            )
        ],
    )


def _orders(n: int) -> str:
    return "in a random order" if n == 1 else f"in {n} random orders, which all buffers share"


def _of(found: Continual) -> str:
    return f"{found.network}, " + ("one repeat" if found.n == 1 else f"mean ± standard deviation of {found.n} repeats")


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def curves(found: Continual) -> Draw:
    """Accuracy against classes seen, mean and one standard deviation, and that of guessing."""

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(4.2 if narrow else 3.2)
        axis = figure.subplots()
        seen_S = np.array([stage.seen for stage in found.buffers[0].stages])
        apart = 0.012 * (seen_S[-1] - seen_S[0])  # so that no deviation hides another
        handles: list[Artist | ErrorbarContainer] = []
        for k, (color, marker, buffer) in enumerate(zip(SERIES, MARKERS, found.buffers, strict=False)):
            mean_S = 100 * np.array([stage.accuracy.mean for stage in buffer.stages])
            std_S = 100 * np.array([stage.accuracy.std for stage in buffer.stages]) if found.n > 1 else None
            places_S = seen_S + apart * (k - (len(found.buffers) - 1) / 2)
            label = NAMES[buffer.set]
            handles.append(
                axis.errorbar(places_S, mean_S, std_S, color=color, marker=marker, elinewidth=1.0, label=label)
            )
        handles += axis.plot(seen_S, 100 / seen_S, color=SOFT, linewidth=0.8, linestyle="--", label="chance")
        axis.set_xticks(seen_S)
        axis.set_xlabel("classes seen")
        axis.set_ylabel("test accuracy %")
        axis.set_ylim(0, 103)
        figure.legend(handles=handles, loc="outside lower left" if narrow else "outside right upper", ncols=1)

    return draw
