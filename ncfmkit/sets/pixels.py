"""Pixels in fewer bytes than plain ones: quantized, with color at half the resolution, coded (docs/formats.md).

Such images are kept in memory as they are restored, beside the two tensors that store them: `pixels` and `levels`.

Shape letters: N images, C channels, H = W side, G = 1 or N rows of levels. Planes are what is quantized: the images, or
the six planes of :func:`ncfmkit.chroma.to_planes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ncfmkit import chroma
from ncfmkit.sets import coding, quantize

if TYPE_CHECKING:
    from ncfmkit.sets.manifest import Pixels

PIXELS = 1 << 16  # converted at once: each takes about 50 bytes
LEVELS_OF_PLANES = [0, 0, 0, 0, 1, 2]  # the four planes of luma share theirs


def stored(images_NCHW: torch.Tensor, how: "Pixels") -> tuple[torch.Tensor, dict[str, torch.Tensor], "Pixels"]:
    """Images in fewer bytes: as they are restored, the tensors that store them, and how, with its coding.

    Args:
        images_NCHW: uint8.
        how: with any coding.
    """
    if how.chroma is None:
        planes_NCHW, levels_GC2 = quantize.quantize(
            images_NCHW.numpy(), bits=how.bits, scale=how.scale, dither=how.dither
        )
    else:
        planes_NCHW, levels_GC2 = _quantized_color(images_NCHW, how)
    tensors, how = _encoded(planes_NCHW, levels_GC2, how)
    return _restored(planes_NCHW, how), tensors, how


def restored(tensors: Mapping[str, torch.Tensor], count: int, how: "Pixels") -> torch.Tensor:
    """The images that tensors store, uint8 `[count, C, H, W]`.

    Raises:
        ValueError: the coded pixels are damaged.
    """
    return _restored(_planes(tensors, count, how), how)


def selected(
    tensors: Mapping[str, torch.Tensor], count: int, rows: Sequence[int], how: "Pixels"
) -> tuple[dict[str, torch.Tensor], "Pixels"]:
    """The tensors that store some of the `count` images by the same codes, and how, with their coding."""
    levels_GC2 = tensors["levels"].numpy()
    levels_GC2 = levels_GC2[rows] if how.scale == "image" else levels_GC2
    return _encoded(_planes(tensors, count, how)[rows], levels_GC2, how)


def _encoded(
    planes_NCHW: np.ndarray, levels_GC2: np.ndarray, how: "Pixels"
) -> tuple[dict[str, torch.Tensor], "Pixels"]:
    """The codes of quantized planes as one stream where that is smaller than packed, else packed.

    A stream that is smaller than any reader takes is not used either (:data:`ncfmkit.sets.coding.SMALLEST`).
    """
    of_planes_GC2 = _of_planes(levels_GC2, how)
    content = coding.coded(planes_NCHW, of_planes_GC2, how.bits)
    packed = len(planes_NCHW) * quantize.packed_bytes(how.planes, how.bits)
    is_coded = packed <= len(content) * coding.SMALLEST < packed * coding.SMALLEST
    pixels = content.copy() if is_coded else quantize.packed(planes_NCHW, of_planes_GC2, how.bits)
    how = how.model_copy(update={"coding": "lzma" if is_coded else None})
    return {"pixels": torch.from_numpy(pixels), "levels": torch.from_numpy(levels_GC2)}, how


def _planes(tensors: Mapping[str, torch.Tensor], count: int, how: "Pixels") -> np.ndarray:
    content, levels_GC2 = tensors["pixels"].numpy(), _of_planes(tensors["levels"].numpy(), how)
    if how.coding is None:
        return quantize.restored(content, levels_GC2, how.planes, how.bits)
    return coding.uncoded(content, levels_GC2, count, how.planes, how.bits)


def _of_planes(levels_GC2: np.ndarray, how: "Pixels") -> np.ndarray:
    return levels_GC2 if how.chroma is None else levels_GC2[:, LEVELS_OF_PLANES]


def _quantized_color(images_NCHW: torch.Tensor, how: "Pixels") -> tuple[np.ndarray, np.ndarray]:
    """As :func:`ncfmkit.sets.quantize.quantize`, of luma and color differences: their planes and three levels."""
    planes_NCHW = _subsampled(images_NCHW, how)
    # the planes of luma as one: levels do not depend on the order of its values
    luma_N1HW = planes_NCHW[:, :4].reshape(len(planes_NCHW), 1, -1, how.planes[2])
    levels = [quantize.best_levels(of, how.bits, how.scale) for of in (luma_N1HW, planes_NCHW[:, 4:])]
    del luma_N1HW  # two thirds of the planes
    levels_GC2 = np.concatenate(levels, axis=1)
    return quantize.rounded(planes_NCHW, _of_planes(levels_GC2, how), how.bits, dither=how.dither), levels_GC2


def _subsampled(images_NCHW: torch.Tensor, how: "Pixels") -> np.ndarray:
    """The planes of luma and color differences, uint8; in parts, since whole numbers take several times the bytes."""
    planes_NCHW = torch.empty((len(images_NCHW), *how.planes), dtype=torch.uint8)
    for part in _parts(len(images_NCHW), how):
        planes_NCHW[part] = chroma.to_planes(*chroma.subsampled(images_NCHW[part])).to(torch.uint8)
    return planes_NCHW.numpy()


def _restored(planes_NCHW: np.ndarray, how: "Pixels") -> torch.Tensor:
    planes = torch.from_numpy(planes_NCHW)
    if how.chroma is None:
        return planes
    images_NCHW = torch.empty((len(planes), *how.shape), dtype=torch.uint8)
    for part in _parts(len(planes), how):
        images_NCHW[part] = chroma.upsampled(*chroma.from_planes(planes[part])).to(torch.uint8)
    return images_NCHW


def _parts(count: int, how: "Pixels") -> Iterator[slice]:
    """Places of as many images at a time as have `PIXELS`, at least one."""
    size = max(1, PIXELS // (how.shape[1] * how.shape[2]))
    return (slice(start, start + size) for start in range(0, count, size))
