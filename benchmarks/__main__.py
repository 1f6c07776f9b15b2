"""Measures ncfmkit against a plain reference and against the machine, in one run.

    python -m benchmarks                        # everything; 40 minutes on 4 CPU cores
    python -m benchmarks --only step --match "IPC 10" --memory-budget 512MiB
    python -m benchmarks --device cuda --json benchmarks/results/DATE-cuda.json --plot growth.png
    python -m benchmarks.page                   # docs/performance.md from benchmarks/results/

Contenders of a row take turns, each in a process of its own. What does not fit the machine is said in its row.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import checkout, floor, page
from benchmarks.race import TRIM, Ended, Process, race, spread, turns
from benchmarks.settings import AXES, STEPS, Setting, along
from benchmarks.training import EPOCHS, POOL_IMAGES
from ncfmkit.config import RuntimeSettings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.files import parse_bytes
from ncfmkit.progress import notice, track
from ncfmkit.runtime import choose_runtime, device_name, versions

KINDS = ("step", "growth", "pool", "students", "agreement")
CIFAR10 = Setting(name="CIFAR-10, IPC 10")
GROWTH_PLAN = {
    "chunk": 40,
    "kept_graphs": 1,
    "classes_per_batch": 10_000,
}  # what IPC 1 decodes to, so that every setting fills it
AGREEMENT_STEPS = 20


class Bench:
    """Everything that is measured in one run."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.runtime = {"device": options.device, "precision": options.precision, "compile": options.compile}
        self.runtime["memory_budget"] = options.memory_budget
        chosen = choose_runtime(RuntimeSettings(**self.runtime))
        self.device, self.precision = chosen.device, chosen.precision
        self.rates: dict[str, Any] = floor.measure_rates(chosen.device, (chosen.precision,))
        self.plain = {"device": options.device, "precision": "fp32", "compile": "off"}

    def _job(self, setting: Setting, **job: Any) -> dict[str, Any]:
        data = str(setting.pixels(self.folder))
        return {"setting": asdict(setting), "data": data, "runtime": self.runtime, "contender": "ncfmkit"} | job

    def step(self) -> list[dict[str, Any]]:
        """Every setting: the plain reference against ncfmkit; one of them in the reference's float32, too."""
        contests = [(s, self.runtime) for s in STEPS if self.options.match in s.name]
        if self.precision != "fp32":
            exact = self.runtime | {"precision": "fp32"}
            contests += [(s, exact) for s, _ in contests if s == CIFAR10]
        rows: list[dict[str, Any]] = []
        plain_rate = None
        with track("steps", len(contests)) as bar:
            for setting, runtime in contests:
                row = race(
                    setting,
                    folder=self.folder,
                    runtimes={"plain": self.plain, "ncfmkit": runtime},
                    device=self.device,
                    rates=self.rates,
                    plain_rate=plain_rate,
                    rounds=self.options.rounds,
                    limit=self.options.limit,
                )
                if seconds := row["contenders"].get("plain", {}).get("seconds"):
                    plain_rate = row["flops"] / seconds["median"]
                rows.append(row)
                bar.advance(note=page.step_line(row))
        return rows

    def growth(self) -> dict[str, Any]:
        """Time at the default plan; memory at one chunk in float32, uncompiled, with freed blocks given back."""
        found: dict[str, Any] = {}
        with track("growth", sum(map(len, AXES.values()))) as bar:
            for axis in AXES:
                rows = []
                for setting in along(axis):
                    rows.append(self._point(setting, getattr(setting, axis)))
                    bar.advance(note=f"{axis} {rows[-1]['value']}")
                done = [r for r in rows if "seconds" in r]
                found[axis] = {
                    "rows": rows,
                    "exponents": {
                        key: page.exponent([r["value"] for r in done], [r[key] for r in done])
                        for key in ("seconds", "working_bytes", "held_bytes", "file_bytes")
                    },
                }
        return found

    def _point(self, setting: Setting, value: int) -> dict[str, Any]:
        row: dict[str, Any] = {"value": value, "setting": asdict(setting)}
        try:
            with Process(self._job(setting)) as timed:
                timed.ask("step")
                row["seconds"] = spread([timed.ask("step")["seconds"] for _ in range(3)])["median"]
                row["file_bytes"] = timed.ask("file")["bytes"]
            with Process(self._job(setting, runtime=self.plain, plan=GROWTH_PLAN), environment=TRIM) as watched:
                watched.ask("step")
                working = watched.ask("working")
                row |= {"working_bytes": working["bytes"], "stored_bytes": working["stored"]}
                row["held_bytes"] = watched.ask("held")["bytes"]
        except Ended as error:
            row.pop("seconds", None)
            row["note"] = str(error)
        return row

    def _training(self, kind: str, contenders: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Turns of contenders of `benchmarks.training`: `rows` by name, and `notes`."""
        processes: dict[str, Process] = {}
        rows: dict[str, Any] = {}
        notes = []
        with ExitStack() as running, track(kind, len(contenders) + 1) as bar:
            for name, job in contenders.items():
                job = {"kind": kind, "setting": asdict(CIFAR10), "together": False, "runtime": self.runtime} | job
                process = running.enter_context(Process(job, module="benchmarks.training"))
                try:
                    about = process.ask("about")
                    if about["together"] == 1 and job["together"]:
                        notes.append("on this device students of this size are trained one after another")
                        continue
                    process.ask("step")
                    processes[name], rows[name] = process, about
                except Ended as error:
                    notes.append(f"{name} {error}")
                bar.advance()
            seconds, ended = turns(processes, rounds=self.options.rounds, limit=3 * self.options.limit)
            notes += ended
            for name, values in seconds.items():
                rows[name] |= {"seconds": spread(values), "memory": processes[name].ask("memory")}
                rows[name]["test_seconds"] = processes[name].ask("test_seconds")["seconds"]
            bar.advance()
        return {"rows": rows, "notes": notes}

    def pool(self) -> dict[str, Any]:
        """Training a pool member."""
        found = self._training("pool", {"eager float32": {"runtime": self.plain}, "ncfmkit": {}})
        for row in found["rows"].values():
            if "seconds" in row:
                row["images_per_second"] = POOL_IMAGES / row["seconds"]["median"]
        return found

    def students(self) -> dict[str, Any]:
        """10 repeats of 2000 epochs, from a few epochs and one test."""
        found = self._training(
            "students",
            {
                "eager float32, one after another": {"runtime": self.plain},
                "ncfmkit, one after another": {},
                "ncfmkit, together": {"together": True},
            },
        )
        s = StudentSettings()
        for row in found["rows"].values():
            if "seconds" in row:
                epochs = s.epochs / EPOCHS * row["seconds"]["median"]
                row["ten_repeats_seconds"] = s.repeats * (epochs + s.evaluations * row["test_seconds"])
        return found

    def agreement(self) -> dict[str, Any]:
        """The largest difference of the images after 20 steps, float32, ncfmkit as it runs against the reference."""
        setting = dataclasses.replace(CIFAR10, real_batch=64)
        exact = self.runtime | {"precision": "fp32"}
        with (
            Process(self._job(setting, runtime=exact)) as ours,
            Process(self._job(setting, runtime=self.plain, contender="plain")) as plain,
            track("agreement", AGREEMENT_STEPS) as bar,
        ):
            about = ours.ask("about")
            for _ in range(AGREEMENT_STEPS):
                ours.ask("step")
                plain.ask("step")
                bar.advance()
            a, b = (np.array(p.ask("images")["values"]) for p in (ours, plain))
        difference = np.abs(a - b)
        return about | {
            "steps": AGREEMENT_STEPS,
            "setting": asdict(setting),
            "largest": float(difference.max()),
            "mean": float(difference.mean()),
            "share_above": float((difference > 1e-4).mean()),
        }


def about(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": checkout.commit(),
        "device": device_name(device),
        "versions": versions(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(KINDS), help="what to measure, of " + ",".join(KINDS))
    parser.add_argument("--match", default="", help="only step settings with this in their name")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--memory-budget", help="of ncfmkit's steps, such as 512MiB")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--limit", type=float, default=25, help="seconds for the turns of a row, and for one step")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plot", type=Path, help="where to draw growth and speed, a .png")
    options = parser.parse_args()
    kinds = options.only.split(",")
    try:
        if unknown := [k for k in kinds if k not in KINDS]:
            raise UserError(f"--only {unknown[0]!r}: expected some of {','.join(KINDS)}")
        if options.device.startswith("mps"):
            raise UserError("--device mps: the benchmark measures cpu and cuda alone")
        if options.rounds < 2:
            raise UserError(f"--rounds {options.rounds}: expected 2 or more")
        if options.memory_budget:
            parse_bytes(options.memory_budget)
        for flag, path in (("--json", options.json), ("--plot", options.plot)):
            if path and not path.parent.is_dir():
                raise UserError(f"{flag} {path}: there is no folder {path.parent}")
        if options.plot and "growth" not in kinds:
            raise UserError("--plot draws the growth: add growth to --only")
        if "step" in kinds and not any(options.match in s.name for s in STEPS):
            raise UserError(f"--match {options.match!r}: no setting has it in its name")
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, Path(folder))
            result: dict[str, Any] = {"about": about(bench.device), "rates": bench.rates, "options": _said(options)}
            for kind in kinds:
                try:
                    result[kind] = getattr(bench, kind)()
                except Ended as error:
                    notice(f"{kind}: {error}")
                if options.json:  # after every kind, so that an interruption loses little
                    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except UserError as error:
        notice(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        notice("interrupted" + (f": {options.json} has what was measured so far" if options.json else ""))
        return 130
    print(page.tables(result))
    if options.plot:
        page.draw(result, options.plot)
    return 0


def _said(options: argparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(options).items() if k not in ("json", "plot")}


if __name__ == "__main__":
    sys.exit(main())
