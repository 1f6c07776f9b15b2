"""Rank correlations: against scipy with and without ties, by hand, and their bootstrap against a plain loop."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from ncfmkit.scoring import rank_correlation
from ncfmkit.scoring.rank_correlation import kendall, spearman, with_interval

SCIPY: dict[Callable, Callable] = {
    spearman: lambda x_N, y_N: stats.spearmanr(x_N, y_N).statistic,
    kendall: lambda x_N, y_N: stats.kendalltau(x_N, y_N).statistic,
}
both = pytest.mark.parametrize("correlation", [spearman, kendall])


def pairs(n: int, seed: int, values: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies on so many test images: few of them make ties, within a side and in both."""
    rng = np.random.default_rng(seed)
    x_N = rng.integers(values, size=n)
    return x_N / values, np.clip(x_N + rng.integers(-values // 3, values // 3 + 1, n), 0, values) / values


@both
@pytest.mark.parametrize("values", [4, 10, 100_000])
@pytest.mark.parametrize("n", [3, 16, 50])
def test_as_scipy_has_it(correlation: Callable, n: int, values: int) -> None:
    sides = [pairs(n, seed, values) for seed in range(8)]
    found_B = correlation(np.stack([x_N for x_N, _ in sides]), np.stack([y_N for _, y_N in sides]))
    expected_B = [SCIPY[correlation](x_N, y_N) for x_N, y_N in sides]
    np.testing.assert_allclose(found_B, expected_B, atol=1e-12)


def test_by_hand() -> None:
    """Ranks 1, 2, 3, 4 against 1.5, 1.5, 4, 3: of 6 pairs 4 agree, 1 disagrees, 1 is tied in one side."""
    x_BN, y_BN = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0.5, 0.5, 0.9, 0.8]])
    assert kendall(x_BN, y_BN)[0] == pytest.approx((4 - 1) / np.sqrt(6 * 5))
    # deviations -1.5, -0.5, 0.5, 1.5 and -1, -1, 1.5, 0.5
    assert spearman(x_BN, y_BN)[0] == pytest.approx((1.5 + 0.5 + 0.75 + 0.75) / np.sqrt(5 * 4.5))


@both
def test_the_interval_is_that_of_resampled_pairs(correlation: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 200)
    x_N, y_N = pairs(16, 3, 60)
    found = with_interval(correlation, x_N, y_N, np.random.default_rng(7))
    draws_BN = np.random.default_rng(7).integers(16, size=(200, 16))
    resampled_B = [SCIPY[correlation](x_N[place_N], y_N[place_N]) for place_N in draws_BN]
    assert found is not None
    assert found.value == pytest.approx(SCIPY[correlation](x_N, y_N))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled_B, [0.025, 0.975])))
    assert -1 <= found.low < found.value < found.high <= 1


@both
def test_equal_accuracies_have_no_ranks(correlation: Callable) -> None:
    equal_N, other_N = np.full(5, 0.1), np.arange(5) / 5
    rng = np.random.default_rng(0)
    assert with_interval(correlation, equal_N, other_N, rng) is None
    assert with_interval(correlation, other_N, equal_N, rng) is None


@both
def test_resamples_of_one_pair_alone_are_left_out(correlation: Callable) -> None:
    """Of three pairs, one resample in nine is one pair three times."""
    x_N = np.array([0.1, 0.2, 0.3])
    found = with_interval(correlation, x_N, x_N, np.random.default_rng(0))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
