"""`distill_step` against the plain, class-by-class reference of the benchmarks, and what must not change it.

How far float32 may be off is judged by the reference's own distance from float64, with the same draws (`rounding.py`).
"""

import copy
import dataclasses
import io
import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_NETWORK
from rounding import EPS, SPARE, allowed, off, smooth

from benchmarks.reference import Reference
from ncfmkit import augment as A
from ncfmkit import networks
from ncfmkit.config import DistillSettings, NetworkSettings
from ncfmkit.distillation import memory
from ncfmkit.distillation import step as step_module
from ncfmkit.distillation.memory import Plan, cut, make_plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Problem, State, StepLosses, make_problem, make_state, read
from ncfmkit.distillation.step import distill_step, draw_class, draw_noise, make_frequencies
from ncfmkit.errors import NonFiniteLossError, UserError
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime, saved_bytes

SEED = 3
# 128 frequencies are eight components of psi: batch norm over two would give -1 and 1 whatever psi is, and a gradient
# that is rounding alone
BASE: dict[str, Any] = {"ipc": 2, "factor": 2, "frequencies": 128, "real_batch": 6, "sampler_lr": 0.05}

# AdamW's first steps are lr * sign(gradient), where rounding may decide the sign of a gradient near zero. SGD's step is
# as long as the gradient: where images after several steps are compared, SGD moves them.
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.003}


def start_images(problem: Problem) -> torch.Tensor:
    real = problem.real
    shape = (problem.classes * problem.settings.ipc, real.channels, real.size, real.size)
    return torch.from_numpy(np.random.default_rng(1).random(shape, dtype=np.float32))


@pytest.fixture
def setting(make_real, make_pool, runtime):
    """Makes a problem and its state from settings; class 1 of 3 has fewer images than the real batch."""

    def make(
        *, real=None, runtime: Runtime = runtime, checkpointing: bool = False, **settings
    ) -> tuple[Problem, State]:
        real = make_real() if real is None else real
        pool, build = make_pool(real)
        problem = make_problem(
            real,
            DistillSettings(**(BASE | settings)),
            seed=SEED,
            pool=pool,
            builds=[smooth(build)],
            runtime=runtime,
            gradient_checkpointing=checkpointing,
        )
        return problem, make_state(problem, start_images(problem))

    return make


def whole(problem: Problem, **changes: int) -> Plan:
    """Everything at once."""
    return Plan(**({"chunk": 10_000, "kept_graphs": 1000, "classes_per_batch": problem.classes} | changes))


def with_networks(problem: Problem, **networks: Any) -> Problem:
    """A problem whose one architecture has other features or logits."""
    changed = dataclasses.replace(problem.architecture, **networks)
    return dataclasses.replace(problem, architectures=(changed,))


def run(setting, steps: int = 3, plan: dict | None = None, **settings) -> torch.Tensor:
    problem, state = setting(**settings)
    for _ in range(steps):
        distill_step(problem, state, whole(problem, **(plan or {})))
    return state.images.detach()


def losses_of(problem: Problem, state: State, plan: Plan) -> StepLosses:
    """Of one step, which is made."""
    return read(problem, [distill_step(problem, state, plan)])[0]


def off_by(got: float, exact: float) -> float:
    return abs(got - exact) / abs(exact)


@dataclasses.dataclass
class Judge:
    """Images from `start` after some steps: where float64 puts them, and how far float32 is off by rounding alone."""

    start: torch.Tensor
    exact: torch.Tensor
    plain: torch.Tensor

    def check(self, images: torch.Tensor, rows: slice = slice(None)) -> None:
        images, start, exact, plain = (x[rows] for x in (images, self.start, self.exact, self.plain))
        moved = exact - start
        assert moved.norm() > 1e-2
        # the images are stored in float32, which alone rounds them by up to EPS of their length
        floor = EPS * float(exact.norm() / moved.norm())
        assert off(images - start, moved) <= SPARE * max(floor, off(plain - start, moved))


def judge(problem: Problem, state: State, steps: int = 3) -> Judge:
    """Runs the reference from the state, which it leaves alone."""
    start = state.images.detach().clone()
    psi: list[torch.Tensor] | None = list(state.psi.parameters()) if state.psi else None
    ends = []
    for dtype in (torch.float64, torch.float32):
        reference = Reference(problem, start, psi, dtype=dtype)
        for step in range(state.step, state.step + steps):
            reference.step(step)
        ends.append(torch.cat(reference.images).detach().double())
    return Judge(start.double(), *ends)


Update = tuple[list[torch.Tensor], list[torch.Tensor]]  # an optimizer's parameters before a step, and their gradients


