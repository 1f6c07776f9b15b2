"""The parity gate: its figures against naive loops, and what is out of tolerance."""

import dataclasses
import re

import numpy as np
import pytest

from ncfmkit.exporters import parity

TOLERANCE = parity.Tolerance(absolute=0.1, relative=0.0, rms=1.0, tie=0.05, agreement=1.0)


def compared(expected: np.ndarray, got: np.ndarray, output: str = "logits") -> list[parity.Comparison]:
    """What `compare` says of two tables of scores; images are their own places in the table."""
    images = np.arange(len(expected))
    return parity.compare(lambda i: expected[i], lambda i: got[i], {"random": images}, output=output)


def test_differences_against_a_naive_loop() -> None:
    rng = np.random.default_rng(1)
    expected = rng.normal(size=(40, 5))
    got = expected + rng.normal(size=(40, 5)) * 1e-3
    (found,) = compared(expected, got)
    assert [b.size for b in found.row.batches] == [1, 2, 7, 30]
    assert found.row.max_abs == pytest.approx(max(abs(a - b) for a, b in zip(expected.flat, got.flat, strict=True)))
    assert found.row.max_rel == pytest.approx(
        max(
            np.abs(expected[part] - got[part]).max() / np.abs(expected[part]).max()
            for part in (slice(1), slice(1, 3), slice(3, 10), slice(10, 40))
        )
    )
    spread = sum((x - image.mean()) ** 2 for image in expected for x in image)
    squares = sum((a - b) ** 2 for a, b in zip(expected.flat, got.flat, strict=True))
    assert found.row.rms == pytest.approx((squares / spread) ** 0.5)
    assert found.row.agreement == sum(a.argmax() == b.argmax() for a, b in zip(expected, got, strict=True)) / 40


def test_probabilities_are_compared_by_their_logarithms() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 5)) * 5
    other = logits + 0.01 * np.eye(20, 5)
    probabilities = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, other)]
    (found,) = compared(probabilities[0], probabilities[1], output="probabilities")
    assert found.row.max_abs == pytest.approx(0.01 * 4 / 5, rel=1e-3)  # both are centered


def test_every_failure_is_listed() -> None:
    expected = np.tile(np.eye(4) * 2, (10, 1))
    got = expected.copy()
    got[0] += 0.5
    got[20] += 0.7
    found = parity.failures(compared(expected, got), TOLERANCE)
    numbers = [re.findall(r"batch of (\d+): .* by up to ([\d.]+), allowed 0.1", line) for line in found]
    assert numbers == [[("1", "0.5")], [("30", "0.7")]]
    assert parity.failures(compared(expected, expected), TOLERANCE) == []
    tight = dataclasses.replace(TOLERANCE, rms=0.1, absolute=0.75)
    assert "root mean square" in parity.failures(compared(expected, got), tight)[0]
    got[5] = np.nan
    for ours, theirs in ((expected, got), (got, expected)):  # neither side may be without an answer
        says = ["40 random images: not all outputs of student and export are finite"]
        assert parity.failures(compared(ours, theirs), TOLERANCE) == says


def test_a_constant_student_has_no_spread_to_compare_with() -> None:
    constant = np.full((40, 4), 5.0)
    assert parity.failures(compared(constant, constant + 1e-6 * np.eye(40, 4)), TOLERANCE) == []
    assert parity.failures(compared(constant, constant + np.eye(40, 4)), TOLERANCE)


def test_every_image_is_compared() -> None:
    expected = np.eye(600, 4) * 2
    got = expected.copy()
    got[-1] += 0.5
    (found,) = compared(expected, got)
    assert [b.size for b in found.row.batches] == [1, 2, 7, 128, 128, 128, 128, 78]
    assert len(parity.failures([found], TOLERANCE)) == 1


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 2]), (10, [1, 2, 7]), (11, [1, 2, 7, 1])])
def test_a_few_images_are_compared_as_far_as_they_go(count: int, sizes: list[int]) -> None:
    """A set of two classes with one image of each calibrates int8 with two images."""
    (found,) = compared(np.eye(count, 4) + 1, np.eye(count, 4) + 1)
    assert [b.size for b in found.row.batches] == sizes
    assert parity.failures([found], TOLERANCE) == []


def test_agreement_leaves_near_ties_out() -> None:
    tied = np.tile([1.0, 0.99, 0.0], (40, 1))
    swapped = tied[:, [1, 0, 2]]
    (found,) = compared(tied, swapped)
    assert found.row.agreement == 0
    assert parity.failures([found], TOLERANCE) == []
    clear = np.tile([1.0, 0.92, 0.0], (40, 1))
    lines = parity.failures(compared(clear, clear[:, [1, 0, 2]]), TOLERANCE)
    assert lines == ["40 random images: top-1 agreement 0.00% of the 40 without a near tie, expected 100.00%"]


def test_random_images_are_the_same_every_time() -> None:
    images = parity.random_images(50, 3, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(images, parity.random_images(50, 3, 8))
