"""What a set is compared with: real images, at equal size or all of them (docs/method.md, section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages
from ncfmkit.real.store import RealData
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime
from ncfmkit.scoring.coreset import SELECTIONS, Extractor, select
from ncfmkit.scoring.lossy import JPEG, WEBP, Codec


@dataclass(frozen=True, kw_only=True)
class SetSize:
    """How large a set is, per class."""

    stored: int  # images
    decoded: int  # images that it decodes to
    bytes: float  # of its pixels, the levels that they lie between, its soft labels
    soft_label: int = 0  # bytes of the soft label of a decoded image; 0: there are none


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A row of `BASELINES`: real images that students are trained on beside a set."""

    label: str  # of their row in a table of scores; `{}` stands for the images per class
    images: str = "random"  # which ones: `random`, `mosaic`, `whole`, or a row of `SELECTIONS`
    size: Literal["stored", "decoded", "bytes", "whole"]  # as large as the set in that, or all
    codec: Codec | None = None  # what they are stored as; none: raw pixels

    def per_class(self, size: SetSize, real: RealData) -> int:
        """Images per class, beside a set of that size; 0 for the whole split."""
        if self.size == "bytes":
            assert self.codec is not None
            fit = int(size.bytes / self.codec.mean_bytes(real.train.images))
            return min(int(real.train.counts().min()), max(1, fit))
        return {"stored": size.stored, "decoded": size.decoded, "whole": 0}[self.size]


BASELINES: dict[str, Baseline] = {
    # as many random real images as are stored
    "random": Baseline(label="random real, {} per class", size="stored"),
    # the same images, with soft labels of the set's teachers
    "random-soft": Baseline(label="random real, {} per class, soft labels", size="stored"),
    # as many random real images as the set decodes to
    "random-decoded": Baseline(label="random real, {} per class", size="decoded"),
    # as many random real images as fit into the bytes of the set, as lossy pictures
    "webp": Baseline(label="random real as WebP, {} per class", size="bytes", codec=WEBP),
    "jpeg": Baseline(label="random real as JPEG, {} per class", size="bytes", codec=JPEG),
    # what a set starts from: as many mosaics of random real images as are stored, decoded as the set is
    "mosaic": Baseline(label="mosaics of real images, {} per class", images="mosaic", size="stored"),
    # as many real images as are stored, chosen by herding on features of the pool's first member
    "herding": Baseline(label="herding, {} per class", images="herding", size="stored"),
    # as many of those as fit into the bytes of the set
    "herding-webp": Baseline(label="herding as WebP, {} per class", images="herding", size="bytes", codec=WEBP),
    # as many real images as are stored, selected on the same features so that none is far from all of them
    "k-center": Baseline(label="k-center, {} per class", images="k-center", size="stored"),
    # as many of those that the pool's first member learns soonest, and most rarely forgets
    "el2n": Baseline(label="least EL2N, {} per class", images="el2n", size="stored"),
    "forgetting": Baseline(label="least forgotten, {} per class", images="forgetting", size="stored"),
    # the whole training split
    "whole": Baseline(label="whole training split", images="whole", size="whole"),
}


def parse_baselines(text: str) -> tuple[str, ...]:
    """Names of baselines from a comma-separated list, or `none`.

    Raises:
        UserError: an unknown one.
    """
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip() and n.strip() != "none"))
    unknown = [n for n in names if n not in BASELINES]
    if unknown:
        raise UserError(f"unknown baseline {unknown[0]!r}: known: {', '.join(BASELINES)}, none")
    return names


def are_selected(baselines: Sequence[str]) -> bool:
    """Whether an extractor selects the images of any of these baselines."""
    return any(BASELINES[name].images in SELECTIONS for name in baselines)


def read_snapshots(baselines: Sequence[str]) -> tuple[str, ...]:
    """Those of these baselines whose images are selected by snapshots of an extractor's training."""
    return tuple(n for n in baselines if (how := BASELINES[n].images) in SELECTIONS and SELECTIONS[how].snapshots)


def subset(real: RealData, index_CM: np.ndarray) -> LabeledImages:
    """Real training images at those positions, one row per class."""
    labels = torch.arange(len(real.classes)).repeat_interleave(index_CM.shape[1])
    images = np.ascontiguousarray(real.train.images[np.sort(index_CM, axis=1).ravel()])
    return LabeledImages(images=images, labels=labels, mean=real.mean, std=real.std, classes=len(real.classes))


def random_subset(real: RealData, per_class: int, seed: int, repeat: int) -> LabeledImages:
    """`per_class` random training images of every class, drawn by `(seed, repeat, class)`."""
    _check_enough(real, per_class)
    rows = [
        start + keyed_rng(seed, "random subset", repeat, c).choice(stop - start, per_class, replace=False)
        for c, (start, stop) in enumerate(zip(real.train.offsets[:-1], real.train.offsets[1:], strict=True))
    ]
    return subset(real, np.stack(rows))


def selected_subset(how: str, real: RealData, per_class: int, extractor: Extractor, runtime: Runtime) -> LabeledImages:
    """`per_class` training images of every class, selected by that row of `SELECTIONS`."""
    _check_enough(real, per_class)
    return subset(real, select(how, real, per_class, extractor, runtime))


def check_baselines(
    real: RealData, baselines: Sequence[str], size: SetSize, *, advice: str = ": leave it out of --baselines"
) -> None:
    """Raises UserError, before anything is trained, if a class has too few images for a baseline.

    Args:
        size: of the set that they stand beside.
        advice: the end of the message.
    """
    for name in baselines:
        if BASELINES[name].size != "bytes":  # which takes no more than there are, and time to count
            _check_enough(real, BASELINES[name].per_class(size, real), advice)


def _check_enough(real: RealData, per_class: int, advice: str = "") -> None:
    counts = real.train.counts()
    if counts.min() < per_class:
        poor = int(counts.argmin())
        raise UserError(
            f"a baseline of {per_class} real images per class needs more than the {counts[poor]} of class "
            f"{real.classes[poor]!r} in {real.name}{advice}"
        )
