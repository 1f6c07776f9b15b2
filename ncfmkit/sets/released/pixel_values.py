"""Converts the values of released images to bytes; the kind that the user states is checked against the range.

Axes: N images, C channels, H = W side, D = C * H * W values of an image.

Each kind has its range, and values in another kind's range are rejected:

| kind | lowest value | highest value |
|---|---|---|
| unit | -0.05 or more | 1.05 or less |
| bytes | -13 or more | above 30, to 268 |
| normalized, zca | below -0.05, -30 or more | 30 or less |

The last two share a range, since whitened images fit in that of normalized ones; the result of the inverse tells them
apart. Natural images have most of their contrast in few directions, which whitening equalizes. Whitened images that are
taken for normalized ones keep a quarter to a half of the contrast of the data (measured: digits 0.49, noise with the
spectrum of photographs 0.36). In the opposite case contrast grows by a factor of two to seven, and 12% to 53% of the
values are outside [-0.5, 1.5].

Only a chunk of the images is in float64 at a time: a large release needs little more memory than its own bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import notice, track
from ncfmkit.real.store import RealData

Values = Literal["unit", "bytes", "normalized", "zca"]
SLACK = 0.05  # of the range [0, 1], on both sides
LARGEST_NORMALIZED = 30.0
FAR = 0.5  # outside [0, 1]
MOST_FAR = 0.1  # share of the values that may end up farther out
LEAST_CONTRAST = 0.55  # of the data's, in what was normalized
ZCA_EPSILON = 0.1  # added to the variances, as the code of trajectory matching (MTT) has it
LONG_WHITENED = 1000  # D from which people are told to wait
LARGEST_WHITENED = 12288  # D: a matrix D x D is taken apart; 64x64 RGB
CHUNK_VALUES = 1 << 20  # in float64 at a time


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Per channel, in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undone(self, images_NCHW: np.ndarray) -> np.ndarray:
        mean_C11, std_C11 = (np.array(v, np.float64).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return images_NCHW * std_C11 + mean_C11


class Spread:
    """Where values lie that should be in [0, 1], gathered chunk by chunk."""

    def __init__(self, channels: int):
        self.values, self.outside, self.far, self.largest = 0, 0, 0, 0.0
        self.sum_C, self.squares_C = np.zeros(channels), np.zeros(channels)

    def add(self, unit_NCHW: np.ndarray) -> None:
        outside_NCHW = np.maximum(-unit_NCHW, unit_NCHW - 1)
        self.values += unit_NCHW.size
        self.outside += int((outside_NCHW > 0.5 / 255).sum())  # by more than rounding to a byte mends
        self.far += int((outside_NCHW > FAR).sum())
        self.largest = max(self.largest, float(outside_NCHW.max()))
        self.sum_C += unit_NCHW.sum(axis=(0, 2, 3))
        self.squares_C += np.einsum("nchw,nchw->c", unit_NCHW, unit_NCHW)

    def clipped(self) -> dict[str, float]:
        """The share of the values that clipping to [0, 1] changes, and by how much at most."""
        return {"share": round(self.outside / max(self.values, 1), 6), "largest": round(self.largest, 6)}

    def std_C(self) -> np.ndarray:
        count = self.values / len(self.sum_C)
        return np.sqrt((self.squares_C / count - (self.sum_C / count) ** 2).clip(0))


def to_bytes(
    images_NCHW: np.ndarray, order_N: np.ndarray, values: Values, real: RealData, given: Normalization | None
) -> tuple[np.ndarray, dict[str, float]]:
    """The images in the order of their places `order_N`, clipped to [0, 1] and rounded to bytes, uint8 `[N, C, H, W]`.

    Args:
        images_NCHW: uint8 or float32, as released.
        values: what they are.
        given: of `normalized`: what they were normalized with, none: the data's; of `zca`: what the data were
            normalized with before the whitening was fitted, none: with nothing.

    Returns:
        The bytes; share and largest distance of what was clipped.

    Raises:
        UserError: by their range they are something else.
    """
    _check_range(images_NCHW, values)
    spread = Spread(images_NCHW.shape[1])
    if images_NCHW.dtype == np.uint8:
        return images_NCHW[order_N], spread.clipped()
    to_unit = _inverse(values, real, given)
    bytes_NCHW = np.empty(images_NCHW.shape, np.uint8)
    step = max(1, CHUNK_VALUES // images_NCHW[0].size)
    for start in range(0, len(order_N), step):
        unit_NCHW = to_unit(images_NCHW[order_N[start : start + step]].astype(np.float64))
        spread.add(unit_NCHW)
        # a product in float32, as everywhere where a set is rounded
        bytes_NCHW[start : start + step] = np.rint(unit_NCHW.clip(0, 1).astype(np.float32) * np.float32(255))
    _check_spread(spread, values, real)
    return bytes_NCHW, spread.clipped()


def _inverse(values: Values, real: RealData, given: Normalization | None) -> Callable[[np.ndarray], np.ndarray]:
    """Of float64 images to [0, 1], both `[N, C, H, W]`."""
    if values == "zca":
        return fitted_whitening(real, given).undone
    if values == "normalized":
        return (given or Normalization(mean=real.mean, std=real.std)).undone
    return lambda images_NCHW: images_NCHW / (255 if values == "bytes" else 1)


def _kinds(low: float, high: float) -> tuple[str, ...]:
    """The kinds whose range that is."""
    if low >= -SLACK and high <= 1 + SLACK:
        return ("unit",)
    if low >= -255 * SLACK and LARGEST_NORMALIZED < high <= 255 * (1 + SLACK):
        return ("bytes",)
    if -LARGEST_NORMALIZED <= low < -SLACK and high <= LARGEST_NORMALIZED:
        return ("normalized", "zca")
    return ()


def _check_range(images_NCHW: np.ndarray, values: Values) -> None:
    if images_NCHW.dtype == np.uint8:
        if values != "bytes":
            raise UserError(f"--values {values}: the images are 8-bit, 0 to 255: pass --values bytes")
        return
    low, high = float(images_NCHW.min()), float(images_NCHW.max())
    kinds = _kinds(low, high)
    if values not in kinds:
        look = {
            "unit": "like [0, 1]",
            "bytes": "like bytes",
            "normalized": "normalized or whitened",
            "": "like no kind",
        }
        advice = f"pass --values {' or '.join(kinds)}" if kinds else "bring them to [0, 1] first"
        raise UserError(
            f"--values {values}: the images have values from {low:.4g} to {high:.4g}, which looks "
            f"{look[kinds[0]] if kinds else 'like no kind'}: {advice}"
        )


def _check_spread(spread: Spread, values: Values, real: RealData) -> None:
    """Refuses what is normalized but taken for whitened, or the other way round."""
    if values not in ("normalized", "zca"):
        return
    share = spread.far / spread.values
    if share > MOST_FAR:
        instead = "normalized" if values == "zca" else "zca, or --mean and --std as they were normalized with"
        raise UserError(
            f"--values {values}: taken so, {share:.0%} of the values lie outside [{-FAR}, {1 + FAR}], where images "
            f"have theirs in [0, 1]: pass --values {instead}"
        )
    contrast = float(np.mean(spread.std_C() / np.maximum(real.std, 1e-6)))
    if values == "normalized" and contrast < LEAST_CONTRAST:
        raise UserError(
            f"--values normalized: taken so, the images have {contrast:.0%} of the contrast of {real.name}, which "
            "looks whitened: pass --values zca; if they are not, undo the normalization and save [images, targets]"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    """ZCA: `W = U diag((s + 0.1)^(-1/2)) U^T` of the images' centered values.

    s and U are the eigenvalues and -vectors of their unbiased covariance over the training images, in [0, 1] or
    normalized as `given`.
    """

    mean_D: np.ndarray  # float64, as the rest
    root_D: np.ndarray  # of s + 0.1
    basis_DD: np.ndarray  # U
    given: Normalization | None

    def undone(self, images_NCHW: np.ndarray) -> np.ndarray:
        """float64 `[N, C, H, W]`, in [0, 1] except for outliers."""
        white_ND = images_NCHW.reshape(len(images_NCHW), -1).astype(np.float64)
        flat_ND = (white_ND @ self.basis_DD * self.root_D) @ self.basis_DD.T + self.mean_D
        unit_NCHW = flat_ND.reshape(images_NCHW.shape)
        return self.given.undone(unit_NCHW) if self.given is not None else unit_NCHW


def fitted_whitening(real: RealData, given: Normalization | None) -> Whitening:
    """The whitening of the training images.

    Raises:
        UserError: the images are too large.
    """
    size = real.channels * real.size**2
    if size > LARGEST_WHITENED:
        raise UserError(
            f"--values zca: images of {size} values need a matrix of {size} x {size}, the limit is "
            f"{LARGEST_WHITENED}: undo the whitening where it was made, and pass --values unit"
        )
    mean_D, cov_DD = _moments(real)
    if given is not None:
        std_D = np.repeat(np.array(given.std), real.size**2)
        mean_D = (mean_D - np.repeat(np.array(given.mean), real.size**2)) / std_D
        cov_DD /= np.outer(std_D, std_D)
    if size > LONG_WHITENED:
        notice(f"taking a matrix of {size} x {size} apart: this takes a while")
    variance_D, basis_DD = np.linalg.eigh(cov_DD)  # numpy's: about twice as fast as torch's on a CPU
    root_D = np.sqrt(variance_D.clip(0) + ZCA_EPSILON)
    return Whitening(mean_D=mean_D, root_D=root_D, basis_DD=basis_DD, given=given)


def _moments(real: RealData, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and unbiased covariance `[D, D]` of the training images in [0, 1], float64, chunk by chunk."""
    images, size = real.train.images, real.train.images[0].size
    sum_D, products_DD = np.zeros(size), np.zeros((size, size))
    with track("fitting the whitening", len(images)) as bar:
        for start in range(0, len(images), chunk):
            rows_ND = (
                images[start : start + chunk].reshape(-1, size) / 255.0 - 0.5
            )  # shifted: fewer digits cancel below
            sum_D += rows_ND.sum(0)
            products_DD += rows_ND.T @ rows_ND
            bar.advance(len(rows_ND))
    count = len(images)
    products_DD -= np.outer(sum_D, sum_D) / count
    return sum_D / count + 0.5, products_DD / max(count - 1, 1)
