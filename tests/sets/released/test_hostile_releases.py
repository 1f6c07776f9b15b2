"""Released sets that are broken or made to do harm: refused with one message, or what they say, at little cost."""

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import Tree, mutated, mutated_zip
from watch import FEW, HUNT, MANY, Watch, tree_of, write

from ncfmkit.sets.released import read as read_module
from ncfmkit.sets.released.read import Released

RELEASED: dict[str, dict[str, Any]] = {
    "list": {"data.pt": [torch.arange(96.0).view(2, 3, 4, 4), torch.tensor([0, 1])]},
    "pair": {
        "images.pt": torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4),
        "labels.pt": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float16),
    },
}


@st.composite
def mutated_release(draw: DrawFn, tree: Tree) -> tuple[Tree, bool]:
    """The files of a release with one changed, and whether its checksums were made to fit."""
    name, forged = draw(st.sampled_from(sorted(tree))), draw(st.integers(0, 3)) > 0
    content = tree[name]
    assert isinstance(content, bytes)
    return tree | {name: draw(mutated_zip(content) if forged else mutated(content))}, forged


def assert_is_a_release(got: Released, size: int) -> None:
    """Arrays as the rest of ncfmkit expects them, of what a file of so many bytes can hold."""
    count, channels, height, width = got.images.shape
    assert count > 0
    assert channels in (1, 3)
    assert height == width > 0
    assert got.images.dtype in (np.uint8, np.float32)
    assert (got.labels is None) != (got.soft_logits is None)
    for labels, dtype, shape in ((got.labels, np.int64, (count,)), (got.soft_logits, np.float32, (count, -1))):
        if labels is not None:
            assert labels.dtype == dtype
            assert labels.shape[0] == count
            assert labels.ndim == len(shape)
    arrays = [a for a in (got.images, got.labels, got.soft_logits) if a is not None]
    assert all(np.isfinite(a).all() for a in arrays)
    assert sum(a.nbytes for a in arrays) <= 8 * size  # from 8 bits to 64


def assert_equal_releases(got: Released, expected: Released) -> None:
    for name in ("images", "labels", "soft_logits"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(a, b, strict=True)


def hunt_released(watch: Watch, name: str, examples: int) -> None:
    root = watch.root / "release"
    root.mkdir()
    for file, content in RELEASED[name].items():
        torch.save(content, root / file)
    tree, path = tree_of(root), root / next(iter(RELEASED[name]))

    def read() -> Released:
        return read_module.read(path, labels=None, max_bytes=1 << 20)

    expected = read()

    @settings(max_examples=examples, **HUNT)
    @given(mutated_release(tree))
    def hunt(case: tuple[Tree, bool]) -> None:
        new, forged = case
        write(root, tree, new)
        got = watch.read(read)
        if isinstance(got, Released):
            assert_is_a_release(got, sum(len(content) for content in new.values() if isinstance(content, bytes)))
        if isinstance(got, Released) and not forged:
            assert_equal_releases(got, expected)
        write(root, new, tree)

    hunt()
    assert watch.accepted > 0
    assert len(watch.refused) > 15


def test_random_changes_of_released_sets(watch: Watch) -> None:
    hunt_released(watch, "list", FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RELEASED)
def test_many_random_changes_of_released_sets(watch: Watch, name: str) -> None:
    hunt_released(watch, name, MANY)


@pytest.mark.parametrize("name", ["UntypedStorage", "TypedStorage"])
def test_storages_of_any_size_are_not_made(watch: Watch, name: str) -> None:
    """torch.load itself would allocate them."""
    path = watch.root / "data.pt"
    code = b"\x80\x02ctorch.storage\n" + name.encode() + b"\n\x8a\x05" + (10**9).to_bytes(5, "little") + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/data.pkl", code)
        archive.writestr("data/version", "3\n")
    got = watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20), traced=True)
    assert f"holds code or objects that are not tensors (torch.storage.{name})" in got


def test_archives_that_look_different_to_torch(watch: Watch) -> None:
    """Right before the archive's end is a directory of tensors, where the end says is one of code.

    Python goes to the first, torch to the second, and would make three hundred million bytes there.
    """
    path = watch.root / "data.pt"
    torch.save([torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])], path)
    with zipfile.ZipFile(path) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    code = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (3 * 10**8).to_bytes(5, "little") + b"\x85R."
    evil = {name: code if name.endswith("/data.pkl") else content for name, content in good.items()}
    (files, directory, end), (evil_files, evil_directory, _) = parts(good), parts(evil)
    evil_files += bytes(len(files))
    moved = len(evil_files) - len(files)  # Python adds how far the directory is from where the end says
    path.write_bytes(evil_files + evil_directory + files + shifted(directory, moved) + at(end, len(evil_files)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert b"bytearray" not in archive.read(next(name for name in good if name.endswith("/data.pkl")))
    assert isinstance(torch.load(path, weights_only=True, mmap=True), bytearray)
    got = watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20), traced=True)
    assert "is not an archive as torch.save writes it (a second directory): not loaded" in got


def parts(members: dict[str, bytes]) -> tuple[bytes, bytes, bytes]:
    """Files, directory and end of a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = file.getvalue()
    size, start = struct.unpack_from("<II", content, len(content) - 10)
    return content[:start], content[start : start + size], content[-22:]


def shifted(directory: bytes, by: int) -> bytes:
    """A directory whose files lie further on."""
    new, place = bytearray(directory), 0
    while place < len(new):
        (offset,) = struct.unpack_from("<I", new, place + 42)
        struct.pack_into("<I", new, place + 42, offset + by)
        place += 46 + sum(struct.unpack_from("<HHH", new, place + 28))
    return bytes(new)


def at(end: bytes, start: int) -> bytes:
    """An archive's end that speaks of a directory there."""
    return end[:16] + struct.pack("<I", start) + end[20:]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("data/data.pkl", "data/DATA.PKL"), "a name twice, 2 data.pkl"),
        (("data/DATA.PKL", "other/data.pkl"), "2 data.pkl"),
        (("data/version", "data/data.pkl", "data/Data.pkl"), "a name twice, 2 data.pkl"),
    ],
)
def test_names_that_torch_takes_for_others(watch: Watch, names: tuple[str, ...], says: str) -> None:
    path = watch.root / "data.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02N.")
    assert f"({says}): not loaded" in watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20))
