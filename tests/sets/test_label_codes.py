"""Soft labels in fewer bits, against loops in float64, and what is lost."""

import math

import numpy as np
import pytest
from golden_sets import label_rows, restored_labels

from ncfmkit.errors import UserError
from ncfmkit.sets import label_codes

CASES = [
    (classes, bits, top)
    for classes in (2, 3, 10, 256, 257)
    for bits in (8, 4)
    for top in sorted({0, 1, 3, classes - 1})
    if top < classes
]


def teachers(classes: int, count: int = 40, seed: int = 0) -> np.ndarray:
    """Logits from sure to unsure, hard labels, rows with ties and one that knows nothing, float16 `[D, K]`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * rng.choice([0.05, 1, 3, 12], size=(count, 1))
    logits[0] = 0
    logits[1:3] = -30
    logits[1, 1] = logits[2, 0] = 0
    logits[3:10] = np.round(logits[3:10])
    logits[10] += 60000
    return logits.astype(np.float16)


@pytest.mark.parametrize(("classes", "bits", "top"), CASES)
def test_rows_are_those_of_plain_loops(classes: int, bits: int, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_codes, "PART", 7 * classes)
    logits = teachers(classes)
    rows = label_codes.encode(logits, bits, top)
    np.testing.assert_array_equal(rows, label_rows(logits, bits, top))
    assert rows.shape[1] == label_codes.row_bytes(classes, bits, top)
    restored = label_codes.restore(rows, classes, bits, top)
    assert restored.dtype == np.float16
    np.testing.assert_array_equal(restored, restored_labels(rows, classes, bits, top))


@pytest.mark.parametrize(("classes", "bits", "top"), CASES)
def test_restored_logits_give_the_same_rows(classes: int, bits: int, top: int) -> None:
    restored = label_codes.rounded(teachers(classes, 400, seed=1), bits, top)
    assert (restored.max(1) == 0).all()
    again = label_codes.rounded(restored, bits, top)
    assert again.tobytes() == restored.tobytes()


@pytest.mark.parametrize("bits", [8, 4])
def test_every_code_is_restored_and_found_again(bits: int) -> None:
    every = label_codes._table(bits)
    assert len(set(every.tolist())) == 2**bits
    row = every[None]
    rows = label_codes.encode(row, bits, 0)
    np.testing.assert_array_equal(label_codes.restore(rows, len(every), bits, 0), row)


def test_float16_is_left_as_it_is() -> None:
    logits = teachers(10)
    assert label_codes.rounded(logits, 16, 0) is logits
    assert label_codes.row_bytes(10, 16, 0) == 20


@pytest.mark.parametrize(
    ("classes", "bits", "top", "expected"),
    [
        (10, 8, 0, 10),
        (10, 4, 0, 5),
        (3, 4, 0, 2),
        (10, 4, 3, 3 + 2),
        (256, 8, 5, 10),
        (257, 8, 5, 15),
        (1000, 4, 5, 13),
    ],
)
def test_bytes_of_a_row(classes: int, bits: int, top: int, expected: int) -> None:
    assert label_codes.row_bytes(classes, bits, top) == expected


def test_the_examples_of_the_format() -> None:
    """Of docs/formats.md."""
    logits = np.array([[-1.5, 0.25, -9, 0, -4]], np.float16)
    assert label_codes.encode(logits, 4, 0).tobytes() == bytes.fromhex("50 B2 80")
    assert label_codes.encode(logits, 4, 2).tobytes() == bytes.fromhex("01 03 26")
    restored = label_codes.rounded(logits, 4, 2).tolist()
    assert restored == [np.array([-2.56, 0, -2.56, -16 * 4 / 225, -2.56], np.float16).tolist()]


def probabilities(logits: np.ndarray) -> np.ndarray:
    power = np.exp(logits.astype(np.float64) - logits.astype(np.float64).max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence, nats."""
    return float(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0).sum(1).mean())


