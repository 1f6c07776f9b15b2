"""Steps that are recorded and replayed, on CUDA graphs that are not there: a tape of operators that runs on the CPU.

A tape does what a graph does: the same operators on the same tensors in the same order, and nothing of the host. The
real ones are compared in test_gpu.py.
"""

import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ncfmkit import training
from ncfmkit.config import DistillSettings, NetworkSettings, TrainSettings
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import make_plan
from ncfmkit.distillation.problem import make_problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.images import labeled
from ncfmkit.networks import network_builder
from ncfmkit.progress import Tracker
from ncfmkit.recorded import Recorded
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, fresh_state, train, training_seconds


class Tape(TorchDispatchMode):
    """Records operators; what they change is changed back at the end, as recording a graph computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    self._before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def end(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for there, value in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if there.data_ptr() != value.data_ptr():
                    there.copy_(value)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [value for value in tree_flatten(tree)[0] if isinstance(value, torch.Tensor)]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """The tapes that are made from now on, where a CUDA graph would be."""
    made: list[Tape] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    @contextmanager
    def record(tape: Tape, **_: Any) -> Iterator[None]:
        with tape:
            yield
        tape.end()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return made


def plain_and_replayed(
    tapes: list[Tape], run: Callable[[], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    never = run()
    monkeypatch.setattr(Runtime, "records", True)
    replayed = run()
    assert sum(tape.replays for tape in tapes) > 2 * len(tapes) > 0
    count = len(tapes)
    monkeypatch.setattr(Recorded, "PLAIN_CALLS", 10**6)
    plain = run()
    assert len(tapes) == count
    assert (plain - never).abs().median() < 1e-6  # a training's rate is float32 where it is recorded
    return plain, replayed


@pytest.mark.parametrize(("size", "optimizer"), [(1, "sgd"), (3, "sgd"), (1, "adamw")])
def test_replayed_training_is_the_plain_one(
    make_real, runtime: Runtime, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, size: int, optimizer: Any
) -> None:
    real = make_real((40, 30, 20))
    build = network_builder(NetworkSettings(width=8, depth=2), real)
    settings = TrainSettings(epochs=6, batch=16, optimizer=optimizer, lr=0.02, augment="color_crop_flip_scale_rotate")

    def run() -> torch.Tensor:
        models = StackedModels(build, size, runtime)
        models.load([fresh_state(build, 0, "student", k) for k in range(size)])
        data, bar = [labeled(real, real.train)] * size, Tracker("tests", 1, None)
        train(models, data, settings, seed=0, keys=list(range(size)), bar=bar)
        return torch.cat([v.flatten() for state in models.states() for v in state.values()])

    assert torch.equal(*plain_and_replayed(tapes, run, monkeypatch))
    assert len(tapes) == 1 + 3  # a recording for each operation that the augmentation picks


@pytest.mark.parametrize(("sampler", "bits"), [("gaussian", 8), ("learned", 8), ("gaussian", 3)])
def test_replayed_steps_are_the_plain_ones(
    make_real, make_pool, runtime: Runtime, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, sampler: Any, bits: int
) -> None:
    real = make_real((40, 30, 20))
    pool, build = make_pool(real)
    changing: dict[str, Any] = {"bits": bits, "steps": 16, "bits_from": 0.5}  # rounded from the ninth step on
    settings = DistillSettings(
        ipc=2, frequencies=64, real_batch=16, sampler=sampler, optimizer="sgd", lr=0.5, **changing
    )

    def run() -> torch.Tensor:
        problem = make_problem(real, settings, seed=0, pool=pool, builds=[build], runtime=runtime)
        problem = dataclasses.replace(problem, train_images=torch.tensor(real.train.images))
        state = make_state(problem, initialize("mix", real, ipc=2, factor=2, seed=0))
        plan = make_plan(problem, state, budget=None)
        found = torch.stack([distill_step(problem, state, plan).values for _ in range(16)])
        return torch.cat([found.flatten(), state.images.detach().flatten().double()])

    assert torch.equal(*plain_and_replayed(tapes, run, monkeypatch))
    assert [tape.replays for tape in tapes] == ([14] if bits == 8 else [6, 6])


def test_what_a_training_recorded_goes_with_it(
    make_real, runtime: Runtime, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph holds memory of the GPU, which a search for cycles would give back at some other time."""
    monkeypatch.setattr(Runtime, "records", True)
    real = make_real((40, 30, 20))
    models = StackedModels(network_builder(NetworkSettings(width=8, depth=2), real), 1, runtime)
    gc.collect()
    gc.disable()
    try:
        train(
            models,
            [labeled(real, real.train)],
            TrainSettings(epochs=2, batch=16),
            seed=0,
            keys=[0],
            bar=Tracker("tests", 1, None),
        )
        made = [weakref.ref(tape) for tape in tapes]
        tapes.clear()
        assert len(made) >= 2
        assert [tape() for tape in made] == [None] * len(made)
    finally:
        gc.enable()


def test_a_function_is_recorded_once_and_gets_the_inputs_of_each_call(tapes: list[Tape]) -> None:
    total, calls = torch.zeros(3), []

    def add(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        total.add_(value)
        return (total * 2,)

    recorded = Recorded(add, torch.device("cpu"))
    outputs = [recorded(torch.full((3,), float(k)))[0] for k in range(1, 8)]
    assert [output.tolist() for output in outputs] == [[float(k * (k + 1))] * 3 for k in range(1, 8)]
    assert len(calls) == Recorded.PLAIN_CALLS + 1
    assert [tape.replays for tape in tapes] == [5]


def test_a_recording_that_does_not_fit_is_given_up(tapes: list[Tape], capsys: pytest.CaptureFixture[str]) -> None:
    total = torch.zeros(3)

    def add(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if any(isinstance(mode, Tape) for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack()):
            raise torch.OutOfMemoryError("on purpose")
        total.add_(value)
        return (total.clone(),)

    recorded = Recorded(add, torch.device("cpu"))
    assert [recorded(torch.ones(3))[0].tolist() for _ in range(6)] == [[float(k)] * 3 for k in range(1, 7)]
    assert capsys.readouterr().err.count("steps are not recorded and replayed") == 1


def test_an_estimate_counts_replays_alone(
    make_real, runtime: Runtime, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "records", True)
    counted: list[tuple[int, int]] = []

    def seconds_per_call(call: Callable[[], None], device: torch.device, *, compiled: bool, uncounted: int) -> float:
        for _ in range(1 + uncounted):
            call()
        before = len(tapes), sum(tape.replays for tape in tapes)
        call()
        counted.append((len(tapes) - before[0], sum(tape.replays for tape in tapes) - before[1]))
        return 30.0

    monkeypatch.setattr(training, "seconds_per_call", seconds_per_call)
    real = make_real((40, 30, 20))
    models = StackedModels(network_builder(NetworkSettings(width=8, depth=2), real), 1, runtime)
    settings = TrainSettings(epochs=3, batch=16, augment="color_crop")
    seconds = training_seconds(models, labeled(real, real.train), 90, settings)
    assert counted == [(0, 2 * 10)]  # batches and steps; nothing is recorded any more
    assert seconds == pytest.approx(30 / 10 * 6 * 3)
