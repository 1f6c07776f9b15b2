"""Paired differences, tested: of the students of two sets (docs/method.md, section 8), of two models on one test split.

Axes: N pairs of students, M comparisons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95  # of an interval
DIGITS = 9  # that accuracies are compared in: differences of fractions that are equal differ after more of them


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A difference of means with its interval, and the probability of one as large by chance; fractions.

    `low`, `high` and `p` are None where a t-test cannot be made: of a single pair, or of differences without variance.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None


def paired_test(values_N: Sequence[float], reference_N: Sequence[float]) -> PairedTest:
    """The two-sided paired t-test of `values_N - reference_N`.

    Args:
        values_N, reference_N: accuracies in [0, 1]; those of one place are a pair.

    Raises:
        ValueError: another number of them, or none.
    """
    from scipy.special import stdtr, stdtrit  # here: pages and tables need no scipy

    if len(values_N) != len(reference_N) or not len(values_N):
        raise ValueError(f"expected pairs, got {len(values_N)} and {len(reference_N)} values")
    difference_N = np.round(np.subtract(values_N, reference_N, dtype=np.float64), DIGITS)
    n, mean = len(difference_N), float(difference_N.mean())
    if n == 1 or np.ptp(difference_N) == 0:
        return PairedTest(mean=mean, low=None, high=None, p=None)
    error = float(np.std(difference_N, ddof=1)) / math.sqrt(n)
    half = error * float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return PairedTest(mean=mean, low=mean - half, high=mean + half, p=p)


def mcnemar(only_one: int, only_other: int) -> float:
    """McNemar's exact test, two-sided: do two classifiers differ in accuracy on the same images?

    Of the images that only one of them gets right, each is right of either with the same chance if they do not differ
    (McNemar 1947). Images that both get right, or both wrong, say nothing.

    Args:
        only_one, only_other: images that only the one, and only the other, gets right.

    Returns:
        The probability of a split as uneven as this, or more so, if they do not differ; 1 without such images.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_one, only_other), only_one + only_other, 0.5)))


def holm(p_M: Sequence[float]) -> list[float]:
    """p-values of M comparisons, corrected: that any true null is rejected is as unlikely as of one (Holm 1979).

    The smallest is multiplied by M, the next by M - 1, ...; none becomes smaller than one before it, or larger than 1.
    """
    order = np.argsort(p_M, kind="stable")
    factors_M = np.arange(len(p_M), 0, -1)
    adjusted_M = np.empty(len(p_M))
    adjusted_M[order] = np.minimum(np.maximum.accumulate(factors_M * np.asarray(p_M, np.float64)[order]), 1)
    return adjusted_M.tolist()
