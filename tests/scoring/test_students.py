"""Students and their scores: what is drawn, what is reported, and that training together changes nothing."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_real, build_set
from torch.func import functional_call

from ncfmkit.config import NetworkSettings, PoolSettings, Settings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.kept import Kept
from ncfmkit.networks import Classifier, network_builder
from ncfmkit.real.store import RealData, Split
from ncfmkit.run_records import Score
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import baselines, coreset, lossy, students
from ncfmkit.scoring.kept_students import KeptStudents
from ncfmkit.training import StackedModels, Weights

SHORT = StudentSettings(epochs=4, batch=16, evaluations=2, repeats=2)


@pytest.fixture
def build(real: RealData, tiny_network: NetworkSettings) -> Callable[[], Classifier]:
    return network_builder(tiny_network, real)


def held_out(real: RealData) -> LabeledImages:
    assert real.test is not None
    return labeled(real, real.test)


def history(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime, **changes: Any
) -> tuple[Score, list[int]]:
    """A score whose hits are scripted (rising, then falling), and the epochs that were evaluated.

    Of ten thousand test images three quarters are of class 0, and class 2 has none.
    """
    epochs: list[int] = []
    original = students.train

    def spy(models, sets, settings, *, after_epoch, **kwargs) -> None:
        def noted(epoch: int) -> None:
            now.append(epoch)
            after_epoch(epoch)

        original(models, sets, settings, after_epoch=noted, **kwargs)

    now: list[int] = []

    def scripted(models, test) -> np.ndarray:
        epochs.append(now[-1])
        hits = [10 * r + 100 * max(0, now[-1] * (7 - now[-1])) for r in range(models.size)]
        return np.array([[h - h // 5, h // 5, 0] for h in hits])

    monkeypatch.setattr(students, "train", spy)
    monkeypatch.setattr(students, "class_hits", scripted)
    settings = dataclasses.replace(SHORT, **changes)
    labels = torch.arange(10_000) // 7500
    sets, test = [labeled(real, real.train)] * settings.repeats, dataclasses.replace(held_out(real), labels=labels)
    return one_row(sets, test, build, settings, runtime), epochs


def one_row(
    sets: list[LabeledImages],
    test: LabeledImages,
    build: Callable[[], Classifier],
    settings: StudentSettings,
    runtime: Runtime,
    *,
    seed: int = 0,
    kept: KeptStudents | None = None,
) -> Score:
    settings = dataclasses.replace(settings, repeats=len(sets))
    about = students.RowWork(
        name="distilled", label="t", network="n", per_class=1, stored=3, images=len(sets[0]), epochs=settings.epochs
    )
    return students.score(sets.__getitem__, test, build, settings, seed=seed, runtime=runtime, about=about, kept=kept)


@pytest.mark.parametrize(
    ("epochs", "evaluations", "expected"),
    [(10, 5, [2, 4, 6, 8, 10]), (7, 3, [2, 5, 7]), (3, 20, [1, 2, 3]), (6, 1, [6])],
)
def test_evaluations_are_evenly_spaced_and_end_with_the_last_epoch(
    monkeypatch: pytest.MonkeyPatch,
    real: RealData,
    build: Callable[[], Classifier],
    runtime: Runtime,
    epochs: int,
    evaluations: int,
    expected: list[int],
) -> None:
    row, seen = history(monkeypatch, real, build, runtime, epochs=epochs, evaluations=evaluations)
    assert seen == expected
    assert row.curve is not None
    assert row.curve.epochs == tuple(expected)
    assert students.evaluated_epochs(StudentSettings(epochs=epochs, evaluations=evaluations)) == tuple(expected)


def test_last_is_the_last_epoch_and_best_the_maximum(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime
) -> None:
    row, _ = history(monkeypatch, real, build, runtime, epochs=5, evaluations=5, repeats=3)
    assert row.last.values == pytest.approx([0.1, 0.101, 0.102])
    assert row.best.values == pytest.approx([0.12, 0.121, 0.122])
    assert row.last.mean == pytest.approx(0.101)
    assert row.last.std == pytest.approx(0.001)
    assert (row.n, row.decoded, row.images, row.epochs) == (3, 21, 3, 5)
    assert row.curve is not None
    assert row.curve.mean == pytest.approx([0.061, 0.101, 0.121, 0.121, 0.101])
    assert row.curve.std == pytest.approx([0.001] * 5)
    assert row.classes == (pytest.approx(808 / 7500), pytest.approx(202 / 2500), None)


@pytest.mark.parametrize(
    ("counts", "is_unbalanced"),
    [
        ((2000, 3000, 5000), True),
        ((4000, 6000), True),
        ((4001, 5999), False),
        ((5000, 5000, 0), False),
        ((10_000,), False),
    ],
)
def test_balanced_accuracy_is_the_mean_of_the_classes(
    monkeypatch: pytest.MonkeyPatch,
    real: RealData,
    build: Callable[[], Classifier],
    runtime: Runtime,
    counts: tuple[int, ...],
    is_unbalanced: bool,
) -> None:
    """Of each student, from its own right and wrong answers; only where a class has half as many images again."""
    rng = np.random.default_rng(3)
    labels_N = np.repeat(np.arange(len(counts)), counts)
    right_RN = rng.uniform(size=(3, 10_000)) < np.array([0.9, 0.5, 0.2])[labels_N]
    answers = iter(right_RN)

    def scripted(models: object, test: LabeledImages) -> np.ndarray:
        right_N = next(answers)
        return np.array([[int(right_N[labels_N == k].sum()) for k in range(3)]])

    monkeypatch.setattr(students, "class_hits", scripted)
    monkeypatch.setattr(students, "side_by_side", lambda *_: 1)
    test = dataclasses.replace(held_out(real), labels=torch.from_numpy(labels_N))
    settings = dataclasses.replace(SHORT, epochs=1, evaluations=1, repeats=3)
    row = one_row([labeled(real, real.train)] * 3, test, build, settings, runtime)
    assert row.last.values == pytest.approx([right_N.mean() for right_N in right_RN])
    if not is_unbalanced:
        assert row.balanced is None
        return
    each = [np.mean([right_N[labels_N == k].mean() for k in set(labels_N)]) for right_N in right_RN]
    assert row.balanced is not None
    assert row.balanced.values == pytest.approx(each)
    assert row.balanced.mean == pytest.approx(np.mean(each))
    assert row.balanced.std == pytest.approx(np.std(each, ddof=1))
    assert row.classes is not None
    assert row.balanced.mean == pytest.approx(np.mean([share for share in row.classes if share is not None]))
    assert abs(row.balanced.mean - row.last.mean) > 0.01


def test_one_student_has_no_spread(real: RealData, build: Callable[[], Classifier], runtime: Runtime) -> None:
    test = held_out(real)
    row = one_row([labeled(real, real.train)], test, build, SHORT, runtime)
    assert row.last.std == 0
    assert row.n == 1
    assert row.best.mean >= row.last.mean
    assert row.curve is not None
    assert (row.curve.mean[-1], row.curve.std) == (row.last.mean, (0, 0))


def kept_in(folder: Path, **conditions: Any) -> KeptStudents:
    return KeptStudents(kept=Kept(folder=folder, conditions={}), conditions=conditions)


def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the students that are trained from now on; after so many stacks comes an interruption."""
    trained: list[int] = []
    train, stacks = students.train, itertools.count()

    def counted(*arguments: Any, **named: Any) -> None:
        if next(stacks) == count:
            raise KeyboardInterrupt
        trained.extend(named["keys"])
        train(*arguments, **named)

    monkeypatch.setattr(students, "train", counted)
    return trained


