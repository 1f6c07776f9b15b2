"""Pixels in fewer than 8 bits: quantized between a darkest and a brightest value, and bit-packed.

docs/formats.md specifies the layout. Quantizing and restoring are exact in integers: restored values give the same
codes again, so a quantized set is kept in memory as 8-bit images and nothing is lost when it is stored.

Shape letters: N images, C channels, H = W side, G = 1 or N rows of levels, V = C * H * W values of an image, Q bits.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from ncfmkit.errors import UserError

Scale = Literal["channel", "image"]
BITS = (8, 6, 5, 4, 3, 2)
PART = 16  # images at once
SHRINKS = 16  # ranges tried per channel, from the whole of it down to a half


def quantize(images_NCHW: np.ndarray, *, bits: int, scale: Scale, dither: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images of at most `2**bits` values per channel, and the levels between which they lie.

    Args:
        images_NCHW: uint8.
        bits: 2 to 8; 8 changes nothing.
        scale: one darkest and one brightest value per channel for the whole set, or for every image.
        dither: spread the rounding errors over the neighboring pixels (Floyd and Steinberg 1976).

    Returns:
        uint8 images `[N, C, H, W]` and uint8 levels `[G, C, 2]`.
    """
    check(bits, scale)
    levels_GC2 = best_levels(images_NCHW, bits, scale)
    return rounded(images_NCHW, levels_GC2, bits, dither=dither), levels_GC2


def rounded(images_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int, *, dither: bool) -> np.ndarray:
    """The values that are left of images between these levels, uint8 `[N, C, H, W]`; arguments as above."""
    coded = _dithered if dither else encode
    parts = [
        restore(coded(images_NCHW[n], levels_GC2[g], bits), levels_GC2[g], bits)
        for n, g in in_parts(images_NCHW, levels_GC2)
    ]
    return np.concatenate(parts)


def check(bits: int, scale: str) -> None:
    """Raises UserError for another number of bits, or another scale, than there is."""
    if bits not in BITS:
        raise UserError(f"--bits {bits}: expected one of {', '.join(map(str, BITS))}")
    if scale not in get_args(Scale):
        raise UserError(f"--scale {scale}: expected one of {', '.join(get_args(Scale))}")


