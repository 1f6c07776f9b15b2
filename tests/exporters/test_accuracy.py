"""What scores say of a split, against naive counts."""

from collections.abc import Callable

import numpy as np
import pytest
from exports import little_memory, naive_count

from ncfmkit.exporters import accuracy as measured


def test_tally_is_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 7)).astype(np.float32)  # many ties
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.nan
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.inf
    scores[3] = -np.inf
    labels = rng.integers(0, 7, 500)
    found = measured.tally(outcomes(scores)[0], labels)
    correct, broken, confusion = naive_count(scores, labels)
    assert broken > 20
    assert (found.correct, found.non_finite, [*map(list, found.confusion)]) == (correct, broken, confusion)
    assert (found.images, found.accuracy) == (500, correct / 500)


def test_accuracy_of_each_class() -> None:
    rows = measured.by_class(((3, 1), (2, 0)), [5, 2], ["a", "b"])  # one image of a is in no column
    assert [row.to_dict() for row in rows] == [
        {"class": "a", "images": 5, "correct": 3, "accuracy": 0.6},
        {"class": "b", "images": 2, "correct": 0, "accuracy": 0.0},
    ]


def outcomes(*scores: np.ndarray) -> list[measured.Outcome]:
    """Of models that give these scores."""
    places = np.arange(len(scores[0]), dtype=np.uint32).view(np.uint8).reshape(-1, 4, 1, 1)  # each image is its place

    def answer(scores_NK: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: scores_NK[images.reshape(-1, 4).view(np.uint32).ravel()]

    return measured.score([answer(s) for s in scores], places, title="x")


def test_agreement_by_hand() -> None:
    ours = np.array([[1, 2], [5, 4], [np.nan, 0], [0, 9]], np.float32)
    theirs = np.array([[1, 2.5], [3, 4], [0, 1], [0, 8]], np.float32)
    student, model = outcomes(theirs, ours)
    found = measured.agreement(model, student)
    assert found.to_dict() == {"agreement": 0.5, "disagreements": 2, "max_abs_difference": 2.0}
    first, second = outcomes(np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    nothing = measured.agreement(second, first)
    assert nothing.to_dict() == {"agreement": 0.0, "disagreements": 2, "max_abs_difference": None}


@pytest.mark.parametrize("batch", [1, 7, 500, 1000])
def test_batches_change_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all scores at once; the largest difference is in one batch, and not in the last."""
    rng = np.random.default_rng(1)
    student, first, second = rng.normal(size=(3, 500, 6)).astype(np.float32)
    first[100, 2], first[200], student[300, 1], second[499] = 40, np.nan, np.inf, np.nan
    monkeypatch.setattr(measured, "BATCH", batch)
    beside, *others = outcomes(student, first, second)
    for outcome, scores in zip(others, (first, second), strict=True):
        fine = np.isfinite(scores).all(1) & np.isfinite(student).all(1)
        same = fine & (scores.argmax(1) == student.argmax(1))
        found = measured.agreement(outcome, beside)
        assert found.agreement == same.mean()
        assert found.disagreements == (~same).sum()
        assert found.max_abs_difference == np.abs(scores[fine].astype(np.float64) - student[fine]).max()


def test_scores_of_all_images_are_not_kept() -> None:
    """They would take 80 MB a model."""
    images = np.zeros((20_000, 1, 1, 1), np.uint8)

    def answer(batch: np.ndarray) -> np.ndarray:
        return np.ones((len(batch), 1000), np.float32)

    with little_memory(40 << 20):
        found = measured.score([answer, answer], images, title="x")
    assert [len(outcome.guesses_N) for outcome in found] == [20_000, 20_000]


def test_all_images_are_scored_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BATCH", 4)
    images = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1)
    images.flags.writeable = False
    sizes = []

    def answer(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        assert batch.flags.writeable
        return np.eye(11, dtype=np.float32)[batch.ravel()]

    (outcome,) = measured.score([answer], images, title="x")
    np.testing.assert_array_equal(outcome.guesses_N, np.arange(11))
    assert sizes == [4, 4, 3]