def recorded(optimizer: torch.optim.Optimizer | None) -> list[Update]:
    """Every update from now on."""
    updates: list[Update] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = optimizer.param_groups[0]["params"]
        updates.append(([p.detach().clone() for p in parameters], [p.grad.clone() for p in parameters]))

    if optimizer is not None:
        optimizer.register_step_pre_hook(record)
    return updates


CASES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "learned": {"sampler": "learned"},
    "sgd": SGD | {"weight_decay": 0.5},
    "sgd-learned": SGD | {"sampler": "learned", "calibration_weight": 0.7},
    "no-calibration": {"calibration_weight": 0.0},
    "alpha": {"alpha": 0.8, "sampler": "learned"},
    "mean": {"metric": "mean", "matching_weight": 3.0},
    "mean-sgd": SGD | {"metric": "mean", "matching_weight": 3.0, "calibration_weight": 0.0},
    "multi": {"decode": "multi"},
    "bound": {"decode": "bound", "decoded_per_class": 5},
    "factor-1": {"factor": 1, "ipc": 3},
    "weight-decay": {"weight_decay": 0.3},
}


@pytest.mark.parametrize("plan", [{}, {"chunk": 5, "kept_graphs": 2, "classes_per_batch": 2}], ids=["whole", "cut"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_the_reference(setting, case: str, plan: dict) -> None:
    """Losses and gradients are judged where the step took them; then the optimizers, given these very gradients.

    So no difference of one step is enlarged by the next.
    """
    problem, state = setting(**CASES[case])
    start, learned = state.images.detach().clone(), state.psi is not None
    psi = psi_start = [p.detach().clone() for p in state.psi.parameters()] if learned else None
    image_updates, psi_updates = recorded(state.optimizer), recorded(state.psi_optimizer)
    rules = Reference(problem, start, psi, dtype=torch.float64)
    for step in range(3):
        losses = losses_of(problem, state, whole(problem, **plan))
        phases = ["matching"] + ["calibration"] * (problem.settings.calibration_weight > 0)
        assert len(image_updates) == len(phases)
        psi, psi_grads = psi_updates.pop() if learned else (None, [])
        for phase, ((images,), (grad,)) in zip(phases, image_updates, strict=True):
            plain, exact = (
                getattr(Reference(problem, images, psi, dtype=dtype), phase)(step)
                for dtype in (torch.float32, torch.float64)
            )
            loss, grads = getattr(losses, phase), list(grad.split(problem.settings.ipc))
            # a loss is one number, which rounding may spare by chance: its gradient tells what the step's rounding is
            rounding = max(EPS, off_by(plain.loss, exact.loss), off(plain.images, exact.images))
            assert off_by(loss, exact.loss) <= SPARE * rounding
            assert off(grads, exact.images) <= SPARE * rounding
            if learned and phase == "matching":
                assert off(psi_grads, exact.psi) <= allowed(plain.psi, exact.psi)
                rules.ascend(psi_grads)
            torch.testing.assert_close(images.double(), torch.cat(rules.images).detach(), rtol=0, atol=8 * EPS)
            rules.move(grads)
        image_updates.clear()
    # up to 6 updates, each of which rounds a value in [0, 1] twice, by EPS / 4 at most
    torch.testing.assert_close(state.images.detach().double(), torch.cat(rules.images).detach(), rtol=0, atol=8 * EPS)
    assert (state.images.detach() - start).abs().max() > 1e-3
    assert (losses.calibration is None) == (problem.settings.calibration_weight == 0)
    assert state.step == 3
    if learned:
        assert psi_start is not None
        assert rules.psi is not None
        now = [p.detach() for p in state.psi.parameters()]
        largest = max(float(p.abs().max()) for p in now)
        for got, expected in zip(now, rules.psi, strict=True):
            torch.testing.assert_close(got.double(), expected.detach(), rtol=0, atol=8 * EPS * largest)
        assert off(now, psi_start) > 1e-3


def test_twenty_steps_end_near_the_reference(setting) -> None:
    problem, state = setting(ipc=3, real_batch=9, frequencies=64, **SGD)
    judged = judge(problem, state, 20)
    for _ in range(20):
        distill_step(problem, state, whole(problem, chunk=8, kept_graphs=2))
    judged.check(state.images.detach())


def test_real_images_as_a_tensor_on_the_device_change_nothing(setting) -> None:
    problem, state = setting()
    kept = dataclasses.replace(problem, train_images=torch.from_numpy(problem.real.train.images))
    expected = run(setting, 2)
    for _ in range(2):
        distill_step(kept, state, whole(problem))
    assert torch.equal(state.images.detach(), expected)


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_stacking_does_not_change_the_images(setting, sampler: str) -> None:
    problem, state = setting(sampler=sampler, **SGD)
    judged = judge(problem, state, 4)
    for stack in (1, 2, 3):
        judged.check(run(setting, 4, {"classes_per_batch": stack}, sampler=sampler, **SGD))


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
@pytest.mark.parametrize("kept", [1, 2, 100])
def test_chunks_do_not_change_the_images(setting, sampler: str, kept: int) -> None:
    judged = judge(*setting(sampler=sampler, **SGD))
    for chunk in (1, 4, 5, 7, 8, 13, 24, 25):
        judged.check(run(setting, 3, {"chunk": chunk, "kept_graphs": kept}, sampler=sampler, **SGD))


def test_a_class_does_not_depend_on_the_data_of_the_others(setting, make_real) -> None:
    first, other = make_real((7, 5, 9)), make_real((12, 5, 2), seed=9)
    train = dataclasses.replace(
        other.train,
        images=np.concatenate([other.train.images[:12], first.train.images[7:12], other.train.images[17:]]),
    )
    a = run(setting, 4, real=first, **SGD)
    b = run(setting, 4, real=dataclasses.replace(other, train=train), **SGD)
    problem, state = setting(real=first, **SGD)
    judged = judge(problem, state, 4)
    for images in (a, b):
        judged.check(images, slice(2, 4))
    assert (a[:2] - b[:2]).abs().max() > 1e-3


def test_the_same_run_twice_and_the_global_generator(setting) -> None:
    torch.manual_seed(1)
    first = run(setting, sampler="learned")
    torch.manual_seed(2)
    assert torch.equal(run(setting, sampler="learned"), first)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "learned"},
        {"optimizer": "sgd"},
        {"patience": 1},
        {"schedule": "smooth-plateau", "patience": 1},
        {"schedule": "cosine", "warmup": 2, "steps": 6},
        {"average": 0.5},
    ],
)
def test_a_restored_state_goes_on_bit_for_bit(setting, settings: dict) -> None:
    problem, state = setting(**settings)
    plan = whole(problem, chunk=8)
    for _ in range(3):
        distill_step(problem, state, plan)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    losses = [losses_of(problem, state, plan) for _ in range(3)]

    other_problem, other = setting(**settings)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.step == 3
    assert [losses_of(other_problem, other, plan) for _ in range(3)] == losses
    assert torch.equal(other.images, state.images)
    assert torch.equal(other.result, state.result)
    for a, b in zip(*(s.psi.parameters() if s.psi else [] for s in (state, other)), strict=True):
        assert torch.equal(a, b)


