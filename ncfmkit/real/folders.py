"""A folder of class folders: train/ and a test folder beside it, or one tree."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.listing import TEST_NAMES, Listing, Request, Rows, Source, pick_test
from ncfmkit.real.select import kept_labels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def open_folder(request: Request) -> Source:
    """Class folders in sorted order; only those of the kept classes are listed and read.

    Raises:
        UserError: no class folders, no pictures, or the test split has other classes than the train split.
    """
    root = Path(os.path.abspath(request.data))
    name = root.name or "data"
    train, test = _splits(name, root)
    classes = _subfolders(root / train)
    if not classes:
        raise UserError(f"{name}: expected one folder per class below {_shown(train)}, got none")
    kept = [classes[label] for label in kept_labels(name, classes, request.keep)]
    if test is not None:
        _same_classes(name, classes, _subfolders(root / test), kept, test)
    listed = [_pictures(root, train, kept), _pictures(root, test, kept) if test is not None else []]
    if not listed[0]:
        raise UserError(f"{name}: no pictures in {_shown(train)}: expected {', '.join(SUFFIXES)} files")
    load = partial(_load, root, classes, listed, train, test)
    return Source("folder", name, root, tuple(listed[0] + listed[1]), load)


def _shown(split: str) -> str:
    return f"{split}/" if split else "the folder"


def _splits(name: str, root: Path) -> tuple[str, str | None]:
    """Subfolders of the train and the test split; train is "" where the folder is one tree."""
    found = _subfolders(root)
    if "train" in found:
        return "train", pick_test(name, found)
    if found and set(found) <= set(TEST_NAMES):
        raise UserError(f"{name}: expected a folder train/ beside {found[0]}/, or one folder per class")
    return "", None


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))


def _same_classes(name: str, train: Sequence[str], test: Sequence[str], kept: Sequence[str], split: str) -> None:
    unknown = [c for c in test if c not in set(train)]
    lacking = [c for c in kept if c not in set(test)]
    if unknown:
        raise UserError(
            f"{name}: {split}/ has class {unknown[0]!r}, which train/ has not: remove it or add it to train/"
        )
    if lacking:
        raise UserError(
            f"{name}: {split}/ lacks class {lacking[0]!r}, which train/ has: add it, or choose others with --classes"
        )


def _pictures(root: Path, split: str, classes: Sequence[str]) -> list[str]:
    """Pictures of the classes in order, relative to `root`, however deep in their class folder."""
    found: list[str] = []
    for name in classes:
        top = root / split / name
        for folder, subfolders, files in os.walk(top):
            subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
            inside = Path(folder).relative_to(root).as_posix()
            found += [f"{inside}/{f}" for f in sorted(files) if f.lower().endswith(SUFFIXES) and f[0] != "."]
    return found


def _load(root: Path, classes: tuple[str, ...], listed: list[list[str]], train: str, test: str | None) -> Listing:
    rows = [_rows(root, files, classes, depth=bool(split)) for files, split in zip(listed, (train, test), strict=True)]
    return Listing(classes, rows[0], rows[1] if test is not None else None)


def _rows(root: Path, files: list[str], classes: tuple[str, ...], depth: int) -> Rows:
    """Rows over picture files whose class is the path's part number `depth`."""
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[f.split("/", depth + 1)[depth]] for f in files], np.int64)
    return Rows(labels, lambda rows: (root / files[r] for r in rows), lambda row: files[row])
