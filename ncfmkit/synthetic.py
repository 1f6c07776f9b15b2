"""The synthetic set: stored images, how they are initialised from real ones and decoded (METHOD section 4).

Axes: N stored images, P decoded images per stored image, C channels, H = W side, M = IPC.
A stored image is a factor x factor mosaic; decoding cuts it up and enlarges each cell to the full side.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from ncfmkit.draws import keyed_rng
from ncfmkit.errors import UserError
from ncfmkit.real import RealData
from ncfmkit.training import channel_tensors, normalise

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


def decoded_rows(decode: str, factor: int, ipc: int, budget: int | None) -> np.ndarray:
    """How many decoded images of each stored one of a class count, int64 `[M]`: the row sums of :func:`decode_mask`."""
    rows_M, left = np.zeros(ipc, np.int64), budget if budget is not None else ipc * factor**2
    for f in decode_factors(decode, factor):
        cells = f * f
        rows_M += np.clip(left - np.arange(ipc) * cells, 0, cells) if decode == "bound" else cells
        left = max(0, left - ipc * cells)
    return rows_M


def decode(images_NCHW: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Cuts every image by each factor and enlarges the cells (bilinear), `[N, P, C, H, W]`; differentiable.

    Args:
        images_NCHW: float images.
        factors: factor f gives f * f images, row by row.
    """
    return torch.cat([_cut(images_NCHW, f) for f in factors], dim=1)


def _cut(images_NCHW: torch.Tensor, factor: int) -> torch.Tensor:
    n, c, side, _ = images_NCHW.shape
    if factor == 1:
        return images_NCHW[:, None]
    cell = math.ceil(side / factor)
    fill = cell * factor - side
    padded = F.pad(images_NCHW, (0, fill, 0, fill), value=PADDING) if fill else images_NCHW
    grid = padded.view(n, c, factor, cell, factor, cell).permute(0, 2, 4, 1, 3, 5)
    return _enlarge(grid.reshape(n, factor * factor, c, cell, cell), side)


