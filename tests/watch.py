"""Measures what reading a broken file costs.

Reading never ends in another exception than a UserError, a warning or a written file, and takes no more memory than
`MOST_MEMORY`.
"""

import os
import resource
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck
from mutations import Link, Tree

from ncfmkit.errors import UserError

MOST_MEMORY = 32 << 20  # bytes that reading a mutated set of a few kilobytes may allocate
MOST_GROWTH = 100 << 20  # bytes that the process may grow by, all readings of a test together
MOST_SECONDS = 5  # of processor time for one file; most take milliseconds
TRACED = 20  # one case in so many is read under tracemalloc, which is slow
FEW, MANY = 200, 6_000  # cases of a hunt, without and with -m slow
HUNT: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def tree_of(root: Path) -> Tree:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def write(root: Path, old: Tree, new: Tree) -> None:
    """Makes what lies in `root` be `new`, where it is `old`."""
    changed = [name for name in old.keys() | new.keys() if name not in old or name not in new or old[name] != new[name]]
    for path in (root / name for name in changed if name in old):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        with suppress(OSError):  # not the last one in it
            path.parent.rmdir()
    for name in (name for name in changed if name in new):
        path, content = root / name, new[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)


def listing(root: Path) -> list[Any]:
    """Everything below a folder, with sizes and times of change."""
    found = []
    for here, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            facts = os.lstat(os.path.join(here, name))
            found.append((here, name, facts.st_mode, facts.st_size, facts.st_mtime_ns))
    return sorted(found)


class Watch:
    """Reads files one by one and sees to what it costs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases = self.accepted = self.grown = 0
        self.refused: set[str] = set()  # the words of messages, without names, numbers and paths
        self.slowest = self.peak = 0.0

    def read(self, reader: Callable[[], Any], *, traced: bool = False) -> Any:
        """What the reader gives; the message where it refuses with a UserError."""
        self.cases += 1
        before, size, traced = listing(self.root), resident(), traced or self.cases % TRACED == 0
        if traced:
            tracemalloc.start()
        start = time.process_time()
        try:
            result = self._outcome(reader)
        finally:
            self.slowest = max(self.slowest, time.process_time() - start)
            self.grown += resident() - size
            if traced:
                self.peak = max(self.peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert listing(self.root) == before
        return result

    def _outcome(self, reader: Callable[[], Any]) -> Any:
        try:
            result = reader()
        except UserError as error:
            message = str(error)
            assert 0 < len(message) < 10_000
            words = message.replace(str(self.root), "").split()
            self.refused.add(" ".join(word for word in words[:12] if word.isalpha()))
            return message
        self.accepted += 1
        return result

    def close(self) -> None:
        print(f"{self.cases} cases, {self.accepted} accepted, {len(self.refused)} kinds of messages,", end=" ")
        print(f"slowest {self.slowest:.3f} s, peak {self.peak / 2**20:.1f} MiB, grown by {self.grown / 2**20:.0f} MiB")
        assert self.slowest < MOST_SECONDS
        assert self.peak < MOST_MEMORY
        assert self.grown < MOST_GROWTH * max(1, self.cases // 10_000)  # Hypothesis keeps what it has tried


def resident() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
