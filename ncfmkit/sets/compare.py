"""Holds the view of a package against its one file.

The view is decoded by the libraries that it is for (webdataset, pyarrow, Pillow). They are made for files that one
trusts, so this is done in a child process that may take only so much memory and time.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError, cause
from ncfmkit.progress import waiting
from ncfmkit.sets import set_file
from ncfmkit.sets.package import Packing, packing_of, rows_of, view_of
from ncfmkit.sets.synthetic import SyntheticSet

CHILD = f"from {__name__} import main; main()"
MEMORY = 2 << 30  # bytes that the child may take beside what it has after its imports and the mapped set
LEAST_SECONDS, ROWS_PER_SECOND = 60, 50  # of the child's processor time
WAIT = 20  # times that: the longest wait for it on a busy machine
SIGXCPU = 24  # the signal of a process that has used up its processor time
MOST_PROBLEMS = 20  # after which it stops
OFF_BY = 1  # images were interpolated elsewhere: a level may round the other way


def view_problems(folder: Path, rows: int) -> list[str]:
    """How the view of a package differs from its one file, which is intact.

    Args:
        rows: images that the set decodes to, by which the time is limited.
    """
    try:
        packing = packing_of(folder)
    except UserError as error:
        return [str(error)]
    if packing.row.module is None:
        return []
    seconds = LEAST_SECONDS + rows // ROWS_PER_SECOND
    # one thread, and the system's allocator: threads and pools reserve memory that nobody uses
    small = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-c", CHILD, str(folder), str(seconds)]
    try:
        with waiting("comparing the view with the set"):
            done = subprocess.run(
                command, env=os.environ | small | paths, capture_output=True, text=True, timeout=WAIT * seconds
            )
    except subprocess.TimeoutExpired:
        return [f"its view was not compared within {WAIT * seconds} s"]
    try:
        problems = json.loads(done.stdout)
    except ValueError:
        if done.returncode == -SIGXCPU:
            return [f"comparing its view takes more than {seconds} s of processor time"]
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"its view cannot be decoded: {lines[-1][:500]}"]
    return [str(problem) for problem in problems]


def main() -> None:
    """The child: prints the problems as JSON."""
    folder = Path(sys.argv[1])
    packing = packing_of(folder)
    result = set_file.load(folder, mapped=True)
    import PIL.Image  # noqa: F401 (before the limit)
    import pyarrow.parquet  # noqa: F401

    _limit(int(sys.argv[2]))
    print(json.dumps(differences(folder, packing, result)))


def differences(folder: Path, packing: Packing, result: SyntheticSet) -> list[str]:
    """What `view_problems` gives, found in this process and without limits."""
    view, found = view_of(result, packing), list[str]()
    name = f"its {packing.layout} view"
    try:
        rows = packing.row.read(folder, view)
        for number, expected in enumerate(rows_of(result)):
            row = next(rows, None)
            if row is None:
                found.append(f"{name} ends after {number:,} images, the set has {len(view):,}")
                break
            if row.image.shape != expected.image.shape or _distance(row.image, expected.image) > OFF_BY:
                found.append(f"image {number} of {name} is not the set's")
            if row.label != expected.label:
                found.append(f"label {number} of {name} is {row.label}, expected {expected.label}")
            if expected.soft is not None and (row.soft is None or not np.array_equal(row.soft, expected.soft)):
                found.append(f"soft labels {number} of {name} are not the set's")
            if len(found) >= MOST_PROBLEMS:
                break
        else:
            if next(rows, None) is not None:
                found.append(f"{name} has more images than the {len(view):,} of the set")
    except MemoryError:
        found.append(f"{name} needs more memory than {MEMORY >> 20} MiB")
    except Exception as error:  # whatever the libraries raise for broken files
        found.append(f"{name} is not whole: {type(error).__name__}: {cause(error)}")
    return found


def _distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(np.int16) - other).max())


def _limit(seconds: int) -> None:
    """Memory and processor time, on Linux; elsewhere how long the parent waits is the only limit."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + MEMORY,
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + seconds,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
