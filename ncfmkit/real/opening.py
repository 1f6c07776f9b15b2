"""`open_real`: finds the source, then the store made of it, and makes the store where there is none."""

import dataclasses
import os
import re
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir, writable, write_atomic
from ncfmkit.in_use import hold
from ncfmkit.progress import notice, plural
from ncfmkit.real.building import build_store
from ncfmkit.real.decode import COLORS, changes_text, readable_formats
from ncfmkit.real.fingerprint import fingerprint, stat_key
from ncfmkit.real.folders import left_out_text
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.sources import as_text, find_source
from ncfmkit.real.store import RealData, lock_of, read_store

# settings that the first stores knew; later ones count in the fingerprint only where they are not the default, so that
# sets and runs keep the fingerprints that they were made with
FIRST_SETTINGS = ("size", "color", "resize", "classes", "holdout", "imbalance")
COLUMN_SETTINGS = ("image_column", "label_column")  # count where a source has columns
SHOWN_SKIPPED = 5  # names of images in a notice


def open_real(
    data: Any,
    settings: DataSettings,
    *,
    data_root: Path | None = None,
    download: bool = False,
    skip_bad: bool = False,
) -> RealData:
    """Opens a real data set by the name of a source or by path; read once, and from then on memory-mapped.

    Args:
        data: a name in `SOURCES`, a path (str or os.PathLike; also a glob, braces, `hf://OWNER/NAME`), or data in
            memory, see :mod:`ncfmkit.real.memory`.
        settings: preprocessing and choice of rows.
        data_root: where torchvision's sets lie; none: `downloads` in the cache folder.
        download: fetch a torchvision set that is not there.
        skip_bad: skip pictures that cannot be decoded; they are counted and listed.

    Raises:
        UserError: anything about the data or the settings that the user can mend.
    """
    source = find_real(data, settings, data_root=data_root, download=download)
    opened = dataclasses.replace(_open(source, settings, skip_bad), left_out=dict(source.left_out))
    if opened.left_out:
        notice(f"{opened.name}: left out {left_out_text(opened.left_out)}")
    total = len(opened.train.images) + (len(opened.test.images) if opened.test else 0)
    color = next(name for name, channels in COLORS.items() if channels == opened.channels)
    changed = changes_text(opened.changed, total, opened.size, color)
    if changed:
        notice(f"{opened.name}: {changed}")
    if opened.skipped:
        shown = "".join(f"\n  {image}" for image in opened.skipped_images[:SHOWN_SKIPPED])
        more = len(opened.skipped_images) - SHOWN_SKIPPED
        notice(
            f"{opened.name}: skipped {plural(opened.skipped, 'image')} that cannot be decoded (--skip-bad)"
            f"{shown and ':'}{shown}" + (f"\n  ... and {more:,} more" if more > 0 else "")
        )
    return opened


def find_real(data: Any, settings: DataSettings, *, data_root: Path | None = None, download: bool = False) -> Source:
    """As :func:`open_real`, found but not read."""
    request = Request(
        data=as_text(data) if isinstance(data, str | os.PathLike) else data,
        keep=settings.classes,
        data_root=data_root or cache_dir() / "downloads",
        download=download,
        image_column=settings.image_column,
        label_column=settings.label_column,
    )
    return find_source(request)


def _open(source: Source, settings: DataSettings, skip_bad: bool) -> RealData:
    """From the store that the index knows by the files' names, sizes and times; else by their content."""
    home = cache_dir() / "real"
    # sets and runs keep the fingerprint: `version` rises only where the same files give other pixels; a setting that is
    # gone stays in it with the one value that is left; what is skipped depends on what Pillow reads here
    defaults = dataclasses.asdict(DataSettings())
    idle = () if source.columns else COLUMN_SETTINGS
    chosen = {k: v for k, v in dataclasses.asdict(settings).items() if k not in idle}
    counted = {k: v for k, v in chosen.items() if k in FIRST_SETTINGS or v != defaults[k]}
    preprocessing: dict[str, Any] = counted | {"convert_color": False, "version": 1}
    preprocessing["skip_bad"] = skip_bad and readable_formats()
    looked = stat_key(source, preprocessing)

    def check_unchanged() -> None:
        if stat_key(source, preprocessing) != looked:
            raise UserError(f"{source.name}: its files changed while they were read: run the command again")

    def held(key: str) -> RealData:
        build = partial(
            build_store,
            source=source,
            settings=settings,
            fingerprint=key,
            skip_bad=skip_bad,
            check_unchanged=check_unchanged,
        )
        return _held(home / key[:32], source.name, build)

    index = home / "index" / looked
    key = _indexed(index)
    if key is not None:
        return held(key)
    writable(index.parent)
    key = fingerprint(source, preprocessing)
    opened = held(key)
    write_atomic(index, key.encode())
    return opened


def _held(folder: Path, name: str, build: Callable[[Path], None]) -> RealData:
    """The data, whose store counts as used for as long as its images are mapped."""
    held = hold(folder)
    try:
        opened = _read_or_build(folder, name, build)
    except BaseException:
        held.close()
        raise
    weakref.finalize(opened.train.images, held.close)
    return opened


def _indexed(index: Path) -> str | None:
    """The fingerprint in a file of the index, or none where it is missing or cut short."""
    try:
        key = index.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return key if re.fullmatch("[0-9a-f]{64}", key) else None


def _read_or_build(folder: Path, name: str, build: Callable[[Path], None]) -> RealData:
    opened = read_store(folder, name)
    if opened is not None:
        return opened
    with lock_of(folder):
        opened = read_store(folder, name)  # another process may have written it meanwhile
        if opened is None:
            if folder.exists():
                notice(f"{name}: its store in the cache is damaged or of another version: reading the source again")
            build(folder)
            opened = read_store(folder, name)
    assert opened is not None
    return opened
