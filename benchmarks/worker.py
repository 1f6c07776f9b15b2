"""One contender in a process of its own, which does what it is told line by line: a line names a method.

Started by :mod:`benchmarks.race` as `python -m benchmarks.worker JOB`, JOB being JSON. Each order on stdin is answered
by one line of JSON on stdout.
"""

import dataclasses
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
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import Plan, make_plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import make_problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.files import parse_bytes
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import finished_set

LINUX = sys.platform == "linux"


def process_bytes(field: str) -> int:
    """A field of this process's status, such as `VmHWM` (the most that was resident) or `RssAnon`; on Linux alone."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def memory(device: torch.device) -> dict[str, int | None]:
    """Bytes, the most that this process has taken: resident on a CPU, allocated and reserved by torch on a GPU.

    Of what is resident, `mapped` are files (libraries, real images), which the system takes back when it needs to.
    """
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"resident": None, "mapped": None, "allocated": allocated, "reserved": reserved}
    resident, mapped = (process_bytes(f) if LINUX else None for f in ("VmHWM", "RssFile"))
    return {"resident": resident, "mapped": mapped, "allocated": None, "reserved": None}


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
    """The pixels that `Setting.pixels` wrote, memory-mapped as a store is."""
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
        networks = [floor.build(setting) for _ in range(2 * members)]
    states = [{k: v.detach() for k, v in network.named_parameters()} for network in networks]
    return Pool(
        key="",
        stages=[list(ends) for ends in zip(states[:members], states[members:], strict=True)],
        accuracies=[None] * members,
        seconds=0.0,
    )


class Contender:
    """The step of one implementation, `plain` or `ncfmkit`, on one setting."""

    def __init__(self, job: dict[str, Any]):
        self.setting = Setting(**job["setting"])
        wanted = RuntimeSettings(**job["runtime"])
        self.runtime: Runtime = choose_runtime(wanted)
        budget = parse_bytes(wanted.memory_budget) if wanted.memory_budget else None
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
            builds=[lambda: floor.build(self.setting)],
            runtime=self.runtime,
            budget=budget,
        )
        images = initialize("mix", real, ipc=settings.ipc, factor=settings.factor, seed=0)
        self.steps = 0
        self.reference: Reference | None = None
        self.plan: Plan | None = None
        state = make_state(self.problem, images)
        if job["contender"] == "plain":
            # it reads real images where they are, and has images and psi of its own: nothing else is kept
            self.problem = dataclasses.replace(self.problem, train_images=real.train.images)
            self.reference = Reference(self.problem, images, list(state.psi.parameters()) if state.psi else None)
        else:
            self.state = state
            self.plan = Plan(**job["plan"]) if "plan" in job else make_plan(self.problem, state, budget=budget)

    def launch(self) -> None:
        """One step, which a GPU may not have made yet."""
        if self.reference is not None:
            self.reference.step(self.steps)
        else:
            assert self.plan is not None
            distill_step(self.problem, self.state, self.plan)
        self.steps += 1

    def _one_step(self) -> None:
        self.launch()
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)

    def step(self) -> dict[str, Any]:
        """Seconds of one step."""
        start = time.perf_counter()
        self._one_step()
        return {"seconds": time.perf_counter() - start}

    def about(self) -> dict[str, Any]:
        """How it runs."""
        return {
            "precision": self.runtime.precision,
            "compiled": self.runtime.compile and self.reference is None,
            "plan": vars(self.plan) if self.plan else None,
        }

    def parts(self) -> dict[str, float]:
        """Seconds of one step by part; of ncfmkit alone."""
        assert self.plan is not None
        return parts.split(self.problem, self.state, self.plan)

    def held(self) -> dict[str, int]:
        """The most bytes that autograd held in a step."""
        return {"bytes": Held().watch(self._one_step).peak}

    def memory(self) -> dict[str, int | None]:
        return memory(self.runtime.device)

    def working(self) -> dict[str, int | None]:
        """Bytes that a step takes beyond what stays between steps, and what stays of the images; of ncfmkit alone."""
        stored = 4 * self.state.images.nbytes  # with gradient and two moments
        if self.runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.runtime.device)
            before = torch.cuda.memory_allocated(self.runtime.device)
            self._one_step()
            return {"bytes": torch.cuda.max_memory_allocated(self.runtime.device) - before, "stored": stored}
        if not LINUX:
            return {"bytes": None, "stored": stored}
        before = process_bytes("RssAnon")
        peak = Peak()
        peak.start()
        self._one_step()
        return {"bytes": peak.stop() - before, "stored": stored}

    def file(self) -> dict[str, int]:
        """Bytes of the set as it is shipped."""
        settings = Settings(distill=self.problem.settings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / set_file.FILE_NAME
            set_file.save(finished_set(settings, self.problem.real, self.state.images), path)
            return {"bytes": path.stat().st_size}

    def images(self) -> dict[str, list[float]]:
        """The stored images, to compare."""
        images = self.state.images if self.reference is None else torch.cat(self.reference.images)
        return {"values": images.detach().flatten().tolist()}


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Makes what the job says, then calls its methods as the lines on stdin name them."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed, by libraries and their processes too, must not be taken for an answer
    contender = make(json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(getattr(contender, line.strip())()), file=answers, flush=True)


if __name__ == "__main__":
    serve(Contender)
