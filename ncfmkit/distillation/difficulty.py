"""Which real images are easy: those whose class the pool's extractors are surest of (docs/method.md, section 5)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ncfmkit.config import PoolSettings
from ncfmkit.distillation.pool import Pool
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.progress import track
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, accuracy_seconds, logits_of

TITLE = "difficulty of the real images"


def share_counts(real: RealData, share: float) -> np.ndarray:
    """How many images of each class are its easiest `share`, at least one, int64 `[C]`."""
    return np.maximum(1, np.ceil(share * real.train.counts())).astype(np.int64)


def easiest_images(
    real: RealData, builds: Sequence[Callable[[], nn.Module]], pool: Pool, share: float, runtime: Runtime
) -> list[np.ndarray]:
    """Positions in the train split of the easiest images of each class, in ascending order.

    The difficulty of an image is the mean, over the members and their stages but the initial one, of the cross-entropy
    of its class, without augmentation.

    Args:
        builds: a function that builds the network of each architecture of the pool.
        share: of each class.
    """
    data = labeled(real, real.train)
    ease_N = np.zeros(len(data))
    trained = [(m, state) for m, stages in enumerate(pool.stages) for state in stages[1:]]
    models = [StackedModels(build, 1, runtime) for build in builds]
    with track(TITLE, len(trained)) as bar:
        for member, state in trained:
            of_member = models[member % pool.architectures]
            of_member.load([state])
            ease_N += own_log_probability(of_member, data) / len(trained)
            bar.advance()
    starts = real.train.offsets[:-1]
    return [
        np.sort(start + np.argsort(-ease_N[start:stop], kind="stable")[:count])
        for start, stop, count in zip(starts, real.train.offsets[1:], share_counts(real, share), strict=True)
    ]


def estimate_difficulty(
    real: RealData, builds: Sequence[Callable[[], nn.Module]], pool: PoolSettings, runtime: Runtime
) -> Stage:
    """What :func:`easiest_images` takes; every architecture is measured on a batch."""
    data, per_member = labeled(real, real.train), pool.snapshots + 1
    each = [accuracy_seconds(StackedModels(build, 1, runtime), data) for build in builds]
    seconds = sum(each[member % len(each)] for member in range(pool.members)) * per_member
    return Stage(name=TITLE, work=f"{len(data):,} images x {pool.members * per_member}", seconds=seconds)


@torch.no_grad()
def own_log_probability(models: StackedModels, data: LabeledImages) -> np.ndarray:
    """Of each image's own class, by a stack of one network, float64 `[N]`."""
    parts = [
        logits_RBK[0].log_softmax(1).gather(1, label_B[:, None])[:, 0]
        for label_B, logits_RBK in logits_of(models, data)
    ]
    return torch.cat(parts).double().cpu().numpy()


def placeholder(real: RealData, share: float) -> list[np.ndarray]:
    """As many positions of each class as :func:`easiest_images` gives, for steps before there is a pool."""
    return [
        start + np.arange(count)
        for start, count in zip(real.train.offsets[:-1], share_counts(real, share), strict=True)
    ]
