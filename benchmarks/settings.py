"""What is measured: shapes of known data sets (their pixels are random), and one axis of growth at a time."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Sampler = Literal["gaussian", "learned"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A distillation problem of a known shape, in the paper's ConvNet of width 128 unless said."""

    name: str
    side: int = 32  # pixels
    classes: int = 10
    per_class: int = 5000  # real images
    ipc: int = 10
    real_batch: int = 256  # per class, or all that it has
    frequencies: int = 1024
    sampler: Sampler = "gaussian"
    width: int = 128

    def pixels(self, folder: Path) -> Path:
        """A file of random real images, uint8 `[C * per_class, 3, H, W]` as a store has them, written once a folder."""
        file = folder / f"{self.side}-{self.classes}-{self.per_class}.npy"
        if not file.exists():
            part = file.with_suffix(".part")  # a killed process leaves no zeros under the name of a whole file
            shape = (self.classes, self.per_class, 3, self.side, self.side)
            flat = (self.classes * self.per_class, *shape[2:])
            images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=flat)
            for label, rows in enumerate(images.reshape(shape)):  # class by class, to take little memory
                rows[:] = np.random.default_rng(label).integers(0, 256, rows.shape, dtype=np.uint8)
            images.flush()
            part.replace(file)
        return file

    @property
    def real_images(self) -> int:
        """In one step."""
        return self.classes * min(self.real_batch, self.per_class)

    @property
    def decoded_images(self) -> int:
        """In one step; every stored image decodes to 4 (factor 2)."""
        return self.classes * self.ipc * 4


def _steps() -> tuple[Setting, ...]:
    cifar10 = [Setting(name=f"CIFAR-10, IPC {ipc}", ipc=ipc) for ipc in (1, 10, 50)]
    wide = dataclasses.replace(cifar10[1], frequencies=4096)
    learned = dataclasses.replace(cifar10[1], name="CIFAR-10, IPC 10, learned frequencies", sampler="learned")
    small = [*cifar10, wide, learned]
    cifar100 = [Setting(name=f"CIFAR-100, IPC {ipc}", classes=100, per_class=500, ipc=ipc) for ipc in (10, 50)]
    tiny = Setting(name="Tiny ImageNet, IPC 10", side=64, classes=200, per_class=500)
    imagenet = Setting(name="128 px, IPC 10", side=128, per_class=1000)
    large = [*cifar100, tiny, imagenet]
    return tuple(dataclasses.replace(s, real_batch=batch) for s in (*small, *large) for batch in (256, 1024))


STEPS = _steps()

BASE = Setting(name="growth")
AXES: dict[str, tuple[int, ...]] = {
    "ipc": (1, 10, 50),
    "classes": (5, 10, 20),
    "real_batch": (64, 256, 1024),
    "frequencies": (256, 1024, 4096),
    "side": (16, 32, 64),
}


def along(axis: str) -> list[Setting]:
    """The base setting with one of its numbers varied."""
    per_class = 1024 if axis == "side" else BASE.per_class
    varied: list[dict[str, Any]] = [{axis: value} for value in AXES[axis]]
    return [dataclasses.replace(BASE, per_class=per_class, **change) for change in varied]
