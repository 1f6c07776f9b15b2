"""Reads a set from wherever it is: its file, a run directory, a package."""

from pathlib import Path

from ncfmkit.formats import one_file, package
from ncfmkit.synthetic import SyntheticSet


def load(path: str | Path) -> SyntheticSet:
    """Reads a set from its file, a run directory or a package, and checks it against its manifest and checksums.

    Raises:
        UserError: nothing there, not a synthetic set, or damaged; all that is wrong is in the message.
    """
    return one_file.whole(Path(path), *read(Path(path)))


def read(path: Path, allocate: package.Allocate | None = None) -> tuple[SyntheticSet | None, list[str]]:
    """The set, and all that is wrong with it; none where anything is.

    Args:
        allocate: gives the array for the stored images of a package, see :func:`package.read`.

    Raises:
        UserError: nothing there, or not a synthetic set.
    """
    if path.is_dir() and package.is_package(path):
        return package.read(path, allocate)
    return one_file.read(one_file.find(path))
