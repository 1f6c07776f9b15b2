"""Sizes as text, and files written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from ncfmkit.errors import UserError
from ncfmkit.files import check_safetensors, format_bytes, parse_bytes, write_atomic, write_json


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
    "text", ["", "GiB", "2 GiBs", "two GiB", "1.2.3MB", "-1GiB", "2Gi B", "1e3", ".", ".GiB", "1TB"]
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
