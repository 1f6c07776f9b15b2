"""Parquet in the Hugging Face layout: a column of picture files and one of integer labels."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ncfmkit.errors import UserError
from ncfmkit.real.listing import Listing, Request, Rows, Source, by_split, kind_by_split
from ncfmkit.real.paths import common_root, matching

BATCH = 256  # rows in memory at once


def open_parquet(request: Request) -> Source:
    """A directory, file or glob of Parquet files; train and test are told apart by file name."""
    name, root, files = common_root(request.data, matching(request.data, ".parquet"))
    train, test = by_split(name, files)
    return Source(
        kind_by_split("parquet", train, test), name, root, (*train, *test), partial(_load, name, root, train, test)
    )


def _load(name: str, root: Path, train: list[str], test: list[str]) -> Listing:
    schema = _open(root, train[0]).schema_arrow
    image, label = _image_column(train[0], schema), _label_column(train[0], schema)
    classes = _class_names(schema, label)
    for file in (*train, *test):
        _same_layout(file, _open(root, file).schema_arrow, schema, image, label, classes)
    rows = [_rows(root, files, image, label) if files else None for files in (train, test)]
    assert rows[0] is not None
    return Listing(classes, rows[0], rows[1])


def _open(root: Path, file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(root / file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole Parquet file ({error}): fetch it again") from error


def _image_column(file: str, schema: pa.Schema) -> str:
    for name in ("image", "img"):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return name
            raise UserError(f"{file}: expected column {name!r} as a struct of bytes and path, got {kind}")
    raise UserError(f"{file}: expected a column 'image' or 'img', got {', '.join(schema.names)}")


def _label_column(file: str, schema: pa.Schema) -> str:
    """`label`, else `fine_label`, else the one integer column with `label` in its name."""
    found = [f.name for f in schema if "label" in f.name and pa.types.is_integer(f.type)]
    for name in ("label", "fine_label"):
        if name in found:
            return name
    if len(found) != 1:
        got = ", ".join(f"{f.name} ({f.type})" for f in schema)
        raise UserError(f"{file}: expected one integer column named label, got {got}")
    return found[0]


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names from the schema's metadata, or none: Hugging Face's ClassLabel, then a JSON list under `classes`."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names") or json.loads(metadata.get(b"classes", b"[]"))
        return tuple(map(str, names))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"class names in the Parquet schema's metadata are not readable: {error}") from error


def _same_layout(
    file: str, schema: pa.Schema, first: pa.Schema, image: str, label: str, classes: tuple[str, ...]
) -> None:
    for column in (image, label):
        if column not in schema.names or schema.field(column).type != first.field(column).type:
            raise UserError(
                f"{file}: expected column {column!r} of type {first.field(column).type}, as in the first file"
            )
    names = _class_names(schema, label)
    if names and classes and names != classes:
        raise UserError(f"{file}: its {len(names)} class names differ from the {len(classes)} of the first file")


def _rows(root: Path, files: list[str], image: str, label: str) -> Rows:
    columns = [_labels(root, file, label) for file in files]
    starts = np.cumsum([0, *map(len, columns)])

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{files[file]} row {row - starts[file]}"

    def read(rows: np.ndarray) -> Iterator[bytes]:
        for file, low, high in zip(files, starts, starts[1:], strict=False):
            inside = rows[(rows >= low) & (rows < high)] - low
            if len(inside):
                yield from _pictures(root, file, image, inside)

    return Rows(np.concatenate(columns), read, where)


def _labels(root: Path, file: str, label: str) -> np.ndarray:
    column = _open(root, file).read(columns=[label], use_threads=False).column(0)
    if column.null_count:
        row = next(i for i, value in enumerate(column) if not value.is_valid)
        raise UserError(f"{file} row {row}: expected an integer {label}, got null")
    return column.to_numpy().astype(np.int64)


def _pictures(root: Path, file: str, image: str, rows: np.ndarray) -> Iterator[bytes]:
    """Picture files of the ascending rows, one row group after the other; groups without any are not read."""
    parquet, low = _open(root, file), 0
    for group in range(parquet.num_row_groups):
        high = low + parquet.metadata.row_group(group).num_rows
        inside = rows[(rows >= low) & (rows < high)] - low
        if len(inside):
            yield from _group_pictures(parquet, file, group, image, inside)
        low = high


def _group_pictures(parquet: pq.ParquetFile, file: str, group: int, image: str, rows: np.ndarray) -> Iterator[bytes]:
    batches: Any = parquet.iter_batches(BATCH, row_groups=[group], columns=[f"{image}.bytes"], use_threads=False)
    low = 0
    try:
        for batch in batches:
            high = low + len(batch)
            column = batch.column(0).field("bytes")
            for row in rows[(rows >= low) & (rows < high)] - low:
                yield column[int(row)].as_py() or b""
            low = high
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged in row group {group} ({error}): fetch it again") from error
