"""`open_real`: finds the source, then the store made of it, and makes the store where there is none."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ncfmkit.config import DataSettings
from ncfmkit.files import cache_dir, writable, write_atomic
from ncfmkit.progress import notice
from ncfmkit.real.building import build_store
from ncfmkit.real.fingerprint import fingerprint, stat_key
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.sources import find_source
from ncfmkit.real.store import VERSION, RealData, lock_of, read_store


def open_real(
    data: str,
    settings: DataSettings,
    *,
    data_root: Path | None = None,
    download: bool = False,
    skip_bad: bool = False,
) -> RealData:
    """Opens a real data set by the name of a source or by path; read once, and from then on memory-mapped.

    Args:
        data: a name in `SOURCES`, a folder of class folders, Parquet files or WebDataset shards (path, glob, braces).
        settings: preprocessing and choice of rows.
        data_root: where torchvision's sets lie; none: `downloads` in the cache folder.
        download: fetch a torchvision set that is not there.
        skip_bad: pass over pictures that cannot be decoded; they are counted.

    Raises:
        UserError: anything about the data or the settings that the user can mend.
    """
    source = find_real(data, settings, data_root=data_root, download=download)
    opened = _open(source, settings, skip_bad)
    if opened.skipped:
        notice(f"{opened.name}: passed over {opened.skipped} images that cannot be decoded (--skip-bad)")
    return opened


def find_real(data: str, settings: DataSettings, *, data_root: Path | None = None, download: bool = False) -> Source:
    """As :func:`open_real`, found but not read."""
    return find_source(Request(data, settings.classes, data_root or cache_dir() / "downloads", download))


def _open(source: Source, settings: DataSettings, skip_bad: bool) -> RealData:
    """From the store that the index knows by the files' names, sizes and times; else by their content."""
    home = cache_dir() / "real"
    preprocessing: dict[str, Any] = dataclasses.asdict(settings) | {"skip_bad": skip_bad, "version": VERSION}
    index = home / "index" / stat_key(source, preprocessing)
    key = _indexed(index)
    if key is not None:
        return _read_or_build(home / key[:32], source, settings, key, skip_bad)
    writable(index.parent)
    key = fingerprint(source, preprocessing)
    opened = _read_or_build(home / key[:32], source, settings, key, skip_bad)
    write_atomic(index, key.encode())
    return opened


def _indexed(index: Path) -> str | None:
    """The fingerprint in a file of the index, or none where it is missing or cut short."""
    try:
        key = index.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return key if re.fullmatch("[0-9a-f]{64}", key) else None


def _read_or_build(folder: Path, source: Source, settings: DataSettings, key: str, skip_bad: bool) -> RealData:
    opened = read_store(folder, source.name)
    if opened is not None:
        return opened
    with lock_of(folder):
        opened = read_store(folder, source.name)  # another process may have written it meanwhile
        if opened is None:
            if folder.exists():
                notice(f"{source.name}: its store in the cache is damaged: reading the source again")
            build_store(folder, source, settings, key, skip_bad)
            opened = read_store(folder, source.name)
    assert opened is not None
    return opened
