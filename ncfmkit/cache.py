"""Where ncfmkit keeps what it can make again: stores of real images, extractor pools, compiled code."""

import os
import tempfile
from pathlib import Path

import platformdirs

from ncfmkit.errors import UserError

MOVE = "or move the cache with the environment variable NCFMKIT_CACHE"


def cache_dir() -> Path:
    """The folder named by the environment variable NCFMKIT_CACHE, else the user's cache folder. May not exist yet."""
    return Path(os.environ.get("NCFMKIT_CACHE") or platformdirs.user_cache_dir("ncfmkit"))


def writable(folder: Path) -> Path:
    """A folder of the cache, made where it is not there yet.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # modes alone do not tell: the file system may be read-only or full
            return folder
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be used ({error.strerror}): make it writable, {MOVE}"
        ) from None
