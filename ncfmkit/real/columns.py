"""Columns of Arrow tables, from Parquet, `save_to_disk` or memory: pictures, labels, class names."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ncfmkit.errors import UserError
from ncfmkit.real.labels import numbered
from ncfmkit.real.listing import Listing, Request, Rows

BATCH = 256  # rows in memory at once
IMAGE_NAMES = ("image", "img", "picture", "photo")  # usual names of columns, in the order in which they are looked for
LABEL_NAMES = ("label", "fine_label", "labels", "class", "category", "target", "cls")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The two columns that are read, and the class names that the schema gives."""

    image: str
    label: str
    classes: tuple[str, ...]  # empty: the schema has none, or the labels are texts


def find_columns(file: str, schema: pa.Schema, image: str | None, label: str | None) -> Columns:
    """The columns of the settings `data.image_column` and `data.label_column`, else those with the usual names.

    Raises:
        UserError: there is no such column, or it holds something else; the message lists the columns.
    """
    image = image or _first(IMAGE_NAMES, schema.names) or _only([f.name for f in schema if _is_file_struct(f.type)])
    if image is None or image not in schema.names:
        wanted = f"a column {image!r}" if image else "a column of pictures named image or img"
        raise UserError(f"{file}: expected {wanted}, got {_listed(schema)}: name it with --image-column")
    kind = schema.field(image).type
    if not (_is_file_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{file}: expected picture files in column {image!r} (bytes, or a struct of bytes and path), got {kind}: "
            "choose another with --image-column"
        )
    names = _named_classes(file, schema)
    label = label or _first(LABEL_NAMES, schema.names) or _only(list(names)) or _only(_integer_labels(schema))
    if label is None or label not in schema.names:
        wanted = f"a column {label!r}" if label else "a column of labels named label"
        raise UserError(f"{file}: expected {wanted}, got {_listed(schema)}: name it with --label-column")
    kind = schema.field(label).type
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(
            f"{file}: expected integers or texts in column {label!r}, got {kind}: choose another with --label-column"
        )
    return Columns(image=image, label=label, classes=() if is_text(kind) else _classes(file, schema, names, label))


def _first(wanted: Sequence[str], there: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)


def _only(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def _integer_labels(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema if "label" in f.name and pa.types.is_integer(f.type)]


def _is_file_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, plain or as a dictionary, as pandas writes categories."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema)


def _named_classes(file: str, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Class names of every column that is a ClassLabel of `datasets`."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return {column: tuple(map(str, f["names"])) for column, f in features.items() if f.get("names")}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: class names in the schema's metadata are not readable: {error}") from error


def _classes(file: str, schema: pa.Schema, named: dict[str, tuple[str, ...]], label: str) -> tuple[str, ...]:
    """Names of the classes: those of `datasets`, else a JSON list under `classes` in the metadata, else none."""
    try:
        return named.get(label) or tuple(map(str, json.loads((schema.metadata or {}).get(b"classes", b"[]"))))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: class names in the schema's metadata are not readable: {error}") from error


def check_same_columns(file: str, schema: pa.Schema, first: pa.Schema, columns: Columns) -> None:
    """Raises UserError unless a further file has the columns of the first one and the same class names."""
    for column in (columns.image, columns.label):
        if column not in schema.names or schema.field(column).type != first.field(column).type:
            raise UserError(
                f"{file}: expected column {column!r} of type {first.field(column).type}, as in the first file"
            )
    names = find_columns(file, schema, columns.image, columns.label).classes
    if names and columns.classes and names != columns.classes:
        raise UserError(
            f"{file}: its {len(names)} class names differ from the {len(columns.classes)} of the first file"
        )


def list_files(
    request: Request,
    train: Sequence[str],
    test: Sequence[str],
    schema_of: Callable[[str], pa.Schema],
    rows_of: Callable[[Sequence[str], str, str], Rows],
) -> Listing:
    """The listing of files that have the same columns.

    Args:
        test: empty: there is no test split.
        schema_of: the schema of a file.
        rows_of: the rows of a split, from its files and the names of the image and the label column.

    Raises:
        UserError: a column is missing or another one than in the first file, or a label is wrong.
    """
    schema = schema_of(train[0])
    columns = find_columns(train[0], schema, request.image_column, request.label_column)
    for file in (*train, *test):
        check_same_columns(file, schema_of(file), schema, columns)
    rows = [rows_of(files, columns.image, columns.label) for files in (train, test) if files]
    return numbered(columns.classes, rows[0], rows[1] if test else None)


def label_values(file: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """int64 [N], or for a column of texts an array of str [N].

    Raises:
        UserError: a row has no label.
    """
    if column.null_count:
        row = next(i for i, value in enumerate(column) if not value.is_valid)
        raise UserError(f"{file} row {row}: expected a label in column {name!r}, got null")
    if is_text(column.type):
        return np.array(column.to_pylist(), object)
    return column.to_numpy().astype(np.int64)


def pictures(
    column: pa.ChunkedArray | pa.Array,
    rows: np.ndarray,
    first: int,
    where: Callable[[int], str],
    *,
    follows: Callable[[Path], bool] = lambda path: False,
) -> Iterator[bytes | Path]:
    """Picture files of some rows.

    Args:
        column: rows from `first` on.
        rows: which of them, ascending, int64 [B].
        where: what a message calls a row.
        follows: whether the file is read that a path without bytes names. A path in a file that came from elsewhere
            names something on another machine, or something that is none of its business.

    Raises:
        UserError: a row has the path of a picture but not its bytes.
    """
    for row in rows.tolist():
        value = column[row - first].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        if content is not None or not path:
            yield content or b""
        elif follows(Path(path)):
            if not Path(path).is_file():
                raise UserError(f"{where(row)}: no such file: {path!r}")
            yield Path(path)
        else:
            raise UserError(
                f"{where(row)}: has the path of a picture, {path!r}, but not its bytes: write the data again with the "
                "pictures inside, such as with `save_to_disk` of the datasets library, or pass the folder of pictures"
            )
