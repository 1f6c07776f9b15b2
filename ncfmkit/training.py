"""Trains classifiers, the pool's extractors and the students, by one loop (docs/method.md, sections 3 and 8).

Axes: R networks trained side by side, S steps of an epoch, B batch, C channels, H = W side, K labels, P uniform
numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ncfmkit.augment import DRAWS, PICK, apply, cutmix, draw_cutmix, drawn, parse_strategy
from ncfmkit.config import TrainSettings
from ncfmkit.errors import NonFiniteLossError
from ncfmkit.estimate import seconds_per_call
from ncfmkit.images import DeviceImages, LabeledImages, normalize, uploaded
from ncfmkit.progress import Tracker
from ncfmkit.recorded import Recorded, TensorFunction, Tensors
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime

Weights = dict[str, torch.Tensor]  # the parameters of one network, by name


SETTLING = 256  # images, at most, of which batch norms take their statistics


class StackedModels:
    """R networks of one architecture that are trained side by side; the parameters are stacked where R > 1.

    The forward pass of R > 1 is `torch.func.vmap` over the stacked parameters, so any network of the table will do.
    """

    def __init__(self, build: Callable[[], nn.Module], size: int, runtime: Runtime):
        self.size, self.runtime = size, runtime
        self.network = build().to(runtime.device)
        self.statistics: Weights = dict(self.network.named_buffers())  # of batch norms
        self._norms = {name: m for name, m in self.network.named_modules() if [*m._buffers] == ["mean", "var"]}
        assert len(self.statistics) == 2 * len(self._norms), "only statistics that `settle` sets are state of a student"
        self._settled_on: Sequence[DeviceImages] = ()
        if size == 1:
            self.parameters: Weights = dict(self.network.named_parameters())
            self._forward = runtime.compiled(self.network)
        else:
            stacked = {k: v.expand(size, *v.shape).clone() for k, v in self.network.state_dict().items()}
            self.statistics = {k: stacked[k] for k in self.statistics}
            self.parameters = {k: v.requires_grad_() for k, v in stacked.items() if k not in self.statistics}
            self._forward = runtime.compiled(torch.func.vmap(self._call))

    def _call(self, state: Weights, x_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.network, state, (x_BCHW,))

    @torch.no_grad()
    def load(self, states: Sequence[Weights]) -> None:
        """Sets parameters and statistics of every network of the stack."""
        self._settled_on = ()
        for r, state in enumerate(states):
            for name, tensor in self._state(r).items():
                tensor.copy_(state[name])

    def states(self) -> list[Weights]:
        """A copy of the parameters of each network, and of the statistics of its batch norms, on the CPU."""
        self.settle()
        return [{k: v.cpu().clone() for k, v in self._state(r).items()} for r in range(self.size)]

    def _state(self, r: int) -> Weights:
        """Parameters and statistics of one network, detached: views, not copies."""
        return {k: (v if self.size == 1 else v[r]).detach() for k, v in (self.parameters | self.statistics).items()}

    def trains_on(self, data: Sequence["DeviceImages"]) -> None:
        """Says what the networks are trained on, each on its own: :meth:`settle` takes statistics of these images."""
        self._settled_on = data

    @torch.no_grad()
    def settle(self) -> None:
        """Sets the statistics of batch norms to those of the images that each network is trained on.

        The images are taken as they are, without augmentation, in one batch of at most `SETTLING` evenly spaced ones.
        """
        if not self._norms:
            return
        self.network.train()

        def settle(name: str, state: Weights, norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            var_C, mean_C = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
            state[f"{name}.mean"].copy_(mean_C)
            state[f"{name}.var"].copy_(var_C)

        for r, data in enumerate(self._settled_on):
            state, places_B = self._state(r), torch.linspace(0, len(data) - 1, min(len(data), SETTLING)).long()
            hooks = [m.register_forward_pre_hook(partial(settle, name, state)) for name, m in self._norms.items()]
            try:
                self._call(state, data.normalized(places_B.to(data.home)))
            finally:
                for hook in hooks:
                    hook.remove()

    def logits(self, x_RBCHW: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """float32 `[R, B, K]`; in training, batch norms take the statistics of the batch."""
        if self._norms:
            self.network.train(training)
        with self.runtime.autocast():
            if self.size == 1:
                return self._forward(x_RBCHW[0])[None].float()
            return self._forward(self.parameters | self.statistics, x_RBCHW).float()


def fresh_state(build: Callable[[], nn.Module], seed: int, *key: int | str) -> Weights:
    """The state of one network before training, drawn on the CPU and keyed, whatever else draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_rng(seed, *key).integers(2**62)))
        network = build()
    return {k: v.clone() for k, v in network.state_dict().items()}


