"""A run directory: settings, metrics, checkpoints. Whatever is written appears whole or not at all.

Of several ranks the first alone writes, and reads what all go on from.
"""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import ValidationError

from ncfmkit import distributed, interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import check_free_folder, locked, make_folder, write_atomic
from ncfmkit.progress import notice
from ncfmkit.records import problems
from ncfmkit.run_records import MetricsRow, RunInfo, Scores

KEPT_CHECKPOINTS = 2
# what `ncfmkit distill` writes into a run directory: --force replaces no folder that holds anything else
ENTRIES = {
    *("run.json", "metrics.jsonl", "checkpoint", "lock", "scores.json", "synthetic.safetensors"),
    *("preview.png", "curves.png", "report.html"),
}
DIGEST_BYTES = 32  # sha256 of the rest, at the end of a checkpoint


class RunDirectory:
    """The files of one run under `path`."""

    def __init__(self, path: Path):
        self.path = path
        self.info_file = path / "run.json"
        self.metrics_file = path / "metrics.jsonl"
        self.scores_file = path / "scores.json"
        self.checkpoints = path / "checkpoint"
        self.students = self.checkpoints / "students"  # what those that are scored get right

    @staticmethod
    def free(path: Path, *, force: bool = False) -> None:
        """Tries whether a new run may go to `path`. Leaves nothing behind.

        Args:
            force: a run that is there may be replaced.

        Raises:
            UserError: it holds a run or anything else, another process works in it, or nothing can be written there.
        """
        if (path / "run.json").exists() and not force:
            raise _taken(path)
        empty = path.is_dir() and not (path / "run.json").exists() and not _foreign_entries(path)
        check_free_folder(path, force=force or empty, foreign=_foreign_entries, made_by="distill", parents=True)
        if (path / "run.json").exists():
            with RunDirectory(path).alone():
                pass

    @classmethod
    def create(cls, path: Path, info: RunInfo, *, force: bool = False) -> "RunDirectory":
        """A new run directory with its `run.json`.

        With `force`, a run that is there stays beside it as `NAME.old` until :meth:`finish`.
        """
        cls.free(path, force=force)
        run = cls(path)
        try:
            with interrupts.held():
                if run.info_file.exists():
                    older = [path.name for path in run.replaced()]
                    earlier = next_free(path.parent, f"{path.name}.old")
                    os.rename(path, earlier)
                    info = info.model_copy(update={"replaces": (earlier.name, *older)})
                path.mkdir(parents=True, exist_ok=True)
                with run.alone():
                    if run.info_file.exists():  # by another process, which was started at the same time
                        raise _taken(path)
                    info.write(run.info_file)
        except OSError as error:
            raise UserError(f"cannot make the run directory {path}: {error.strerror}") from None
        return run

    def replaced(self) -> list[Path]:
        """The runs that were here before, and are kept until this one is done."""
        try:
            names = self.info().replaces
        except UserError:
            return []
        pattern = rf"{re.escape(self.path.name)}\.old(-\d+)?"  # a file of others is no reason to delete other folders
        paths = [self.path.with_name(name) for name in names if re.fullmatch(pattern, name)]
        return [path for path in paths if path.is_dir() and not _foreign_entries(path)]

    @distributed.first_only
    def finish(self) -> None:
        """The run is done: those that it replaces are deleted."""
        for path in self.replaced():
            shutil.rmtree(path, ignore_errors=True)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """A run directory that is there.

        Raises:
            UserError: there is none.
        """
        if not (path / "run.json").is_file():
            raise UserError(f"{path} is not a run directory: no run.json in it")
        return cls(path)

    def kept(self) -> str:
        """What an interruption of this run leaves behind."""
        earlier = self.replaced()
        also = f"; until it is done, the earlier run stays in {earlier[0]}" if earlier else ""
        return f"interrupted; finished work is saved: continue with --resume {self.path}{also}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this process works in the run directory; the system lifts the lock of a process that is killed.

        Raises:
            UserError: another process works in it, or nothing can be written there.
        """
        if not distributed.is_first():
            yield
            return
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"the run directory {self.path} is not writable")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / "lock", timeout=0))
            except Timeout:
                raise UserError(
                    f"another process works in {self.path}: wait until it ends, or stop it, and then pass --resume"
                ) from None
            yield

    def info(self) -> RunInfo:
        """What `run.json` holds.

        Raises:
            UserError: it is damaged.
        """
        return RunInfo.read(self.info_file)

    def scores(self) -> Scores | None:
        """What `scores.json` holds; None: the run is not scored.

        Raises:
            UserError: it is damaged.
        """
        return Scores.read(self.scores_file) if self.scores_file.exists() else None

    def to_dict(self) -> dict[str, object]:
        """`run.json`, and below `scores` what `scores.json` holds, where there is one."""
        scores = self.scores()
        return self.info().to_dict() | ({"scores": scores.to_dict()} if scores else {})

    @distributed.first_only
    def update(self, **changes: object) -> None:
        """Sets fields of `run.json`."""
        self.info().model_copy(update=changes).write(self.info_file)

    @distributed.first_only
    def append_metrics(self, row: MetricsRow) -> None:
        """Adds one line to `metrics.jsonl`."""
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise UserError(f"cannot write {self.metrics_file}: {error.strerror}") from None

    def metrics(self) -> list[MetricsRow]:
        """The rows of `metrics.jsonl`; a last line cut short by a crash is passed over, no file means no rows.

        Raises:
            UserError: a line before the last is damaged.
        """
        lines = self.metrics_file.read_bytes().splitlines() if self.metrics_file.is_file() else []
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(MetricsRow.model_validate_json(line))
            except ValidationError as error:
                if number == len(lines):
                    break
                wrong = "; ".join(problems(error))
                raise UserError(f"{self.metrics_file} line {number}: {wrong}: mend or delete the line") from None
        return rows

    def cut_metrics(self, steps: int) -> list[MetricsRow]:
        """Drops what was logged after `steps` steps, as on resuming; returns what is left."""
        rows = [row for row in self.metrics() if row.step <= steps]
        if distributed.is_first():
            write_atomic(self.metrics_file, "".join(map(_line, rows)).encode())
        return rows

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Saves the state of a step with its own checksum; the newest two are kept.

        Those of later steps were damaged, else the run would have gone on from there: they go.
        """
        make_folder(self.checkpoints)
        write_checkpoint(self._checkpoint(state["step"]), state)
        newest = self._checkpoint(state["step"])
        kept = [path for path in self._saved() if path <= newest][-KEPT_CHECKPOINTS:]
        for path in set(self._saved()) - set(kept):
            path.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that its checksum confirms, or None; damaged ones are named in a notice."""
        for path in reversed(self._saved()):
            state = read_checkpoint(path)
            if state is not None:
                return state
            notice(f"{path.name} is damaged (its checksum is wrong): using the one before it")
        return None

    def steps_done(self) -> int:
        """Steps of the newest checkpoint; it is not read."""
        return max((int(path.stem.removeprefix("step-")) for path in self._saved()), default=0)

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.pt"

    def _saved(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def _taken(path: Path) -> UserError:
    return UserError(
        f"{path} already exists and holds a run: continue it with --resume {path}, pass --force to overwrite it, or "
        "choose another --out"
    )


def _foreign_entries(path: Path) -> list[str]:
    """What lies in a folder and is not a run's; where there is no run, all but what a start that was killed left."""
    names = sorted(entry.name for entry in path.iterdir())
    if "run.json" not in names:
        return [name for name in names if not re.fullmatch(r"\.run\.json\.\d+\.tmp|lock", name)]
    others = re.compile(r"\..*\.tmp|events\.out\.tfevents\..*")  # of a process that was killed; of TensorBoard
    return [name for name in names if not (name in ENTRIES or others.fullmatch(name))]


