"""DD-Ranking scores: against their definition in exact arithmetic, and the students that they are computed from."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_NETWORK, build_real, build_set
from recorded import score
from subjects import make_subject

from ncfmkit.assessment import Images, Labels, RankingCell
from ncfmkit.config import LabelSettings, PoolSettings, Settings, StudentSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages
from ncfmkit.jobs.assess import assess, dry_run
from ncfmkit.real.store import RealData
from ncfmkit.run_records import Accuracy, Score
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import architectures, ranking, subject
from ncfmkit.scoring.baselines import random_subset
from ncfmkit.scoring.kept_students import StudentResult
from ncfmkit.scoring.students import RowWork
from ncfmkit.scoring.subject import Subject
from ncfmkit.sets import set_file
from ncfmkit.training import batch_plan

Grid = dict[tuple[Images, Labels, bool], Sequence[float]]
SOFT: Grid = {  # accuracies of three repeats, in no order
    ("whole", "hard", True): (0.845, 0.851, 0.839),
    ("set", "hard", True): (0.421, 0.437, 0.429),
    ("set", "hard", False): (0.377, 0.391, 0.4),
    ("set", "soft", True): (0.503, 0.497, 0.512),
    ("set", "soft", False): (0.455, 0.461, 0.448),
    ("random", "hard", True): (0.291, 0.305, 0.284),
    ("random", "hard", False): (0.25, 0.271, 0.266),
    ("random", "soft", True): (0.352, 0.347, 0.371),
    ("random", "soft", False): (0.301, 0.322, 0.297),
}
HARD: Grid = {key: values for key, values in SOFT.items() if key[1] == "hard"}
STUDENTS = StudentSettings(epochs=2, batch=16, repeats=2, evaluations=1, whole_epochs=1, augment="flip", cutmix=0.5)


def cells(grid: Grid) -> list[RankingCell]:
    made = []
    for (images, labels, augmented), values in grid.items():
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        last = Accuracy(mean=float(np.mean(values)), std=std, values=tuple(values))
        row = score(images, 0.5, n=len(values)).model_copy(update={"last": last})
        made.append(RankingCell(images=images, labels=labels, augmented=augmented, score=row))
    return made


def by_definition(grid: Grid, labels: Labels) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each figure, by a loop over the repeats with 50 digits."""
    with localcontext() as context:
        context.prec = 50
        of = {key: [Decimal(str(v)) for v in values] for key, values in grid.items()}
        e, half = Decimal(1).exp(), Decimal("0.5")
        found: dict[str, list[Decimal]] = {name: [] for name in ("hlr", "ior", "ior_unaugmented", "lrs", "ars")}
        for r in range(len(of["set", "hard", True])):
            hlr = of["whole", "hard", True][r] - of["set", "hard", True][r]
            ior = of["set", labels, True][r] - of["random", labels, True][r]
            plain = of["set", labels, False][r] - of["random", labels, False][r]
            lrs = ((half * ior - half * hlr).exp() - 1 / e) / (e - 1 / e)
            ars = ((half * ior + half * plain).exp() - 1 / e) / (e - 1 / e)
            for name, value in zip(found, (hlr, ior, plain, lrs, ars), strict=True):
                found[name].append(value)
        summed = {}
        for name, values in found.items():
            mean = sum(values, Decimal(0)) / len(values)
            variance = sum(((v - mean) ** 2 for v in values), Decimal(0)) / (len(values) - 1)
            summed[name] = (float(mean), float(variance.sqrt()))
        return summed


@pytest.mark.parametrize(("grid", "labels"), [(SOFT, "soft"), (HARD, "hard")])
def test_the_scores_are_those_of_the_definition(grid: Grid, labels: Labels) -> None:
    found = ranking.ranked(cells(grid))
    assert found.labels == labels
    for name, (mean, std) in by_definition(grid, labels).items():
        value: Any = getattr(found, name)
        assert (value.mean, value.std) == pytest.approx((mean, std), rel=1e-12), name


