"""Accuracy of a model's scores on a split: accuracy, confusion matrix, agreement with another model.

Shapes: N images, C channels, H = W side, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from ncfmkit.progress import track
from ncfmkit.records import SparseRecord

BATCH = 256  # images at a time

Count = Annotated[int, Field(ge=0)]
Confusion = tuple[tuple[Count, ...], ...]  # images: rows are true classes, columns the model's
Share = Annotated[float, Field(ge=0, le=1)]


class Tally(SparseRecord):
    """What became of every image; one whose scores are not all finite is wrong, and in no column of the confusion."""

    images: Annotated[int, Field(ge=1)]
    correct: Count
    accuracy: Share
    non_finite: Count  # images
    confusion: Confusion


class ClassRow(SparseRecord):
    """The accuracy of one class."""

    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(alias="class")]
    images: Count
    correct: Count
    accuracy: Share


class Agreement(SparseRecord):
    """How far two sets of scores agree."""

    agreement: Share  # images with the same class
    disagreements: Count  # images
    max_abs_difference: float | None  # of finite scores; None: there are none


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is kept of a model's scores of all images."""

    guesses_N: np.ndarray  # int64: the class of the highest score; -1 where a score is not finite
    classes: int
    max_abs_difference: float | None  # of finite scores from the first model's; None: there are none


def score(
    answers: Sequence[Callable[[np.ndarray], np.ndarray]], images_NCHW: np.ndarray, *, title: str
) -> list[Outcome]:
    """Runs models on all images, in batches of `BATCH` with progress; the first is what the others are compared with.

    All models score a batch before the next one is read, so that no more than a batch of scores is in memory.

    Args:
        answers: uint8 `[N, C, H, W]` to float32 `[N, K]`, at least one.
        images_NCHW: uint8.
        title: of the progress.
    """
    guesses: list[list[np.ndarray]] = [[] for _ in answers]
    largest: list[float | None] = [None] * len(answers)
    classes = [0] * len(answers)
    with track(title, len(images_NCHW)) as bar:
        for start in range(0, len(images_NCHW), BATCH):
            images = np.array(images_NCHW[start : start + BATCH])  # a copy: torch takes no read-only memory
            for i, answer in enumerate(answers):
                scores_NK = answer(images)
                guess_N = _guesses(scores_NK)
                if i == 0:
                    first_NK, first_N = scores_NK, guess_N
                guesses[i].append(guess_N)
                classes[i] = scores_NK.shape[1]
                finite = (guess_N >= 0) & (first_N >= 0)
                if finite.any():
                    difference = float(np.abs(scores_NK[finite].astype(np.float64) - first_NK[finite]).max())
                    largest[i] = max(difference, largest[i] or 0.0)
            bar.advance(len(images))
    return [
        Outcome(guesses_N=np.concatenate(parts), classes=count, max_abs_difference=difference)
        for parts, count, difference in zip(guesses, classes, largest, strict=True)
    ]


def _guesses(scores_NK: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores_NK).all(axis=1), scores_NK.argmax(axis=1), -1)


def tally(outcome: Outcome, labels_N: np.ndarray) -> Tally:
    """Counts what became of every image."""
    guess_N, classes = outcome.guesses_N, outcome.classes
    finite = guess_N >= 0
    pairs = labels_N[finite] * classes + guess_N[finite]
    confusion_KK = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    correct = int(confusion_KK.trace())
    return Tally(
        images=len(labels_N),
        correct=correct,
        accuracy=correct / len(labels_N),
        non_finite=int((~finite).sum()),
        confusion=tuple(map(tuple, confusion_KK.tolist())),
    )


def agreement(outcome: Outcome, first: Outcome) -> Agreement:
    """Compares a model with the first one that :func:`score` ran beside it."""
    ours, theirs = outcome.guesses_N, first.guesses_N
    same = int(((ours == theirs) & (ours >= 0)).sum())
    return Agreement(
        agreement=same / len(ours),
        disagreements=len(ours) - same,
        max_abs_difference=outcome.max_abs_difference,
    )


def by_class(confusion: Confusion, counts: Sequence[int], classes: Sequence[str]) -> tuple[ClassRow, ...]:
    """A row for each class; `counts` are its images."""
    return tuple(
        ClassRow(name=name, images=count, correct=confusion[c][c], accuracy=confusion[c][c] / count)
        for c, (name, count) in enumerate(zip(classes, counts, strict=True))
    )
