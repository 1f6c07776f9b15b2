"""WebDataset shards: tar files whose members `key.jpg` and `key.cls` or `key.json` are a picture and its label.

The shards are indexed with tarfile rather than streamed with the webdataset library: one pass over the headers gives
the labels without reading a picture, and later passes seek to the kept ones only. The library also imports torch.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.files import read_names
from ncfmkit.progress import notice, plural
from ncfmkit.real.columns import LABEL_NAMES
from ncfmkit.real.decode import picture_suffixes
from ncfmkit.real.labels import label_array, numbered, rows_of_files
from ncfmkit.real.listing import Listing, Request, Rows, Source, by_split, kind_by_split
from ncfmkit.real.paths import common_root, matching

MOST_LABEL_BYTES = 2**20


def open_shards(request: Request) -> Source:
    """A glob, brace pattern, file or folder of .tar shards; train and test are told apart by file name."""
    name, root, files = common_root(request.data, matching(request.data, ".tar"))
    train, test = by_split(name, files)
    names = ("classes.txt",) if (root / "classes.txt").is_file() else ()
    kind = kind_by_split("webdataset", train, test)
    return Source(kind, name, root, (*train, *test, *names), partial(_load, request, root, train, test), columns=True)


def _load(request: Request, root: Path, train: list[str], test: list[str]) -> Listing:
    names = root / "classes.txt"
    try:
        classes = read_names(names) if names.is_file() else ()
    except UnicodeDecodeError as error:
        raise UserError(f"{names.name} is not UTF-8 text: {error}") from None
    return numbered(classes, _rows(request, root, train), _rows(request, root, test) if test else None)


@dataclass(frozen=True, eq=False)
class Shard:
    """Where the pictures of one shard lie, in the order of its pictures."""

    file: str
    members: list[str]  # [N]
    spans: np.ndarray  # int64 [N, 2]: offset and size of each picture in bytes
    labels: np.ndarray  # int64 [N], or texts
    not_read: list[tuple[str, str]]  # other pictures: name of the member, and what follows the first dot in it


def _index(request: Request, root: Path, file: str) -> Shard:
    """The shard's samples; every picture needs a label and the other way round."""
    suffixes = picture_suffixes()
    wanted = (f".{request.image_column.lower()}",) if request.image_column else suffixes
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int | str] = {}
    not_read, names = [], set[str]()
    try:
        with tarfile.open(root / file, "r:") as tar:
            for member in tar:
                # as in webdataset: the key ends at the first dot of the file name
                parts = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name)
                if not member.isreg() or parts is None:
                    continue
                key, extension = parts[1], parts[2].lower()
                if member.name in names:
                    raise UserError(
                        f"{file} member {member.name}: is there twice: pack the shard again, each file once"
                    )
                names.add(member.name)
                if member.issparse():
                    raise UserError(f"{file} member {member.name}: a sparse file: pack it again without tar's --sparse")
                if f".{extension}" in wanted:
                    if key in pictures:
                        raise UserError(
                            f"{file} member {key}: has two pictures, {pictures[key][0]} and {member.name}: choose one "
                            f"with --image-column, such as --image-column {extension}"
                        )
                    pictures[key] = (member.name, member.offset_data, member.size)
                elif extension == "json" or (extension == "cls" and request.label_column in (None, "cls")):
                    where = f"{file} member {member.name}"
                    if member.size > MOST_LABEL_BYTES:
                        raise UserError(f"{where}: expected a label, got {member.size:,} bytes")
                    content = tar.extractfile(member).read()  # type: ignore[union-attr]
                    label = _from_json(where, content, request) if extension == "json" else _from_cls(where, content)
                    if label is not None and (extension == "cls" or key not in labels):  # .cls before .json
                        labels[key] = label
                elif f".{extension.rsplit('.', 1)[-1]}" in suffixes:
                    not_read.append((member.name, extension))
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{file} is not a whole, uncompressed tar file ({error}): fetch it again") from error
    for key in pictures.keys() ^ labels.keys():
        lacking = f"label ({_label_place(request)})" if key in pictures else f"picture ({', '.join(wanted)})"
        raise UserError(f"{file} member {key}: no {lacking} beside it")
    members = [p[0] for p in pictures.values()]
    spans = np.array([p[1:] for p in pictures.values()], np.int64).reshape(-1, 2)
    found = label_array([labels[key] for key in pictures], lambda row: f"{file} member {members[row]}")
    return Shard(file, members, spans, found, not_read)


def _label_place(request: Request) -> str:
    if request.label_column not in (None, "cls"):
        return f"{request.label_column!r} in .json"
    return ".cls" if request.label_column else ".cls, or in .json under a name that --label-column gives"


def _from_cls(where: str, content: bytes) -> int | str:
    """An integer, or the name of a class."""
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise UserError(f"{where}: expected a label, an integer or a text, got {content[:20]!r}") from None
    if not text:
        raise UserError(f"{where}: expected a label, an integer or a text, got an empty file")
    return int(text) if re.fullmatch(r"[+-]?\d{1,20}", text) else text


def _from_json(where: str, content: bytes, request: Request) -> int | str | None:
    """The label in a JSON object under the wanted name, or else under a usual one; none where it has none."""
    if request.label_column == "cls":
        return None
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not readable JSON: {error}") from None
    if not isinstance(about, dict):
        raise UserError(f"{where}: expected a JSON object with a label in it, got {str(about)[:20]}")
    name = request.label_column or next((name for name in LABEL_NAMES if name in about), None)
    if name is None:
        return None
    label = about.get(name)
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise UserError(
            f"{where}: expected an integer or a text under {name!r}, got {label!r} (it has {', '.join(about)}): "
            "choose another name with --label-column"
        )
    return label


def _rows(request: Request, root: Path, files: list[str]) -> Rows:
    shards = [_index(request, root, file) for file in files]
    if not_read := [found for shard in shards for found in shard.not_read]:
        (name, extension), count = not_read[0], plural(len(not_read), "picture")
        notice(
            f"left out {count} of the shards, such as {name}: the name of a sample ends at the first dot "
            f"(--image-column {extension} reads these)"
        )
    return rows_of_files(
        [shard.labels for shard in shards],
        lambda file, row: f"{files[file]} member {shards[file].members[row]}",
        lambda file, rows: _pictures(root, shards[file], rows),
    )


def _pictures(root: Path, shard: Shard, rows: np.ndarray) -> Iterator[bytes]:
    path = root / shard.file
    try:
        with open(path, "rb") as file:
            for offset, size in shard.spans[rows]:
                file.seek(offset)
                yield file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
