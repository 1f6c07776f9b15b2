"""Class-incremental learning: the protocol against a plain loop over its definition."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_NETWORK, build_real, build_set
from subjects import make_subject

from ncfmkit import training
from ncfmkit.config import Settings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages, labeled, normalize
from ncfmkit.networks import builder
from ncfmkit.progress import track
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import continual, lossy
from ncfmkit.scoring.baselines import SetSize, random_subset
from ncfmkit.scoring.subject import Subject
from ncfmkit.training import StackedModels, fresh_state

COUNTS, TESTED = (9, 8, 10, 9, 12), (4, 1, 6, 3, 5)  # images of each class; every class is tested on another number
SIZE = SetSize(stored=2, decoded=3, bytes=400.0)
STUDENT = StudentSettings(epochs=3, batch=6, evaluations=1, repeats=2)


def subject_of(folder: Path, runtime: Runtime, real: RealData | None = None) -> Subject:
    """Five classes; the set has soft labels, and decodes to three images a class."""
    real = real or build_real(COUNTS, test_counts=TESTED)
    rng, classes = np.random.default_rng(1), len(real.classes)
    distilled = LabeledImages(
        images=torch.from_numpy(rng.random((classes * SIZE.decoded, 3, 8, 8), np.float32)),
        labels=torch.arange(classes).repeat_interleave(SIZE.decoded),
        mean=real.mean,
        std=real.std,
        classes=classes,
        soft_labels=torch.from_numpy(rng.normal(size=(classes * SIZE.decoded, classes)).astype(np.float16)),
    )
    return make_subject(
        build_set("single", 1, classes=real.classes, ipc=SIZE.stored),
        folder,
        distilled=distilled,
        size=SIZE,
        real=real,
        settings=Settings(network=TINY_NETWORK, student=STUDENT, seed=3),
        runtime=runtime,
        herded=lambda count: random_subset(real, count, 77, 0),
    )


@pytest.mark.parametrize(
    ("classes", "seen"),
    [
        (4, (2, 4)),
        (5, (3, 5)),
        (9, (3, 5, 7, 9)),
        (10, (2, 4, 6, 8, 10)),
        (19, (4, 8, 12, 16, 19)),
        (20, (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)),
        (100, (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)),
    ],
)
def test_stages_are_as_equal_as_possible(classes: int, seen: tuple[int, ...]) -> None:
    assert continual.classes_seen(classes) == seen


def test_no_stage_brings_fewer_than_two_classes() -> None:
    for classes in range(4, 203):
        new = np.diff([0, *continual.classes_seen(classes)])
        assert new.sum() == classes
        assert new.min() >= 2
        assert new.max() - new.min() <= 1


def test_class_orders_differ_and_come_from_the_seed() -> None:
    orders_RK = continual.class_orders(10, 4, seed=5)
    assert all(sorted(order) == list(range(10)) for order in orders_RK.tolist())
    assert len({tuple(order) for order in orders_RK.tolist()}) == 4
    np.testing.assert_array_equal(orders_RK[:2], continual.class_orders(10, 2, seed=5))
    assert (orders_RK != continual.class_orders(10, 4, seed=6)).any()


def test_soft_labels_of_the_classes_seen_are_the_teachers_answer_given_one_of_them(
    tmp_path: Path, runtime: Runtime
) -> None:
    data = subject_of(tmp_path, runtime).distilled
    assert data.soft_labels is not None
    seen = [4, 0, 2]
    small = continual.narrowed(data, np.array(seen)).on(torch.device("cpu"))
    whole_NK = data.soft_labels.double().softmax(1).numpy()
    rows = [n for n, label in enumerate(data.labels.tolist()) if label in seen]
    expected = [[whole_NK[n, k] / sum(whole_NK[n, j] for j in seen) for k in seen] for n in rows]
    np.testing.assert_allclose(small.targets(torch.arange(len(small))).numpy(), expected, atol=1e-6)


def test_accuracy_counts_the_test_images_of_the_classes_seen(runtime: Runtime) -> None:
    """Two students that saw other classes, whose tests differ in size."""
    real = build_real(COUNTS, test_counts=TESTED)
    assert real.test is not None
    test = labeled(real, real.test)
    build = builder(TINY_NETWORK, channels=3, classes=3, size=8)
    states = [fresh_state(build, 0, "tested", r) for r in range(2)]
    seen_RS = np.array([[2, 0, 1], [1, 4, 3]])
    models = StackedModels(build, 2, runtime)
    models.load(states)
    expected = []
    for state, seen in zip(states, seen_RS.tolist(), strict=True):
        rows = [n for n, label in enumerate(test.labels.tolist()) if label in seen]
        answers = [seen[place] for place in answered(build, state, test, rows)]
        expected.append(np.mean([answer == int(test.labels[n]) for answer, n in zip(answers, rows, strict=True)]))
    assert len(set(expected)) == 2
    assert continual.seen_accuracy(models, test, seen_RS) == pytest.approx(expected)


@torch.no_grad()
def answered(build: Callable[[], torch.nn.Module], state: Any, test: LabeledImages, rows: list[int]) -> list[int]:
    """The place that a network gives each of those test images."""
    network = build()
    network.load_state_dict(state)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (test.mean, test.std))
    x_NCHW = normalize(torch.from_numpy(np.asarray(test.images)[rows]), mean, std)
    return network(x_NCHW).argmax(1).tolist()


def picked(buffer: LabeledImages, seen: list[int]) -> LabeledImages:
    """What a student is trained on, image by image."""
    rows = [n for n, label in enumerate(buffer.labels.tolist()) if label in seen]
    soft = buffer.soft_labels
    return LabeledImages(
        images=buffer.images[rows],
        labels=torch.tensor([seen.index(int(buffer.labels[n])) for n in rows]),
        mean=buffer.mean,
        std=buffer.std,
        classes=len(seen),
        soft_labels=None if soft is None else torch.stack([torch.stack([soft[n, k] for k in seen]) for n in rows]),
    )


def naive(subject: Subject, data: LabeledImages, seen: list[int], repeat: int, epochs: int) -> float:
    """The accuracy of one student, test image by test image."""
    build = builder(TINY_NETWORK, channels=3, classes=len(seen), size=8)
    models = StackedModels(build, 1, subject.runtime)
    models.load([fresh_state(build, subject.settings.seed, "continual student", len(seen), repeat)])
    how = dataclasses.replace(STUDENT, epochs=epochs)
    with track("naive", epochs) as bar:
        training.train(models, [data], how, seed=subject.settings.seed, keys=[repeat], bar=bar)
    test = subject.test
    tested = [n for n, label in enumerate(test.labels.tolist()) if label in seen]
    answers = answered(build, models.states()[0], test, tested)
    right = sum(seen[place] == int(test.labels[n]) for place, n in zip(answers, tested, strict=True))
    return right / len(tested)


def assert_equal(found: LabeledImages, expected: LabeledImages) -> None:
    assert (found.mean, found.std, found.classes) == (expected.mean, expected.std, expected.classes)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.soft_labels is None) == (expected.soft_labels is None)
    if found.soft_labels is not None and expected.soft_labels is not None:
        np.testing.assert_array_equal(found.soft_labels, expected.soft_labels)


@pytest.mark.parametrize("together", [1, 2])
def test_every_stage_is_that_of_a_plain_loop(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(continual, "side_by_side", lambda *a: together)
    trained_on: list[LabeledImages] = []
    train = continual.train

    def spied(models: StackedModels, data: list[LabeledImages], *args: Any, **how: Any) -> None:
        trained_on.extend(data)
        train(models, data, *args, **how)

    monkeypatch.setattr(continual, "train", spied)
    subject = subject_of(tmp_path, runtime)
    real, seed = subject.real, subject.settings.seed
    found = continual.measure(subject)
    used = iter(trained_on)

    # what the buffers hold, by the table of baselines
    fit = int(SIZE.bytes / lossy.WEBP.mean_bytes(real.train.images))
    assert 2 < fit <= 8
    webp = [lossy.WEBP.coded(random_subset(real, fit, seed, r)) for r in range(2)]
    expected = {
        "distilled": ([subject.distilled] * 2, 3, SIZE.bytes),
        "random": ([random_subset(real, 2, seed, r) for r in range(2)], 2, 2 * 3 * 64),
        "webp": ([data for data, _ in webp], fit, sum(count for _, count in webp) / 2 / 5),
        "herding": ([subject.herded(2)] * 2, 2, 2 * 3 * 64),
    }
    assert [buffer.set for buffer in found.buffers] == list(expected)
    assert [buffer.per_class for buffer in found.buffers] == [2, 2, fit, 2]
    assert found.orders == tuple(map(tuple, continual.class_orders(5, 2, seed).tolist()))
    for buffer in found.buffers:
        images, per_class, size = expected[buffer.set]
        assert [stage.seen for stage in buffer.stages] == [3, 5]
        of_stages = []
        for stage in buffer.stages:
            batches = -(-per_class * stage.seen // STUDENT.batch)
            epochs = -(-STUDENT.epochs * -(-SIZE.decoded * stage.seen // STUDENT.batch) // batches)
            by_hand = []
            for repeat in range(2):
                seen = list(found.orders[repeat][: stage.seen])
                data = picked(images[repeat], seen)
                assert_equal(next(used), data)
                by_hand.append(naive(subject, data, seen, repeat, epochs))
            assert stage.accuracy.values == pytest.approx(by_hand)
            assert stage.accuracy.mean == pytest.approx(sum(by_hand) / 2)
            assert stage.steps == epochs * batches
            assert stage.bytes_per_class == pytest.approx(size)
            of_stages.append(by_hand)
        averages = [(first + last) / 2 for first, last in zip(*of_stages, strict=True)]
        assert buffer.average.values == pytest.approx(averages)
        assert buffer.average.std == pytest.approx(abs(averages[0] - averages[1]) / 2**0.5)


def test_students_of_all_buffers_take_as_many_steps(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where they are taken; whole epochs are at most an epoch more."""
    taken: list[int] = []
    step, train = training.Trainer.step, continual.train

    def counted(trainer: training.Trainer, data: Any, draws: Any, number: int) -> torch.Tensor:
        taken[-1] += 1
        return step(trainer, data, draws, number)

    def started(*args: Any, **how: Any) -> None:
        taken.append(0)
        train(*args, **how)

    monkeypatch.setattr(training.Trainer, "step", counted)
    monkeypatch.setattr(continual, "train", started)
    found = continual.measure(subject_of(tmp_path, runtime))
    assert taken == [stage.steps for buffer in found.buffers for stage in buffer.stages]
    for at_stage in zip(*(buffer.stages for buffer in found.buffers), strict=True):
        own = at_stage[0].steps
        for buffer, stage in zip(found.buffers[1:], at_stage[1:], strict=True):
            epoch = -(-buffer.per_class * stage.seen // STUDENT.batch)
            assert own <= stage.steps < own + epoch


def test_an_interrupted_measurement_goes_on(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = continual.measure(subject_of(tmp_path / "whole", runtime))
    train, trained = continual.train, list[Any]()

    def until_the_fourth(*args: Any, **how: Any) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(how)
        train(*args, **how)

    subject = subject_of(tmp_path / "parts", runtime)
    assert len(list(continual.stages(subject))) == 4
    monkeypatch.setattr(continual, "train", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        continual.measure(subject)
    assert [stage.work for stage in continual.stages(subject)] == [
        "2 students of 1 stage",
        "4 students of 2 stages",
        "4 students of 2 stages",
    ]
    monkeypatch.setattr(continual, "train", train)
    assert continual.measure(subject) == whole
    assert list(continual.stages(subject)) == []
    kept = dataclasses.replace(subject, herded=lambda count: pytest.fail("what is kept needs no herding"))
    assert continual.measure(kept) == whole


def test_more_repeats_train_further_students_only(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each is kept by itself, however many are trained side by side."""
    trained: list[int] = []
    train = continual.train

    def counted(*args: Any, **how: Any) -> None:
        trained.extend(how["keys"])
        train(*args, **how)

    def three_of(subject: Subject) -> Subject:
        student = dataclasses.replace(STUDENT, repeats=3)
        return dataclasses.replace(subject, settings=dataclasses.replace(subject.settings, student=student))

    monkeypatch.setattr(continual, "side_by_side", lambda *a: 1)
    monkeypatch.setattr(continual, "train", counted)
    subject = subject_of(tmp_path / "more", runtime)
    two = continual.measure(subject)
    assert trained == [0, 1] * 8  # of four buffers at two stages
    trained.clear()
    more = three_of(subject)
    assert {stage.work for stage in continual.stages(more)} == {"2 students of 2 stages"}
    three = continual.measure(more)
    assert trained == [2] * 8
    assert three == continual.measure(three_of(subject_of(tmp_path / "three", runtime)))
    for before, after in zip(two.buffers, three.buffers, strict=True):
        for stage, longer in zip(before.stages, after.stages, strict=True):
            assert longer.accuracy.values[:2] == stage.accuracy.values


def test_the_estimate_weighs_stages_by_what_is_left(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for an image of a buffer, and as many students at once as are left: of the last stage only one."""
    real = build_real((9,) * 6, test_counts=(3,) * 6)
    sides: list[int] = []

    def alone(repeats: int, *_: Any) -> int:
        sides.append(repeats)
        return 1

    monkeypatch.setattr(continual, "side_by_side", alone)
    monkeypatch.setattr(continual, "accuracy_seconds", lambda *_: 100.0)
    monkeypatch.setattr(continual, "training_seconds", lambda _, data, images, how: float(images))
    subject = subject_of(tmp_path, runtime, real)
    seconds = {stage.name: stage.seconds for stage in continual.stages(subject)}
    assert sides == [2]
    assert seconds["replay buffer: random real, 2 per class"] == 2 * sum(100 + 2 * seen for seen in (2, 4, 6))
    work = subject.work("random")
    for seen, repeat in ((2, 0), (2, 1), (4, 1), (6, 0)):
        student = continual.ContinualStudent(accuracy=0.5, bytes_per_class=1.0)
        subject.kept.keep(student, 1.0, **continual._conditions(subject, work, seen, repeat))
    seconds = {stage.name: stage.seconds for stage in continual.stages(subject)}
    assert seconds["replay buffer: random real, 2 per class"] == (100 + 2 * 4) + (100 + 2 * 6)


def test_other_epochs_are_other_stages(tmp_path: Path, runtime: Runtime) -> None:
    """Also where the row of all classes has as many: WebP images of all classes are two batches, of the first one."""
    subject = subject_of(tmp_path, runtime)
    work, student = subject.work("webp"), dataclasses.replace(STUDENT, batch=5 * subject.work("webp").per_class - 1)
    of = [
        dataclasses.replace(subject, settings=dataclasses.replace(subject.settings, student=s))
        for s in (dataclasses.replace(student, epochs=epochs) for epochs in (3, 4))
    ]
    assert [one.work("webp").epochs for one in of] == [2, 2]
    assert [continual._how(one, work, 3).epochs for one in of] == [3, 4]
    three, four = (continual._conditions(one, one.work("webp"), 3, 0) for one in of)
    assert three != four


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (9, 9, 9), "test_counts": (2, 2, 2)}, r"tiny has 3 classes: expected 4 or more"),
        ({"counts": (9,) * 4, "test_counts": (2, 2, 0, 2)}, r"class 'class 2' of tiny has no test images"),
        (
            {"counts": (9, 1, 9, 9), "test_counts": (2,) * 4},
            r"2 real images per class needs more than the 1 of class 'class 1' in tiny$",
        ),
    ],
)
def test_data_that_lack_what_it_needs_are_refused(
    tmp_path: Path, runtime: Runtime, make_real: Callable[..., RealData], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        continual.check(subject_of(tmp_path, runtime, real=make_real(**changes)))


def test_four_classes_are_enough(tmp_path: Path, runtime: Runtime) -> None:
    continual.check(subject_of(tmp_path, runtime, real=build_real((2,) * 4, test_counts=(1,) * 4)))
