"""Which real images an extractor selects, against plain loops over the definitions."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ncfmkit.config import NetworkSettings
from ncfmkit.errors import UserError
from ncfmkit.networks import Classifier, network_builder
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import baselines, coreset
from ncfmkit.scoring.coreset import Course, Extractor
from ncfmkit.training import fresh_state


@pytest.fixture
def extractor(real: RealData, tiny_network: NetworkSettings) -> Extractor:
    """Of five stages that have nothing to do with each other."""
    build = network_builder(tiny_network, real)
    return Extractor(network=tiny_network, stages=[fresh_state(build, seed, "extractor") for seed in range(5)])


def network_at(extractor: Extractor, stage: int, real: RealData) -> tuple[Classifier, torch.Tensor]:
    """The network of a stage, and all training images as it takes them."""
    network = network_builder(extractor.network, real)()
    network.load_state_dict(extractor.stages[stage])
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (real.mean, real.std))
    return network, (torch.from_numpy(real.train.images) / 255 - mean) / std


def naive_herding(feat_ND: np.ndarray, count: int) -> list[int]:
    """Every candidate's mean is computed afresh."""
    mean_D = feat_ND.mean(0)
    picks: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(feat_ND)) if i not in picks]
        picks.append(min(left, key=lambda i: np.linalg.norm(feat_ND[[*picks, i]].mean(0) - mean_D)))
    return picks


def naive_k_center(feat_ND: np.ndarray, count: int) -> list[int]:
    """Every distance is computed afresh."""
    picks = [min(range(len(feat_ND)), key=lambda i: math.dist(feat_ND[i], feat_ND.mean(0)))]
    while len(picks) < count:
        left = [i for i in range(len(feat_ND)) if i not in picks]
        picks.append(max(left, key=lambda i: min(math.dist(feat_ND[i], feat_ND[p]) for p in picks)))
    return picks


NAIVE: dict[str, Callable[[np.ndarray, int], list[int]]] = {"herding": naive_herding, "k-center": naive_k_center}
PICK = {"herding": coreset.herd, "k-center": coreset.k_center}


@pytest.mark.parametrize(("n", "d", "count"), [(1, 3, 1), (9, 1, 4), (20, 5, 20), (60, 16, 25)])
@pytest.mark.parametrize("how", NAIVE)
def test_selections_by_features_are_greedy(how: str, n: int, d: int, count: int) -> None:
    feat_ND = np.random.default_rng(n).normal(1, 2, (n, d))
    assert PICK[how](torch.from_numpy(feat_ND), count).tolist() == NAIVE[how](feat_ND, count)


@pytest.mark.parametrize("how", NAIVE)
def test_equal_images_are_picked_once_each(how: str) -> None:
    assert sorted(PICK[how](torch.ones(4, 3, dtype=torch.float64), 4)) == [0, 1, 2, 3]


def test_k_centers_leave_no_image_more_than_twice_as_far_as_the_best_centers_would() -> None:
    """The bound of the greedy choice (Gonzalez 1985), against the best of all choices that hold the first center."""
    feat_ND = np.random.default_rng(4).normal(size=(12, 2))
    picks = coreset.k_center(torch.from_numpy(feat_ND), 4).tolist()

    def farthest(centers: list[int]) -> float:
        return max(min(math.dist(x, feat_ND[c]) for c in centers) for x in feat_ND)

    best = min(farthest([a, b, c, d]) for a in range(12) for b in range(a) for c in range(b) for d in range(c))
    assert farthest(picks) <= 2 * best


@pytest.mark.parametrize("how", NAIVE)
def test_features_are_the_trained_networks(how: str, real: RealData, extractor: Extractor, runtime: Runtime) -> None:
    found_CM = coreset.select(how, real, 3, extractor, runtime)
    network, images_NCHW = network_at(extractor, -1, real)
    with torch.no_grad():
        feat_ND = network.features(images_NCHW).double().numpy()
    for label, mine in enumerate(found_CM.tolist()):
        low, high = real.train.offsets[label : label + 2]
        assert mine == [low + pick for pick in NAIVE[how](feat_ND[low:high], 3)]


def test_el2n_is_the_norm_of_the_error() -> None:
    logits_BK = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 4
    label_B = torch.arange(50) % 7
    expected = [
        math.sqrt(sum((p - (k == label)) ** 2 for k, p in enumerate(row)))
        for row, label in zip(logits_BK.double().softmax(1).tolist(), label_B.tolist(), strict=True)
    ]
    np.testing.assert_allclose(coreset.el2n(logits_BK, label_B), expected, rtol=1e-5)
    assert max(expected) > 1  # a wrong class for sure is the root of 2
    # what is nearly sure keeps its order
    sure_BK = torch.tensor([[30.0, 0.0, 0.0], [31.0, 0.0, 0.0], [35.0, 0.0, 0.0]])
    one, two, three = coreset.el2n(sure_BK, torch.zeros(3, dtype=torch.int64)).tolist()
    assert one > two > three > 0


