"""A set as class folders of pictures, `FOLDER/00000.png`, as `torchvision.datasets.ImageFolder` reads them.

Pictures are numbered within their class. Soft labels are in `soft_labels.npy` beside the folders, float16 `[D, K]`: the
logits of all D decoded images over the K classes.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.listing import TEST_NAMES, TRAIN_NAMES
from ncfmkit.sets.views import npy, pictures
from ncfmkit.sets.views.file_names import safe_name
from ncfmkit.sets.views.records import Contents, Record

SOFT = "soft_labels.npy"
# what else a package has, and names of splits: ncfmkit reads a folder `train` as a split, not as a class
TAKEN = {"ncfmkit.json", "readme.md", "sha256sums", "preview.png", "synthetic.safetensors", SOFT}
TAKEN |= {*TRAIN_NAMES, *TEST_NAMES}


def folder_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The folder of each class: its name, where all names are safe on every file system and in label order.

    Otherwise all get their label and their name with hyphens for unsafe characters: `03_T-shirt-top`. ImageFolder
    numbers classes by their sorted folders, so that either way its labels are the package's.
    """
    # file systems that ignore case, as those of Windows and macOS do, see one folder in two such names
    distinct = len({name.casefold() for name in classes}) == len(classes)
    if distinct and list(classes) == sorted(classes) and all(map(_is_safe, classes)):
        return classes
    digits = max(2, len(str(len(classes) - 1)))
    return tuple(safe_name(f"{label:0{digits}d}_{name}").rstrip("_") for label, name in enumerate(classes))


def _is_safe(name: str) -> bool:
    return safe_name(name) == name and name[:1] not in ("", ".", "-", " ") and name.casefold() not in TAKEN


def _file_name(contents: Contents, number: int) -> str:
    """Of a class's picture; with as many digits as keep sorted names in order."""
    digits = max(5, len(str(contents.per_class - 1)))
    return f"{number:0{digits}d}.{contents.encoding}"


def _soft_shape(contents: Contents) -> tuple[int, int]:
    assert contents.soft_rows is not None
    return int(contents.soft_rows.sum()), len(contents.classes)


def write(folder: Path, contents: Contents, records: Iterable[Record]) -> None:
    """Writes class folders and `soft_labels.npy` into `folder`, one record in memory; equal records, equal files.

    Raises:
        UserError: the files cannot be written.
    """
    try:
        with ExitStack() as stack:
            soft = None
            if contents.soft_rows is not None:
                soft = stack.enter_context((folder / SOFT).open("xb"))
                soft.write(npy.header(_soft_shape(contents)))
            _write_records(folder, contents, records, soft)
    except OSError as error:
        raise UserError(f"cannot write pictures to {folder}: {error.strerror or error}") from None


def _write_records(folder: Path, contents: Contents, records: Iterable[Record], soft: BinaryIO | None) -> None:
    homes = [folder / name for name in folder_names(contents.classes)]
    for index, record in enumerate(records):
        label, number = divmod(index, contents.per_class)
        if number == 0:
            homes[label].mkdir()
        path = homes[label] / _file_name(contents, number)
        path.write_bytes(pictures.encode(record.image, contents.encoding))
        if soft is not None and record.soft is not None:
            soft.write(npy.to_bytes(record.soft))


def read(folder: Path, contents: Contents) -> Iterator[Record]:
    """The records of a package, one in memory, beside the file names of one class.

    Hidden files of other tools, such as `.git` and `.DS_Store`, are ignored.

    Raises:
        UserError: missing, additional or invalid folders or files: only what :func:`write` makes is read.
    """
    try:
        names = folder_names(contents.classes)
        _check_folders(folder, names)
        with ExitStack() as stack:
            soft = _open_soft(folder, contents, stack)
            for label, name in enumerate(names):
                yield from _read_class(folder / name, label, contents, soft)
            if soft is not None:
                npy.read_end(soft, str(folder / SOFT))
    except OSError as error:
        raise UserError(f"cannot read pictures from {folder}: {error.strerror or error}") from None


def _check_folders(folder: Path, names: tuple[str, ...]) -> None:
    entries = _entries(folder)
    for entry in entries:
        if entry.is_symlink():
            raise UserError(f"{entry}: expected no links in a package, got one: copy what it points to there")
    _check_names(folder, "folder", {e.name for e in entries if e.is_dir()}, set(names))


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _check_names(folder: Path, what: str, found: set[str], expected: set[str]) -> None:
    if found - expected:
        raise UserError(f"{folder}: {what} {min(found - expected)!r} is not part of the package: remove it")
    if expected - found:
        raise UserError(f"{folder}: {what} {min(expected - found)!r} is missing: fetch the package again")


def _open_soft(folder: Path, contents: Contents, stack: ExitStack) -> BinaryIO | None:
    """The soft labels, at the first value."""
    path = folder / SOFT
    if contents.soft_rows is None:
        if path.exists():
            raise UserError(f"{path}: the package has no soft labels: remove it")
        return None
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch the package again")
    file = stack.enter_context(path.open("rb"))
    npy.read_header(file, _soft_shape(contents), str(path))
    return file


def _read_class(home: Path, label: int, contents: Contents, soft: BinaryIO | None) -> Iterator[Record]:
    files = [_file_name(contents, number) for number in range(contents.per_class)]
    _check_names(home, "file", {entry.name for entry in _entries(home)}, set(files))
    for number, name in enumerate(files):
        image = _read_picture(home / name, contents)
        logits_RK = None
        if soft is not None and contents.soft_rows is not None:
            rows = int(contents.soft_rows[label * contents.per_class + number])
            logits_RK = npy.read_values(soft, (rows, len(contents.classes)), str(home.parent / SOFT))
        yield Record(image=image, label=label, soft=logits_RK)


def _read_picture(path: Path, contents: Contents) -> np.ndarray:
    """uint8 `[ch, H, W]`."""
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: expected a plain file, got a link or a folder: copy the file itself there")
    with path.open("rb") as file:
        content = file.read(pictures.largest(contents.shape) + 1)
    return pictures.decode(content, contents.shape, str(path), contents.encoding)
