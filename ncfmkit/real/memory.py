"""Data that a Python program holds: arrays, datasets of torch, datasets of the `datasets` library, by split or not.

Each is read twice: once for its labels and the digest that its store is named by, once for the store.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ncfmkit.errors import UserError
from ncfmkit.progress import shortened_list, track
from ncfmkit.real.columns import BATCH, find_columns, label_values, pictures
from ncfmkit.real.labels import label_array, numbered
from ncfmkit.real.listing import TRAIN_NAMES, Listing, Payload, Request, Rows, Source, pick_splits, split_token

EXPECTED = (
    "expected a name or a path, (images, labels) as arrays, a map-style torch dataset that gives (image, label), a "
    "datasets.Dataset, or a dict of such by split: {'train': ..., 'test': ...}"
)


@dataclass(frozen=True, eq=False)
class Part:
    """One split that is in memory."""

    name: str  # of the whole set, where this part knows it
    classes: tuple[str, ...]  # empty: it has no names
    rows: Rows  # labels int64 [N], or texts
    digests: list[bytes]  # of the picture of each row


def open_memory(request: Request) -> Source:
    """The data themselves, known by their content.

    Raises:
        UserError: they are nothing that is known here, or some row is not a picture with a label.
    """
    given = _splits(request.data)
    parts, content = [], []
    for split, data in given.items():
        part = _kind_of(data).open(data, split, request)
        if not len(part.rows.labels):
            raise UserError(f"{split}: expected images, got none")
        pictures_digest = hashlib.sha256(b"".join(part.digests)).hexdigest()
        content.append([split, part.classes, part.rows.labels.tolist(), pictures_digest])
        parts.append(dataclasses.replace(part, rows=_checked(part.rows, part.digests)))
    names = [part.classes for part in parts if part.classes]
    if len(set(names)) > 1:
        raise UserError(
            f"the data: the splits have other classes: {shortened_list(names[0])}; {shortened_list(names[1])}"
        )
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Source(f"memory {key}", parts[0].name, Path(), (), partial(_load, parts), columns=True)


def _splits(data: Any) -> dict[str, Any]:
    """The train split, then perhaps the test split, under these names; data that are no dict are all train."""
    if not isinstance(data, Mapping):
        return {"train": data}
    names = _split_names(data)
    train, test = pick_splits("the data", {token: repr(name) for token, name in names.items()})
    if train is None:
        raise _no_train(data)
    return {"train": data[names[train]]} | ({"test": data[names[test]]} if test else {})


def _split_names(data: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys that name a split, by the split's name in lower case."""
    names: dict[str, Any] = {}
    for name in data:
        token = split_token(str(name))
        if token in names:
            raise UserError(f"the data: expected one split {token!r}, got {names[token]!r} and {name!r}")
        if token is not None:
            names[token] = name
    return names


def _no_train(data: Mapping[Any, Any]) -> UserError:
    return UserError(
        f"the data: expected a dict with one split 'train', got {', '.join(map(repr, data)) or 'an empty one'}"
    )


def memory_name(data: Any) -> str:
    """What a run directory of data in memory is called after."""
    if isinstance(data, Mapping):
        names = _split_names(data)
        train = next((token for token in TRAIN_NAMES if token in names), None)
        if train is None:
            raise _no_train(data)
        data = data[names[train]]
    return _kind_of(data).name_of(data)


def _load(parts: list[Part]) -> Listing:
    rows = [part.rows for part in parts]
    return numbered(parts[0].classes, rows[0], rows[1] if len(rows) > 1 else None)


def _digests(rows: Rows, title: str) -> list[bytes]:
    found = []
    with track(title, len(rows.labels)) as bar:
        for payload in rows.read(np.arange(len(rows.labels))):
            found.append(_digest(payload))
            bar.advance()
    return found


def _digest(payload: Payload) -> bytes:
    if isinstance(payload, np.ndarray):
        about = f"{payload.dtype}{payload.shape}".encode()
        return hashlib.blake2b(about + payload.tobytes(), digest_size=16).digest()
    content = payload.read_bytes() if isinstance(payload, Path) else payload
    return hashlib.blake2b(content, digest_size=16).digest()


def _checked(rows: Rows, digests: list[bytes]) -> Rows:
    """Rows that refuse a picture that is another one than before, as a random transform gives."""

    def read(wanted: np.ndarray) -> Iterator[Payload]:
        for row, payload in zip(wanted.tolist(), rows.read(wanted), strict=True):
            if _digest(payload) != digests[row]:
                raise UserError(
                    f"{rows.where(row)}: read twice, it gave two different images: pass the dataset without random "
                    "transforms (training augments by itself)"
                )
            yield payload

    return Rows(rows.labels, read, rows.where)


def _is_arrays(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape") and hasattr(data[0], "dtype")


def _open_arrays(data: Any, split: str, request: Request) -> Part:
    images, labels = data
    values = np.asarray(labels)
    if len(images.shape) not in (3, 4):
        raise UserError(f"{split}: expected images [N, H, W], [N, H, W, C] or [N, C, H, W], got {list(images.shape)}")
    if values.shape not in ((len(images),), (len(images), 1)):
        raise UserError(f"{split}: expected {len(images)} labels for as many images, got shape {list(values.shape)}")

    def where(row: int) -> str:
        return f"{split} row {row}"

    found = label_array([_label(label, where, row) for row, label in enumerate(values.ravel())], where)
    rows = Rows(found, lambda rows: (pixels(images[r], where(r)) for r in rows.tolist()), where)
    return Part("arrays", (), rows, _digests(rows, f"fingerprinting arrays {split}"))


def _is_datasets(data: Any) -> bool:
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset)


