"""An architecture search: what is drawn, what is trained for how long, what the choices lose, and how it continues."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import build_real, build_set
from subjects import make_subject

from ncfmkit.assessment import SearchRow
from ncfmkit.config import NetworkSettings, Settings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.kept import Kept
from ncfmkit.networks.search_space import search_net, search_space
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import search, students
from ncfmkit.scoring.baselines import SetSize, random_subset
from ncfmkit.scoring.students import score
from ncfmkit.scoring.subject import Subject


@pytest.fixture
def subject(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A set of 3 classes with 2 images each, of data with 21 images; four networks of at most 16 channels."""
    monkeypatch.setattr(search, "SAMPLE", 4)
    student = StudentSettings(epochs=4, batch=6, repeats=3, evaluations=4, whole_epochs=3, lr=1e-2)
    settings = Settings(network=NetworkSettings(width=16, depth=2), student=student, seed=5)
    return make_subject(
        build_set("single", 1), tmp_path / "measured", real=build_real(), settings=settings, runtime=runtime
    )


def changed(subject: Subject, *, seed: int | None = None, **student: Any) -> Subject:
    settings = dataclasses.replace(
        subject.settings,
        student=dataclasses.replace(subject.settings.student, **student),
        seed=subject.settings.seed if seed is None else seed,
    )
    return dataclasses.replace(subject, settings=settings)


