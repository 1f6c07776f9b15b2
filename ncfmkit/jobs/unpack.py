"""`ncfmkit unpack`: the one file of a package."""

import os
from pathlib import Path

from ncfmkit.errors import UserError
from ncfmkit.files import check_free, safe_name, write_atomic
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import Manifest

PART = 1 << 24  # bytes copied at once


def unpack(
    path: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, force: bool = False
) -> tuple[Path, Manifest]:
    """Copies the one file out of a package, once it is checked.

    Args:
        path: a package (or any other form of a set), or `hf://OWNER/NAME` of one on the Hub.
        out: the file; None: named after the set, in the working directory.
        force: overwrite an existing file.

    Returns:
        The file, and the manifest in it.

    Raises:
        UserError: no set there, damaged, or the file exists or cannot be written.

    Example:
        >>> file, manifest = ncfmkit.unpack("digits-ipc1-parquet", out="digits.safetensors")
    """
    out = None if out is None else Path(out)
    file = set_file.find(path)
    if out is not None:
        check_free(out, force=force)
    manifest = set_file.load(file, mapped=True).manifest
    out = out or Path(f"{safe_name(manifest.name)}.safetensors")
    check_free(out, force=force)
    if out.exists() and out.samefile(file):
        raise UserError(f"--out {out} is the file itself: choose another")
    with open(file, "rb") as content:
        write_atomic(out, iter(lambda: content.read(PART), b""))
    return out, manifest
