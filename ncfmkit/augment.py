"""Differentiable augmentation (DSA) and CutMix, on normalized images (docs/method.md, section 6).

Every image has one row of uniform numbers, `u_NP`; where a draw is shared, as by all images of a class in the matching
loss, the rows are equal. So one function serves the matching loss, the calibration and the training of networks.
Axes: N images, C channels, H = W side, P uniform numbers, K labels.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit.errors import UserError

GEOMETRIC = ("crop", "scale", "rotate")  # one of those listed is picked per call
OPERATIONS = ("color", *GEOMETRIC, "flip", "cutout")
PICK, BRIGHTNESS, SATURATION, CONTRAST, FLIP, MOVE_Y, MOVE_X, CUT_Y, CUT_X = range(9)
DRAWS = 9  # P

CROP_FRACTION = 1 / 8  # of the side, padded with 0 on each side before the shift
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0
CUTOUT_FRACTION = 1 / 2  # of the side


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """`("color", "crop")` for "color_crop"; "none" or "" for no augmentation.

    Raises:
        UserError: an unknown operation.
    """
    operations = tuple(o for o in strategy.split("_") if o and o != "none")
    unknown = [o for o in operations if o not in OPERATIONS]
    if unknown:
        raise UserError(f"unknown augmentation {unknown[0]!r} in {strategy!r}: known: {', '.join(OPERATIONS)}, none")
    return operations


def augment(x_NCHW: torch.Tensor, strategy: str, u_NP: torch.Tensor) -> torch.Tensor:
    """Color, one geometric operation, flip and cutout, as listed in `strategy`.

    Args:
        x_NCHW: normalized float images; the result is differentiable in them.
        strategy: operations joined by `_`, such as "color_crop_cutout".
        u_NP: uniform numbers in [0, 1), float32, one row per image, on the CPU (moved as needed).
    """
    operations = parse_strategy(strategy)
    return apply(x_NCHW, operations, drawn(operations, u_NP), u_NP.to(x_NCHW.device, non_blocking=True))


def drawn(operations: tuple[str, ...], u_NP: torch.Tensor) -> tuple[str, ...]:
    """The geometric operations that any image of the batch picks; read on the CPU, so that no device is waited for."""
    listed = [o for o in GEOMETRIC if o in operations]
    picks = (u_NP[:, PICK] * len(listed)).long().tolist()
    return tuple(o for i, o in enumerate(listed) if i in picks)


def apply(
    x_NCHW: torch.Tensor, operations: tuple[str, ...], drawn: tuple[str, ...], u_NP: torch.Tensor
) -> torch.Tensor:
    """What :func:`augment` does, on the device and without looking at a value, so that it can be compiled."""
    listed = [o for o in GEOMETRIC if o in operations]
    pick_N = (u_NP[:, PICK] * len(listed)).long()
    active = {o: pick_N == listed.index(o) for o in drawn}
    if "color" in operations:
        x_NCHW = _color(x_NCHW, u_NP)
    if "rotate" in active:
        x_NCHW = _rotate(x_NCHW, u_NP, active["rotate"])
    if "flip" in operations or active.keys() & {"crop", "scale"}:
        x_NCHW = _resample(x_NCHW, u_NP, active, "flip" in operations)
    return _cutout(x_NCHW, u_NP) if "cutout" in operations else x_NCHW


def _column(u_NP: torch.Tensor, index: int) -> torch.Tensor:
    return u_NP[:, index].view(-1, 1, 1, 1)


def _color(x_NCHW: torch.Tensor, u_NP: torch.Tensor) -> torch.Tensor:
    x_NCHW = x_NCHW + (_column(u_NP, BRIGHTNESS) - 0.5)
    mean_N1HW = x_NCHW.mean(1, keepdim=True)
    x_NCHW = (x_NCHW - mean_N1HW) * (2 * _column(u_NP, SATURATION)) + mean_N1HW
    mean_N111 = x_NCHW.mean((1, 2, 3), keepdim=True)
    return (x_NCHW - mean_N111) * (_column(u_NP, CONTRAST) + 0.5) + mean_N111


def _rotate(x_NCHW: torch.Tensor, u_NP: torch.Tensor, active_N: torch.Tensor) -> torch.Tensor:
    angle_N = (u_NP[:, MOVE_X] * 2 - 1) * math.radians(ROTATE_DEGREES) * active_N
    cos_N, sin_N, zero_N = angle_N.cos(), angle_N.sin(), torch.zeros_like(angle_N)
    theta_N23 = torch.stack([cos_N, -sin_N, zero_N, sin_N, cos_N, zero_N], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
    return F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _resample(x_NCHW: torch.Tensor, u_NP: torch.Tensor, active: dict[str, torch.Tensor], flip: bool) -> torch.Tensor:
    """Crop, scale and flip act on each axis alone: one bilinear matrix per axis and image, exact for whole shifts.

    Matrix products are deterministic in the backward pass on every device, which gathering is not.
    """
    side = x_NCHW.shape[-1]
    for axis, index in ((-2, MOVE_Y), (-1, MOVE_X)):
        stretch_N, shift_N = torch.ones_like(u_NP[:, 0]), torch.zeros_like(u_NP[:, 0])
        if "scale" in active:
            low, high = 1 / SCALE_RATIO, SCALE_RATIO
            stretch_N = torch.where(active["scale"], low + (high - low) * u_NP[:, index], stretch_N)
        if "crop" in active:
            reach = int(side * CROP_FRACTION + 0.5)
            shift_N = torch.where(active["crop"], (u_NP[:, index] * (2 * reach + 1)).floor() - reach, shift_N)
        if flip and axis == -1:
            stretch_N = torch.where(u_NP[:, FLIP] < 0.5, -stretch_N, stretch_N)
        matrix_NHH = _axis_matrix(side, 1 / stretch_N, shift_N)
        lines_NLH = x_NCHW.transpose(axis, -1).flatten(1, 2)  # every row, or every column, of every channel
        x_NCHW = torch.bmm(lines_NLH, matrix_NHH.mT).view_as(x_NCHW).transpose(axis, -1)
    return x_NCHW


def _axis_matrix(side: int, step_N: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """`[N, H, H]`: row i holds the bilinear weights of the source pixels of output pixel i; outside is 0."""
    pixel_H = torch.arange(side, device=step_N.device, dtype=step_N.dtype)
    center = (side - 1) / 2
    source_NH = (pixel_H - center)[None] * step_N[:, None] + center + shift_N[:, None]
    return (1 - (source_NH[:, :, None] - pixel_H).abs()).clamp(min=0)


def _cutout(x_NCHW: torch.Tensor, u_NP: torch.Tensor) -> torch.Tensor:
    side = x_NCHW.shape[-1]
    hole = int(side * CUTOUT_FRACTION)
    pixel_H = torch.arange(side, device=x_NCHW.device)
    inside = []
    for index in (CUT_Y, CUT_X):
        start_N1 = (u_NP[:, index, None] * side).floor() - hole // 2
        inside.append((pixel_H >= start_N1) & (pixel_H < start_N1 + hole))
    return x_NCHW * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def draw_cutmix(rng: np.random.Generator, count: int, side: int, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`cutmix` takes for a batch; the box is empty but with that probability; lambda ~ U(0, 1).

    Returns:
        Float32 `[6]`: first and last row of the box, first and last column, each last one excluded; the share of the
        image's own target, and the rest. Then whom each image is mixed with, int64 `[N]`.
    """
    decide, lam, center_y, center_x = rng.random(4)
    order_N = rng.permutation(count)
    if decide >= probability:
        return np.array([0, 0, 0, 0, 1, 0], np.float32), order_N
    half = side * math.sqrt(1 - lam) / 2
    (top, bottom), (left, right) = (
        (max(0, round(c * side - half)), min(side, round(c * side + half))) for c in (center_y, center_x)
    )
    own = 1 - (bottom - top) * (right - left) / side**2
    return np.array([top, bottom, left, right, own, 1 - own], np.float32), order_N


def cutmix(
    x_NCHW: torch.Tensor, target_NK: torch.Tensor, box_6: torch.Tensor, order_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pastes the box of the batch in that order into the batch, and mixes the targets by area.

    Args:
        x_NCHW: images.
        target_NK: label probabilities, float32.
        box_6, order_N: as of :func:`draw_cutmix`, on the device of the images.
    """
    top, bottom, left, right, own, rest = box_6
    pixel_H = torch.arange(x_NCHW.shape[-1], device=x_NCHW.device)
    rows_H, columns_W = (pixel_H >= top) & (pixel_H < bottom), (pixel_H >= left) & (pixel_H < right)
    mixed_NCHW = torch.where(rows_H[:, None] & columns_W, x_NCHW[order_N], x_NCHW)
    return mixed_NCHW, own * target_NK + rest * target_NK[order_N]
