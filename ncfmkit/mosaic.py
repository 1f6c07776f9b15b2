"""Mosaics: how one stored image holds several smaller ones, and how it is decoded (docs/method.md, section 4).

Axes: N stored images, P decoded images per stored image, C channels, H = W side, M = IPC.
A stored image is a factor x factor mosaic; decoding cuts it up and enlarges each cell to the full side.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit.errors import UserError

PADDING = 0.5  # fills the side up to a multiple of the factor


def decode_factors(decode: str, factor: int) -> tuple[int, ...]:
    """The factors that a decoding kind cuts by, in the order of the decoded images of a class."""
    return {
        "single": (factor,),
        "multi": tuple(range(1, factor + 1)),
        "bound": tuple(range(factor, 0, -1)),
    }[decode]


def decode_mask(decode: str, factor: int, ipc: int, budget: int | None) -> np.ndarray:
    """Which decoded images count, bool `[M, P]`; all of them, but for `bound`: the largest factors up to the budget.

    Args:
        budget: decoded images per class of `bound`; none: `ipc * factor**2`.
    """
    factors = decode_factors(decode, factor)
    mask_MP = np.ones((ipc, sum(f * f for f in factors)), dtype=bool)
    if decode != "bound":
        return mask_MP
    left, column = budget if budget is not None else ipc * factor**2, 0
    for f in factors:
        cells = f * f
        rank_MP = np.arange(ipc * cells).reshape(ipc, cells)
        mask_MP[:, column : column + cells] = rank_MP < left
        left, column = max(0, left - ipc * cells), column + cells
    return mask_MP


def check_budget(decode: str, factor: int, ipc: int, budget: int | None) -> None:
    """Raises UserError if a budget of `bound` leaves a cell of a stored image without training, or cannot be met.

    For sets that are to be made; sets with other budgets, made earlier or elsewhere, are decoded as they say.
    """
    least, most = ipc * factor**2, decoded_count("multi", factor, ipc, None)
    if decode == "bound" and budget is not None and not least <= budget <= most:
        fault = "parts of the stored images would never be trained" if budget < least else "that is more than there are"
        raise UserError(
            f"distill.decoded_per_class {budget}: {fault}; with --decode bound, --ipc {ipc} and --factor {factor} "
            f"expected {least} (each stored image cut by the largest factor) to {most} (by every factor)"
        )


def decoded_rows(decode: str, factor: int, ipc: int, budget: int | None) -> np.ndarray:
    """How many decoded images of each stored one of a class count, int64 `[M]`: the row sums of :func:`decode_mask`."""
    rows_M, left = np.zeros(ipc, np.int64), budget if budget is not None else ipc * factor**2
    for f in decode_factors(decode, factor):
        cells = f * f
        rows_M += np.clip(left - np.arange(ipc) * cells, 0, cells) if decode == "bound" else cells
        left = max(0, left - ipc * cells)
    return rows_M


def decoded_count(decode: str, factor: int, ipc: int, budget: int | None) -> int:
    """How many decoded images of a class count; nothing is allocated. Arguments as of :func:`decode_mask`."""
    most = ipc * sum(f * f for f in decode_factors(decode, factor))
    if decode != "bound":
        return most
    return min(most, budget if budget is not None else ipc * factor**2)


def decode(images_NCHW: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Cuts every image by each factor and enlarges the cells (bilinear), `[N, P, C, H, W]`; differentiable.

    Args:
        images_NCHW: float images.
        factors: factor f gives f * f images, row by row.
    """
    return torch.cat([_cut(images_NCHW, f) for f in factors], dim=1)


def _cut(images_NCHW: torch.Tensor, factor: int) -> torch.Tensor:
    return images_NCHW[:, None] if factor == 1 else _enlarge(cells(images_NCHW, factor), images_NCHW.shape[-1])


def cells(images_NCHW: torch.Tensor, factor: int, *, padding: float = PADDING) -> torch.Tensor:
    """The factor * factor cells of every image, row by row, `[N, factor**2, C, cell, cell]`.

    Args:
        padding: fills the last row and column of cells where the factor does not divide the side.
    """
    n, c, side, _ = images_NCHW.shape
    cell = math.ceil(side / factor)
    fill = cell * factor - side
    padded = F.pad(images_NCHW, (0, fill, 0, fill), value=padding) if fill else images_NCHW
    grid = padded.view(n, c, factor, cell, factor, cell).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(n, factor * factor, c, cell, cell)


def _enlarge(cells: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear interpolation of the last two axes as matrix products: deterministic in the backward pass everywhere."""
    eye = torch.eye(cells.shape[-1], dtype=cells.dtype, device=cells.device)
    weights = F.interpolate(eye[None, None], size=(side, len(eye)), mode="bilinear", align_corners=False)[0, 0]
    return ((cells @ weights.T).mT @ weights.T).mT


def compose(images_NCHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Every factor * factor images down-scaled into one."""
    if factor == 1:
        return images_NCHW
    side, channels = images_NCHW.shape[-1], images_NCHW.shape[1]
    cell = math.ceil(side / factor)
    small = reduced(images_NCHW, cell)
    grid = small.view(-1, factor, factor, channels, cell, cell).permute(0, 3, 1, 4, 2, 5)
    full = grid.reshape(-1, channels, cell * factor, cell * factor)
    return full[:, :, :side, :side].clamp(0, 1).contiguous()


def reduced(images_NCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Float images down-scaled to that side, as :func:`compose` does."""
    return F.interpolate(images_NCHW, size=side, mode="bilinear", antialias=True, align_corners=False)
