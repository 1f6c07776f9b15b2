"""Scores: fresh students trained on a set and tested on real images, and its baselines (docs/method.md, section 8).

The figure is the last epoch's. The best epoch's stands beside it for comparison with published tables, which peek at
the test set that way.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import PIL
from torch import nn

from ncfmkit import distributed
from ncfmkit.config import NetworkSettings, Settings, StudentSettings, to_dict
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.kept import Kept
from ncfmkit.networks import NETWORKS, network_builder
from ncfmkit.progress import Tracker, notice, plural, track
from ncfmkit.real.store import RealData
from ncfmkit.run_records import Accuracy, Curve, Score, Scores
from ncfmkit.runtime import Runtime, device_name, versions
from ncfmkit.scoring.baselines import BASELINES, SetSize, are_selected, random_subset
from ncfmkit.scoring.coreset import SELECTIONS, selection_seconds
from ncfmkit.scoring.kept_students import KeptStudents, StudentResult
from ncfmkit.training import (
    Checkpoint,
    StackedModels,
    Weights,
    accuracy,
    accuracy_seconds,
    batch_plan,
    class_hits,
    fresh_state,
    train,
    training_seconds,
)

STUDENT_FORMAT = 1  # raised when students are trained or tested in a way that the settings do not show
NO_SCORE = "or --repeats 0"  # what else a user can do who has no test split
UNBALANCED = 1.5  # size ratio of the largest class to the smallest from which on a test split is called so


def side_by_side(repeats: int, size: int, runtime: Runtime) -> int:
    """How many students are trained together.

    Measured on a CPU with 4 cores: together is 1.4 times as fast at 8 pixels uncompiled, 5 times slower at 32 pixels.
    On a GPU each goes alone where its steps are replayed; else all go together: 1.6 times as fast on an H200.
    """
    if (runtime.device.type == "cuda" and not runtime.records) or (size <= 16 and not runtime.compile):
        return max(1, repeats)
    return 1


def stacks(
    build: Callable[[], nn.Module], keys: Sequence[int], together: int, runtime: Runtime
) -> Iterator[tuple[StackedModels, Sequence[int]]]:
    """Parts of at most `together` keys, each with a stack to load: one for all, because each is compiled anew."""
    models: StackedModels | None = None
    for first in range(0, len(keys), together):
        part = keys[first : first + together]
        if models is None or models.size != len(part):
            models = StackedModels(build, len(part), runtime)
        yield models, part


def student_conditions(work: "RowWork", settings: Settings) -> dict[str, Any]:
    """What the students of a row depend on, beside the set, the real data, the seed, and how images are selected."""
    student = to_dict(dataclasses.replace(settings.student, epochs=work.epochs))
    del student["whole_epochs"]  # is in the epochs of the row that it belongs to
    del student["repeats"]  # no student depends on how many there are
    of_row = {"row": work.name, "images": work.images}
    return of_row | {"network": to_dict(settings.network), "student": student, "format": STUDENT_FORMAT}


def score(
    images: Callable[[int], LabeledImages],
    test: LabeledImages,
    build: Callable[[], nn.Module],
    settings: StudentSettings,
    *,
    seed: int,
    runtime: Runtime,
    about: "RowWork",
    kept: KeptStudents | None = None,
    bytes_per_class: float | None = None,
    prefix: str = "",
) -> Score:
    """Trains `settings.repeats` fresh students and tests them, apart from those that are kept.

    Several ranks train a part of the students each.

    Args:
        images: gives what the student of that repeat is trained on; asked only of those that are trained, and of one
            of them by every rank.
        settings: how; their `epochs` are those of `about`.
        about: the row that the students are of.
        kept: where the first rank keeps each student's result; None: nowhere.
        bytes_per_class: of what is stored of their images and soft labels; None: not known.
        prefix: of the name of the work, as people see it.

    Raises:
        UserError: the disk refuses a result.
    """
    repeats, settings = settings.repeats, dataclasses.replace(settings, epochs=about.epochs)
    when = evaluated_epochs(settings)
    count_K = np.bincount(test.labels.numpy(), minlength=test.classes)
    done: dict[int, StudentResult] = {}
    if kept is not None:
        reading = partial(kept.read, repeats, tests=len(when), images_K=count_K.tolist())
        done = distributed.from_first(reading)
    left = [k for k in range(repeats) if k not in done]
    if left:
        if distributed.world() > 1:
            images(left[0])  # on all ranks: they train the extractors that select or teach images together
        mine = left[distributed.rank() :: distributed.world()]
        together = side_by_side(len(mine), test.images.shape[-1], runtime)
        before, total = (count * settings.epochs for count in (len(done), len(done) + len(mine)))
        with distributed.agreed(), track(f"{prefix}students: {about.label}", total, before) as bar:
            for models, keys in stacks(build, mine, together, runtime):
                start = time.monotonic()
                models.load([fresh_state(build, seed, "student", k) for k in keys])
                tested_REK = train_and_test(models, [images(k) for k in keys], test, settings, seed, keys, bar)
                seconds = (time.monotonic() - start) / len(keys)
                for k, tested_EK in zip(keys, tested_REK, strict=True):
                    done[k] = StudentResult.of(tested_EK, seconds)
                    if kept is not None and distributed.is_first():
                        kept.keep(k, done[k])
                last = sum(sum(student.hits[-1]) for student in done.values())
                bar.advance(0, note=f"last epoch {last / (len(done) * len(test)):.1%}")
        others = {k: student for rank in distributed.gathered(done) for k, student in rank.items() if k not in done}
        done |= others
        with distributed.agreed():
            if kept is not None and distributed.is_first():
                for k, student in others.items():
                    kept.keep(k, student)
    students = [done[k] for k in range(repeats)]
    hits_NEK = np.array([student.hits for student in students])
    accuracy_NE = hits_NEK.sum(2) / len(test)
    tested = [summary(values) for values in accuracy_NE.T]
    known = count_K > 0
    of_class_NK = hits_NEK[:, -1, known] / count_K[known]
    unbalanced = count_K[known].max() >= UNBALANCED * count_K[known].min()
    return Score(
        set=about.name,
        label=about.label,
        images=about.stored,
        network=about.network,
        decoded=about.images,
        bytes_per_class=bytes_per_class,
        epochs=settings.epochs,
        steps=settings.epochs * batch_plan(about.images, settings.batch)[0],
        evaluations=settings.evaluations,
        n=repeats,
        last=tested[-1],
        best=summary(accuracy_NE.max(1)),
        classes=tuple(
            float(np.mean(hits_N / count)) if count else None
            for hits_N, count in zip(hits_NEK[:, -1].T, count_K, strict=True)
        ),
        balanced=summary(of_class_NK.mean(1)) if unbalanced else None,
        curve=Curve(epochs=when, mean=tuple(t.mean for t in tested), std=tuple(t.std for t in tested)),
        seconds=sum(student.seconds for student in students),
    )


def evaluated_epochs(settings: StudentSettings) -> tuple[int, ...]:
    """The epochs after which students are tested: evenly spaced, the last one among them."""
    count = min(settings.evaluations, settings.epochs)
    return tuple(round(settings.epochs * (i + 1) / count) for i in range(count))


def train_and_test(
    models: StackedModels,
    sets: list[LabeledImages],
    test: LabeledImages,
    settings: StudentSettings,
    seed: int,
    keys: Sequence[int],
    bar: Tracker,
) -> np.ndarray:
    """What the stack gets right of each class at each evaluation, the last epoch's at the end, int64 `[R, E, K]`."""
    when, test = set(evaluated_epochs(settings)), test.normalized_as(sets[0])
    tested: list[np.ndarray] = []

    def evaluate(epoch: int) -> None:
        if epoch in when:
            tested.append(class_hits(models, test))

    train(models, sets, settings, seed=seed, keys=keys, bar=bar, after_epoch=evaluate)
    return np.stack(tested, axis=1)


