"""`ncfmkit evaluate`: students trained on a set and scored on real data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ncfmkit.config import NetworkSettings, Settings, check, from_dict, override
from ncfmkit.distillation.pool import open_pool
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages
from ncfmkit.jobs.setup import read_class_list, resolved
from ncfmkit.progress import notice, shortened_list
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import herded_subset
from ncfmkit.sets.synthetic import SyntheticSet


def _scores(
    result: SyntheticSet,
    real: RealData,
    settings: Settings,
    baselines: Sequence[str],
    herding: Callable[[int], LabeledImages],
    runtime: Runtime,
) -> dict[str, Any]:
    return students.score_all(
        result,
        real,
        network=settings.network,
        settings=settings.student,
        whole_epochs=settings.pool.epochs,
        baselines=baselines,
        herding=herding,
        seed=settings.seed,
        runtime=runtime,
    )


def settings_for(result: SyntheticSet, overrides: dict[str, Any]) -> Settings:
    """The settings in a set's manifest (data, training recipe, ...), overridden; another network has its own width."""
    settings = from_dict(result.manifest["settings"])
    if "network.name" in overrides:
        settings = dataclasses.replace(settings, network=NetworkSettings())
    return check(override(settings, read_class_list(overrides)))


def evaluate(
    result: SyntheticSet, arguments: DataArguments, settings: Settings, *, baselines: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains students on a set and scores them on real data, as `scores.json` holds it.

    Args:
        settings: as :func:`settings_for` gives them; `network` is the students'.

    Raises:
        UserError: the set and the data have other classes or image shapes, or no student is asked for.
    """
    if not settings.student.repeats:
        raise UserError("--repeats 0: expected 1 or more students to score a set with")
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    check_same(result, real)
    if real.fingerprint != result.manifest["source"]["fingerprint"]:
        notice(f"{real.name} is not byte for byte what the set was made from: other data, or read in another way")
    notice(f"device: {runtime.describe()}")
    settings = resolved(settings, real)

    def herding(count: int) -> LabeledImages:
        one = dataclasses.replace(settings.pool, members=1)
        pool = open_pool(real, settings.network, one, seed=settings.seed, runtime=runtime)
        return herded_subset(real, count, pool.final[0], settings.network, runtime)

    return _scores(result, real, settings, baselines, herding, runtime)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a set is scored: on what real data, by its own recipe with these settings changed."""

    arguments: DataArguments
    overrides: dict[str, Any]

    def settings(self, result: SyntheticSet) -> Settings:
        return settings_for(result, self.overrides)

    def __call__(self, result: SyntheticSet) -> dict[str, Any]:
        """As :func:`evaluate`."""
        return evaluate(result, self.arguments, self.settings(result))


def check_same(result: SyntheticSet, real: RealData) -> None:
    if result.classes != real.classes:
        raise UserError(
            f"the set has the classes {shortened_list(result.classes)}, {real.name} has "
            f"{shortened_list(real.classes)}: "
            "pass the data that it was made from"
        )
    expected = (real.channels, real.size, real.size)
    if tuple(result.images.shape[1:]) != expected:
        raise UserError(
            f"the set has images of shape {tuple(result.images.shape[1:])}, {real.name} has {expected}: "
            "pass --size, --resize and --color as the set was made with"
        )
