"""A set as Parquet files, `data/train-00000-of-00002.parquet`, in the format of the `datasets` library.

Uncompressed, plain pages without dictionaries: pictures do not compress further, and a reader's memory is bounded by
the size of the file. Only files as `write` makes them are read.

R decoded images of one record, K classes.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ncfmkit.errors import UserError
from ncfmkit.sets.views import pictures
from ncfmkit.sets.views.parquet_headers import Group, count_values, row_groups
from ncfmkit.sets.views.records import Contents, Record

FOLDER = "data"
GROUP_ROWS = 1000
GROUP_BYTES = 1 << 26  # of pixels and soft labels: a row group of large pictures has fewer rows
BATCH = 64  # rows that are decoded at once
FOOTER_BYTES = 4096  # of metadata, for a file and for each row group; ours have about 500
# what a file has at most beside pictures, logits and features: by itself, for a row group, a row and a logit
FILE_BESIDE, GROUP_BESIDE, ROW_BESIDE, LOGIT_BESIDE = 512, 768, 96, 1


def _schema(contents: Contents) -> pa.Schema:
    """Columns and features; `Sequence` and no Arrow schema, so that versions of `datasets` before 4 read it, too."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(contents.classes), "_type": "ClassLabel"},
    }
    fields = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
    ]
    if contents.soft_rows is not None:
        kind: pa.DataType = pa.float16()
        feature: dict[str, Any] = {"dtype": "float16", "_type": "Value"}
        for _ in range(1 if contents.images == "decoded" else 2):
            kind, feature = pa.list_(pa.field("element", kind)), {"feature": feature, "_type": "Sequence"}
        fields.append(pa.field("soft_labels", kind))
        features["soft_labels"] = feature
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)})


def _columns(contents: Contents) -> tuple[str, ...]:
    """What Parquet keeps apart, in its order."""
    return ("image.bytes", "image.path", "label", *(() if contents.soft_rows is None else ("soft_labels",)))


def _soft_bytes(contents: Contents) -> int:
    """Of the record with the most soft labels."""
    return 0 if contents.soft_rows is None else 2 * len(contents.classes) * int(contents.soft_rows.max(initial=0))


def _group_rows(contents: Contents) -> int:
    return min(GROUP_ROWS, max(1, GROUP_BYTES // (math.prod(contents.shape) + _soft_bytes(contents))))


def _picture_name(contents: Contents, record: int) -> str:
    return f"{record:08d}.{contents.encoding}"


def write(folder: Path, contents: Contents, records: Iterable[Record]) -> None:
    """Writes `data/train-*.parquet` into `folder`, one row group in memory; the same records give the same bytes.

    A file exceeds `contents.shard_bytes` only if its single record does. File names contain the number of files,
    so files are named at the end.

    Raises:
        UserError: the files cannot be written.
    """
    home, schema, number, start = folder / FOLDER, _schema(contents), 0, 0
    try:
        home.mkdir()
        for number, rows in groupby(_numbered(schema, contents, records), itemgetter(0)):
            start = _write_file(home / f"{number}.tmp", schema, contents, start, ((p, r) for _, p, r in rows))
        for file, name in enumerate(_names(number + 1)):
            (home / f"{file}.tmp").rename(home / name)
    except OSError as error:
        raise UserError(f"cannot write {home}: {error.strerror or error}") from None


def _names(files: int) -> list[str]:
    return [f"train-{file:05d}-of-{files:05d}.parquet" for file in range(files)]


def _numbered(schema: pa.Schema, contents: Contents, records: Iterable[Record]) -> Iterator[tuple[int, bytes, Record]]:
    """The number of its file, picture and record of every row; sizes are counted generously."""
    empty = FILE_BESIDE + sum(len(key) + len(value) for key, value in schema.metadata.items())
    most, file, rows, size = _group_rows(contents), 0, 0, empty
    for record in records:
        picture = pictures.encode(record.image, contents.encoding)
        row = len(picture) + ROW_BESIDE
        if record.soft is not None:
            row += record.soft.nbytes + record.soft.size * LOGIT_BESIDE
        if rows % most == 0:
            size += GROUP_BESIDE
        if rows and size + row > contents.shard_bytes:
            file, rows, size = file + 1, 0, empty + GROUP_BESIDE
        rows, size = rows + 1, size + row
        yield file, picture, record


def _write_file(
    path: Path, schema: pa.Schema, contents: Contents, start: int, rows: Iterator[tuple[bytes, Record]]
) -> int:
    """Writes all rows, of which the first is record `start`; returns the first record of the next file."""
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, schema, store_schema=False, **plain) as writer:
        while group := list(islice(rows, _group_rows(contents))):
            writer.write_table(_table(schema, contents, start, group), row_group_size=len(group))
            start += len(group)
        writer.add_key_value_metadata(schema.metadata)
    return start


def _table(schema: pa.Schema, contents: Contents, start: int, rows: list[tuple[bytes, Record]]) -> pa.Table:
    """The columns of records `start`, `start` + 1, ..."""
    paths = [_picture_name(contents, start + i) for i in range(len(rows))]
    columns = [
        pa.StructArray.from_arrays([pa.array([p for p, _ in rows], pa.binary()), pa.array(paths)], ["bytes", "path"]),
        pa.array([record.label for _, record in rows], pa.int64()),
    ]
    if contents.soft_rows is not None:
        columns.append(_lists([record.soft for _, record in rows], schema.field("soft_labels").type))
    return pa.table(columns, schema=schema)


def _lists(soft: list[Any], kind: pa.ListType) -> pa.ListArray:
    """`[R, K]` of each record as lists of lists, or as one list where a record is one decoded image."""
    rows_RK = np.concatenate(soft)
    values = pa.array(rows_RK.reshape(-1))
    if kind.value_type == pa.float16():
        return _list_array(kind, [rows_RK.shape[1]] * len(soft), values)
    inner = _list_array(kind.value_type, [rows_RK.shape[1]] * len(rows_RK), values)
    return _list_array(kind, [len(rows) for rows in soft], inner)


def _list_array(kind: pa.ListType, lengths: list[int], values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), values, type=kind)