def test_draws_of_a_class(setting) -> None:
    problem, _ = setting()
    counts, offsets = problem.real.train.counts(), problem.real.train.offsets
    seen: list[set[int]] = [set() for _ in counts]
    for step in range(40):
        for c in range(3):
            draw, again = draw_class(problem, step, c), draw_class(problem, step, c)
            assert np.array_equal(draw.real_index, again.real_index)
            assert len(set(draw.real_index.tolist())) == len(draw.real_index) == min(6, counts[c])
            assert offsets[c] <= draw.real_index.min()
            assert draw.real_index.max() < offsets[c + 1]
            assert not np.array_equal(draw.matching_P, draw.calibration_P)
            assert not np.array_equal(draw.matching_P, draw_class(problem, step + 1, c).matching_P)
            seen[c] |= set(draw.real_index.tolist())
    assert [len(s) for s in seen] == counts.tolist()  # every real image takes part sooner or later


def test_a_class_draws_by_the_seed(setting) -> None:
    problem, _ = setting()
    draws = [[draw_class(dataclasses.replace(problem, seed=seed), s, 2) for s in range(5)] for seed in (SEED, SEED + 1)]
    pairs = list(zip(*draws, strict=True))
    assert not all(np.array_equal(one.real_index, two.real_index) for one, two in pairs)
    for one, two in pairs:
        assert not set(one.matching_P) & set(two.matching_P)
        assert not set(one.calibration_P) & set(two.calibration_P)


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_frequencies_are_drawn_by_seed_and_step(setting, sampler: str) -> None:
    problem, state = setting(sampler=sampler)

    def drawn(seed: int, step: int) -> torch.Tensor:
        freq_TD = make_frequencies(state, draw_noise(dataclasses.replace(problem, seed=seed), step))
        assert freq_TD is not None
        return freq_TD.detach()

    assert torch.equal(drawn(SEED, 0), drawn(SEED, 0))
    for seed, step in ((SEED, 1), (SEED + 1, 0)):
        assert (drawn(seed, step) - drawn(SEED, 0)).abs().median() > 0.1


