"""The order of worth, against one that is computed anew in float64, by numpy, for every image that could come next."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_pool, build_real
from naive_mosaic import naive_decode

from ncfmkit.config import DistillSettings
from ncfmkit.distillation import ncfd, worth
from ncfmkit.distillation.problem import Problem, make_problem
from ncfmkit.distillation.step import draw_networks, draw_noise
from ncfmkit.distillation.worth import by_worth, greedy_order, order_of_worth
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime
from ncfmkit.sets import pixels
from ncfmkit.sets.manifest import Pixels

SEED = 3
FACTORS = {"single": (2,), "multi": (1, 2), "bound": (2, 1)}


@pytest.fixture
def make_setting(runtime: Runtime):
    def make(**settings: Any) -> tuple[Problem, torch.Tensor]:
        """A problem, and images for it: real ones, each with another amount of noise."""
        real = build_real((40, 30, 35))
        pool, build = build_pool(real)
        how = DistillSettings(**({"ipc": 5, "factor": 2, "frequencies": 64, "real_batch": 32} | settings))
        problem = make_problem(real, how, seed=SEED, pool=pool, builds=[build], runtime=runtime)  # type: ignore[list-item]
        rng, images = np.random.default_rng(2), []
        for start in real.train.offsets[:-1]:
            chosen = real.train.images[start : start + how.ipc] / 255
            noise = rng.normal(0, 1, chosen.shape) * rng.permutation(how.ipc).reshape(-1, 1, 1, 1) / 10
            images.append(np.clip(chosen + noise, 0, 1))
        return problem, torch.from_numpy(np.concatenate(images).astype(np.float32))

    return make


def as_shown(problem: Problem, images: torch.Tensor) -> np.ndarray:
    """What will be stored, in [0, 1]."""
    stored = images.mul(255).round().to(torch.uint8).numpy()
    s = problem.settings
    if not s.is_quantized:
        return stored / 255
    shape = (stored.shape[1], stored.shape[2], stored.shape[3])
    chroma: Any = "4:2:0" if s.is_subsampled else None
    how = Pixels(bits=s.stored_bits, scale="image", dither=False, shape=shape, chroma=chroma)
    return pixels.stored(torch.from_numpy(stored), how)[0].numpy() / 255


def features(problem: Problem, network: torch.nn.Module, images: list[np.ndarray]) -> np.ndarray:
    """In float64, on the unit sphere for the NCFD."""
    mean, std = (np.array(v).reshape(-1, 1, 1) for v in (problem.real.mean, problem.real.std))
    with torch.no_grad():
        found = network.features(torch.from_numpy((np.stack(images) - mean) / std)).numpy()  # type: ignore[operator]
    return found / np.linalg.norm(found, axis=1, keepdims=True) if problem.settings.metric == "ncfd" else found


def naive_order(problem: Problem, images: torch.Tensor, place: int) -> list[int]:
    """The order of one class: all pictures of each possible choice together, every time."""
    s, real, label = problem.settings, problem.real, int(problem.label_C[place])
    shown = as_shown(problem, images[place * s.ipc : (place + 1) * s.ipc])
    cells = [[cell for f in FACTORS[s.decode] for cell in naive_decode(image, f)] for image in shown]
    used = [
        [cell for cell, counts in zip(of_image, row, strict=True) if counts]
        for of_image, row in zip(cells, problem.mask_MP, strict=True)
    ]
    start, stop = real.train.offsets[label : label + 2]
    draws = []
    for step in range(s.steps, s.steps + worth.DRAWS):
        network = copy.deepcopy(draw_networks(problem, step).architecture.matcher).double()
        noise = draw_noise(problem, step)
        chosen = keyed_rng(SEED, "worth", step, label).choice(
            stop - start, min(s.real_batch, stop - start), replace=False
        )
        of_real = features(problem, network, list(real.train.images[start + chosen] / 255))
        draws.append(
            (noise[-1].double().numpy() if noise else None, of_real, [features(problem, network, u) for u in used])
        )

    def distance(picks: list[int]) -> float:
        parts = []
        for freq, of_real, of_stored in draws:
            of_set = np.concatenate([of_stored[i] for i in picks])
            if freq is None:
                parts.append(np.square(of_real.mean(0) - of_set.mean(0)).sum())
                continue
            a, b = (np.exp(1j * f @ freq.T).mean(0) for f in (of_real, of_set))
            squared = s.alpha * (abs(a) - abs(b)) ** 2 + (1 - s.alpha) * (abs(a - b) ** 2 - (abs(a) - abs(b)) ** 2)
            parts.append(np.sqrt(squared).mean())
        return float(np.mean(parts))

    order: list[int] = []
    for here in range(s.ipc):
        free = [i for i in range(s.ipc) if i not in order and (problem.mask_MP[i] == problem.mask_MP[here]).all()]
        order.append(min(free, key=lambda i: distance([*order, i])))
    return order


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decode": "multi"},
        {"decode": "bound", "decoded_per_class": 22},
        {"bits": 2},
        {"bits": 2, "chroma": "4:2:0"},
        {"metric": "mean"},
        {"alpha": 0.2, "sampler": "gaussian", "extractor": "stages"},
        {"steps": 0, "extractor": "stages", "stage_order": "rising"},
    ],
    ids=lambda settings: ",".join(settings) or "single",
)
def test_the_order_is_that_of_a_search_in_float64(make_setting, settings: dict[str, Any]) -> None:
    problem, images = make_setting(**settings)
    order = order_of_worth(problem, images, chunk=1000)
    assert order.tolist() == [naive_order(problem, images, place) for place in range(3)]
    assert (order != torch.arange(5)).any(1).sum() > 1  # else it would show nothing
    got = by_worth(problem, images, chunk=1000)
    assert got.equal(torch.cat([images[c * 5 : c * 5 + 5][order[c]] for c in range(3)]))


def test_images_of_bound_keep_to_what_they_are_decoded_to(make_setting) -> None:
    """22 of 25 decoded images: two stored images have five, three have four."""
    problem, images = make_setting(decode="bound", decoded_per_class=22)
    order = order_of_worth(problem, images, chunk=1000)
    assert order[:, :2].sort(1).values.tolist() == [[0, 1]] * 3
    free = order_of_worth(*make_setting(decode="bound"), chunk=1000)
    assert free[:, :2].sort(1).values.tolist() != [[0, 1]] * 3


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_do_not_change_the_order(make_setting, chunk: int) -> None:
    problem, images = make_setting(decode="multi")
    assert order_of_worth(problem, images, chunk=chunk).equal(order_of_worth(problem, images, chunk=1000))


def test_a_class_alone_has_the_same_order(make_setting) -> None:
    problem, images = make_setting()
    alone = dataclasses.replace(problem, label_C=np.array([1]), device_label_C=torch.tensor([1]))
    assert order_of_worth(alone, images[5:10], chunk=1000)[0].equal(order_of_worth(problem, images, chunk=1000)[1])


def test_one_image_a_class_costs_nothing(make_setting, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, images = make_setting(ipc=1)
    monkeypatch.delattr(worth, "_statistics")
    assert by_worth(problem, images, chunk=1000).equal(images)


def test_equal_images_keep_their_order() -> None:
    same = torch.ones(2, 4, 3, dtype=torch.float64)
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert greedy_order(same[:, 0] * 0.5, same, mask, ncfd.ncfd).tolist() == [0, 1, 2, 3]
