"""Images as a set in fewer bytes stores them, while they are distilled (docs/formats.md, "Quantized pixels").

Shape letters: N images, C channels, H = W side, R = N * C rows of pixel values, each between two levels of its own.
"""

import torch

from ncfmkit import chroma
from ncfmkit.distillation.schedule import wide

SHRINKS = 16  # ranges tried per row, from the whole of it down to a half
PART = 1024  # rows at once, about


def as_stored(images_NCHW: torch.Tensor, bits: int, *, subsampled: bool) -> torch.Tensor:
    """What is left of images that are stored in `bits` bits: float32 in [0, 1] `[N, C, H, W]`, on their device.

    :func:`ncfmkit.sets.pixels.stored` gives the same values, of uint8 images and with a range per image. What is not
    finite stays as it is.

    Args:
        images_NCHW: float in [0, 1].
        bits: 2 to 8.
        subsampled: with color at half the resolution.
    """
    images_NCHW = images_NCHW.detach()
    finite_NCHW = images_NCHW.isfinite()
    value_NCHW = torch.where(finite_NCHW, images_NCHW.mul(255).round().clamp(0, 255), 0)
    parts = value_NCHW.split(max(1, PART // value_NCHW.shape[1]))
    stored_NCHW = torch.cat([(_subsampled if subsampled else _stored)(part_NCHW, bits) for part_NCHW in parts])
    return torch.where(finite_NCHW, stored_NCHW / 255, images_NCHW)


def working_bytes(rows: int, values: int) -> int:
    """Bytes that :func:`as_stored` takes, of so many rows of so many values each, its result among them."""
    return rows * values * 14 + min(rows, PART) * (values * 20 + 256 * 56)


def _subsampled(value_NCHW: torch.Tensor, bits: int) -> torch.Tensor:
    """Images of whole numbers as they are stored with color at half the resolution, float32."""
    luma_N1HW, chroma_N2hh = (_stored(part.float(), bits) for part in chroma.subsampled(value_NCHW))
    return chroma.upsampled(luma_N1HW, chroma_N2hh).float()


def _stored(value_NCHW: torch.Tensor, bits: int) -> torch.Tensor:
    """Images of whole numbers as they are stored, float32."""
    value_RV = value_NCHW.flatten(0, 1).flatten(1)
    index_RV = value_RV.long()
    count_R256 = torch.zeros(len(value_RV), 256, dtype=torch.int64, device=value_RV.device)
    count_R256.scatter_add_(1, index_RV, torch.ones_like(index_RV))
    return _restored(count_R256, bits).gather(1, index_RV).view_as(value_NCHW)


def _restored(count_R256: torch.Tensor, bits: int) -> torch.Tensor:
    """What each value becomes, float32 `[R, 256]`: between the levels with the least squared error.

    All numbers are whole, and far below 2^24: float32 holds them, and floors their quotients exactly.
    """
    top, wider = (1 << bits) - 1, wide(count_R256.device)
    value_256 = torch.arange(256, device=count_R256.device, dtype=torch.float32)
    there_R256, count_R256 = count_R256 > 0, count_R256.to(wider)
    low_R1 = torch.where(there_R256, value_256, 255).amin(1, keepdim=True).to(wider)
    high_R1 = torch.where(there_R256, value_256, 0).amax(1, keepdim=True).to(wider)
    middle_R1, half_R1 = (low_R1 + high_R1) / 2, (high_R1 - low_R1) / 2
    best_R256, least_R1 = torch.zeros_like(count_R256, dtype=torch.float32), torch.full_like(low_R1, torch.inf)
    for k in range(SHRINKS):
        shrink = 1 - 0.5 * k / (SHRINKS - 1)
        low_R1 = (middle_R1 - half_R1 * shrink).round().clamp(max=255 - top).float()
        span_R1 = ((middle_R1 + half_R1 * shrink).round().float() - low_R1).clamp(min=top)
        above_R256 = torch.minimum((value_256 - low_R1).clamp(min=0), span_R1)
        code_R256 = ((2 * top * above_R256 + span_R1) / (2 * span_R1)).floor()
        restored_R256 = low_R1 + ((2 * code_R256 * span_R1 + top) / (2 * top)).floor()
        error_R1 = (count_R256 * (value_256 - restored_R256).square()).sum(1, keepdim=True)
        best_R256 = torch.where(error_R1 < least_R1, restored_R256, best_R256)
        least_R1 = torch.minimum(error_R1, least_R1)
    return best_R256
