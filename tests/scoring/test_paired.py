"""Paired differences: against scipy, by hand, and Holm's correction against worked examples."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from ncfmkit.scoring.paired import holm, mcnemar, paired_test


def students(n: int, seed: int) -> tuple[list[float], list[float]]:
    """Accuracies on 450 images of two sets; what a seed adds is common to both, and larger than their own noise."""
    rng = np.random.default_rng(seed)
    of_seed_N = rng.normal(0, 12, n)
    rows = (400 + shift + of_seed_N + rng.normal(0, 2, n) for shift in (0, 4))
    first, second = ((row.round() / 450).tolist() for row in rows)
    return second, first


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_as_scipy_has_it(n: int) -> None:
    values, reference = students(n, seed=n)
    found, expected = paired_test(values, reference), stats.ttest_rel(values, reference)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values) - np.mean(reference), abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-5)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-8)


def test_by_hand() -> None:
    """Differences 0.01, 0.02, 0.03: t = 0.02 / (0.01 / sqrt 3), of which 2 degrees of freedom have a closed form."""
    found = paired_test([0.51, 0.62, 0.73], [0.5, 0.6, 0.7])
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.high == pytest.approx(0.02 + 4.302652730 * 0.01 / math.sqrt(3))
    assert found.low == pytest.approx(0.02 - 4.302652730 * 0.01 / math.sqrt(3))


def test_pairs_find_what_means_alone_hide() -> None:
    values, reference = students(10, seed=3)
    found = paired_test(values, reference)
    assert found.p is not None
    assert found.p < 0.01 < 0.1 < stats.ttest_ind(values, reference).pvalue
    assert paired_test(values, sorted(reference)).p != pytest.approx(found.p)  # other pairs
    other = paired_test(reference, values)
    assert (other.mean, other.p) == (-found.mean, found.p)


@pytest.mark.parametrize(
    ("values", "reference", "mean"),
    [
        ([0.9], [0.8], 0.1),  # one pair
        ([0.9, 0.7, 0.8], [0.8, 0.6, 0.7], 0.1),  # equal differences, but for rounding errors
        ([0.9, 0.7], [0.9, 0.7], 0.0),
    ],
)
def test_what_cannot_be_tested(values: list[float], reference: list[float], mean: float) -> None:
    found = paired_test(values, reference)
    assert found.mean == pytest.approx(mean)
    assert found.low is found.high is found.p is None


@pytest.mark.parametrize(("values", "reference"), [([], []), ([0.5, 0.6], [0.5])])
def test_without_pairs(values: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        paired_test(values, reference)


def test_intervals_cover_the_difference_as_often_as_they_say() -> None:
    rng, inside, tests = np.random.default_rng(0), 0, 2000
    for _ in range(tests):
        values_N = 0.05 + rng.normal(0, 0.01, 5)
        found = paired_test(values_N.tolist(), [0.0] * 5)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.05 <= found.high
    assert 0.935 < inside / tests < 0.965


def test_holm_by_hand() -> None:
    """4, 3, 2 and 1 times the p-values by size, none below one before it, none above 1; in the order given."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.03]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_holm_rejects_seldom_where_there_is_nothing() -> None:
    """In about 5% of families of true nulls any is rejected; uncorrected, 4 comparisons do in 19%."""
    p_FM = np.random.default_rng(0).random((4000, 4))
    any_rejected = np.mean([min(holm(p_M.tolist())) < 0.05 for p_M in p_FM])
    assert 0.035 < any_rejected < 0.065
    assert np.mean((p_FM < 0.05).any(1)) > 0.15


@pytest.mark.parametrize(
    ("one", "other"), [(0, 0), (1, 0), (0, 5), (6, 0), (3, 3), (12, 2), (2, 12), (90, 60), (700, 800)]
)
def test_mcnemar_is_a_sum_over_all_splits(one: int, other: int) -> None:
    """As scipy has it, and as exact fractions: the splits of the images that are no likelier than this one."""
    count = one + other
    likely = [math.comb(count, k) for k in range(count + 1)]
    summed = sum(ways for ways in likely if ways <= likely[one])
    assert mcnemar(one, other) == pytest.approx(float(Fraction(summed, 2**count)), rel=1e-9)
    if count:
        assert mcnemar(one, other) == pytest.approx(stats.binomtest(one, count, 0.5).pvalue, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(6, 0) == 2 / 64
    assert mcnemar(1, 4) == 2 * (1 + 5) / 32
