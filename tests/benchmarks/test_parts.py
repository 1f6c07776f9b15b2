"""The parts of a step: together they are the step, each is charged where it happens."""

from pathlib import Path

import pytest
import torch
from contenders import contender

from benchmarks import parts
from ncfmkit.distillation.problem import read
from ncfmkit.distillation.step import distill_step


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_the_parts_make_up_the_step_and_change_nothing(tmp_path: Path, sampler: str) -> None:
    timed, other = (contender(tmp_path, sampler=sampler, classes=10) for _ in range(2))
    assert timed.plan is not None
    assert other.plan is not None
    (expected,) = read(other.problem, [distill_step(other.problem, other.state, other.plan)])
    before = timed.problem.architecture.features._compiled
    seconds = parts.split(timed.problem, timed.state, timed.plan)
    assert timed.problem.architecture.features._compiled is before
    assert torch.equal(timed.state.images, other.state.images)
    assert expected.matching > 0
    assert all(seconds[p] > 0 for p in parts.PARTS)
    again = distill_step(timed.problem, timed.state, timed.plan)
    plain = distill_step(other.problem, other.state, other.plan)
    assert read(timed.problem, [again]) == read(other.problem, [plain])


def test_parts_are_charged_where_they_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(parts.time, "perf_counter", lambda: float(next(now)))
    clock = parts.Clock(torch.device("cpu"))
    with clock.part("rest"):  # 0
        with clock.part("data"):  # 1
            pass  # 2
        clock.switch("optimizer")  # 3
    assert (clock.seconds["data"], clock.seconds["rest"], clock.seconds["optimizer"]) == (1, 2, 1)
