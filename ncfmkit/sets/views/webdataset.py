"""A set as WebDataset shards: tar files `NAME-000000.tar` of samples with picture, label and soft labels.

Sample i has the members `{i:08d}.cls` (its label), `.json` (class, label, index), `.npy` (soft labels, if the set has
them) and `.png` or `.webp`, in this order. They are read header by header, without `tarfile.open`: the expected members
are known, so a link, a long name or a sparse file is rejected before it has any effect.

`classes.txt` beside the shards has the class names, one per line, for ncfmkit's own reader of WebDataset. It is left
out if a name is blank, contains a line break or is surrounded by spaces, and so could not be read back.
"""

import io
import json
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.listing import TRAIN_NAMES, split_token
from ncfmkit.sets.views import npy, pictures
from ncfmkit.sets.views.file_names import safe_name
from ncfmkit.sets.views.records import Contents, Record

CLASSES = "classes.txt"
MODE = 0o644
MOST_BYTES = 80  # of the set's name in a shard's
BLOCK = tarfile.BLOCKSIZE


def shard_name(name: str, number: int) -> str:
    """File name of a set's shard: the set's in lower case, with hyphens for all ASCII but letters and digits.

    A name with a word such as `test` or `val` would be taken for a test split, so it gets `train` before it.
    """
    hyphenated = re.sub(r"[^a-z0-9\x80-\U0010ffff]+", "-", safe_name(name.lower())).strip("-")
    slug = safe_name(hyphenated, MOST_BYTES).strip("-") or "set"
    prefix = "" if split_token(slug) in (None, *TRAIN_NAMES) else "train-"
    return f"{prefix}{slug}-{number:06d}.tar"


def _key(index: int) -> str:
    return f"{index:08d}"


