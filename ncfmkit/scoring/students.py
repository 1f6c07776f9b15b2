"""Scores: fresh students trained on a set and tested on real images, and the baselines beside it (METHOD section 8).

The figure is the last epoch's. The best epoch's stands beside it for comparison with published tables, which peek at
the test set that way.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from ncfmkit.config import NetworkSettings, StudentSettings
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.networks import network_builder
from ncfmkit.progress import Tracker, track
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import Runtime, device_name, versions
from ncfmkit.scoring.baselines import check_baselines, random_subset
from ncfmkit.sets.synthetic import SyntheticSet, decoded_images
from ncfmkit.training import StackedModels, State, accuracy, fresh_state, train


def side_by_side(repeats: int, size: int, runtime: Runtime) -> int:
    """How many students are trained together.

    Measured on a CPU with 4 cores: together is 1.4 times as fast at 8 pixels uncompiled, 5 times slower at 32 pixels.
    On a GPU all go together, which is yet to be measured.
    """
    if runtime.device.type == "cuda" or (size <= 16 and not runtime.compile):
        return max(1, repeats)
    return 1


def score(
    sets: Sequence[LabeledImages],
    test: LabeledImages,
    build: Callable[[], nn.Module],
    settings: StudentSettings,
    *,
    seed: int,
    runtime: Runtime,
    title: str,
) -> dict[str, Any]:
    """Trains one fresh student per set and tests it; repeats are given as equal sets, or as several random ones.

    Returns:
        `last` and `best`: mean, std (of the sample, 0 for one student) and values of the test accuracy, fractions;
        `n`, `epochs`, `evaluations`, `decoded` (images trained on), `seconds`.
    """
    start = time.monotonic()
    together = side_by_side(len(sets), test.images.shape[-1], runtime)
    last: list[float] = []
    best: list[float] = []
    models: StackedModels | None = None
    with track(title, len(sets) * settings.epochs) as bar:
        for first in range(0, len(sets), together):
            keys = range(first, min(first + together, len(sets)))
            if models is None or models.size != len(keys):  # one models for all, because each is compiled anew
                models = StackedModels(build, len(keys), runtime)
            models.load([fresh_state(build, seed, "student", k) for k in keys])
            history = _train_and_test(models, [sets[k] for k in keys], test, settings, seed, list(keys), bar)
            last += history[-1]
            best += [max(values) for values in zip(*history, strict=True)]
            bar.advance(0, note=f"last epoch {np.mean(last):.1%}")
    return {
        "decoded": len(sets[0]),
        "epochs": settings.epochs,
        "evaluations": settings.evaluations,
        "n": len(sets),
        "last": _summary(last),
        "best": _summary(best),
        "seconds": time.monotonic() - start,
    }


def _train_and_test(
    models: StackedModels,
    sets: list[LabeledImages],
    test: LabeledImages,
    settings: StudentSettings,
    seed: int,
    keys: list[int],
    bar: Tracker,
) -> list[list[float]]:
    """Test accuracies of the models at each evaluation, the last epoch's at the end."""
    count = min(settings.evaluations, settings.epochs)
    when = {round(settings.epochs * (i + 1) / count) for i in range(count)}
    history: list[list[float]] = []

    def evaluate(epoch: int) -> None:
        if epoch in when:
            history.append(accuracy(models, test))

    train(models, sets, settings, seed=seed, keys=keys, bar=bar, after_epoch=evaluate)
    return history


def _summary(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "values": values}


def describe_network(network: NetworkSettings) -> str:
    """`convnet-3 width 64`, or the plain name of another network."""
    return f"convnet-{network.depth} width {network.width}" if network.name == "convnet" else network.name


def score_all(
    synthetic: SyntheticSet,
    real: RealData,
    *,
    network: NetworkSettings,
    settings: StudentSettings,
    whole_epochs: int,
    baselines: Sequence[str],
    herding: Callable[[int], LabeledImages],
    seed: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Scores of the set and of each baseline, as `scores.json` holds them.

    Args:
        network: of the students.
        whole_epochs: epochs on the whole training split, where `settings.whole_epochs` does not say.
        herding: gives the herded subset of that many images per class; called only if asked for.

    Raises:
        UserError: there is no test split, or too few images for a baseline.
    """
    build, test = network_builder(network, real), labeled(real, test_split(real))
    decoded = decoded_images(synthetic)
    per_class = len(decoded) // len(real.classes)
    check_baselines(real, baselines, stored=synthetic.ipc, decoded=per_class)
    repeats = range(settings.repeats)
    whole = dataclasses.replace(settings, epochs=settings.whole_epochs or whole_epochs)
    sets: dict[str, Callable[[], list[LabeledImages]]] = {
        "distilled": lambda: [decoded] * settings.repeats,
        "random": lambda: [random_subset(real, synthetic.ipc, seed, r) for r in repeats],
        "random-decoded": lambda: [random_subset(real, per_class, seed, r) for r in repeats],
        "herding": lambda: [herding(synthetic.ipc)] * settings.repeats,
        "whole": lambda: [labeled(real, real.train)] * settings.repeats,
    }
    labels = {
        "distilled": f"distilled, {synthetic.ipc} per class",
        "random": f"random real, {synthetic.ipc} per class",
        "random-decoded": f"random real, {per_class} per class",
        "herding": f"herding, {synthetic.ipc} per class",
        "whole": "whole training split",
    }
    rows = []
    for name in ("distilled", *baselines):
        trained_on = sets[name]()
        used = whole if name == "whole" else settings
        result = score(trained_on, test, build, used, seed=seed, runtime=runtime, title=f"students: {labels[name]}")
        images = len(synthetic.images) if name == "distilled" else len(trained_on[0])
        rows.append(
            {"set": name, "label": labels[name], "images": images, "network": describe_network(network)} | result
        )
    return {"device": device_name(runtime.device), "precision": runtime.precision, "versions": versions(), "rows": rows}


def train_student(
    data: LabeledImages,
    build: Callable[[], nn.Module],
    settings: StudentSettings,
    *,
    test: LabeledImages | None,
    seed: int,
    runtime: Runtime,
) -> tuple[State, float | None]:
    """One student to keep: its parameters, and its accuracy on `test` where there is one."""
    models = StackedModels(build, 1, runtime)
    models.load([fresh_state(build, seed, "student", 0)])
    with track("student", settings.epochs) as bar:
        train(models, [data], settings, seed=seed, keys=[0], bar=bar)
    return models.states()[0], accuracy(models, test)[0] if test is not None else None


def test_split(real: RealData) -> Split:
    """The test split.

    Raises:
        UserError: there is none.
    """
    return real.test_split(otherwise="or --repeats 0")
