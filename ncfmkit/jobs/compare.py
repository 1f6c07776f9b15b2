"""`ncfmkit compare`: which of several sets trains better students?"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ncfmkit import interrupts
from ncfmkit.comparison import ComparedOn, ComparedSet, Comparison, Difference
from ncfmkit.config import Settings, full_key
from ncfmkit.errors import NonFiniteLossError, UserError
from ncfmkit.estimate import Stage, announce
from ncfmkit.files import short_names
from ncfmkit.images import labeled
from ncfmkit.jobs.evaluate import no_students, settings_for
from ncfmkit.jobs.setup import (
    changed_recipe,
    check_fits,
    check_results_folder,
    kept_of_set,
    open_data,
    recipe_of,
    resolve,
)
from ncfmkit.networks import network_builder
from ncfmkit.progress import notice, plural, shortened_list
from ncfmkit.real.arguments import DataArguments, split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.reports.comparison import write_page
from ncfmkit.reports.strips import SetImages
from ncfmkit.run_records import Score
from ncfmkit.runtime import Runtime, choose_runtime, device_name, versions
from ncfmkit.scoring.kept_students import KeptStudents
from ncfmkit.scoring.paired import holm, paired_test
from ncfmkit.scoring.students import (
    RowWork,
    describe_network,
    epochs_for,
    score,
    student_conditions,
    student_stages,
)
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.training import batch_plan

RESULT_FILE, PAGE_FILE, STUDENTS = "compare.json", "compare.html", "students"
UNEVEN = 0.05  # share of the gradient steps by which a set's whole epochs may exceed them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sets that fit the data, and the one way in which all of their students are trained."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    sets: tuple[SyntheticSet, ...]
    works: tuple[RowWork, ...]  # a set's students each
    steps: int
    settings: Settings
    changed: tuple[str, ...]  # settings that are not the first set's
    real: RealData
    runtime: Runtime
    out: Path

    def students(self, k: int) -> KeptStudents:
        """Of a set, as far as they are trained."""
        manifest = self.sets[k].manifest
        kept = kept_of_set(self.out / STUDENTS, manifest, self.real, self.settings, self.runtime)
        return KeptStudents(kept=kept, conditions=student_conditions(self.works[k], self.settings))

    def left(self) -> dict[int, int]:
        """How many students of a set are not trained yet, by its place; sets that have all are not in it."""
        counts = {k: len(self.students(k).left(self.settings.student.repeats)) for k in range(len(self.sets))}
        return {k: count for k, count in counts.items() if count}


def compare(
    paths: Sequence[str | os.PathLike[str]],
    *,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Comparison:
    """Trains the same students on each of several sets, and tests their differences to the first set's students.

    Network, augmentation, learning rate and number of gradient steps are one for all: those that the first set records.
    Students of one seed start from the same weights. Writes `compare.json`, `compare.html`, and to `students/` what
    each gets right, which a later call with these sets, settings and data does not measure again.

    Args:
        paths: two or more sets, each as :func:`ncfmkit.evaluate` takes it. The first is what the others are compared
            with.
        data: real data with a test split, of the classes and sizes of all sets, as in :func:`ncfmkit.distill`.
        out: the folder to make, or that of an earlier comparison; None: `comparison`.
        overrides: settings by name that replace those of the first set, such as `repeats=10`; and `data_root`,
            `download`, `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        What `compare.json` holds: `sets`, in the order given, each with `score` (as a row of :func:`ncfmkit.evaluate`)
        and `difference` (to the first set: `mean`, `low` and `high` of the 95% interval, `p`; None for the first); and
        the `recipe` of the students, `steps`, `device`, ...; `to_dict()` gives plain JSON values.

    Raises:
        UserError: fewer than two sets, sets that do not fit the data or each other, or a folder of something else.

    Example:
        >>> found = ncfmkit.compare(["runs/digits-ipc1", "runs/digits-ipc3"], data="digits", repeats=5)
        >>> found.sets[1].difference.mean, found.sets[1].difference.p
        (0.053, 0.0009)
    """
    plan = _plan(paths, data, out, overrides)
    notice(f"device: {plan.runtime.describe()}")
    left = plan.left()
    held = _held(plan, left)
    if held is not None:
        notice(held)
    scores = {k: _score(plan, k) for k in range(len(plan.sets)) if k not in left}
    announce(_stages(plan, left))

    def kept() -> str | None:
        held = _held(plan, plan.left())
        return held and f"interrupted: {held}: run the same command to continue"

    with interrupts.keeping(kept):
        written = None
        for k in range(len(plan.sets)):
            if k not in scores:
                scores[k] = _score(plan, k)
                written = _write(plan, scores)
        return _write(plan, scores) if written is None else written


def dry_run(
    paths: Sequence[str | os.PathLike[str]],
    *,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Iterator[Stage]:
    """What :func:`compare` would train, measured; arguments and errors as there."""
    plan = _plan(paths, data, out, overrides)
    notice(f"device: {plan.runtime.describe()}")
    return _stages(plan, plan.left())


def _plan(
    paths: Sequence[str | os.PathLike[str]],
    data: Any,
    out: str | os.PathLike[str] | None,
    overrides: dict[str, Any],
) -> Plan:
    """The real data are opened last, after all that can be checked without them."""
    shown = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if len(shown) < 2:
        raise UserError(f"compare: expected two or more sets, got {len(shown)}; `ncfmkit evaluate` scores a single one")
    names, sets = short_names(shown), [load(path) for path in shown]
    _check_sets(names, sets)
    source, changes = split_arguments(data, overrides)
    changes = {full_key(key): value for key, value in changes.items()}
    settings = settings_for(sets[0], changes)
    changed = changed_recipe(sets[0].manifest.training.settings(), settings)
    if not settings.student.repeats:
        raise no_students(sets[0].manifest.training.settings())
    steps, epochs = _equal_steps(names, sets, settings)
    folder = Path("comparison" if out is None else out)
    check_results_folder(folder, RESULT_FILE, STUDENTS, made_by="compare", what="a comparison")
    runtime = choose_runtime(settings.runtime)

    real = _open(source, settings, names, sets)
    settings = resolve(settings, real)
    network_builder(settings.network, real)()  # raises where the images are too small for it
    works = tuple(
        RowWork(
            name="distilled",
            label=name,
            network=describe_network(settings.network),
            per_class=one.ipc,
            stored=len(one),
            images=one.manifest.ipc.decoded * len(one.classes),
            epochs=epochs_of_set,
        )
        for name, one, epochs_of_set in zip(names, sets, epochs, strict=True)
    )
    return Plan(
        names=names,
        paths=tuple(shown),
        sets=tuple(sets),
        works=works,
        steps=steps,
        settings=settings,
        changed=changed,
        real=real,
        runtime=runtime,
        out=folder,
    )


def _check_sets(names: Sequence[str], sets: Sequence[SyntheticSet]) -> None:
    """Raises UserError unless all are different sets of the classes and image shapes of the first one."""
    first, digests = sets[0], dict[str, str]()
    shape = tuple(first.images.shape[1:])
    for name, one in zip(names, sets, strict=True):
        if one.classes != first.classes:
            raise UserError(
                f"{name} has the classes {shortened_list(one.classes)}, {names[0]} has "
                f"{shortened_list(first.classes)}: only sets of the same classes, in the same order, can be compared"
            )
        if tuple(one.images.shape[1:]) != shape:
            raise UserError(
                f"{name} has images of shape {tuple(one.images.shape[1:])}, {names[0]} has {shape}: only sets of one "
                "image shape can be compared"
            )
        same = digests.setdefault(one.manifest.manifest_sha256, name)
        if same != name:
            raise UserError(f"{name} is the same set as {same}: leave one of them out")


def _equal_steps(names: Sequence[str], sets: Sequence[SyntheticSet], settings: Settings) -> tuple[int, list[int]]:
    """The gradient steps of every student, those of the first set's epochs, and the whole epochs of each set.

    Raises:
        UserError: the whole epochs of a set are more steps than that by more than `UNEVEN`.
    """
    student, images = settings.student, [one.manifest.ipc.decoded * len(one.classes) for one in sets]
    per_epoch = [batch_plan(count, student.batch)[0] for count in images]
    steps = student.epochs * per_epoch[0]
    epochs = [epochs_for(steps, count, student.batch) for count in images]
    for name, of_epoch, count in zip(names, per_epoch, epochs, strict=True):
        if of_epoch * count > (1 + UNEVEN) * steps:
            enough = -(-of_epoch * round(1 / UNEVEN) // per_epoch[0])
            raise UserError(
                f"{plural(student.epochs, 'epoch')} of {names[0]} are {plural(steps, 'gradient step')}, "
                f"{plural(count, 'epoch')} of {name} {of_epoch * count:,}: expected as many, but for {UNEVEN:.0%}; "
                f"pass --student-epochs {enough} or more"
            )
    return steps, epochs


def _open(source: DataArguments, settings: Settings, names: Sequence[str], sets: Sequence[SyntheticSet]) -> RealData:
    real = open_data(source, settings)
    real.test_split()
    for name, one in zip(names, sets, strict=True):
        try:
            check_fits(one, real)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if real.fingerprint != one.manifest.source.fingerprint:
            notice(
                f"{name} was made from other data than {real.name}, or read in another way: it may have seen the test "
                "images"
            )
    return real


def _held(plan: Plan, left: dict[int, int]) -> str | None:
    """How many students are trained; None: none."""
    total = len(plan.sets) * plan.settings.student.repeats
    done = total - sum(left.values())
    return f"{plan.out} holds {done} of {plural(total, 'student')}" if done else None


def _stages(plan: Plan, left: dict[int, int]) -> Iterator[Stage]:
    works = {plan.works[k]: count for k, count in left.items()}
    return student_stages(works, plan.real, plan.settings, plan.runtime)


def _score(plan: Plan, k: int) -> Score:
    """Of the students of a set; those that are not trained yet are."""
    result, real, settings = plan.sets[k], plan.real, plan.settings
    decoded = cache(result.labeled)
    try:
        return score(
            lambda _: decoded(),
            labeled(real, real.test_split()),
            network_builder(settings.network, real),
            settings.student,
            seed=settings.seed,  # one for all sets: student r starts from the same weights
            runtime=plan.runtime,
            about=plan.works[k],
            kept=plan.students(k),
            bytes_per_class=result.content_bytes / len(result.classes),
        )
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{plan.names[k]}: {error}") from None


def _write(plan: Plan, scores: dict[int, Score]) -> Comparison:
    """What is known so far, as JSON and as a page."""
    done = sorted(scores)
    differences = _differences([scores[k] for k in done]) if 0 in scores else {}
    compared = tuple(
        ComparedSet(
            name=plan.names[k],
            path=plan.paths[k],
            manifest_sha256=plan.sets[k].manifest.manifest_sha256,
            per_class=plan.sets[k].ipc,
            soft_labels=plan.sets[k].soft_labels is not None,
            score=scores[k],
            difference=differences.get(place),
        )
        for place, k in enumerate(done)
    )
    real = plan.real
    found = Comparison(
        data=ComparedOn(
            name=real.name,
            fingerprint=real.fingerprint,
            test=len(real.test_split().images),
            classes=real.classes,
        ),
        recipe=recipe_of(plan.settings),
        changed=plan.changed,
        steps=plan.steps,
        device=device_name(plan.runtime.device),
        precision=plan.runtime.precision,
        versions=versions(),
        sets=compared,
        left=tuple(name for k, name in enumerate(plan.names) if k not in scores),
    )
    images = [
        SetImages(stored=one.images.numpy(), labels=one.labels.numpy(), classes=one.classes, decoded={})
        for one in (plan.sets[k] for k in done)
    ]
    with interrupts.held():
        found.write(plan.out / RESULT_FILE)
        write_page(plan.out / PAGE_FILE, found, images)
    return found


def _differences(scores: Sequence[Score]) -> dict[int, Difference]:
    """Of each score but the first, by its place."""
    first, *others = (score.last.values for score in scores)
    tests = [paired_test(values, first) for values in others]
    corrected = iter(holm([test.p for test in tests if test.p is not None]))
    return {
        place: Difference(
            mean=test.mean,
            low=test.low,
            high=test.high,
            p=None if test.p is None else next(corrected),
            p_alone=test.p,
        )
        for place, test in enumerate(tests, 1)
    }
