"""A view as Parquet files, `data/train-00000-of-00002.parquet`, in the format of the `datasets` library.

Columns `image` (a picture file), `label` and, if the set has them, `soft_labels`. Uncompressed, plain pages without
dictionaries: pictures do not compress further.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ncfmkit.sets.views import pictures
from ncfmkit.sets.views.records import Row, View

DATA_FILES = "data/train-*.parquet"
FILES = re.compile(r"data/train-\d{5,}-of-\d{5,}\.parquet")
GROUP_ROWS = 1000
GROUP_BYTES = 1 << 26  # of pixels and soft labels: a row group of large pictures has fewer rows
BATCH = 64  # rows that are read at once
# what a file has at most beside pictures, logits and features: by itself, for a row group, a row and a logit
FILE_BESIDE, GROUP_BESIDE, ROW_BESIDE, LOGIT_BESIDE = 512, 768, 96, 1
Label = tuple[int, np.ndarray | None]  # and soft label; of a row whose image need not be kept
PICTURE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def schema(view: View, first: pa.Field, feature: dict[str, Any]) -> pa.Schema:
    """A column `first` with its feature of `datasets`, then `label` with the class names, and `soft_labels`.

    `Sequence` and no Arrow schema, so that versions of `datasets` before 4 read it, too.
    """
    features = {first.name: feature, "label": {"names": list(view.classes), "_type": "ClassLabel"}}
    fields = [first, pa.field("label", pa.int64())]
    if view.soft:
        fields.append(pa.field("soft_labels", pa.list_(pa.field("element", pa.float16()))))
        features["soft_labels"] = {"feature": {"dtype": "float16", "_type": "Value"}, "_type": "Sequence"}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)})


def features(view: View) -> None:
    """The files declare their columns."""


@contextmanager
def written(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, schema, store_schema=False, **plain) as file:
        yield file
        file.add_key_value_metadata(schema.metadata)


def table(schema: pa.Schema, firsts: pa.Array, labels: Sequence[Label]) -> pa.Table:
    """The columns of some rows."""
    columns = [firsts, pa.array([label for label, _ in labels], pa.int64())]
    soft = [logits_K for _, logits_K in labels if logits_K is not None]
    if soft:
        ends = pa.array(np.arange(len(soft) + 1) * len(soft[0]), pa.int32())
        kind = schema.field("soft_labels").type
        columns.append(pa.ListArray.from_arrays(ends, pa.array(np.concatenate(soft)), type=kind))
    return pa.table(columns, schema=schema)


def group_rows(view: View) -> int:
    soft = 2 * len(view.classes) if view.soft else 0
    return min(GROUP_ROWS, max(1, GROUP_BYTES // (math.prod(view.shape) + soft)))


def write(folder: Path, view: View, rows: Iterable[Row]) -> None:
    """Writes `data/train-*.parquet` into `folder`, one row group in memory; the same rows give the same bytes.

    A file exceeds `view.shard_bytes` only if its single row does. File names contain the number of files, so files are
    named at the end.
    """
    home, start, files = folder / "data", 0, 0
    described = schema(view, PICTURE, {"_type": "Image"})
    home.mkdir()
    for number, numbered in groupby(_numbered(described, view, rows), itemgetter(0)):
        with written(home / f"{number}.tmp", described) as file:
            while group := list(islice(((picture, label) for _, picture, label in numbered), group_rows(view))):
                names = [f"{start + i:08d}.{view.encoding}" for i in range(len(group))]
                columns = [pa.array([picture for picture, _ in group], pa.binary()), pa.array(names)]
                images = pa.StructArray.from_arrays(columns, ["bytes", "path"])
                file.write_table(table(described, images, [label for _, label in group]), row_group_size=len(group))
                start += len(group)
        files = number + 1
    for number in range(files):
        (home / f"{number}.tmp").rename(home / f"train-{number:05d}-of-{files:05d}.parquet")


def _numbered(schema: pa.Schema, view: View, rows: Iterable[Row]) -> Iterator[tuple[int, bytes, Label]]:
    """The number of its file, picture and label of every row; sizes are counted generously."""
    empty = FILE_BESIDE + sum(len(key) + len(value) for key, value in schema.metadata.items())
    most, file, count, size = group_rows(view), 0, 0, empty
    for row in rows:
        picture = pictures.encode(row.image, view.encoding)
        needed = len(picture) + ROW_BESIDE
        if row.soft is not None:
            needed += row.soft.nbytes + row.soft.size * LOGIT_BESIDE
        if count % most == 0:
            size += GROUP_BESIDE
        if count and size + needed > view.shard_bytes:
            file, count, size = file + 1, 0, empty + GROUP_BESIDE
        count, size = count + 1, size + needed
        yield file, picture, (row.label, row.soft)


def check_classes(file: pq.ParquetFile, view: View) -> None:
    """Raises ValueError unless a file declares the set's class names."""
    declared = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
    if declared["info"]["features"]["label"]["names"] != list(view.classes):
        raise ValueError("it declares other class names")


def read(folder: Path, view: View) -> Iterator[Row]:
    """The rows, decoded by pyarrow and Pillow."""
    for path in sorted(folder.glob(DATA_FILES)):
        with pq.ParquetFile(path) as file:
            check_classes(file, view)
            for batch in file.iter_batches(BATCH, use_threads=False):
                for row in batch.to_pylist():
                    soft = np.array(row["soft_labels"], np.float16) if view.soft else None
                    image = pictures.decode(row["image"]["bytes"], view.shape[0])
                    yield Row(image=image, label=row["label"], soft=soft)