def read(folder: Path, contents: Contents) -> Iterator[Record]:
    """The records of a package; a row group is in memory, and the pixels of `BATCH` records.

    The metadata of all files are checked before a record is read.

    Raises:
        UserError: files that are not all there or not as :func:`write` makes them; records that are not `contents`'.
    """
    paths, start = _file_paths(folder), 0
    rows = [_rows(path, contents) for path in paths]
    if sum(rows) != contents.count:
        raise UserError(f"{folder / FOLDER}: expected {contents.count} rows, got {sum(rows)}: fetch the package again")
    for path, count in zip(paths, rows, strict=True):
        with _opened(path) as file:
            yield from _records(file, path, contents, start)
        start += count


def _file_paths(folder: Path) -> list[Path]:
    """The files in order; `data` holds them and nothing else but what is hidden, of other tools."""
    home = folder / FOLDER
    if home.is_symlink() or not home.is_dir():
        raise UserError(f"{folder}: expected a folder {FOLDER!r} with Parquet files: fetch the package again")
    found = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    names = _names(len(found))
    if found != set(names):
        wanted, got = min(set(names) - found), min(found - set(names))
        raise UserError(f"{home}: expected {wanted} as one of {len(found)} files, got {got!r}: fetch the package again")
    for path in (home / name for name in names):
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: expected a file, got a link or a folder: copy the file itself there")
    return [home / name for name in names]


def _opened(path: Path) -> pa.NativeFile:
    try:
        return pa.OSFile(str(path), "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a Parquet file as ncfmkit packs it ({why}): fetch it again")


def _rows(path: Path, contents: Contents) -> int:
    with _opened(path) as file:
        groups, _ = _checked(file, path, contents)
        return sum(group.rows for group in groups)


def _checked(file: pa.NativeFile, path: Path, contents: Contents) -> tuple[list[Group], pq.ParquetFile]:
    """The file, once its metadata are those of `write`: nothing in them can make reading it take more than it holds."""
    try:
        schema = _schema(contents)
        groups = row_groups(file, key_values=schema.metadata, most=_footer_limit(contents))
        _check_groups(groups, contents)
        parquet = pq.ParquetFile(file)
        if not parquet.schema_arrow.equals(schema, check_metadata=True):
            raise ValueError("other columns or features")
        return groups, parquet
    except Exception as error:  # pyarrow raises ArrowException, OSError, ValueError and others for what is damaged
        raise _damaged(path, str(error)) from error


def _footer_limit(contents: Contents) -> int:
    """Bytes that a file's metadata may have: the features, and a little for each row group."""
    groups = contents.count // _group_rows(contents) + 1
    return FOOTER_BYTES * (1 + groups) + 2 * sum(map(len, _schema(contents).metadata.values()))


def _check_groups(groups: list[Group], contents: Contents) -> None:
    most_rows = _group_rows(contents)
    row_bytes = pictures.largest(contents.shape) + 4 * _soft_bytes(contents) + FOOTER_BYTES
    for group in groups:
        size = sum(chunk.size for chunk in group.chunks)
        if not 1 <= group.rows <= most_rows or len(group.chunks) != len(_columns(contents)):
            raise ValueError(f"a row group of {group.rows} rows and {len(group.chunks)} columns")
        if size > group.rows * row_bytes:
            raise ValueError(f"a row group of {size} bytes, expected at most {group.rows * row_bytes}")


