"""Students and their scores: what is drawn, what is reported, and that training together changes nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call

from ncfmkit.config import NetworkSettings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.networks import Classifier, network_builder
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import baselines, students
from ncfmkit.sets.synthetic import SyntheticSet

SHORT = StudentSettings(epochs=4, batch=16, evaluations=2, repeats=2)


@pytest.fixture
def build(real: RealData, tiny_network: NetworkSettings) -> Callable[[], Classifier]:
    return network_builder(tiny_network, real)


def held_out(real: RealData) -> LabeledImages:
    assert real.test is not None
    return labeled(real, real.test)


def history(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime, **changes: Any
) -> tuple[dict, list[int]]:
    """A score whose accuracies are scripted (rising, then falling), and the epochs that were evaluated."""
    epochs: list[int] = []
    original = students.train

    def spy(models, sets, settings, *, after_epoch, **kwargs) -> None:
        def noted(epoch: int) -> None:
            now.append(epoch)
            after_epoch(epoch)

        original(models, sets, settings, after_epoch=noted, **kwargs)

    now: list[int] = []

    def scripted(models, test) -> list[float]:
        epochs.append(now[-1])
        return [(0.1 * r + now[-1] * (7 - now[-1])) / 100 for r in range(models.size)]

    monkeypatch.setattr(students, "train", spy)
    monkeypatch.setattr(students, "accuracy", scripted)
    settings = dataclasses.replace(SHORT, **changes)
    sets, test = [labeled(real, real.train)] * settings.repeats, held_out(real)
    return students.score(sets, test, build, settings, seed=0, runtime=runtime, title="t"), epochs


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
    _, seen = history(monkeypatch, real, build, runtime, epochs=epochs, evaluations=evaluations)
    assert seen == expected


def test_last_is_the_last_epoch_and_best_the_maximum(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], Classifier], runtime: Runtime
) -> None:
    result, _ = history(monkeypatch, real, build, runtime, epochs=6, evaluations=6, repeats=3)
    assert result["last"]["values"] == pytest.approx([0.06, 0.061, 0.062])
    assert result["best"]["values"] == pytest.approx([0.12, 0.121, 0.122])
    assert result["last"]["mean"] == pytest.approx(0.061)
    assert result["last"]["std"] == pytest.approx(0.001)
    assert result["n"] == 3
    assert result["decoded"] == 21


def test_one_student_has_no_spread(real: RealData, build: Callable[[], Classifier], runtime: Runtime) -> None:
    test = held_out(real)
    result = students.score([labeled(real, real.train)], test, build, SHORT, seed=0, runtime=runtime, title="t")
    assert result["last"]["std"] == 0
    assert result["n"] == 1
    assert result["best"]["mean"] >= result["last"]["mean"]


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
        result = students.score(sets, held_out(real), build, settings, seed=0, runtime=runtime, title="together")
        assert len(ended) == 3 // together
        states[together] = [state for models in ended for state in models], result["last"]["values"]
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
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    manifest = {
        "classes": list(real.classes),
        "ipc": {"stored": 1, "decoded": 4},
        "decode": {"kind": "single", "factor": 2, "budget": None},
        "mean": list(real.mean),
        "std": list(real.std),
    }
    logits = torch.arange(36).view(12, 3).half() if soft else None
    data = SyntheticSet(images=images, labels=torch.arange(3), manifest=manifest, soft_labels=logits).labeled()
    assert data.soft_labels is logits
    assert (len(data), data.classes, data.mean, data.std) == (12, 3, real.mean, real.std)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
