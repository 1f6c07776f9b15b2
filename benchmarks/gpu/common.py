"""What the checks share: the device, the settings, timing, and ncfmkit's step as the benchmark runs it."""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import worker
from benchmarks.gpu.plan import SMALL
from benchmarks.settings import Setting

DEVICE = torch.device("cpu" if SMALL else "cuda")
OUT = Path(os.environ.get("NCFM_OUT", "."))  # what comes back from the machine
KEEP = Path(os.environ.get("NCFM_KEEP", "."))  # what later checks read
Result = dict[str, Any]

PAPER = Setting(name="CIFAR-10, IPC 10", real_batch=1024, sampler="learned")
TINY = Setting(
    name="tiny", side=8, classes=2, per_class=6, ipc=1, real_batch=4, frequencies=32, width=8, sampler="learned"
)
CIFAR100 = Setting(name="CIFAR-100, IPC 50", classes=100, per_class=500, ipc=50, real_batch=500)


def wait() -> None:
    if not SMALL:
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Median of some runs after three to warm up; on a GPU by events, so that the host's time does not count."""
    for _ in range(3):
        run()
    wait()
    if SMALL:
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for before, after in pairs:
        before.record()
        run()
        after.record()
    wait()
    return statistics.median(before.elapsed_time(after) for before, after in pairs)


def attempt(result: Result, name: str, run: Callable[[], Any]) -> None:
    """Puts what `run` finds into the result, or why it does not: one failure must not cost the rest."""
    try:
        result[name] = run()
    except Exception as error:
        result[name] = f"{type(error).__name__}: {str(error)[:300]}"
    if not SMALL:
        torch.cuda.empty_cache()


def say(result: Result) -> Result:
    """Prints a result as it is so far."""
    print(json.dumps(result, default=str), flush=True)
    return result


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Lets products of float32 matrices be computed in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def contender(
    setting: Setting = PAPER, *, precision: str = "bf16", compile: str = "on", budget: str | None = None
) -> worker.Contender:
    """ncfmkit's step of a setting on random pixels, as the benchmark runs it."""
    setting = dataclasses.replace(TINY, sampler=setting.sampler) if SMALL else setting
    runtime = {"device": DEVICE.type, "precision": precision, "memory_budget": None if SMALL else budget}
    runtime["compile"] = "off" if SMALL else compile
    data = str(setting.pixels(KEEP))
    job = {"setting": dataclasses.asdict(setting), "data": data, "contender": "ncfmkit", "runtime": runtime}
    return worker.Contender(job)


def steady(run: worker.Contender, seconds: float) -> Result:
    """First step, then the median and the least of the steps of some seconds, at least five."""
    first = run.step()["seconds"]
    run.step()
    if not SMALL:
        torch.cuda.reset_peak_memory_stats()
    taken: list[float] = []
    end = time.perf_counter() + (0 if SMALL else seconds)
    while len(taken) < 5 or time.perf_counter() < end:
        taken.append(run.step()["seconds"])
    times = {"ms": 1000 * statistics.median(taken), "least_ms": 1000 * min(taken), "steps": len(taken)}
    return {"first_seconds": first} | times | {"memory": run.memory(), "plan": run.about()["plan"]}
