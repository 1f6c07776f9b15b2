"""Color at half the resolution (4:2:0): luma of each pixel, and two color differences of each 2 x 2 pixels.

The transform is that of JPEG (ITU-T T.871, full-range BT.601) in whole numbers, which every reader restores alike
(docs/formats.md, "Color at half the resolution").

Shape letters: N images, H = W side, h = H / 2.
"""

from typing import Final

import torch
import torch.nn.functional as F

from ncfmkit.errors import UserError

WHOLE: Final = "4:4:4"
SUBSAMPLED: Final = "4:2:0"
SIDE = 4  # the side is a multiple of it: planes of half the side are coded in blocks of 2 x 2
NEEDS = f"expected three channels and a side that is a multiple of {SIDE}"
ONE = 1 << 16  # the coefficients below stand for so many parts of one
LUMA = (19595, 38470, 7471)  # of red, green and blue; they add up to ONE
BLUE = (-11059, -21709, 32768)  # Cb; these add up to 0
RED = (32768, -27439, -5329)  # Cr
GRAY = 128  # a color difference of none


def takes(channels: int, side: int) -> bool:
    """Whether images of that shape can be stored with color at half the resolution."""
    return channels == 3 and side % SIDE == 0


def check(channels: int, side: int) -> None:
    """Raises UserError unless images of that shape can be stored with color at half the resolution."""
    if not takes(channels, side):
        raise UserError(f"--chroma {SUBSAMPLED}: {NEEDS}, got {channels} and {side}")


def subsampled(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Luma `[N, 1, H, H]`, and Cb and Cr `[N, 2, h, h]`, the means of blocks: int32, 0 to 255.

    Args:
        images_NCHW: whole numbers from 0 to 255 of any dtype, `[N, 3, H, H]`; H is even.
    """
    images_NCHW = images_NCHW.to(torch.int32)
    luma_NHW = (_weighted(images_NCHW, LUMA) + ONE // 2) // ONE
    block_NChhP = images_NCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
    sum_NChh = block_NChhP.sum(4, dtype=torch.int32)
    chroma_N2hh = torch.stack([_weighted(sum_NChh, of) for of in (BLUE, RED)], dim=1)
    return luma_NHW[:, None], ((chroma_N2hh + 2 * ONE) // (4 * ONE) + GRAY).clamp(0, 255)


def upsampled(luma_N1HW: torch.Tensor, chroma_N2hh: torch.Tensor) -> torch.Tensor:
    """The images, int32 from 0 to 255 `[N, 3, H, H]`: each color difference is that of the four pixels of its block.

    Args:
        luma_N1HW, chroma_N2hh: as :func:`subsampled` gives them, of any dtype.
    """
    luma_NHW = luma_N1HW[:, 0].to(torch.int32)
    wide_N2HW = (chroma_N2hh.to(torch.int32) - GRAY).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    blue_NHW, red_NHW = wide_N2HW.unbind(1)
    added = 91881 * red_NHW, -22554 * blue_NHW - 46802 * red_NHW, 116130 * blue_NHW
    return torch.stack([(luma_NHW + (of + ONE // 2) // ONE).clamp(0, 255) for of in added], dim=1)


def to_planes(luma_N1HW: torch.Tensor, chroma_N2hh: torch.Tensor) -> torch.Tensor:
    """Six planes of half the side, `[N, 6, h, h]`: the luma of the four pixels of each block, row by row; Cb, Cr."""
    return torch.cat([F.pixel_unshuffle(luma_N1HW, 2), chroma_N2hh], dim=1)


def from_planes(planes_N6hh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`to_planes` was given."""
    return F.pixel_shuffle(planes_N6hh[:, :4], 2), planes_N6hh[:, 4:]


def _weighted(images_NCHW: torch.Tensor, weights: tuple[int, int, int]) -> torch.Tensor:
    """The sum over the channels, `[N, H, W]`; below 2^31 for up to four pixels together."""
    red, green, blue = images_NCHW.unbind(1)
    return weights[0] * red + weights[1] * green + weights[2] * blue