def _open_datasets(data: Any, split: str, request: Request) -> Part:
    """Rows of a `datasets.Dataset` as they are stored: encoded pictures, without its transforms."""
    table = data.with_format("arrow")
    columns = find_columns(split, data.features.arrow_schema, request.image_column, request.label_column)
    labels = label_values(split, columns.label, table.select_columns(columns.label)[:].column(0))

    def where(row: int) -> str:
        return f"{split} row {row}"

    def follows(path: Path) -> bool:
        return not request.within or any(map(path.resolve().is_relative_to, request.within))

    def read(rows: np.ndarray) -> Iterator[bytes | Path]:
        stored = table.select_columns(columns.image)
        for low in range(0, len(stored), BATCH):
            inside = rows[(rows >= low) & (rows < low + BATCH)]
            if len(inside):
                yield from pictures(stored[low : low + BATCH].column(0), inside, low, where, follows=follows)

    rows, name = Rows(labels, read, where), _datasets_name(data)
    return Part(name, columns.classes, rows, _digests(rows, f"fingerprinting {name} {split}"))


def _datasets_name(data: Any) -> str:
    return data.info.dataset_name or "dataset"


def _is_map_style(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | tuple)


def _open_map_style(data: Any, split: str, request: Request) -> Part:
    def where(row: int) -> str:
        return f"{split} row {row}"

    def item(row: int) -> tuple[Any, Any]:
        found = data[row]
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise UserError(f"{where(row)}: expected (image, label), got {_shown(found)}")
        return found[0], found[1]

    def read(rows: np.ndarray) -> Iterator[np.ndarray]:
        return (pixels(item(row)[0], where(row)) for row in rows.tolist())

    name, labels, digests = _map_style_name(data), [], []
    with track(f"fingerprinting {name} {split}", len(data)) as bar:
        for row in range(len(data)):
            image, label = item(row)
            labels.append(_label(label, where, row))
            digests.append(_digest(pixels(image, where(row))))
            bar.advance()
    return Part(name, _map_style_classes(data), Rows(label_array(labels, where), read, where), digests)


def _map_style_name(data: Any) -> str:
    return type(_innermost(data)).__name__


def _map_style_classes(data: Any) -> tuple[str, ...]:
    classes = getattr(_innermost(data), "classes", ())
    return tuple(classes) if isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes) else ()


def _innermost(data: Any) -> Any:
    """The dataset behind a torch Subset, as `random_split` gives."""
    while type(data).__name__ == "Subset" and hasattr(data, "dataset"):
        data = data.dataset
    return data


@dataclass(frozen=True)
class Kind:
    """How one split is read."""

    recognizes: Callable[[Any], bool]
    name_of: Callable[[Any], str]
    open: Callable[[Any, str, Request], Part]


KINDS = (  # the first row that recognizes a split opens it
    Kind(_is_arrays, lambda data: "arrays", _open_arrays),
    Kind(_is_datasets, _datasets_name, _open_datasets),
    Kind(_is_map_style, _map_style_name, _open_map_style),
)


def _kind_of(data: Any) -> Kind:
    for kind in KINDS:
        if kind.recognizes(data):
            return kind
    if hasattr(data, "__iter__") and not hasattr(data, "__len__"):
        raise UserError(f"{EXPECTED}; got {_shown(data)}, which can only be iterated: load it without streaming")
    raise UserError(f"{EXPECTED}; got {_shown(data)}")


def _shown(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    return f"a {name} of {len(value)}" if isinstance(value, tuple | list | dict) else f"a {name}"


def _label(value: Any, where: Callable[[int], str], row: int) -> int | str:
    value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where(row)}: expected an integer or a text as label, got {_shown(value)}")
    return value


def pixels(value: Any, where: str) -> np.ndarray:
    """One image as pixels that the decoder takes: uint8 [H, W], [H, W, 3] or [H, W, 4].

    Args:
        value: a PIL image, an array [H, W], [H, W, C] or [C, H, W], or a tensor [H, W] or [C, H, W]; whole numbers 0 to
            255, or floats 0 to 1.

    Raises:
        UserError: another shape, type or range.
    """
    if isinstance(value, Image.Image):
        transparent = value.mode == "PA" or (value.mode == "P" and "transparency" in value.info)
        wanted = {"1": "L", "P": "RGBA" if transparent else "RGB", "PA": "RGBA"}
        plain = value.mode in ("L", "LA", "RGB", "RGBA", "I", "F") or value.mode.startswith("I;16")
        return np.asarray(value if plain else value.convert(wanted.get(value.mode, "RGB")))
    tensor = type(value).__module__.split(".")[0] == "torch"
    image = np.asarray(value.detach().cpu() if tensor else value)
    if image.ndim == 3 and (tensor or (image.shape[2] not in (1, 3) and image.shape[0] in (1, 3))):
        image = image.transpose(1, 2, 0)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise UserError(f"{where}: expected an image [H, W], [H, W, C] or [C, H, W], got shape {list(np.shape(value))}")
    image = image[:, :, 0] if image.shape[2:] == (1,) else image
    if image.dtype.kind not in "uif":
        raise UserError(f"{where}: expected pixels as numbers, got {image.dtype}")
    low, high = image.min(), image.max()
    most = 1 if image.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # also where some are NaN
        raise UserError(
            f"{where}: expected pixels 0 to 255 as integers or 0 to 1 as floats, got {image.dtype} from {low:g} to "
            f"{high:g}: pass images that are not normalized"
        )
    return np.ascontiguousarray(np.round(image * 255.0) if most == 1 else image).astype(np.uint8)