def test_the_published_package_agrees_on_fractions() -> None:
    """Figures of ddranking 0.2.0, whose three evaluators were given these accuracies in place of students.

    It computes with percent, and of 100 times the accuracies gives an LRS of -0.157 and an ARS of 1,173,536. Its
    deviations are those of the population.
    """
    soft, hard = ranking.ranked(cells(SOFT)), ranking.ranked(cells(HARD))
    of_package = [
        (soft.hlr, 0.416, 0.005887840577551903),
        (soft.ior, 0.14733333333333334, 0.004496912521077351),
        (soft.lrs, 0.21546124455374496, 0.0006848582051824798),
        (hard.ior, 0.13566666666666669, 0.006649979114420007),
        (hard.lrs, 0.2133036039333327, 0.0022013553500783664),
        (soft.ior_unaugmented, 0.14800000000000002, 0.006480740698407866),
        (soft.ars, 0.33664618938351104, 0.0017141263905094814),
    ]
    for value, mean, std in of_package:
        ours: Any = value
        assert (ours.mean, ours.std) == pytest.approx((mean, std * np.sqrt(3 / 2)), rel=1e-12)


def test_the_ends_of_the_scale() -> None:
    ends = ranking.robust(np.array([-1.0, 0.0, 1.0]))
    assert ends == pytest.approx([0, 0.26894142136999512, 1], abs=1e-15)
    assert ranking.robust(np.array([-1.0])) >= 0
    assert ranking.robust(np.array([1.0])) <= 1


def test_repeats_are_paired() -> None:
    """Random images that follow the set's accuracy leave the scores without deviation."""
    paired: Grid = HARD | {
        ("set", "hard", True): (0.5, 0.6),
        ("random", "hard", True): (0.3, 0.4),
        ("set", "hard", False): (0.4, 0.7),
        ("random", "hard", False): (0.3, 0.6),
        ("whole", "hard", True): (0.8, 0.9),
    }
    found = ranking.ranked(cells(paired))
    assert found.ars is not None
    assert (found.lrs.std, found.ars.std) == pytest.approx((0, 0), abs=1e-15)
    assert len(found.lrs.values) == 2


def test_one_repeat_has_no_deviation() -> None:
    found = ranking.ranked(cells({key: values[:1] for key, values in HARD.items()}))
    assert (found.lrs.std, found.hlr.std, len(found.lrs.values)) == (0, 0, 1)


def test_a_recipe_that_augments_nothing_has_no_ars() -> None:
    plain = {(images, labels, False): values for (images, labels, a), values in HARD.items() if a}
    found = ranking.ranked(cells(plain))
    assert found.ars is None
    assert found.ior_unaugmented is None
    assert found.lrs == ranking.ranked(cells(HARD)).lrs


def assessed(
    folder: Path,
    real: RealData,
    runtime: Runtime,
    *,
    soft: bool = False,
    soften: Callable[[LabeledImages], LabeledImages] | None = None,
    **changes: Any,
) -> Subject:
    """A set of two images per class, four times as many decoded."""
    return make_subject(
        build_set("single", 2, soft=soft),
        folder,
        real=real,
        settings=Settings(network=TINY_NETWORK, student=dataclasses.replace(STUDENTS, **changes), seed=3),
        runtime=runtime,
        soften=soften,
        teachers=lambda: iter([Stage(name="teachers", work="", seconds=1.0)]),
    )


def taught(data: LabeledImages) -> LabeledImages:
    """Labels that a test recognizes."""
    logits = torch.full((len(data), data.classes), -7.0).scatter_(1, data.labels[:, None], 1.0)
    return dataclasses.replace(data, soft_labels=logits.half())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[LabeledImages], StudentSettings]]:
    """What students would be trained on: the label of their row, the images of each, and how; none is trained."""
    seen: list[tuple[str, Sequence[LabeledImages], StudentSettings]] = []

    def noted(images: Any, test: Any, build: Any, settings: Any, *, about: Any, kept: Any, **how: Any) -> Score:
        if left := kept.left(settings.repeats):
            assert left == list(range(settings.repeats))
            sets = [images(repeat) for repeat in left]
            seen.append((about.label, sets, dataclasses.replace(settings, epochs=about.epochs)))
            for repeat in left:
                kept.keep(repeat, StudentResult(hits=(), seconds=1.0))
        return guessed(settings.repeats, about)

    monkeypatch.setattr(subject, "score", noted)
    return seen


