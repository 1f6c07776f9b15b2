"""DD-Ranking scores for people: the two scores, what they are made of, and all students of the grid."""

from typing import TYPE_CHECKING

import numpy as np

from ncfmkit.assessment import Gap, Images, Labels, Ranking, RankingCell, RobustScore
from ncfmkit.reports.layout import INK, SERIES, Draw
from ncfmkit.reports.scores import ABSENT, percent
from ncfmkit.reports.sections import Section, SectionPlot, SectionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: dict[Images, str] = {"set": "the set", "random": "random real images", "whole": "whole training split"}
LOOKS: dict[Images, tuple[str, str]] = {"set": ("o", SERIES[0]), "random": ("s", SERIES[1]), "whole": ("D", SERIES[2])}


def section(found: Ranking) -> Section:
    """Sentences, the scores, the grid of accuracies, and a dot for every student."""
    n = found.cells[0].score.n
    return Section(
        sentences=_sentences(found, n),
        tables=[_scores(found, n), _grid(found, n)],
        plots=[
            SectionPlot(
                draw=dots(found),
                label="Test accuracy of every student, by what it is trained on, by labels and augmentation",
                caption="Test accuracy of every student after the last epoch.",
            )
        ],
    )


def _sentences(found: Ranking, n: int) -> list[str]:
    if found.ars is None or found.ior_unaugmented is None:
        said = [
            f"The label-robust score (LRS) is {_figure(found.lrs, n)} on a scale from 0 to 100.",
            "The students' recipe augments nothing: there is no augmentation-robust score (ARS).",
        ]
    else:
        said = [
            f"The label-robust score (LRS) is {_figure(found.lrs, n)}, the augmentation-robust score (ARS) "
            f"{_figure(found.ars, n)}, on a scale from 0 to 100."
        ]
    said.append(
        f"With hard labels, students of the set are {_beside(-found.hlr.mean)} those of the whole training split (HLR)."
    )
    gain = f"With {found.labels} labels, they are {_beside(found.ior.mean)} those of random real images (IOR)"
    if found.ior_unaugmented is not None:
        gain += f", and {_beside(found.ior_unaugmented.mean)} them without augmentation"
    said.append(f"{gain}.")
    augmented = found.ars is not None
    if found.labels == "soft":
        said.append(_effect(found, "Soft labels make", ("soft", augmented), ("hard", augmented)))
    if augmented:
        said.append(_effect(found, "Augmentation makes", (found.labels, True), (found.labels, False)))
    return said


def _effect(found: Ranking, what: str, condition: tuple[Labels, bool], without: tuple[Labels, bool]) -> str:
    """What labels or augmentation do to the accuracy on the set, and on random real images."""
    mean = {(c.images, (c.labels, c.augmented)): c.score.last.mean for c in found.cells}
    on_set, on_random = (_points(mean[images, condition] - mean[images, without]) for images in ("set", "random"))
    return f"{what} a difference of {on_set} points on the set and of {on_random} points on random real images."


def _scores(found: Ranking, n: int) -> SectionTable:
    rows = [
        ("LRS", "label-robust score, of half of IOR minus half of HLR", found.lrs),
        ("ARS", "augmentation-robust score, of the mean of both IOR", found.ars),
        ("HLR", "points to the whole training split, hard labels", found.hlr),
        ("IOR", f"points over random real images, {found.labels} labels", found.ior),
        ("IOR, not augmented", "the same without augmentation", found.ior_unaugmented),
    ]
    cells = [[name, meaning, _figure(value, n)] for name, meaning, value in rows if value is not None]
    caption = (
        f"{_of_repeats(n)} {'LRS is' if found.ars is None else 'LRS and ARS are'} 100 (eᵃ − e⁻¹) / (e − e⁻¹), where a "
        "is made of accuracies as fractions. The LRS is 26.9 where IOR equals HLR."
    )
    if found.ars is not None:
        caption += " A set that is worth as much as random real images has an ARS of 26.9."
    return SectionTable(
        columns=["score", "meaning", "value"],
        rows=cells,
        text_columns=2,
        caption=caption,
        strong=[k for k, (name, *_) in enumerate(cells) if name in ("LRS", "ARS")],
    )


def _of_repeats(n: int) -> str:
    if n == 1:
        return "Each figure is of one repeat."
    return f"Each figure is computed for the students of one repeat: mean ± standard deviation of {n} repeats."


def _of_students(n: int) -> str:
    return "one student" if n == 1 else f"mean ± standard deviation of {n} students"


def _grid(found: Ranking, n: int) -> SectionTable:
    recipes = {True: "augmented", False: "not augmented"} if found.ars is not None else {False: "accuracy"}
    by = {(c.images, c.labels, c.augmented): c.score for c in found.cells}
    kinds = list(dict.fromkeys((c.images, c.labels) for c in found.cells))
    rows = [
        [
            f"{NAMES[images]}, {labels} labels",
            *(percent(by[images, labels, a].last, n) if (images, labels, a) in by else ABSENT for a in recipes),
        ]
        for images, labels in kinds
    ]
    stored = next(c.score.images for c in found.cells if c.images == "random")
    teachers = "; soft labels are of the set's teachers" if found.labels == "soft" else ""
    caption = (
        f"Test accuracy in percent after the last epoch, {_of_students(n)} of each. Random "
        f"real images are as many as the set stores, {stored:,}, others for each repeat{teachers}. All take as many "
        "gradient steps, those of the whole training split at least as many."
    )
    return SectionTable(
        columns=["trained on", *recipes.values()],
        rows=rows,
        caption=caption,
        strong=[k for k, (images, _) in enumerate(kinds) if images == "set"],
    )


def dots(found: Ranking) -> Draw:
    """Test accuracy of every student: a line of dots for each kind of labels and augmentation, one above the other."""
    lines: dict[tuple[Labels, bool], list[RankingCell]] = {}
    for cell in found.cells:
        lines.setdefault((cell.labels, cell.augmented), []).append(cell)

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(1.2 + 0.6 * len(lines))
        axis = figure.subplots()
        shown: set[Images] = set()
        for k, ((labels, augmented), cells) in enumerate(lines.items()):
            top = len(lines) - k
            for cell in cells:
                marker, color = LOOKS[cell.images]
                values_N = 100 * np.array(cell.score.last.values)
                label = None if cell.images in shown else NAMES[cell.images]
                shown.add(cell.images)
                axis.plot(values_N, np.full(len(values_N), top), marker, color=color, alpha=0.75, label=label)
            recipe = "" if found.ars is None else (", augmented" if augmented else ", not augmented")
            name = f"{labels} labels{recipe}"
            axis.text(0, top + 0.2, name, transform=axis.get_yaxis_transform(), va="bottom", color=INK)
        axis.set_ylim(0.6, len(lines) + 0.7)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("test accuracy %")
        figure.legend(loc="outside lower center", ncols=1 if narrow else len(shown))

    return draw


def _figure(value: Gap | RobustScore, n: int) -> str:
    """`30.1 ± 0.4` of fractions, never broken across lines; a single repeat has no deviation."""
    deviation = f"\u00a0±\u00a0{100 * value.std:.1f}" if n > 1 else ""
    return f"{100 * value.mean:.1f}".replace("-", "−") + deviation


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _beside(gain: float) -> str:
    return f"{100 * abs(gain):.1f} points {'above' if gain >= 0 else 'below'}"
