"""The synthetic set: stored images, labels, manifest, and decoding.

Axes: N stored images, P decoded images per stored image, C channels, H = W side, M = IPC.
A stored image is a factor x factor mosaic; decoding cuts it into cells and enlarges each to the full side.
"""

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import TensorDataset

from ncfmkit.images import LabeledImages, channel_tensors, normalize
from ncfmkit.mosaic import decode, decode_factors, decode_mask

if TYPE_CHECKING:
    from ncfmkit.sets.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """A distilled set as it is stored; `len()` counts its stored images. D are the images that it decodes to.

    Attributes:
        images: uint8 `[C*M, ch, H, W]`, stored, undecoded, sorted by class; restored where they are kept in fewer bits.
        labels: int64 `[C*M]`.
        manifest: what the file says about itself, see docs/formats.md.
        soft_labels: float16 `[D, K]`, logits of every decoded image to train on (as probabilities) instead of its
            label; restored where they are kept in fewer bits; None: there are only labels.
        pixel_tensors: the tensors `pixels` and `levels` that images in fewer bytes are stored as, by which `images` are
            restored; whoever changes those sets it to None, and drops `manifest.pixels`. None: images are stored as
            they are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    manifest: "Manifest"
    soft_labels: torch.Tensor | None = None
    pixel_tensors: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Stored images, which decode to `len(self.as_dataset())` images."""
        return len(self.images)

    def __repr__(self) -> str:
        """Such as `SyntheticSet(10 classes x 10 images of 3x32x32, factor 2, score 61.9 ± 0.7)`."""
        return f"SyntheticSet({self._summary()})"

    def _repr_html_(self) -> str:
        """The set in a notebook: a contact sheet, at most ten images of a class, below what :meth:`__repr__` says."""
        from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes  # Pillow, which only pictures need

        sheet = contact_sheet(self.images.numpy(), self.labels.numpy(), self.classes)
        picture = base64.b64encode(png_bytes(sheet)).decode()
        name, text = html.escape(self.manifest.name), html.escape(self._summary())
        image = f'<img alt="{name}" style="max-width: 100%" src="data:image/png;base64,{picture}">'
        return f"<p><b>{name}</b>: {text}</p>{image}"

    def _summary(self) -> str:
        m = self.manifest
        shape = "x".join(map(str, self.images.shape[1:]))
        parts = [f"{len(self.classes)} classes x {self.ipc} image{'' if self.ipc == 1 else 's'} of {shape}"]
        if m.decode.factor > 1:
            parts.append(f"factor {m.decode.factor}")
        if m.pixels is not None:
            parts.append(m.pixels.describe())
        if m.score is not None:  # percent; a single student has no deviation
            deviation = f" ± {100 * m.score.last.std:.1f}" if m.score.n > 1 else ""
            parts.append(f"score {100 * m.score.last.mean:.1f}{deviation}")
        return ", ".join(parts)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return self.manifest.ipc.stored

    @property
    def content_bytes(self) -> int:
        """Bytes of the pixels, the levels that they lie between and the soft labels; labels follow from the order."""
        return sum(count for name, count in self.manifest.bytes.items() if name != "labels")

    def mask(self) -> torch.Tensor:
        """Which decoded images of each stored one count, bool `[C*M, P]`."""
        how = self.manifest.decode
        mask_MP = decode_mask(how.kind, how.factor, self.ipc, how.budget)
        return torch.from_numpy(mask_MP).repeat(len(self.classes), 1)

    def decoded_parts(self, chunk: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What :meth:`decoded` gives, of `chunk` stored images after the other: for sets larger than memory."""
        how = self.manifest.decode
        factors = decode_factors(how.kind, how.factor)
        parts = zip(self.images.split(chunk), self.labels.split(chunk), self.mask().split(chunk), strict=True)
        for images_NCHW, labels_N, mask_NP in parts:
            images_NPCHW = decode(images_NCHW.float() / 255, factors)
            yield images_NPCHW[mask_NP], labels_N[:, None].expand(mask_NP.shape)[mask_NP]

    def decoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The images to train on: float32 in [0, 1] `[D, ch, H, W]`, and int64 labels `[D]`."""
        return next(self.decoded_parts(len(self.images)))

    def as_dataset(self) -> "DecodedDataset":
        """A torch dataset of `(image, label)`: decoded, normalized with the manifest's mean and std.

        Images are float32 `[ch, H, W]`, labels int64. A set with soft labels gives `(image, label, logits)`, the logits
        in float32.
        """
        images, labels = self.decoded()
        channels = channel_tensors(self.manifest.mean, self.manifest.std, images.device)
        soft = () if self.soft_labels is None else (self.soft_labels.float(),)
        return DecodedDataset(normalize(images, *channels), labels, *soft, classes=self.classes)

    def labeled(self) -> LabeledImages:
        """The set, decoded, to train on: normalized as its manifest says, by its soft labels where it has them."""
        images, labels = self.decoded()
        return LabeledImages(
            images=images,
            labels=labels,
            mean=self.manifest.mean,
            std=self.manifest.std,
            classes=len(self.classes),
            soft_labels=self.soft_labels,
        )


class DecodedDataset(TensorDataset):
    """The decoded images of a set, with the two attributes that torchvision's data sets have.

    Attributes:
        classes: names, by label.
        targets: int64 `[D]`, the label of every image.
    """

    def __init__(self, *tensors: torch.Tensor, classes: Sequence[str]):
        super().__init__(*tensors)
        self.classes = list(classes)
        self.targets = tensors[1]
