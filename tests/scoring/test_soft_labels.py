"""Soft labels, against a calculation of their own in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ncfmkit.config import LabelSettings, NetworkSettings, Settings
from ncfmkit.distillation.pool import Pool
from ncfmkit.errors import UserError
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.jobs.relabel import teachers_of
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring.soft_labels import CERTAIN, Teachers

STAGES = 3  # of each of the two members


@pytest.fixture
def pool(real: RealData, make_pool: Callable) -> Pool:
    """Untrained networks whose last layer is enlarged, so that they are as sure as trained ones."""
    tiny, _ = make_pool(real, members=2 * STAGES)
    sure = [{k: v * (8 if "classifier" in k else 1) for k, v in state.items()} for state in tiny.final]
    return dataclasses.replace(tiny, stages=[sure[:STAGES], sure[STAGES:]], accuracies=[0.9, 0.8])


@pytest.fixture
def teachers(real: RealData, tiny_network: NetworkSettings, runtime: Runtime, pool: Pool) -> Callable[..., Teachers]:
    def made(*, pool: Pool = pool, **labels: Any) -> Teachers:
        settings = Settings(network=tiny_network, labels=LabelSettings(soft=True, **labels))
        return teachers_of(real, settings, settings.extractors, pool, runtime)

    return made


def expected(
    real: RealData, build: Callable, states: list[dict], data: LabeledImages, temperature: float
) -> np.ndarray:
    """The mean log-probability, float64 `[N, K]`."""
    network = build().double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (real.mean, real.std))
    x_NCHW = (torch.from_numpy(np.array(data.images)).double() / 255 - mean) / std
    found = []
    for state in states:
        network.load_state_dict({k: v.double() for k, v in state.items()})
        logits_NK = network(x_NCHW).detach().numpy() / temperature
        found.append(logits_NK - np.log(np.exp(logits_NK).sum(1, keepdims=True)))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("stages", "temperature"), [(1, 1.0), (2, 1.0), (3, 2.5)])
def test_soft_labels_are_the_mean_log_probability_of_the_last_stages(
    real: RealData, make_pool: Callable, pool: Pool, teachers: Callable, stages: int, temperature: float
) -> None:
    _, build = make_pool(real)
    data = labeled(real, real.train)
    taught = teachers(stages=stages, temperature=temperature).teach(data)
    states = [state for of_member in pool.stages for state in of_member[-stages:]]
    log_NK = expected(real, build, states, data, temperature)
    wrong_N = log_NK.argmax(1) != data.labels.numpy()
    assert 0 < wrong_N.sum() < len(data)
    assert taught.wrong == wrong_N.sum()
    assert taught.logits.dtype == torch.float16
    got = taught.logits.double().numpy()
    # float16 has 11 bits; float32's error through a tiny network is far below that
    assert np.abs(got - log_NK)[~wrong_N].max() <= 2 * 2**-11 * np.abs(log_NK).max()
    p_NK = np.exp(log_NK) / np.exp(log_NK).sum(1, keepdims=True)
    assert taught.certainty == pytest.approx(p_NK[np.arange(len(p_NK)), data.labels].mean(), rel=1e-4)


def test_images_that_the_teachers_get_wrong_keep_their_hard_label(real: RealData, teachers: Callable) -> None:
    data = labeled(real, real.train)
    taught = teachers().teach(data)
    p_NK = taught.logits.float().softmax(1)
    assert (p_NK.argmax(1) == data.labels).all()
    hard_N = (taught.logits == -CERTAIN).sum(1) == data.classes - 1
    assert int(hard_N.sum()) == taught.wrong
    assert torch.allclose(p_NK[hard_N], F.one_hot(data.labels, data.classes).float()[hard_N], atol=1e-12)


def test_the_labels_of_an_image_do_not_depend_on_the_others(real: RealData, teachers: Callable) -> None:
    data = labeled(real, real.train)
    whole = teachers().teach(data).logits
    some = dataclasses.replace(data, images=data.images[5:9], labels=data.labels[5:9])
    assert torch.allclose(teachers().teach(some).logits.float(), whole[5:9].float(), rtol=2**-9, atol=1e-4)


def test_very_sure_teachers_stay_in_the_range_of_float16(real: RealData, pool: Pool, teachers: Callable) -> None:
    sure = [[{k: v * 1e4 if "classifier" in k else v for k, v in state.items()} for state in of] for of in pool.stages]
    logits = teachers(pool=dataclasses.replace(pool, stages=sure)).teach(labeled(real, real.train)).logits
    assert logits.isfinite().all()
    assert logits.min() >= -CERTAIN


def test_an_extractor_that_guesses_cannot_teach(pool: Pool, teachers: Callable) -> None:
    for accuracy in (0.1, 1 / 3):
        with pytest.raises(UserError, match=r"extractor 1 .* chance is 33\.3%: .*--pool-epochs.*--soft-labels"):
            teachers(pool=dataclasses.replace(pool, accuracies=[0.9, accuracy]))
    teachers(pool=dataclasses.replace(pool, accuracies=[0.34, None]))
