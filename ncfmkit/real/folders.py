"""A folder of class folders: train/ and a test folder beside it, or one tree."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import notice, printable, shortened_list
from ncfmkit.real.decode import picture_suffixes, readable_formats
from ncfmkit.real.listing import TEST_NAMES, TRAIN_NAMES, Listing, Request, Rows, Source, pick_splits, split_token
from ncfmkit.real.select import kept_labels

# what file managers, archives and storage systems leave in folders; as hidden files, it is not worth a count
NOISE = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
}


def open_folder(request: Request) -> Source:
    """Class folders in sorted order; only those of the kept classes are listed and read.

    Raises:
        UserError: no class folders, no pictures, folders that look like splits or are reached twice, or a test split
            with other classes than the train split.
    """
    root = Path(os.path.abspath(request.data))
    name = root.name or "data"
    train, test = _splits(name, root)
    classes = _subfolders(root / train)
    if not classes:
        raise UserError(f"{name}: expected one folder per class below {_shown(train)}, got none")
    if not train and not set(request.keep) & set(classes):  # named with --classes, they are classes
        _refuse_splits(name, root, classes)
    kept = [classes[label] for label in kept_labels(name, classes, request.keep)]
    if test is not None:
        _same_classes(name, classes, _subfolders(root / test), kept, train, test)

    splits = [train] if test is None else [train, test]
    tops = _distinct(name, root, [f"{split}/{c}" if split else c for split in splits for c in kept])
    left_out, seen, listed = Counter[str](), set[str](), []
    for split in splits:
        outside, _ = sort_files(os.fspath(root / split), Counter())
        left_out["pictures outside the class folders"] += len(outside)
        listed.append([file for c in kept for file in _pictures(name, root, split, c, tops, seen, left_out)])
    load = partial(_load, root, classes, listed, train, test)
    # earlier versions read other names of splits as classes: not to be taken for the same data
    kind = "folder" if train in ("", "train") else "folder, split by other names"
    return Source(kind, name, root, tuple(file for files in listed for file in files), load, left_out=+left_out)


def _shown(split: str) -> str:
    return f"{split}/" if split else "the folder"


def is_noise(name: str) -> bool:
    return name.startswith(".") or name.lower() in NOISE


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in sorted order.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not is_noise(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: the folder cannot be listed: {error.strerror}") from None


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(e.name for e in _entries(folder) if e.is_dir())


def _splits(name: str, root: Path) -> tuple[str, str | None]:
    """Subfolders of the train and the test split; train is "" where the folder is one tree.

    A folder `train` without folders in it, and without a test split beside it, is a class: there are trains, too.
    """
    found: dict[str, str] = {}
    for folder in _subfolders(root):
        lower = folder.lower()
        if lower not in TRAIN_NAMES + TEST_NAMES:
            continue
        if lower in found:
            raise UserError(f"{name}: expected one {lower} split, got {found[lower]}/ and {folder}/: rename one")
        found[lower] = folder
    others = [folder for folder in _subfolders(root) if folder not in found.values()]
    train, test = pick_splits(name, {split: f"{folder}/" for split, folder in found.items()})
    if train is not None and (test or not others or _subfolders(root / found[train])):
        if others:
            notice(f"{name}: reading {found[train]}/, not using {shortened_list([f'{o}/' for o in others])}")
        return found[train], found[test] if test else None
    if found and not others:
        beside = next(iter(found.values()))
        raise UserError(f"{name}: expected a folder train/ beside {beside}/, or one folder per class")
    return "", None


def _refuse_splits(name: str, root: Path, classes: Sequence[str]) -> None:
    """Raises UserError where the folders of one tree do not look like classes, but like splits or like a wrapper."""
    shared = set(_subfolders(root / classes[0]))
    if len(classes) == 1 and len(shared) > 1:
        raise UserError(
            f"{name}: expected one folder per class, got {classes[0]}/ alone, which holds "
            f"{shortened_list(sorted(shared))}: pass {name}/{classes[0]} if these are the classes"
        )
    for other in classes[1:]:
        if len(shared) > 1:  # one may be `images`, as in every class of Tiny ImageNet
            shared &= set(_subfolders(root / other))
    words = [c for c in classes if split_token(c) and _subfolders(root / c)]
    if len(classes) > 1 and len(shared) > 1:
        these, why = classes, f"all of them hold {shortened_list([f'{s}/' for s in sorted(shared)])}"
    elif {split_token(c) in TRAIN_NAMES for c in words} == {True, False}:
        these, why = words, "they are named so and hold folders"
    else:
        return
    raise UserError(
        f"{name}: {shortened_list([f'{c}/' for c in these])} look like splits, not like classes ({why}): rename them "
        "train/ and test/, or list the classes with --classes if they are classes"
    )


def _same_classes(
    name: str, train: Sequence[str], test: Sequence[str], kept: Sequence[str], train_split: str, split: str
) -> None:
    in_train, in_test = set(train), set(test)
    unknown = [c for c in test if c not in in_train]
    lacking = [c for c in kept if c not in in_test]
    alike = {normalize("NFC", c): c for c in train}.get(normalize("NFC", unknown[0])) if unknown else None
    if alike is not None:
        raise UserError(
            f"{name}: the names {train_split}/{alike}/ and {split}/{unknown[0]}/ look alike, but have different "
            "Unicode characters (NFC and NFD): give both folders the same name"
        )
    if unknown:
        raise UserError(
            f"{name}: {split}/ has class {unknown[0]!r}, which {train_split}/ has not: remove it or add it to "
            f"{train_split}/"
        )
    if lacking:
        raise UserError(
            f"{name}: {split}/ lacks class {lacking[0]!r}, which {train_split}/ has: add it, or choose others with "
            "--classes"
        )


class Tops:
    """Where all folders that are walked really are.

    A link into one of them, or to a folder around one, is not followed, since that would count pictures twice.
    """

    def __init__(self, tops: Collection[str]) -> None:
        self._tops = frozenset(tops)
        self._around = frozenset(above for real in tops for above in _parents(real))

    def read_elsewhere(self, path: str, real: str) -> bool:
        """Whether a folder, which really is at `real`, is left to the walk of another top."""
        inside = os.path.islink(path) and not self._tops.isdisjoint((real, *_parents(real)))
        return inside or real in self._around


def _distinct(name: str, root: Path, folders: Sequence[str]) -> Tops:
    """Where the class folders really are.

    Raises:
        UserError: links make pictures count twice: two folders are one, or one is inside another or around all.
    """
    tops: dict[str, str] = {}
    for folder in folders:
        real = os.path.realpath(root / folder)
        if real in tops:
            raise UserError(f"{name}: {tops[real]}/ and {folder}/ are the same folder, {_UNLINK}")
        tops[real] = folder
    real_root = os.path.realpath(root)
    around = next((tops[above] for above in (real_root, *_parents(real_root)) if above in tops), None)
    if around is not None:
        raise UserError(f"{name}: {around}/ is a link to a folder around it, {_UNLINK}")
    for real, folder in tops.items():
        around = next((tops[above] for above in _parents(real) if above in tops), None)
        if around is not None:
            raise UserError(f"{name}: {folder}/ is inside {around}/, {_UNLINK}")
    return Tops(tops)


_UNLINK = "whose pictures would count twice: remove the link, or choose classes with --classes"


def _parents(path: str) -> list[str]:
    return [str(above) for above in Path(path).parents]


def _pictures(
    name: str, root: Path, split: str, folder: str, tops: Tops, seen: set[str], left_out: Counter[str]
) -> list[str]:
    """Pictures of one class, relative to `root`, however deep in its folder."""
    top, left = root / split / folder, Counter[str]()
    found = []
    for inside, files in walk(os.fspath(top), tops, seen, left):
        relative = Path(inside).relative_to(root).as_posix()
        found += [f"{relative}/{file}" for file in files]
    if not found:
        got = f", got {left_out_text(left)}" if left else ""
        raise UserError(
            f"class {folder!r} has no images in {name} {split or 'train'}: expected {', '.join(readable_formats())} "
            f"files{got}"
        )
    left_out.update(left)
    return found


def walk(top: str, tops: Tops, seen: set[str], left_out: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders from `top` downwards, in sorted order, each with the names of its pictures; links are followed once.

    Args:
        top: path of the folder.
        tops: all folders that are walked.
        seen: where folders below the tops really are that were walked; new ones are added.
        left_out: is increased by what is no picture, by kind.

    Raises:
        UserError: a folder cannot be listed.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        files, folders = sort_files(folder, left_out)
        yield folder, files
        followed = []
        for path in folders:
            real = os.path.realpath(path)
            if tops.read_elsewhere(path, real) or real in seen:
                left_out["linked folders that are read elsewhere"] += 1
                continue
            seen.add(real)
            followed.append(path)
        waiting += reversed(followed)


def sort_files(folder: str, left_out: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the pictures and paths of the folders in a folder; `left_out` counts the other files, by kind.

    Raises:
        UserError: it cannot be listed.
    """
    pictures, folders, suffixes = [], [], picture_suffixes()
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():
            folders.append(entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            left_out["broken links"] += 1
        elif suffix in suffixes and not entry.is_file():
            left_out["pipes, sockets and devices"] += 1  # reading one could wait forever
        elif suffix in suffixes:
            pictures.append(entry.name)
        else:
            left_out[suffix if re.fullmatch(r"\.\w{1,12}", suffix) else "files without a suffix"] += 1
    return pictures, folders


def left_out_text(left_out: Mapping[str, int]) -> str:
    """`12 .heic, 3 .txt (...)`: the kinds with most files first, and what reads them where there is a plugin."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:8])
    text += f" and {len(kinds) - 8} more kinds" if len(kinds) > 8 else ""
    return text + (" (pip install pillow-heif reads HEIC)" if not {".heic", ".heif"}.isdisjoint(left_out) else "")


def _load(root: Path, classes: tuple[str, ...], listed: list[list[str]], train: str, test: str | None) -> Listing:
    rows = [_rows(root, files, classes, depth=bool(split)) for files, split in zip(listed, (train, test), strict=False)]
    return Listing(classes, rows[0], rows[1] if test is not None else None)


def _rows(root: Path, files: list[str], classes: tuple[str, ...], depth: int) -> Rows:
    """Rows over picture files whose class is the path's part number `depth`."""
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[f.split("/", depth + 1)[depth]] for f in files], np.int64)
    return Rows(labels, lambda rows: (root / files[r] for r in rows), lambda row: files[row])
