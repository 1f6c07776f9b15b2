"""Where the synthetic images start from (docs/method.md, section 4)."""

from collections.abc import Sequence

import numpy as np
import torch

from ncfmkit.errors import UserError
from ncfmkit.mosaic import compose
from ncfmkit.real.store import RealData
from ncfmkit.rng import keyed_rng


def initialize(
    kind: str, real: RealData, *, ipc: int, factor: int, seed: int, labels: Sequence[int] | None = None
) -> torch.Tensor:
    """Stored images to start from, float32 in [0, 1] `[C*M, ch, H, W]`, drawn by `(seed, class)`.

    Args:
        kind: `mix` (each mosaic cell a down-scaled real image of the class), `random` (a real image) or `noise`.
        labels: the classes C, ascending; None: all.

    Raises:
        UserError: a class has fewer than `ipc` images (`mix`, `random`).
    """
    labels = range(len(real.classes)) if labels is None else labels
    if kind == "noise":
        shape = (ipc, real.channels, real.size, real.size)
        rows = [keyed_rng(seed, "noise", c).standard_normal(shape, np.float32) for c in labels]
        return torch.from_numpy(np.concatenate(rows)).mul_(0.25).add_(0.5).clamp_(0, 1)
    images = real.train.images
    picks = [images[places] for places in beginnings(kind, real, ipc=ipc, factor=factor, seed=seed, labels=labels)]
    return compose(torch.from_numpy(np.concatenate(picks)).float().div_(255), factor if kind == "mix" else 1)


def beginnings(
    kind: str, real: RealData, *, ipc: int, factor: int, seed: int, labels: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Places in the training split of the real images that the stored images of each class begin as, in their order.

    Each image of a class is used once before any is used again.

    Args:
        kind: `mix` or `random`.
        labels: the classes; None: all.

    Raises:
        UserError: a class has fewer than `ipc` images.
    """
    labels, counts = range(len(real.classes)) if labels is None else labels, real.train.counts()
    poor = min(labels, key=lambda c: counts[c])
    if counts[poor] < ipc:
        raise UserError(
            f"--ipc {ipc} is above the {counts[poor]} training images of class {real.classes[poor]!r} in {real.name}: "
            f"--init {kind} needs at least as many; lower --ipc, or use --init noise"
        )
    cells = factor**2 if kind == "mix" else 1
    return [
        real.train.offsets[c] + np.resize(keyed_rng(seed, kind, c).permutation(counts[c]), ipc * cells) for c in labels
    ]


def from_images(images_NCHW: torch.Tensor, classes: tuple[str, ...], real: RealData, *, ipc: int) -> torch.Tensor:
    """The images of an earlier set, to start from (`init = "load"`), float32 in [0, 1] `[C*M, ch, H, W]`.

    Args:
        images_NCHW: uint8, sorted by class.
        classes: their names, in label order.

    Raises:
        UserError: its classes, IPC or image shape are not the run's.
    """
    if classes != real.classes:
        difference = f"{len(classes)} instead of {len(real.classes)}"
        if len(classes) == len(real.classes):
            difference = next(f"{a!r} instead of {b!r}" for a, b in zip(classes, real.classes, strict=True) if a != b)
        raise UserError(f"--load: the set has other classes than {real.name}: {difference}")
    expected = (len(real.classes) * ipc, real.channels, real.size, real.size)
    if tuple(images_NCHW.shape) != expected:
        raise UserError(f"--load: expected images of shape {expected}, got {tuple(images_NCHW.shape)}: check --ipc")
    return images_NCHW.float() / 255
