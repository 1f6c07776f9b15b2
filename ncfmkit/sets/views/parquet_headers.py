"""Reads a Parquet file's metadata and page headers, so that pyarrow only gets files that are known to be plain.

Asking pyarrow for the metadata of a column crashes the process if they name an unknown codec or have odd statistics. It
also trusts page headers: a page of a few bytes may claim two billion empty lists, and a dictionary or a delta encoding
can repeat one picture in every row. Here metadata may only have the fields that are needed, every page must be plain,
as large in memory as in the file, and its values are counted. Both are structs in Thrift's compact protocol; numbers in
capitals below are those of the Parquet format's fields.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAGIC = b"PAR1"
LONGEST_HEADER = 256  # bytes of a page header; ours have about 30
DEEPEST = 8  # structs and lists in one another; metadata have 6
PLAIN, RLE, DATA_PAGE, NO_CODEC = 0, 3, 0, 0
ROW_GROUPS, KEY_VALUES = 4, 5  # of the file's metadata
FILE_FIELDS = {1, 2, 3, 4, 5, 6, 7}
COLUMNS, GROUP_ROWS = 1, 3  # of a row group
GROUP_FIELDS = {1, 2, 3, 5, 6, 7}
CHUNK = 3  # of a column
COLUMN_FIELDS = {2, 3}
ENCODINGS, CODEC, CHUNK_VALUES, CHUNK_UNCOMPRESSED, CHUNK_COMPRESSED, OFFSET, ENCODING_STATS = 2, 4, 5, 6, 7, 9, 13
CHUNK_FIELDS = {1, 2, 3, 4, 5, 6, 7, 9, 13, 16}  # 16: sizes, which pyarrow always writes and nothing here reads
KIND, UNCOMPRESSED, COMPRESSED, DATA = 1, 2, 3, 5  # of a page header
PAGE_FIELDS = {1, 2, 3, 5}
VALUES, ENCODING, DEFINITION, REPETITION, STATISTICS = 1, 2, 3, 4, 5  # of a data page's part of it
Struct = dict[int, Any]


@dataclass(frozen=True)
class Chunk:
    """One column of a row group: `values` values in the bytes `start` to `start + size`."""

    start: int
    size: int
    values: int


@dataclass(frozen=True)
class Group:
    rows: int
    chunks: tuple[Chunk, ...]


def row_groups(file: pa.NativeFile, *, key_values: dict[bytes, bytes], most: int) -> list[Group]:
    """The row groups that a file's metadata tell of.

    Args:
        key_values: the exact key-value metadata expected. Arrow's schema would be another, which pyarrow would follow.
        most: bytes that the metadata may have.

    Raises:
        ValueError: not a whole file, or metadata with anything that plain, uncompressed columns do not need.
    """
    footer = _footer(file, most)
    try:
        metadata, end = _struct(footer, 0, 0)
        if end != len(footer) or metadata.keys() - FILE_FIELDS:
            raise ValueError("metadata with fields that it should not have")
        if [(entry[1], entry[2]) for entry in metadata.get(KEY_VALUES, [])] != list(key_values.items()):
            raise ValueError("other columns or features")
        groups = [_group(group) for group in metadata[ROW_GROUPS]]
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("metadata that cannot be read") from None
    limit = file.size() - len(footer) - 8
    if any(chunk.start + chunk.size > limit for group in groups for chunk in group.chunks):
        raise ValueError("a column that lies beyond the file's end")
    return groups


def _footer(file: pa.NativeFile, most: int) -> bytes:
    size = file.size()
    if size < 12:
        raise ValueError(f"{size} bytes")
    start = file.read_at(4, 0)
    end = file.read_at(8, size - 8)
    length = int.from_bytes(end[:4], "little")
    if start != MAGIC or end[4:] != MAGIC or length > size - 12:
        raise ValueError("its start or its end is not that of a whole file")
    if length > most:
        raise ValueError(f"{length} bytes of metadata, expected at most {most}")
    return file.read_at(length, size - 8 - length)


def _group(group: Struct) -> Group:
    columns = group[COLUMNS]
    if group.keys() - GROUP_FIELDS or any(column.keys() - COLUMN_FIELDS for column in columns):
        raise ValueError("a row group with fields that it should not have")
    return Group(_count(group[GROUP_ROWS]), tuple(_chunk(column[CHUNK]) for column in columns))


def _chunk(chunk: Struct) -> Chunk:
    encodings = {*chunk[ENCODINGS], *(stats[2] for stats in chunk.get(ENCODING_STATS, []))}
    kinds = {stats[1] for stats in chunk.get(ENCODING_STATS, [])}
    if chunk.keys() - CHUNK_FIELDS or encodings - {PLAIN, RLE} or kinds - {DATA_PAGE}:
        raise ValueError("a column with statistics, a dictionary or an encoding that is not plain")
    if chunk[CODEC] != NO_CODEC or chunk[CHUNK_COMPRESSED] != chunk[CHUNK_UNCOMPRESSED]:
        raise ValueError("a column that is compressed")
    return Chunk(_count(chunk[OFFSET]), _count(chunk[CHUNK_COMPRESSED]), _count(chunk[CHUNK_VALUES]))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a count should be")
    return value


def count_values(file: pa.NativeFile, chunk: Chunk) -> int:
    """How many values the pages of a column hold.

    Raises:
        ValueError: a page that is not plain and uncompressed, or pages that do not fill the column exactly.
    """
    values, at, end = 0, chunk.start, chunk.start + chunk.size
    while at < end:
        header, length = _page(file.read_at(min(LONGEST_HEADER, end - at), at))
        values += header[DATA][VALUES]
        at += length + header[COMPRESSED]
    if at != end:
        raise ValueError("its pages do not fill the column")
    return values


def _page(content: bytes) -> tuple[Struct, int]:
    """The header that `content` begins with, and its length."""
    try:
        header, length = _struct(content, 0, 0)
        if header.keys() - PAGE_FIELDS or header[KIND] != DATA_PAGE or header[DATA].get(STATISTICS):
            raise ValueError("a page is not plain")
        if [header[DATA][field] for field in (ENCODING, DEFINITION, REPETITION)] != [PLAIN, RLE, RLE]:
            raise ValueError("a page's encoding is not plain")
        if _count(header[COMPRESSED]) != header[UNCOMPRESSED]:
            raise ValueError("a page is compressed")
        _count(header[DATA][VALUES])
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("a page header cannot be read") from None
    return header, length


def _struct(content: bytes, at: int, depth: int) -> tuple[Struct, int]:
    """Fields by number, and where the struct ends."""
    fields: Struct = {}
    number = 0
    while content[at]:
        step, kind = content[at] >> 4, content[at] & 15
        if not step:
            raise ValueError("fields out of order")
        number += step
        fields[number], at = _value(content, at + 1, kind, depth + 1)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise ValueError("metadata nested too deeply")
    match kind:
        case 1 | 2:  # true, false
            return kind == 1, at
        case 4 | 5 | 6:  # integers of 16, 32 and 64 bits, the sign in the lowest
            value, at = _varint(content, at)
            return (value >> 1) ^ -(value & 1), at
        case 8:  # bytes
            length, at = _varint(content, at)
            return content[at : at + length], at + length
        case 9:  # list
            return _list(content, at, depth)
        case 12:
            return _struct(content, at, depth)
    raise ValueError(f"a value of kind {kind}")


def _list(content: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    length, kind = content[at] >> 4, content[at] & 15
    at += 1
    if length == 15:
        length, at = _varint(content, at)
    if kind < 3 or length > len(content) - at:  # booleans would take no bytes here
        raise ValueError("a list that is longer than its bytes")
    values = []
    for _ in range(length):
        value, at = _value(content, at, kind, depth + 1)
        values.append(value)
    return values, at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first."""
    value = shift = 0
    while content[at] & 128 and shift < 63:
        value, at, shift = value | (content[at] & 127) << shift, at + 1, shift + 7
    return value | content[at] << shift, at + 1
