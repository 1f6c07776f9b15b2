"""The one table of sources of real images: adding a source is adding a row and a file."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ncfmkit.errors import UserError
from ncfmkit.files import HUB, check_name
from ncfmkit.real.arrays import READERS, open_digits, open_torchvision
from ncfmkit.real.folders import open_folder
from ncfmkit.real.hub import open_hub
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.memory import open_memory
from ncfmkit.real.parquet import open_parquet
from ncfmkit.real.paths import matching
from ncfmkit.real.remote import is_remote, open_remote
from ncfmkit.real.saved import is_saved, open_saved
from ncfmkit.real.shards import open_shards


@dataclass(frozen=True)
class SourceKind:
    name: str
    summary: str  # one line for help and documentation
    open: Callable[[Request], Source]
    # whether a text that is not the name of a row is a path or an address of this kind; none: the name alone is
    recognizes: Callable[[str], bool] | None = None


def _torchvision_row(index: int, summary: str) -> SourceKind:
    return SourceKind(READERS[index].name, summary, partial(open_torchvision, READERS[index]))


# a name opens its row; other texts the first row that recognizes them
SOURCES = (
    SourceKind("digits", "8x8 gray digits, 10 classes, part of scikit-learn", open_digits),
    _torchvision_row(0, "32x32 color, 10 classes, read by torchvision"),
    _torchvision_row(1, "32x32 color, 100 classes, read by torchvision"),
    _torchvision_row(2, "28x28 gray, 10 classes, read by torchvision"),
    _torchvision_row(3, "28x28 gray, 10 classes, read by torchvision"),
    _torchvision_row(4, "32x32 color, 10 classes, read by torchvision"),
    SourceKind(
        "hub",
        "a data set of the Hugging Face Hub, read by the datasets library: hf://OWNER/NAME",
        open_hub,
        lambda data: data.startswith(HUB),
    ),
    SourceKind(
        "remote",
        "Parquet, WebDataset shards or a .zip of class folders at s3://, gs://, https://, ..., read by fsspec",
        open_remote,
        is_remote,
    ),
    SourceKind(
        "parquet",
        "Hugging Face Parquet: a folder, file or glob such as 'data/*.parquet'",
        open_parquet,
        lambda data: bool(matching(data, ".parquet")),
    ),
    SourceKind(
        "webdataset",
        "WebDataset shards: a folder, file, glob or braces such as 'train-{000..007}.tar'",
        open_shards,
        lambda data: bool(matching(data, ".tar")),
    ),
    SourceKind("datasets", "a folder that save_to_disk of the datasets library wrote", open_saved, is_saved),
    SourceKind(
        "folder",
        "a folder of class folders: train/ and test/ or val/, or one tree (what Pillow reads: JPEG, PNG, TIFF, ...)",
        open_folder,
        os.path.isdir,  # false for an empty text, which Path takes for the working directory
    ),
)
NAMED = {kind.name: kind for kind in SOURCES if kind.recognizes is None}


def as_text(data: str | os.PathLike[str]) -> str:
    """The name or path as text. A path is never a name: `Path("digits")` is the folder `./digits`."""
    text = os.fspath(data)
    return os.path.join(os.curdir, text) if text in NAMED and not isinstance(data, str) else text


def find_source(request: Request) -> Source:
    """The source that the user named, found but not read.

    Raises:
        UserError: nothing recognizes it, its row refuses it, or a file's name is not UTF-8.
    """
    source = _opener(request.data)(request)
    _check_names(source)
    return source


def _opener(data: Any) -> Callable[[Request], Source]:
    if not isinstance(data, str):
        return open_memory
    if data in NAMED:
        return NAMED[data].open
    for kind in SOURCES:
        if kind.recognizes is not None and kind.recognizes(data):
            return kind.open
    raise UserError(_unknown(data))


def _check_names(source: Source) -> None:
    """Names go into stores, manifests and reports, all of them UTF-8; Python keeps other bytes as lone surrogates."""
    for name in (str(source.root), *source.files):
        check_name(name)


def _unknown(data: str) -> str:
    path = Path(data)
    if path.is_file():
        return f"{data}: expected a folder, .parquet or .tar files, got a {path.suffix or 'nameless'} file"
    names = list(NAMED)
    beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(data, names + beside, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return (
        f"no data found at {data!r}{hint} Accepted: {', '.join(names)}; hf://OWNER/NAME; s3://, gs://, https://; a "
        "folder of class folders or of save_to_disk; a folder, file or glob of .parquet files or .tar shards"
    )
