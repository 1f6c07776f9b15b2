"""A view as WebDataset shards: tar files `NAME-000000.tar` of samples with picture, label and soft labels.

Sample i has the members `{i:08d}.cls` (its label), `.json` (class, label, index), `.npy` (soft labels, if the set has
them) and `.png` or `.webp`, in this order.

`classes.txt` beside the shards has the class names, one per line, for ncfmkit's own reader of WebDataset. It is left
out if a name is blank, contains a line break or is surrounded by spaces, and so could not be read back.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.real.listing import TRAIN_NAMES, split_token
from ncfmkit.sets.views import pictures
from ncfmkit.sets.views.file_names import safe_name
from ncfmkit.sets.views.records import Row, View

DATA_FILES = "*.tar"
CLASSES = "classes.txt"
FILES = re.compile(r"[^/]+\.tar|classes\.txt")
MODE = 0o644
MOST_BYTES = 80  # of the set's name in a shard's
BLOCK = tarfile.BLOCKSIZE


def shard_name(name: str, number: int) -> str:
    """File name of a set's shard: the set's in lower case, with hyphens for all ASCII but letters and digits.

    A name with a word such as `test` or `val` would be taken for a test split, so it gets `train` before it.
    """
    hyphenated = re.sub(r"[^a-z0-9\x80-\U0010ffff]+", "-", safe_name(name.lower())).strip("-")
    slug = safe_name(hyphenated, MOST_BYTES).strip("-") or "set"
    prefix = "" if split_token(slug) in (None, *TRAIN_NAMES) else "train-"
    return f"{prefix}{slug}-{number:06d}.tar"


def features(view: View) -> list[dict[str, Any]]:
    """The columns, which `datasets` names by the members' suffixes, as a dataset card declares them."""
    names = {str(label): name for label, name in enumerate(view.classes)}
    facts = [{"name": "class", "dtype": "string"}, *({"name": key, "dtype": "int64"} for key in ("label", "index"))]
    return [
        {"name": "cls", "dtype": {"class_label": {"names": names}}},
        {"name": "json", "struct": facts},
        *([{"name": "npy", "sequence": "float16"}] if view.soft else []),
        {"name": view.encoding, "dtype": "image"},
    ]


def write(folder: Path, view: View, rows: Iterable[Row]) -> None:
    """Writes shards and `classes.txt` into `folder`, one row in memory; the same rows give the same bytes.

    A shard exceeds `view.shard_bytes` only if its single sample does.
    """
    samples = (_sample(view, i, row) for i, row in enumerate(rows))
    sample, number = next(samples, None), 0
    while sample is not None:
        path = folder / shard_name(view.name, number)
        sample, number = _write_shard(path, sample, samples, view.shard_bytes), number + 1
    lines = _class_lines(view)
    if lines is not None:
        (folder / CLASSES).write_bytes(lines)


def _class_lines(view: View) -> bytes | None:
    lines = "".join(f"{name}\n" for name in view.classes)
    readable = tuple(line.strip() for line in lines.splitlines() if line.strip()) == view.classes
    return lines.encode() if readable else None


def _facts(view: View, index: int, label: int) -> dict[str, Any]:
    return {"class": view.classes[label], "label": label, "index": index}


def _sample(view: View, index: int, row: Row) -> dict[str, str | bytes]:
    sample: dict[str, str | bytes] = {
        "__key__": f"{index:08d}",
        "cls": str(row.label).encode(),
        "json": json.dumps(_facts(view, index, row.label)).encode(),
        view.encoding: pictures.encode(row.image, view.encoding),
    }
    if row.soft is not None:
        content = io.BytesIO()
        np.save(content, row.soft.astype("<f2"), allow_pickle=False)
        sample["npy"] = content.getvalue()
    return sample


def _write_shard(
    path: Path, sample: dict[str, str | bytes] | None, rest: Iterator[dict[str, str | bytes]], limit: int
) -> dict[str, str | bytes] | None:
    """Writes `sample` and as many of the rest as fit; returns the first that does not."""
    from webdataset import TarWriter

    size = 0
    # a fixed owner, mode and time: archives of equal sets are equal
    with path.open("xb") as file, TarWriter(file, user="", group="", mode=MODE, mtime=0, encoder=False) as tar:
        while sample is not None and (size == 0 or _shard_bytes(size + _sample_bytes(sample)) <= limit):
            tar.write(sample)
            size += _sample_bytes(sample)
            sample = next(rest, None)
    return sample


def _sample_bytes(sample: dict[str, str | bytes]) -> int:
    return sum(BLOCK + _padded(len(content), BLOCK) for name, content in sample.items() if name != "__key__")


def _shard_bytes(size: int) -> int:
    """Bytes of a shard whose members take `size`: two empty blocks end it, then it is filled up."""
    return _padded(size + 2 * BLOCK, tarfile.RECORDSIZE)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def read(folder: Path, view: View) -> Iterator[Row]:
    """The rows, found by `webdataset`; it decodes nothing, since its decoders load pickles."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path, index = folder / CLASSES, 0
    if (path.read_bytes() if path.exists() else None) != _class_lines(view):
        raise ValueError(f"{CLASSES} does not list the set's classes")
    for path in sorted(folder.glob(DATA_FILES)):
        with path.open("rb") as stream:  # webdataset would take the path for a URL, which ends at # or ?
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                image = pictures.decode(sample[view.encoding], view.shape[0])
                if index < len(view) and json.loads(sample["json"]) != _facts(view, index, index // view.per_class):
                    raise ValueError(f"the facts of sample {index} are not the set's")
                soft = np.load(io.BytesIO(sample["npy"]), allow_pickle=False) if view.soft else None
                index += 1
                yield Row(image=image, label=int(sample["cls"].decode()), soft=soft)
