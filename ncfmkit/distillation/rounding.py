"""Images as a set of fewer bits than 8 stores them, while they are distilled (docs/formats.md, "Quantized pixels").

Shape letters: N images, C channels, H = W side, R = N * C rows of pixel values, each between two levels of its own.
"""

import torch

from ncfmkit.distillation.schedule import wide

SHRINKS = 16  # ranges tried per row, from the whole of it down to a half


def as_stored(images_NCHW: torch.Tensor, bits: int) -> torch.Tensor:
    """What is left of images that are stored in `bits` bits: float32 in [0, 1] `[N, C, H, W]`, on their device.

    :func:`ncfmkit.sets.quantize.quantize` gives the same values, of uint8 images and with a range per image.

    Args:
        images_NCHW: float in [0, 1].
        bits: 2 to 7.
    """
    value_RV = images_NCHW.detach().mul(255).round().long().flatten(0, 1).flatten(1)
    count_R256 = torch.zeros(len(value_RV), 256, dtype=torch.int64, device=value_RV.device)
    count_R256.scatter_add_(1, value_RV, torch.ones_like(value_RV))
    return _restored(count_R256, bits).gather(1, value_RV).view_as(images_NCHW).float() / 255


def _restored(count_R256: torch.Tensor, bits: int) -> torch.Tensor:
    """What each value becomes, int64 `[R, 256]`: between the levels with the least squared error."""
    top = (1 << bits) - 1
    value_256 = torch.arange(256, device=count_R256.device)
    there_R256 = count_R256 > 0
    low_R1 = torch.where(there_R256, value_256, 255).amin(1, keepdim=True)
    high_R1 = torch.where(there_R256, value_256, 0).amax(1, keepdim=True)
    middle_R1, half_R1 = ((a.to(wide(a.device)) / 2) for a in (low_R1 + high_R1, high_R1 - low_R1))
    best_R256, least_R1 = torch.zeros_like(count_R256), torch.full_like(low_R1, torch.iinfo(torch.int64).max)
    for k in range(SHRINKS):
        shrink = 1 - 0.5 * k / (SHRINKS - 1)
        low_R1 = (middle_R1 - half_R1 * shrink).round().long().clamp(max=255 - top)
        span_R1 = ((middle_R1 + half_R1 * shrink).round().long() - low_R1).clamp(min=top)
        above_R256 = torch.minimum((value_256 - low_R1).clamp(min=0), span_R1)
        code_R256 = (2 * above_R256 * top + span_R1) // (2 * span_R1)
        restored_R256 = low_R1 + (2 * code_R256 * span_R1 + top) // (2 * top)
        error_R1 = (count_R256 * (value_256 - restored_R256) ** 2).sum(1, keepdim=True)
        best_R256 = torch.where(error_R1 < least_R1, restored_R256, best_R256)
        least_R1 = torch.minimum(error_R1, least_R1)
    return best_R256