def test_networks_are_drawn_by_the_seed_without_repeats(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    four = search.sample(subject)
    assert [network.to_dict() for network in search.sample(subject)] == [network.to_dict() for network in four]
    assert search.sample(changed(subject, seed=6)) != four
    space = search_space(width=16, size=8)
    monkeypatch.setattr(search, "SAMPLE", len(space))
    everything = search.sample(subject)
    assert everything[:4] == four
    assert sorted(map(str, everything)) == sorted(map(str, space))


def test_how_long_each_row_trains(subject: Subject) -> None:
    """The set: 4 epochs of 1 step. The whole split has 4 steps an epoch: early stopping is 1 epoch, 3 are in full."""
    assert [(w.name, w.images, w.epochs) for w in search.works(subject)] == [
        ("distilled", 6, 4),
        ("random", 6, 4),
        ("early", 21, 1),
        ("whole", 21, 3),
    ]
    assert [(w.name, w.epochs) for w in search.works(changed(subject, epochs=8))][2:] == [("early", 2), ("whole", 3)]
    # 12 steps are 3 epochs: nothing is stopped early
    assert [(w.name, w.epochs) for w in search.works(changed(subject, epochs=12))][2:] == [("whole", 3)]


def test_what_is_measured(subject: Subject) -> None:
    found = search.measure(subject)
    assert found.space == len(search_space(width=16, size=8))
    assert found.networks == tuple(search.sample(subject))
    assert [row.set for row in found.proxies] == ["distilled", "random", "early"]
    assert [row.steps for row in (*found.proxies, found.whole)] == [4, 4, 4, 12]
    for row in found.proxies:
        assert row.accuracies[row.chosen] == max(row.accuracies)
        assert row.regret == max(found.whole.accuracies) - found.whole.accuracies[row.chosen]
    assert len(list(subject.kept.folder.iterdir())) == 4 * 4
    assert not list(search.stages(subject))
    assert search.measure(subject) == found

    # one student of each network, as any student of these images
    real, student = subject.real, dataclasses.replace(subject.settings.student, repeats=1, evaluations=1)
    works = {work.name: work for work in search.works(subject)}
    for name, images in (("distilled", subject.distilled), ("random", random_subset(real, 2, 5, 0))):
        alone = score(
            {0: images}.__getitem__,
            subject.test,
            lambda: search_net(found.networks[2], channels=3, classes=3, size=8),
            student,
            seed=5,
            runtime=subject.runtime,
            about=works[name],
        )
        row = next(row for row in found.proxies if row.set == name)
        assert row.accuracies[2] == alone.last.mean


def test_an_interrupted_search_continues(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search.measure(dataclasses.replace(subject, kept=Kept(folder=tmp_path / "other", conditions={})))
    trained, train = [0], students.train

    def interrupted_after(count: int) -> Callable[..., None]:
        def counted(*args: Any, **kwargs: Any) -> None:
            if trained[0] == count:
                raise KeyboardInterrupt
            trained[0] += 1
            train(*args, **kwargs)

        return counted

    monkeypatch.setattr(students, "train", interrupted_after(6))
    with pytest.raises(KeyboardInterrupt):
        search.measure(subject)
    left = [stage.work for stage in search.stages(subject)]
    assert left == ["2 networks x 4 epochs", "4 networks x 1 epoch", "4 networks x 3 epochs"]
    monkeypatch.setattr(students, "train", interrupted_after(100))
    found = search.measure(subject)
    assert trained == [16]
    for row, expected in zip((*found.proxies, found.whole), (*whole.proxies, whole.whole), strict=True):
        assert row.accuracies == expected.accuracies
    assert found.proxies[0].spearman == whole.proxies[0].spearman


def test_an_estimate_measures_each_network_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every size of a batch: 6 images of the set, and batches of 6 of the whole split, in 4, 4, 4 and 12 steps."""
    measured: list[str] = []

    def takes(seconds: float, what: str) -> Callable[..., float]:
        def measure(*arguments: Any) -> float:
            measured.append(what)
            return seconds

        return measure

    monkeypatch.setattr(search, "training_seconds", takes(1.0, "trained"))
    monkeypatch.setattr(search, "accuracy_seconds", takes(0.25, "tested"))
    assert [stage.seconds for stage in search.stages(subject)] == [4 * (steps + 0.25) for steps in (4, 4, 4, 12)]
    assert measured.count("tested") == 4
    assert measured.count("trained") == 4


def test_which_settings_make_other_students(subject: Subject) -> None:
    search.measure(subject)
    for other in (
        {"epochs": 5},
        {"lr": 1e-3},
        {"batch": 4},
        {"augment": "none"},
        {"cutmix": 0.0},
        {"optimizer": "sgd"},
    ):
        left = next(search.stages(changed(subject, **other)))
        assert left.work.startswith("4 networks"), other
    assert not list(search.stages(changed(subject, repeats=1)))  # a search has its own
    assert [stage.work for stage in search.stages(changed(subject, whole_epochs=5))] == ["4 networks x 5 epochs"]


def row(name: str, *accuracies: float) -> SearchRow:
    return SearchRow(set=name, label=name, images=6, epochs=1, steps=1, accuracies=accuracies, seconds=1.0)


def test_the_regret_by_hand() -> None:
    whole = row("whole", 0.5, 0.75, 0.9375, 0.25)
    for proxy, chosen, regret in (
        (row("distilled", 0.1, 0.5, 0.2, 0.3), 1, 0.1875),
        (row("distilled", 0.1, 0.2, 0.3, 0.25), 2, 0.0),
        (row("distilled", 0.4, 0.1, 0.2, 0.4), 0, 0.4375),  # of two, the one that was drawn first
    ):
        found = search.as_proxy(proxy, whole, 0)
        assert (found.chosen, found.regret) == (chosen, regret)
        assert (found.accuracies, found.seconds) == (proxy.accuracies, 1.0)


def test_a_proxy_that_ranks_nothing() -> None:
    found = search.as_proxy(row("random", 0.1, 0.1, 0.1), row("whole", 0.5, 0.75, 0.25), 0)
    assert (found.spearman, found.kendall, found.chosen, found.regret) == (None, None, 0, 0.25)


def test_intervals_are_keyed_by_the_seed() -> None:
    accuracies = [place / 20 for place in range(20)]
    one, whole = row("distilled", *accuracies), row("whole", *accuracies[3:], *accuracies[:3])
    assert search.as_proxy(one, whole, 0) == search.as_proxy(one, whole, 0)
    assert search.as_proxy(one, whole, 0).spearman != search.as_proxy(one, whole, 1).spearman


def test_images_that_are_too_large_are_refused(subject: Subject) -> None:
    search.check(subject)
    large = dataclasses.replace(subject, real=build_real((2, 2, 2), size=65))
    with pytest.raises(UserError, match="65 pixels are too large for the networks of the search"):
        search.check(large)


def test_too_few_real_images_are_refused(subject: Subject) -> None:
    with pytest.raises(UserError, match="needs more than the 5 of class 'class 1'"):
        search.check(dataclasses.replace(subject, size=SetSize(stored=6, decoded=6, bytes=6 * 192)))
