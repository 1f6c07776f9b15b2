"""One contender in a process of its own, which does what it is told line by line: `step`, `parts`, `held`, `memory`.

Started by :mod:`benchmarks.race` as `python -m benchmarks.worker JOB`, JOB being JSON. Each order on stdin is answered
by one line of JSON on stdout.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import floor, parts
from benchmarks.held import Held
from benchmarks.reference import Reference
from benchmarks.settings import Setting
from ncfmkit.config import DistillSettings, RuntimeSettings, Settings
from ncfmkit.distillation import Plan, distill_step, make_plan, make_problem, make_state
from ncfmkit.extractors import Pool
from ncfmkit.formats import one_file
from ncfmkit.jobs import finished_set
from ncfmkit.real import RealData, Split
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.sizes import parse_bytes
from ncfmkit.synthetic import initialise

PLAIN = RuntimeSettings(precision="fp32", compile="off")


def process_bytes(field: str) -> int:
    """A field of this process's status on Linux, such as `VmHWM` (the most that was resident) or `RssAnon`."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def memory(device: torch.device) -> dict[str, int | None]:
    """The most that this process has taken: resident on a CPU, allocated and reserved by torch on a GPU."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"resident": None, "allocated": allocated, "reserved": reserved}
    resident = process_bytes("VmHWM") if sys.platform == "linux" else None
    return {"resident": resident, "allocated": None, "reserved": None}


class Peak(threading.Thread):
    """The most anonymous resident memory, looked at every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = process_bytes("RssAnon")
        self._running = True

    def run(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, process_bytes("RssAnon"))
            time.sleep(0.002)

    def stop(self) -> int:
        self._running = False
        self.join()
        return self.bytes


def random_data(setting: Setting, file: Path) -> RealData:
    """Random pixels of the setting's shape, memory-mapped as a store is; written to `file` where it is not there."""
    shape = (setting.classes * setting.per_class, 3, setting.side, setting.side)
    if not file.exists():
        mine = file.with_name(f"{os.getpid()}.npy")  # another contender may be at it as well
        np.save(mine, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        mine.replace(file)
    offsets = np.arange(setting.classes + 1) * setting.per_class
    return RealData(
        name="random pixels",
        classes=tuple(f"class {c}" for c in range(setting.classes)),
        train=Split(np.load(file, mmap_mode="r"), offsets),
        test=None,
        size=setting.side,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.289,) * 3,
        fingerprint="",
        skipped=0,
    )


def random_pool(setting: Setting, members: int = 2) -> Pool:
    """Untrained extractors, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        states = [dict(floor.build(setting).named_parameters()) for _ in range(2 * members)]
    states = [{k: v.detach() for k, v in state.items()} for state in states]
    return Pool(key="", initial=states[:members], final=states[members:], accuracies=[None] * members, seconds=0.0)


class Contender:
    """The step of one implementation, `plain` or `ncfmkit`, on one setting."""

    def __init__(self, job: dict[str, Any]):
        self.setting = Setting(**job["setting"])
        wanted = RuntimeSettings(**job["runtime"])
        self.runtime: Runtime = choose_runtime(wanted)
        self.budget = parse_bytes(wanted.memory_budget) if wanted.memory_budget else None
        real = random_data(self.setting, Path(job["data"]))
        settings = DistillSettings(
            ipc=self.setting.ipc,
            real_batch=self.setting.real_batch,
            frequencies=self.setting.frequencies,
            sampler=self.setting.sampler,
        )
        self.problem = make_problem(
            real,
            settings,
            seed=0,
            pool=random_pool(self.setting),
            build=lambda: floor.build(self.setting),
            runtime=self.runtime,
            budget=self.budget,
        )
        images = initialise("mix", real, ipc=settings.ipc, factor=settings.factor, seed=0)
        self.state = make_state(self.problem, images)
        self.reference: Reference | None = None
        self.plan: Plan | None = None
        if job["contender"] == "plain":
            psi = list(self.state.psi.parameters()) if self.state.psi else None
            self.reference = Reference(self.problem, images, psi)
        elif job.get("plan"):
            self.plan = Plan(**job["plan"])
        else:
            self.plan = make_plan(self.problem, self.state, budget=self.budget)

    def _one_step(self) -> None:
        if self.reference is not None:
            self.reference.step(self.state.step)
            self.state.step += 1
        else:
            assert self.plan is not None
            distill_step(self.problem, self.state, self.plan)
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)

    def step(self) -> dict[str, Any]:
        """Seconds of one step."""
        start = time.perf_counter()
        self._one_step()
        return {"seconds": time.perf_counter() - start}

    def about(self) -> dict[str, Any]:
        return {
            "precision": self.runtime.precision,
            "compiled": self.runtime.compile and self.reference is None,
            "plan": vars(self.plan) if self.plan else None,
        }

    def rates(self) -> dict[str, Any]:
        """What the machine does, in this contender's precision."""
        return floor.measure_rates(self.runtime.device, (self.runtime.precision,))

    def parts(self) -> dict[str, float]:
        assert self.plan is not None
        return parts.split(self.problem, self.state, self.plan)

    def held(self) -> dict[str, int]:
        """The most bytes that autograd held in a step."""
        return {"bytes": Held().watch(self._one_step).peak}

    def memory(self) -> dict[str, int | None]:
        return memory(self.runtime.device)

    def working(self) -> dict[str, int]:
        """What a step takes beyond what stays between steps, and what stays of the images."""
        stored = 4 * self.state.images.nbytes  # with gradient and two moments
        if self.runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.runtime.device)
            before = torch.cuda.memory_allocated(self.runtime.device)
            self._one_step()
            return {"bytes": torch.cuda.max_memory_allocated(self.runtime.device) - before, "stored": stored}
        before = process_bytes("RssAnon")
        peak = Peak()
        peak.start()
        self._one_step()
        return {"bytes": peak.stop() - before, "stored": stored}

    def file(self) -> dict[str, int]:
        """Bytes of the set as it is shipped."""
        settings = Settings(distill=self.problem.settings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / one_file.FILE_NAME
            one_file.save(finished_set(settings, self.problem.real, self.state.images), path)
            return {"bytes": path.stat().st_size}

    def images(self) -> dict[str, list[float]]:
        """The stored images, to compare."""
        images = self.state.images if self.reference is None else torch.cat(self.reference.images)
        return {"values": images.detach().flatten().tolist()}


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Makes what the job says, then calls its methods as the lines on stdin name them."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed must not be taken for an answer
    contender = make(json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(getattr(contender, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    serve(Contender)
