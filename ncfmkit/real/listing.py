"""What every source gives: its files, then its labels and class names, then pictures row by row.

The three come in this order because each costs more than the one before: a known set needs only the first.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import notice

Payload = bytes | Path | np.ndarray  # a picture file's bytes, its path, or uint8 pixels [H, W] or [H, W, 3]

TEST_NAMES = ("test", "val", "valid", "validation")  # a source with several is tested on the first


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


@dataclass(frozen=True)
class Request:
    """What the user asked to open."""

    data: Any  # a name or a path as text, or the data themselves
    keep: tuple[str, ...]  # classes to keep; empty: all
    data_root: Path
    download: bool
    image_column: str | None = None  # none: found by the usual names
    label_column: str | None = None


def split_token(name: str) -> str | None:
    """`train`, `test`, `val`, ... where a file's name has it as a word: `train-00000-of-00003.parquet`."""
    found = re.search(rf"(?:^|[^a-z])(train|{'|'.join(TEST_NAMES)})(?=[^a-z]|$)", Path(name).name.lower())
    return found[1] if found else None


def pick_test(name: str, found: Iterable[str]) -> str | None:
    """The test split among the split names found, with a notice where another is left alone."""
    tests = [t for t in TEST_NAMES if t in found]
    if len(tests) > 1:
        notice(f"{name}: testing on {tests[0]!r}, leaving {', '.join(map(repr, tests[1:]))} alone")
    return tests[0] if tests else None


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
    test = pick_test(name, [g for g in groups if g])
    if "train" not in groups:
        raise UserError(f"{name}: expected files named train-*, got only {test}-* such as {groups[test][0]}")
    return groups["train"], groups[test] if test else []
