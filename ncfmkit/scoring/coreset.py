"""Coresets: real images that an extractor of the pool selects, class by class (docs/method.md, section 8).

Axes: N images of a class, D features, S stages of the extractor's training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ncfmkit.config import NetworkSettings
from ncfmkit.estimate import seconds_per_call
from ncfmkit.images import labeled
from ncfmkit.networks import network_builder
from ncfmkit.progress import track
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, Weights, accuracy_seconds, logits_of

SNAPSHOTS = 9  # of an extractor that is trained for a selection: its first is after a tenth of the training


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A member of the pool."""

    network: NetworkSettings
    stages: Sequence[Weights]  # at initialization, snapshots, at the end of its training


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A row of `SELECTIONS`: how an extractor selects images of a class."""

    stages: slice  # those of the extractor that are read
    read: Callable[[str, RealData, NetworkSettings, Sequence[Weights], Runtime], Iterator[Any]]  # for each class
    pick: Callable[[Any, int], np.ndarray]  # what was read of a class, how many -> their positions in the class
    snapshots: bool = False  # whether it needs any


@dataclass(frozen=True, kw_only=True)
class Course:
    """What becomes of the images of a class in the course of the extractor's training."""

    el2n_SN: np.ndarray  # L2 norm of probabilities - label, float64, 0 to the root of 2
    right_SN: np.ndarray  # bool


@torch.no_grad()
def class_features(
    title: str, real: RealData, network: NetworkSettings, states: Sequence[Weights], runtime: Runtime
) -> Iterator[torch.Tensor]:
    """Features of the images of each class at one stage, float64 `[N, D]` on the CPU."""
    extractor = network_builder(network, real)().to(runtime.device)
    (state,) = states
    extractor.load_state_dict(state)
    data = labeled(real, real.train).on(runtime.device)
    with track(title, len(real.classes)) as bar:
        for start, stop in zip(real.train.offsets[:-1], real.train.offsets[1:], strict=True):
            parts = [
                extractor.features(data.normalized(torch.arange(i, min(i + 256, stop), device=data.home)))
                for i in range(start, stop, 256)
            ]
            yield torch.cat(parts).double().cpu()
            bar.advance()


@torch.no_grad()
def class_courses(
    title: str, real: RealData, network: NetworkSettings, states: Sequence[Weights], runtime: Runtime
) -> Iterator[Course]:
    """What becomes of the images of each class, by a pass over all images at each stage."""
    data, models = labeled(real, real.train), StackedModels(network_builder(network, real), 1, runtime)
    el2n_SN, right_SN = np.empty((len(states), len(data))), np.empty((len(states), len(data)), bool)
    with track(title, len(states)) as bar:
        for stage, state in enumerate(states):
            models.load([state])
            batches = [
                (el2n(logits_RBK[0], label_B), logits_RBK[0].argmax(1) == label_B)
                for label_B, logits_RBK in logits_of(models, data)
            ]
            el2n_SN[stage], right_SN[stage] = (torch.cat(side).cpu().numpy() for side in zip(*batches, strict=True))
            bar.advance()
    for start, stop in zip(real.train.offsets[:-1], real.train.offsets[1:], strict=True):
        yield Course(el2n_SN=el2n_SN[:, start:stop], right_SN=right_SN[:, start:stop])


