"""What a store is named by: the content of its source and the preprocessing; and a quick look that saves reading it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ncfmkit.errors import UserError
from ncfmkit.files import sha256_of
from ncfmkit.progress import track
from ncfmkit.real.listing import Source


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stat_key(source: Source, preprocessing: dict[str, Any]) -> str:
    """sha256 of the source's place, its files' names, sizes, times and inodes, and the preprocessing. Reads no file.

    The place counts: two sets unpacked with equal sizes and times in different folders need not be equal. So does the
    time at which a file was last changed in any way: an archive can restore the time of its content.

    Raises:
        UserError: a file is gone, or may not be read.
    """
    digest = hashlib.sha256(f"{source.root}\n".encode())
    for file in source.files:
        try:
            stat = (source.root / file).stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
        digest.update(f"{file}\n{stat.st_size} {times} {stat.st_ino}\n".encode())
    return _hash([source.kind, digest.hexdigest(), preprocessing])


def fingerprint(source: Source, preprocessing: dict[str, Any]) -> str:
    """sha256 of the files' relative names and content, and the preprocessing: the same wherever the set lies."""
    files = []
    with track(f"fingerprinting {source.name}", len(source.files)) as bar:
        for file in source.files:
            files.append([file, _content(source.root / file, file)])
            bar.advance()
    return _hash([source.kind, files, preprocessing])


def _content(path: Path, shown: str) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}") from error
