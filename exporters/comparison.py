"""Compares validations of several models: differences of accuracy, image by image, and Pareto fronts.

Shapes: N images, M runs.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.exporters.accuracy import Outcome, agreement
from ncfmkit.exporters.contract import Contract
from ncfmkit.exporters.matching_data import check_classes
from ncfmkit.exporters.results import ComparedRun, ModelComparison, Pair, Validation
from ncfmkit.exporters.timing import Timing
from ncfmkit.scoring.paired import holm, mcnemar

LEVEL = 0.05  # of p-values, below which a difference is called one


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
    found = []
    for name, outcome in outcomes_M.items():
        only, only_reference = _right_alone(outcome, reference, labels_N)
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


def _right_alone(one: Outcome, other: Outcome, labels_N: np.ndarray) -> tuple[int, int]:
    """How many images only the one, and only the other, gets right."""
    one_N, other_N = one.guesses_N == labels_N, other.guesses_N == labels_N
    return int((one_N & ~other_N).sum()), int((other_N & ~one_N).sum())


def better(outcomes_M: Sequence[Outcome], labels_N: np.ndarray) -> np.ndarray:
    """bool `[M, M]`: whether the run of the row is more accurate than that of the column by more than chance.

    By McNemar's exact test, with Holm's correction over all pairs of runs.
    """
    both = list(combinations(range(len(outcomes_M)), 2))
    only = [_right_alone(outcomes_M[m], outcomes_M[k], labels_N) for m, k in both]
    better_MM = np.zeros((len(outcomes_M), len(outcomes_M)), bool)
    for (m, k), (ours, theirs), p in zip(both, only, holm([mcnemar(*counts) for counts in only]), strict=True):
        better_MM[m, k] = p < LEVEL and ours > theirs
        better_MM[k, m] = p < LEVEL and theirs > ours
    return better_MM


def by_chance(costs_M: Sequence[float], accuracies_M: Sequence[float], better_MM: np.ndarray) -> list[bool]:
    """Of which runs the place on or off the Pareto front hangs on accuracies that differ by no more than chance.

    Sure is a place on the front if the run is better, by more than chance, than all that cost no more; and a place off
    the front if one of those is better than it by more than chance.
    """
    points = list(zip(costs_M, accuracies_M, strict=True))
    rivals = [
        [k for k, point in enumerate(points) if point[0] <= cost and point != (cost, accuracy)]
        for cost, accuracy in points
    ]
    return [
        not (all(better_MM[m, k] for k in others) or any(better_MM[k, m] for k in others))
        for m, others in enumerate(rivals)
    ]


def pareto_front(costs_M: Sequence[float], accuracies_M: Sequence[float]) -> list[bool]:
    """Which of M are on the front: no other is as cheap and as accurate, and better in one of the two."""
    points = list(zip(costs_M, accuracies_M, strict=True))
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def compared(
    names: Sequence[str], models: Sequence[Validation], reference: str, pairs: Sequence[Pair], better_MM: np.ndarray
) -> ModelComparison:
    """The comparison of validated models, by their names; `pairs` are against the `reference`, `better_MM` of all."""
    places = [(k, run) for k, model in enumerate(models) for run in model.providers]
    timed = [_timings(models[k], run.name) for k, run in places]
    latencies = [next((t.p50_ms for t in timings if t.batch == 1), None) for timings in timed]
    accuracies = [run.accuracy for _, run in places]
    timed_ones = {m: latency for m, latency in enumerate(latencies) if latency is not None}
    fastest = _front(timed_ones, accuracies, better_MM)
    smallest = _front({m: models[k].model.bytes for m, (k, _) in enumerate(places)}, accuracies, better_MM)
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
            fastest=fastest[m][0] if m in fastest else None,
            smallest=smallest[m][0],
            fastest_by_chance=fastest[m][1] if m in fastest else None,
            smallest_by_chance=smallest[m][1],
        )
        for m, (name, (k, run)) in enumerate(
            zip(run_names([(names[k], run.provider) for k, run in places]), places, strict=True)
        )
    )
    failures = tuple(f"{name}: {line}" for name, model in zip(names, models, strict=True) for line in model.failures)
    return ModelComparison(models=tuple(models), runs=runs, reference=reference, pairs=tuple(pairs), failures=failures)


def _front(
    costs: Mapping[int, float], accuracies_M: Sequence[float], better_MM: np.ndarray
) -> dict[int, tuple[bool, bool]]:
    """Of the runs whose cost is known: whether they are on the front, and whether that hangs on chance."""
    runs, known = list(costs), list(costs.values())
    accuracies = [accuracies_M[m] for m in runs]
    places = zip(
        pareto_front(known, accuracies), by_chance(known, accuracies, better_MM[np.ix_(runs, runs)]), strict=True
    )
    return dict(zip(runs, places, strict=True))


def _timings(model: Validation, name: str) -> tuple[Timing, ...]:
    return next((row.batches for section in model.speed or () for row in section.rows if row.name == name), ())
