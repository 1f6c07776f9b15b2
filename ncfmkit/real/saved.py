"""Folders that `save_to_disk` of the `datasets` library writes: Arrow files, read with pyarrow alone."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ncfmkit.errors import UserError
from ncfmkit.real.columns import BATCH, label_values, list_files, pictures
from ncfmkit.real.labels import rows_of_files
from ncfmkit.real.listing import Listing, Request, Rows, Source, by_split

SPLITS, STATE = "dataset_dict.json", "state.json"  # of a DatasetDict, which has a folder per split; of a Dataset


def is_saved(data: str) -> bool:
    """Whether a folder holds a `DatasetDict` or a `Dataset` that was saved."""
    return any((Path(data) / name).is_file() for name in (SPLITS, STATE))


def open_saved(request: Request) -> Source:
    """The Arrow files of the train and of the test split, which are told apart by the names of the splits.

    Raises:
        UserError: a JSON file is not what the library writes, or there is no train split.
    """
    root = Path(request.data).absolute()
    name = root.name or "data"
    many = (root / SPLITS).is_file()
    train, test = by_split(name, _read(root, SPLITS, lambda content: content["splits"])) if many else ([""], [])
    files = [[file for split in splits for file in _files(root, split)] for splits in (train, test)]
    if not files[0]:
        raise UserError(f"{name}: expected Arrow files in its {STATE}, got none")
    return Source("datasets", name, root, (*files[0], *files[1]), partial(_load, request, root, *files), columns=True)


def _files(root: Path, split: str) -> list[str]:
    """The Arrow files of a split in the order of its rows, relative to `root`."""
    state = f"{split}/{STATE}" if split else STATE
    names = _read(root, state, lambda content: [file["filename"] for file in content["_data_files"]])
    missing = [name for name in names if not (root / split / name).is_file()]
    if missing:
        raise UserError(f"{state} names the file {missing[0]!r}, which is not there: copy the whole folder again")
    return [f"{split}/{name}" if split else name for name in names]


def _read(root: Path, file: str, take: Any) -> list[str]:
    try:
        names = take(json.loads((root / file).read_text(encoding="utf-8")))
        if any(Path(name).name != name for name in names):  # else it could name a file anywhere
            raise ValueError("a name that is a path")
        return names
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not what `save_to_disk` of the datasets library writes: {error}") from None


def _load(request: Request, root: Path, train: list[str], test: list[str]) -> Listing:
    return list_files(request, train, test, lambda file: _open(root, file).schema, partial(_rows, root))


def _open(root: Path, file: str) -> pa.Table:
    """The table of a file, mapped: only what is used is read."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(root / file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole Arrow file ({error}): copy it again") from error


def _rows(root: Path, files: Sequence[str], image: str, label: str) -> Rows:
    labels = [label_values(file, label, _validated(file, _open(root, file).column(label))) for file in files]
    return rows_of_files(
        labels,
        lambda file, row: f"{files[file]} row {row}",
        lambda file, rows: _pictures(root, files[file], image, rows),
    )


def _pictures(root: Path, file: str, image: str, rows: np.ndarray) -> Iterator[bytes | Path]:
    column = _open(root, file).column(image)
    for low in range(0, len(column), BATCH):
        inside = rows[(rows >= low) & (rows < low + BATCH)]
        batch = _validated(file, column.slice(low, BATCH))
        yield from pictures(batch, inside, low, lambda row: f"{file} row {row}")


def _validated(file: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose offsets lie inside of its data: reading others would end the process."""
    try:
        column.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{file} is damaged ({error}): copy it again") from error
    return column
