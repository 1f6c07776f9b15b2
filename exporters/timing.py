"""Speed and memory of a model: timed in turns with torch, and measured in a separate process.

Nothing here imports torch before it is needed, so that the memory of models that run without torch does not include it.

Shapes: N images, C channels, H = W side, K classes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.table import EXPORTERS
from ncfmkit.exporters.turns import take_turns
from ncfmkit.progress import track

ENGINE_SUFFIX = EXPORTERS["tensorrt"].suffix
EAGER, COMPILED = "torch eager", "torch.compile"
LARGEST_BATCH = 65_536  # images per timed call
FOOTPRINT_SECONDS = 900  # for a process that opens the model and runs it twice
Call = Callable[[], Any]  # returns when the scores are there
Bind = Callable[[np.ndarray], Call]  # of uint8 images [N, C, H, W]


class Runner(Protocol):
    """A model opened by one provider, or an engine."""

    contract: Contract
    seconds: float
    placement: dict[str, Any]

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray: ...

    def bound(self, images_NCHW: np.ndarray) -> Call: ...


def open_model(path: Path, provider: str, *, threads: int | None, declared: dict[str, str]) -> Runner:
    """A runner of an ONNX file on a row of `PROVIDERS`, or of a TensorRT engine.

    Raises:
        UserError: as `open_session`.
    """
    if path.suffix == ENGINE_SUFFIX:
        from ncfmkit.exporters.tensorrt import open_engine

        return open_engine(path)
    return open_session(path, provider, threads=threads, declared=declared)


def runner_name(path: Path, provider: str) -> str:
    """What a row of timings is called."""
    return "TensorRT engine" if path.suffix == ENGINE_SUFFIX else f"ONNX Runtime {provider}"


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """How long to time."""

    batches: tuple[int, ...] = (1, 8, 64, 256)  # images at a time, ascending; the first is 1
    calls: int = 50  # timed calls of each contender and batch, at least
    seconds: float = 1.0  # for each contender and batch, at least
    limit: float = 20.0  # seconds for each contender and batch, after which fewer calls must do
    warm_calls: int = 10  # before timing, at least
    warm_seconds: float = 0.3  # likewise
    block_calls: int = 5  # timed calls of one contender in a row, at least
    block_seconds: float = 0.05  # likewise
    pause: float = 0.03  # seconds before a block; ONNX Runtime's threads were seen to spin for 0.02 after a call

    def __post_init__(self) -> None:
        if self.batches[:1] != (1,) or list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"batches: expected rising numbers from 1 on, got {self.batches}")


def parse_batches(batches: str | Sequence[int]) -> tuple[int, ...]:
    """Numbers, or a text such as `1,8,64`, ascending and without doubles; 1 is always among them, for the latency.

    Raises:
        UserError: not whole numbers from 1 to `LARGEST_BATCH`.
    """
    text = batches if isinstance(batches, str) else ",".join(map(str, batches))
    try:
        numbers = {int(part) for part in text.split(",")}
    except ValueError:
        numbers = {0}
    if min(numbers) < 1 or max(numbers) > LARGEST_BATCH:
        raise UserError(f"--batches {text!r}: expected whole numbers from 1 to {LARGEST_BATCH:,}, such as 1,8,64")
    return tuple(sorted({1, *numbers}))


def race(
    calls: dict[str, Call], config: TimingConfig, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Seconds of every timed call of each contender, float64.

    A turn is a short block of calls. Before a block is a pause, and one call that is not timed: another contender's
    threads still held the cores, and its data the caches.
    """

    def block(call: Call) -> list[float]:
        time.sleep(config.pause)
        call()
        seconds: list[float] = []
        end = clock() + config.block_seconds
        while len(seconds) < config.block_calls or clock() < end:
            seconds.append(_timed(call, clock))
        return seconds

    def lacking(seconds: dict[str, list[float]]) -> bool:
        enough = all(len(s) >= config.calls and sum(s) >= config.seconds for s in seconds.values())
        return clock() - start < config.limit * len(calls) and not enough

    for call in calls.values():
        _warm_up(call, config, clock)
    start = clock()
    seconds, _ = take_turns({name: partial(block, call) for name, call in calls.items()}, go_on=lacking)
    return {name: np.array(values) for name, values in seconds.items()}


def _warm_up(call: Call, config: TimingConfig, clock: Callable[[], float]) -> None:
    start, count, spent = clock(), 0, 0.0
    while spent < config.limit and (count < config.warm_calls or spent < config.warm_seconds):
        call()
        count, spent = count + 1, clock() - start


