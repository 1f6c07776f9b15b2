"""The learning rate of the images: planned over the run, or halved where the loss no longer falls.

Everything is a tensor on the device, so no step waits for it.
"""

import math
from functools import partial
from typing import Any

import torch

from ncfmkit.config import DistillSettings


def wide(device: torch.device) -> torch.dtype:
    """The floats of losses and rates: as Python's, where the device has such."""
    return torch.float32 if device.type == "mps" else torch.float64


class Plateau:
    """Halves a rate after `patience` steps without a lower loss.

    torch's ReduceLROnPlateau with its defaults, in tensors.

    Args:
        rate: it is changed in place.
        smoothing: the decay of an exponential moving average of the losses, which is watched in place of them; 0: none.
            A noisy loss seldom falls below its luckiest value, however much its mean falls.
    """

    THRESHOLD = 1e-4  # a loss is lower if it is so by this part of the lowest
    LEAST_CHANGE = 1e-8  # of the rate
    ENOUGH = 0.5  # of the average's weights, before it is watched

    def __init__(self, rate: torch.Tensor, patience: int, smoothing: float = 0.0):
        self.rate, self.patience, self.smoothing = rate, patience, smoothing
        new = partial(torch.full, (), dtype=wide(rate.device), device=rate.device)
        self.best = new(math.inf)
        self.bad = torch.zeros((), dtype=torch.int64, device=rate.device)
        self.mean, self.weight = new(0.0), new(0.0)

    def step(self, loss: torch.Tensor) -> None:
        if self.smoothing:
            self.mean.lerp_(loss.to(self.mean.dtype), 1 - self.smoothing)
            self.weight.lerp_(torch.ones_like(self.weight), 1 - self.smoothing)
            # the mean of the first few would often be the lowest
            loss = torch.where(self.weight > self.ENOUGH, self.mean / self.weight, math.inf)
        lower = loss < self.best * (1 - self.THRESHOLD)
        self.best.copy_(torch.where(lower, loss, self.best))
        self.bad.add_(1).mul_(~lower)
        late = self.bad > self.patience
        self.bad.mul_(~late)
        self.rate.mul_(1 - 0.5 * (late & (self.rate * 0.5 > self.LEAST_CHANGE)).to(self.rate.dtype))

    def state_dict(self) -> dict[str, Any]:
        smoothed = {"mean": float(self.mean), "weight": float(self.weight)} if self.smoothing else {}
        return {"best": float(self.best), "num_bad_epochs": int(self.bad)} | smoothed

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.best.fill_(stored["best"])
        self.bad.fill_(stored["num_bad_epochs"])
        self.mean.fill_(stored.get("mean", 0.0))
        self.weight.fill_(stored.get("weight", 0.0))


class Schedule:
    """The learning rate of every step: `distill.schedule`, after a rise over the first `distill.warmup` steps.

    Attributes:
        rate: the rate of the next step, on the device; an optimizer may hold it.
    """

    def __init__(self, settings: DistillSettings, rate: torch.Tensor):
        self._settings, self.rate = settings, rate
        self._plateau = None
        if settings.schedule in ("plateau", "smooth-plateau"):
            # a mean over about as many steps as it waits
            smoothing = 1 - 1 / settings.patience if settings.schedule == "smooth-plateau" else 0.0
            self._plateau = Plateau(torch.full_like(rate, settings.lr), settings.patience, smoothing)
        self._set(0)

    def step(self, done: int, loss: torch.Tensor) -> None:
        """Sets the rate of the step after `done` steps, the last of which had this loss."""
        if self._plateau is not None:
            self._plateau.step(loss)
        self._set(done)

    def _set(self, done: int) -> None:
        if self._plateau is None:
            self.rate.fill_(self._settings.lr * planned(self._settings, done))
        else:
            torch.mul(self._plateau.rate, planned(self._settings, done), out=self.rate)

    def state_dict(self) -> dict[str, Any]:
        if self._plateau is None:
            return {}
        return self._plateau.state_dict() | {"rate": float(self._plateau.rate)}

    def load_state_dict(self, stored: dict[str, Any], done: int, rate: float) -> None:
        """Continues after `done` steps.

        Args:
            rate: that the optimizer was stored with; checkpoints of earlier versions hold no other.
        """
        if self._plateau is not None:
            self._plateau.load_state_dict(stored)
            self._plateau.rate.fill_(stored.get("rate", rate))
        self._set(done)


def planned(settings: DistillSettings, done: int) -> float:
    """What the rate of the step after `done` steps is multiplied by, in (0, 1]: warm-up, then the cosine's decay."""
    warmup = min(settings.warmup, settings.steps)
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if settings.schedule != "cosine" or settings.steps == warmup:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (settings.steps - warmup)))