def summary(values_N: np.ndarray) -> Accuracy:
    """Mean and deviation of the accuracies of N students, fractions in [0, 1]."""
    return Accuracy(**spread(values_N))


def spread(values_N: np.ndarray) -> dict[str, Any]:
    """The fields of an `Accuracy`: mean, standard deviation of the sample (0 for one value), the values."""
    std = float(np.std(values_N, ddof=1)) if len(values_N) > 1 else 0.0
    return {"mean": float(np.mean(values_N)), "std": std, "values": tuple(values_N.tolist())}


def describe_network(network: NetworkSettings) -> str:
    """`convnet-3 width 64`, or the plain name of another network."""
    if not NETWORKS[network.name].takes_width:
        return network.name
    return f"{network.name}{'' if network.depth is None else f'-{network.depth}'} width {network.width}"


@dataclass(frozen=True, kw_only=True)
class RowWork:
    """A row of scores: what its students are trained on, and how long."""

    name: str  # `distilled`, or of a row of `BASELINES`
    label: str
    network: str
    per_class: int  # images per class, as they are stored; 0 for the whole split
    stored: int  # images, as they are stored
    images: int  # that each student is trained on, decoded
    epochs: int


def row_work(name: str, real: RealData, settings: Settings, of_set: SetSize) -> RowWork:
    """The work of the row `distilled`, or of a baseline, beside a set of that size."""
    stored, decoded = of_set.stored, of_set.decoded
    students, classes = settings.student, len(real.classes)
    if name == "distilled":
        size, label, per_class = "stored", f"distilled, {stored} per class", stored
    else:
        baseline = BASELINES[name]
        size, per_class = baseline.size, baseline.per_class(of_set, real)
        label = baseline.label.format(per_class)
    held = len(real.train.images) if size == "whole" else per_class * classes
    images = decoded * classes if name in ("distilled", "mosaic") else held

    # as many gradient steps as the set's students take, in whole epochs
    steps = students.epochs * batch_plan(decoded * classes, students.batch)[0]
    least = (students.whole_epochs or settings.pool.epochs) if size == "whole" else 1
    epochs = max(least, epochs_for(steps, images, students.batch))
    network = describe_network(settings.network)
    return RowWork(
        name=name, label=label, network=network, per_class=per_class, stored=held, images=images, epochs=epochs
    )