def test_psi_starts_by_the_seed(setting) -> None:
    problem, state = setting(sampler="learned")
    others = [make_state(dataclasses.replace(problem, seed=seed), start_images(problem)) for seed in (SEED, SEED + 1)]
    first, same, other = (s.psi.layers[0].weight for s in (state, *others))
    assert torch.equal(first, same)
    assert (first - other).abs().median() > 1e-3


class SpiedPool(Pool):
    """Notes which weights each network is set to, and sets none."""

    def noted(self, network: object) -> list[tuple]:
        return self.__dict__.setdefault(f"noted by {id(network)}", [])

    def blend(self, network, member, beta):
        self.noted(network).append((member, beta))

    def load(self, network, member, stage=-1):
        self.noted(network).append((member, stage))


def drawn_networks(setting, make_real, make_pool, seed: int, stages: int = 2, **settings) -> tuple[list, list]:
    """Of 300 steps: members and betas or stages that matched, and members and stages that calibrated."""
    problem, _ = setting(steps=300, **settings)
    pool, _ = make_pool(make_real(), members=3)
    spied = SpiedPool(**{f.name: getattr(pool, f.name) for f in dataclasses.fields(pool)})
    spied = dataclasses.replace(spied, stages=[[of_member[0]] * stages for of_member in pool.stages])
    problem = dataclasses.replace(problem, pool=spied, seed=seed)
    for step in range(300):
        step_module.draw_networks(problem, step)
    return spied.noted(problem.architecture.matcher), spied.noted(problem.architecture.calibrator)


def test_networks_of_a_step_are_one_member_drawn_from_the_whole_pool(setting, make_real, make_pool) -> None:
    matched, calibrated = drawn_networks(setting, make_real, make_pool, SEED)
    betas = [beta for _, beta in matched]
    assert calibrated == [(member, -1) for member, _ in matched]
    assert {member for member, _ in matched} == {0, 1, 2}
    assert 0 <= min(betas) < 0.2
    assert 0.8 < max(betas) < 1
    others, _ = drawn_networks(setting, make_real, make_pool, SEED + 1)
    assert [member for member, _ in others] != [member for member, _ in matched]
    assert not {beta for _, beta in others} & set(betas)


def test_a_pool_of_two_architectures_steps_as_each_alone(setting, make_real, make_pool) -> None:
    """Members 0 and 2 are of one network, member 1 of another with twice the features."""
    real = make_real()
    wide = dataclasses.replace(TINY_NETWORK, width=2 * TINY_NETWORK.width)
    parts = [make_pool(real, members=3), make_pool(real, members=3, network=wide)]
    stages = [parts[m % 2][0].stages[m] for m in range(3)]
    pool = dataclasses.replace(parts[0][0], stages=stages, accuracies=[None] * 3, architectures=2)
    builds = [smooth(build) for _, build in parts]
    settings = DistillSettings(**(BASE | SGD))
    how: dict[str, Any] = {"seed": SEED, "runtime": setting()[0].runtime}
    problem = make_problem(real, settings, pool=pool, builds=builds, **how)
    assert [of.feature_dim for of in problem.architectures] == [32, 64]
    state, seen = make_state(problem, start_images(problem)), set()
    for step in range(6):
        member = int(keyed_rng(SEED, "step", step).integers(3))
        alone = make_problem(real, settings, pool=only(pool, member), builds=[builds[member % 2]], **how)
        other = make_state(alone, state.images.detach())
        other.load_state_dict(copy.deepcopy(state.state_dict()))
        distill_step(problem, state, whole(problem))
        distill_step(alone, other, whole(alone))
        assert torch.equal(state.images, other.images)
        seen.add(member % 2)
    assert seen == {0, 1}


def only(pool: Pool, member: int) -> Pool:
    """A pool of equally many members, all of which are that one."""
    return dataclasses.replace(pool, stages=[pool.stages[member]] * len(pool), architectures=1)


def test_a_budget_counts_the_networks_of_all_architectures(setting, make_real, make_pool) -> None:
    real = make_real()
    wide = dataclasses.replace(TINY_NETWORK, width=4 * TINY_NETWORK.width)
    (small, build_small), (large, build_large) = make_pool(real), make_pool(real, network=wide)
    how: dict[str, Any] = {"seed": SEED, "runtime": setting()[0].runtime}

    def bytes_of(pool: Pool, *builds: Any) -> tuple[int, int]:
        problem = make_problem(real, DistillSettings(**BASE), pool=pool, builds=builds, **how)
        state = make_state(problem, start_images(problem))
        return memory._fixed_bytes(problem, state), memory._bytes_per_image(problem, state)

    one, other = bytes_of(small, build_small), bytes_of(large, build_large)
    both = bytes_of(dataclasses.replace(small, architectures=2), build_small, build_large)
    assert both[1] == max(one[1], other[1])
    weights = [sum(v.nbytes for v in pool.final[0].values()) for pool in (small, large)]
    assert both[0] == other[0] + 2 * weights[0]