def guessed(repeats: int, about: RowWork) -> Score:
    """A score that depends on what was to be trained, without training."""
    values = tuple(
        float(np.random.default_rng([about.images, repeat, *about.label.encode()]).uniform())
        for repeat in range(repeats)
    )
    last = Accuracy(mean=float(np.mean(values)), std=float(np.std(values, ddof=1)), values=values)
    shown = score(about.name, 0.5, n=len(values), images=about.stored)
    return shown.model_copy(update={"last": last, "label": about.label})


def test_the_whole_grid_is_trained(tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]) -> None:
    of = assessed(tmp_path, real, runtime, soft=True, soften=taught)
    found = ranking.measure(of)
    assert {(c.images, c.labels, c.augmented) for c in found.cells} == set(SOFT)
    assert found.labels == "soft"
    steps = {how.epochs * batch_plan(len(sets[0]), how.batch)[0] for _, sets, how in trained}
    assert steps == {4}  # 24 decoded images in batches of 16, twice
    for cell, (_, sets, how) in zip(found.cells, trained, strict=True):
        assert (how.augment, how.cutmix) == (("flip", 0.5) if cell.augmented else ("none", 0.0))
        assert (sets[0].soft_labels is not None) == (cell.labels == "soft")
        for repeat, images in enumerate(sets):
            if cell.images == "random":
                drawn = random_subset(real, 2, 3, repeat)
                assert np.array_equal(images.images, drawn.images)
                if cell.labels == "soft":
                    expected = taught(drawn).soft_labels
                    assert expected is not None
                    assert torch.equal(images.soft_labels, expected)
            elif cell.images == "set":
                assert torch.equal(torch.as_tensor(images.images), torch.as_tensor(of.distilled.images))
                assert torch.equal(images.labels, of.distilled.labels)
            else:
                assert len(images) == len(real.train.images)
                assert images is sets[0]  # students side by side share one copy on a GPU
    labels = [label for label, *_ in trained]
    assert len(set(labels)) == 9
    assert labels[0] == "distilled, 2 per class, hard labels"


def test_hard_labels_need_five_kinds_of_students(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]
) -> None:
    found = ranking.measure(assessed(tmp_path, real, runtime))
    assert [(c.images, c.labels, c.augmented) for c in found.cells] == [
        ("set", "hard", True),
        ("random", "hard", True),
        ("set", "hard", False),
        ("random", "hard", False),
        ("whole", "hard", True),
    ]
    assert all(images.soft_labels is None for _, sets, _ in trained for images in sets)


def test_a_recipe_without_augmentation_trains_three(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]
) -> None:
    found = ranking.measure(assessed(tmp_path, real, runtime, augment="none", cutmix=0.0))
    assert [label for label, *_ in trained] == ["distilled, 2 per class", "random real, 2 per class", trained[2][0]]
    assert found.ars is None
    only_cutmix = ranking.measure(assessed(tmp_path, real, runtime, augment="none", cutmix=0.5))
    assert only_cutmix.ars is not None


