"""Class-incremental learning with a set as the replay buffer, by the protocol of GDumb (docs/method.md, section 8).

Axes: R repeats, K classes, S classes seen, B batch.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ncfmkit.assessment import Continual, ContinualBuffer, ContinualStage
from ncfmkit.config import StudentSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages
from ncfmkit.networks import builder, network_builder
from ncfmkit.progress import plural, track
from ncfmkit.records import Record
from ncfmkit.rng import keyed_rng
from ncfmkit.run_records import Share
from ncfmkit.scoring.baselines import BASELINES, random_subset
from ncfmkit.scoring.students import (
    RowWork,
    describe_network,
    encoder,
    epochs_for,
    side_by_side,
    stacks,
    student_conditions,
    summary,
)
from ncfmkit.scoring.subject import Subject
from ncfmkit.training import (
    StackedModels,
    accuracy_seconds,
    batch_plan,
    fresh_state,
    logits_of,
    train,
    training_seconds,
)

BUFFERS = ("distilled", "random", "webp", "herding")  # the set, and rows of `BASELINES`
FEWEST_CLASSES = 4  # two stages of two classes

Draw = Callable[[int], tuple[LabeledImages, float]]  # the buffer of a repeat, and its bytes per class


class ContinualStudent(Record):
    """A student of a stage.

    Attributes:
        accuracy: on all test images of the classes seen.
        bytes_per_class: of its buffer, with all classes.
    """

    accuracy: Share
    bytes_per_class: Annotated[float, Field(ge=0)]


def classes_seen(classes: int) -> tuple[int, ...]:
    """How many classes are seen at each stage: 5 stages, 10 from 20 classes on, as equal as possible.

    No stage brings fewer than two new classes, so that the first has something to tell apart.
    """
    stages = min(10 if classes >= 20 else 5, classes // 2)
    return tuple(np.cumsum([len(part) for part in np.array_split(np.arange(classes), stages)]).tolist())


def class_orders(classes: int, repeats: int, seed: int) -> np.ndarray:
    """The order in which classes arrive in each repeat, int64 `[R, K]`; all buffers share it."""
    return np.stack([keyed_rng(seed, "class order", repeat).permutation(classes) for repeat in range(repeats)])


def narrowed(data: LabeledImages, seen_S: np.ndarray) -> LabeledImages:
    """The images of those classes, whose labels become their places in `seen_S`.

    Soft labels keep the logits of those classes alone: their softmax is the teacher's answer, given that the class is
    one of them.
    """
    place_K = torch.full((data.classes,), -1)
    place_K[seen_S] = torch.arange(len(seen_S))
    index_N = torch.nonzero(place_K[data.labels] >= 0)[:, 0]
    soft = data.soft_labels
    return dataclasses.replace(
        data,
        images=data.images[index_N if isinstance(data.images, torch.Tensor) else index_N.numpy()],
        labels=place_K[data.labels[index_N]],
        classes=len(seen_S),
        soft_labels=None if soft is None else soft[index_N][:, torch.from_numpy(seen_S)],
    )


def check(subject: Subject) -> None:
    real = subject.real
    if len(real.classes) < FEWEST_CLASSES:
        raise UserError(
            f"{real.name} has {len(real.classes)} classes: expected {FEWEST_CLASSES} or more, of which two or more "
            "arrive at each stage"
        )
    untested = np.flatnonzero(real.test_split().counts() == 0)
    if len(untested):
        raise UserError(
            f"class {real.classes[untested[0]]!r} of {real.name} has no test images: expected some of every class, "
            "because each is tested from the stage on at which it arrives"
        )
    subject.check_rows("random", "herding")


def stages(subject: Subject) -> Iterator[Stage]:
    """One for each buffer: the first and the last stage that are left are measured.

    A stage's time is linear in its images, and these grow evenly.
    """
    real, settings, runtime = subject.real, subject.settings, subject.runtime
    left = {work: students for name in BUFFERS if (students := _left(subject, work := subject.work(name)))}
    if not left:
        return
    together = side_by_side(max(max(students.values()) for students in left.values()), real.size, runtime)
    # of all classes: a network with fewer outputs is hardly faster
    models = StackedModels(network_builder(settings.network, real), together, runtime)
    testing = accuracy_seconds(models, subject.test)
    for work, students in left.items():
        if work.name == "herding":
            yield from subject.herding(work.per_class)
        ends = sorted({min(students), max(students)})
        measured = [
            training_seconds(models, subject.whole, _images(subject, work, seen), _how(subject, work, seen)) + testing
            for seen in ends
        ]
        stacks_of = [-(-count // together) for count in students.values()]
        yield Stage(
            name=f"replay buffer: {work.label}",
            work=f"{plural(sum(students.values()), 'student')} of {plural(len(students), 'stage')}",
            seconds=float(np.interp(list(students), ends, measured) @ stacks_of),
        )


def _left(subject: Subject, work: RowWork) -> dict[int, int]:
    """How many students of a buffer are not kept, by the classes seen; only where there are some."""
    repeats = subject.settings.student.repeats
    seen_at = classes_seen(len(subject.real.classes))
    left = {seen: len(subject.kept.left(repeats, partial(_conditions, subject, work, seen))) for seen in seen_at}
    return {seen: count for seen, count in left.items() if count}


def measure(subject: Subject) -> Continual:
    real, repeats = subject.real, subject.settings.student.repeats
    seen_at = classes_seen(len(real.classes))
    orders_RK = class_orders(len(real.classes), repeats, subject.settings.seed)
    buffers = []
    for name in BUFFERS:
        work = subject.work(name)
        draw = cache(partial(_drawn, subject, work))  # each repeat's once, for all stages
        done = [_stage(subject, work, draw, orders_RK[:, :seen]) for seen in seen_at]
        average_R = np.mean([stage.accuracy.values for stage in done], axis=0)
        buffers.append(
            ContinualBuffer(
                set=name, label=work.label, per_class=work.per_class, stages=tuple(done), average=summary(average_R)
            )
        )
    return Continual(
        network=describe_network(subject.settings.network),
        n=repeats,
        orders=tuple(tuple(order_K) for order_K in orders_RK.tolist()),
        buffers=tuple(buffers),
    )


def _conditions(subject: Subject, work: RowWork, seen: int, repeat: int) -> dict[str, Any]:
    """What a student of a buffer depends on: how long it trains is not always told by the epochs of the row."""
    own = {"pool": to_dict(subject.settings.pool)} if work.name == "herding" else encoder(work.name)
    at_stage = dataclasses.replace(work, epochs=_how(subject, work, seen).epochs)
    return {"continual": seen, "repeat": repeat} | student_conditions(at_stage, subject.settings) | own


def _images(subject: Subject, work: RowWork, seen: int) -> int:
    """How many images of a buffer a student is trained on."""
    return work.images // len(subject.real.classes) * seen


def _how(subject: Subject, work: RowWork, seen: int) -> StudentSettings:
    """How students are trained at a stage: for as many steps as those of the set in the epochs of its recipe."""
    student = subject.settings.student
    steps = student.epochs * batch_plan(subject.size.decoded * seen, student.batch)[0]
    return dataclasses.replace(student, epochs=epochs_for(steps, _images(subject, work, seen), student.batch))


def _drawn(subject: Subject, work: RowWork, repeat: int) -> tuple[LabeledImages, float]:
    """The buffer of that repeat, with all classes, and its bytes per class."""
    if work.name == "distilled":
        return subject.distilled, subject.size.bytes
    if work.name == "herding":
        images = subject.herded(work.per_class)
    else:
        images = random_subset(subject.real, work.per_class, subject.settings.seed, repeat)
    codec = BASELINES[work.name].codec
    images, size = (images, images.images.nbytes) if codec is None else codec.coded(images)
    return images, size / images.classes


def _stage(subject: Subject, work: RowWork, draw: Draw, seen_RS: np.ndarray) -> ContinualStage:
    repeats, seen = seen_RS.shape
    students = subject.kept.each(
        ContinualStudent,
        repeats,
        partial(_students, subject, work, draw, seen_RS),
        partial(_conditions, subject, work, seen),
    )
    how = _how(subject, work, seen)
    return ContinualStage(
        seen=seen,
        steps=how.epochs * batch_plan(_images(subject, work, seen), how.batch)[0],
        bytes_per_class=float(np.mean([student.bytes_per_class for student in students])),
        accuracy=summary(np.array([student.accuracy for student in students])),
    )


def _students(
    subject: Subject, work: RowWork, draw: Draw, seen_RS: np.ndarray, left: list[int]
) -> Iterator[tuple[int, ContinualStudent]]:
    """Fresh students, trained on the buffers' images of the classes seen, and tested on all these classes."""
    settings, real, runtime = subject.settings, subject.real, subject.runtime
    repeats, seen = seen_RS.shape
    how = _how(subject, work, seen)
    build = builder(settings.network, channels=real.channels, classes=seen, size=real.size)
    together = side_by_side(len(left), real.size, runtime)
    before, total = (count * how.epochs for count in (repeats - len(left), repeats))
    with track(f"replay buffer: {work.label}, {seen} classes seen", total, before) as bar:
        for models, keys in stacks(build, left, together, runtime):
            models.load([fresh_state(build, settings.seed, "continual student", seen, r) for r in keys])
            buffers = [draw(r) for r in keys]
            data = [narrowed(images, seen_RS[r]) for r, (images, _) in zip(keys, buffers, strict=True)]
            train(models, data, how, seed=settings.seed, keys=keys, bar=bar)
            accuracies = seen_accuracy(models, subject.test.normalized_as(data[0]), seen_RS[list(keys)])
            for r, (_, size), accuracy in zip(keys, buffers, accuracies, strict=True):
                yield r, ContinualStudent(accuracy=accuracy, bytes_per_class=size)


@torch.no_grad()
def seen_accuracy(models: StackedModels, test: LabeledImages, seen_RS: np.ndarray) -> list[float]:
    """Accuracy of each network of the stack on all test images of the classes that it has seen, fractions in [0, 1].

    Args:
        seen_RS: the classes of each network, in the order of its logits.
    """
    device = models.runtime.device
    place_RK = torch.full((models.size, test.classes), -1)
    place_RK.scatter_(1, torch.from_numpy(seen_RS), torch.arange(seen_RS.shape[1]).expand(models.size, -1))
    place_RK, hits_R = place_RK.to(device), torch.zeros(models.size, dtype=torch.int64, device=device)
    for label_B, logits_RBS in logits_of(models, test):
        hits_R += (logits_RBS.argmax(-1) == place_RK[:, label_B]).sum(1)  # an image of another class has no place
    count_K = np.bincount(test.labels.numpy(), minlength=test.classes)
    return (hits_R.cpu().numpy() / count_K[seen_RS].sum(1)).tolist()
