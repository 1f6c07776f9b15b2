"""Writing files so that they appear whole or not at all."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ncfmkit.errors import UserError

LONGEST_NAME = 100  # characters of a name that is made of a text


def write_atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes to a temporary name, syncs, renames.

    Args:
        content: whole, or in parts that are made while it is written.

    Raises:
        UserError: the disk is full, or the file cannot be written there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full: {path} was not written; free {_amount(content)} and go on") from None
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _amount(content: bytes | Iterable[bytes | memoryview]) -> str:
    return f"{len(content)} bytes" if isinstance(content, bytes) else "some space"


def check_free(path: Path, flag: str = "--out") -> None:
    """Whether something new can be written there.

    Raises:
        UserError: something is there already, or there is no folder to write it in.
    """
    check_name(path)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: choose another {flag}")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}: make it first")


def check_name(path: str | Path) -> None:
    """Whether a path is text: libraries take no other, and neither do manifests.

    Raises:
        UserError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UserError(f"{shown}: a name that is not valid UTF-8: rename that file or folder") from None


def safe_name(text: str) -> str:
    """A plain file name made of any text: ASCII letters, digits, dots, hyphens and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:LONGEST_NAME].strip("-._") or "set"


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal; read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
