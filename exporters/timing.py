"""Speed and memory of a model: timed in turns with torch, and measured in a separate process.

Nothing here imports torch before it is needed, so that the memory of models that run without torch does not include it.

Shapes: N images, C channels, H = W side, K classes.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract
from ncfmkit.exporters.providers import Device, device_text
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.table import EXPORTERS
from ncfmkit.exporters.turns import Ended, take_turns
from ncfmkit.progress import track
from ncfmkit.records import Record, SparseRecord

ENGINE_SUFFIX = EXPORTERS["tensorrt"].suffix
EAGER, COMPILED = "torch eager", "torch.compile"
LARGEST_BATCH = 65_536  # images per timed call
FOOTPRINT_SECONDS = 900  # for a process that opens the model and runs it twice
MEMORY_IS: dict[Device, str] = {
    "cpu": "peak resident memory of a separate process, minus its memory before opening the model",
    "cuda": "device memory in use after a separate process ran it, minus that before it opened the model",
    "webgpu": "peak resident memory of a separate process, minus that before it opened the model; not the GPU's",
}
Call = Callable[[], Any]  # returns when the scores are there
Bind = Callable[[np.ndarray], Call]  # of uint8 images [N, C, H, W]


class Runner(Protocol):
    """A model opened by one provider, or an engine."""

    contract: Contract
    seconds: float
    placement: dict[str, Counter[str]]

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


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Timing(SparseRecord):
    """Calls of one contender with one batch size. Percentiles are linear between calls."""

    batch: Annotated[int, Field(ge=1)]  # images
    calls: Annotated[int, Field(ge=1)]
    p50_ms: Positive
    p95_ms: Positive
    p99_ms: Positive
    images_per_second: Positive  # by the median
    times: dict[str, Positive]  # images per second as multiples of torch's, by the name of torch's row


class Footprint(SparseRecord):
    """What a fresh process needed to open a model, or a student with torch, and to run it."""

    cold_start_seconds: NotNegative | None  # opening and the first answer, with the libraries imported before
    memory_bytes: Annotated[int, Field(ge=0)] | None  # see MEMORY_IS; None: the system does not tell
    failed: str  # why neither is known, or ""


class SpeedRow(SparseRecord):
    """One contender: the model on a provider, or the student by torch."""

    name: str
    absent: str = ""  # why it was not timed, or ""
    stopped: str = ""  # at which batch it failed, memory perhaps, and how; or ""
    failed: str = ""  # why its start and memory are not known, or ""
    batches: tuple[Timing, ...] = ()
    cold_start_seconds: NotNegative | None = None
    engine_build_seconds: NotNegative | None = None
    compile_seconds: NotNegative | None = None
    memory_bytes: Annotated[int, Field(ge=0)] | None = None


class SpeedSection(SparseRecord):
    """All contenders on one device."""

    device: str
    memory_is: str  # a value of MEMORY_IS
    largest_batch: Annotated[int, Field(ge=1)]  # that memory was measured with
    rows: tuple[SpeedRow, ...]
    others_cpu: Annotated[float, Field(ge=0, le=1)] | None  # share of the CPUs that other processes used; None: unknown
    outputs_copied: bool = False  # timed calls copy the outputs to the host, as providers that do not wait need it


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
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Seconds of every timed call of each contender, float64; and by name why others failed, who are out of the race.

    The call of one that fails is deleted from `calls` at once, so that the others have its memory.

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

    def turn(name: str) -> list[float]:
        try:
            return block(calls[name])
        except Exception as error:
            del calls[name]
            raise Ended(_first_line(error)) from error

    cold = dict[str, str]()
    for name in list(calls):
        try:
            _warm_up(calls[name], config, clock)
        except Exception as error:
            del calls[name]
            cold[name] = _first_line(error)
    start = clock()
    seconds, ended = take_turns({name: partial(turn, name) for name in calls}, go_on=lacking)
    return {name: np.array(values) for name, values in seconds.items()}, cold | ended


def _race_batch(
    binds: Mapping[str, Bind], images_NCHW: np.ndarray, batch: int, config: TimingConfig
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What :func:`race` gives, of calls with that many images; those that cannot be bound to them failed, too.

    Calls hold inputs and outputs, and live no longer than this does: the next batch finds their memory free. Out of
    memory has many names, so any error counts.
    """
    calls, failed = dict[str, Call](), dict[str, str]()
    try:
        images = _batch(images_NCHW, batch)
    except MemoryError as error:
        return {}, dict.fromkeys(binds, _first_line(error))
    for name, bind in binds.items():
        try:
            calls[name] = bind(images)
        except Exception as error:
            failed[name] = _first_line(error)
    seconds, ended = race(calls, config) if calls else ({}, {})
    return seconds, failed | ended


