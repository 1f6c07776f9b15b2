"""What a set leaks: distances and the attack against plain loops over their definitions, and what is compared."""

import base64
import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_NETWORK, build_real, build_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from subjects import make_subject

from ncfmkit.config import DistillSettings, PoolSettings, Settings, StudentSettings
from ncfmkit.distillation.initial import beginnings, initialize
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.jobs import assess as assess_job
from ncfmkit.jobs import distill as distill_job
from ncfmkit.jobs.setup import make_settings
from ncfmkit.networks import network_builder
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import privacy
from ncfmkit.scoring.subject import Subject
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import finished_set
from ncfmkit.sets.subset import first_images
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.training import StackedModels, fresh_state

SHORT = StudentSettings(epochs=30, batch=16, evaluations=1, repeats=2, cutmix=0.0, augment="none")


def subject_of(
    folder: Path,
    real: RealData,
    stored: np.ndarray,
    runtime: Runtime,
    *,
    factor: int = 1,
    student: StudentSettings = SHORT,
    beginnings: list[np.ndarray] | None = None,
) -> Subject:
    """A set of those stored images, uint8 and equally many of each class."""
    ipc = len(stored) // len(real.classes)
    small = build_set("single", factor, classes=real.classes, ipc=ipc, size=real.size, channels=real.channels)
    result = dataclasses.replace(small, images=torch.from_numpy(stored))
    settings = Settings(
        network=TINY_NETWORK, student=student, pool=PoolSettings(epochs=1), distill=DistillSettings(ipc=ipc)
    )
    return make_subject(
        result, folder, initial="mix", beginnings=beginnings, real=real, settings=settings, runtime=runtime
    )


