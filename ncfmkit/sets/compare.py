"""Holds the view of a package against its one file: what other tools read is the set.

A child process decodes the view (`views/decoder.py`) and sends its rows, which are compared here.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import track
from ncfmkit.runtime import cpu_threads
from ncfmkit.sets.package import Packing, files_in, foreign_to, packing_of, rows_of, view_of
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views import decoder
from ncfmkit.sets.views.decoder import Unreadable
from ncfmkit.sets.views.records import Row, View

CHILD = f"from {decoder.__name__} import main; main()"
LEAST_SECONDS, ROWS_PER_SECOND = 60, 50  # of the child's processor time
WAIT = 20  # times that: the longest wait for it on a busy machine
SIGXCPU = 24  # the signal of a process that has used up its processor time
MOST_PROBLEMS = 20  # after which the comparison stops
OFF_BY = 1  # images were interpolated elsewhere: a level may round the other way


def view_problems(folder: Path, result: SyntheticSet) -> list[str]:
    """How the view of a package differs from its set, the one file, which is intact."""
    try:
        packing = packing_of(folder)
    except UserError as error:
        return [str(error)]
    foreign = foreign_to(packing, files_in(folder))
    if foreign:
        return [f"{name} is not a file that a {packing.layout} package has" for name in foreign]
    if packing.row.module is None:
        return []
    # the child has a core of its own: torch's threads would wait for it in every small operation
    with closing(_by_child(folder, packing.layout, view_of(result, packing))) as rows, cpu_threads(1):
        return differences(rows, result, packing)


def differences(rows: Iterator[Row], result: SyntheticSet, packing: Packing) -> list[str]:
    """How the decoded rows of a view differ from the set's."""
    view, found = view_of(result, packing), list[str]()
    name = f"its {packing.layout} view"
    try:
        with track("comparing the view", len(view)) as bar:
            for number, expected in enumerate(rows_of(result)):
                row = next(rows, None)
                if row is None:
                    return [*found, f"{name} ends after {number:,} images, the set has {len(view):,}"]
                if np.abs(row.image.astype(np.int16) - expected.image).max() > OFF_BY:
                    found.append(f"image {number} of {name} is not the set's")
                if row.label != expected.label:
                    found.append(f"label {number} of {name} is {row.label}, expected {expected.label}")
                if expected.soft is not None and not np.array_equal(row.soft, expected.soft):  # type: ignore[arg-type]
                    found.append(f"soft labels {number} of {name} are not the set's")
                if len(found) >= MOST_PROBLEMS:
                    return found
                bar.advance()
        if next(rows, None) is not None:
            found.append(f"{name} has more images than the {len(view):,} of the set")
    except Unreadable as error:
        found.append(f"{name} {error}")
    return found


def _by_child(folder: Path, layout: str, view: View) -> Generator[Row]:
    """The rows, from the child.

    Raises:
        Unreadable: it failed, or used up its memory or time.
    """
    seconds, kind = LEAST_SECONDS + len(view) // ROWS_PER_SECOND, decoder.record(view)
    # one thread, and the system's allocator: threads and pools reserve memory that nobody uses
    small = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-c", CHILD, str(folder), layout, json.dumps(dataclasses.asdict(view))]
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            [*command, str(seconds)], env=os.environ | small | paths, stdout=subprocess.PIPE, stderr=messages
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(WAIT * seconds, stop)
        timer.start()
        try:
            assert child.stdout is not None
            while len(content := child.stdout.read(kind.itemsize)) == kind.itemsize:
                row = np.frombuffer(content, kind)[0]
                yield Row(image=row["image"], label=int(row["label"]), soft=row["soft"] if view.soft else None)
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()  # where the rest is not wanted
            child.communicate()
        if late.is_set():
            raise Unreadable(f"was not decoded within {WAIT * seconds} s")
        if code == -SIGXCPU:
            raise Unreadable(f"takes more than {seconds} s of processor time")
        if code:
            messages.seek(0)
            lines = messages.read(decoder.LARGEST_MESSAGE).decode(errors="replace").strip().splitlines()
            raise Unreadable(lines[-1][:500] if lines else f"cannot be decoded: exit code {code}")
