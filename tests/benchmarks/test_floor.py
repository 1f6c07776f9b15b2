"""The work of a step as torch counts it, the rates of a machine, and the floor that follows."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from contenders import contender
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor


@pytest.mark.parametrize(
    "changes", [{}, {"ipc": 3, "real_batch": 5}, {"side": 28, "frequencies": 64}, {"sampler": "learned"}]
)
def test_the_work_of_a_step_is_what_torch_counts_in_the_reference(tmp_path: Path, changes: dict) -> None:
    plain = contender(tmp_path, "plain", **changes)
    with FlopCounterMode(display=False) as counter:
        plain.step()
    s, twice = plain.setting, 0
    if s.sampler == "learned":  # the reference computes the phases once more for psi
        twice = 2 * plain.problem.architecture.feature_dim * s.frequencies * (s.real_images + s.decoded_images)
    assert floor.work(s).flops == counter.get_total_flops() - twice


def test_the_floor_is_the_longer_of_computing_and_moving() -> None:
    work = floor.Work(network_flops=8e9, phase_flops=1e9, values=1e6, bytes=1e6)
    rates = {"bf16": {"flops": 4e9, "copy_bytes": 1e6}, "fp32": {"flops": 1e9, "copy_bytes": 1e6}}
    assert work.seconds("bf16", rates) == pytest.approx(3)  # to move: 2 bytes of each value, and the rest
    rates["bf16"]["flops"] = 1e9
    assert work.seconds("bf16", rates) == pytest.approx(9)


def test_rates_are_work_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's operations as torch counts them, and the bytes that the copy reads and writes, in half a second."""
    work: list[float] = []

    def half_a_second(run: Any, device: torch.device) -> float:
        with FlopCounterMode(display=False) as counter:
            result = run()
        work.append(counter.get_total_flops() or result.nbytes + result.nbytes)
        return 0.5

    monkeypatch.setattr(floor, "_median_seconds", half_a_second)
    rates = floor.measure_rates(torch.device("meta"), ("bf16",))
    product, copy, product_bf16, copy_bf16 = (2 * w for w in work)
    assert rates == {
        "fp32": {"flops": product, "copy_bytes": copy},
        "bf16": {"flops": product_bf16, "copy_bytes": copy_bf16},
    }
    assert product_bf16 == product > 1e9
    assert 2 * copy_bf16 == copy > 1e8


def test_convolutions_are_all_that_a_step_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At an operation a second, forward and backward, they take as many seconds as the step has operations in them."""
    setting = contender(tmp_path, ipc=3, real_batch=5).setting
    slower = itertools.cycle([1.0, 1.0, 2.0, 2.0])  # in the second layout: the first one counts

    def an_operation_a_second(run: Any, device: torch.device) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() * next(slower)

    monkeypatch.setattr(floor, "_median_seconds", an_operation_a_second)
    seconds = floor.convolution_seconds(setting, torch.device("cpu"), "bf16", batches=[2, 4])
    classifier = 2 * 2 * floor.build(setting).classifier.in_features * setting.classes * setting.decoded_images
    assert seconds == pytest.approx(floor.work(setting).network_flops - classifier)


def test_the_first_two_runs_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lasted = iter([50, 60, 7, 1, 2, 6, 5, 4, 3])
    clock = itertools.accumulate(x for seconds in lasted for x in (0, seconds))
    monkeypatch.setattr(floor.time, "perf_counter", lambda: float(next(clock)))
    assert floor._median_seconds(lambda: None, torch.device("cpu")) == 4