def batch_plan(count: int, batch: int) -> tuple[int, int]:
    """Steps per epoch and images per step: as many steps as batches of at most `batch` need, all equally large."""
    steps = math.ceil(count / batch)
    return steps, math.ceil(count / steps)


def _optimizer(settings: TrainSettings, models: StackedModels) -> torch.optim.Optimizer:
    parameters, records = list(models.parameters.values()), models.runtime.records
    # what is recorded reads the rate on the device
    lr = torch.full((), settings.lr, device=models.runtime.device) if records else settings.lr
    how: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, capturable=records, **how)
    return torch.optim.SGD(parameters, momentum=settings.momentum, **how)


def _set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@dataclass(frozen=True, kw_only=True)
class EpochDraws:
    """All that is random in an epoch of one network: drawn on the host, uploaded at once, so that no step waits."""

    index_SB: torch.Tensor  # the images of each batch, where they are
    geometric: list[tuple[str, ...]]  # the operations of the augmentation that each batch picks
    u_SBP: torch.Tensor  # its uniform numbers, on the device
    box_S6: torch.Tensor  # of CutMix, on the device
    order_SB: torch.Tensor


def _draw_epoch(data: DeviceImages, count: int, settings: TrainSettings, rng: np.random.Generator) -> EpochDraws:
    """Draws of an epoch of `count` images."""
    steps, size = batch_plan(count, settings.batch)
    index_SB = np.resize(rng.permutation(count), (steps, size))  # the last batch is filled from the start of the order
    u_SBP, order_SB = np.empty((steps, size, DRAWS), np.float32), np.empty((steps, size), np.int64)
    box_S6 = np.empty((steps, 6), np.float32)
    for u_BP, box_6, order_B in zip(u_SBP, box_S6, order_SB, strict=True):
        rng.random(dtype=np.float32, out=u_BP)
        u_BP[:, PICK] = u_BP[0, PICK]
        box_6[:], order_B[:] = draw_cutmix(rng, size, data.side, settings.cutmix)
    operations, rows_SBP = parse_strategy(settings.augment), torch.from_numpy(u_SBP)
    return EpochDraws(
        index_SB=uploaded(torch.from_numpy(index_SB), data.home),
        geometric=[drawn(operations, rows_BP[:1]) for rows_BP in rows_SBP],
        u_SBP=uploaded(rows_SBP, data.device),
        box_S6=uploaded(torch.from_numpy(box_S6), data.device),
        order_SB=uploaded(torch.from_numpy(order_SB), data.device),
    )


