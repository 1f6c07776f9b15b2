"""How well one order of things agrees with another: rank correlations, with intervals (docs/method.md, section 8).

Axes: B samples, N things.
"""

from collections.abc import Callable

import numpy as np

from ncfmkit.assessment import Correlation

CONFIDENCE = 0.95  # of an interval
RESAMPLES = 10_000


def spearman(x_BN: np.ndarray, y_BN: np.ndarray) -> np.ndarray:
    """Spearman's correlation, float64 `[B]`: Pearson's of the ranks, where ties share the mean of theirs.

    It is nan where all of one side are equal.
    """
    from scipy.stats import rankdata  # here: pages and tables need no scipy

    x_BN, y_BN = (rankdata(side_BN, axis=1) for side_BN in (x_BN, y_BN))
    x_BN, y_BN = (rank_BN - rank_BN.mean(1, keepdims=True) for rank_BN in (x_BN, y_BN))
    return _ratio((x_BN * y_BN).sum(1), (x_BN**2).sum(1), (y_BN**2).sum(1))


def kendall(x_BN: np.ndarray, y_BN: np.ndarray) -> np.ndarray:
    """Kendall's tau-b, float64 `[B]`: pairs in the same order less pairs in the other one, corrected for ties.

    It is nan where all of one side are equal.
    """
    x_BNN, y_BNN = (np.sign(side_BN[:, :, None] - side_BN[:, None, :]) for side_BN in (x_BN, y_BN))
    return _ratio((x_BNN * y_BNN).sum((1, 2)), (x_BNN**2).sum((1, 2)), (y_BNN**2).sum((1, 2)))


def _ratio(product_B: np.ndarray, x_B: np.ndarray, y_B: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.clip(product_B / np.sqrt(x_B * y_B), -1, 1)


def with_interval(
    correlation: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x_N: np.ndarray,
    y_N: np.ndarray,
    rng: np.random.Generator,
) -> Correlation | None:
    """A correlation of N pairs, and its 95% interval by the bootstrap: percentiles over resamples of the pairs.

    Returns:
        None: it is not defined, because all of one side are equal. Resamples like that are left out.
    """
    value = float(correlation(x_N[None], y_N[None])[0])
    if np.isnan(value):
        return None
    index_BN = rng.integers(len(x_N), size=(RESAMPLES, len(x_N)))
    resampled_B = correlation(x_N[index_BN], y_N[index_BN])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled_B, [tail, 100 - tail])
    return Correlation(value=value, low=float(low), high=float(high))
