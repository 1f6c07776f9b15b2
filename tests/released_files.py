"""Released sets for tests: files of torch with a few images, and reading them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ncfmkit.sets.released import read as read_module
from ncfmkit.sets.released.read import Released

LIMIT = 2**20
IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def read(path: Path, labels: Path | None = None, experiment: int | None = None, max_bytes: int = LIMIT) -> Released:
    return read_module.read(path, labels=labels, experiment=experiment, max_bytes=max_bytes)


def saved(content: Any, path: Path, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def repacked(path: Path, edit: Callable[[str, bytes], bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    """The archive with every member edited; a zip of its own, with right checksums."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", compress) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return path
