"""Contenders that take turns, each in a process of its own: time, memory and parts of the same work in one run."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor
from benchmarks.checkout import ROOT
from benchmarks.settings import Setting
from ncfmkit.exporters.turns import Ended, take_turns

# glibc then gives freed blocks back at once, so that what is resident is in use
TRIM = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
BATCHES = {"cpu": (16, 64), "cuda": (1024,), "mps": (64,)}  # at which convolutions are measured, beside the plan's own
EXPECTED_SPEEDUP = 4  # to tell beforehand what would take too long


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
            cwd=ROOT,
            env=os.environ | (environment or {}),
        )

    def ask(self, order: str) -> Any:
        """The answer to an order.

        Raises:
            Ended: there is none, because the process ended.
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
        raise Ended(why(code, lines[-1] if lines else ""))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def why(code: int, last_line: str) -> str:
    """Why a process ended, from its exit code and the last line that it wrote."""
    text = re.sub(r"(/[\w.+-]+){2,}", "...", re.sub(r"^[\w.]+(Error|Exception): ", "", last_line))
    if code == -9:
        return "does not fit: killed, probably for its memory"
    if "memory" in text.lower():
        return f"does not fit: {text}"
    return f"failed: {text or f'exit code {code}'}"


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "values": list(seconds)}


def turns(contenders: dict[str, Process], *, rounds: int, limit: float) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of the steps of contenders that take turns, and notes of those that ended, which are left out.

    Args:
        contenders: by name.
        rounds: steps of each.
        limit: seconds after which two rounds must do.
    """
    start = time.monotonic()

    def step(process: Process) -> list[float]:
        return [process.ask("step")["seconds"]]

    def another(seconds: dict[str, list[float]]) -> bool:
        done = len(next(iter(seconds.values())))
        return done < rounds and (done < 2 or time.monotonic() - start <= limit)

    seconds, ended = take_turns({name: partial(step, p) for name, p in contenders.items()}, go_on=another)
    return seconds, [f"{name} {reason}" for name, reason in ended.items()]


def race(
    setting: Setting,
    *,
    folder: Path,
    runtimes: dict[str, dict[str, Any]],
    device: torch.device,
    rates: dict[str, Any],
    plain_rate: float | None,
    rounds: int,
    limit: float,
) -> dict[str, Any]:
    """A row: the plain reference against ncfmkit on one setting.

    Args:
        folder: where random pixels are kept for all rows.
        runtimes: runtime settings of `plain` and of `ncfmkit`.
        device: that ncfmkit runs on.
        rates: of the machine, as `floor.measure_rates` gives them.
        plain_rate: operations per second of the reference, once known, to tell what would take too long.
        rounds, limit: of :func:`turns`; a step that would take longer than `limit` by estimate is not run.
    """
    row: dict[str, Any] = {"setting": asdict(setting), "contenders": {}, "notes": []}
    work = floor.work(setting)
    row["flops"] = work.flops
    expected = work.flops / (plain_rate or rates["fp32"]["flops"] / 2)
    with ExitStack() as running:
        contenders: dict[str, Process] = {}
        for name, seconds in (("plain", expected), ("ncfmkit", expected / EXPECTED_SPEEDUP)):
            if seconds > limit:
                row["notes"].append(
                    f"{name} not run: a step would take about {seconds:.0f} s, above --limit {limit:.0f}"
                )
                continue
            data = str(setting.pixels(folder))
            job = {"setting": asdict(setting), "data": data, "contender": name, "runtime": runtimes[name]}
            contenders[name] = running.enter_context(Process(job))
        _measure(row, contenders, rounds, limit)
    plain, ours = (row["contenders"].get(name, {}).get("seconds") for name in ("plain", "ncfmkit"))
    if ours:
        row["floor_seconds"] = work.seconds(row["contenders"]["ncfmkit"]["precision"], rates)
        row["times_floor"] = ours["median"] / row["floor_seconds"]
        how = row["contenders"]["ncfmkit"]
        batches = sorted({*BATCHES[device.type], how["plan"]["chunk"]})
        row["convolution_seconds"] = floor.convolution_seconds(setting, device, how["precision"], batches=batches)
    if plain and ours:
        row["speedup"] = spread([a / b for a, b in zip(plain["values"], ours["values"], strict=True)])
    return row


def _measure(row: dict[str, Any], contenders: dict[str, Process], rounds: int, limit: float) -> None:
    """Fills in what each contender has to say, for as long as it goes on."""
    found = row["contenders"]

    def ask(name: str, order: str) -> Any:
        try:
            return contenders[name].ask(order)
        except Ended as error:
            row["notes"].append(f"{name} {error}")
            del contenders[name]
            return None

    for name in list(contenders):
        about = ask(name, "about")
        first = about and ask(name, "step")
        if first:
            found[name] = about | {"first_seconds": first["seconds"]}
    seconds, notes = turns(contenders, rounds=rounds, limit=limit)
    row["notes"] += notes
    for name, values in seconds.items():
        found[name]["seconds"] = spread(values)
        for order in ("memory", "parts", "held"):
            if name in contenders and (order != "parts" or name == "ncfmkit"):
                found[name][order] = ask(name, order)