def _timed(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def summary(seconds: np.ndarray, batch: int) -> dict[str, Any]:
    """Percentiles in milliseconds (linear between calls), and images per second by the median."""
    p50, p95, p99 = (1000 * np.percentile(seconds, (50, 95, 99))).tolist()
    return {
        "batch": batch,
        "calls": len(seconds),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "images_per_second": 1000 * batch / p50,
    }


def time_device(
    device: str, runners: Mapping[str, Runner], student: Any, images_NCHW: np.ndarray, config: TimingConfig
) -> dict[str, Any]:
    """Rows of timings: the runners, and the student by torch, eager and compiled, on the same device by turns.

    Args:
        device: cpu or cuda.
        runners: by the name of their row; all run on that device and take the same input.
        student: a `Deployed` that takes and gives what the runners do; None: no rows of torch.
        images_NCHW: uint8, repeated where a batch is larger.

    Returns:
        `rows`, each with `name`, `absent` (why it was not timed, or ""), `compile_seconds`, room for what
        :func:`footprint` finds, and `batches`: as :func:`summary` says, with `times` by the name of torch's rows: how
        many times as many images per second. `stopped`: at which batch something failed, memory perhaps, and how; or
        "". `others_cpu`: the fraction of the machine's CPUs that other processes used meanwhile; None: not known.
    """
    rows = {name: _row(name) for name in runners}
    binds: dict[str, Bind] = {name: runner.bound for name, runner in runners.items()}
    stopped = ""
    with exact_float32(device):
        if student is not None:
            feed = next(iter(runners.values())).contract.feed
            rows |= {EAGER: _row(EAGER), COMPILED: _row(COMPILED)}
            network = student.to(device)
            binds[EAGER] = _bind_torch(network, device, feed)
            compiled = _compile(network, device, feed, images_NCHW, config.batches, rows[COMPILED])
            binds |= {COMPILED: compiled} if compiled else {}
        before = _cpu_seconds()
        with track(f"timing on {device}", len(config.batches)) as bar:
            for batch in config.batches:
                try:
                    images = _batch(images_NCHW, batch)
                    seconds = race({name: bind(images) for name, bind in binds.items()}, config)
                except Exception as error:  # out of memory has many names; what was timed before is kept
                    stopped = f"batch {batch}: {_first_line(error)}"
                    break
                _enter(rows, seconds, batch)
                bar.advance(note=f"batch {batch}")
        others = _others_share(before, _cpu_seconds())
    return {"rows": list(rows.values()), "stopped": stopped, "others_cpu": others}


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Of all CPUs since the start: in all, at work; and of this process at work. None: the system does not tell."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, idle, waiting, *interrupts = (
        int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in first.split()[1:9]
    )
    work = user + nice + system + sum(interrupts)
    own = os.times()
    return work + idle + waiting, work, own.user + own.system


def _others_share(before: tuple[float, ...] | None, after: tuple[float, ...] | None) -> float | None:
    if before is None or after is None:
        return None
    total, work, own = (b - a for a, b in zip(before, after, strict=True))
    return min(1.0, max(0.0, (work - own) / total)) if total > 0 else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _row(name: str) -> dict[str, Any]:
    unknown = ("cold_start_seconds", "engine_build_seconds", "compile_seconds", "memory_bytes")
    return {"name": name, "absent": "", "failed": "", "batches": [], **dict.fromkeys(unknown)}


def _enter(rows: dict[str, dict[str, Any]], seconds: dict[str, np.ndarray], batch: int) -> None:
    for name, values in seconds.items():
        others = [other for other in (EAGER, COMPILED) if other in seconds and name not in (EAGER, COMPILED)]
        times = {other: float(np.median(seconds[other]) / np.median(values)) for other in others}
        rows[name]["batches"].append(summary(values, batch) | {"times": times})


def _batch(images_NCHW: np.ndarray, count: int) -> np.ndarray:
    return images_NCHW[np.arange(count) % len(images_NCHW)]


def _bind_torch(network: Callable[..., Any], device: str, feed: Callable[[np.ndarray], np.ndarray]) -> Bind:
    import torch

    def bind(images_NCHW: np.ndarray) -> Call:
        images = torch.from_numpy(feed(images_NCHW)).to(device)

        def call() -> None:
            with torch.inference_mode():
                network(images)
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    return bind


