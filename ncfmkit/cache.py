"""Where ncfmkit keeps what it can make again: stores of real images, extractor pools."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The folder named by the environment variable NCFMKIT_CACHE, else the user's cache folder. May not exist yet."""
    return Path(os.environ.get("NCFMKIT_CACHE") or platformdirs.user_cache_dir("ncfmkit"))
