"""Students and their scores: what is drawn, what is reported, and that training together changes nothing."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ncfmkit.config import NetworkSettings, StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.images import labeled
from ncfmkit.networks import network_builder
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import baselines, students
from ncfmkit.sets import synthetic
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.training import fresh_state

SHORT = StudentSettings(epochs=4, batch=16, evaluations=2, repeats=2)


@pytest.fixture
def build(real: RealData, tiny_network: NetworkSettings) -> Callable[[], nn.Module]:
    return network_builder(tiny_network, real)


def rows_of(subset: students.LabeledImages, real: RealData) -> list[list[int]]:
    """Positions in the train split of the subset's images, by class; every image of `real` is another."""
    where = {image.tobytes(): row for row, image in enumerate(real.train.images)}
    rows = [where[image.tobytes()] for image in subset.images]
    return [[r for r, label in zip(rows, subset.labels, strict=True) if label == c] for c in range(len(real.classes))]


def test_random_subset_has_that_many_of_each_class(real: RealData) -> None:
    rows = rows_of(baselines.random_subset(real, 4, 0, 0), real)
    for label, mine in enumerate(rows):
        assert len(set(mine)) == 4
        low, high = real.train.offsets[label : label + 2]
        assert all(low <= r < high for r in mine)


def test_random_subset_is_drawn_by_seed_repeat_and_class(real: RealData, make_real: Callable[..., RealData]) -> None:
    draw = lambda seed, repeat: rows_of(baselines.random_subset(real, 4, seed, repeat), real)  # noqa: E731
    assert draw(0, 0) == draw(0, 0)
    draws = [draw(seed, repeat) for seed in range(3) for repeat in range(3)]
    assert len({str(d) for d in draws}) == len(draws)
    # class 0 is the same whatever the other classes hold
    more = make_real((7, 9, 9))
    assert rows_of(baselines.random_subset(more, 4, 1, 2), more)[0] == draw(1, 2)[0]


def test_a_subset_of_everything_is_everything(make_real: Callable[..., RealData]) -> None:
    real = make_real((5, 5))
    assert rows_of(baselines.random_subset(real, 5, 0, 0), real) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_class_that_is_too_small_is_named(real: RealData) -> None:
    says = r"a baseline of 6 real images per class needs more than the 5 of class 'class 1' in tiny: leave it out"
    with pytest.raises(UserError, match=says):
        baselines.random_subset(real, 6, 0, 0)
    with pytest.raises(UserError, match=says):
        baselines.check_baselines(real, ("whole", "random-decoded"), stored=1, decoded=6)
    baselines.check_baselines(real, ("random", "herding", "whole"), stored=5, decoded=6)
    baselines.check_baselines(real, (), stored=100, decoded=100)


def naive_herding(feat_ND: np.ndarray, count: int) -> list[int]:
    """Every candidate's mean is computed afresh."""
    mean_D = feat_ND.mean(0)
    picks: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(feat_ND)) if i not in picks]
        picks.append(min(left, key=lambda i: np.linalg.norm(feat_ND[[*picks, i]].mean(0) - mean_D)))
    return picks


@pytest.mark.parametrize(("n", "d", "count"), [(1, 3, 1), (9, 1, 4), (20, 5, 20), (60, 16, 25)])
def test_herd_is_greedy(n: int, d: int, count: int) -> None:
    feat_ND = np.random.default_rng(n).normal(1, 2, (n, d))
    assert baselines.herd(torch.from_numpy(feat_ND), count).tolist() == naive_herding(feat_ND, count)


def test_herd_of_equal_rows_picks_each_once() -> None:
    assert sorted(baselines.herd(torch.ones(4, 3, dtype=torch.float64), 4)) == [0, 1, 2, 3]


def test_herded_subset_uses_the_networks_features(
    real: RealData, tiny_network: NetworkSettings, build: Callable[[], nn.Module], runtime: Runtime
) -> None:
    state = fresh_state(build, 0, "extractor")
    rows = rows_of(baselines.herded_subset(real, 3, state, tiny_network, runtime), real)
    network = build()
    network.load_state_dict(state)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (real.mean, real.std))
    with torch.no_grad():
        feat_ND = network.features((torch.from_numpy(real.train.images) / 255 - mean) / std).double().numpy()
    for label, mine in enumerate(rows):
        low, high = real.train.offsets[label : label + 2]
        assert mine == sorted(low + pick for pick in naive_herding(feat_ND[low:high], 3))