def epochs_for(steps: int, images: int, batch: int) -> int:
    """The fewest whole epochs of that many images in which a student takes that many gradient steps."""
    return math.ceil(steps / batch_plan(images, batch)[0])


def student_stages(
    left: Mapping[RowWork, int], real: RealData, settings: Settings, runtime: Runtime
) -> Iterator[Stage]:
    """The students that are left of each row, one or more, measured one after the other; no row, no stage."""
    if not left:
        return
    s = settings.student
    build, test = network_builder(settings.network, real), labeled(real, real.test_split(otherwise=NO_SCORE))
    together = side_by_side(math.ceil(max(left.values()) / distributed.world()), real.size, runtime)
    models = StackedModels(build, together, runtime)
    testing = accuracy_seconds(models, test)
    for work, count in left.items():
        how = dataclasses.replace(s, epochs=work.epochs)
        one = training_seconds(models, labeled(real, real.train), work.images, how)
        one += testing * min(s.evaluations, work.epochs)
        yield Stage(
            name=f"students: {work.label}",
            work=f"{count} x {plural(work.epochs, 'epoch')}",
            seconds=one * math.ceil(math.ceil(count / distributed.world()) / together),
        )


def estimate_scores(
    real: RealData,
    settings: Settings,
    *,
    extractor: NetworkSettings,
    snapshots: int,
    size: SetSize,
    baselines: Sequence[str],
    runtime: Runtime,
    kept: Kept | None = None,
) -> Iterator[Stage]:
    """The students of each row of :func:`score_set` that are not kept, and the selection of their images.

    Args:
        extractor: the network that selects images.
        snapshots: that it has of its training.
        size: of the set.
        kept: as :func:`score_set` takes it.
    """
    works = [row_work(name, real, settings, size) for name in ("distilled", *baselines)]
    counts = students_left(works, settings, kept)
    left = {work: counts[work.name] for work in works if counts[work.name]}
    for work, stage in zip(left, student_stages(left, real, settings, runtime), strict=True):
        if work.name != "distilled" and are_selected([work.name]):
            how = BASELINES[work.name].images
            seconds = selection_seconds(how, real, work.per_class, extractor, snapshots, runtime)
            yield Stage(name=work.name, work=f"{work.per_class} of each class", seconds=seconds)
        yield stage


def students_left(works: Sequence[RowWork], settings: Settings, kept: Kept | None) -> dict[str, int]:
    """How many students of each row of :func:`score_set`, by its name, are not kept where the first rank keeps them."""
    repeats = settings.student.repeats

    def count(work: RowWork) -> int:
        of_row = _kept_of(kept, work, settings)
        return repeats if of_row is None else len(of_row.left(repeats))

    return distributed.from_first(lambda: {work.name: count(work) for work in works})


def _kept_of(kept: Kept | None, work: RowWork, settings: Settings) -> KeptStudents | None:
    """The students of a row of :func:`score_set`, with what their images depend on beside the set and the real data."""
    if kept is None:
        return None
    conditions, baseline = student_conditions(work, settings), BASELINES.get(work.name)
    if baseline is not None and baseline.images in SELECTIONS:
        conditions["pool"] = to_dict(dataclasses.replace(settings.pool, members=1))
    return KeptStudents(kept=kept, conditions=conditions | encoder(work.name))


def encoder(row: str) -> dict[str, str]:
    """What coded pictures depend on, as a condition of students that are trained on them; of other rows, nothing."""
    coded = row in BASELINES and BASELINES[row].codec is not None
    return {"encoder": f"Pillow {PIL.__version__}"} if coded else {}


