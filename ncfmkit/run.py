"""A run directory: settings, metrics, checkpoints. Whatever is written appears whole or not at all."""

import hashlib
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ncfmkit.errors import UserError
from ncfmkit.files import write_atomic, write_json
from ncfmkit.progress import notice

KEPT_CHECKPOINTS = 2
REQUIRED_INFO = {"arguments", "baselines", "compile", "data", "device", "precision", "seed", "settings", "status"}
DIGEST_BYTES = 32  # sha256 of the rest, at the end of a checkpoint


class RunDirectory:
    """The files of one run under `path`."""

    def __init__(self, path: Path):
        self.path = path
        self.info_file = path / "run.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoint"

    @staticmethod
    def free(path: Path) -> None:
        """Checks that a new run may go to `path`.

        Raises:
            UserError: it holds a run or anything else.
        """
        if (path / "run.json").exists():
            raise UserError(f"{path} holds another run: go on with it by --resume {path}, or choose another --out")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there and not an empty folder: choose another --out")

    @classmethod
    def create(cls, path: Path, info: dict[str, Any]) -> "RunDirectory":
        """A new run directory with its `run.json`."""
        cls.free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run directory {path}: {error.strerror}") from None
        run = cls(path)
        write_json(run.info_file, info)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """A run directory that is there.

        Raises:
            UserError: there is none.
        """
        if not (path / "run.json").is_file():
            raise UserError(f"{path} is not a run directory: no run.json in it")
        return cls(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this process works in the run directory; the system lifts the lock of a process that is killed.

        Raises:
            UserError: another process works in it, or nothing can be written there.
        """
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"the run directory {self.path} is not writable")
        try:
            lock = FileLock(self.path / "lock").acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"another process works in {self.path}: wait until it ends, or stop it, and then pass --resume"
            ) from None
        with lock:
            yield

    def info(self) -> dict[str, Any]:
        try:
            info = json.loads(self.info_file.read_bytes())
        except ValueError as error:
            raise UserError(f"{self.info_file} is damaged: {error}") from None
        if not isinstance(info, dict) or not info.keys() >= REQUIRED_INFO:
            raise UserError(f"{self.info_file} is not what `ncfmkit distill` writes: expected {sorted(REQUIRED_INFO)}")
        return info

    def update(self, **changes: Any) -> None:
        """Sets keys of `run.json`."""
        write_json(self.info_file, self.info() | changes)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`."""
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.metrics_file}: {error.strerror}") from None

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.metrics_file) if self.metrics_file.exists() else []

    def cut_metrics(self, steps: int) -> list[dict[str, Any]]:
        """Drops what was logged after `steps` steps, as on resuming; returns what is left."""
        rows = [row for row in self.metrics() if row["step"] <= steps]
        write_atomic(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Saves the state of a step with its own checksum; the newest two are kept.

        Those of later steps were damaged, else the run would have gone on from there: they go.
        """
        import torch

        self.checkpoints.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_atomic(self._checkpoint(state["step"]), content + hashlib.sha256(content).digest())
        newest = self._checkpoint(state["step"])
        kept = [path for path in self._saved() if path <= newest][-KEPT_CHECKPOINTS:]
        for path in set(self._saved()) - set(kept):
            path.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that its checksum confirms, or None; damaged ones are named in a notice.

        Its tensors are on the CPU, whatever device they were saved from: each `load_state_dict` moves what belongs on
        the device, which then never holds the state twice, and leaves what optimizers keep on the CPU there.
        """
        import torch

        for path in reversed(self._saved()):
            content = path.read_bytes()
            body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
            if hashlib.sha256(body).digest() == digest:
                return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
            notice(f"{path.name} is damaged (its checksum is wrong): using the one before it")
        return None

    def steps_done(self) -> int:
        """Steps of the newest checkpoint; it is not read."""
        return max((int(path.stem.removeprefix("step-")) for path in self._saved()), default=0)

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.pt"

    def _saved(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def next_free(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on, whichever is not there yet."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only set a flag, which the function given tells; a second Ctrl-C stops at once.

    Does nothing outside the main thread, where Python delivers no signals.
    """
    stop_requested = False

    def handle(number: int, frame: Any) -> None:
        nonlocal stop_requested
        if stop_requested:
            raise KeyboardInterrupt
        stop_requested = True
        notice("stopping after this step (once more: at once, losing what came after the last checkpoint)")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_run(path: Path) -> dict[str, Any]:
    """`run.json` and, where there is one, `scores.json` of a run directory."""
    run = RunDirectory.open(path)
    scores = path / "scores.json"
    return run.info() | ({"scores": json.loads(scores.read_text(encoding="utf-8"))} if scores.exists() else {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line cut short by a crash is passed over, no file means no rows.

    Raises:
        UserError: a line before the last is not a JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError:
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number}: expected a JSON object, got {line[:60]!r}: mend or delete it"
            ) from None
        rows.append(row)
    return rows
