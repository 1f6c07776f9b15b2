"""DD-Ranking scores: what a set is worth apart from soft labels and augmentation (Li et al., arXiv 2505.13300).

Students of a grid are trained: on the set and on random real images, with hard and soft labels, with augmentation and
without; and on the whole training split, with hard labels.

Axis: N repeats.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ncfmkit.assessment import Gap, Images, Labels, Ranking, RankingCell, RobustScore
from ncfmkit.augment import parse_strategy
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages
from ncfmkit.scoring.students import RowWork, spread, student_stages
from ncfmkit.scoring.subject import Subject

W = 0.5  # of IOR in LRS; HLR has the rest
G = 0.5  # of the gain with augmentation in ARS; that without has the rest


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Students of the grid; `name` is that of their row of scores, and the conditions are beside those of all rows."""

    images: Images
    labels: Labels
    augmented: bool
    name: str
    conditions: dict[str, Any]


def grid(subject: Subject) -> list[Cell]:
    """All students that the scores need; those that are not augmented once only, if the recipe augments nothing."""
    soft = subject.distilled.soft_labels is not None
    recipes = (True, False) if _augments(subject) else (False,)
    cells = []
    for augmented in recipes:
        on_set = partial(Cell, images="set", augmented=augmented, name="distilled")
        cells.append(on_set(labels="hard", conditions={"labels": "hard"} if soft else {}))
        if soft:
            cells.append(on_set(labels="soft", conditions={}))
        on_random = partial(Cell, images="random", augmented=augmented)
        cells.append(on_random(labels="hard", name="random", conditions={}))
        if soft:
            cells.append(on_random(labels="soft", name="random-soft", conditions={}))
    whole = Cell(images="whole", labels="hard", augmented=recipes[0], name="whole", conditions={})
    return [*cells, whole]


def check(subject: Subject) -> None:
    if subject.distilled.soft_labels is not None and subject.soften is None:
        raise UserError(
            "the set has soft labels of unknown teachers, and random real images need labels of the same ones: "
            "ncfmkit relabel gives the set labels of its own pool"
        )
    subject.check_rows("random")


def stages(subject: Subject) -> Iterator[Stage]:
    cells = []
    for cell in grid(subject):
        of = _with_recipe(subject, cell.augmented)
        if count := of.plan_students(_work(subject, cell), **cell.conditions):
            cells.append((cell, count))
    if any(cell.name == "random-soft" for cell, _ in cells):
        yield from subject.teachers()
    for augmented in (True, False):
        left = {_work(subject, cell): count for cell, count in cells if cell.augmented == augmented}
        yield from student_stages(left, subject.real, _with_recipe(subject, augmented).settings, subject.runtime)


def measure(subject: Subject) -> Ranking:
    cells = []
    for cell in grid(subject):
        of = _with_recipe(subject, cell.augmented)
        score = of.students(_work(subject, cell), partial(_images, subject, cell), **cell.conditions)
        cells.append(RankingCell(images=cell.images, labels=cell.labels, augmented=cell.augmented, score=score))
    return ranked(cells)


def ranked(cells: Sequence[RankingCell]) -> Ranking:
    """The scores of a grid. Each is computed for the students of one repeat, then summarized over the repeats."""
    accuracy_N = {(c.images, c.labels, c.augmented): np.array(c.score.last.values) for c in cells}
    labels: Labels = "soft" if any(c.labels == "soft" for c in cells) else "hard"
    augmented = any(c.augmented for c in cells)

    hlr_N = accuracy_N["whole", "hard", augmented] - accuracy_N["set", "hard", augmented]
    ior_N = accuracy_N["set", labels, augmented] - accuracy_N["random", labels, augmented]
    unaugmented_N = accuracy_N["set", labels, False] - accuracy_N["random", labels, False]
    return Ranking(
        cells=tuple(cells),
        labels=labels,
        hlr=Gap(**spread(hlr_N)),
        ior=Gap(**spread(ior_N)),
        ior_unaugmented=Gap(**spread(unaugmented_N)) if augmented else None,
        lrs=RobustScore(**spread(robust(W * ior_N - (1 - W) * hlr_N))),
        ars=RobustScore(**spread(robust(G * ior_N + (1 - G) * unaugmented_N))) if augmented else None,
    )


def robust(gain_N: np.ndarray) -> np.ndarray:
    """`(e^a - e^-1) / (e - e^-1)`: from [-1, 1] to [0, 1], steeper at the top; 0.269 of a gain of 0."""
    return (np.exp(gain_N) - math.exp(-1)) / (math.e - math.exp(-1))


def _augments(subject: Subject) -> bool:
    student = subject.settings.student
    return bool(parse_strategy(student.augment)) or student.cutmix > 0


def _with_recipe(subject: Subject, augmented: bool) -> Subject:
    """The subject, whose students are trained without augmentation and CutMix unless they are to be augmented."""
    if augmented:
        return subject
    student = dataclasses.replace(subject.settings.student, augment="none", cutmix=0.0)
    return dataclasses.replace(subject, settings=dataclasses.replace(subject.settings, student=student))


def _work(subject: Subject, cell: Cell) -> RowWork:
    work = subject.work(cell.name)
    parts = [work.label]
    if "labels" in cell.conditions:
        parts.append("hard labels")
    if not cell.augmented and _augments(subject):
        parts.append("no augmentation")
    return dataclasses.replace(work, label=", ".join(parts))


def _images(subject: Subject, cell: Cell, repeat: int) -> LabeledImages:
    """What the student of that repeat is trained on."""
    images = subject.images("distilled" if cell.images == "set" else cell.images, repeat)
    if cell.labels == "hard":
        return images if images.soft_labels is None else dataclasses.replace(images, soft_labels=None)
    if cell.images == "set":
        return images
    assert subject.soften is not None  # says `check`
    return subject.soften(images)
