"""The checks, each in a process of its own: `python -m benchmarks.gpu.checks NAME [key=value ...]`.

The last line of stdout that is JSON is the result; an earlier one stands where a check dies half way. Whatever a check
measures in several ways is tried one by one, and what fails is said in its place. With NCFM_CPU=1 every check runs on
the CPU in miniature: its figures mean nothing, but that it runs at all.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks import floor, worker
from benchmarks.gpu.common import (
    CIFAR100,
    DEVICE,
    KEEP,
    OUT,
    PAPER,
    TINY,
    Result,
    attempt,
    contender,
    milliseconds,
    say,
    steady,
    tf32,
    wait,
)
from benchmarks.gpu.kernels import kernels, norm_pool, real_side
from benchmarks.gpu.plan import SMALL
from ncfmkit.runtime import compiler_missing, device_name, versions


def machine() -> Result:
    """What the machine is: GPU, driver, compilers, versions, what compilation lacks."""
    query = "--query-gpu=name,driver_version,memory.total,memory.used,clocks.sm,power.draw"
    smi = ["nvidia-smi", query, "--format=csv"]
    result: Result = {
        "device": device_name(DEVICE),
        "versions": versions() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "cpus": os.cpu_count(),
        "compilers": {name: shutil.which(name) for name in ("gcc", "g++", "clang++", "nvcc")},
        "compiler_missing": compiler_missing(DEVICE),
    }
    attempt(result, "nvidia-smi", lambda: subprocess.run(smi, capture_output=True, text=True, check=True).stdout)
    if not SMALL:
        result |= {"properties": str(torch.cuda.get_device_properties(0)), "free": torch.cuda.mem_get_info()}
    return result


def rates() -> Result:
    """How fast the machine multiplies, copies, uploads and launches."""
    side = 128 if SMALL else 8192
    result: Result = {}
    for name, dtype, allow in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        with tf32(allow):
            a = torch.randn(side, side, device=DEVICE).to(dtype)
            result[f"{name}, TFLOP/s"] = 2 * side**3 / milliseconds(partial(torch.matmul, a, a), 10) / 1e9
    source = torch.zeros(2**12 if SMALL else 2**29, device=DEVICE)
    target = torch.empty_like(source)
    result["copy, TB/s read and written"] = 2 * source.nbytes / milliseconds(lambda: target.copy_(source), 10) / 1e9
    pageable = torch.randn(10240, 9)
    zeros = torch.zeros(8, device=DEVICE)
    hosts: dict[str, Callable[[], Any]] = {
        "blocking copy of 360 KB, us": lambda: pageable.to(DEVICE),
        "launch, us": lambda: zeros.add_(1),
    }
    if not SMALL:
        pinned = pageable.pin_memory()
        hosts["pinned copy of 360 KB that does not block, us"] = lambda: pinned.to(DEVICE, non_blocking=True)
    for name, run in hosts.items():
        run()
        wait()
        start = time.perf_counter()
        for _ in range(500):
            run()
        host = time.perf_counter() - start
        wait()
        result[name] = {"host": host / 500 * 1e6, "with the device": (time.perf_counter() - start) / 500 * 1e6}
    return result


def step(
    precision: str = "bf16",
    compile: str = "on",
    chunk: int | None = None,
    allow_tf32: bool | None = None,
    half_norms: bool = False,
    profile: bool = False,
) -> Result:
    """A step at the paper's setting: seconds, memory, plan; where the time goes.

    Args:
        chunk: images at once, instead of the plan's.
        allow_tf32: float32 products in TF32; None: as ncfmkit chooses.
        half_norms: norms in bfloat16, which autocast sends to float32.
        profile: kernels and host calls by time in profile.json, and the step's parts.
    """
    plain = torch.nn.GroupNorm.forward

    def half(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)

    run = contender(precision=precision, compile=compile)
    assert run.plan is not None
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32 if allow_tf32 is None else allow_tf32
    with tf32(allow_tf32), mock.patch.object(torch.nn.GroupNorm, "forward", half if half_norms else plain):
        run.plan.chunk = chunk or run.plan.chunk
        result = say(steady(run, 5))
        start = time.perf_counter()
        for _ in range(20):
            run.launch()
        launched = time.perf_counter() - start
        wait()
        result |= {"host_ms": 1000 * launched / 20, "ms_without_waits": 1000 * (time.perf_counter() - start) / 20}
        if profile:
            attempt(result, "profile", lambda: _profile(run))
            attempt(result, "parts, s", run.parts)
    return result


def _profile(run: worker.Contender) -> Result:
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + ([] if SMALL else [ProfilerActivity.CUDA])
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(2):
            run.step()
    rows = [
        {
            "name": event.key[:90],
            "calls": event.count / 2,
            "device_ms": event.self_device_time_total / 2000,
            "host_ms": event.self_cpu_time_total / 2000,
            "kernel": event.device_type == torch.autograd.DeviceType.CUDA,  # else its kernels count once more
        }
        for event in profiler.key_averages()
    ]
    by_time = {side: sorted(rows, key=lambda row: -row[side])[:60] for side in ("device_ms", "host_ms")}
    (OUT / "profile.json").write_text(json.dumps(by_time, indent=1) + "\n", encoding="utf-8")
    return {
        "device_busy_ms": sum(row["device_ms"] for row in rows if row["kernel"]),
        "launches": sum(row["calls"] for row in rows if "LaunchKernel" in row["name"]),
        "waits": sum(row["calls"] for row in rows if "Synchronize" in row["name"]),
    }


def training() -> Result:
    """Students: one after another against ten together, and what a replayed graph of one would take."""
    from ncfmkit.config import RuntimeSettings, StudentSettings
    from ncfmkit.images import LabeledImages
    from ncfmkit.progress import track
    from ncfmkit.runtime import choose_runtime
    from ncfmkit.training import StackedModels, fresh_state, train

    result: Result = {}
    setting = TINY if SMALL else PAPER
    build = lambda: floor.build(setting)  # noqa: E731
    shape = (400, 3, setting.side, setting.side)
    data = LabeledImages(
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        labels=torch.arange(400) % setting.classes,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        classes=setting.classes,
    )
    runtime = choose_runtime(RuntimeSettings(device=DEVICE.type, precision="bf16", compile="off" if SMALL else "on"))
    epochs = 1 if SMALL else 5
    settings = StudentSettings(epochs=epochs)

    def together(size: int) -> Result:
        models = StackedModels(build, size, runtime)
        models.load([fresh_state(build, 0, "student", k) for k in range(size)])
        seconds = []
        with track("", 2 * epochs * size) as bar:
            for _ in range(2):  # the first compiles
                start = time.perf_counter()
                train(models, [data] * size, settings, seed=0, keys=range(size), bar=bar)
                wait()
                seconds.append(time.perf_counter() - start)
        ms = 1000 * seconds[1] / epochs / 4  # an epoch has 4 batches
        return {"first_seconds": seconds[0], "ms a batch": ms, "ms a batch and student": ms / size}

    for size in (1, 10):
        attempt(result, f"{size} together", partial(together, size))
    if not SMALL:
        attempt(result, "one, batch 128, no augmentation", _replayed_training)
    return result


def _replayed_training() -> Result:
    network = floor.build(PAPER).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = torch.tensor(0.01, device=DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, fused=True)
    x, target = torch.randn(128, 3, 32, 32, device=DEVICE), torch.rand(128, 10, device=DEVICE)
    forward = torch.compile(network)

    def batch() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(x)
        F.cross_entropy(logits.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            batch()
    torch.cuda.current_stream().wait_stream(side)
    compiled = milliseconds(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch()
    return {"compiled, ms": compiled, "replayed, ms": milliseconds(graph.replay)}


def same_bytes() -> Result:
    """Two runs of the same steps in one process, and a digest to compare between processes."""
    digests = []
    for _ in range(2):
        run = contender()
        for _ in range(3):
            run.step()
        digests.append(_digest(run))
    return {"digests": digests, "same": len(set(digests)) == 1}


def resume() -> Result:
    """Six steps at once against three, a checkpoint, and three more."""
    from ncfmkit.run import read_checkpoint, write_checkpoint

    whole = contender()
    for _ in range(6):
        whole.step()
    first = contender()
    for _ in range(3):
        first.step()
    write_checkpoint(KEEP / "resumed.pt", first.state.state_dict())
    second, stored = contender(), read_checkpoint(KEEP / "resumed.pt")
    assert stored is not None
    second.state.load_state_dict(stored)
    for _ in range(3):
        second.step()
    digests = [_digest(run) for run in (whole, second)]
    return {"digests": digests, "same": len(set(digests)) == 1}


def _digest(run: worker.Contender) -> str:
    return hashlib.sha256(run.state.images.detach().cpu().numpy().tobytes()).hexdigest()[:16]


def out_of_memory() -> Result:
    """A step that runs out of memory halves its chunks and goes on, with the result of one that has room."""
    roomy, tight = contender(compile="off"), contender(compile="off")
    assert tight.plan is not None
    before = tight.plan.chunk
    roomy.step()
    with _small_cpu(tight, before) if SMALL else nullcontext():
        if not SMALL:
            torch.cuda.empty_cache()
            room = torch.cuda.memory_allocated() + 2**30
            torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
        tight.step()
    if not SMALL:
        torch.cuda.set_per_process_memory_fraction(1.0)
    difference = (roomy.state.images - tight.state.images).detach().abs().max()
    return {"chunk before": before, "chunk after": tight.plan.chunk, "largest difference": float(difference)}


@contextmanager
def _small_cpu(run: worker.Contender, chunk: int) -> Iterator[None]:
    """A CPU on which a chunk of that many images runs out of memory."""
    call = type(run.problem.architecture.features).__call__

    def limited(network: Any, x_NCHW: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if run.plan is not None and run.plan.chunk >= chunk:
            raise torch.OutOfMemoryError("on purpose")
        return call(network, x_NCHW, *args, **more)

    with mock.patch.object(type(run.problem.architecture.features), "__call__", limited):
        yield


def memory_budget() -> Result:
    """CIFAR-100's shape at IPC 50 with a budget of 512 MiB and without: the most that was allocated, and the time."""
    result: Result = {}
    for budget in ("512MiB", None):

        def run(budget: str | None = budget) -> Result:
            if not SMALL:
                torch.cuda.reset_peak_memory_stats()
            return steady(contender(CIFAR100, budget=budget), 8)

        attempt(result, budget or "no budget", run)
        say(result)
    return result


