"""The easiest real images of each class, against a calculation of their own."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings, PoolSettings
from ncfmkit.distillation.difficulty import easiest_images, estimate_difficulty, placeholder
from ncfmkit.distillation.memory import Plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Problem, make_problem, make_state
from ncfmkit.distillation.step import distill_step, draw_class
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime


def loss_of_each(real: RealData, build: Callable, states: list[dict]) -> np.ndarray:
    """Mean cross-entropy of every image's class, float64."""
    network = build().double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (real.mean, real.std))
    x_NCHW = (torch.from_numpy(np.array(real.train.images)).double() / 255 - mean) / std
    labels, found = torch.from_numpy(real.train.labels), []
    for state in states:
        network.load_state_dict({k: v.double() for k, v in state.items()})
        found.append(torch.nn.functional.cross_entropy(network(x_NCHW), labels, reduction="none").detach().numpy())
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("share", "counts"), [(0.5, [4, 3, 5]), (0.01, [1, 1, 1]), (1.0, [7, 5, 9])])
def test_the_easiest_are_those_of_the_lowest_loss(
    real: RealData, make_pool: Callable, runtime: Runtime, share: float, counts: list[int]
) -> None:
    tiny, build = make_pool(real, members=2)
    middle = [{k: v.bfloat16() for k, v in state.items()} for state in tiny.initial]
    stages = [[tiny.initial[m], middle[1 - m], tiny.final[m]] for m in range(2)]  # the initial ones do not count
    pool = dataclasses.replace(tiny, stages=stages)
    found = easiest_images(real, [build], pool, share, runtime)
    loss_N = loss_of_each(real, build, [state for of_member in stages for state in of_member[1:]])
    for index, start, stop, count in zip(found, real.train.offsets[:-1], real.train.offsets[1:], counts, strict=True):
        assert index.tolist() == sorted(index.tolist())
        assert index.tolist() == sorted((start + np.argsort(loss_N[start:stop])[:count]).tolist())
    assert [len(index) for index in placeholder(real, share)] == counts


@pytest.fixture
def half(real: RealData, make_pool: Callable, runtime: Runtime) -> Problem:
    pool, build = make_pool(real)
    settings = DistillSettings(ipc=1, frequencies=32, real_batch=4, easiest=0.5)
    index = easiest_images(real, [build], pool, 0.5, runtime)
    return make_problem(real, settings, seed=0, pool=pool, builds=[build], runtime=runtime, easiest=index)


def test_steps_draw_from_the_easiest_alone(half: Problem) -> None:
    assert half.easiest is not None
    assert half.real_counts().tolist() == [4, 3, 4]
    for label, allowed in enumerate(half.easiest):
        drawn = [draw_class(half, step, label).real_index for step in range(20)]
        assert all(len(set(index.tolist())) == half.real_counts()[label] for index in drawn)
        assert set(np.concatenate(drawn).tolist()) == set(allowed.tolist())


def test_a_step_on_the_easiest(half: Problem, real: RealData) -> None:
    state = make_state(half, torch.full((3, 3, 8, 8), 0.5))
    distill_step(half, state, Plan(chunk=5, kept_graphs=2, classes_per_batch=2))
    assert state.images.isfinite().all()
    assert (state.images != 0.5).any()


def test_before_there_is_a_pool_as_many_are_drawn(real: RealData, make_pool: Callable, runtime: Runtime) -> None:
    _, build = make_pool(real)
    settings = DistillSettings(ipc=1, frequencies=32, real_batch=100, easiest=0.5)
    problem = make_problem(real, settings, seed=0, pool=Pool.empty(), builds=[build], runtime=runtime)
    assert problem.real_counts().tolist() == [4, 3, 5]


def test_the_estimate(real: RealData, make_pool: Callable, runtime: Runtime) -> None:
    _, build = make_pool(real)
    stage = estimate_difficulty(real, [build], PoolSettings(members=3, epochs=4, snapshots=1), runtime)
    assert stage.work == "21 images x 6"
    assert stage.seconds > 0