def _line(row: MetricsRow) -> str:
    return json.dumps(row.to_dict()) + "\n"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves a state (tensors, numbers, strings, lists and dictionaries of them) with its own checksum."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomic(path, content + hashlib.sha256(content).digest())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """A saved state, or None where its checksum is wrong.

    Its tensors are on the CPU, whatever device they were saved from: each `load_state_dict` moves what belongs on
    the device, which then never holds the state twice, and leaves what optimizers keep on the CPU there.
    """
    import torch

    content = path.read_bytes()
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def next_free(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on, whichever is not there yet."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def make_next(path: Path) -> Path:
    """An empty folder of the name of :func:`next_free`, which no other process takes meanwhile."""
    while True:
        free = next_free(path.parent, path.name)
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the run directory {free}: {error.strerror}") from None
        return free


@contextmanager
def deferred_interrupts(unit: str = "step") -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only set a flag, which the function given returns; a second one stops at once.

    Does nothing outside the main thread, where Python delivers no signals, and where the parent process ignores them.

    Raises:
        KeyboardInterrupt: at the end, if a signal came too late for the block to see it.
    """
    stop_requested = False

    def handle(number: int, frame: Any) -> None:
        nonlocal stop_requested
        if not stop_requested:
            stop_requested = True
            notice(
                f"stopping after this {unit} (interrupt again to stop at once, losing work since the last checkpoint)"
            )
            return
        before = earlier[signal.Signals(number)]
        if not callable(before):
            raise KeyboardInterrupt
        before(number, frame)

    earlier: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {n: signal.getsignal(n) for n in interrupts.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        for number in earlier:
            signal.signal(number, handle)
        yield lambda: stop_requested
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if stop_requested:
        raise KeyboardInterrupt