def _records(file: pa.NativeFile, path: Path, contents: Contents, start: int) -> Iterator[Record]:
    """The records of one file, whose first is record `start` of the package."""
    groups, parquet = _checked(file, path, contents)
    row = 0
    for number, group in enumerate(groups):
        _check_pages(file, group, path, contents, start + row)
        for batch in _batches(parquet, path, number):
            images, soft = _unpacked(batch, path, row, contents, start)
            for i, content in enumerate(images):
                image = pictures.decode(content, contents.shape, f"{path} row {row + i}", contents.encoding)
                label = (start + row + i) // contents.per_class
                yield Record(image=image, label=label, soft=None if soft is None else soft[i])
            row += len(batch)


def _check_pages(file: pa.NativeFile, group: Group, path: Path, contents: Contents, start: int) -> None:
    """Every column holds as many values as the records of this group have, whose first is record `start`."""
    for column, chunk in zip(_columns(contents), group.chunks, strict=True):
        expected = group.rows
        if column == "soft_labels":
            assert contents.soft_rows is not None
            rows = contents.soft_rows[start : start + group.rows]
            expected = int(np.maximum(rows * len(contents.classes), 1).sum())  # an empty list counts, too
        try:
            values = count_values(file, chunk)
        except (ValueError, OSError) as error:
            raise _damaged(path, f"column {column}: {error}") from None
        if not values == chunk.values == expected:
            raise _damaged(path, f"column {column} has {values} values, expected {expected}")


def _batches(parquet: pq.ParquetFile, path: Path, group: int) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet.iter_batches(BATCH, row_groups=[group], use_threads=False)
    except Exception as error:  # as in _checked; what is done with a batch is not within this block
        raise _damaged(path, f"row group {group}: {error}") from error


def _unpacked(
    batch: pa.RecordBatch, path: Path, row: int, contents: Contents, start: int
) -> tuple[list[bytes], list[np.ndarray] | None]:
    """Picture files and soft labels of a batch, whose first is row `row` of the file."""
    image, label = batch.column("image"), batch.column("label")
    parts = {"image": image, "image.bytes": image.field("bytes"), "image.path": image.field("path"), "label": label}
    for name, column in parts.items():
        if column.null_count:
            raise _row_error(path, row, column.is_null().to_pylist(), f"{name}: expected a value, got null")
    order = np.arange(start + row, start + row + len(batch))
    labels = label.to_numpy()
    wrong = labels != order // contents.per_class
    if wrong.any():
        at = int(wrong.argmax())
        raise _row_error(path, row, wrong, f"expected label {order[at] // contents.per_class}, got {labels[at]}")
    paths = parts["image.path"].cast(pa.binary()).to_pylist()  # not necessarily UTF-8
    wanted = [_picture_name(contents, int(i)).encode() for i in order]
    renamed = [a != b for a, b in zip(paths, wanted, strict=True)]
    if any(renamed):
        at = renamed.index(True)
        raise _row_error(path, row, renamed, f"expected image.path {wanted[at]!r}, got {paths[at]!r}")
    soft = None if contents.soft_rows is None else _soft(batch.column("soft_labels"), path, row, contents, order)
    return parts["image.bytes"].to_pylist(), soft


def _soft(column: pa.ListArray, path: Path, row: int, contents: Contents, order: np.ndarray) -> list[np.ndarray]:
    """float16 `[R, K]` of each record in a column of lists (decoded packages) or lists of lists."""
    assert contents.soft_rows is not None
    rows, classes = contents.soft_rows[order], len(contents.classes)
    if contents.images == "decoded":
        fits = _has_lengths(column, [classes] * len(rows))
        flat = column.flatten()
    else:
        inner = column.flatten()
        fits = _has_lengths(column, rows.tolist()) and _has_lengths(inner, [classes] * len(inner))
        flat = inner.flatten()
    if not fits or flat.null_count:
        raise _damaged(path, f"rows {row} to {row + len(rows) - 1}: soft_labels are not R x {classes} values a record")
    values_RK = flat.to_numpy().reshape(-1, classes)
    soft = np.split(values_RK, np.cumsum(rows)[:-1])
    bad = [not np.isfinite(part).all() for part in soft]
    if any(bad):
        raise _row_error(path, row, bad, "soft_labels: expected finite values, got NaN or infinity")
    return soft


def _has_lengths(column: pa.ListArray, lengths: list[int]) -> bool:
    return not column.null_count and column.value_lengths().to_pylist() == lengths


def _row_error(path: Path, row: int, wrong: Sequence[bool] | np.ndarray, why: str) -> UserError:
    """An error at the first row that is wrong, counted from `row`."""
    return UserError(f"{path} row {row + list(wrong).index(True)}: {why}: fetch the file again")
