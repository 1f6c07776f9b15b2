"""Where the seconds of a step go. The step's own functions are wrapped for it; on a GPU every boundary waits for it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from ncfmkit.distillation import ncfd, step
from ncfmkit.distillation.memory import Plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Problem, State
from ncfmkit.runtime import Runtime

PARTS = (
    "real features",
    "synthetic features",
    "characteristic functions",
    "augmentation",
    "optimizer",
    "data",
    "rest",
)


class Clock:
    """Adds time to the innermost part that is running."""

    def __init__(self, device: torch.device):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    def _charge(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def switch(self, name: str) -> None:
        """Time goes to another part from now on: a backward pass walks from one part into the next."""
        self._charge()
        self._running[-1] = name

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time charged to a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def passed(self, name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """As `timed`, and the backward pass through `function` counts as the same part."""

        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            output = self.timed(name, function)(*args, **kwargs)
            if output.requires_grad:
                output.register_hook(lambda _: self.switch(name))
            return output

        return run


def split(problem: Problem, state: State, plan: Plan) -> dict[str, float]:
    """Seconds of one step by part, `PARTS`; the rest is drawing frequencies, psi, normalizing features, bookkeeping."""
    clock = Clock(problem.runtime.device)
    real_side = False

    def network_part(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        real, synthetic = (clock.passed(f"{side} features", function) for side in ("real", "synthetic"))
        return lambda *args: (real if real_side else synthetic)(*args)

    def statistic_of(run: Callable[..., Any]) -> Callable[..., Any]:
        def streamed(*args: Any) -> Any:
            nonlocal real_side
            real_side = True
            try:
                return run(*args)
            finally:
                real_side = False

        return streamed

    metric = dataclasses.replace(
        problem.metric, statistic=clock.timed("characteristic functions", problem.metric.statistic)
    )
    problem = dataclasses.replace(problem, metric=metric)
    backward = ncfd.CharacteristicFunction.backward
    patches: list[tuple[Any, str, Any]] = [
        (step, "gather", clock.timed("data", step.gather)),
        (step, "draw_class", clock.timed("data", step.draw_class)),
        (Pool, "blend", clock.timed("data", Pool.blend)),
        (step, "decode", clock.passed("augmentation", step.decode)),
        (step, "take_step", clock.timed("optimizer", step.take_step)),
        (ncfd, "streamed_statistic", statistic_of(ncfd.streamed_statistic)),
        (ncfd.CharacteristicFunction, "backward", staticmethod(clock.timed("characteristic functions", backward))),
        (torch.Tensor, "backward", clock.timed("rest", torch.Tensor.backward)),
        (Runtime, "records", False),
    ]
    for network in (problem.architecture.features, problem.architecture.logits):
        prepare, inner = network._compiled
        patches.append((network, "_compiled", (clock.passed("augmentation", prepare), network_part(inner))))
    with ExitStack() as patched:
        for target, name, value in patches:
            patched.enter_context(mock.patch.object(target, name, value))
        with clock.part("rest"):
            step.distill_step(problem, state, plan)
    return clock.seconds
