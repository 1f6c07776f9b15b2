"""Globs, brace patterns and folders as lists of files, and the short name of a set."""

import glob
import os
from pathlib import Path

from ncfmkit.errors import UserError


def matching(data: str, suffix: str) -> list[Path]:
    """Sorted absolute paths of the files with `suffix` that a path, folder, glob or brace pattern stands for.

    Raises:
        UserError: some of the files that braces name are not there.
    """
    path = Path(data)
    if os.path.isdir(data):  # an empty text is no folder
        found = sorted(path.glob(f"*{suffix}")) or sorted(path.glob(f"data/*{suffix}"))
    elif path.is_file():
        found = [path]
    else:
        patterns = expanded(data)
        found = [Path(p) for pattern in patterns for p in glob.glob(pattern)]
        missing = [p for p in patterns if not glob.has_magic(p) and not os.path.exists(p)]
        if found and missing:
            raise UserError(
                f"{data}: {missing[0]} is not there ({len(missing)} of {len(patterns)} files are missing): copy it, or "
                "leave it out of the braces"
            )
    # not resolved: in a Hugging Face cache the names are links to files named by their hash
    paths = {Path(os.path.abspath(p)) for p in found if p.suffix.lower() == suffix and p.is_file()}
    return sorted(p for p in paths if not p.name.startswith("._"))  # what macOS keeps beside files on other disks


def expanded(data: str) -> list[str]:
    """What a text with braces stands for."""
    if "{" not in data:
        return [data]
    from braceexpand import braceexpand  # here, so that only braces need the library

    try:
        return list(braceexpand(data))
    except ValueError:  # unbalanced braces are part of a name
        return [data]


def common_root(data: str, files: list[Path]) -> tuple[str, Path, tuple[str, ...]]:
    """Short name of the set, the folder that holds all its files, and the files relative to it."""
    path = Path(data)
    root = Path(os.path.commonpath([f.parent for f in files]))
    name = Path(os.path.abspath(path)).name if path.is_dir() else path.stem if path.is_file() else root.name
    return name or "data", root, tuple(f.relative_to(root).as_posix() for f in files)
