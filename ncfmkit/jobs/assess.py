"""`ncfmkit assess`: what is a set good for, beyond the accuracy of its own students?"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit import interrupts
from ncfmkit.assessment import AssessedSet, Assessment
from ncfmkit.comparison import ComparedOn
from ncfmkit.config import Settings, check, from_dict, full_key, known_names, to_dict
from ncfmkit.distillation.initial import beginnings
from ncfmkit.distillation.pool import Pool, estimate_pool, open_pool
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage, announce
from ncfmkit.jobs.evaluate import (
    extractors_of,
    no_students,
    real_mosaics,
    selecting,
    selecting_pool,
    set_size,
    settings_for,
    settings_of_pool,
)
from ncfmkit.jobs.relabel import open_teachers, softened, teaching_pool
from ncfmkit.jobs.setup import (
    changed_recipe,
    check_fits,
    check_results_folder,
    kept_of_set,
    notice_other_data,
    open_data,
    recipe_of,
    resolve,
)
from ncfmkit.networks import network_builder
from ncfmkit.progress import notice
from ncfmkit.real.arguments import split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.reports.assessment import Heading, write_page
from ncfmkit.runtime import choose_runtime, device_name, versions
from ncfmkit.scoring.coreset import selection_seconds
from ncfmkit.scoring.evaluations import EVALUATIONS, parse_evaluations
from ncfmkit.scoring.soft_labels import Teachers
from ncfmkit.scoring.students import encoder
from ncfmkit.scoring.subject import Subject
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet

RESULT_FILE, PAGE_FILE, MEASURED = "assess.json", "assess.html", "measured"
HEADINGS = {name: Heading(title=row.title, asks=row.asks, source=row.source) for name, row in EVALUATIONS.items()}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A set that fits the data, and the evaluations that it has all for."""

    path: str
    result: SyntheticSet
    subject: Subject
    names: tuple[str, ...]
    changed: tuple[str, ...]  # settings that are not the set's
    out: Path

    def conditions(self, name: str) -> dict[str, Any]:
        """What the result of an evaluation depends on, beside the conditions of `kept`."""
        settings = self.subject.settings
        # the pool herds, teaches soft labels, and says how long students of the whole split train
        parts = {part: to_dict(getattr(settings, part)) for part in ("network", "pool", "student", "labels")}
        return {"evaluation": name} | parts | (encoder("webp") if name == "continual" else {})


