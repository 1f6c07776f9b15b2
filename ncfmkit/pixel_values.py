"""The values of released images, brought to [0, 1]: what the user says they are is checked by their range.

Axes: N images, C channels, H = W side, D = C * H * W values of an image.

Each kind has its range, and what is in another's is refused:

| kind | lowest value | highest value |
|---|---|---|
| unit | -0.05 or more | 1.05 or less |
| bytes | -13 or more | above 30, to 268 |
| normalized, zca | below -0.05, -30 or more | 30 or less |

The last two share theirs, since whitened images fit in that of normalised ones. They are told apart by what the
inverse makes of them. Natural images have most of their contrast in few directions, which whitening evens out. Real
ones, whitened but taken for normalised, keep a quarter to a half of the contrast of the data (measured: digits 0.49,
noise with the spectrum of photographs 0.36). The other way round contrast grows two- to sevenfold, and 12% to 53% of
the values end up outside [-0.5, 1.5].
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import notice, track
from ncfmkit.real import RealData

Values = Literal["unit", "bytes", "normalized", "zca"]
SLACK = 0.05  # of the range [0, 1], on both sides
LARGEST_NORMALISED = 30.0
FAR = (-0.5, 1.5)
MOST_FAR = 0.1  # share of the values that may end up farther out
LEAST_CONTRAST = 0.55  # of the data's, in what was normalised
ZCA_EPSILON = 0.1  # added to the variances, as the code of trajectory matching (MTT) has it
LONG_WHITENED = 1000  # D from which people are told to wait
LARGEST_WHITENED = 12288  # D: a matrix D x D is taken apart; 64x64 RGB


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Per channel, in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undone(self, images_NCHW: np.ndarray) -> np.ndarray:
        mean_C11, std_C11 = (np.array(v, np.float64).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return images_NCHW * std_C11 + mean_C11


def to_unit(images_NCHW: np.ndarray, values: Values, real: RealData, given: Normalisation | None) -> np.ndarray:
    """The images in [0, 1], but for what lies outside; float64 `[N, C, H, W]`.

    Args:
        images_NCHW: uint8 or float32, as released.
        values: what they are.
        given: of `normalized`: what they were normalised with, none: the data's; of `zca`: what the data were
            normalised with before the whitening was fitted, none: with nothing.

    Raises:
        UserError: by their range they are something else.
    """
    _check_range(images_NCHW, values)
    if values == "unit":
        return images_NCHW.astype(np.float64)
    if values == "bytes":
        return images_NCHW / 255.0
    if values == "normalized":
        unit_NCHW = (given or Normalisation(mean=real.mean, std=real.std)).undone(images_NCHW)
        _check_near(unit_NCHW, values, "zca, or --mean and --std as they were normalised with")
        _check_contrast(unit_NCHW, real)
        return unit_NCHW
    unit_NCHW = unwhitened(images_NCHW, real, given)
    _check_near(unit_NCHW, values, "normalized")
    return unit_NCHW


# ---- checks -----------------------------------------------------------------------------------------------------


def _kinds(low: float, high: float) -> tuple[str, ...]:
    """The kinds whose range that is."""
    if low >= -SLACK and high <= 1 + SLACK:
        return ("unit",)
    if low >= -255 * SLACK and LARGEST_NORMALISED < high <= 255 * (1 + SLACK):
        return ("bytes",)
    if -LARGEST_NORMALISED <= low < -SLACK and high <= LARGEST_NORMALISED:
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
            "normalized": "normalised or whitened",
            "": "like no kind",
        }
        advice = f"pass --values {' or '.join(kinds)}" if kinds else "bring them to [0, 1] first"
        raise UserError(
            f"--values {values}: the images have values from {low:.4g} to {high:.4g}, which looks "
            f"{look[kinds[0]] if kinds else 'like no kind'}: {advice}"
        )


def _check_near(unit_NCHW: np.ndarray, values: Values, instead: str) -> None:
    share = float(((unit_NCHW < FAR[0]) | (unit_NCHW > FAR[1])).mean())
    if share > MOST_FAR:
        raise UserError(
            f"--values {values}: taken so, {share:.0%} of the values lie outside [{FAR[0]}, {FAR[1]}], where images "
            f"have theirs in [0, 1]: pass --values {instead}"
        )


def _check_contrast(unit_NCHW: np.ndarray, real: RealData) -> None:
    contrast = float(np.mean(unit_NCHW.std(axis=(0, 2, 3)) / np.maximum(real.std, 1e-6)))
    if contrast < LEAST_CONTRAST:
        raise UserError(
            f"--values normalized: taken so, the images have {contrast:.0%} of the contrast of {real.name}, which "
            "looks whitened: pass --values zca; if they are not, undo the normalisation and save [images, targets]"
        )


# ---- whitening --------------------------------------------------------------------------------------------------


def unwhitened(images_NCHW: np.ndarray, real: RealData, given: Normalisation | None) -> np.ndarray:
    """Undoes ZCA whitening, float64 `[N, C, H, W]`.

    The whitening is `W = U diag((s + 0.1)^(-1/2)) U^T` of the images' centred values, with s and U the eigenvalues and
    -vectors of their unbiased covariance over the training images, in [0, 1] or normalised as `given`.

    Raises:
        UserError: the images are too large.
    """
    size = images_NCHW[0].size
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
    flat_ND = (images_NCHW.reshape(-1, size).astype(np.float64) @ basis_DD * root_D) @ basis_DD.T + mean_D
    unit_NCHW = flat_ND.reshape(images_NCHW.shape)
    return given.undone(unit_NCHW) if given is not None else unit_NCHW


def _moments(real: RealData, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and unbiased covariance `[D, D]` of the training images in [0, 1], float64, chunk by chunk."""
    images, size = real.train.images, real.train.images[0].size
    sum_D, products_DD = np.zeros(size), np.zeros((size, size))
    with track("fitting the whitening", len(images)) as bar:
        for start in range(0, len(images), chunk):
            rows_ND = images[start : start + chunk].reshape(-1, size) / 255.0 - 0.5  # shifted: less is cancelled below
            sum_D += rows_ND.sum(0)
            products_DD += rows_ND.T @ rows_ND
            bar.advance(len(rows_ND))
    count = len(images)
    products_DD -= np.outer(sum_D, sum_D) / count
    return sum_D / count + 0.5, products_DD / max(count - 1, 1)
