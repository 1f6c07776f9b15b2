"""The first images of each class, against the whole set's tensors sliced by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set
from promises import PROMISED

import ncfmkit
from ncfmkit.errors import UserError
from ncfmkit.mosaic import decode_mask
from ncfmkit.sets import numpy_reader, set_file
from ncfmkit.sets.manifest import tensors_of
from ncfmkit.sets.subset import first_images
from ncfmkit.sets.synthetic import SyntheticSet

IPC, CLASSES = 5, 3


def rows(per_class: int, first: int) -> list[int]:
    """Places of the first images of each class."""
    return [label * per_class + i for label in range(CLASSES) for i in range(first)]


def saved(path: Path, whole: SyntheticSet) -> Path:
    set_file.save(whole, path)
    return path


@pytest.mark.parametrize("first", [1, 3, 4])
@pytest.mark.parametrize(
    ("kind", "factor", "budget"),
    [
        ("single", 1, None),
        ("single", 2, None),
        ("multi", 2, None),
        ("bound", 2, None),
        ("bound", 2, 20),
        ("bound", 2, 22),  # the first two images as a whole, too
        ("bound", 3, 55),  # 45, and two and a half times the next four
        ("bound", 2, 9),  # of another project: the last images decode to nothing
        ("bound", 2, 1000),  # more than there are
    ],
)
def test_a_part_decodes_to_what_it_decodes_to_in_the_whole(
    tmp_path: Path, kind: str, factor: int, budget: int | None, first: int
) -> None:
    whole = build_set(kind, factor, budget, ipc=IPC, soft=True)
    part = ncfmkit.load(saved(tmp_path / "whole.safetensors", whole), ipc=first)
    assert part.images.equal(whole.images[rows(IPC, first)])
    assert part.labels.tolist() == [label for label in range(CLASSES) for _ in range(first)]

    # the decoded images and their labels, among those of the whole
    mask_MP = decode_mask(kind, factor, IPC, budget)
    kept = rows(int(mask_MP.sum()), int(mask_MP[:first].sum()))
    x, labels = whole.decoded()
    got_x, got_labels = part.decoded()
    assert got_x.equal(x[kept])
    assert got_labels.equal(labels[kept])
    assert part.soft_labels is not None
    assert whole.soft_labels is not None
    assert part.soft_labels.equal(whole.soft_labels[kept])
    assert part.manifest.ipc.to_dict() == {"stored": first, "decoded": mask_MP[:first].sum()}


@pytest.mark.parametrize("chroma", [None, "4:2:0"])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("scale", ["image", "channel"])
def test_a_part_in_fewer_bits_keeps_its_codes(tmp_path: Path, scale: Any, smooth: bool, chroma: Any) -> None:
    whole = build_set("multi", 2, ipc=IPC, bits=2, scale=scale, chroma=chroma, soft=True, size=16, smooth=smooth)
    part = ncfmkit.load(saved(tmp_path / "whole.safetensors", whole), ipc=2)
    assert part.images.equal(whole.images[rows(IPC, 2)])
    assert whole.pixel_tensors is not None
    assert part.pixel_tensors is not None
    levels = whole.pixel_tensors["levels"]
    assert part.pixel_tensors["levels"].equal(levels[rows(IPC, 2)] if scale == "image" else levels)

    # what other readers find in its file
    stored = numpy_reader.read(saved(tmp_path / "part.safetensors", part))
    assert np.array_equal(stored.images, whole.images[rows(IPC, 2)].numpy())
    assert ncfmkit.load(tmp_path / "part.safetensors").images.equal(part.images)


@pytest.mark.parametrize(("bits", "top"), [(8, 0), (4, 0), (4, 2)])
def test_a_part_keeps_the_codes_of_its_soft_labels(tmp_path: Path, bits: int, top: int) -> None:
    whole = build_set("bound", 2, 22, ipc=IPC, soft=True, label_bits=bits, top=top)
    part = ncfmkit.load(saved(tmp_path / "whole.safetensors", whole), ipc=3)
    kept = rows(22, part.manifest.ipc.decoded)
    assert part.soft_labels is not None
    assert whole.soft_labels is not None
    assert part.soft_labels.equal(whole.soft_labels[kept])
    (stored, codes) = (tensors_of(a_set)["soft_labels"] for a_set in (whole, part))
    assert codes.equal(stored[kept])
    again = numpy_reader.read(saved(tmp_path / "part.safetensors", part))
    assert np.array_equal(again.soft_labels, part.soft_labels.numpy())  # type: ignore[arg-type]
    assert ncfmkit.load(tmp_path / "part.safetensors").manifest == part.manifest


def test_what_the_manifest_of_a_part_says(tmp_path: Path) -> None:
    whole = build_set(ipc=IPC, score=PROMISED, order="worth")
    path = saved(tmp_path / "whole.safetensors", whole)
    part = ncfmkit.load(path, ipc=2)
    m, before = part.manifest.to_dict(), whole.manifest.to_dict()
    assert m["name"] == "tiny-ipc2"
    assert m["score"] is None
    assert m["part_of"] == {"manifest_sha256": before["manifest_sha256"], "ipc": 5, "score": PROMISED}
    assert m["bytes"] == {"images": 6 * 192, "labels": 6 * 8}
    changed = {"name", "ipc", "score", "part_of", "sha256", "bytes", "manifest_sha256"}
    assert {key: m[key] for key in m.keys() - changed} == {key: before[key] for key in before.keys() - changed}

    # saved and read, it is the same; and a part of a part is a part of the whole
    again = saved(tmp_path / "part.safetensors", part)
    assert ncfmkit.load(again).manifest == part.manifest
    assert ncfmkit.load(again, ipc=1).manifest == ncfmkit.load(path, ipc=1).manifest
    assert ncfmkit.load(path, ipc=1).images.equal(ncfmkit.load(again, ipc=1).images)


def test_all_images_are_the_set_as_it_is() -> None:
    whole = build_set(ipc=IPC, score=PROMISED)
    assert first_images(whole, IPC) is whole


@pytest.mark.parametrize("first", [0, -1, 6])
def test_there_are_no_more_images_than_stored(tmp_path: Path, first: int) -> None:
    path = saved(tmp_path / "whole.safetensors", build_set(ipc=IPC))
    with pytest.raises(UserError, match=rf"--ipc {first}: expected 1 to 5, the images per class that tiny-ipc5 stores"):
        ncfmkit.load(path, ipc=first)


def test_a_part_shares_no_memory_with_the_file(tmp_path: Path) -> None:
    """A file that is read in place may be larger than memory, and may change."""
    path = saved(tmp_path / "whole.safetensors", build_set(ipc=IPC))
    part = ncfmkit.load(path, ipc=2, mapped=True)
    before = part.images.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(part.images, before)
