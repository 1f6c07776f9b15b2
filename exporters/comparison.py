"""Compares validations of several models: differences of accuracy, image by image, and Pareto fronts.

Shapes: N images, M runs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.exporters.accuracy import Outcome, agreement
from ncfmkit.exporters.contract import Contract
from ncfmkit.exporters.matching_data import check_classes
from ncfmkit.exporters.results import ComparedRun, ModelComparison, Pair, Validation
from ncfmkit.exporters.timing import Timing
from ncfmkit.scoring.paired import holm, mcnemar


def check_alike(contracts: Mapping[str, Contract]) -> None:
    """Raises UserError unless the models, by name, take images of one shape and have the same classes."""
    first_name, first = next(iter(contracts.items()))
    named: tuple[str, tuple[str, ...]] | None = None
    for name, contract in contracts.items():
        theirs, ours = contract.takes(), first.takes()
        if theirs != ours:
            raise UserError(
                f"{name} takes {theirs}, {first_name} takes {ours}: only models of one image size and the same "
                "classes can be compared"
            )
        if contract.classes is not None:
            named = named or (name, contract.classes)
            check_classes(*named, name, contract.classes)


def run_names(runs: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each pair of a model's name and a provider: the model's, with several providers also theirs."""
    several = len({provider for _, provider in runs}) > 1
    return [f"{model}, {provider}" if several else model for model, provider in runs]


def pairs(outcomes_M: Mapping[str, Outcome], reference: Outcome, labels_N: np.ndarray) -> tuple[Pair, ...]:
    """The runs, by name, against the reference on the same images."""
    right_N = reference.guesses_N == labels_N
    found = []
    for name, outcome in outcomes_M.items():
        ours_N = outcome.guesses_N == labels_N
        only, only_reference = int((ours_N & ~right_N).sum()), int((right_N & ~ours_N).sum())
        found.append(
            Pair(
                name=name,
                difference=100 * (only - only_reference) / len(labels_N),
                agreement=agreement(outcome, reference).agreement,
                only_right=only,
                only_reference_right=only_reference,
                p=1.0,  # corrected below, when all are known
                p_alone=mcnemar(only, only_reference),
            )
        )
    corrected = holm([pair.p_alone for pair in found])
    return tuple(pair.model_copy(update={"p": p}) for pair, p in zip(found, corrected, strict=True))


def pareto_front(costs_M: Sequence[float], accuracies_M: Sequence[float]) -> list[bool]:
    """Which of M are on the front: no other is as cheap and as accurate, and better in one of the two."""
    points = list(zip(costs_M, accuracies_M, strict=True))
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def compared(
    names: Sequence[str], models: Sequence[Validation], reference: str, pairs: Sequence[Pair]
) -> ModelComparison:
    """The comparison of validated models, by their names; `pairs` are against the `reference`."""
    places = [(k, run) for k, model in enumerate(models) for run in model.providers]
    timed = [_timings(models[k], run.name) for k, run in places]
    latencies = [next((t.p50_ms for t in timings if t.batch == 1), None) for timings in timed]
    accuracies = [run.accuracy for _, run in places]
    known = [latency for latency in latencies if latency is not None]
    fastest: Sequence[bool | None] = [None] * len(places)
    if len(known) == len(places):
        fastest = pareto_front(known, accuracies)
    smallest = pareto_front([models[k].model.bytes for k, _ in places], accuracies)
    runs = tuple(
        ComparedRun(
            name=name,
            model=k,
            provider=run.provider,
            device=run.device,
            accuracy=run.accuracy,
            bytes=models[k].model.bytes,
            latency_ms=latencies[m],
            images_per_second=max((t.images_per_second for t in timed[m]), default=None),
            fastest=fastest[m],
            smallest=smallest[m],
        )
        for m, (name, (k, run)) in enumerate(
            zip(run_names([(names[k], run.provider) for k, run in places]), places, strict=True)
        )
    )
    failures = tuple(f"{name}: {line}" for name, model in zip(names, models, strict=True) for line in model.failures)
    return ModelComparison(models=tuple(models), runs=runs, reference=reference, pairs=tuple(pairs), failures=failures)


def _timings(model: Validation, name: str) -> tuple[Timing, ...]:
    return next((row.batches for section in model.speed or () for row in section.rows if row.name == name), ())
