"""What every source gives: its files, then its labels and class names, then pictures row by row.

The three come in this order because each costs more than the one before: a known set needs only the first.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import notice

Payload = bytes | Path | np.ndarray  # a picture file's bytes, its path, or uint8 pixels [H, W] or [H, W, 3]

# names of splits in any case, with the synonyms that Hugging Face `datasets` knows
TRAIN_NAMES = ("train", "training")
TEST_NAMES = (  # a source with several is tested on the first
    *("test", "testing", "eval", "evaluation"),
    *("val", "valid", "validation", "dev"),
)


@dataclass(frozen=True, eq=False)
class Rows:
    """One split of a source, in source order."""

    labels: np.ndarray  # int64 [N]
    read: Callable[[np.ndarray], Iterator[Payload]]  # the pictures of these ascending rows, in this order
    where: Callable[[int], str]  # what a message calls a row: file and row, never an absolute path


@dataclass(frozen=True)
class Listing:
    classes: tuple[str, ...]  # empty: the source has no names, its labels are numbers
    train: Rows
    test: Rows | None


@dataclass(frozen=True)
class Source:
    """A set that was found but not read."""

    kind: str  # what reads it; of data without files with a digest of their content
    name: str  # short, never an absolute path
    root: Path
    files: tuple[str, ...]  # all that the content depends on, relative to `root`
    load: Callable[[], Listing]
    columns: bool = False  # whether it reads --image-column and --label-column
    left_out: Mapping[str, int] = field(default_factory=dict)  # files beside the pictures, by kind: `.txt`


@dataclass(frozen=True)
class Request:
    """What the user asked to open."""

    data: Any  # a name or a path as text, or the data themselves
    keep: tuple[str, ...]  # classes to keep; empty: all
    data_root: Path
    download: bool
    image_column: str | None = None  # none: found by the usual names
    label_column: str | None = None
    within: tuple[Path, ...] = ()  # resolved folders where data in memory may name pictures by path; empty: anywhere


def split_token(file: str) -> str | None:
    """The name of a split, in lower case, that a file's name has as a word: `train-00000-of-00003.parquet`.

    Else the nearest folder of its path that is named so: `Test/00000.tar`.
    """
    *folders, name = file.lower().split("/")
    found = re.search(rf"(?:^|[^a-z])({'|'.join(TRAIN_NAMES + TEST_NAMES)})(?=[^a-z]|$)", name)
    return found[1] if found else next((f for f in reversed(folders) if f in TRAIN_NAMES + TEST_NAMES), None)


def pick_splits(name: str, found: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The train and the test split among the splits found, with a notice of those that are not used.

    Args:
        found: what messages call each split, by its name in lower case.

    Raises:
        UserError: there are several train splits.
    """
    trains = [t for t in TRAIN_NAMES if t in found]
    tests = [t for t in TEST_NAMES if t in found]
    if len(trains) > 1:
        raise UserError(f"{name}: expected one train split, got {found[trains[0]]} and {found[trains[1]]}: rename one")
    if trains and len(tests) > 1:
        unused = ", ".join(found[t] for t in tests[1:])
        notice(f"{name}: testing on {found[tests[0]]}, not using {unused}")
    return trains[0] if trains else None, tests[0] if tests else None


def by_split(name: str, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files of the train and of the test split, told apart by name; where no name says, all are train.

    Raises:
        UserError: some names say which split and others do not, or there is no train split.
    """
    groups: dict[str | None, list[str]] = {}
    for file in files:
        groups.setdefault(split_token(file), []).append(file)
    if set(groups) == {None}:
        return groups[None], []
    if None in groups:
        others = ", ".join(sorted(g for g in groups if g))
        raise UserError(
            f"{name}: cannot tell the split of {groups[None][0]}, where others are named {others}: "
            "rename it, or choose files with a glob"
        )
    train, test = pick_splits(name, {g: repr(g) for g in groups if g})
    if train is None:
        raise UserError(f"{name}: expected files named train-*, got only {test}-* such as {groups[test][0]}")
    return groups[train], groups[test] if test else []


def kind_by_split(kind: str, train: Iterable[str], test: Sequence[str]) -> str:
    """The source's kind, for files that :func:`by_split` told apart.

    Where folders tell the splits it is another: earlier versions read the same files as one split, and a fingerprint
    of theirs must not be taken for that of the same data.
    """
    by_name = all(split_token(Path(file).name) for file in train)
    return kind if by_name or not test else f"{kind}, split by folders"