def store() -> Result:
    """The store of the real data, from the files that are there."""
    from ncfmkit.config import DataSettings
    from ncfmkit.real.opening import open_real

    start = time.perf_counter()
    real = open_real(_data(), DataSettings() if SMALL else DataSettings(size=32, color="rgb"))
    counts = {"train": len(real.train.images), "test": len(real.test.images) if real.test else 0}
    return {"seconds": time.perf_counter() - start, "mean": real.mean} | counts


def _data() -> str:
    return "digits" if SMALL else str(KEEP / "data")


def cifar10(recipe: str = "cifar10-ipc10-gpu") -> Result:
    """The main job from end to end, scored beside random real images: accuracy, seconds, peak memory."""
    import ncfmkit

    shutil.rmtree(KEEP / "run", ignore_errors=True)
    settings: Result = {}
    if SMALL:
        recipe = "digits"
        settings = {"steps": 3, "pool.members": 1, "pool.epochs": 1, "repeats": 1, "student.epochs": 2}
        settings |= {"device": "cpu", "compile": "off", "width": 8}
    start = time.perf_counter()
    ncfmkit.distill(_data(), recipe=recipe, out=KEEP / "run", baselines=["random"], **settings)
    result: Result = {"seconds": time.perf_counter() - start, "memory": worker.memory(DEVICE)}
    for name in ("run", "scores"):
        result[name] = json.loads((KEEP / "run" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("metrics.jsonl", "synthetic.safetensors"):
        shutil.copy(KEEP / "run" / name, OUT / name)
    return result


def onnxruntime() -> Result:
    """Which providers ONNX Runtime lists, and why those that do not load do not."""
    from ncfmkit.exporters import sessions

    ort = sessions.onnxruntime()
    missing = {name: sessions.missing(name) for name in sessions.PROVIDERS}
    return {"version": ort.__version__, "available": ort.get_available_providers(), "missing": missing}


CHECKS: dict[str, Callable[..., Result]] = {
    check.__name__: check
    for check in (
        *(machine, rates, step, kernels, norm_pool, real_side, training),
        *(same_bytes, resume, out_of_memory, memory_budget, store, cifar10, onnxruntime),
    )
}


def main(name: str, *options: str) -> None:
    """Runs a check; an option `key=value` is JSON, or text where it is not."""
    given: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    say(CHECKS[name](**given))


if __name__ == "__main__":
    main(*sys.argv[1:])