@pytest.mark.parametrize("count", [None, 1, 3, 100])
def test_stages_of_a_step_are_of_one_member(setting, make_real, make_pool, count: int | None) -> None:
    """Five stages; calibration by the final one, or by one of `count` stages from the matching one on."""
    matched, calibrated = drawn_networks(
        setting, make_real, make_pool, SEED, stages=5, extractor="stages", calibration_stages=count
    )
    assert [member for member, _ in calibrated] == [member for member, _ in matched]
    assert {member for member, _ in matched} == {0, 1, 2}
    assert {stage for _, stage in matched} == {0, 1, 2, 3, 4}
    ahead: dict[int, set[int]] = {stage: set() for stage in range(5)}
    for (_, stage), (_, later) in zip(matched, calibrated, strict=True):
        ahead[stage].add(later)
    for stage, later in ahead.items():
        assert later <= ({4} if count is None else set(range(stage, min(5, stage + count))))
    assert ahead[0] == {None: {4}, 1: {0}, 3: {0, 1, 2}, 100: {0, 1, 2, 3, 4}}[count]


def test_rising_stages_begin_with_the_first_and_end_with_all(setting, make_real, make_pool) -> None:
    matched, _ = drawn_networks(setting, make_real, make_pool, SEED, stages=5, extractor="stages", stage_order="rising")
    stages = [stage for _, stage in matched]
    for step, stage in enumerate(stages):
        assert stage <= step // 60
    assert set(stages[-60:]) - {0, 1}
    assert [max(stages[: 60 * k]) for k in (1, 2, 5)] == [0, 1, 4]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 7, 100])
def test_cut_gives_every_image_its_share_once(size: int) -> None:
    counts, parts = [4, 1, 6], 2
    label_N = np.repeat(np.arange(3), counts)
    share = np.random.default_rng(0).random((11, parts))
    chunks = cut(label_N, share, size, torch.device("cpu"))
    assert len({len(c.index_N) for c in chunks}) == 1
    assert len(chunks[0].index_N) <= max(1, size)
    total = np.zeros((3, 11, parts))
    for chunk in chunks:
        weight = chunk.weight_CN.view(-1, len(chunk.index_N), parts).numpy()
        for row, c in enumerate(range(chunk.classes.start, chunk.classes.stop)):
            np.add.at(total[c], chunk.index_N.numpy(), weight[row])
    expected = np.zeros((3, 11, parts))
    expected[label_N, np.arange(11)] = share
    np.testing.assert_allclose(total, expected, rtol=1e-6)


class Small:
    """A network that runs out of memory above `limit` images."""

    def __init__(self, network, limit: int):
        self.network, self.limit, self.largest = network, limit, 0

    def __call__(self, x: torch.Tensor, *how: Any) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError(f"{len(x)} images")
        self.largest = max(self.largest, len(x))
        return self.network(x, *how)


@pytest.mark.parametrize("where", ["features", "logits"])
@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_out_of_memory_halves_the_chunk(setting, capsys, where: str, sampler: str) -> None:
    problem, state = setting(sampler=sampler, **SGD)
    judged = judge(problem, state)
    small = Small(getattr(problem.architecture, where), 5)
    problem = with_networks(problem, **{where: small})
    plan = Plan(chunk=32, kept_graphs=100, classes_per_batch=3)
    for _ in range(3):
        distill_step(problem, state, plan)
    assert plan.chunk == 4
    assert 0 < small.largest <= 4
    err = capsys.readouterr().err
    for chunk in (16, 8, 4):
        assert err.count(f"out of memory: chunks of {chunk} images from now on (slower, same result)") == 1
    judged.check(state.images.detach())


