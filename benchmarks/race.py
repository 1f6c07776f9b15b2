"""Contenders that take turns, each in a process of its own: time, memory and parts of the same work in one run."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.settings import Setting

# glibc then gives freed blocks back at once, so that what is resident is in use
TRIM = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


EXPECTED_SPEEDUP = 4  # to tell beforehand what would take too long


class DoesNotFit(Exception):
    """A contender that ended instead of answering: what it said last."""


class Process:
    """A contender in a process of its own; see :mod:`benchmarks.worker`."""

    def __init__(
        self, job: dict[str, Any], *, module: str = "benchmarks.worker", environment: dict[str, str] | None = None
    ):
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | (environment or {}),
        )

    def ask(self, order: str) -> Any:
        """The answer to an order.

        Raises:
            DoesNotFit: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(order, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if answer:
            return json.loads(answer)
        code = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        if code == -9:
            raise DoesNotFit("killed, probably for its memory")
        raise DoesNotFit(lines[-1] if lines else f"exit code {code}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "values": list(seconds)}


def turns(contenders: dict[str, Process], *, rounds: int, limit: float) -> dict[str, list[float]]:
    """Seconds of the steps of contenders that take turns: `rounds` each, fewer (two at least) after `limit` seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.monotonic()
    while len(done := next(iter(seconds.values()))) < rounds and (len(done) < 2 or time.monotonic() - start < limit):
        for name, contender in contenders.items():
            seconds[name].append(contender.ask("step")["seconds"])
    return seconds


def race(
    setting: Setting,
    *,
    folder: Path,
    runtime: dict[str, Any],
    rates: dict[str, Any],
    rounds: int,
    limit: float,
) -> dict[str, Any]:
    """A row: the plain reference against ncfmkit on one setting.

    Args:
        folder: where random pixels are kept for all rows.
        runtime: settings of ncfmkit's runtime.
        rates: of the machine, as `floor.measure_rates` gives them; `plain` is that of the reference, once known.
        rounds, limit: of :func:`turns`; a step that would take longer than `limit` by estimate is not run.
    """
    row: dict[str, Any] = {"setting": asdict(setting), "contenders": {}, "notes": []}
    work = floor.work(setting)
    expected = work.flops / rates.get("plain", rates["fp32"]["flops"] / 2)
    data = folder / f"{setting.side}-{setting.classes}-{setting.per_class}.npy"
    jobs = {
        "plain": {"contender": "plain", "runtime": {**runtime, "precision": "fp32", "compile": "off"}},
        "ncfmkit": {"contender": "ncfmkit", "runtime": runtime},
    }
    for name, seconds in (("plain", expected), ("ncfmkit", expected / EXPECTED_SPEEDUP)):
        if seconds > limit:
            row["notes"].append(f"{name} would take about {seconds:.0f} s a step, above --limit {limit:.0f}: not run")
            del jobs[name]
    contenders: dict[str, Process] = {}
    try:
        for name, job in jobs.items():
            process = Process({**job, "setting": asdict(setting), "data": str(data)})
            try:
                row["contenders"][name] = process.ask("about") | {"first_seconds": process.ask("step")["seconds"]}
                contenders[name] = process
            except DoesNotFit as error:
                process.close()
                row["notes"].append(f"{name} does not fit: {error}")
        try:
            _measure(row, contenders, rounds, limit)
        except DoesNotFit as error:
            row["notes"].append(f"does not fit: {error}")
    finally:
        for process in contenders.values():
            process.close()
    ours = row["contenders"].get("ncfmkit", {})
    if "seconds" in ours:
        row["floor_seconds"] = work.seconds(ours["precision"], rates)
        row["times_floor"] = ours["seconds"]["median"] / row["floor_seconds"]
        row["flops"] = work.flops
    plain = row["contenders"].get("plain", {})
    if "seconds" in plain:
        rates.setdefault("plain", work.flops / plain["seconds"]["median"])
        if "seconds" in ours:
            pairs = zip(plain["seconds"]["values"], ours["seconds"]["values"], strict=True)
            row["speedup"] = spread([a / b for a, b in pairs])
    return row


def _measure(row: dict[str, Any], contenders: dict[str, Process], rounds: int, limit: float) -> None:
    if not contenders:
        return
    for name, seconds in turns(contenders, rounds=rounds, limit=limit).items():
        row["contenders"][name]["seconds"] = spread(seconds)
    for name, process in contenders.items():
        row["contenders"][name]["memory"] = process.ask("memory")
        if name == "ncfmkit":
            row["contenders"][name]["parts"] = process.ask("parts")
        row["contenders"][name]["held_bytes"] = process.ask("held")["bytes"]