@pytest.mark.parametrize(("together", "finished"), [(1, [0]), (2, [0, 1])])
def test_students_are_kept_one_by_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    real: RealData,
    build: Callable[[], Classifier],
    runtime: Runtime,
    together: int,
    finished: list[int],
) -> None:
    """Those that an interruption leaves are trained later, as are further ones; what comes of it is as if none was."""
    monkeypatch.setattr(students, "side_by_side", lambda *_: together)
    sets, test = [baselines.random_subset(real, 4, 0, r) for r in range(4)], held_out(real)
    plain = [one_row(sets[:n], test, build, SHORT, runtime) for n in (3, 4)]
    kept = kept_in(tmp_path / "students")
    assert kept.left(3) == [0, 1, 2]
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            one_row(sets[:3], test, build, SHORT, runtime, kept=kept)
    assert kept.left(3) == [k for k in range(3) if k not in finished]
    trained = interrupted_after(-1, monkeypatch)
    row = one_row(sets[:3], test, build, SHORT, runtime, kept=kept)
    assert trained == [k for k in range(3) if k not in finished]
    assert one_row(sets[:3], test, build, SHORT, runtime, kept=kept) == row  # its seconds, too
    more = one_row(sets, test, build, SHORT, runtime, kept=kept)
    assert trained == [*(k for k in range(3) if k not in finished), 3]
    assert kept.left(4) == []
    for found, expected in zip((row, more), plain, strict=True):
        assert found.last.values == pytest.approx(expected.last.values, abs=1e-3)
        assert found.curve is not None
        assert expected.curve is not None
        assert found.curve.epochs == expected.curve.epochs
        assert found.curve.mean == pytest.approx(expected.curve.mean, abs=1e-3)
        assert (found.n, found.steps, found.decoded) == (expected.n, expected.steps, expected.decoded)
    assert more.seconds > row.seconds


