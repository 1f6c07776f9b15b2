"""WebDataset shards: tar files whose members `key.jpg` and `key.cls` are a picture and its integer label.

The shards are indexed with tarfile rather than streamed with the webdataset library: one pass over the headers gives
the labels without reading a picture, and later passes seek to the kept ones only. The library also imports torch.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.decode import picture_suffixes
from ncfmkit.real.listing import Listing, Request, Rows, Source, by_split, kind_by_split
from ncfmkit.real.paths import common_root, matching


def open_shards(request: Request) -> Source:
    """A glob, brace pattern, file or folder of .tar shards; train and test are told apart by file name."""
    name, root, files = common_root(request.data, matching(request.data, ".tar"))
    train, test = by_split(name, files)
    names = ("classes.txt",) if (root / "classes.txt").is_file() else ()
    return Source(
        kind_by_split("webdataset", train, test), name, root, (*train, *test, *names), partial(_load, root, train, test)
    )


def _load(root: Path, train: list[str], test: list[str]) -> Listing:
    names = root / "classes.txt"
    try:
        lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{names.name} is not UTF-8 text: {error}") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    return Listing(classes, _rows(root, train), _rows(root, test) if test else None)


@dataclass(frozen=True, eq=False)
class Shard:
    """Where the pictures of one shard lie, in the order of its pictures."""

    file: str
    members: list[str]  # [N]
    spans: np.ndarray  # int64 [N, 2]: offset and size of each picture in bytes
    labels: np.ndarray  # int64 [N]


def _index(root: Path, file: str) -> Shard:
    """The shard's samples; every picture needs a label and the other way round."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    suffixes = picture_suffixes()
    try:
        with tarfile.open(root / file, "r:") as tar:
            for member in tar:
                # as in webdataset: the key ends at the first dot of the file name
                parts = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name)
                if not member.isreg() or parts is None:
                    continue
                key, extension = parts[1], parts[2].lower()
                if f".{extension}" in suffixes:
                    if key in pictures:
                        raise UserError(
                            f"{file} member {key}: expected one picture, got {pictures[key][0]} and {member.name}"
                        )
                    pictures[key] = (member.name, member.offset_data, member.size)
                elif extension == "cls":
                    labels[key] = _label(file, member.name, tar.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{file} is not a whole, uncompressed tar file ({error}): fetch it again") from error
    for key in pictures.keys() ^ labels.keys():
        lacking = "label (.cls)" if key in pictures else f"picture ({', '.join(suffixes)})"
        raise UserError(f"{file} member {key}: no {lacking} beside it")
    spans = np.array([p[1:] for p in pictures.values()], np.int64).reshape(-1, 2)
    return Shard(file, [p[0] for p in pictures.values()], spans, np.array([labels[k] for k in pictures], np.int64))


def _label(file: str, member: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise UserError(f"{file} member {member}: expected an integer label, got {content[:20]!r}") from None


def _rows(root: Path, files: list[str]) -> Rows:
    shards = [_index(root, file) for file in files]
    starts = np.cumsum([0, *(len(s.members) for s in shards)])

    def where(row: int) -> str:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{files[shard]} member {shards[shard].members[row - starts[shard]]}"

    def read(rows: np.ndarray) -> Iterator[bytes]:
        for shard, low, high in zip(shards, starts, starts[1:], strict=False):
            inside = rows[(rows >= low) & (rows < high)] - low
            if len(inside):
                yield from _pictures(root, shard, inside)

    return Rows(np.concatenate([s.labels for s in shards]), read, where)


def _pictures(root: Path, shard: Shard, rows: np.ndarray) -> Iterator[bytes]:
    with open(root / shard.file, "rb") as file:
        for offset, size in shard.spans[rows]:
            file.seek(offset)
            yield file.read(size)