def _compile(
    network: Any,
    device: str,
    feed: Callable[[np.ndarray], np.ndarray],
    images_NCHW: np.ndarray,
    batches: Sequence[int],
    row: dict[str, Any],
) -> Bind | None:
    """The compiled network's bind, with the seconds of its first calls in `row`; or None, and why."""
    import torch

    from ncfmkit.runtime import Runtime, compiler_missing

    row["absent"] = compiler_missing(torch.device(device))
    if row["absent"]:
        return None
    runtime = Runtime(device=torch.device(device), precision="fp32", compile=True, why="timing")
    bind = _bind_torch(runtime.compiled(network), device, feed)
    with track("compiling the student", len(batches)) as bar:
        try:
            seconds = 0.0
            for batch in batches:
                seconds += _timed(bind(_batch(images_NCHW, batch)), time.perf_counter)
                bar.advance()
        except Exception as error:  # whatever a compiler on the user's machine raises: eager is still to be timed
            row["absent"] = f"torch.compile failed: {_first_line(error)}"
            return None
    row["compile_seconds"] = seconds
    return bind


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """torch without TensorFloat-32 on CUDA, as the CUDA provider runs here; afterwards as before."""
    if device != "cuda":
        yield
        return
    import torch

    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


MEMORY_IS = {
    "cpu": "peak resident memory of a separate process, minus its memory before opening the model",
    "cuda": "device memory in use after a separate process ran it, minus that before it opened the model",
}


def footprint(job: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process needs to open a model, or a student with torch, and to run it.

    Args:
        job: `path`, `device` (cpu or cuda), `batch`, `threads`; and for a model `provider` and `declared` as
            :func:`open_model` has them, for a student `layout` and `output`.

    Returns:
        `cold_start_seconds`: opening and the first answer, with the libraries imported before; `memory_bytes`: what
        opening and running 1 and `batch` images added, see `MEMORY_IS`, None where the system does not tell; `failed`:
        why neither is known, or "".
    """
    code = "import sys; from ncfmkit.exporters import timing; timing.print_footprint(sys.argv[1])"
    command = [sys.executable, "-c", code, json.dumps(job)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    failed = {"cold_start_seconds": None, "memory_bytes": None}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FOOTPRINT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return failed | {"failed": str(error)}
    if done.returncode:
        return failed | {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def print_footprint(text: str) -> None:
    """What the process of its own does: prints its figures as JSON."""
    job = json.loads(text)
    opening = _prepare_model(job) if "provider" in job else _prepare_student(job)
    _forget_peak()
    before = _memory(job["device"])
    start = time.perf_counter()
    answer, shape = opening()
    answer(np.zeros((1, *shape), np.uint8))
    seconds = time.perf_counter() - start
    answer(np.zeros((job["batch"], *shape), np.uint8))
    after = _memory(job["device"])
    seconds = getattr(answer, "seconds", seconds)  # a session's own leaves out the check of its placement
    grown = None if before is None or after is None else max(0, after - before)
    print(json.dumps({"cold_start_seconds": seconds, "memory_bytes": grown, "failed": ""}))


Opening = Callable[[], tuple[Callable[[np.ndarray], Any], Sequence[int]]]  # what answers, shape of one image


def _prepare_model(job: dict[str, Any]) -> Opening:
    if not job["path"].endswith(ENGINE_SUFFIX):
        from ncfmkit.exporters.sessions import missing

        missing(job["provider"])  # loads the libraries

    def opening() -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
        runner = open_model(Path(job["path"]), job["provider"], threads=job["threads"], declared=job["declared"])
        return runner, runner.contract.image_shape

    return opening


def _prepare_student(job: dict[str, Any]) -> Opening:
    import torch

    from ncfmkit.exporters.student import load_student

    if job["threads"]:
        torch.set_num_threads(job["threads"])

    def opening() -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
        student = load_student(Path(job["path"]))
        contract = student.contract(layout=job["layout"], output=job["output"])
        deployed = student.deployed(layout=job["layout"], output=job["output"]).to(job["device"])
        bind = _bind_torch(deployed, job["device"], contract.feed)
        return lambda images_NCHW: bind(images_NCHW)(), contract.image_shape

    return opening


def _memory(device: str) -> int | None:
    """Bytes used: of the GPU by everyone, or this process's peak resident memory.

    Not `getrusage`: its peak is inherited from the process that started this one.
    """
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return total - free
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
