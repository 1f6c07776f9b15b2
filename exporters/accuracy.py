"""Accuracy of a model's scores on a split: accuracy, confusion matrix, agreement with another model.

Shapes: N images, C channels, H = W side, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ncfmkit.progress import track

BATCH = 256  # images at a time


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


def tally(scores_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """What became of every image; one whose scores are not all finite is wrong, and in no column of the confusion.

    Returns:
        `images`, `correct`, `accuracy` (a fraction), `non_finite` (images), `confusion`: rows are true classes, columns
        the model's.
    """
    guess_N, classes = guesses(scores_NK), scores_NK.shape[1]
    finite = guess_N >= 0
    pairs = labels_N[finite] * classes + guess_N[finite]
    confusion_KK = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    correct = int(confusion_KK.trace())
    return {
        "images": len(labels_N),
        "correct": correct,
        "accuracy": correct / len(labels_N),
        "non_finite": int((~finite).sum()),
        "confusion": confusion_KK.tolist(),
    }


def by_class(confusion: list[list[int]], counts: Sequence[int], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Per class `class`, `images`, `correct` and `accuracy`."""
    return [
        {"class": name, "images": int(count), "correct": confusion[c][c], "accuracy": confusion[c][c] / int(count)}
        for c, (name, count) in enumerate(zip(classes, counts, strict=True))
    ]


def agreement(scores_NK: np.ndarray, reference_NK: np.ndarray) -> dict[str, Any]:
    """How far two sets of scores agree: `agreement` (fraction with the same class), `disagreements` (images),
    `max_abs_difference` of finite scores (None if there are none)."""
    ours, theirs = guesses(scores_NK), guesses(reference_NK)
    same = int(((ours == theirs) & (ours >= 0)).sum())
    finite = (ours >= 0) & (theirs >= 0)
    difference = np.abs(scores_NK[finite].astype(np.float64) - reference_NK[finite])
    return {
        "agreement": same / len(ours),
        "disagreements": len(ours) - same,
        "max_abs_difference": float(difference.max()) if difference.size else None,
    }
