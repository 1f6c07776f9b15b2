"""The content of every layout of a package: one record per stored or decoded image, sorted by class."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image of a package.

    Attributes:
        image: uint8 `[ch, H, W]`.
        label: index of its class in the package's classes.
        soft: float16 `[R, K]`, the logits of the R decoded images that it decodes to (1 in decoded packages); or None.
    """

    image: np.ndarray
    label: int
    soft: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a layout needs to know about the package's records, and may rely on.

    Attributes:
        name: of the set, such as `cifar10-ipc10`.
        classes: names, in label order.
        shape: `(ch, H, W)` of every image.
        per_class: records per class, the same in all; record i has label `i // per_class`.
        soft_rows: int64 `[records]`, the R of each record; None: no soft labels.
        encoding: `png` or `webp`, of the picture files.
        images: `stored` (mosaics) or `decoded` (the images to train on).
        shard_bytes: the largest size of a shard, in layouts that have shards.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    per_class: int
    soft_rows: np.ndarray | None
    encoding: str
    images: str
    shard_bytes: int

    @property
    def count(self) -> int:
        """Records in the package."""
        return len(self.classes) * self.per_class