def test_students_of_other_conditions_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime
) -> None:
    trained = interrupted_after(-1, monkeypatch)
    for conditions in ({"row": "one"}, {"row": "two"}, {"row": "one"}):
        kept = kept_in(tmp_path, **conditions)
        one_row([labeled(real, real.train)], held_out(real), build, SHORT, runtime, kept=kept)
    assert trained == [0, 0]


@pytest.mark.parametrize(
    "hits",
    [[[1, 2, 2]], [[1, 2], [1, 2]], [[1, 2, 2], [1]], [[-1, 0, 0], [0, 0, 0]], [[], []], [[0, 0, 9999], [0, 0, 0]]],
)
def test_a_damaged_student_is_trained_again(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    real: RealData,
    build: Callable[[], Classifier],
    runtime: Runtime,
    hits: list[list[int]],
) -> None:
    """Two tests on three classes: expected is a number of images for each, at most those of the test split."""
    kept = kept_in(tmp_path)
    arguments = [labeled(real, real.train)], held_out(real), build, SHORT, runtime
    row = one_row(*arguments, kept=kept)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content["result"]["hits"] = hits
    path.write_text(json.dumps(content))
    assert one_row(*arguments, kept=kept).last == row.last
    assert f"{path} is damaged: its student is trained again" in capsys.readouterr().err


def test_what_students_depend_on(real: RealData) -> None:
    """Neither on how many there are, nor on how long those of the whole split are trained, unless they are these."""
    base = Settings(student=SHORT)
    size = baselines.SetSize(stored=1, decoded=4, bytes=1)

    def of(name: str, **student: Any) -> dict[str, Any]:
        settings = dataclasses.replace(base, student=dataclasses.replace(SHORT, **student))
        return students.student_conditions(students.row_work(name, real, settings, size), settings)

    for name in ("distilled", "random", "whole"):
        assert of(name, repeats=7) == of(name)
        assert (of(name, whole_epochs=99) == of(name)) == (name != "whole")
        for other in ({"epochs": 400}, {"lr": 0.1}, {"cutmix": 0.0}, {"evaluations": 1}, {"augment": "none"}):
            assert of(name, **other) != of(name)
        wider = dataclasses.replace(base, network=NetworkSettings(width=8))
        assert students.student_conditions(students.row_work(name, real, wider, size), wider) != of(name)
    assert of("random") != of("distilled") != of("mosaic")


def test_students_together_are_students_one_after_another(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime
) -> None:
    """What they answer agrees; the sets differ from student to student.

    Parameters may not agree: a bias before a norm has a gradient of rounding errors alone, which AdamW scales up.
    """
    sets = [baselines.random_subset(real, 4, 0, r) for r in range(3)]
    settings = dataclasses.replace(SHORT, epochs=12)
    states: dict[int, tuple[list, list]] = {}
    trained = students.train

    for together in (1, 3):
        ended: list[list] = []

        def train(models: students.StackedModels, *args, ended: list = ended, **kwargs) -> None:
            trained(models, *args, **kwargs)
            ended.append(models.states())

        monkeypatch.setattr(students, "train", train)
        monkeypatch.setattr(students, "side_by_side", lambda *a, together=together: together)
        row = one_row(sets, held_out(real), build, settings, runtime)
        assert len(ended) == 3 // together
        states[together] = [state for models in ended for state in models], list(row.last.values)
    x_NCHW = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    logits = {k: [functional_call(build(), state, x_NCHW) for state in states[k][0]] for k in states}
    for alone, beside in zip(logits[1], logits[3], strict=True):
        torch.testing.assert_close(beside, alone, rtol=0, atol=1e-3)
    assert states[1][1] == pytest.approx(states[3][1], abs=1e-3)
    assert not torch.allclose(logits[1][0], logits[1][1], atol=1e-2)


