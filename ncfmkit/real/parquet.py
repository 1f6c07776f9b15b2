"""Parquet files: a column of picture files and one of labels, as `datasets` and other tools write them."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ncfmkit.errors import UserError
from ncfmkit.real.columns import BATCH, label_values, list_files, pictures
from ncfmkit.real.labels import rows_of_files
from ncfmkit.real.listing import Listing, Request, Rows, Source, by_split, kind_by_split
from ncfmkit.real.paths import common_root, matching


def open_parquet(request: Request) -> Source:
    """A directory, file or glob of Parquet files; train and test are told apart by file name."""
    name, root, files = common_root(request.data, matching(request.data, ".parquet"))
    train, test = by_split(name, files)
    kind = kind_by_split("parquet", train, test)
    return Source(kind, name, root, (*train, *test), partial(_load, request, root, train, test), columns=True)


def _load(request: Request, root: Path, train: list[str], test: list[str]) -> Listing:
    return list_files(request, train, test, lambda file: _open(root, file).schema_arrow, partial(_rows, root))


def _open(root: Path, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(root / file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole Parquet file ({error}): fetch it again") from error


def _rows(root: Path, files: Sequence[str], image: str, label: str) -> Rows:
    read = [_open(root, file).read(columns=[label], use_threads=False).column(0) for file in files]
    labels = [label_values(file, label, column) for file, column in zip(files, read, strict=True)]
    return rows_of_files(
        labels,
        lambda file, row: f"{files[file]} row {row}",
        lambda file, rows: _pictures(root, files[file], image, rows),
    )


def _pictures(root: Path, file: str, image: str, rows: np.ndarray) -> Iterator[bytes | Path]:
    """Picture files of the ascending rows, one row group after the other; groups without any are not read."""
    parquet, low = _open(root, file), 0
    for group in range(parquet.num_row_groups):
        high = low + parquet.metadata.row_group(group).num_rows
        inside = rows[(rows >= low) & (rows < high)]
        if len(inside):
            yield from _group_pictures(parquet, file, group, image, inside, low)
        low = high


def _group_pictures(
    parquet: pq.ParquetFile, file: str, group: int, image: str, rows: np.ndarray, low: int
) -> Iterator[bytes | Path]:
    """The rows of one group, whose first row is row `low` of the file."""
    batches: Any = parquet.iter_batches(BATCH, row_groups=[group], columns=[image], use_threads=False)
    try:
        for batch in batches:
            high = low + len(batch)
            yield from pictures(batch.column(0), rows[(rows >= low) & (rows < high)], low, lambda r: f"{file} row {r}")
            low = high
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged in row group {group} ({error}): fetch it again") from error