def assess(
    path: str | os.PathLike[str],
    *,
    data: Any,
    only: str | Sequence[str] = "all",
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Assessment:
    """Measures what a set is good for, by rows of the table of evaluations (docs/method.md, section 8).

    Writes `assess.json`, `assess.html`, and to `measured/` what each student gets right as soon as it is trained, which
    a later call with this set, settings and data does not train again.

    Args:
        path: a set, as :func:`ncfmkit.evaluate` takes it.
        data: the real data that the set was made from, with a test split, as in :func:`ncfmkit.distill`.
        only: names of evaluations, such as `"ranking"`; `"all"`: those that this set and its data allow.
        out: the folder to make, or that of an earlier assessment; None: `assessment`.
        overrides: settings by name that replace the set's own, such as `repeats=3`; and `data_root`, `download`,
            `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        What `assess.json` holds: a result for each evaluation by its name, and None for those that are not measured;
        the `set`, `recipe` of the students, `device`, ...; `to_dict()` gives plain JSON values.

    Raises:
        UserError: no set there, it does not fit the data, an evaluation that is named needs what it has not, or a
            folder of something else.

    Example:
        >>> found = ncfmkit.assess("runs/digits-ipc1", data="digits", only="ranking", repeats=5)
        >>> found.ranking.lrs.mean, found.ranking.ars.mean
        (0.313, 0.389)
    """
    plan = _plan(path, data, only, out, overrides)
    notice(f"device: {plan.subject.runtime.describe()}")
    done = [name for name in plan.names if _is_done(plan, name)]
    if done:
        notice(f"{plan.out} holds {', '.join(done)}")
    _notice_what_goes(plan)
    announce(_stages(plan))

    def kept() -> str | None:
        some = any((plan.out / MEASURED).glob("*.json"))
        return f"interrupted: {plan.out} holds what is measured: run the same command to continue" if some else None

    with interrupts.keeping(kept):
        written = None
        for name in plan.names:
            if name not in done:
                row = EVALUATIONS[name]
                plan.subject.kept.measured(row.result, partial(row.measure, plan.subject), **plan.conditions(name))
                written = _write(plan)
        return _write(plan) if written is None else written


def dry_run(
    path: str | os.PathLike[str],
    *,
    data: Any,
    only: str | Sequence[str] = "all",
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Iterator[Stage]:
    """What :func:`assess` would measure; arguments and errors as there."""
    plan = _plan(path, data, only, out, overrides)
    notice(f"device: {plan.subject.runtime.describe()}")
    return _stages(plan)


def _plan(
    path: str | os.PathLike[str],
    data: Any,
    only: str | Sequence[str],
    out: str | os.PathLike[str] | None,
    overrides: dict[str, Any],
) -> Plan:
    """The real data are opened last, after all that can be checked without them."""
    result = load(path)
    source, changes = split_arguments(data, overrides)
    changes = {full_key(key): value for key, value in changes.items()}
    if "student.evaluations" in changes:
        raise UserError("assess tests students after their last epoch alone: leave out student.evaluations")
    settings = settings_for(result, changes)
    if not settings.student.repeats:
        raise no_students(result.manifest.training.settings())
    changed = changed_recipe(result.manifest.training.settings(), settings)
    settings = dataclasses.replace(settings, student=dataclasses.replace(settings.student, evaluations=1))
    asked = parse_evaluations(only if isinstance(only, str) else ",".join(only))
    folder = Path("assessment" if out is None else out)
    check_results_folder(folder, RESULT_FILE, MEASURED, made_by="assess", what="an assessment")
    runtime = choose_runtime(settings.runtime)

    real = open_data(source, settings)
    check_fits(result, real)
    real.test_split()
    notice_other_data(result, real)
    settings = resolve(settings, real)
    network_builder(settings.network, real)()  # raises where the images are too small for it
    extractors, selector = extractors_of(result, real), selecting_pool(settings, ())
    own = settings_of_pool(result, settings)

    def herding(count: int) -> Iterator[Stage]:
        yield from estimate_pool(real, extractors[:1], selector, seed=own.seed, runtime=runtime)
        seconds = selection_seconds("herding", real, count, extractors[0], selector.snapshots, runtime)
        yield Stage(name="herding", work=f"{count} of each class", seconds=seconds)

    def pool() -> Pool:
        return open_pool(real, extractors[:1], selector, seed=own.seed, runtime=runtime)

    @cache
    def teachers() -> Teachers:
        return open_teachers(real, own, extractors, runtime)

    made = _made_by(result)
    taught = result.soft_labels is not None and settings.labels.soft
    subject = Subject(
        stored=result.images.numpy(),
        stored_labels=result.labels.numpy(),
        distilled=result.labeled(),
        factor=result.manifest.decode.factor,
        initial=None if made is None or made.distill.init == "load" else made.distill.init,
        beginnings=None if made is None else _beginnings(result, real, made),
        size=set_size(result),
        real=real,
        settings=settings,
        runtime=runtime,
        mosaics=lambda repeat: real_mosaics(result, real, settings.seed, repeat)[0],
        herding=herding,
        herded=cache(partial(selecting(real, extractors[0], pool, runtime), "herding")),
        soften=(lambda data: softened(data, own, teachers())) if taught else None,
        teachers=lambda: estimate_pool(real, extractors, teaching_pool(own), seed=own.seed, runtime=runtime),
        kept=kept_of_set(folder / MEASURED, result.manifest, real, settings, runtime),
    )
    names = []
    for name in EVALUATIONS:  # in this order, because some use the students of those before them
        if asked and name not in asked:
            continue
        try:
            EVALUATIONS[name].check(subject)
        except UserError as error:
            if asked:
                raise UserError(f"{name}: {error}\n--only all measures what this set and its data allow") from None
            notice(f"{name} is left out: {error}")
        else:
            names.append(name)
    if not names:
        raise UserError("this set and these data allow none of the evaluations")
    return Plan(path=os.fspath(path), result=result, subject=subject, names=tuple(names), changed=changed, out=folder)


def _made_by(result: SyntheticSet) -> Settings | None:
    """How all classes of a set were distilled, as its manifest says; None: it does not say, or they differ."""
    if result.manifest.source.converted is not None:
        return None
    try:
        made = check(from_dict(known_names(result.manifest.settings)))
    except UserError:  # a newer version of ncfmkit may have other settings
        return None
    return made if made.distill.add_to is None else None


def _beginnings(result: SyntheticSet, real: RealData, made: Settings) -> list[np.ndarray] | None:
    """The real images that the images of a set began as; None: there are none, or it is not known which ones."""
    d = made.distill
    whole_images = d.init == "mix" or (d.init == "random" and d.factor == 1)  # and not cells that are crops of them
    # of those that were distilled, the images of least worth are left out, whichever they began as
    some = d.bytes is not None or result.manifest.part_of is not None
    if not whole_images or some or real.fingerprint != result.manifest.source.fingerprint:
        return None
    return beginnings(d.init, real, ipc=result.ipc, factor=d.factor, seed=made.seed)


def _is_done(plan: Plan, name: str) -> bool:
    return plan.subject.kept.has(**plan.conditions(name))


def _stages(plan: Plan) -> Iterator[Stage]:
    """What is left; students that several evaluations share count for the first one."""
    planning = dataclasses.replace(plan.subject, kept=dataclasses.replace(plan.subject.kept, planned=set()))
    for name in plan.names:
        if not _is_done(plan, name):
            for stage in EVALUATIONS[name].stages(planning):
                yield dataclasses.replace(stage, name=f"{name}: {stage.name}")


def _notice_what_goes(plan: Plan) -> None:
    """Says what an earlier assessment in the folder holds and this one does not."""
    file = plan.out / RESULT_FILE
    try:
        earlier = Assessment.read(file) if file.is_file() else None
    except UserError:  # damaged: nobody reads it
        return
    if earlier is None:
        return
    there = [name for name in EVALUATIONS if getattr(earlier, name) is not None and not _is_done(plan, name)]
    lost = [name for name in there if name not in plan.names]
    if there and earlier.set.manifest_sha256 != plan.result.manifest.manifest_sha256:
        notice(f"{plan.out} holds an assessment of another set, {earlier.set.path}, which is replaced")
    elif lost:
        notice(
            f"{file} will lack {', '.join(lost)}, measured in another way (settings, data, device or versions): ask "
            "for all in one call, or choose another --out"
        )


def _write(plan: Plan) -> Assessment:
    """All that is measured of this set, in this way, as JSON and as a page: what earlier calls measured, too."""
    subject, result = plan.subject, plan.result
    real = subject.real
    results: dict[str, Any] = {
        name: subject.kept.read(row.result, **plan.conditions(name)) for name, row in EVALUATIONS.items()
    }
    found = Assessment(
        set=AssessedSet(
            name=Path(plan.path).name or plan.path,
            path=plan.path,
            manifest_sha256=result.manifest.manifest_sha256,
            per_class=result.ipc,
            bytes_per_class=result.content_bytes / len(result.classes),
            soft_labels=result.soft_labels is not None,
        ),
        data=ComparedOn(
            name=real.name, fingerprint=real.fingerprint, test=len(real.test_split().images), classes=real.classes
        ),
        recipe=recipe_of(subject.settings),
        changed=plan.changed,
        device=device_name(subject.runtime.device),
        precision=subject.runtime.precision,
        versions=versions(),
        seconds={name: subject.kept.seconds(**plan.conditions(name)) for name, there in results.items() if there},
        **results,
    )
    with interrupts.held():
        found.write(plan.out / RESULT_FILE)
        write_page(plan.out / PAGE_FILE, found, HEADINGS)
    return found
