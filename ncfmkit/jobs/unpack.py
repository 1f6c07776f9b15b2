"""`ncfmkit unpack`: the one file of a package."""

import os
from pathlib import Path
from typing import Any

from ncfmkit.files import check_free, safe_name
from ncfmkit.sets import loading, set_file


def unpack(
    path: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, force: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Writes the set of a package as its one file; pictures are unpacked to disk one by one, not in memory.

    Args:
        path: a package (or any other form of a set).
        out: the file; None: named after the set, in the working directory.
        force: overwrite an existing file.

    Returns:
        The file, and the manifest in it.

    Raises:
        UserError: no set there, damaged, or the file exists or cannot be written.

    Example:
        >>> file, manifest = ncfmkit.unpack("digits-ipc1-parquet", out="digits.safetensors")
    """
    path, out = Path(path), None if out is None else Path(out)
    loading.check_exists(path)
    if out is not None:
        check_free(out, force=force)
    with loading.opened(path, beside=Path() if out is None else out.parent) as result:
        out = out or Path(f"{safe_name(result.manifest['name'])}.safetensors")
        check_free(out, force=force)
        return out, set_file.save(result, out, force=force)