def history(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], nn.Module], runtime: Runtime, **changes: int
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
    sets, test = [labeled(real, real.train)] * settings.repeats, labeled(real, real.test)
    return students.score(sets, test, build, settings, seed=0, runtime=runtime, title="t"), epochs


@pytest.mark.parametrize(
    ("epochs", "evaluations", "expected"),
    [(10, 5, [2, 4, 6, 8, 10]), (7, 3, [2, 5, 7]), (3, 20, [1, 2, 3]), (6, 1, [6])],
)
def test_evaluations_are_evenly_spaced_and_end_with_the_last_epoch(
    monkeypatch: pytest.MonkeyPatch,
    real: RealData,
    build: Callable[[], nn.Module],
    runtime: Runtime,
    epochs: int,
    evaluations: int,
    expected: list[int],
) -> None:
    _, seen = history(monkeypatch, real, build, runtime, epochs=epochs, evaluations=evaluations)
    assert seen == expected


def test_last_is_the_last_epoch_and_best_the_maximum(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], nn.Module], runtime: Runtime
) -> None:
    result, _ = history(monkeypatch, real, build, runtime, epochs=6, evaluations=6, repeats=3)
    assert result["last"]["values"] == pytest.approx([0.06, 0.061, 0.062])
    assert result["best"]["values"] == pytest.approx([0.12, 0.121, 0.122])
    assert result["last"]["mean"] == pytest.approx(0.061)
    assert result["last"]["std"] == pytest.approx(0.001)
    assert result["n"] == 3
    assert result["decoded"] == 21


def test_one_student_has_no_spread(real: RealData, build: Callable[[], nn.Module], runtime: Runtime) -> None:
    test = labeled(real, real.test)
    result = students.score([labeled(real, real.train)], test, build, SHORT, seed=0, runtime=runtime, title="t")
    assert result["last"]["std"] == 0
    assert result["n"] == 1
    assert result["best"]["mean"] >= result["last"]["mean"]


def test_students_together_are_students_one_after_another(
    monkeypatch: pytest.MonkeyPatch, real: RealData, build: Callable[[], nn.Module], runtime: Runtime
) -> None:
    """What they answer agrees; the sets differ from student to student.

    Parameters may not agree: a bias before a norm has a gradient of rounding errors alone, which AdamW scales up.
    """
    sets = [baselines.random_subset(real, 4, 0, r) for r in range(3)]
    settings = dataclasses.replace(SHORT, epochs=12)
    states: dict[int, list] = {}
    trained = students.train

    for together in (1, 3):
        ended: list[list] = []

        def train(models: students.StackedModels, *args, ended: list = ended, **kwargs) -> None:
            trained(models, *args, **kwargs)
            ended.append(models.states())

        monkeypatch.setattr(students, "train", train)
        monkeypatch.setattr(students, "side_by_side", lambda *a, together=together: together)
        result = students.score(
            sets, labeled(real, real.test), build, settings, seed=0, runtime=runtime, title="together"
        )
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
        students.test_split(make_real(test_counts=None))


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
    data = synthetic.decoded_images(
        SyntheticSet(images=images, labels=torch.arange(3), manifest=manifest, soft_labels=logits)
    )
    assert data.soft_labels is logits
    assert (len(data), data.classes, data.mean, data.std) == (12, 3, real.mean, real.std)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("none", ()),
        ("random", ("random",)),
        (" random , whole,", ("random", "whole")),
        ("none,herding", ("herding",)),
        ("random,random", ("random",)),
        (",".join(baselines.BASELINES), tuple(baselines.BASELINES)),
    ],
)
def test_parse_baselines(text: str, expected: tuple[str, ...]) -> None:
    assert baselines.parse_baselines(text) == expected


@pytest.mark.parametrize("text", ["best", "random;whole", "Random", "random,wholes"])
def test_unknown_baselines(text: str) -> None:
    with pytest.raises(UserError, match=r"unknown baseline .*known: random, random-decoded, herding, whole, none"):
        baselines.parse_baselines(text)