def score_set(
    distilled: LabeledImages,
    real: RealData,
    settings: Settings,
    *,
    size: SetSize,
    baselines: Sequence[str],
    mosaic: Callable[[int], tuple[LabeledImages, int]],
    select: Callable[[str, int], LabeledImages],
    soften: Callable[[LabeledImages], LabeledImages],
    runtime: Runtime,
    kept: Kept | None = None,
    prefix: str = "",
) -> Scores:
    """Scores of a set and of each baseline.

    Students of a baseline take as many gradient steps as those of the set: a set of a quarter of the images is trained
    for four times the epochs. Students of the whole training split take more where its own epochs amount to more.

    Args:
        distilled: the set, decoded.
        settings: `network` and `student` are the students'; `student.whole_epochs`, or else `pool.epochs`, are the
            fewest epochs on the whole training split.
        size: of the set.
        baselines: names of rows of `BASELINES`.
        mosaic: gives real mosaics like the set's own, decoded, for the repeat of that number, and their bytes.
        select: gives the real images that a row of `SELECTIONS` selects, that many per class.
        soften: gives images the soft labels of the set's teachers. All three are called only if asked for.
        kept: where each student's result is kept; the set and the settings are in its conditions. None: nowhere.
        prefix: of the names of the work, as people see them.

    Raises:
        UserError: there is no test split, or too few images for a baseline.
    """
    students, repeats = settings.student, settings.student.repeats
    build, test = network_builder(settings.network, real), labeled(real, real.test_split(otherwise=NO_SCORE))
    works = [row_work(name, real, settings, size) for name in ("distilled", *baselines)]
    left = students_left(works, settings, kept)
    values = math.prod(real.train.images.shape[1:])  # of an image
    rows = []
    for work in works:
        what = "distilled" if work.name == "distilled" else BASELINES[work.name].images

        # what students are trained on, and the bytes that are stored of its pictures
        @cache
        def drawn(draw: int, what: str = what, work: RowWork = work) -> tuple[LabeledImages, int]:
            if what == "distilled":
                images = distilled
            elif what == "mosaic":
                return mosaic(draw)
            elif what == "whole":
                images = labeled(real, real.train)
            elif what == "random":
                images = random_subset(real, work.per_class, settings.seed, draw)
            else:
                images = select(what, work.per_class)
            if work.name == "random-soft":
                images = soften(images)
            codec = BASELINES[work.name].codec if what != "distilled" else None
            return (images, images.images.nbytes) if codec is None else codec.coded(images)

        draws = repeats if what in ("mosaic", "random") else 1  # one for each student, or one for all
        if what == "distilled":
            stored = size.bytes
        elif what == "mosaic" or BASELINES[work.name].codec is not None:
            stored = float(np.mean([drawn(draw)[1] for draw in range(draws)])) / distilled.classes
        else:
            labels = work.images * size.soft_label if work.name == "random-soft" else 0
            stored = (work.stored * values + labels) / distilled.classes

        there = repeats - left[work.name]
        if there:
            notice(f"{prefix}students: {work.label}: {there} of {repeats} are trained already")
        row = score(
            lambda repeat, drawn=drawn, draws=draws: drawn(repeat % draws)[0],  # type: ignore[misc]
            test,
            build,
            students,
            seed=settings.seed,
            runtime=runtime,
            about=work,
            kept=_kept_of(kept, work, settings),
            bytes_per_class=stored,
            prefix=prefix,
        )
        rows.append(row)
    device = device_name(runtime.device)
    return Scores(device=device, precision=runtime.precision, versions=versions(), rows=tuple(rows))


def estimate_student(
    data: LabeledImages,
    build: Callable[[], nn.Module],
    settings: StudentSettings,
    *,
    test: LabeledImages | None,
    runtime: Runtime,
) -> Iterator[Stage]:
    """The training and the test of :func:`train_student`."""
    models = StackedModels(build, 1, runtime)
    seconds = training_seconds(models, data, len(data), settings)
    seconds += accuracy_seconds(models, test) if test is not None else 0.0
    yield Stage(name="student", work=plural(settings.epochs, "epoch"), seconds=seconds)


def train_student(
    data: LabeledImages,
    build: Callable[[], nn.Module],
    settings: StudentSettings,
    *,
    test: LabeledImages | None,
    seed: int,
    runtime: Runtime,
    checkpoint: Checkpoint | None = None,
) -> tuple[Weights, float | None]:
    """One student to keep: its parameters, and its accuracy on `test` where there is one."""
    models = StackedModels(build, 1, runtime)
    models.load([fresh_state(build, seed, "student", 0)])
    done = checkpoint.done if checkpoint else 0
    with track("student", settings.epochs, done) as bar, checkpoint.training() if checkpoint else nullcontext():
        train(models, [data], settings, seed=seed, keys=[0], bar=bar, checkpoint=checkpoint)
    return models.states()[0], accuracy(models, test.normalized_as(data))[0] if test is not None else None