def test_no_test_split_is_an_error_that_says_what_to_do(make_real: Callable[..., RealData]) -> None:
    with pytest.raises(UserError, match=r"tiny has no test split .*--holdout .*--repeats 0"):
        make_real(test_counts=None).test_split(otherwise=students.NO_SCORE)


@pytest.mark.parametrize("soft", [False, True])
def test_a_decoded_set_trains_by_its_soft_labels(real: RealData, soft: bool) -> None:
    """One stored image of each class, cut into four."""
    result = build_set("single", 2, ipc=1, soft=soft, mean=list(real.mean), std=list(real.std))
    data = result.labeled()
    assert (data.soft_labels is not None) == soft
    assert data.soft_labels is result.soft_labels
    assert (len(data), data.classes, data.mean, data.std) == (12, 3, real.mean, real.std)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


SELECTED = tuple(coreset.SELECTIONS)


def scored(
    real: RealData,
    runtime: Runtime,
    network: NetworkSettings,
    *names: str,
    decoded: int = 4,
    stored_bytes: float = 50,
    **student: Any,
) -> tuple[Score, ...]:
    """Rows of a score of random real images that stand for a set of one stored image a class, and of baselines."""
    settings = Settings(network=network, pool=PoolSettings(epochs=1), student=dataclasses.replace(SHORT, **student))
    scores = students.score_set(
        baselines.random_subset(real, decoded, 1, 0),
        real,
        settings,
        size=baselines.SetSize(stored=1, decoded=decoded, bytes=stored_bytes, soft_label=2),
        baselines=names,
        mosaic=lambda repeat: (baselines.random_subset(real, decoded, 2, repeat), 180 + 60 * repeat),
        select=lambda how, count: baselines.random_subset(real, count, 3, SELECTED.index(how)),
        soften=lambda data: dataclasses.replace(data, soft_labels=F.one_hot(data.labels).half()),
        runtime=runtime,
    )
    return scores.rows


def test_scores_are_of_the_test_split(runtime: Runtime, tiny_network: NetworkSettings) -> None:
    """The test images show another class than their labels say: whoever knows the training images gets all wrong."""
    seen = build_real((20, 20, 20), test_counts=(8, 8, 8))
    assert seen.test is not None
    swapped = Split(np.roll(seen.test.images, 8, axis=0), seen.test.offsets)
    real = dataclasses.replace(seen, test=swapped)
    rows = scored(real, runtime, tiny_network, "whole", decoded=20, epochs=20, repeats=1, cutmix=0.0, lr=3e-3)
    assert [row.last.mean < 0.1 for row in rows] == [True, True]
    (state, accuracy) = students.train_student(
        labeled(real, real.train),
        network_builder(tiny_network, real),
        dataclasses.replace(SHORT, epochs=20, cutmix=0.0, lr=3e-3),
        test=held_out(real),
        seed=0,
        runtime=runtime,
    )
    assert state
    assert accuracy is not None
    assert accuracy < 0.1


