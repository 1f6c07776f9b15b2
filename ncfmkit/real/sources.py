"""The one table of sources of real images: adding a source is adding a row and a file."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ncfmkit.errors import UserError
from ncfmkit.files import check_name
from ncfmkit.real.arrays import READERS, open_digits, open_torchvision
from ncfmkit.real.folders import open_folder
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.parquet import open_parquet
from ncfmkit.real.paths import matching
from ncfmkit.real.shards import open_shards


@dataclass(frozen=True)
class SourceKind:
    name: str
    summary: str  # one line for help and documentation
    recognizes: Callable[[str], bool]  # whether what the user named is of this kind
    open: Callable[[Request], Source]


def _torchvision_row(index: int, summary: str) -> SourceKind:
    name = READERS[index].name
    return SourceKind(name, summary, lambda data: data == name, partial(open_torchvision, READERS[index]))


# the first row that recognizes the data opens it
SOURCES = (
    SourceKind(
        "digits", "8x8 gray digits, 10 classes, part of scikit-learn", lambda data: data == "digits", open_digits
    ),
    _torchvision_row(0, "32x32 color, 10 classes, read by torchvision"),
    _torchvision_row(1, "32x32 color, 100 classes, read by torchvision"),
    _torchvision_row(2, "28x28 gray, 10 classes, read by torchvision"),
    _torchvision_row(3, "28x28 gray, 10 classes, read by torchvision"),
    _torchvision_row(4, "32x32 color, 10 classes, read by torchvision"),
    SourceKind(
        "parquet",
        "Hugging Face Parquet: a folder, file or glob such as 'data/*.parquet'",
        lambda data: bool(matching(data, ".parquet")),
        open_parquet,
    ),
    SourceKind(
        "webdataset",
        "WebDataset shards: a folder, file, glob or braces such as 'train-{000..007}.tar'",
        lambda data: bool(matching(data, ".tar")),
        open_shards,
    ),
    SourceKind(
        "folder",
        "a folder of class folders: train/ and test/ or val/, or one tree (png, jpg, jpeg, webp, bmp)",
        lambda data: Path(data).is_dir(),
        open_folder,
    ),
)


def find_source(request: Request) -> Source:
    """The source that the user named, found but not read.

    Raises:
        UserError: nothing recognizes it, its row refuses it, or a file's name is not UTF-8.
    """
    for kind in SOURCES:
        if kind.recognizes(request.data):
            source = kind.open(request)
            _check_names(source)
            return source
    raise UserError(_unknown(request.data))


def _check_names(source: Source) -> None:
    """Names go into stores, manifests and reports, all of them UTF-8; Python keeps other bytes as lone surrogates."""
    for name in (str(source.root), *source.files):
        check_name(name)


def _unknown(data: str) -> str:
    path = Path(data)
    if path.is_file():
        return f"{data}: expected a folder, .parquet or .tar files, got a {path.suffix or 'nameless'} file"
    names = [kind.name for kind in SOURCES[:-3]]
    beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(data, names + beside, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return (
        f"no data found at {data!r}{hint} Accepted: {', '.join(names)}; "
        "a folder of class folders; a folder, file or glob of .parquet files or .tar shards"
    )