def _warm_up(call: Call, config: TimingConfig, clock: Callable[[], float]) -> None:
    start, count, spent = clock(), 0, 0.0
    while spent < config.limit and (count < config.warm_calls or spent < config.warm_seconds):
        call()
        count, spent = count + 1, clock() - start


def _timed(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def summary(seconds: np.ndarray, batch: int, times: Mapping[str, float]) -> Timing:
    """Percentiles and rate of the calls that took these seconds."""
    p50, p95, p99 = (1000 * np.percentile(seconds, (50, 95, 99))).tolist()
    return Timing(
        batch=batch,
        calls=len(seconds),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=1000 * batch / p50,
        times=dict(times),
    )


@dataclass
class _Contender:
    """What becomes a `SpeedRow`."""

    absent: str = ""
    stopped: str = ""
    most: int = LARGEST_BATCH  # images at once, above which it fails
    compile_seconds: float | None = None
    batches: list[Timing] = field(default_factory=list)

    def stop(self, batch: int, why: str) -> None:
        """It takes no further part; with one image already, it was not timed at all."""
        self.most = batch - 1
        if batch == 1:
            self.absent = why
        else:
            self.stopped = f"batch {batch:,}: {why}"


def time_device(
    device: Device, runners: Mapping[str, Runner], student: Any, images_NCHW: np.ndarray, config: TimingConfig
) -> SpeedSection:
    """Times the runners, and the student by torch, eager and compiled, on the same device by turns.

    A contender that fails at a batch size, for want of memory perhaps, stops there; the others go on.

    Args:
        device: where the runners run.
        runners: by the name of their row; all run on that device and take the same input.
        student: a `Deployed` that takes and gives what the runners do; None: no rows of torch, which
            does not have every device.
        images_NCHW: uint8, repeated where a batch is larger.

    Returns:
        A section whose rows lack what :func:`footprint` finds.
    """
    contenders = {name: _Contender() for name in runners}
    binds: dict[str, Bind] = {name: runner.bound for name, runner in runners.items()}
    with exact_float32(device):
        if student is not None:
            feed = next(iter(runners.values())).contract.feed
            contenders |= {EAGER: _Contender(), COMPILED: _Contender()}
            network = student.to(device)
            binds[EAGER] = _bind_torch(network, device, feed)
            compiled = _compile(network, device, feed, images_NCHW, config.batches, contenders[COMPILED])
            binds |= {COMPILED: compiled} if compiled else {}
        before = _cpu_seconds()
        with track(f"timing on {device}", len(config.batches)) as bar:
            for batch in config.batches:
                running = {name: bind for name, bind in binds.items() if batch <= contenders[name].most}
                seconds, failed = _race_batch(running, images_NCHW, batch, config)
                for name, values in seconds.items():
                    contenders[name].batches.append(summary(values, batch, _times(name, seconds)))
                for name, why in failed.items():
                    contenders[name].stop(batch, why)
                bar.advance(note=f"batch {batch}")
        others = _others_share(before, _cpu_seconds())
    rows = (
        SpeedRow(
            name=name,
            absent=found.absent,
            stopped=found.stopped,
            failed="",
            batches=tuple(found.batches),
            cold_start_seconds=None,
            engine_build_seconds=None,
            compile_seconds=found.compile_seconds,
            memory_bytes=None,
        )
        for name, found in contenders.items()
    )
    return SpeedSection(
        device=device_text(device),
        memory_is=MEMORY_IS[device],
        largest_batch=config.batches[-1],
        rows=tuple(rows),
        others_cpu=others,
    )


def _times(name: str, seconds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How many times as fast a contender is as each of torch's, by the medians; nothing for torch's own."""
    others = [other for other in (EAGER, COMPILED) if other in seconds and name not in (EAGER, COMPILED)]
    return {other: float(np.median(seconds[other]) / np.median(seconds[name])) for other in others}


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
    found: _Contender,
) -> Bind | None:
    """The compiled network's bind, with the seconds of its first calls in `found`; or None, and why.

    Whatever a compiler on the user's machine raises stops only this contender.
    """
    import torch

    from ncfmkit.runtime import Runtime, compiler_missing

    found.absent = compiler_missing(torch.device(device))
    if found.absent:
        return None
    runtime = Runtime(device=torch.device(device), precision="fp32", compile=True, why="timing")
    bind = _bind_torch(runtime.compiled(network), device, feed)
    seconds = 0.0
    with track("compiling the student", len(batches)) as bar:
        for batch in batches:
            try:
                seconds += _timed(bind(_batch(images_NCHW, batch)), time.perf_counter)
            except Exception as error:
                found.stop(batch, f"torch.compile failed: {_first_line(error)}")
                break
            bar.advance()
    if found.absent:
        return None
    found.compile_seconds = seconds
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


class Job(Record):
    """What :func:`footprint` has a process of its own do: with a provider a model, else a student by torch."""

    path: str
    device: Device
    batch: int  # images, after the first answer
    threads: int
    provider: str | None = None  # and of a model
    declared: dict[str, str] = Field(default_factory=dict)  # as :func:`open_model` has it
    layout: str = ""  # of a student
    output: str = ""


def footprint(job: Job) -> Footprint:
    """What a fresh process needs to open a model, or a student with torch, and to run 1 and then `batch` images."""
    code = "import sys; from ncfmkit.exporters import timing; timing.print_footprint(sys.argv[1])"
    command = [sys.executable, "-c", code, job.model_dump_json()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FOOTPRINT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _unknown(str(error))
    if done.returncode:
        return _unknown((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return Footprint.model_validate_json(done.stdout.splitlines()[-1])


def _unknown(why: str) -> Footprint:
    return Footprint(cold_start_seconds=None, memory_bytes=None, failed=why)


def print_footprint(text: str) -> None:
    """What the process of its own does: prints its figures as JSON."""
    job = Job.model_validate_json(text)
    opening = _prepare_student(job) if job.provider is None else _prepare_model(job, job.provider)
    _forget_peak()
    before = _memory(job.device)
    start = time.perf_counter()
    answer, shape = opening()
    answer(np.zeros((1, *shape), np.uint8))
    seconds = time.perf_counter() - start
    answer(np.zeros((job.batch, *shape), np.uint8))
    after = _memory(job.device)
    seconds = getattr(answer, "seconds", seconds)  # a session's own leaves out the check of its placement
    grown = None if before is None or after is None else max(0, after - before)
    print(Footprint(cold_start_seconds=seconds, memory_bytes=grown, failed="").model_dump_json())


Opening = Callable[[], tuple[Callable[[np.ndarray], Any], Sequence[int]]]  # what answers, shape of one image


def _prepare_model(job: Job, provider: str) -> Opening:
    if not job.path.endswith(ENGINE_SUFFIX):
        from ncfmkit.exporters.providers import missing

        missing(provider)  # loads the libraries

    def opening() -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
        runner = open_model(Path(job.path), provider, threads=job.threads, declared=job.declared)
        return runner, runner.contract.image_shape

    return opening


def _prepare_student(job: Job) -> Opening:
    import torch

    from ncfmkit.exporters.student import load_student

    torch.set_num_threads(job.threads)

    def opening() -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
        student = load_student(Path(job.path))
        contract = student.contract(layout=job.layout, output=job.output)
        deployed = student.deployed(layout=job.layout, output=job.output).to(job.device)
        bind = _bind_torch(deployed, job.device, contract.feed)
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
