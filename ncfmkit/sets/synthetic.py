"""The synthetic set: stored images, labels, manifest, and decoding.

Axes: N stored images, P decoded images per stored image, C channels, H = W side, M = IPC.
A stored image is a factor x factor mosaic; decoding cuts it into cells and enlarges each to the full side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import TensorDataset

from ncfmkit.images import LabeledImages, channel_tensors, normalize
from ncfmkit.mosaic import decode, decode_factors, decode_mask


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """A distilled set as it is stored. D are the images that it decodes to.

    Attributes:
        images: uint8 `[C*M, ch, H, W]`, stored, undecoded, sorted by class; restored where they are kept in fewer bits.
        labels: int64 `[C*M]`.
        manifest: what the file says about itself, see docs/formats.md.
        soft_labels: float16 `[D, K]`, logits of every decoded image to train on (as probabilities) instead of its
            label; None: there are only labels.
        levels: uint8 `[1 or C*M, ch, 2]`, the darkest and the brightest value of quantized pixels; None: not quantized.
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
        """A torch dataset of `(image, label)`: decoded, normalized with the manifest's mean and std.

        A set with soft labels gives `(image, label, logits)`, the logits in float32.
        """
        images, labels = self.decoded()
        channels = channel_tensors(self.manifest["mean"], self.manifest["std"], images.device)
        soft = () if self.soft_labels is None else (self.soft_labels.float(),)
        return TensorDataset(normalize(images, *channels), labels, *soft)

    def labeled(self) -> LabeledImages:
        """The set, decoded, to train on: normalized as its manifest says, by its soft labels where it has them."""
        images, labels = self.decoded()
        mean, std = (tuple(self.manifest[k]) for k in ("mean", "std"))
        return LabeledImages(
            images=images,
            labels=labels,
            mean=mean,
            std=std,
            classes=len(self.classes),
            soft_labels=self.soft_labels,
        )