@pytest.mark.parametrize(("bits", "most", "largest"), [(8, 1e-4, 0.01), (4, 0.02, 0.1)])
@pytest.mark.parametrize("classes", [10, 100])
def test_probabilities_change_little(classes: int, bits: int, most: float, largest: float) -> None:
    logits = teachers(classes, 2000)
    p, q = probabilities(logits), probabilities(label_codes.rounded(logits, bits, 0))
    assert divergence(p, q) < most
    assert np.abs(p - q).max() < largest


def test_codes_lie_closer_to_the_truth_than_equal_steps_of_the_same_range() -> None:
    logits = teachers(10, 2000)
    p, steps = probabilities(logits), 16 / 15
    below = np.clip(logits.max(1, keepdims=True) - logits.astype(np.float64), 0, 16)
    equal = probabilities(-np.round(below / steps) * steps)
    assert divergence(p, probabilities(label_codes.rounded(logits, 4, 0))) < divergence(p, equal) / 2


@pytest.mark.parametrize("top", [1, 3, 9])
def test_what_is_left_out_keeps_its_probability_together(top: int) -> None:
    logits = teachers(10, 500)[11:]
    p, q = probabilities(logits), probabilities(label_codes.rounded(logits, 8, top))
    order = np.argsort(-logits, axis=1, kind="stable")
    for row, (before, after) in enumerate(zip(p, q, strict=True)):
        named, others = order[row, :top], order[row, top:]
        assert math.isclose(after[others].sum(), before[others].sum(), abs_tol=0.02)
        np.testing.assert_allclose(after[named], before[named], atol=0.02)


def row(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


@pytest.mark.parametrize(
    ("stored", "classes", "bits", "top", "said"),
    [
        (row(0, 5, 9), 3, 8, 0, None),
        (row(1, 5, 9), 3, 8, 0, "no class of code 0"),
        (row(0x05, 0x90), 3, 4, 0, None),
        (row(0x05, 0x91), 3, 4, 0, "after the last code"),
        (row(0x15, 0x90), 3, 4, 0, "no class of code 0"),
        (row(2, 0, 5, 9), 4, 8, 2, None),
        (row(2, 4, 5, 9), 4, 8, 2, "of a class 4, expected 0 to 3"),
        (row(2, 2, 5, 9), 4, 8, 2, "not its likeliest ones in order"),
        (row(2, 0, 9, 5), 4, 8, 2, "not its likeliest ones in order"),  # the others are likelier
        (row(2, 0, 0, 9), 4, 8, 2, "not its likeliest ones in order"),  # of equal ones the lower number is first
        (row(0, 2, 0, 9), 4, 8, 2, None),
        (row(2, 1, 9, 9), 4, 8, 2, "not its likeliest ones in order"),  # 0 is as likely as 1
        (row(2, 0, 9, 9), 4, 8, 2, None),
        (row(3, 0x50), 4, 4, 1, None),
        (row(3, 0x51), 4, 4, 1, "after the last code"),
        (row(43, 1, 1, 0, 7, 9), 300, 8, 2, None),
        (row(44, 1, 1, 0, 7, 9), 300, 8, 2, "of a class 300, expected 0 to 299"),
    ],
)
def test_only_rows_that_are_written_are_read(
    stored: np.ndarray, classes: int, bits: int, top: int, said: str | None
) -> None:
    good = row(*[0] * stored.shape[1])
    if said is None:
        restored = label_codes.restore(stored, classes, bits, top)
        np.testing.assert_array_equal(label_codes.encode(restored, bits, top), stored)
        return
    with pytest.raises(ValueError, match=said):
        label_codes.restore(np.concatenate([stored, good]), classes, bits, top)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = teachers(5)
    logits[7, 3] = value
    with pytest.raises(UserError, match="not all finite"):
        label_codes.encode(logits, 8, 0)