def test_an_interrupted_measurement_continues(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students are kept, and only those that are left are estimated."""
    whole = ranking.measure(assessed(tmp_path / "whole", real, runtime, soft=True, soften=taught))
    trained.clear()
    of = assessed(tmp_path / "parts", real, runtime, soft=True, soften=taught)

    def unmeasured(left: dict[RowWork, int], *arguments: Any) -> list[Stage]:
        return [Stage(name=work.label, work=f"{count}", seconds=1.0) for work, count in left.items()]

    monkeypatch.setattr(ranking, "student_stages", unmeasured)
    stages = list(ranking.stages(of))
    assert stages[0].name == "teachers"
    assert len(stages) == 1 + 9
    noted = subject.score

    def stopping(*arguments: Any, **how: Any) -> Score:
        if len(trained) == 4:
            raise KeyboardInterrupt
        return noted(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(subject, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            ranking.measure(of)
    of = dataclasses.replace(of, kept=dataclasses.replace(of.kept, planned=set()))
    assert [stage.work for stage in ranking.stages(of)] == ["", *["2"] * 5]
    again = ranking.measure(of)
    assert len(trained) == 4 + 5
    assert list(ranking.stages(of)) == []
    assert again == whole


def test_teachers_are_the_sets_own_whatever_the_pool(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]
) -> None:
    """What they taught is not measured anew."""
    of = assessed(tmp_path, real, runtime, soft=True, soften=taught)
    ranking.measure(of)
    trained.clear()
    ranking.measure(dataclasses.replace(of, settings=dataclasses.replace(of.settings, pool=PoolSettings(members=1))))
    assert trained == []


def test_scores_are_shared_with_other_evaluations(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]
) -> None:
    """Students of the set's own network and labels are trained once for all of them."""
    of = assessed(tmp_path, real, runtime, soft=True, soften=taught)
    ranking.measure(of)
    for name in ("distilled", "random", "whole"):
        assert not of.plan_students(of.work(name), network=architectures.networks(of)[0])


def test_shared_scores_have_the_names_of_who_asks(
    tmp_path: Path, real: RealData, runtime: Runtime, trained: list[Any]
) -> None:
    plain = assessed(tmp_path, real, runtime, augment="none", cutmix=0.0)
    plain.students(plain.work("random"), partial(plain.images, "random"))
    found = ranking.measure(assessed(tmp_path, real, runtime))
    assert [label for label, *_ in trained].count("random real, 2 per class") == 2  # that, and the augmented one
    assert len(trained) == 5
    names = {(c.images, c.augmented): c.score.label for c in found.cells}
    assert names["random", False] == "random real, 2 per class, no augmentation"


def test_what_lacks_something_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"soft labels of unknown teachers.*ncfmkit relabel"):
        ranking.check(assessed(tmp_path, build_real(), runtime, soft=True))
    with pytest.raises(UserError, match=r"2 real images per class needs more than the 1 of class 'class 1' in tiny"):
        ranking.check(assessed(tmp_path, build_real((7, 1, 9)), runtime))
    ranking.check(assessed(tmp_path, build_real(), runtime, soft=True, soften=taught))
    assert not list(tmp_path.iterdir())


def test_the_command_teaches_random_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file and the real data, with the teachers of the set's recipe."""
    settings = Settings(
        network=TINY_NETWORK,
        pool=PoolSettings(members=1, epochs=4, batch=64),
        student=dataclasses.replace(STUDENTS, batch=128, repeats=1),
        labels=LabelSettings(soft=True),
    )
    how: dict[str, Any] = {"classes": [str(k) for k in range(10)], "channels": 1, "ipc": 1, "soft": True}
    path = tmp_path / "soft.safetensors"
    set_file.save(build_set("single", 1, settings=to_dict(settings), **how), path)
    asked: dict[str, Any] = {"data": "digits", "only": "ranking", "out": tmp_path / "out", "size": 8, "color": "gray"}
    asked |= {"runtime.device": "cpu", "runtime.compile": "off"}
    found = assess(path, **asked)
    assert "extractor pool: 1 x 4 epochs, about" in capsys.readouterr().err
    assert found.ranking is not None
    assert found.ranking.labels == "soft"
    written = json.loads((tmp_path / "out" / "assess.json").read_text())["ranking"]
    assert written["lrs"] == found.to_dict()["ranking"]["lrs"]
    assert list(dry_run(path, **asked)) == []
    assert list(dry_run(path, **(asked | {"pool.epochs": 5}))) == []  # the teachers stay those of the set
