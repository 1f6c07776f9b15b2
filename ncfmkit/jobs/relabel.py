"""`ncfmkit relabel`: soft labels for a set that is there, or its hard labels again."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncfmkit.config import NetworkSettings, PoolSettings, Settings, check, override, to_dict
from ncfmkit.distillation.pool import Pool, estimate_pool, open_pool
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage, announce
from ncfmkit.files import check_free, safe_name
from ncfmkit.images import LabeledImages
from ncfmkit.jobs.setup import check_fits, notice_other_data, resolve
from ncfmkit.networks import check_extractors
from ncfmkit.progress import notice
from ncfmkit.real.arguments import read_class_list, split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.scoring.soft_labels import Taught, Teachers
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import SoftLabels, in_label_bits
from ncfmkit.sets.synthetic import SyntheticSet


@dataclass(frozen=True, kw_only=True)
class Relabeled:
    """A set with other labels.

    Attributes:
        file: what was written.
        set: what is in it.
        taught: its soft labels; None: it has hard ones.
    """

    file: Path
    set: SyntheticSet
    taught: Taught | None


def relabel(
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    hard: bool = False,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    **overrides: Any,
) -> Relabeled:
    """Gives a set soft labels: what extractors that were trained on the real data say of its decoded images.

    The extractors are those of the set's own recipe, from the cache; those that are missing are trained first.

    Args:
        path: a set's file, its run directory or a package, or `hf://OWNER/NAME` of a package on the Hub.
        data: the real data that the set was made from, as in :func:`ncfmkit.distill`; not read for hard labels.
        hard: take the soft labels away instead.
        out: the file to write; None: NAME-soft.safetensors (NAME-hard) in the working directory, after the set.
        force: overwrite an existing file.
        overrides: settings by name that replace the set's own, such as `pool.members`, `labels.temperature` or
            `labels.stages`; and `data_root`, `download`, `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        The file, the set in it, and what the extractors know of its images. Its score is unknown:
        :func:`ncfmkit.evaluate` measures it.

    Raises:
        UserError: no set there, the set and the data have other classes or image shapes, an extractor is no better
            than chance, or `out` exists or cannot be written.

    Example:
        >>> small = ncfmkit.relabel("runs/digits-ipc1", data="digits", out="soft.safetensors")
        >>> small.taught.certainty
        0.98
    """
    result = set_file.load(path)
    file = Path(out or f"{safe_name(result.manifest.name)}-{'hard' if hard else 'soft'}.safetensors")
    check_free(file, force=force)
    if hard:
        changed, taught = _hard(path, result, data, overrides), None
    else:
        real, settings, runtime = _opened(result, data, overrides)
        announce(_estimate(real, settings, runtime))
        changed, taught = relabeled(result, settings, open_teachers(real, settings, settings.extractors, runtime))
    manifest = set_file.save(changed, file, force=force)
    return Relabeled(file=file, set=dataclasses.replace(changed, manifest=manifest), taught=taught)


def dry_run(path: str | os.PathLike[str], *, data: Any, **overrides: Any) -> Iterator[Stage]:
    """What :func:`relabel` would train, measured; arguments and errors as there."""
    real, settings, runtime = _opened(set_file.load(path), data, overrides)
    return _estimate(real, settings, runtime)


def _estimate(real: RealData, settings: Settings, runtime: Runtime) -> Iterator[Stage]:
    return estimate_pool(real, settings.extractors, teaching_pool(settings), seed=settings.seed, runtime=runtime)


def _opened(result: SyntheticSet, data: Any, overrides: dict[str, Any]) -> tuple[RealData, Settings, Runtime]:
    """The real data, which are opened after all other checks, the settings of the teachers, and the runtime."""
    if data is None:
        raise UserError("soft labels need --data: the real data that the set was made from")
    source, changes = split_arguments(data, overrides)
    settings = result.manifest.training.settings()
    settings = check(override(settings, read_class_list(changes) | {"labels.soft": True}))
    check_extractors(settings.extractors)
    runtime = choose_runtime(settings.runtime)
    real = source.open(settings)
    check_fits(result, real)
    notice_other_data(result, real)
    notice(f"device: {runtime.describe()}")
    return real, resolve(settings, real), runtime


def _hard(path: str | os.PathLike[str], result: SyntheticSet, data: Any, overrides: dict[str, Any]) -> SyntheticSet:
    if data is not None or overrides:
        raise UserError("--hard takes soft labels away: leave out --data and settings")
    if result.soft_labels is None:
        raise UserError(f"{path} has hard labels already")
    training = result.manifest.training.model_copy(update={"labels": {}})
    manifest = result.manifest.changed(training=training, labels=None, score=None)
    return dataclasses.replace(result, soft_labels=None, manifest=manifest)


def relabeled(result: SyntheticSet, settings: Settings, teachers: Teachers) -> tuple[SyntheticSet, Taught]:
    """A set with soft labels in place of those it has; its manifest says how they came about, and has no score."""
    taught, how = teachers.teach(result.labeled()), _stored_in(settings)
    made_by = {"seed": settings.seed, "labels": to_dict(settings.labels), "pool": to_dict(settings.pool)}
    training = result.manifest.training.model_copy(update=made_by)
    manifest = result.manifest.changed(training=training, labels=how, score=None)
    return dataclasses.replace(result, soft_labels=in_label_bits(taught.logits, how), manifest=manifest), taught


def softened(data: LabeledImages, settings: Settings, teachers: Teachers) -> LabeledImages:
    """Real images with soft labels as a set of these settings stores them."""
    logits = teachers.teach(data).logits
    return dataclasses.replace(data, soft_labels=in_label_bits(logits, _stored_in(settings)))


def _stored_in(settings: Settings) -> SoftLabels | None:
    """How soft labels are stored; None: as float16."""
    how = settings.labels
    return None if how.bits == 16 else SoftLabels(bits=how.bits, top=how.top)


def teachers_of(
    real: RealData, settings: Settings, networks: Sequence[NetworkSettings], pool: Pool, runtime: Runtime
) -> Teachers:
    """The members of a pool at the last stages of their training, as many as `labels.stages`.

    Raises:
        UserError: a member guesses no better than chance.
    """
    chance = 1 / len(real.classes)
    for member, accuracy in enumerate(pool.accuracies):
        if accuracy is not None and accuracy <= chance:
            raise UserError(
                f"extractor {member} of the pool has a test accuracy of {accuracy:.1%}, chance is {chance:.1%}: it "
                "cannot teach soft labels; train it longer (--pool-epochs), or leave out --soft-labels"
            )
    return Teachers(
        states=[
            (networks[member % len(networks)], state)
            for member, stages in enumerate(pool.stages)
            for state in stages[-settings.labels.stages :]
        ],
        real=real,
        temperature=settings.labels.temperature,
        runtime=runtime,
    )


def open_teachers(
    real: RealData, settings: Settings, networks: Sequence[NetworkSettings], runtime: Runtime
) -> Teachers:
    """The pool of the settings, as teachers; extractors that are not in the cache are trained first."""
    pool = open_pool(real, networks, teaching_pool(settings), seed=settings.seed, runtime=runtime)
    return teachers_of(real, settings, networks, pool, runtime)


def teaching_pool(settings: Settings) -> PoolSettings:
    """The pool whose extractors teach, with snapshots only where these do."""
    return settings.pool if settings.labels.stages > 1 else dataclasses.replace(settings.pool, snapshots=0)