class Trainer:
    """Takes the steps of networks that are trained side by side, each on data of its own.

    On a GPU, what a step does is recorded and replayed: preparing a batch, by the operations that its augmentation
    picks, and all the rest.
    """

    def __init__(
        self,
        models: StackedModels,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        operations: tuple[str, ...],
    ):
        self._runtime, self._operations = models.runtime, operations
        self._prepared: dict[tuple, TensorFunction] = {}

        def train_on(x_RBCHW: torch.Tensor, target_RBK: torch.Tensor) -> Tensors:
            logits_RBK = models.logits(x_RBCHW, training=True)
            loss = F.cross_entropy(logits_RBK.flatten(0, 1), target_RBK.flatten(0, 1)) * models.size
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return (loss.detach(),)

        self._trained = self._recorded(train_on)

    def _recorded(self, function: TensorFunction) -> TensorFunction:
        """The function must not know the trainer: what was recorded is freed with it, without a search for cycles."""
        return Recorded(function, self._runtime.device) if self._runtime.records else function

    def step(self, data: Sequence[DeviceImages], draws: Sequence[EpochDraws], step: int) -> torch.Tensor:
        """One step of every network, that of its epoch; the sum of their losses, detached."""
        rows = [self._batch(d, of_d, step) for d, of_d in zip(data, draws, strict=True)]
        (loss,) = self._trained(*(torch.stack(side) for side in zip(*rows, strict=True)))
        return loss

    def _batch(self, data: DeviceImages, draws: EpochDraws, step: int) -> Tensors:
        """Normalized, augmented images `[B, C, H, W]` and label probabilities `[B, K]`."""
        index_B, picked, operations = draws.index_SB[step], draws.geometric[step], self._operations

        def prepare(
            x_BCHW: torch.Tensor,
            target_BK: torch.Tensor,
            u_BP: torch.Tensor,
            box_6: torch.Tensor,
            order_B: torch.Tensor,
        ) -> Tensors:
            x_BCHW = apply(normalize(x_BCHW, data.mean, data.std), operations, picked, u_BP)
            return cutmix(x_BCHW, target_BK, box_6, order_B)

        key = (picked, id(data))
        if key not in self._prepared:
            self._prepared[key] = self._recorded(prepare)
        drawn_here = draws.u_SBP[step], draws.box_S6[step], draws.order_SB[step]
        return self._prepared[key](data.at(index_B), data.targets(index_B), *drawn_here)


class Checkpoint(Protocol):
    """Where the state of a training is kept, see :func:`train`; `training` is entered around it."""

    done: int  # epochs that an earlier process trained

    def training(self) -> AbstractContextManager[None]: ...

    def load(self) -> dict[str, Any] | None: ...

    def after_epoch(self, epoch: int, state: Callable[[], dict[str, Any]]) -> None: ...