def naive_course(real: RealData, extractor: Extractor) -> tuple[np.ndarray, np.ndarray]:
    """EL2N and whether the network is right, of each image at each stage but the first, `[S, N]`."""
    el2n_SN, right_SN = [], []
    for stage in range(1, len(extractor.stages)):
        network, images_NCHW = network_at(extractor, stage, real)
        with torch.no_grad():
            p_NK = network(images_NCHW).double().softmax(1).numpy()
        one_hot_NK = np.eye(len(real.classes))[real.train.labels]
        el2n_SN.append(np.linalg.norm(p_NK - one_hot_NK, axis=1))
        right_SN.append(p_NK.argmax(1) == real.train.labels)
    return np.stack(el2n_SN), np.stack(right_SN)


def test_el2n_is_of_the_first_snapshot(real: RealData, extractor: Extractor, runtime: Runtime) -> None:
    found_CM = coreset.select("el2n", real, 3, extractor, runtime)
    el2n_N = naive_course(real, extractor)[0][0]
    for label, mine in enumerate(found_CM.tolist()):
        low, high = real.train.offsets[label : label + 2]
        assert mine == sorted(range(low, high), key=lambda i: el2n_N[i])[:3]


def naive_forgetting(el2n_SN: np.ndarray, right_SN: np.ndarray) -> list[int]:
    """All images, the least forgotten first."""

    def key(image: int) -> tuple[float, float]:
        course = right_SN[:, image].tolist()
        events = sum(before and not after for before, after in itertools.pairwise(course))
        return (events if any(course) else math.inf), float(el2n_SN[:, image].mean())

    return sorted(range(el2n_SN.shape[1]), key=key)


def test_forgetting_counts_turns_from_right_to_wrong() -> None:
    rng = np.random.default_rng(2)
    el2n_SN, right_SN = rng.uniform(0, 1.4, (9, 400)), rng.uniform(size=(9, 400)) < 0.3
    assert (~right_SN.any(0)).sum() > 5  # some are never right
    course = Course(el2n_SN=el2n_SN, right_SN=right_SN)
    assert coreset.least_forgotten(course, 400).tolist() == naive_forgetting(el2n_SN, right_SN)
    # learned once and kept, forgotten once, forgotten twice, never learned
    rows = [[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    worked = Course(el2n_SN=np.zeros((5, 4)), right_SN=np.array(rows[::-1], bool).T)
    assert coreset.least_forgotten(worked, 4).tolist() == [3, 2, 1, 0]


def test_forgetting_is_of_all_trained_stages(real: RealData, extractor: Extractor, runtime: Runtime) -> None:
    found_CM = coreset.select("forgetting", real, 4, extractor, runtime)
    el2n_SN, right_SN = naive_course(real, extractor)
    assert right_SN.any()
    for label, mine in enumerate(found_CM.tolist()):
        low, high = real.train.offsets[label : label + 2]
        assert mine == [low + i for i in naive_forgetting(el2n_SN[:, low:high], right_SN[:, low:high])][:4]


@pytest.mark.parametrize("how", coreset.SELECTIONS)
def test_selected_images_are_of_their_class(how: str, real: RealData, extractor: Extractor, runtime: Runtime) -> None:
    chosen = baselines.selected_subset(how, real, 5, extractor, runtime)
    assert chosen.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    index_CM = coreset.select(how, real, 5, extractor, runtime)
    np.testing.assert_array_equal(chosen.images, real.train.images[np.sort(index_CM, axis=1).ravel()])
    assert sorted(index_CM[1]) == list(range(7, 12))  # all that the class has
    with pytest.raises(UserError, match="6 real images per class"):
        baselines.selected_subset(how, real, 6, extractor, runtime)


@pytest.mark.parametrize(("how", "passes"), [("el2n", 1), ("forgetting", 10)])
def test_the_estimate_counts_the_passes_over_all_images(
    how: str, passes: int, real: RealData, extractor: Extractor, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "accuracy_seconds", lambda models, data: float(len(data)))
    seconds = coreset.selection_seconds(how, real, 1, extractor.network, 9, runtime)
    assert seconds == passes * len(real.train.images)
