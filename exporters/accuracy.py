"""Accuracy of a model's scores on a split: accuracy, confusion matrix, agreement with another model.

Shapes: N images, C channels, H = W side, K classes.
"""

from collections.abc import Callable, Sequence
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


def score(answer: Callable[[np.ndarray], np.ndarray], images_NCHW: np.ndarray, *, title: str) -> np.ndarray:
    """`answer`'s scores of all images, float32 `[N, K]`, run in batches of `BATCH` with progress."""
    parts = []
    with track(title, len(images_NCHW)) as bar:
        for start in range(0, len(images_NCHW), BATCH):
            images = np.array(images_NCHW[start : start + BATCH])  # a copy: torch takes no read-only memory
            parts.append(answer(images))
            bar.advance(len(images))
    return np.concatenate(parts)


def guesses(scores_NK: np.ndarray) -> np.ndarray:
    """The class of the highest score, int64 `[N]`; -1 where a score is not finite."""
    return np.where(np.isfinite(scores_NK).all(axis=1), scores_NK.argmax(axis=1), -1)


def tally(scores_NK: np.ndarray, labels_N: np.ndarray) -> Tally:
    """Counts what became of every image."""
    guess_N, classes = guesses(scores_NK), scores_NK.shape[1]
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


def by_class(confusion: Confusion, counts: Sequence[int], classes: Sequence[str]) -> tuple[ClassRow, ...]:
    """A row for each class; `counts` are its images."""
    return tuple(
        ClassRow(name=name, images=count, correct=confusion[c][c], accuracy=confusion[c][c] / count)
        for c, (name, count) in enumerate(zip(classes, counts, strict=True))
    )


def agreement(scores_NK: np.ndarray, reference_NK: np.ndarray) -> Agreement:
    """Compares the scores of two models for the same images."""
    ours, theirs = guesses(scores_NK), guesses(reference_NK)
    same = int(((ours == theirs) & (ours >= 0)).sum())
    finite = (ours >= 0) & (theirs >= 0)
    difference = np.abs(scores_NK[finite].astype(np.float64) - reference_NK[finite])
    return Agreement(
        agreement=same / len(ours),
        disagreements=len(ours) - same,
        max_abs_difference=float(difference.max()) if difference.size else None,
    )
