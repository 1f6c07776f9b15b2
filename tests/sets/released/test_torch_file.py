"""Files of torch that are refused unread: code, other archives, large ones, damaged ones."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_files import IMAGES, LABELS, read, repacked, saved

from ncfmkit.errors import UserError


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    path = saved([IMAGES, LABELS, Payload(proof)], tmp_path / "data.pt", pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"not tensors .*not loaded"):
        read(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the payload works


def test_code_in_the_labels_is_not_run(tmp_path: Path) -> None:
    saved(IMAGES, tmp_path / "images.pt")
    saved(Payload(tmp_path / "proof"), tmp_path / "labels.pt")
    with pytest.raises(UserError, match=r"labels\.pt .*not tensors \(posix\.mkdir\)"):
        read(tmp_path / "images.pt")
    assert not (tmp_path / "proof").exists()


def test_a_name_with_a_broken_escape_is_refused_without_a_warning(tmp_path: Path) -> None:
    """A backslash in a name: Python warns of what it reads as an escape, and warnings are errors here."""
    code = b"\x80\x02c\\orch._utils\n_rebuild_tensor_v2\n."
    path = repacked(saved([IMAGES, LABELS], tmp_path / "a.pt"), lambda n, c: code if "data.pkl" in n else c)
    with pytest.raises(UserError, match=r"a\.pt .*not tensors"):
        read(path)


def test_objects_that_would_fill_the_memory_are_not_made(tmp_path: Path) -> None:
    """`bytearray(10**12)`, which torch.load itself would call."""
    code = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (10**12).to_bytes(5, "little") + b"\x85R."
    path = repacked(saved([IMAGES, LABELS], tmp_path / "data.pt"), lambda n, c: code if "data.pkl" in n else c)
    with pytest.raises(UserError, match=r"__builtin__\.bytearray"):
        read(path)


def test_legacy_files_are_not_loaded(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"not a zip archive .*1\.6: .*newer torch"):
        read(path)
    path.write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    with pytest.raises(UserError, match="is not a zip archive"):
        read(path)
    assert not (tmp_path / "proof").exists()


def test_the_size_limit(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    size = path.stat().st_size
    read(path, max_bytes=size)
    with pytest.raises(UserError, match=r"data\.pt .* KiB, .* KiB: raise --max-size"):
        read(path, max_bytes=size - 1)


def test_compressed_archives_are_not_loaded(tmp_path: Path) -> None:
    path = saved([torch.zeros(300, 3, 16, 16), torch.zeros(300).long()], tmp_path / "data.pt")
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"not an archive .*torch\.save .*\(the compressed member"):
        read(path)


def test_members_that_share_their_bytes_are_not_loaded(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        archive.filelist += [largest] * 20
        archive.writestr("more", "")  # the directory is written again
    with pytest.raises(UserError, match=r"\(members of .* file of .*, a name twice\): not loaded"):
        read(path)


def test_names_that_are_there_twice_are_not_loaded(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], archive.read(archive.namelist()[0]))
    with pytest.raises(UserError, match=r"a name twice, 2 data\.pkl\): not loaded"):
        read(path)


def test_long_pickles_are_not_walked_through(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    with pytest.raises(UserError, match=r"\(a data\.pkl above 1 MiB\): not loaded"):
        read(repacked(path, lambda n, c: b"N0" * 2**19 + c if "data.pkl" in n else c), max_bytes=2**22)


def test_pickles_are_not_listed(tmp_path: Path) -> None:
    """A million opcodes, each of which would be three objects."""
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    code = b"\x80\x02" + b"N0" * (2**19 - 50) + b"cposix\nsystem\ncnext\n" + b"x" * 50 + b"\n."
    repacked(path, lambda n, c: code if "data.pkl" in n else c)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"not tensors \(posix\.system\) and was not loaded"):
            read(path, max_bytes=2**22)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_long_names_of_code_are_cut(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    code = b"\x80\x02c" + b"x" * 100_000 + b"\nrun\n."
    with pytest.raises(UserError, match=r"not tensors \(x{100}\) and was not loaded"):
        read(repacked(path, lambda n, c: code if "data.pkl" in n else c))


def test_tensors_larger_than_the_file_are_not_expanded(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**6, 3, 512, 512)
    path = saved([wide, torch.zeros(1, dtype=torch.int64).expand(10**6)], tmp_path / "data.pt")
    assert path.stat().st_size < 5000
    with pytest.raises(UserError, match=r"\(1000000, 3, 512, 512\) .*2930 GiB, .*4 B"):
        read(path)


def test_a_storage_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    """The pickle speaks of 50 million numbers where the archive has 288."""
    number = struct.pack("<i", 50_000_000)

    def grow(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        count = b"M" + struct.pack("<H", IMAGES.numel()) + b"t"
        assert count in content
        return content.replace(count, b"J" + number + b"t").replace(
            b"(K\x06K\x03K\x04K\x04t", b"(J" + struct.pack("<i", 10**6) + b"K\x03K\x04K\x04t"
        )

    with pytest.raises(UserError, match=r"is not a readable torch\.save file"):
        read(repacked(saved([IMAGES, LABELS], tmp_path / "data.pt"), grow))


def flipped(content: bytes) -> bytes:
    """One bit of an image is another."""
    at = content.index(IMAGES.numpy().tobytes()) + 40
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a bit": (flipped, "the checksum of .*data/0 is wrong"),
    "truncated": (lambda c: c[:-200], "is damaged or truncated"),
    "half": (lambda c: c[: len(c) // 2], "is damaged or truncated"),
    "empty": (lambda c: b"", "is not a zip archive"),
    "text": (lambda c: b"images", "is not a zip archive"),
    "start alone": (lambda c: c[:4], "is damaged or truncated"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(tmp_path: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=says):
        read(path)


def test_a_pickle_that_is_none(tmp_path: Path) -> None:
    path = saved([IMAGES, LABELS], tmp_path / "data.pt")
    with pytest.raises(UserError, match=r"its data\.pkl is no pickle"):
        read(repacked(path, lambda n, c: b"\xff" if "data.pkl" in n else c))


def test_archives_that_are_not_torchs(tmp_path: Path) -> None:
    path = tmp_path / "data.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"\(0 data\.pkl\): not loaded"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(101):
            archive.writestr(f"a/{number}", "")
    with pytest.raises(UserError, match=r"101 members, 0 data\.pkl"):
        read(path)