def _enlarge(cells: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear interpolation of the last two axes as matrix products: deterministic in the backward pass everywhere."""
    eye = torch.eye(cells.shape[-1], dtype=cells.dtype, device=cells.device)
    weights = F.interpolate(eye[None, None], size=(side, len(eye)), mode="bilinear", align_corners=False)[0, 0]
    return ((cells @ weights.T).mT @ weights.T).mT


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """A distilled set as it is stored. D are the images that it decodes to.

    Attributes:
        images: uint8 `[C*M, ch, H, W]`, stored, undecoded, sorted by class; restored where they are kept in fewer bits.
        labels: int64 `[C*M]`.
        manifest: what the file says about itself, see docs/formats.md.
        soft_labels: float16 `[D, K]`, logits of every decoded image to train on (as probabilities) instead of its
            label; none: the labels are all there is.
        levels: uint8 `[1 or C*M, ch, 2]`, the darkest and the brightest value of quantised pixels; none: not quantised.
    """

    images: torch.Tensor
    labels: torch.Tensor
    manifest: dict[str, Any]
    soft_labels: torch.Tensor | None = None
    levels: torch.Tensor | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return int(self.manifest["ipc"]["stored"])

    def mask(self) -> torch.Tensor:
        """Which decoded images of each stored one count, bool `[C*M, P]`."""
        how = self.manifest["decode"]
        mask_MP = decode_mask(how["kind"], how["factor"], self.ipc, how["budget"])
        return torch.from_numpy(mask_MP).repeat(len(self.classes), 1)

    def decoded_parts(self, chunk: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What :meth:`decoded` gives, of `chunk` stored images after the other: for sets larger than memory."""
        how = self.manifest["decode"]
        factors = decode_factors(how["kind"], how["factor"])
        parts = zip(self.images.split(chunk), self.labels.split(chunk), self.mask().split(chunk), strict=True)
        for images_NCHW, labels_N, mask_NP in parts:
            images_NPCHW = decode(images_NCHW.float() / 255, factors)
            yield images_NPCHW[mask_NP], labels_N[:, None].expand(mask_NP.shape)[mask_NP]

    def decoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The images to train on: float32 in [0, 1] `[D, ch, H, W]`, and int64 labels `[D]`."""
        return next(self.decoded_parts(len(self.images)))

    def as_dataset(self) -> TensorDataset:
        """A torch dataset of `(image, label)`: decoded, normalised with the manifest's mean and std.

        A set with soft labels gives `(image, label, logits)`, the logits in float32.
        """
        images, labels = self.decoded()
        channels = channel_tensors(self.manifest["mean"], self.manifest["std"], images.device)
        soft = () if self.soft_labels is None else (self.soft_labels.float(),)
        return TensorDataset(normalise(images, *channels), labels, *soft)


# ---- initialisation ---------------------------------------------------------------------------------------------


def initialise(kind: str, real: RealData, *, ipc: int, factor: int, seed: int) -> torch.Tensor:
    """Stored images to start from, float32 in [0, 1] `[C*M, ch, H, W]`, drawn by `(seed, class)`.

    Args:
        kind: `mix` (each mosaic cell a down-scaled real image of the class), `random` (a real image) or `noise`.

    Raises:
        UserError: a class has fewer than `ipc` images (`mix`, `random`).
    """
    if kind == "noise":
        shape = (ipc, real.channels, real.size, real.size)
        rows = [keyed_rng(seed, "noise", c).standard_normal(shape, np.float32) for c in range(len(real.classes))]
        return torch.from_numpy(np.concatenate(rows)).mul_(0.25).add_(0.5).clamp_(0, 1)
    counts = real.train.counts()
    if counts.min() < ipc:
        poor = int(counts.argmin())
        raise UserError(
            f"--ipc {ipc} is above the {counts[poor]} training images of class {real.classes[poor]!r} in {real.name}: "
            f"--init {kind} needs at least as many; lower --ipc, or use --init noise"
        )
    cells = factor if kind == "mix" else 1
    picks = [_pick(real, c, ipc * cells * cells, keyed_rng(seed, kind, c)) for c in range(len(real.classes))]
    return _mosaic(torch.from_numpy(np.concatenate(picks)).float().div_(255), cells)


def _pick(real: RealData, label: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` images of a class, each once before any is used again."""
    start, stop = real.train.offsets[label : label + 2]
    order = np.resize(rng.permutation(stop - start), count)
    return real.train.images[start + order]


def _mosaic(images_NCHW: torch.Tensor, factor: int) -> torch.Tensor:
    """Every factor * factor images down-scaled into one."""
    if factor == 1:
        return images_NCHW
    side, channels = images_NCHW.shape[-1], images_NCHW.shape[1]
    cell = math.ceil(side / factor)
    small = F.interpolate(images_NCHW, size=cell, mode="bilinear", antialias=True, align_corners=False)
    grid = small.view(-1, factor, factor, channels, cell, cell).permute(0, 3, 1, 4, 2, 5)
    full = grid.reshape(-1, channels, cell * factor, cell * factor)
    return full[:, :, :side, :side].clamp(0, 1).contiguous()


def from_set(start: SyntheticSet, real: RealData, *, ipc: int) -> torch.Tensor:
    """The images of an earlier set, to start from (`init = "load"`).

    Raises:
        UserError: its classes, IPC or image shape are not the run's.
    """
    expected = (len(real.classes) * ipc, real.channels, real.size, real.size)
    if start.classes != real.classes:
        raise UserError(f"--load: the set has other classes than {real.name}: {_first_difference(start, real)}")
    if tuple(start.images.shape) != expected:
        raise UserError(f"--load: expected images of shape {expected}, got {tuple(start.images.shape)}: check --ipc")
    return start.images.float() / 255


def _first_difference(start: SyntheticSet, real: RealData) -> str:
    if len(start.classes) != len(real.classes):
        return f"{len(start.classes)} instead of {len(real.classes)}"
    return next(f"{a!r} instead of {b!r}" for a, b in zip(start.classes, real.classes, strict=True) if a != b)