def test_baselines_take_as_many_gradient_steps_as_the_set(
    monkeypatch: pytest.MonkeyPatch, real: RealData, runtime: Runtime, tiny_network: NetworkSettings
) -> None:
    """The set decodes to 12 images, 3 batches an epoch; 3 images are 1 batch, and the whole split's 21 are 6."""
    taken: list[int] = []
    step, load = torch.optim.AdamW.step, StackedModels.load

    def counted(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        taken[-1] += 1
        return step(self, *arguments, **named)

    def loaded(self: StackedModels, states: Any) -> None:
        taken.append(0)
        load(self, states)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    monkeypatch.setattr(StackedModels, "load", loaded)
    rows = scored(real, runtime, tiny_network, *baselines.BASELINES, epochs=6, batch=4)
    assert [row.set for row in rows] == ["distilled", *baselines.BASELINES]
    epochs = {
        "distilled": 6,
        "random": 18,
        "random-soft": 18,
        "random-decoded": 6,
        "webp": 18,
        "jpeg": 18,
        "mosaic": 6,
        "herding": 18,
        "herding-webp": 18,
        "k-center": 18,
        "el2n": 18,
        "forgetting": 18,
        "whole": 3,
    }
    assert {row.set: row.epochs for row in rows} == epochs
    assert [row.steps for row in rows] == [18] * 13 == taken


def test_rows_say_what_is_stored_of_a_class(
    monkeypatch: pytest.MonkeyPatch, real: RealData, runtime: Runtime, tiny_network: NetworkSettings
) -> None:
    """Images are 3 x 8 x 8 bytes of raw pixels; the set has 200 bytes of a class, which 3 classes of 7 images have."""
    trained: dict[str, list[LabeledImages]] = {}
    score = students.score

    def spy(images: Any, *arguments: Any, **named: Any) -> Score:
        trained[named["about"].name] = [images(repeat) for repeat in range(2)]
        return score(images, *arguments, **named)

    monkeypatch.setattr(students, "score", spy)
    rows = {
        row.set: row.bytes_per_class
        for row in scored(real, runtime, tiny_network, *baselines.BASELINES, stored_bytes=200, epochs=1, repeats=2)
    }
    raw = 3 * 8 * 8
    assert rows["distilled"] == 200
    assert rows["mosaic"] == (180 + 240) / 2 / 3  # of the two draws in all, per class
    assert rows["random"] == rows["herding"] == rows["k-center"] == rows["el2n"] == rows["forgetting"] == raw
    assert rows["random-decoded"] == 4 * raw
    assert rows["random-soft"] == raw + 2  # of an image
    assert rows["whole"] == 7 * raw
    for name, codec in (("webp", lossy.WEBP), ("jpeg", lossy.JPEG), ("herding-webp", lossy.WEBP)):
        work = students.row_work(name, real, Settings(student=SHORT), baselines.SetSize(stored=1, decoded=4, bytes=200))
        plain = [baselines.random_subset(real, work.per_class, *((3, 0) if "herd" in name else (0, k))) for k in (0, 1)]
        coded = [codec.coded(subset) for subset in plain]
        assert rows[name] == pytest.approx(np.mean([count for _, count in coded]) / 3)
        for given, (expected, _) in zip(trained[name], coded, strict=True):
            np.testing.assert_array_equal(given.images, expected.images)
    for number, name in enumerate(SELECTED):  # each by its own rule, the same images for every student
        expected_images = baselines.random_subset(real, 1, 3, number).images
        for given in trained[name]:
            np.testing.assert_array_equal(given.images, expected_images)


def test_the_whole_split_is_trained_no_shorter_than_its_own_epochs(
    real: RealData, runtime: Runtime, tiny_network: NetworkSettings
) -> None:
    for own, epochs in ((2, 3), (3, 3), (5, 5)):
        whole = scored(real, runtime, tiny_network, "whole", epochs=6, batch=4, whole_epochs=own)[1]
        assert (whole.epochs, whole.steps) == (epochs, 6 * epochs)


@pytest.mark.parametrize("together", [1, 3])
def test_every_student_starts_and_trains_by_draws_of_its_own(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime, together: int
) -> None:
    starts: list[Weights] = []
    keys: list[tuple[int, int]] = []
    load, train = StackedModels.load, students.train

    def loaded(self: StackedModels, states: list[Weights]) -> None:
        starts.extend(states)
        load(self, states)

    def spy(*arguments: Any, **named: Any) -> None:
        keys.extend((named["seed"], key) for key in named["keys"])
        train(*arguments, **named)

    monkeypatch.setattr(StackedModels, "load", loaded)
    monkeypatch.setattr(students, "train", spy)
    monkeypatch.setattr(students, "side_by_side", lambda *_: together)
    sets = [labeled(real, real.train)] * 3
    for seed in (0, 1):
        one_row(sets, held_out(real), build, SHORT, runtime, seed=seed)
    weights = [torch.cat([v.flatten() for v in state.values() if v.ndim > 1]) for state in starts]
    assert len(weights) == 6
    for one, other in itertools.combinations(weights, 2):
        assert float((one - other).abs().median()) > 1e-3
    assert keys == [(seed, key) for seed in (0, 1) for key in range(3)]
