"""`open_real`: finds the source, then the store made of it, and makes the store where there is none."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ncfmkit.config import DataSettings
from ncfmkit.files import cache_dir, writable, write_atomic
from ncfmkit.progress import notice
from ncfmkit.real.building import build_store
from ncfmkit.real.decode import COLORS, changes_text, readable_formats
from ncfmkit.real.fingerprint import fingerprint, stat_key
from ncfmkit.real.folders import left_out_text
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.sources import find_source
from ncfmkit.real.store import RealData, lock_of, read_store


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
    source = find_source(Request(data, settings.classes, data_root or cache_dir() / "downloads", download))
    opened = dataclasses.replace(_open(source, settings, skip_bad), left_out=dict(source.left_out))
    if opened.left_out:
        notice(f"{opened.name}: left out {left_out_text(opened.left_out)}")
    total = len(opened.train.images) + (len(opened.test.images) if opened.test else 0)
    color = next(name for name, channels in COLORS.items() if channels == opened.channels)
    changed = changes_text(opened.changed, total, opened.size, color)
    if changed:
        notice(f"{opened.name}: {changed}")
    if opened.skipped:
        notice(f"{opened.name}: passed over {opened.skipped} images that cannot be decoded (--skip-bad)")
    return opened


def _open(source: Source, settings: DataSettings, skip_bad: bool) -> RealData:
    """From the store that the index knows by the files' names, sizes and times; else by their content."""
    home = cache_dir() / "real"
    # sets and runs keep the fingerprint: `version` rises only where the same files give other pixels; a setting that is
    # gone stays in it with the one value that is left; what is skipped depends on what Pillow reads here
    preprocessing: dict[str, Any] = dataclasses.asdict(settings) | {"convert_color": False, "version": 1}
    preprocessing["skip_bad"] = skip_bad and readable_formats()
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
                notice(
                    f"{source.name}: its store in the cache is damaged or of another version: reading the source again"
                )
            build_store(folder, source, settings, key, skip_bad)
            opened = read_store(folder, source.name)
    assert opened is not None
    return opened
