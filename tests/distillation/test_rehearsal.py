"""What a step takes: measured whole where it is short, reckoned from parts where it is long; nothing else changes."""

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings
from ncfmkit.distillation import rehearsal
from ncfmkit.distillation.memory import Plan, class_groups, planned_bytes, real_chunks, syn_chunks
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import make_problem, make_state
from ncfmkit.distillation.step import distill_step

IMAGES = torch.from_numpy(np.random.default_rng(0).random((12, 3, 8, 8), dtype=np.float32))
SMALL = Plan(chunk=4, kept_graphs=2, classes_per_batch=2)  # 3 classes: two groups, several chunks in each


@pytest.fixture
def problem(make_real, make_pool, runtime):
    _, build = make_pool(make_real())
    settings = DistillSettings(ipc=4, frequencies=32, sampler="learned", real_batch=6)
    return make_problem(make_real((7, 5, 9)), settings, seed=0, pool=Pool.empty(), builds=[build], runtime=runtime)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Each chunk of real images takes `real` seconds, each synthetic one `synthetic`, and a step 0.5 beside them."""
    cost = {"real": 1.0, "synthetic": 10.0, "wholes": 0}

    def spy(problem, state, plan):
        lengths = {key: len(chunks) for key, chunks in problem.chunks.items()}
        made["lengths"] = lengths
        assert all(chunks[-1].classes.stop == len(group) for (_, group, _), chunks in problem.chunks.items())
        return distill_step(problem, state, plan)

    def seconds_per_call(call, device, *, compiled, uncounted):
        call()
        return 0.5 + sum(cost[kind] * count for (kind, _, _), count in made["lengths"].items())

    made: dict = {}
    monkeypatch.setattr(rehearsal, "distill_step", spy)
    monkeypatch.setattr(rehearsal, "seconds_per_call", seconds_per_call)
    return cost


def chunk_counts(problem, plan: Plan) -> tuple[int, int]:
    groups = list(class_groups(problem.classes, plan.classes_per_batch))
    return (
        sum(len(real_chunks(problem, plan, g)) for g in groups),
        sum(len(syn_chunks(problem, plan, g)) for g in groups),
    )


@pytest.mark.parametrize(("real", "synthetic"), [(1.0, 10.0), (10.0, 1.0), (1e-3, 1e-3)])
@pytest.mark.parametrize("plan", [SMALL, Plan(chunk=4, kept_graphs=100, classes_per_batch=3)])
def test_a_step_costs_what_its_chunks_cost(problem, clock, plan: Plan, real: float, synthetic: float) -> None:
    clock |= {"real": real, "synthetic": synthetic}
    of_real, of_synthetic = chunk_counts(problem, plan)
    assert of_real > 3
    assert of_synthetic > rehearsal.PART
    expected = 0.5 + real * of_real + synthetic * of_synthetic
    assert rehearsal.step_seconds(problem, IMAGES, plan) == pytest.approx(expected)


def test_the_rehearsal_changes_nothing(problem) -> None:
    images, state, plan = IMAGES.clone(), torch.get_rng_state(), Plan(**vars(SMALL))
    assert rehearsal.step_seconds(problem, images, plan) > 0
    assert torch.equal(images, IMAGES)
    assert torch.equal(state, torch.get_rng_state())
    assert plan == SMALL
    assert not problem.chunks
    assert len(problem.pool) == 0


def test_the_planned_bytes_count_what_the_plan_says(problem) -> None:
    state = make_state(problem, IMAGES)

    def needed(**changes: int) -> int:
        return planned_bytes(problem, state, Plan(**vars(SMALL) | changes))

    graph = needed(kept_graphs=2) - needed(kept_graphs=1)
    assert graph > 0
    assert needed(kept_graphs=100) == needed(kept_graphs=8)  # 2 classes of 4 images decode to 32, 4 at once
    assert needed(kept_graphs=8) - needed(kept_graphs=1) == 7 * graph
    assert (
        needed(classes_per_batch=2) - needed(classes_per_batch=1) == 6 * (problem.architecture.feature_dim + 2 * 32) * 4
    )
