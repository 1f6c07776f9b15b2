"""Memory claims, by the bytes that autograd holds: the peak depends on the chunk and the kept graphs alone."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rounding import EPS, SPARE, off

from benchmarks.held import Held
from ncfmkit.config import DistillSettings, NetworkSettings
from ncfmkit.distillation.memory import Plan
from ncfmkit.distillation.ncfd import characteristic_function
from ncfmkit.distillation.problem import make_problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.runtime import saved_bytes

FEATURES, FREQUENCIES = 8 * 4 * 4, 32  # of the network and the settings below


@pytest.fixture
def peak(make_real, make_pool, runtime):
    """The peak of autograd's bytes over one step, for a problem and a plan."""

    def measure(
        *, counts=(40, 40, 40), plan: Plan, checkpointing: bool = False, depth: int = 2, **settings: Any
    ) -> int:
        real = make_real(counts, size=16)
        pool, build = make_pool(real, network=NetworkSettings(width=8, depth=depth))
        settings = {"frequencies": FREQUENCIES, "ipc": 2, "real_batch": 8} | settings
        problem = make_problem(
            real,
            DistillSettings(**settings),
            seed=0,
            pool=pool,
            builds=[build],
            runtime=runtime,
            gradient_checkpointing=checkpointing,
        )
        images = np.random.default_rng(0).random((len(counts) * problem.settings.ipc, 3, 16, 16), dtype=np.float32)
        state = make_state(problem, torch.from_numpy(images))
        held = Held().watch(lambda: distill_step(problem, state, plan))
        assert held.now == 0  # nothing outlives the step
        return held.peak

    return measure


def one_graph(classes_per_batch: int = 3) -> Plan:
    return Plan(chunk=4, kept_graphs=1, classes_per_batch=classes_per_batch)


SLACK = 1024  # the weights of a chunk's images, [classes in it, images], and the indices


@pytest.mark.parametrize("settings", [{}, {"calibration_weight": 0.0}, {"metric": "mean"}])
def test_the_peak_does_not_grow_with_images_or_real_batch(peak, settings: dict) -> None:
    base = peak(plan=one_graph(), **settings)
    assert base > 50_000  # the graph of one chunk is in it
    assert peak(plan=one_graph(), ipc=16, **settings) <= base + SLACK
    assert peak(plan=one_graph(), real_batch=40, **settings) <= base + SLACK
    assert peak(plan=one_graph(), counts=(40,) * 3 + (20,) * 5, **settings) <= base * 1.05 + SLACK
    assert peak(plan=one_graph(classes_per_batch=1), **settings) <= base + SLACK


def test_with_psi_the_peak_grows_by_the_features_and_phases_of_one_stack(peak) -> None:
    small = peak(plan=one_graph(classes_per_batch=1), sampler="learned", ipc=16, real_batch=8)
    large = peak(plan=one_graph(classes_per_batch=1), sampler="learned", ipc=16, real_batch=40)
    per_image = 4 * (FEATURES + 2 * FREQUENCIES)  # float32: features, cos and sin
    assert large - small <= 32 * per_image + SLACK
    assert large > small  # so the bound above means something


def test_the_peak_grows_with_kept_graphs_and_chunk(peak) -> None:
    """So the measure above can fail."""
    base = peak(plan=one_graph(), ipc=4)
    assert peak(plan=Plan(chunk=4, kept_graphs=100, classes_per_batch=3), ipc=4) > 5 * base
    assert peak(plan=Plan(chunk=16, kept_graphs=1, classes_per_batch=3), ipc=4) > 2.5 * base
    two = peak(plan=Plan(chunk=4, kept_graphs=2, classes_per_batch=3), ipc=4)
    three = peak(plan=Plan(chunk=4, kept_graphs=3, classes_per_batch=3), ipc=4)
    assert base < two < three < 3.2 * base


def test_gradient_checkpointing_keeps_fewer_bytes(peak) -> None:
    settings = {"calibration_weight": 0.0, "depth": 4}
    plain = peak(plan=one_graph(), **settings)
    assert peak(plan=one_graph(), checkpointing=True, **settings) < 0.8 * plain


def test_checkpointed_features_keep_fewer_bytes_of_a_forward_pass(make_real, make_pool) -> None:
    from ncfmkit.distillation.problem import checkpointed_features

    real = make_real(size=16)
    _, build = make_pool(real, network=NetworkSettings(width=8, depth=3))
    network = build()
    x = torch.rand(16, 3, 16, 16, requires_grad=True)
    plain, checkpointed = network.features, checkpointed_features(network)
    assert saved_bytes(lambda: checkpointed(x)) < 0.5 * saved_bytes(lambda: plain(x))
    grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (plain, checkpointed)]
    assert off(*grads) <= SPARE * EPS  # the same operations, done twice
    with torch.no_grad():
        assert torch.equal(plain(x), checkpointed(x))


def test_the_characteristic_function_keeps_cos_and_sin_of_one_block_at_most() -> None:
    feat = torch.randn(64, 8, requires_grad=True)
    weight = torch.full((1, 64), 1 / 64)
    for count in (16, 17, 4096):
        freq = torch.randn(count, 8)
        kept = saved_bytes(partial(characteristic_function, feat, freq, weight, block=16))
        phases = 2 * 64 * 16 * 4 if count <= 16 else 0
        assert kept == feat.nbytes + freq.nbytes + weight.nbytes + phases