def encode(images_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """The nearest codes, uint8 `[N, C, H, W]`."""
    low, span = _low_and_span(levels_GC2)
    top = (1 << bits) - 1
    above = np.clip(images_NCHW.astype(np.int32) - low, 0, span)
    return ((2 * above * top + span) // (2 * span)).astype(np.uint8)


def restore(codes_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """The values that the codes stand for, uint8 `[N, C, H, W]`."""
    low, span = _low_and_span(levels_GC2)
    top = (1 << bits) - 1
    return (low + (2 * codes_NCHW.astype(np.int32) * span + top) // (2 * top)).astype(np.uint8)


def _low_and_span(levels_GC2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = levels_GC2.astype(np.int32)[:, :, None, None].transpose(4, 0, 1, 2, 3)
    return low, high - low


def packed(images_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """Quantized images as packed codes, uint8 `[N, bytes]`; in parts, for codes take several times their images."""
    parts = [pack(encode(images_NCHW[n], levels_GC2[g], bits), bits) for n, g in in_parts(images_NCHW, levels_GC2)]
    return np.concatenate(parts)


def restored(packed_NB: np.ndarray, levels_GC2: np.ndarray, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """The images that packed codes stand for, uint8 `[N, C, H, W]`; in parts likewise."""
    images_NCHW = np.empty((len(packed_NB), *shape), np.uint8)
    for n, g in in_parts(packed_NB, levels_GC2):
        images_NCHW[n] = restore(unpack(packed_NB[n], shape, bits), levels_GC2[g], bits)
    return images_NCHW


def in_parts(rows: np.ndarray, levels_GC2: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Places of a few images at a time, and of the levels that belong to them."""
    for start in range(0, len(rows), PART):
        part = slice(start, start + PART)
        yield part, part if len(levels_GC2) > 1 else slice(None)


def pack(codes_NCHW: np.ndarray, bits: int) -> np.ndarray:
    """Codes as bits, the most significant first, every image filled up to a whole byte: uint8 `[N, bytes]`."""
    codes_NV = codes_NCHW.reshape(len(codes_NCHW), -1)
    bits_NVQ = np.unpackbits(codes_NV[:, :, None], axis=2)[:, :, 8 - bits :]
    return np.packbits(bits_NVQ.reshape(len(codes_NV), -1), axis=1)


def unpack(packed_NB: np.ndarray, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """What :func:`pack` was given, uint8 `[N, C, H, W]`."""
    values = int(np.prod(shape))
    bits_NVQ = np.unpackbits(packed_NB, axis=1)[:, : values * bits].reshape(-1, values, bits)
    codes_NV = np.packbits(bits_NVQ, axis=2, bitorder="big") >> (8 - bits)
    return codes_NV.reshape(-1, *shape)


def has_stray_bits(packed_NB: np.ndarray, shape: tuple[int, int, int], bits: int) -> bool:
    """Whether bits are set after the last code of an image: they would be lost."""
    unused = 8 * packed_NB.shape[1] - int(np.prod(shape)) * bits
    return bool((packed_NB[:, -1] & ((1 << unused) - 1)).any())


def packed_bytes(shape: tuple[int, int, int], bits: int) -> int:
    """Bytes of one packed image."""
    return (int(np.prod(shape)) * bits + 7) // 8


def best_levels(images_NCHW: np.ndarray, bits: int, scale: Scale) -> np.ndarray:
    """uint8 `[G, C, 2]`: of the ranges about the middle of all values, that with the least squared error."""
    groups_GNCHW = images_NCHW[None] if scale == "channel" else images_NCHW[:, None]
    count = np.stack([_histograms(group) for group in groups_GNCHW])  # [G, C, 256]
    return _best_ranges(count, bits)


def _histograms(images_NCHW: np.ndarray) -> np.ndarray:
    """int64 `[C, 256]`."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in images_NCHW.swapaxes(0, 1)])


def _best_ranges(count_GC256: np.ndarray, bits: int) -> np.ndarray:
    lowest, highest = (count_GC256 > 0).argmax(2), 255 - (count_GC256[:, :, ::-1] > 0).argmax(2)
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    best_GC2, least_GC = np.zeros((*count_GC256.shape[:2], 2), np.uint8), np.full(count_GC256.shape[:2], np.inf)
    for shrink in np.linspace(1, 0.5, SHRINKS):
        levels_GC2 = _widened(np.round(middle - half * shrink), np.round(middle + half * shrink), bits)
        error_GC = _squared_error(count_GC256, levels_GC2, bits)
        better = error_GC < least_GC
        best_GC2[better], least_GC[better] = levels_GC2[better], error_GC[better]
    return best_GC2


def _widened(low_GC: np.ndarray, high_GC: np.ndarray, bits: int) -> np.ndarray:
    """Levels with room for a value of its own for every code, uint8 `[G, C, 2]`."""
    top = (1 << bits) - 1
    low_GC = np.minimum(low_GC, 255 - top)
    return np.stack([low_GC, np.maximum(high_GC, low_GC + top)], axis=2).astype(np.uint8)


def _squared_error(count_GC256: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    every = np.broadcast_to(np.arange(256, dtype=np.uint8), count_GC256.shape)[..., None]  # as images of 256 x 1 pixels
    error = every.astype(np.int64) - restore(encode(every, levels_GC2, bits), levels_GC2, bits)
    return (count_GC256 * error[..., 0] ** 2).sum(2)


def _dithered(images_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """Codes, uint8 `[N, C, H, W]`, pixel by pixel for all images and channels at once."""
    n, c, height, width = images_NCHW.shape
    # pixels first, so that each step works on contiguous memory; one column more on either side takes what runs over
    left_HWNC = np.zeros((height + 1, width + 2, n, c), np.float32)
    left_HWNC[:height, 1:-1] = images_NCHW.transpose(2, 3, 0, 1)
    codes_HWNC = np.empty((height, width, n, c), np.uint8)
    for y in range(height):
        for x in range(width):
            wanted_NC = left_HWNC[y, x + 1]
            rounded_NC11 = np.clip(np.round(wanted_NC), 0, 255).astype(np.uint8)[:, :, None, None]
            code_NC11 = encode(rounded_NC11, levels_GC2, bits)
            codes_HWNC[y, x] = code_NC11[:, :, 0, 0]
            error_NC = wanted_NC - restore(code_NC11, levels_GC2, bits)[:, :, 0, 0]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                left_HWNC[y + down, x + 1 + right] += error_NC * (share / 16)
    return codes_HWNC.transpose(2, 3, 0, 1)
