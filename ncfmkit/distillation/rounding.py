"""Images as a set of fewer bits than 8 stores them, while they are distilled (docs/formats.md, "Quantized pixels").

Shape letters: N images, C channels, H = W side, R = N * C rows of pixel values, each between two levels of its own.
"""

import torch

from ncfmkit.distillation.schedule import wide

SHRINKS = 16  # ranges tried per row, from the whole of it down to a half
PART = 1024  # rows at once


def as_stored(images_NCHW: torch.Tensor, bits: int) -> torch.Tensor:
    """What is left of images that are stored in `bits` bits: float32 in [0, 1] `[N, C, H, W]`, on their device.

    :func:`ncfmkit.sets.quantize.quantize` gives the same values, of uint8 images and with a range per image. What is
    not finite stays as it is.

    Args:
        images_NCHW: float in [0, 1].
        bits: 2 to 7.
    """
    images_NCHW = images_NCHW.detach()
    finite_NCHW = images_NCHW.isfinite()
    value_RV = torch.where(finite_NCHW, images_NCHW.mul(255).round().clamp(0, 255), 0).flatten(0, 1).flatten(1)
    stored_NCHW = torch.cat([_stored(part_RV, bits) for part_RV in value_RV.split(PART)]).view_as(images_NCHW)
    return torch.where(finite_NCHW, stored_NCHW / 255, images_NCHW)


def working_bytes(rows: int, values: int) -> int:
    """Bytes that :func:`as_stored` takes, of so many rows of so many values each, its result among them."""
    return rows * values * 14 + min(rows, PART) * (values * 16 + 256 * 56)


def _stored(value_RV: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of whole numbers as they are stored, float32 `[R, V]`."""
    index_RV = value_RV.long()
    count_R256 = torch.zeros(len(value_RV), 256, dtype=torch.int64, device=value_RV.device)
    count_R256.scatter_add_(1, index_RV, torch.ones_like(index_RV))
    return _restored(count_R256, bits).gather(1, index_RV)


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
