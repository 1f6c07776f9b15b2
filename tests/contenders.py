"""Contenders of the benchmark on a tiny setting."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks import race, training, worker
from benchmarks.settings import Setting

TINY = Setting(name="tiny", side=8, classes=2, per_class=6, ipc=1, real_batch=4, frequencies=32, width=8)
EAGER = {"device": "cpu", "precision": "fp32", "compile": "off"}


def contender(tmp_path: Path, kind: str = "ncfmkit", **changes) -> worker.Contender:
    setting = dataclasses.replace(TINY, **changes)
    job = {"setting": dataclasses.asdict(setting), "runtime": EAGER, "data": str(setting.pixels(tmp_path))}
    return worker.Contender(job | {"contender": kind})


class Here:
    """Answers as a `race.Process` does, in this process: importing torch takes longer than all that is asked here."""

    def __init__(self, job: dict[str, Any], *, module: str = "benchmarks.worker", environment: object = None):
        self._job = json.loads(json.dumps(job))
        self._make: Any = {"benchmarks.worker": worker.Contender, "benchmarks.training": training.Trainer}[module]
        self._made: Any = None

    def ask(self, order: str) -> Any:
        try:
            self._made = self._made or self._make(self._job)
            return json.loads(json.dumps(getattr(self._made, order)()))
        except Exception as error:
            raise race.Ended(race.why(1, f"{type(error).__name__}: {error}")) from None

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass


RATES = {"fp32": {"flops": 1e11, "copy_bytes": 1e10}}
ABOUT = {"device": "cpu (x)", "versions": {"torch": "2", "python": "3"}, "commit": "abc", "date": "2026-01-01"}
