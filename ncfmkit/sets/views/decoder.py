"""Decodes a view by the libraries that it is for: webdataset, pyarrow, Pillow.

They are made for files that one trusts, so `compare.py` runs this as a child process that may take only so much memory
and time. Needs no torch.
"""

import json
import math
import operator
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ncfmkit.errors import cause
from ncfmkit.sets.views.records import Row, View
from ncfmkit.sets.views.table import LAYOUTS

MEMORY = 2 << 30  # bytes that the child may take beside what it has after its imports
LARGEST_MESSAGE = 1 << 20  # bytes of what the libraries may print


class Unreadable(Exception):
    """The view is not whole, or takes too much to decode."""


def decoded(folder: Path, layout: str, view: View) -> Iterator[Row]:
    """The rows of the view in a folder, each of the shape that `view` says.

    Raises:
        Unreadable: whatever the libraries raise for broken files.
    """
    try:
        for row in LAYOUTS[layout].read(folder, view):
            soft_shape = None if row.soft is None else row.soft.shape
            if row.image.shape != view.shape or soft_shape != ((len(view.classes),) if view.soft else None):
                raise ValueError(f"an image of shape {row.image.shape} with soft labels {soft_shape}")
            np.int64(operator.index(row.label))  # raises where it is none
            yield row
    except MemoryError:
        raise Unreadable(f"needs more memory than {MEMORY >> 20} MiB") from None
    except Exception as error:
        raise Unreadable(f"is not whole: {type(error).__name__}: {' '.join(cause(error).split())}") from None


def record(view: View) -> np.dtype:
    """A row as the child sends it."""
    soft = [("soft", "<f2", (len(view.classes),))] if view.soft else []
    return np.dtype([("label", "<i8"), ("image", "u1", view.shape), *soft])


def main() -> None:
    """The child: writes the rows to stdout. Its arguments: folder, layout, the view as JSON, seconds."""
    folder, layout, described, seconds = sys.argv[1:]
    values = json.loads(described)
    view = View(**values | {"classes": tuple(values["classes"]), "shape": tuple(values["shape"])})
    import PIL.Image  # noqa: F401 (libraries are loaded before the limits)
    import pyarrow.parquet  # noqa: F401

    if layout == "webdataset":
        import webdataset  # noqa: F401

    _limit(int(seconds))
    buffer = np.zeros((), record(view))
    try:
        for row in decoded(folder=Path(folder), layout=layout, view=view):
            buffer["label"], buffer["image"] = row.label, row.image
            if row.soft is not None:
                buffer["soft"] = row.soft
            sys.stdout.buffer.write(buffer.tobytes())
        sys.stdout.flush()
    except Unreadable as error:
        sys.exit(str(error))


def _limit(seconds: int) -> None:
    """Memory, processor time and messages, on Linux; elsewhere how long the parent waits is the only limit."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + MEMORY,
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + seconds,
        resource.RLIMIT_FSIZE: LARGEST_MESSAGE,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
