"""Labeled images as networks take them: what the pool, students, sets and exporters share.

Axes: N images, C channels, H = W side, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from ncfmkit.real.store import RealData, Split


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images to train or test on: uint8 (an array, memory-mapped or not) or float in [0, 1], with their labels."""

    images: np.ndarray | torch.Tensor  # [N, C, H, W]
    labels: torch.Tensor  # int64 [N]
    mean: tuple[float, ...]  # per channel, in [0, 1]
    std: tuple[float, ...]
    classes: int  # K
    soft_labels: torch.Tensor | None = None  # logits [N, K], to train on instead of the labels

    def __len__(self) -> int:
        return len(self.labels)

    def normalized(self, index: np.ndarray, device: torch.device) -> torch.Tensor:
        """The images at those positions as normalized float32 on the device, `[len(index), C, H, W]`."""
        return normalize(gather(self.images, index, device), *channel_tensors(self.mean, self.std, device))

    def targets(self, index: np.ndarray, device: torch.device) -> torch.Tensor:
        """Label probabilities at those positions on the device, float32 `[len(index), K]`."""
        rows = torch.from_numpy(index)
        if self.soft_labels is not None:
            return self.soft_labels[rows].float().softmax(1).to(device)
        return F.one_hot(self.labels[rows], self.classes).float().to(device)


def gather(images: np.ndarray | torch.Tensor, index: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images at those positions on the device, in their own dtype.

    Args:
        index: an array; or a tensor on the device, for images that are there.
    """
    if isinstance(images, torch.Tensor):
        rows = index if isinstance(index, torch.Tensor) else torch.from_numpy(index).to(images.device)
        return images[rows].to(device)
    return to_device(torch.from_numpy(images[index]), device)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device; no GPU is waited for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def channel_tensors(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, shaped to broadcast over `[N, C, H, W]`; a constant one becomes 0."""
    mean_C, std_C = (torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return mean_C, std_C.clamp(min=1e-6)


def normalize(x_NCHW: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """`(x - mean) / std` per channel, in float32, of uint8 images or floats in [0, 1]."""
    x_NCHW = x_NCHW.float() / 255 if x_NCHW.dtype == torch.uint8 else x_NCHW
    return (x_NCHW - mean) / std


def labeled(real: "RealData", split: "Split") -> LabeledImages:
    """A split of the real data, to train or test on."""
    labels = torch.from_numpy(split.labels)
    return LabeledImages(images=split.images, labels=labels, mean=real.mean, std=real.std, classes=len(real.classes))
