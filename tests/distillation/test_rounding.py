"""Images that are distilled as they are stored, in fewer bits than 8."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings, Settings
from ncfmkit.distillation import rounding
from ncfmkit.distillation import step as step_module
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import Plan
from ncfmkit.distillation.problem import Problem, State, make_problem, make_state
from ncfmkit.distillation.rounding import as_stored as as_stored_in
from ncfmkit.distillation.step import distill_step, rounds
from ncfmkit.runtime import Runtime
from ncfmkit.sets.manifest import Pixels, finished_set, to_bytes
from ncfmkit.sets.pixels import stored as stored_in
from ncfmkit.sets.quantize import quantize


def as_stored(images: torch.Tensor, bits: int) -> torch.Tensor:
    return as_stored_in(images, bits, subsampled=False)


def pixels(kind: str) -> torch.Tensor:
    """Images in [0, 1], `[6, 3, 9, 9]`."""
    rng = np.random.default_rng(0)
    values = {
        "uniform": rng.random((6, 3, 9, 9)),
        "narrow": 0.4 + 0.05 * rng.random((6, 3, 9, 9)),
        "outliers": np.where(rng.random((6, 3, 9, 9)) < 0.03, rng.integers(0, 2, (6, 3, 9, 9)), 0.5),
        "constant": np.broadcast_to(rng.integers(0, 256, (6, 3, 1, 1)) / 255, (6, 3, 9, 9)),
        "normal": (0.5 + 0.2 * rng.standard_normal((6, 3, 9, 9))).clip(0, 1),
    }
    return torch.from_numpy(values[kind].astype(np.float32))


KINDS = ["uniform", "narrow", "outliers", "constant", "normal"]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_see_the_color_that_is_stored(kind: str, bits: int) -> None:
    images = torch.nn.functional.pad(pixels(kind), (0, 3, 0, 3), mode="replicate")
    how = Pixels(bits=bits, scale="image", dither=False, shape=(3, 12, 12), chroma="4:2:0")
    stored, _, _ = stored_in(to_bytes(images), how)
    assert torch.equal(as_stored_in(images, bits, subsampled=True), stored.float() / 255)
    assert not torch.equal(stored.float() / 255, images)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_see_what_is_stored(kind: str, bits: int) -> None:
    images = pixels(kind)
    stored, _ = quantize(to_bytes(images).numpy(), bits=bits, scale="image", dither=False)
    assert torch.equal(as_stored(images, bits), torch.from_numpy(stored).float() / 255)


def test_what_is_not_finite_stays_so() -> None:
    images = pixels("uniform")
    images[1, 2, 3, 4], images[2, 0, 0, 0] = torch.nan, torch.inf
    stored = as_stored(images, 3)
    assert torch.equal(stored.isfinite(), images.isfinite())
    assert torch.equal(stored[3:], as_stored(images[3:], 3))
    images = images[:, :, :8, :8]
    stored = as_stored_in(images, 3, subsampled=True)
    assert torch.equal(stored.isfinite(), images.isfinite())
    assert torch.equal(stored[3:], as_stored_in(images[3:], 3, subsampled=True))


@pytest.mark.parametrize("subsampled", [False, True])
def test_parts_of_the_rows_are_rounded_alike(monkeypatch: pytest.MonkeyPatch, subsampled: bool) -> None:
    images = pixels("normal")[:, :, :8, :8]
    whole = as_stored_in(images, 3, subsampled=subsampled)
    monkeypatch.setattr(rounding, "PART", 5)
    assert torch.equal(as_stored_in(images, 3, subsampled=subsampled), whole)


@pytest.fixture
def setting(make_real, make_pool, runtime: Runtime):
    def make(**settings: Any) -> tuple[Problem, State, Plan]:
        real = make_real()
        pool, build = make_pool(real)
        chosen = DistillSettings(ipc=2, factor=2, frequencies=128, real_batch=6, **settings)
        problem = make_problem(real, chosen, seed=3, pool=pool, builds=[build], runtime=runtime)
        state = make_state(problem, initialize("mix", real, ipc=2, factor=2, seed=0))
        return problem, state, Plan(chunk=10_000, kept_graphs=1000, classes_per_batch=problem.classes)

    return make


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("classes_per_batch", [1, 3])
def test_the_gradient_is_that_at_the_rounded_images(setting, classes_per_batch: int, chroma: str) -> None:
    kept = {"chroma": chroma, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1e-3}
    problem, state, plan = setting(bits=3, bits_from=0.0, **kept)
    plan = dataclasses.replace(plan, classes_per_batch=classes_per_batch)
    plain = dataclasses.replace(problem, settings=dataclasses.replace(problem.settings, bits=8, chroma="4:4:4"))
    rounded = as_stored_in(state.images, 3, subsampled=chroma == "4:2:0")
    for moved in ("match", "calibrate"):
        gradients = []
        for of, images in ((problem, state.images), (plain, rounded)):
            own = make_state(of, images.detach().clone())
            of, draws = step_module.draw_networks(of, 0), step_module.draw(of, 0)
            own.images.grad = torch.zeros_like(own.images)
            if moved == "match":
                step_module._match(of, own, plan, draws, step_module.make_frequencies(own, draws.noise))
            else:
                step_module._calibrate(of, own, plan, draws)
            gradients.append(own.images.grad)
        assert torch.equal(*gradients)
        assert gradients[0].abs().max() > 0


def test_images_are_rounded_from_a_share_of_the_steps_on(setting) -> None:
    problem, state, plan = setting(bits=2, bits_from=0.5, steps=6)
    seen = []
    for _ in range(6):
        seen.append(rounds(problem, state))
        distill_step(problem, state, plan)
    assert seen == [False] * 3 + [True] * 3
    problem, state, _ = setting(bits=8, bits_from=0.0, steps=6)
    assert not rounds(problem, state)
    problem, state, _ = setting(chroma="4:2:0", bits_from=0.0, steps=6)
    assert rounds(problem, state)


def test_rounding_changes_the_run_from_then_on_alone(setting) -> None:
    ends = {}
    for bits, steps in ((8, 3), (2, 3), (8, 6), (2, 6)):
        problem, state, plan = setting(bits=bits, bits_from=0.5, steps=6)
        for _ in range(steps):
            distill_step(problem, state, plan)
        ends[bits, steps] = state.images.detach().clone()
    assert torch.equal(ends[8, 3], ends[2, 3])
    assert not torch.equal(ends[8, 6], ends[2, 6])
    assert ends[2, 6].unique().numel() > 4 * ends[2, 6].shape[0]  # what moves is not rounded itself


@pytest.mark.parametrize("chroma", [None, "4:2:0"])
def test_the_stored_set_is_what_the_last_step_would_have_seen(setting, chroma: str | None) -> None:
    problem, state, _ = setting(bits=3, chroma=chroma)
    result = finished_set(Settings(distill=problem.settings), problem.real, state.images)
    assert torch.equal(result.images.float() / 255, as_stored_in(state.images, 3, subsampled=chroma is not None))
    assert result.pixel_tensors is not None
    assert result.manifest.pixels is not None
    assert (result.manifest.pixels.bits, result.manifest.pixels.original) == (3, None)
    assert result.manifest.pixels.chroma == chroma