def test_out_of_memory_in_the_backward_pass(setting) -> None:
    """The gradient of the failed attempt must not be counted."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            calls.append(len(grad))
            if len(calls) == 2:
                raise torch.OutOfMemoryError("in the second chunk")
            return grad

    calls: list[int] = []
    problem, state = setting(**SGD)
    judged = judge(problem, state, 1)
    features = problem.architecture.features
    problem = with_networks(problem, features=lambda x, *how: Fails.apply(features(x, *how)))
    distill_step(problem, state, Plan(chunk=8, kept_graphs=2, classes_per_batch=3))
    assert calls[:4] == [8, 8, 4, 4]
    judged.check(state.images.detach())


def test_persistent_out_of_memory_is_raised(setting) -> None:
    problem, state = setting()
    problem, before = (
        with_networks(problem, features=Small(problem.architecture.features, 0)),
        state.images.detach().clone(),
    )
    plan = Plan(chunk=32, kept_graphs=4, classes_per_batch=3)
    with pytest.raises(torch.OutOfMemoryError):
        distill_step(problem, state, plan)
    assert plan.chunk == 4  # one stored image
    assert torch.equal(state.images, before)


def test_other_errors_are_raised_at_once(setting) -> None:
    problem, state = setting()

    def broken(x: torch.Tensor, *how: Any) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    plan = whole(problem)
    with pytest.raises(RuntimeError, match="no such kernel"):
        distill_step(with_networks(problem, features=broken), state, plan)
    assert plan == whole(problem)


@pytest.mark.parametrize("plan", [{}, {"chunk": 4}, {"classes_per_batch": 1}, {"chunk": 5, "classes_per_batch": 2}])
@pytest.mark.parametrize(("where", "name"), [("features", "matching"), ("logits", "calibration")])
def test_a_non_finite_loss_names_class_and_step(setting, where: str, name: str, plan: dict) -> None:
    problem, state = setting()
    distill_step(problem, state, whole(problem, **plan))
    with torch.no_grad():
        state.images[3, 0, 0, 0] = math.nan  # of class 1
    if name == "calibration":  # let the matching pass
        features = problem.architecture.features
        problem = with_networks(problem, features=lambda x, *how: features(x.nan_to_num(0, 0, 0), *how))
    message = rf"the {name} loss of class 'class 1' became non-finite in step 1: lower --lr, or try --precision fp32"
    with pytest.raises(NonFiniteLossError, match=message):
        losses_of(problem, state, whole(problem, **plan))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_non_finite_gradient_of_a_finite_loss_is_noticed(setting, weight: float) -> None:
    problem, state = setting(calibration_weight=weight)
    distill_step(problem, state, whole(problem))
    step = state.optimizer.step

    def poisoned() -> None:
        state.images.grad[3, 0, 0, 0] = math.nan  # of class 1
        step()

    state.optimizer.step = poisoned
    name = "the calibration loss" if weight else "the images"
    message = rf"{name} of class 'class 1' became non-finite in step 1: lower --lr, or try --precision fp32"
    with pytest.raises(NonFiniteLossError, match=message):
        losses_of(problem, state, whole(problem))


def test_images_stay_in_range(setting) -> None:
    problem, state = setting(lr=0.3, optimizer="adamw")
    for _ in range(4):
        distill_step(problem, state, whole(problem))
        assert state.images.min() == 0
        assert state.images.max() == 1


def test_the_learning_rate_halves_after_patience(setting, monkeypatch) -> None:
    """A constant loss: the first step sets the mark, then `patience` steps in vain are borne."""
    problem, state = setting(patience=3, calibration_weight=0.0, matching_weight=0.0)
    rates = [losses_of(problem, state, whole(problem)).lr for _ in range(12)]
    assert rates == [1e-3] * 5 + [5e-4] * 4 + [2.5e-4] * 3


@pytest.mark.parametrize(
    ("matching", "calibration", "halves"),  # how much each loss grows with every step; weights are 2 and 3
    [
        (-0.1, -0.1, False),
        (0.1, 0.1, True),
        (-0.1, 0.2, True),  # by the sum, though the matching loss falls
        (0.2, -0.1, True),  # by the sum, though the calibration loss falls
        (0.1, -0.2, False),
        (-0.2, 0.1, False),
        (-0.2, 0.15, True),  # by the weights: -0.4 + 0.45
    ],
)
def test_the_plateau_is_of_the_weighted_sum_of_both_losses(
    setting, monkeypatch, matching: float, calibration: float, halves: bool
) -> None:
    problem, state = setting(patience=2, matching_weight=2.0, calibration_weight=3.0)

    def scripted(start: float, slope: float) -> torch.Tensor:
        return torch.full((problem.classes,), start + slope * state.step)

    monkeypatch.setattr(step_module, "_match", lambda *_: (scripted(5.0, matching), torch.tensor(-1), None))
    monkeypatch.setattr(step_module, "_calibrate", lambda *_: (scripted(5.0, calibration), torch.tensor(-1)))
    rates = [losses_of(problem, state, whole(problem)).lr for _ in range(6)]
    assert rates == ([1e-3] * 4 + [5e-4] * 2 if halves else [1e-3] * 6)


def test_the_reported_losses(setting) -> None:
    problem, state = setting(matching_weight=2.0)
    one = losses_of(problem, state, whole(problem))
    problem, state = setting(matching_weight=300.0)
    two = losses_of(problem, state, whole(problem))
    assert two.matching == pytest.approx(150 * one.matching, rel=1e-5)
    assert one.lr == 1e-3
    problem, state = setting(calibration_weight=0.0)
    assert losses_of(problem, state, whole(problem)).calibration is None


def test_the_loss_falls(setting) -> None:
    problem, state = setting(lr=0.01, frequencies=128)
    losses = [losses_of(problem, state, whole(problem)).matching for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_errors_of_make_problem(setting) -> None:
    with pytest.raises(UserError, match=r"--factor 9 is above the image side of tiny, 8: lower it"):
        setting(factor=9)
    with pytest.raises(UserError, match=r"unknown augmentation 'blur' in 'color_blur'"):
        setting(augment="color_blur")


def test_only_networks_of_blocks_can_be_checkpointed(make_real, make_pool, runtime) -> None:
    real = make_real()
    pool, _ = make_pool(real)
    with pytest.raises(UserError, match=r"--gradient-checkpointing works with networks made of blocks"):
        make_problem(
            real,
            DistillSettings(),
            seed=0,
            pool=pool,
            builds=[partial(networks.build, "alexnet", channels=3, classes=3, size=8)],
            runtime=runtime,
            gradient_checkpointing=True,
        )


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_too_small_a_budget_says_what_would_do(setting, sampler: str) -> None:
    problem, state = setting(sampler=sampler)
    with pytest.raises(
        UserError, match=r"--memory-budget 10 B is below what one stored image needs: at least \d+MiB"
    ) as e:
        make_plan(problem, state, budget=10)
    least = int(str(e.value).rsplit(" ", 1)[1].removesuffix("MiB")) * 2**20
    plan = make_plan(problem, state, budget=least)
    assert plan.chunk >= 4
    assert plan.kept_graphs >= 1
    assert plan.classes_per_batch >= 1


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_larger_budgets_give_larger_plans(setting, sampler: str) -> None:
    problem, state = setting(sampler=sampler)
    plans = [make_plan(problem, state, budget=int(2**20 * 1.3**k)) for k in range(30)]
    for small, large in pairwise(plans):
        assert large.chunk >= small.chunk
        assert large.classes_per_batch >= small.classes_per_batch
    assert plans[-1].kept_graphs > plans[0].kept_graphs
    assert plans[-1].chunk > plans[0].chunk
    assert plans[-1].classes_per_batch == 3
    assert make_plan(problem, state, budget=2**30, classes_per_batch=2).classes_per_batch == 2
    assert make_plan(problem, state, budget=2**30, classes_per_batch=50).classes_per_batch == 3
    assert make_plan(problem, state, budget=None).chunk > 0


def test_what_is_kept_counts_in_the_budget(setting) -> None:
    def least(**settings) -> int:
        with pytest.raises(UserError, match="at least") as e:
            make_plan(*setting(**settings), budget=0)
        return int(str(e.value).rsplit(" ", 1)[1].removesuffix("MiB"))

    problem_features = setting()[0].architecture.feature_dim
    images = 3 * 2000 * 3 * 8 * 8 * 4 / 2**20  # of 3 classes with 2000 images of 8 pixels each
    assert least(ipc=2000, factor=1) == pytest.approx(least(factor=1) + 6 * images, abs=1)
    psi_and_frequencies = least(sampler="learned", frequencies=4096) - least(frequencies=4096)
    assert psi_and_frequencies == pytest.approx(5 * 4096 * problem_features * 4 / 2**20, abs=1)
    assert least(sampler="learned", real_batch=40_000) > least(sampler="learned") + 10


def test_a_plan_keeps_to_its_budget_by_the_graphs_it_holds(setting) -> None:
    """What autograd keeps of `kept_graphs` chunks is within the budget."""
    problem, state = setting(ipc=8)
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    fixed = sum(
        p.nbytes for n in (problem.architecture.matcher, problem.architecture.calibrator) for p in n.parameters()
    )
    fixed += 4 * state.images.nbytes  # with gradient and two moments

    def features(chunk: int) -> torch.Tensor:
        rows = torch.full((chunk, A.DRAWS), 0.5)
        return problem.architecture.features(images.expand(chunk, -1, -1, -1) * 1.0, rows, problem.drawn(rows))

    for budget in (2**20, 2**21, 2**23):
        plan = make_plan(problem, state, budget=budget)
        per_chunk = saved_bytes(partial(features, plan.chunk))
        assert per_chunk > 1000 * plan.chunk
        assert plan.kept_graphs * per_chunk <= budget - fixed


def test_gradient_checkpointing_gives_the_same_images(setting) -> None:
    judged = judge(*setting(**SGD))
    for plan in ({}, {"chunk": 5, "kept_graphs": 2}):
        judged.check(run(setting, plan=plan, checkpointing=True, **SGD))


def with_precision(precision: str, compile_: bool = False) -> Runtime:
    return Runtime(device=torch.device("cpu"), precision=precision, compile=compile_, why="tests")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_half_precision_stays_near_float32(setting, precision: str, dtype: torch.dtype, sampler: str) -> None:
    """By a few of its own roundings, as float32 stays near float64."""
    results, few = [], SPARE * torch.finfo(dtype).eps
    for runtime in (with_precision("fp32"), with_precision(precision)):
        # SGD, whose step is as long as the gradient, so that the gradient itself is compared
        problem, state = setting(runtime=runtime, optimizer="sgd", lr=1e-2, sampler=sampler)
        if runtime.precision == "fp16":  # else the first steps only find the scale
            state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 64.0})
        before = state.images.detach().clone()
        steps = [losses_of(problem, state, whole(problem, chunk=8)) for _ in range(3)]
        assert state.images.dtype == torch.float32
        assert state.images.isfinite().all()
        results.append((np.array([(x.matching, x.calibration) for x in steps]), state.images.detach() - before))
    (losses, moved), (half_losses, half_moved) = results
    np.testing.assert_allclose(half_losses, losses, rtol=few)
    assert moved.abs().max() > 1e-3
    assert off(half_moved, moved) < few


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(setting) -> None:
    problem, state = setting(runtime=with_precision("fp16"), calibration_weight=0.0, matching_weight=1e12)
    before, scale = state.images.detach().clone(), state.scaler.get_scale()
    distill_step(problem, state, whole(problem))
    assert torch.equal(state.images, before)
    assert state.scaler.get_scale() == scale / 2


def test_an_overflow_in_fp16_leaves_psi_where_it_is_too(setting) -> None:
    large = {"matching_weight": 1e38, "calibration_weight": 0.0, "sampler": "learned"}  # times the scale it is infinite
    problem, state = setting(runtime=with_precision("fp16"), **large)
    images, psi = state.images.detach().clone(), [p.detach().clone() for p in state.psi.parameters()]
    scale = state.scaler.get_scale()
    distill_step(problem, state, whole(problem))
    assert torch.equal(state.images, images)
    assert all(torch.equal(p, before) for p, before in zip(state.psi.parameters(), psi, strict=True))
    assert state.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_psi_stays_where_nothing_is_matched(setting, precision: str) -> None:
    """No weight of the matching loss, no ascent; the images go by the calibration alone."""
    problem, state = setting(runtime=with_precision(precision), matching_weight=0.0, sampler="learned")
    images, psi = state.images.detach().clone(), [p.detach().clone() for p in state.psi.parameters()]
    for _ in range(4):
        losses = losses_of(problem, state, whole(problem))
        assert losses.matching == 0
        assert losses.calibration is not None
        assert losses.calibration > 0
    assert all(torch.equal(p, before) for p, before in zip(state.psi.parameters(), psi, strict=True))
    assert (state.images - images).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_step_equals_the_reference(setting, precision: str) -> None:
    from ncfmkit.runtime import compiler_missing

    if compiler_missing(torch.device("cpu")):
        pytest.skip(compiler_missing(torch.device("cpu")))
    problem, state = setting(runtime=with_precision(precision, True), **SGD)
    judged = judge(problem, state, 2)
    for _ in range(2):
        distill_step(problem, state, whole(problem, chunk=8, kept_graphs=2))
    if precision == "fp32":
        judged.check(state.images.detach())
    else:
        few = SPARE * torch.finfo(torch.bfloat16).eps
        assert off(state.images.detach() - judged.start, judged.exact - judged.start) < few


def test_the_network_may_be_another(make_real, make_pool, runtime) -> None:
    """Depth 1 and one channel."""
    real = make_real(channels=1)
    pool, build = make_pool(real, network=NetworkSettings(width=4, depth=1))
    problem = make_problem(real, DistillSettings(**BASE), seed=0, pool=pool, builds=[build], runtime=runtime)
    assert problem.architecture.feature_dim == 4 * 4 * 4
    state = make_state(problem, start_images(problem))
    assert losses_of(problem, state, whole(problem)).matching > 0