def first_of_each(images: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([images[start : start + count] for start in offsets[:-1]])


def with_pillow(image_CHW: np.ndarray, side: int) -> np.ndarray:
    """A float image down-scaled by another library."""
    small = [Image.fromarray(c).resize((side, side), Image.Resampling.BILINEAR) for c in image_CHW]
    return np.stack([np.asarray(c) for c in small])


def plain_distance(query_CHW: np.ndarray, real_CHW: np.ndarray, height: int, width: int) -> float:
    sums = []
    for image in (real_CHW, real_CHW[:, :, ::-1]):
        squares = [
            (float(query_CHW[c, y, x]) - float(image[c, y, x])) ** 2
            for c, y, x in itertools.product(range(len(image)), range(height), range(width))
        ]
        sums.append(sum(squares) / len(squares))
    return math.sqrt(min(sums))


@pytest.mark.parametrize("factor", [1, 2, 3])  # of 8 pixels: cells of 8, of 4, and of 3, 3 and 2
def test_distances_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    monkeypatch.setattr(privacy, "CHUNK_BYTES", 8 * 3 * 64 * 4)  # four images at a time
    real = build_real((11,), test_counts=(1,))
    stored = np.random.default_rng(3).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    query, inside = privacy._cells(torch.from_numpy(stored).float() / 255, factor)
    got = privacy.distances(query, inside, real.train.images)

    cell = math.ceil(8 / factor)
    floats = [with_pillow(image.astype(np.float32) / 255, cell) for image in real.train.images]
    expected = []
    for image, row, column in itertools.product(stored / 255, range(factor), range(factor)):
        part = image[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        expected.append([plain_distance(part, other, *part.shape[1:]) for other in floats])
    assert got.shape == (2 * factor**2, 11)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_an_equal_and_a_mirrored_image_are_at_no_distance() -> None:
    real = build_real((5,), test_counts=(1,))
    images = real.train.images[:3].copy()
    images[1] = images[1, :, :, ::-1]
    images[2] = images[2, :, ::-1]  # upside down is another picture
    query = torch.from_numpy(images).float() / 255
    same, mirrored, turned = np.diag(privacy.distances(query, query >= 0, real.train.images)).tolist()
    assert (same, mirrored) == (0, 0)
    assert turned == pytest.approx(plain_distance(images[2] / 255, real.train.images[2] / 255, 8, 8), abs=2e-6)


@pytest.fixture
def plentiful() -> RealData:
    """Four times as many training images as test images, of one distribution."""
    return build_real((40, 40, 40), test_counts=(10, 10, 10))


def test_other_pictures_are_as_near_to_training_as_to_test_images(
    tmp_path: Path, plentiful: RealData, runtime: Runtime
) -> None:
    """Unless pools of another size are compared: all training images have the nearest one in four of five cases."""
    fresh = build_real((60, 60, 60), seed=9).train.images
    found = privacy.nearest_real(subject_of(tmp_path, plentiful, fresh, runtime))
    assert (found.images, found.side, found.training_images, found.held_out_images) == (180, 8, 120, 30)
    assert (found.drawn_images, found.real_images, found.initial) == (30, 30, "mix")
    assert found.nearer_to_training == pytest.approx(0.5, abs=2.5 * found.nearer_deviation)
    assert found.nearer_deviation < 0.12
    assert found.chance == pytest.approx(0.8)
    assert found.nearest_is_training == pytest.approx(0.8, abs=2.5 * found.chance_deviation)
    assert found.chance_deviation < 0.1
    assert found.drawn_training.mean == pytest.approx(found.drawn_held_out.mean, rel=0.01)
    assert found.drawn_real.mean == pytest.approx(found.drawn_training.mean, rel=0.03)
    assert found.training.mean < found.drawn_training.mean
    assert found.began is None
    values = found.training.quantiles
    assert list(values) == sorted(values)
    assert len(values) == 21


def test_copies_of_training_images_are_found(tmp_path: Path, plentiful: RealData, runtime: Runtime) -> None:
    copies = first_of_each(plentiful.train.images, plentiful.train.offsets, 4)
    found = privacy.nearest_real(subject_of(tmp_path, plentiful, copies, runtime))
    assert found.nearest_is_training == 1
    assert found.nearer_than_real == 1
    assert (found.training.mean, found.training.quantiles[-1]) == (0, 0)
    # a draw of 10 of the 40 has the image itself in a quarter of cases, and else it is a matter of chance
    assert found.nearer_to_training == pytest.approx(0.25 + 0.75 / 2, abs=0.12)

    held_out = first_of_each(plentiful.test_split().images, plentiful.test_split().offsets, 4)
    found = privacy.nearest_real(subject_of(tmp_path, plentiful, held_out, runtime))
    assert (found.nearest_is_training, found.nearer_to_training, found.nearer_than_real) == (0, 0, 0)
    assert found.drawn_held_out.mean == 0


def test_distances_stay_within_a_class(tmp_path: Path, plentiful: RealData, runtime: Runtime) -> None:
    """Copies of the next class's training images are nothing special to this class."""
    copies = np.roll(first_of_each(plentiful.train.images, plentiful.train.offsets, 4), 4, axis=0)
    assert privacy.nearest_real(subject_of(tmp_path, plentiful, copies, runtime)).training.quantiles[0] > 0.1


def test_equal_distances_are_half() -> None:
    """A picture that is in both splits says nothing."""
    assert privacy.nearer(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [1, 0.5, 0]


def test_chance_allows_for_images_that_all_have_the_same_neighbor() -> None:
    """Then the share is all or nothing; of independent distances it deviates as independent images do."""
    rng = np.random.default_rng(0)
    apart_QN = rng.uniform(1, 2, (400, 50))
    nearer, nearest = privacy.by_chance(apart_QN[:, :30], apart_QN[:, 30:], rng)
    assert nearer.mean() == pytest.approx(0.5, abs=0.02)
    assert nearer.mean(1).std() == pytest.approx(math.sqrt(0.25 / 400), rel=0.3)
    assert nearest.mean() == pytest.approx(0.6, abs=0.02)

    apart_QN[:, 3] = 0.5
    nearer, nearest = privacy.by_chance(apart_QN[:, :30], apart_QN[:, 30:], rng)
    assert nearer.mean(1).std() > 0.4
    assert nearest.mean(1).std() == pytest.approx(math.sqrt(0.6 * 0.4), abs=0.05)
    assert nearest.mean() == pytest.approx(0.6, abs=0.15)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("in_order", [True, False])  # a set may have its images in another order than they began in
def test_training_images_that_a_set_began_as_are_told_from_others(
    tmp_path: Path, plentiful: RealData, runtime: Runtime, factor: int, in_order: bool
) -> None:
    places = beginnings("mix", plentiful, ipc=2, factor=factor, seed=0)
    stored = initialize("mix", plentiful, ipc=2, factor=factor, seed=0).mul(255).round().byte().numpy()
    stored = stored if in_order else stored.reshape(3, 2, 3, 8, 8)[:, ::-1].reshape(stored.shape)
    found = privacy.nearest_real(subject_of(tmp_path, plentiful, stored, runtime, factor=factor, beginnings=places))
    assert found.began is not None
    assert found.began.images == 3 * 2 * factor**2
    assert (found.began.auc, found.began.nearest) == (1, 1)
    assert found.began.chance == pytest.approx(2 * factor**2 / 40)
    assert found.began.distances.quantiles[-1] < 0.005 < found.began.others.quantiles[0]

    m, n = 2 * factor**2, 40 - 2 * factor**2
    assert found.began.deviation == pytest.approx(math.sqrt(3 * (m + n + 1) / (12 * m * n)) / 3)
    elsewhere = build_real((2, 2, 2), seed=9).train.images
    found = privacy.nearest_real(subject_of(tmp_path, plentiful, elsewhere, runtime, factor=factor, beginnings=places))
    assert found.began is not None
    assert found.began.auc == pytest.approx(0.5, abs=3 * found.began.deviation)
    assert found.began.nearest < 0.6


def test_nothing_is_said_where_all_training_images_are_in_the_beginning(
    tmp_path: Path, real: RealData, runtime: Runtime
) -> None:
    places = beginnings("mix", real, ipc=2, factor=2, seed=0)
    stored = first_of_each(real.train.images, real.train.offsets, 2)
    assert privacy.nearest_real(subject_of(tmp_path, real, stored, runtime, beginnings=places)).began is None


DIGITS: dict[str, Any] = {
    "network.width": 8,
    "distill.ipc": 2,
    "distill.factor": 2,
    "seed": 5,
    "runtime.compile": "off",
}


@pytest.mark.parametrize(
    ("changes", "initial", "known"),
    [
        ({}, "mix", True),
        ({"distill.init": "noise"}, "noise", False),
        ({"distill.init": "random"}, "random", False),  # its cells are crops of real images
        ({"distill.init": "random", "distill.factor": 1}, "random", True),
        (
            {"distill.ipc": None, "distill.bytes": "400/class"},
            "mix",
            False,
        ),  # some of the images may have been left out
    ],
)
def test_a_set_tells_what_it_began_as(tmp_path: Path, changes: dict[str, Any], initial: str, known: bool) -> None:
    """Whatever the seed of its students; `_initial_images` is where a distillation starts."""
    how = make_settings("digits", None, {k: v for k, v in (DIGITS | changes).items() if v is not None})
    real = DataArguments(data="digits").open(how)
    started = finished_set(how, real, distill_job._initial_images(how, real), order="worth")

    def plan(of: SyntheticSet) -> Subject:
        set_file.save(of, tmp_path / "set.safetensors", force=True)
        students = {"student.repeats": 1, "seed": 7}
        return assess_job._plan(tmp_path / "set.safetensors", "digits", "privacy", tmp_path / "out", students).subject

    subject = plan(started)
    assert subject.initial == initial
    assert (subject.beginnings is not None) == known
    if known:
        assert plan(first_images(started, 1)).beginnings is None  # these may have begun as any of them
        found = privacy.nearest_real(subject)
        assert found.began is not None
        assert (found.began.auc, found.began.nearest) == (pytest.approx(1, abs=1e-3), 1)


def test_pictures_show_what_was_compared(tmp_path: Path, runtime: Runtime) -> None:
    """The mirror image where that is nearer; at most 32 pixels."""
    real = build_real((3, 3, 3), test_counts=(2, 2, 2), size=48)
    mirrored = first_of_each(real.train.images, real.train.offsets, 1)[..., ::-1].copy()
    found = privacy.nearest_real(subject_of(tmp_path, real, mirrored, runtime))
    assert [pair.label for pair in found.pairs] == ["class 0", "class 1", "class 2"]
    for pair in found.pairs:
        assert pair.training == 0 < pair.held_out
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pair.pictures]
        assert {p.shape for p in pictures} == {(32, 32, 3)}
        np.testing.assert_array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("ipc", [1, 40])
def test_the_estimate_of_distances_counts_each_real_image_once(
    tmp_path: Path, plentiful: RealData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, ipc: int
) -> None:
    """Where it is read and reduced: that is the same work for one image of the set as for forty."""
    stored, now = first_of_each(plentiful.train.images, plentiful.train.offsets, ipc), 0.0

    def distances(query: Any, inside: Any, images: np.ndarray) -> None:
        nonlocal now
        now += 0.125 * len(images)

    monkeypatch.setattr(privacy, "distances", distances)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    took = privacy._nearest_seconds(subject_of(tmp_path, plentiful, stored, runtime))
    assert took == pytest.approx(0.125 * (120 + 30))


def by_pairs(members: list[float], others: list[float]) -> float:
    won = sum((m > o) + (m == o) / 2 for m, o in itertools.product(members, others))
    return won / (len(members) * len(others))


def by_thresholds(members: list[float], others: list[float]) -> list[tuple[float, float]]:
    """True- and false-positive rate for every threshold."""
    return [
        (sum(m >= t for m in members) / len(members), sum(o >= t for o in others) / len(others))
        for t in {*members, *others, math.inf}
    ]


scores = st.lists(st.integers(-5, 5).map(lambda k: k / 4), min_size=1, max_size=30)  # so that some are equal


@settings(deadline=None, max_examples=60)  # the first one imports sklearn
@given(members=scores, others=scores, times=st.sampled_from([1, 100]))
def test_the_success_of_an_attack_is_that_of_the_definition(
    members: list[float], others: list[float], times: int
) -> None:
    others = others * times
    found = privacy.attack_success(np.array(members), np.array(others))
    rates = by_thresholds(members, others)
    assert found.auc == pytest.approx(by_pairs(members, others))
    assert found.advantage == pytest.approx(max(true - false for true, false in rates))
    if len(others) < 100:
        assert found.true_positive_rate is None
    else:
        assert found.true_positive_rate == pytest.approx(max(true for true, false in rates if false <= 0.01))


def test_a_rate_at_few_false_positives() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(1, 1, 60), rng.normal(0, 1, 250)  # at most two of these are above the threshold
    found = privacy.attack_success(members, others)
    assert found.true_positive_rate == np.mean(members > np.sort(others)[-3])
    assert found.true_positive_rate < np.mean(members > np.sort(others)[-5])


def test_losses_of_labels(real: RealData, runtime: Runtime) -> None:
    """Of every student, and apart even where a student is nearly certain."""
    build, data = network_builder(TINY_NETWORK, real), labeled(real, real.train)
    models = StackedModels(build, 2, runtime)
    models.load([fresh_state(build, seed) for seed in (1, 2)])
    with torch.no_grad():
        models.parameters["classifier.weight"].mul_(300)
    losses, right = privacy.label_losses(models, data)
    x = (torch.from_numpy(real.train.images).float() / 255 - torch.tensor(real.mean).view(-1, 1, 1)) / torch.tensor(
        real.std
    ).view(-1, 1, 1)
    for row in range(2):
        logits = models.logits(x.expand(2, *x.shape))[row].detach().numpy().astype(np.float64)
        for place, label in enumerate(real.train.labels):
            others = sum(math.exp(v - logits[place, label]) for k, v in enumerate(logits[place]) if k != label)
            assert losses[row, place] == pytest.approx(math.log1p(others), rel=1e-4)
            assert right[row, place] == (logits[place].argmax() == label)
    assert losses.dtype == np.float64
    assert 0 < losses.min() < 1e-20


def test_members_are_known_to_the_student(tmp_path: Path, real: RealData, runtime: Runtime) -> None:
    """A student of random images knows its own ones by heart, and not the training images that it has not seen."""
    noise = np.random.default_rng(1).integers(0, 256, (150, 3, 8, 8), dtype=np.uint8)  # nothing to learn but by heart
    offsets = np.array([0, 50, 100, 150])
    unlike = dataclasses.replace(real, train=Split(noise, offsets), test=Split(255 - noise[::-1], offsets))
    learned = dataclasses.replace(SHORT, epochs=60)
    subject = subject_of(tmp_path, unlike, first_of_each(noise, offsets, 3), runtime, student=learned)
    random, whole = (privacy.attack(subject, name) for name in ("random", "whole"))
    assert (random.images, random.n, random.set, random.true_positive_rate) == (9, 2, "random", None)
    assert random.auc.mean > 0.85
    assert random.member_accuracy == 1 > random.other_accuracy
    assert (whole.images, whole.epochs) == (150, subject.work("whole").epochs)
    assert whole.true_positive_rate is not None
    own = privacy.attack(subject, "distilled")
    assert own.images == 150
    assert own.auc.mean == pytest.approx(0.5, abs=0.15)  # nine of the members are in the set


def test_as_many_of_each_class_are_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    """As the smaller side has, and at most the bound."""
    monkeypatch.setattr(privacy, "MOST_ATTACKED", 24)
    real = build_real((20, 5, 9), test_counts=(9, 30, 6))
    subject = subject_of(tmp_path, real, first_of_each(real.train.images, real.train.offsets, 2), runtime)
    seen: list[LabeledImages] = []
    losses = privacy.label_losses

    def spy(models: StackedModels, data: LabeledImages) -> tuple[np.ndarray, np.ndarray]:
        seen.append(data)
        return losses(models, data)

    monkeypatch.setattr(privacy, "label_losses", spy)
    assert privacy.attack(subject, "whole").images == 8 + 5 + 6
    assert [np.bincount(d.labels.numpy()).tolist() for d in seen] == [[8, 5, 6]] * 2
    others, members = seen
    for data, split in ((others, real.test_split()), (members, real.train)):
        for image, label in zip(data.images, data.labels.tolist(), strict=True):
            own = split.images[split.offsets[label] : split.offsets[label + 1]]
            assert (own == image).all((1, 2, 3)).any()


def test_an_interrupted_measurement_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: RealData, runtime: Runtime
) -> None:
    monkeypatch.setattr(privacy, "side_by_side", lambda *_: 1)
    stored = first_of_each(real.train.images, real.train.offsets, 2)
    short = dataclasses.replace(SHORT, epochs=3)
    whole = privacy.measure(subject_of(tmp_path / "whole", real, stored, runtime, student=short))
    assert [attack.set for attack in whole.attacks] == ["distilled", "random", "whole"]

    subject = subject_of(tmp_path / "cut", real, stored, runtime, student=short)
    train, trained = privacy.train_and_test, list[int]()

    def cut(models: StackedModels, data: list[LabeledImages], *others: Any) -> np.ndarray:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(len(data[0]))
        return train(models, data, *others)

    monkeypatch.setattr(privacy, "train_and_test", cut)
    assert next(privacy.stages(subject)).name == "nearest real images"
    with pytest.raises(KeyboardInterrupt):
        privacy.measure(subject)
    assert trained == [6, 6, 6]  # both of the set, one of random real images
    assert [(s.name, s.work.split(" x ")[0]) for s in privacy.stages(subject)] == [
        ("attacked students: random real, 2 per class", "1"),
        ("attacked students: whole training split", "2"),
    ]
    trained.append(0)
    assert privacy.measure(subject) == whole
    assert trained[4:] == [6, 21, 21]
    assert list(privacy.stages(subject)) == []


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((7, 5, 9), (4, 0, 5), "class 'class 1' of tiny has no test image"),
        ((7, 1, 9), (4, 3, 5), "a baseline of 2 real images per class needs more than the 1 of class 'class 1'"),
    ],
)
def test_data_that_allow_no_comparison_are_refused(
    tmp_path: Path, runtime: Runtime, train: tuple[int, ...], test: tuple[int, ...], message: str
) -> None:
    real = build_real(train, test_counts=test)
    stored = build_set("single", 1).images.numpy()
    with pytest.raises(UserError, match=message):
        privacy.check(subject_of(tmp_path, real, stored, runtime))