def el2n(logits_BK: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """L2 norm of the error vector, probabilities - one-hot label (Paul et al. 2021), float32 `[B]`.

    The error of the label's own probability is summed from the others: 1 - p would keep few digits of a small error.
    """
    wrong_BK = logits_BK.softmax(1).scatter(1, label_B[:, None], 0.0)
    return (wrong_BK.sum(1).square() + wrong_BK.square().sum(1)).sqrt()


def herd(feat_ND: torch.Tensor, count: int) -> np.ndarray:
    """Herding (Welling 2009): each image is the one that brings the mean of those picked nearest to the class's."""
    mean_D, chosen_D = feat_ND.mean(0), torch.zeros_like(feat_ND[0])
    free_N = torch.ones(len(feat_ND), dtype=torch.bool)
    picks = []
    for i in range(1, count + 1):
        distance_N = ((chosen_D + feat_ND) / i - mean_D).square().sum(1)
        pick = int(torch.where(free_N, distance_N, torch.inf).argmin())
        picks.append(pick)
        free_N[pick] = False
        chosen_D = chosen_D + feat_ND[pick]
    return np.array(picks)


def k_center(feat_ND: torch.Tensor, count: int) -> np.ndarray:
    """Greedy k-center (Sener & Savarese 2018): the image nearest to the class's mean, then each the farthest one.

    The distance of an image is that to the nearest image that is picked.
    """
    picks = [int((feat_ND - feat_ND.mean(0)).square().sum(1).argmin())]
    nearest_N = torch.full((len(feat_ND),), torch.inf, dtype=feat_ND.dtype)
    while len(picks) < count:
        nearest_N = torch.minimum(nearest_N, (feat_ND - feat_ND[picks[-1]]).square().sum(1))
        nearest_N[picks[-1]] = -1.0  # among equal images, each is picked once
        picks.append(int(nearest_N.argmax()))
    return np.array(picks)


def least_el2n(course: Course, count: int) -> np.ndarray:
    """The images of least EL2N at the first stage that was read."""
    return np.argsort(course.el2n_SN[0], kind="stable")[:count]


def least_forgotten(course: Course, count: int) -> np.ndarray:
    """The images that most rarely go from right to wrong (Toneva et al. 2019); of these, those of least mean EL2N.

    Images that are never right come last: the paper counts them as forgotten infinitely often.
    """
    right_SN = course.right_SN
    forgotten_N = (right_SN[:-1] & ~right_SN[1:]).sum(0)
    forgotten_N = np.where(right_SN.any(0), forgotten_N, len(right_SN))
    return np.lexsort((course.el2n_SN.mean(0), forgotten_N))[:count]


SELECTIONS: dict[str, Selection] = {
    "herding": Selection(stages=slice(-1, None), read=class_features, pick=herd),
    "k-center": Selection(stages=slice(-1, None), read=class_features, pick=k_center),
    # early: at the end of the training, nearly all images have nearly no error
    "el2n": Selection(stages=slice(1, 2), read=class_courses, pick=least_el2n, snapshots=True),
    "forgetting": Selection(stages=slice(1, None), read=class_courses, pick=least_forgotten, snapshots=True),
}


def select(how: str, real: RealData, per_class: int, extractor: Extractor, runtime: Runtime) -> np.ndarray:
    """Positions in the train split of `per_class` images of every class, int64 `[classes, per_class]`.

    Args:
        how: a row of `SELECTIONS`.
        per_class: no more than there are in any class.
    """
    row = SELECTIONS[how]
    assert len(extractor.stages) > 2 or not row.snapshots, "snapshots are checked before anything is trained"
    of_classes = row.read(how, real, extractor.network, extractor.stages[row.stages], runtime)
    return np.stack(
        [start + row.pick(of_class, per_class) for start, of_class in zip(real.train.offsets, of_classes, strict=False)]
    )


@torch.no_grad()
def selection_seconds(
    how: str, real: RealData, per_class: int, network: NetworkSettings, snapshots: int, runtime: Runtime
) -> float:
    """Seconds that :func:`select` takes, measured on one batch.

    Args:
        snapshots: that the extractor has.
    """
    row = SELECTIONS[how]
    if row.read is class_courses:
        passes = len(range(snapshots + 2)[row.stages])
        return passes * accuracy_seconds(
            StackedModels(network_builder(network, real), 1, runtime), labeled(real, real.train)
        )
    extractor = network_builder(network, real)().to(runtime.device)
    data = labeled(real, real.train).on(runtime.device)
    index = torch.arange(min(256, len(data)), device=data.home)

    def one_batch() -> None:
        feat_ND = extractor.features(data.normalized(index))
        row.pick(feat_ND.double().cpu(), min(per_class, len(index)))

    one = seconds_per_call(one_batch, runtime.device, compiled=False)
    return one * len(data) / len(index)
