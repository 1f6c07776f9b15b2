"""The learning rate over the steps, against torch's schedulers and closed forms; the average of the images."""

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings
from ncfmkit.distillation.problem import State
from ncfmkit.distillation.schedule import Plateau, Schedule, planned


def test_the_plateau_is_torchs() -> None:
    rng = np.random.default_rng(0)
    for patience, falls in itertools.product((0, 2, 7), (0.0, 0.01, 1e-5)):
        losses = (10 * (1 - falls) ** np.arange(400) + rng.choice([0, 0.02], 400)).tolist()
        losses[50] = math.nan
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
        ours = Plateau(torch.tensor(0.3, dtype=torch.float64), patience)
        for i, loss in enumerate(losses):
            torchs.step(loss)
            ours.step(torch.tensor(loss, dtype=torch.float64))
            assert float(ours.rate) == optimizer.param_groups[0]["lr"]
            if i % 100 == 99:  # as a checkpoint has it
                again = Plateau(ours.rate, patience)
                again.load_state_dict(ours.state_dict())
                ours = again
    assert float(ours.rate) < 0.3


def rates(settings: DistillSettings, losses: list[float]) -> list[float]:
    """Of every step; each loss is of the step before."""
    schedule = Schedule(settings, torch.zeros((), dtype=torch.float64))
    found = [float(schedule.rate)]
    for done, loss in enumerate(losses, 1):
        schedule.step(done, torch.tensor(loss, dtype=torch.float64))
        found.append(float(schedule.rate))
    return found[:-1]


def falling(noise: float, slope: float, steps: int = 4000) -> list[float]:
    rng = np.random.default_rng(3)
    return (10 + slope * np.arange(steps) / steps + noise * rng.standard_normal(steps)).tolist()


def test_a_noisy_loss_that_falls_halves_the_plain_plateau_alone() -> None:
    plain, smooth = (
        rates(DistillSettings(lr=1.0, steps=4000, patience=300, schedule=name), falling(noise=1.0, slope=-2.0))
        for name in ("plateau", "smooth-plateau")
    )
    assert plain[-1] <= 1 / 8
    assert smooth[-1] == 1.0


def test_a_noisy_loss_that_does_not_fall_halves_both() -> None:
    for name in ("plateau", "smooth-plateau"):
        settings = DistillSettings(lr=1.0, steps=4000, patience=300, schedule=name)
        assert rates(settings, falling(noise=1.0, slope=0.0))[-1] <= 1 / 8


def test_the_smoothed_loss_is_the_weighted_mean() -> None:
    losses = falling(noise=1.0, slope=0.0, steps=70)
    plateau = Plateau(torch.tensor(1.0, dtype=torch.float64), 1000, smoothing=0.98)
    lowest = math.inf
    for count in range(1, len(losses) + 1):
        plateau.step(torch.tensor(losses[count - 1], dtype=torch.float64))
        mean = np.average(losses[:count], weights=0.98 ** np.arange(count)[::-1])
        enough = 1 - 0.98**count > Plateau.ENOUGH
        lowest = mean if enough and mean < lowest * (1 - Plateau.THRESHOLD) else lowest
        assert float(plateau.best) == pytest.approx(lowest, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 20])
def test_the_cosine_is_torchs(warmup: int) -> None:
    settings = DistillSettings(lr=0.3, steps=100, schedule="cosine", warmup=warmup)
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100 - warmup)
    expected = [0.3 * (step + 1) / (warmup + 1) for step in range(warmup)]
    for _ in range(100 - warmup):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates(settings, [1.0] * 100) == pytest.approx(expected, rel=1e-9)


def test_a_constant_rate_after_its_warm_up() -> None:
    settings = DistillSettings(lr=0.4, steps=9, schedule="constant", warmup=3)
    assert rates(settings, [1.0] * 9) == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 6)


def test_a_warm_up_longer_than_the_run() -> None:
    for name in ("constant", "cosine", "plateau"):
        settings = DistillSettings(lr=1.0, steps=4, schedule=name, warmup=50)
        assert rates(settings, [1.0] * 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
        assert planned(settings, 4) == 1.0


@pytest.mark.parametrize("name", ["plateau", "smooth-plateau", "cosine", "constant"])
def test_a_schedule_continues_from_a_checkpoint(name: Any) -> None:
    settings = DistillSettings(lr=0.3, steps=600, schedule=name, warmup=30, patience=20)
    losses = falling(noise=1.0, slope=-1.0, steps=600)
    whole = rates(settings, losses)
    rate = torch.zeros((), dtype=torch.float64)
    schedule = Schedule(settings, rate)
    for done, loss in enumerate(losses, 1):
        assert float(schedule.rate) == whole[done - 1]
        schedule.step(done, torch.tensor(loss, dtype=torch.float64))
        if done % 50 == 25:
            stored = schedule.state_dict()
            schedule = Schedule(settings, torch.zeros((), dtype=torch.float64))
            schedule.load_state_dict(stored, done, rate=math.nan)


def test_a_checkpoint_without_the_plateaus_rate_has_the_optimizers() -> None:
    schedule = Schedule(DistillSettings(lr=0.4), torch.zeros((), dtype=torch.float64))
    schedule.load_state_dict({"best": 3.0, "num_bad_epochs": 4}, 100, rate=0.1)
    assert float(schedule.rate) == 0.1


def averaged(images: list[np.ndarray], decay: float) -> np.ndarray:
    """By weights, in float64: image s, the start being image 0, has 1 - d_s, and the product of all later d."""
    decays = [0.0] + [min(decay, step / (step + 9)) for step in range(1, len(images))]
    weights = [(1 - d) * math.prod(decays[s + 1 :]) for s, d in enumerate(decays)]
    assert sum(weights) == pytest.approx(1)
    return np.einsum("s,snchw->nchw", weights, np.stack(images))


def moved(state: State, images: torch.Tensor) -> None:
    with torch.no_grad():
        state.images.copy_(images)
    state.step += 1


def test_the_average_of_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand((2, 1, 3, 3), generator=generator)
    parts: Any = {"optimizer": None, "schedule": None, "scaler": None, "psi": None, "psi_optimizer": None}
    state = State(images=start.clone().requires_grad_(), average=start.clone(), **parts)
    seen = [start.double().numpy()]
    for _ in range(40):
        images = torch.rand(start.shape, generator=generator)
        moved(state, images)
        state.follow(0.8)
        seen.append(images.double().numpy())
        expected = averaged(seen, 0.8)
        # each step rounds a few times, and later ones forget
        assert np.abs(state.result.double().numpy() - expected).max() < 20 * torch.finfo(torch.float32).eps
    assert not torch.equal(state.result, state.images)


def test_without_an_average_the_last_images_are_the_result() -> None:
    parts: Any = {"optimizer": None, "schedule": None, "scaler": None, "psi": None, "psi_optimizer": None}
    state = State(images=torch.rand(2, 1, 3, 3).requires_grad_(), average=None, **parts)
    state.follow(0.0)
    assert torch.equal(state.result, state.images)
    assert not state.result.requires_grad
    torch.save(state.result, io.BytesIO())
