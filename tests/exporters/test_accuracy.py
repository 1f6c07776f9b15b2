"""What scores say of a split, against naive counts."""

import numpy as np
import pytest
from exports import naive_count

from ncfmkit.exporters import accuracy as measured


def test_tally_is_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 7)).astype(np.float32)  # many ties
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.nan
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.inf
    scores[3] = -np.inf
    labels = rng.integers(0, 7, 500)
    found = measured.tally(scores, labels)
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


def test_agreement_by_hand() -> None:
    ours = np.array([[1, 2], [5, 4], [np.nan, 0], [0, 9]], np.float32)
    theirs = np.array([[1, 2.5], [3, 4], [0, 1], [0, 8]], np.float32)
    found = measured.agreement(ours, theirs)
    assert found.to_dict() == {"agreement": 0.5, "disagreements": 2, "max_abs_difference": 2.0}
    nothing = measured.agreement(np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    assert nothing.to_dict() == {"agreement": 0.0, "disagreements": 2, "max_abs_difference": None}


def test_all_images_are_scored_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BATCH", 4)
    images = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1)
    images.flags.writeable = False
    sizes = []

    def answer(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        assert batch.flags.writeable
        return batch.reshape(len(batch), 1).astype(np.float32)

    np.testing.assert_array_equal(measured.score(answer, images, title="x")[:, 0], np.arange(11))
    assert sizes == [4, 4, 3]