def _cls(contents: Contents, index: int) -> bytes:
    return str(index // contents.per_class).encode()


def _json(contents: Contents, index: int) -> bytes:
    label = index // contents.per_class
    return json.dumps({"class": contents.classes[label], "label": label, "index": index}).encode()


def _soft_shape(contents: Contents, index: int) -> tuple[int, ...]:
    """`[K]` in decoded packages, else `[R, K]`."""
    assert contents.soft_rows is not None
    rows = () if contents.images == "decoded" else (int(contents.soft_rows[index]),)
    return (*rows, len(contents.classes))


def _class_lines(contents: Contents) -> bytes | None:
    """The content of `classes.txt`; None if the names could not be read back."""
    text = "".join(f"{name}\n" for name in contents.classes)
    if tuple(line.strip() for line in text.splitlines() if line.strip()) != contents.classes:
        return None
    return text.encode()


def write(folder: Path, contents: Contents, records: Iterable[Record]) -> None:
    """Writes shards and `classes.txt` into `folder`, one record in memory; the same records give the same bytes.

    A shard exceeds `contents.shard_bytes` only if its single sample does.

    Raises:
        UserError: the files cannot be written.
    """
    samples = (_sample(contents, i, record) for i, record in enumerate(records))
    sample, number = next(samples, None), 0
    lines = _class_lines(contents)
    try:
        while sample is not None:
            path = folder / shard_name(contents.name, number)
            sample, number = _write_shard(path, sample, samples, contents.shard_bytes), number + 1
        if lines is not None:
            (folder / CLASSES).write_bytes(lines)
    except OSError as error:
        raise UserError(f"cannot write shards to {folder}: {error.strerror or error}") from None


def _sample(contents: Contents, index: int, record: Record) -> dict[str, str | bytes]:
    sample: dict[str, str | bytes] = {
        "__key__": _key(index),
        "cls": _cls(contents, index),
        "json": _json(contents, index),
        contents.encoding: pictures.encode(record.image, contents.encoding),
    }
    if record.soft is not None:
        sample["npy"] = npy.header(_soft_shape(contents, index)) + npy.to_bytes(record.soft)
    return sample


def _write_shard(
    path: Path, sample: dict[str, str | bytes] | None, rest: Iterator[dict[str, str | bytes]], limit: int
) -> dict[str, str | bytes] | None:
    """Writes `sample` and as many of the rest as fit; returns the first that does not."""
    from webdataset import TarWriter

    size = 0
    # a fixed owner, mode and time: archives of equal sets are equal
    with path.open("xb") as file, TarWriter(file, user="", group="", mode=MODE, mtime=0, encoder=False) as tar:
        while sample is not None and (size == 0 or _shard_bytes(size + _sample_bytes(sample)) <= limit):
            tar.write(sample)
            size += _sample_bytes(sample)
            sample = next(rest, None)
    return sample


def _sample_bytes(sample: dict[str, str | bytes]) -> int:
    return sum(BLOCK + _padded(len(content), BLOCK) for name, content in sample.items() if name != "__key__")


def _shard_bytes(size: int) -> int:
    """Bytes of a shard whose members take `size`: two empty blocks end it, then it is filled up."""
    return _padded(size + 2 * BLOCK, tarfile.RECORDSIZE)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def read(folder: Path, contents: Contents) -> Iterator[Record]:
    """The records of a package, one in memory.

    Raises:
        UserError: missing, additional or invalid shards: only what :func:`write` makes is read.
    """
    index = 0
    try:
        _check_classes(folder, contents)
        for path in _shards(folder, contents):
            with path.open("rb") as file:
                index = yield from _read_shard(file, path, contents, index)
    except OSError as error:
        raise UserError(f"cannot read shards from {folder}: {error.strerror or error}") from None
    if index != contents.count:
        raise UserError(f"{folder}: expected {contents.count} samples in its shards, got {index}: fetch it again")


def _check_classes(folder: Path, contents: Contents) -> None:
    path, lines = folder / CLASSES, _class_lines(contents)
    if lines is None:
        if path.is_symlink() or path.exists():
            raise UserError(f"{path}: unexpected file, as these class names do not fit in one: remove it")
        return
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: expected a file of class names, got none: fetch the package again")
    with path.open("rb") as file:
        if file.read(len(lines) + 1) != lines:
            raise UserError(f"{path} is damaged: expected the {len(contents.classes)} class names of the package")


def _shards(folder: Path, contents: Contents) -> list[Path]:
    """All shards in order; no other tar files may lie there."""
    tars = {path.name for path in folder.iterdir() if path.suffix.lower() == ".tar"}
    found = {name for name in tars if not name.startswith(".")}  # others' own, such as ._name.tar
    paths = [folder / shard_name(contents.name, number) for number in range(len(found))]
    for path in paths:
        if path.name not in found:
            other = min(found - {p.name for p in paths})
            raise UserError(f"{folder}: expected shard {path.name}, got {other}: fetch the package again")
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: expected a plain file, got a link or a folder: copy the file itself there")
    return paths


def _read_shard(file: BinaryIO, path: Path, contents: Contents, index: int) -> Generator[Record, None, int]:
    """The samples of a shard, of which the first is number `index`; returns the number of the next shard's first."""
    while (block := file.read(BLOCK)).strip(b"\0"):
        if index == contents.count:
            raise UserError(f"{path}: more than the {contents.count} samples of the package: fetch it again")
        yield _read_sample(file, block, path, contents, index)
        index += 1
    size = file.tell() - len(block)
    zeros = _shard_bytes(size) - size
    if size == 0 or block + file.read(zeros - len(block) + 1) != bytes(zeros):
        raise UserError(f"{path} is damaged: expected samples, then only zeros up to a multiple of 10240 bytes")
    return index


def _read_sample(file: BinaryIO, block: bytes, path: Path, contents: Contents, index: int) -> Record:
    """A sample whose first header is `block`."""
    key = _key(index)
    for name, expected in ((f"{key}.cls", _cls(contents, index)), (f"{key}.json", _json(contents, index))):
        content = _member(file, block, path, name, len(expected))
        if content != expected:
            raise UserError(f"{path} member {name}: expected {_shown(expected)}, got {_shown(content)}")
        block = file.read(BLOCK)
    soft = None
    if contents.soft_rows is not None:
        soft = _read_soft(file, block, path, f"{key}.npy", _soft_shape(contents, index))
        block = file.read(BLOCK)
    name = f"{key}.{contents.encoding}"
    content = _member(file, block, path, name, pictures.largest(contents.shape))
    image = pictures.decode(content, contents.shape, f"{path} member {name}", contents.encoding)
    return Record(image=image, label=index // contents.per_class, soft=soft)


def _shown(content: bytes) -> str:
    return repr(content[:200].decode("ascii", "replace"))


def _read_soft(file: BinaryIO, block: bytes, path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float16 `[R, K]`."""
    where = f"{path} member {name}"
    content = io.BytesIO(_member(file, block, path, name, len(npy.header(shape)) + 2 * int(np.prod(shape))))
    npy.read_header(content, shape, where)
    soft = npy.read_values(content, shape, where)
    npy.read_end(content, where)
    return soft.reshape(-1, shape[-1])


def _member(file: BinaryIO, block: bytes, path: Path, name: str, most: int) -> bytes:
    """Content of the member whose header is `block`: a plain file of this name and of at most so many bytes."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: expected a plain, uncompressed tar file with {name} next, got no tar header ({error}): "
            "fetch the package again"
        ) from None
    if info.name != name or info.type != tarfile.REGTYPE or info.linkname:
        raise UserError(f"{path}: expected the file {name} next, got {info.name!r} of type {info.type!r}")
    if not 0 < info.size <= most:
        raise UserError(f"{path} member {name}: expected at most {most} bytes, got {info.size}")
    content = file.read(_padded(info.size, BLOCK))
    if len(content) != _padded(info.size, BLOCK) or any(content[info.size :]):
        raise UserError(f"{path} member {name} is cut off or not padded with zeros: fetch the package again")
    return content[: info.size]
