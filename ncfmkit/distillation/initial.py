"""Where the synthetic images start from (docs/method.md, section 4)."""

import numpy as np
import torch

from ncfmkit.errors import UserError
from ncfmkit.mosaic import compose
from ncfmkit.real.store import RealData
from ncfmkit.rng import keyed_rng
from ncfmkit.sets.synthetic import SyntheticSet


def initialize(kind: str, real: RealData, *, ipc: int, factor: int, seed: int) -> torch.Tensor:
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
    return compose(torch.from_numpy(np.concatenate(picks)).float().div_(255), cells)


def _pick(real: RealData, label: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` images of a class, each once before any is used again."""
    start, stop = real.train.offsets[label : label + 2]
    order = np.resize(rng.permutation(stop - start), count)
    return real.train.images[start + order]


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
