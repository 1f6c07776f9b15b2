"""A view as class folders of pictures, `train/FOLDER/00000.png`, as torchvision's `ImageFolder` reads them.

`train/metadata.parquet` says the same to `datasets`, with the class names as they are, and holds the soft labels.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ncfmkit.sets.views import parquet, pictures
from ncfmkit.sets.views.file_names import safe_name
from ncfmkit.sets.views.records import Row, View

HOME = "train"
DATA_FILES = f"{HOME}/**"
METADATA = "metadata.parquet"
FILES = re.compile(r"train/(metadata\.parquet|[^/]+/\d{5,}\.(png|webp))")


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
    return safe_name(name) == name and name[:1] not in ("", ".", "-", " ") and name.casefold() != METADATA


def features(view: View) -> None:
    """The metadata declare their columns."""


def write(folder: Path, view: View, rows: Iterable[Row]) -> None:
    """Writes pictures, numbered within their class, and their metadata; the same rows give the same bytes."""
    home, names = folder / HOME, folder_names(view.classes)
    digits = max(5, len(str(view.per_class - 1)))  # as many as keep sorted names in order
    for name in names:
        (home / name).mkdir(parents=True)
    described = parquet.schema(view, pa.field("file_name", pa.string()), {"dtype": "string", "_type": "Value"})
    written = _write_pictures(home, names, digits, view, rows)
    with parquet.written(home / METADATA, described) as metadata:
        while group := list(islice(written, parquet.GROUP_ROWS)):
            files, labels = zip(*group, strict=True)
            metadata.write_table(parquet.table(described, pa.array(files), labels), row_group_size=len(group))


def _write_pictures(
    home: Path, names: Sequence[str], digits: int, view: View, rows: Iterable[Row]
) -> Iterator[tuple[str, parquet.Label]]:
    """Writes the picture of each row; gives its name below `home`, and its label."""
    for i, row in enumerate(rows):
        file = f"{names[i // view.per_class]}/{i % view.per_class:0{digits}d}.{view.encoding}"
        (home / file).write_bytes(pictures.encode(row.image, view.encoding))
        yield file, (row.label, row.soft)


def read(folder: Path, view: View) -> Iterator[Row]:
    """The rows, in the order of the folders, decoded by Pillow; their labels are the folders' numbers."""
    home = folder / HOME
    with pq.ParquetFile(home / METADATA) as file:
        parquet.check_classes(file, view)
        metadata = (row for batch in file.iter_batches(parquet.BATCH, use_threads=False) for row in batch.to_pylist())
        for label, name in enumerate(sorted(path.name for path in home.iterdir() if path.is_dir())):
            for path in sorted((home / name).iterdir()):
                about = next(metadata)
                if (about["file_name"], about["label"]) != (f"{name}/{path.name}", label):
                    raise ValueError(f"{METADATA} lists {about['file_name']} in place of {name}/{path.name}")
                soft = np.array(about["soft_labels"], np.float16) if view.soft else None
                yield Row(image=pictures.decode(path.read_bytes(), view.shape[0]), label=label, soft=soft)
