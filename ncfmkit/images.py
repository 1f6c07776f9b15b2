"""Labeled images as networks take them: what the pool, students, sets and exporters share.

Axes: N images, C channels, H = W side, K labels.
"""

import dataclasses
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

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.images, self.labels, self.soft_labels) if part is not None)

    def normalized_as(self, other: "LabeledImages") -> "LabeledImages":
        """The same images with the normalization of others, such as those that a network was trained on."""
        return dataclasses.replace(self, mean=other.mean, std=other.std)

    def on(self, device: torch.device) -> "DeviceImages":
        """What networks on that device read batches from."""
        return DeviceImages(self, device)


class DeviceImages:
    """Labeled images from which batches on a device are taken.

    On a GPU they are moved there once if they take at most a quarter of its free memory; otherwise, and on other
    devices, they stay in main memory, and each batch is copied. Positions are given where the images are, `home`.
    """

    def __init__(self, data: LabeledImages, device: torch.device):
        self.device, self.home, self.classes = device, torch.device("cpu"), data.classes
        self.mean, self.std = channel_tensors(data.mean, data.std, device)
        self.images, self.labels, self.soft_labels = data.images, data.labels, data.soft_labels
        if device.type == "cuda" and data.nbytes <= torch.cuda.mem_get_info(device)[0] // 4:
            self.home = device
            if isinstance(data.images, torch.Tensor):
                self.images = data.images.to(device)
            else:  # torch.from_numpy would warn of an array that is read-only
                self.images = torch.tensor(data.images, device=device)
            self.labels = uploaded(data.labels, device)
            if data.soft_labels is not None:
                self.soft_labels = uploaded(data.soft_labels, device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The images at those positions on the device, `[len(index), C, H, W]`."""
        return gather(self.images, index, self.device)

    def normalized(self, index: torch.Tensor) -> torch.Tensor:
        """The images at those positions as normalized float32 on the device, `[len(index), C, H, W]`."""
        return normalize(self.at(index), self.mean, self.std)

    def targets(self, index: torch.Tensor) -> torch.Tensor:
        """Label probabilities at those positions on the device, float32 `[len(index), K]`."""
        if self.soft_labels is not None:
            return uploaded(self.soft_labels[index].float().softmax(1), self.device)
        return uploaded(F.one_hot(self.labels[index], self.classes).float(), self.device)


def uploaded(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a GPU copies it from pinned memory, so that the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def gather(images: np.ndarray | torch.Tensor, index: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images at those positions on the device, in their own dtype; the positions are where the images are, or here."""
    if isinstance(images, torch.Tensor):
        rows = images[uploaded(torch.as_tensor(index), images.device)]
    else:
        rows = torch.from_numpy(images[np.asarray(index)])
    return uploaded(rows, device)


def channel_tensors(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, shaped to broadcast over `[N, C, H, W]`; a constant one becomes 0."""
    mean_C, std_C = (uploaded(torch.tensor(v, dtype=torch.float32), device).view(1, -1, 1, 1) for v in (mean, std))
    return mean_C, std_C.clamp(min=1e-6)


def normalize(x_NCHW: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """`(x - mean) / std` per channel, in float32, of uint8 images or floats in [0, 1]."""
    x_NCHW = x_NCHW.float() / 255 if x_NCHW.dtype == torch.uint8 else x_NCHW
    return (x_NCHW - mean) / std


def labeled(real: "RealData", split: "Split") -> LabeledImages:
    """A split of the real data, to train or test on."""
    labels = torch.from_numpy(split.labels)
    return LabeledImages(images=split.images, labels=labels, mean=real.mean, std=real.std, classes=len(real.classes))