def train(
    models: StackedModels,
    data: Sequence[LabeledImages],
    settings: TrainSettings,
    *,
    seed: int,
    keys: Sequence[int],
    bar: Tracker,
    after_epoch: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trains every network of the stack in place.

    Args:
        models: networks with their initial parameters loaded.
        data: what each network is trained on, equally many images each.
        settings: optimizer, schedule, augmentation.
        seed, keys: network r draws its order and augmentation from `(seed, keys[r], epoch)`, alone or in a stack.
        bar: advanced by R in every epoch.
        after_epoch: called with the number of epochs done.
        checkpoint: where training continues from, and what may save its state after each epoch.

    Raises:
        NonFiniteLossError: with the epoch.
    """
    device = models.runtime.device
    there = {key: d.on(device) for key, d in {id(d): d for d in data}.items()}  # networks may share their data
    rows, steps = [there[id(d)] for d in data], batch_plan(len(data[0]), settings.batch)[0]
    models.trains_on(rows)
    optimizer, scaler = _optimizer(settings, models), models.runtime.scaler()
    done = 0
    stored = None if checkpoint is None else checkpoint.load()
    if stored is not None:  # random draws are keyed by the epoch: this is all
        with torch.no_grad():
            for name, parameter in models.parameters.items():
                parameter.copy_(stored["parameters"][name])
        # how it steps is of this device, and its rate is set below
        own = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(stored["optimizer"] | {"param_groups": own})
        scaler.load_state_dict(stored["scaler"])
        done = stored["epoch"]
    trainer = Trainer(models, optimizer, scaler, parse_strategy(settings.augment))
    for epoch in range(done, settings.epochs):
        passed = sum(epoch >= settings.epochs * m for m in settings.milestones)
        _set_rate(optimizer, settings.lr * settings.gamma**passed)
        draws = [
            _draw_epoch(d, len(d), settings, keyed_rng(seed, "train", key, epoch))
            for d, key in zip(rows, keys, strict=True)
        ]
        total = torch.zeros((), device=device)
        for step in range(steps):
            total += trainer.step(rows, draws, step)
            bar.advance(Fraction(models.size, steps))
        if not bool(total.isfinite()):
            raise NonFiniteLossError(
                f"the training loss became non-finite in epoch {epoch + 1}: lower the learning rate"
            )
        if after_epoch is not None:
            after_epoch(epoch + 1)
        if checkpoint is not None:
            checkpoint.after_epoch(
                epoch + 1,
                lambda: {
                    "parameters": {name: p.detach() for name, p in models.parameters.items()},
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                },
            )


def training_seconds(models: StackedModels, like: LabeledImages, count: int, settings: TrainSettings) -> float:
    """Seconds that :func:`train` takes, measured on a few of its steps, which spoil the weights.

    Args:
        models: the stack to be trained.
        like: images such as it is trained on.
        count: how many images each network is trained on.
    """
    steps, size = batch_plan(count, settings.batch)
    data = like.on(models.runtime.device)
    operations = parse_strategy(settings.augment)
    trainer = Trainer(models, _optimizer(settings, models), models.runtime.scaler(), operations)
    rngs, runtime = [keyed_rng(0, "estimate", r) for r in range(models.size)], models.runtime
    # a GPU that is waited for after every step is slower; the first steps record
    together, uncounted = (10, 1) if runtime.records else (1, 0)

    def some_steps() -> None:
        for _ in range(together):
            draws = [_draw_epoch(data, size, settings, rng) for rng in rngs]
            draws = [dataclasses.replace(d, index_SB=d.index_SB % len(data)) for d in draws]
            trainer.step([data] * models.size, draws, 0)

    seconds = seconds_per_call(some_steps, runtime.device, compiled=runtime.compile, uncounted=uncounted)
    return seconds / together * steps * settings.epochs


def accuracy_seconds(models: StackedModels, data: LabeledImages, *, batch: int = 256) -> float:
    """Seconds that :func:`accuracy` takes, measured on its first batch."""
    size = min(batch, len(data))
    first = dataclasses.replace(data, images=data.images[:size], labels=data.labels[:size], soft_labels=None)
    one = seconds_per_call(lambda: accuracy(models, first), models.runtime.device, compiled=models.runtime.compile)
    return one * math.ceil(len(data) / size)


def accuracy(models: StackedModels, data: LabeledImages, *, batch: int = 256) -> list[float]:
    """Top-1 accuracy of each network of the stack on `data`, fractions in [0, 1]."""
    return (class_hits(models, data, batch=batch).sum(1) / len(data)).tolist()


@torch.no_grad()
def class_hits(models: StackedModels, data: LabeledImages, *, batch: int = 256) -> np.ndarray:
    """How many images of each class each network of the stack gets right, int64 `[R, K]`."""
    device = models.runtime.device
    hits_RK = torch.zeros(models.size, data.classes, dtype=torch.int64, device=device)
    for label_B, logits_RBK in logits_of(models, data, batch=batch):
        hits_RK.index_add_(1, label_B, (logits_RBK.argmax(-1) == label_B).long())
    return hits_RK.cpu().numpy()


@torch.no_grad()
def logits_of(
    models: StackedModels, data: LabeledImages, *, batch: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Labels and logits on the device, `[B]` and `[R, B, K]`, batch after batch, in the order of the images."""
    models.settle()
    rows, count, size = data.on(models.runtime.device), len(data), min(batch, len(data))
    # the last batch is padded with the last image, which is left out again
    index_SB = np.minimum(np.arange(math.ceil(count / size) * size), count - 1).reshape(-1, size)
    for step, index_B in enumerate(uploaded(torch.from_numpy(index_SB), rows.home)):
        x_BCHW = rows.normalized(index_B)
        logits_RBK = models.logits(x_BCHW.expand(models.size, *x_BCHW.shape))
        real = min(size, count - step * size)
        yield uploaded(rows.labels[index_B[:real]], models.runtime.device), logits_RBK[:, :real]
