"""Reading sets wherever they are."""

from pathlib import Path

import torch
from conftest import build_set

from ncfmkit.sets import loading, set_file


def test_a_loaded_set_does_not_change_with_its_file(tmp_path: Path) -> None:
    """A file that is mapped and gets shorter would end the process."""
    path = tmp_path / "small.safetensors"
    set_file.save(build_set(), path)
    result = loading.load(path)
    images = result.images.clone()
    with open(path, "r+b") as file:
        file.truncate(100)
    assert torch.equal(result.images, images)
