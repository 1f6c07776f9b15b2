"""What a view of a set holds: a row for each image to train on, sorted by class."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image to train on.

    Attributes:
        image: uint8 `[ch, H, W]`.
        label: index of its class.
        soft: float16 `[K]`, its logits over the K classes; or None.
    """

    image: np.ndarray
    label: int
    soft: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class View:
    """What writes a view of a set needs to know.

    Attributes:
        name: of the set, such as `cifar10-ipc10`.
        classes: names, in label order.
        shape: `(ch, H, W)` of every image.
        per_class: rows per class, the same in all; row i has label `i // per_class`.
        soft: whether rows have soft labels.
        encoding: `png` or `webp`, of the pictures.
        shard_bytes: the largest size of a shard, in views that have shards.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    per_class: int
    soft: bool
    encoding: str
    shard_bytes: int

    def __len__(self) -> int:
        """All rows."""
        return len(self.classes) * self.per_class
