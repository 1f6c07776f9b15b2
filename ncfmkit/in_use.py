"""Which entries of the cache processes use, and when they were last used: `ncfmkit cache` reads both.

A process that uses an entry holds a shared lock on a file beside it. The system lifts it when the process ends, however
it ends. On Windows nothing is locked: there the files of a mapped store cannot be removed in any case.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Hold:
    """The use of one entry by this process, until it is closed."""

    def __init__(self, descriptor: int | None):
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hold(entry: Path) -> Hold:
    """Marks an entry of the cache, there or not yet, as used from now on. Does nothing in a cache that is read-only."""
    lock = lock_file(entry)
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits while the entry is being removed
            os.utime(lock)
        except BaseException:
            os.close(descriptor)
            raise
        return Hold(descriptor)
    return Hold(None)


@cache
def hold_until_exit(entry: Path) -> None:
    """As :func:`hold`, for as long as this process lives."""
    hold(entry)


@contextmanager
def alone(entry: Path) -> Iterator[bool]:
    """Whether no process uses an entry; if so, none begins to until the end of the `with` block.

    Raises:
        OSError: the cache is read-only, or its file system has no locks.
    """
    descriptor = os.open(lock_file(entry), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        free = True
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        yield free
    finally:
        os.close(descriptor)


def last_use(entry: Path) -> float:
    """When an entry was last used or changed, in seconds since 1970; 0 where it is gone."""
    times = [0.0]
    for path in (lock_file(entry), entry):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def lock_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.use.lock")
