"""Sizes as text, and files written whole or not at all."""

import errno
import io
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from ncfmkit.errors import UserError
from ncfmkit.files import (
    check_free,
    check_free_folder,
    check_safetensors,
    format_bytes,
    locked,
    parse_bytes,
    replace_folder,
    short_names,
    write_atomic,
    write_json,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("800MB", 800 * 10**6),
        (" 1.5 kib ", 1536),
        ("3kB", 3000),
        ("12B", 12),
        ("1000", 1000),
        ("0.5GB", 5 * 10**8),
        (".5GiB", 2**29),
        ("2.GiB", 2**31),
    ],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "2 GiBs", "two GiB", "1.2.3MB", "-1GiB", "2Gi B", "1e3", ".", ".GiB", "1TB", "9" * 400]
)
def test_parse_bytes_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_bytes(text)
    assert str(error.value) == (
        f"memory budget {text!r} is not a size: expected a number and a unit, such as 2GiB or 512MiB"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (20 * 1024, "20 KiB"),
        (312 * 2**20, "312 MiB"),
        (1000 * 2**20, "1000 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (78 * 2**30, "78 GiB"),
        (2000 * 2**30, "2000 GiB"),
    ],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "set.bin"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"disk is full: .*set\.bin .*free 3 bytes"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["set.bin"]


def test_an_output_is_tried_before_the_work(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--out .*x: there is no folder .*nowhere: make it first"):
        check_free(tmp_path / "nowhere" / "x", force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--out .*x: .*file is not a folder"):
        check_free(tmp_path / "file" / "x", force=True)
    with pytest.raises(UserError, match=r"file already exists: pass --force to overwrite it$"):
        check_free(tmp_path / "file")
    check_free(tmp_path / "file", force=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"dangling already exists"):
        check_free(tmp_path / "dangling")
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(UserError, match=r"--out .*folder is a folder: expected the name of a file"):
            check_free(tmp_path / "folder", force=force)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [".", "..", "/", "a/.."])
def test_a_folder_that_is_replaced_has_a_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"^--out {re.escape(name)}: expected the name of a folder to make, such as "):
        check_free_folder(Path(name), force=True, foreign=lambda path: [], made_by="pack", replaced=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Reported before that something exists: a folder that cannot be read shows nothing."""
    (tmp_path / "there").touch()

    def refused(**how: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    says = rf"--out .*there: cannot write in the folder {tmp_path}: {os.strerror(number)}"
    with pytest.raises(UserError, match=says):
        check_free(tmp_path / "there")
    with pytest.raises(UserError, match=says):
        check_free_folder(tmp_path / "there", force=False, foreign=lambda path: [], made_by="pack")


def test_a_full_disk_is_seen_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: nullcontext(Full()))
    with pytest.raises(UserError, match="No space left on device"):
        check_free(tmp_path / "new")


def test_only_a_folder_of_ours_is_overwritten(tmp_path: Path) -> None:
    def check(path: Path, *, force: bool, others: list[str]) -> None:
        check_free_folder(path, force=force, foreign=lambda path: others, made_by="pack")

    check(tmp_path / "new", force=False, others=["a"])
    assert not list(tmp_path.iterdir())
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(UserError, match="there already exists: pass --force to overwrite it"):
        check(there, force=False, others=[])
    check(there, force=True, others=[])
    with pytest.raises(UserError, match=r"`ncfmkit pack` wrote, and .*there holds something else \(a, b, c, \.\.\.\)"):
        check(there, force=True, others=["a", "b", "c", "d"])
    (tmp_path / "link").symlink_to(there)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(UserError, match=r"is not a folder: expected the name of a folder"):
            check(tmp_path / name, force=True, others=[])


def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    original = os.rename

    def second_fails(source: Path, target: Path) -> None:
        if source == tmp_path / "new":
            raise OSError(errno.EIO, "broken")
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", second_fails)
        with pytest.raises(OSError, match="broken"):
            replace_folder(tmp_path / "new", tmp_path / "old")
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {"new", "new/new", "old", "old/old"}
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {"old", "old/new"}


def test_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*set\.bin: No such file or directory"):
        write_atomic(tmp_path / "nowhere" / "set.bin", b"new")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        write_atomic(tmp_path / "file" / "set.bin", b"new")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("m.onnx", "m.onnx is an ONNX model, not a set: expected a .safetensors file; `ncfmkit validate`"),
        ("m.ENGINE", "is a TensorRT engine, not a set"),
        ("m.pt", "is a torch file, not a set: .*; `ncfmkit convert`"),
        ("m.parquet", "is a Parquet file, not a set: .*--data"),
        ("m.gif", "is a .gif file, not a set: expected a .safetensors file$"),
        ("m", "is a nameless file, not a set"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, name: str, says: str) -> None:
    for content in (b"", b"\x08\x00", b"PK\x03\x04 and more", (200_000_000).to_bytes(8, "little") + b"{"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            check_safetensors(tmp_path / name, "a set")
    (tmp_path / name).write_bytes((30).to_bytes(8, "little") + b"{")  # a set under another name, if damaged
    check_safetensors(tmp_path / name, "a set")
    check_safetensors(tmp_path / "m.safetensors", "a set")


@pytest.mark.skipif(sys.platform == "win32", reason="flock is of Unix")
def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    says = r"lock cannot be locked \(No locks available\): .* NCFMKIT_CACHE"
    with pytest.raises(UserError, match=says), locked(tmp_path / "lock"):
        raise AssertionError("not locked")


def test_a_lock_that_another_holds(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(Timeout), locked(tmp_path / "lock", timeout=0):
        raise AssertionError("locked twice")
    with locked(tmp_path / "lock", timeout=0):
        pass


def test_short_names() -> None:
    assert short_names(["runs/a", "runs/b/", "hf://me/c"]) == ("a", "b", "c")
    assert short_names(["x/set.safetensors", "y/set.safetensors", "runs/a"]) == (
        "x/set.safetensors",
        "y/set.safetensors",
        "a",
    )


def test_a_name_that_is_too_long_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """A file has a longer name until it is whole."""
    check_free(tmp_path / ("n" * 240))
    write_atomic(tmp_path / ("n" * 240), b"")
    with pytest.raises(UserError, match="the name is too long: expected at most 240 bytes"):
        check_free(tmp_path / ("é" * 121))
