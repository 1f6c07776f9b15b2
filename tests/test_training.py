"""The training loop against naive loops, its draws, and stacked models against single networks.

Float32 is judged by the naive loop's own distance from float64 (`rounding.py`).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rounding import EPS, allowed, flat, off, smooth

from ncfmkit import augment, training
from ncfmkit.config import NetworkSettings, StudentSettings, TrainSettings
from ncfmkit.errors import NonFiniteLossError
from ncfmkit.images import DeviceImages, LabeledImages, labeled
from ncfmkit.networks import network_builder
from ncfmkit.progress import Tracker
from ncfmkit.rng import keyed_rng
from ncfmkit.training import StackedModels, accuracy, batch_plan, class_hits, fresh_state, train

PLAIN: dict[str, Any] = {"epochs": 3, "batch": 8, "augment": "none", "cutmix": 0.0, "milestones": ()}

# biases before an instance norm: their gradient is rounding alone, which AdamW enlarges
NO_GRADIENT = {"blocks.0.bias", "blocks.4.bias"}


def builder(real, width: int = 8):
    return network_builder(NetworkSettings(name="convnet", width=width, depth=2), real)


def bar() -> Tracker:
    return Tracker("tests", 1, None)


def trained(real, runtime, settings: TrainSettings, keys=(0,), data=None, seed: int = 0, build=None) -> list[dict]:
    models = StackedModels(build or builder(real), len(keys), runtime)
    models.load([fresh_state(build or builder(real), 1, "member", key) for key in keys])
    data = data or [labeled(real, real.train)] * len(keys)
    train(models, data, settings, seed=seed, keys=keys, bar=bar())
    return models.states()


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [(10, 10, (1, 10)), (10, 128, (1, 10)), (11, 10, (2, 6)), (100, 30, (4, 25)), (7, 3, (3, 3)), (5, 1, (5, 1))],
)
def test_batch_plan(count: int, batch: int, expected: tuple[int, int]) -> None:
    assert batch_plan(count, batch) == expected


def test_batch_plan_in_general() -> None:
    for count in range(1, 60):
        for batch in range(1, 40):
            steps, size = batch_plan(count, batch)
            assert steps == math.ceil(count / batch)
            assert size <= batch
            assert steps * size >= count
            assert steps * (size - 1) < count


def test_every_image_is_used_in_every_epoch(real, runtime, monkeypatch) -> None:
    batches: list[np.ndarray] = []
    original = DeviceImages.at

    def spy(self, index):
        batches.append(index.numpy())
        return original(self, index)

    monkeypatch.setattr(DeviceImages, "at", spy)
    trained(real, runtime, TrainSettings(**(PLAIN | {"epochs": 4, "batch": 4})))
    steps, size = batch_plan(21, 4)
    assert [len(b) for b in batches] == [size] * steps * 4
    orders = [np.concatenate(batches[e * steps : (e + 1) * steps]) for e in range(4)]
    for order in orders:
        counts = np.bincount(order, minlength=21)
        assert counts.min() == 1
        assert counts.sum() == steps * size
        assert counts.max() <= 2
    assert not np.array_equal(orders[0], orders[1])


def with_gradient(state: dict) -> list[torch.Tensor]:
    """The parameters that the loss depends on, in the order of their names."""
    return [state[name] for name in sorted(state.keys() - NO_GRADIENT)]


def normalized(real, dtype: torch.dtype) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (real.mean, real.std))
    return (torch.from_numpy(real.train.images).to(dtype) / 255 - mean) / std


def naive_loop(real, optimizer: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Six epochs of the full batch, by the optimizers' formulas."""
    network = smooth(builder(real))().to(dtype)
    network.load_state_dict(fresh_state(builder(real), 1, "member", 0))
    x, label = normalized(real, dtype), torch.tensor([0] * 7 + [1] * 5 + [2] * 9)
    memory: list[dict[str, Any]] = [{} for _ in network.parameters()]
    for epoch in range(6):
        lr = 0.01 * [1, 1, 0.1, 0.1, 0.01, 0.01][epoch]
        grads = torch.autograd.grad(F.cross_entropy(network(x), label), list(network.parameters()))
        with torch.no_grad():
            for p, g, m in zip(network.parameters(), grads, memory, strict=True):
                if optimizer == "sgd":
                    g = g + 0.05 * p
                    m["v"] = 0.8 * m["v"] + g if "v" in m else g
                    p.sub_(lr * m["v"])
                else:
                    p.mul_(1 - lr * 0.05)
                    m["m"] = 0.9 * m.get("m", 0) + 0.1 * g
                    m["v"] = 0.999 * m.get("v", 0) + 0.001 * g**2
                    t = epoch + 1
                    p.sub_(lr * (m["m"] / (1 - 0.9**t)) / ((m["v"] / (1 - 0.999**t)).sqrt() + 1e-8))
    return {k: v.detach() for k, v in network.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_full_batch_training_equals_a_naive_loop(real, runtime, optimizer: Any) -> None:
    settings = TrainSettings(
        epochs=6, batch=100, optimizer=optimizer, lr=0.01, momentum=0.8, weight_decay=0.05, augment="none", cutmix=0.0,
        milestones=(1 / 3, 2 / 3), gamma=0.1,
    )  # fmt: skip
    (got,) = trained(real, runtime, settings, build=smooth(builder(real)))
    plain, exact = (with_gradient(naive_loop(real, optimizer, dtype)) for dtype in (torch.float32, torch.float64))
    assert off(with_gradient(got), exact) <= allowed(plain, exact)
    assert off(with_gradient(fresh_state(builder(real), 1, "member", 0)), exact) > 1e-3  # it moved


def with_soft_labels(real, logits: torch.Tensor) -> LabeledImages:
    return dataclasses.replace(labeled(real, real.train), soft_labels=logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_training_on_soft_labels_equals_a_naive_loop(real, runtime, dtype: torch.dtype) -> None:
    """One step of SGD; the loss is -sum p log q, with p from the logits by hand."""
    logits = (3 * torch.randn(21, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    settings = TrainSettings(
        **(PLAIN | {"epochs": 1, "batch": 100, "lr": 0.1}), momentum=0.0, weight_decay=0.0, optimizer="sgd"
    )
    (got,) = trained(real, runtime, settings, data=[with_soft_labels(real, logits)], build=smooth(builder(real)))
    start = fresh_state(builder(real), 1, "member", 0)

    def naive_gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        network = smooth(builder(real))().to(dtype)
        network.load_state_dict(start)
        x, wide = normalized(real, dtype), logits.to(dtype)
        p = wide.exp() / wide.exp().sum(1, keepdim=True)
        q = network(x).exp() / network(x).exp().sum(1, keepdim=True)
        loss = -(p * q.log()).sum() / 21
        names = [name for name, _ in network.named_parameters()]
        return with_gradient(dict(zip(names, torch.autograd.grad(loss, list(network.parameters())), strict=True)))

    exact = [-0.1 * g for g in naive_gradients(torch.float64)]
    # float32 rounds the sum of weight and step as well, by EPS / 2 of the weight at most
    plain = [(w - 0.1 * g) - w for w, g in zip(with_gradient(start), naive_gradients(torch.float32), strict=True)]
    moved = [after - before for after, before in zip(with_gradient(got), with_gradient(start), strict=True)]
    assert off(moved, exact) <= allowed(plain, exact)
    assert float(flat(exact).norm()) > 1e-2


def test_certain_soft_labels_train_as_hard_ones_to_the_last_byte(real, runtime) -> None:
    certain = F.one_hot(labeled(real, real.train).labels, 3) * 1000.0  # softmax is exactly 0 and 1
    settings = TrainSettings(epochs=2, batch=8, augment="color_crop_flip_scale_rotate", cutmix=0.5)
    (hard,) = trained(real, runtime, settings)
    (soft,) = trained(real, runtime, settings, data=[with_soft_labels(real, certain)])
    assert largest_difference(hard, soft) == 0


@pytest.mark.parametrize("batch", [1, 4, 7, 12, 256])
def test_accuracy_equals_a_naive_count(real, runtime, batch: int) -> None:
    models = StackedModels(builder(real), 2, runtime)
    states = [fresh_state(builder(real), 1, "member", key) for key in range(2)]
    models.load(states)
    data, expected = labeled(real, real.test), []
    network = builder(real)()
    for state in states:
        network.load_state_dict(state)
        correct = [0, 0, 0]
        for image, label in zip(real.test.images, [0] * 4 + [1] * 3 + [2] * 5, strict=True):
            x = (torch.from_numpy(image) / 255 - torch.tensor(real.mean).view(3, 1, 1)) / torch.tensor(real.std).view(
                3, 1, 1
            )
            correct[label] += int(network(x[None])[0].argmax()) == label
        expected.append(correct)
    assert class_hits(models, data, batch=batch).tolist() == expected
    assert accuracy(models, data, batch=batch) == [sum(correct) / 12 for correct in expected]
    assert 0 < sum(map(sum, expected)) < 24


def test_accuracy_counts_no_padding(runtime, real) -> None:
    """All but the last image of the padded batch are wrong."""
    models = StackedModels(builder(real), 1, runtime)
    models.load([{k: torch.zeros_like(v) for k, v in fresh_state(builder(real), 0).items()}])  # always says class 0
    images = np.zeros((5, 3, 8, 8), np.uint8)
    data = LabeledImages(images=images, labels=torch.tensor([1, 1, 1, 1, 0]), mean=real.mean, std=real.std, classes=3)
    assert accuracy(models, data, batch=3) == [pytest.approx(0.2)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_three_models_side_by_side_equal_three_alone(make_real, runtime, optimizer: Any) -> None:
    """Judged by how far an ulp in the initial weights leads: every step rounds by about as much."""
    real = make_real()
    data = [labeled(make_real(seed=s), make_real(seed=s).train) for s in range(3)]
    settings = TrainSettings(
        epochs=2, batch=7, optimizer=optimizer, lr=1e-3, augment="color_crop_flip_scale_rotate", cutmix=0.5
    )
    build, keys = smooth(builder(real)), (4, 9, 2)
    together = trained(real, runtime, settings, keys=keys, data=data, build=build)
    for r, key in enumerate(keys):
        start = fresh_state(builder(real), 1, "member", key)
        signs = {k: 1 - 2 * (torch.arange(v.numel()) % 2).view(v.shape) for k, v in start.items()}
        ends = []
        for state in (start, {k: v * (1 + EPS * signs[k]) for k, v in start.items()}):
            models = StackedModels(build, 1, runtime)
            models.load([state])
            train(models, [data[r]], settings, seed=0, keys=[key], bar=bar())
            ends.append(with_gradient(models.states()[0]))
        assert off(with_gradient(together[r]), ends[0]) <= allowed(ends[1], ends[0])
        assert off(ends[0], with_gradient(start)) > 1e-3  # it moved
    assert largest_difference(together[0], together[1]) > 1e-2


def batch_normed(real):
    return network_builder(NetworkSettings(name="convnetbn", width=8, depth=2), real)


def with_torchs_batch_norm(network: Any, state: dict) -> Any:
    """The same ConvNet with torch's batch norm, which keeps the statistics of the batch that it saw last."""
    for place in (1, 5):
        network.blocks[place] = torch.nn.BatchNorm2d(8, momentum=1.0)
    unknown = network.load_state_dict(state, strict=False).unexpected_keys
    assert unknown == ["blocks.1.mean", "blocks.1.var", "blocks.5.mean", "blocks.5.var"]
    return network.double()


@pytest.mark.parametrize("count", [1, 2])
def test_batch_norms_take_their_statistics_from_the_training_images_as_they_are(make_real, runtime, count) -> None:
    """Against torch's batch norm in float64, which sees all images as one batch; augmentation leaves no trace."""
    reals = [make_real(seed=seed) for seed in range(count)]
    settings = TrainSettings(epochs=3, batch=8, augment="color_flip")
    build, data = batch_normed(reals[0]), [labeled(r, r.train) for r in reals]
    models = StackedModels(build, count, runtime)
    models.load([fresh_state(build, 1, "member", key) for key in range(count)])
    train(models, data, settings, seed=0, keys=range(count), bar=bar())
    test = labeled(reals[0], reals[0].test)
    got_RNK = torch.cat([logits_RBK for _, logits_RBK in training.logits_of(models, test, batch=5)], dim=1)
    for state, real, got_NK in zip(models.states(), reals, got_RNK, strict=True):
        network = with_torchs_batch_norm(build(), state)
        size = len(real.train.images)
        network.train()(normalized(real, torch.float64))
        for place in (1, 5):
            norm, key = network.blocks[place], f"blocks.{place}"
            maps = size * (8 if place == 1 else 4) ** 2
            torch.testing.assert_close(state[f"{key}.mean"].double(), norm.running_mean, rtol=1e-4, atol=1e-5)
            biased = norm.running_var * (maps - 1) / maps  # torch keeps the unbiased variance
            torch.testing.assert_close(state[f"{key}.var"].double(), biased, rtol=1e-4, atol=1e-5)
            norm.running_var.copy_(biased)
        x_NCHW = DeviceImages(test, torch.device("cpu")).normalized(torch.arange(len(test))).double()
        torch.testing.assert_close(got_NK.detach().double(), network.eval()(x_NCHW).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_statistics_are_loaded_with_the_parameters(real, runtime, count) -> None:
    models = StackedModels(batch_normed(real), count, runtime)
    data = labeled(real, real.train)
    models.load([fresh_state(batch_normed(real), 1, key) for key in range(count)])
    train(models, [data] * count, TrainSettings(**PLAIN), seed=0, keys=range(count), bar=bar())
    expected, trained_states = accuracy(models, data), models.states()
    assert all(bool((state["blocks.1.mean"] != 0).all()) for state in trained_states)
    again = StackedModels(batch_normed(real), count, runtime)
    again.load(trained_states)
    assert accuracy(again, data) == expected
    assert [largest_difference(a, b) for a, b in zip(again.states(), trained_states, strict=True)] == [0.0] * count


def test_batch_norms_train_by_the_batch_after_they_were_tested(real, runtime) -> None:
    """A test in between changes nothing about the training."""
    build = batch_normed(real)

    def states(between) -> dict:
        models = StackedModels(build, 1, runtime)
        models.load([fresh_state(build, 1)])
        data = labeled(real, real.train)
        train(models, [data], TrainSettings(**PLAIN), seed=0, keys=[0], bar=bar(), after_epoch=between(models, data))
        return models.states()[0]

    plain = states(lambda models, data: None)
    tested = states(lambda models, data: lambda epoch: accuracy(models, data))
    assert all(torch.equal(plain[k], tested[k]) for k in plain)


def test_statistics_are_of_evenly_spaced_images_where_there_are_many(real, runtime, monkeypatch) -> None:
    monkeypatch.setattr(training, "SETTLING", 5)
    seen: list[list[int]] = []
    original = DeviceImages.normalized

    def spy(self, index_B: torch.Tensor) -> torch.Tensor:
        seen.append(index_B.tolist())
        return original(self, index_B)

    monkeypatch.setattr(DeviceImages, "normalized", spy)
    trained(real, runtime, TrainSettings(**PLAIN), build=batch_normed(real))
    assert [0, 5, 10, 15, 20] in seen


def test_stacked_models_load_and_give_back_states(real, runtime) -> None:
    states = [fresh_state(builder(real), 1, "member", key) for key in range(3)]
    for size in (1, 3):
        models = StackedModels(builder(real), size, runtime)
        models.load(states[:size])
        got = models.states()
        assert len(got) == size
        for a, b in zip(got, states, strict=False):
            assert largest_difference(a, b) == 0
        models.load(states[-size:])
        assert largest_difference(got[0], states[0]) == 0  # a copy


def test_logits_are_float32_whatever_the_precision(real, make_real) -> None:
    from ncfmkit.runtime import Runtime

    for precision in ("fp32", "bf16"):
        runtime = Runtime(device=torch.device("cpu"), precision=precision, compile=False, why="")
        for size in (1, 2):
            models = StackedModels(builder(real), size, runtime)
            logits = models.logits(torch.rand(size, 4, 3, 8, 8))
            assert logits.shape == (size, 4, 3)
            assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("milestones", "gamma", "epochs", "expected"),
    [
        ((2 / 3, 5 / 6), 0.2, 6, [1, 1, 1, 1, 0.2, 0.04]),
        ((0.2, 0.4, 0.6, 0.8), 0.5, 10, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]),
        ((), 0.5, 3, [1, 1, 1]),
        ((0.5,), 0.1, 1, [1]),
    ],
)
def test_learning_rate_schedule(real, runtime, monkeypatch, milestones, gamma, epochs, expected) -> None:
    made, rates, done = [], [], []
    original = training._optimizer

    def spy(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "_optimizer", spy)
    models = StackedModels(builder(real), 1, runtime)
    settings = TrainSettings(**(PLAIN | {"epochs": epochs, "milestones": milestones, "gamma": gamma, "lr": 0.3}))

    def after_epoch(epoch: int) -> None:
        done.append(epoch)
        rates.append(made[0].param_groups[0]["lr"])

    tracker = bar()
    data = [labeled(real, real.train)]
    train(models, data, settings, seed=0, keys=[0], bar=tracker, after_epoch=after_epoch)
    assert rates == pytest.approx([0.3 * e for e in expected])
    assert done == list(range(1, epochs + 1))
    assert tracker.done == epochs


@pytest.mark.parametrize(
    "settings", [{"optimizer": "sgd", "lr": 0.02}, {"optimizer": "adamw", "lr": 3e-3, "augment": "color_crop"}]
)
def test_learning_works(make_real, runtime, settings: dict) -> None:
    real = make_real((20, 15, 25), test_counts=(10, 10, 10))
    models = StackedModels(builder(real), 1, runtime)
    models.load([fresh_state(builder(real), 1, "member", 0)])
    train(
        models,
        [labeled(real, real.train)],
        TrainSettings(**({"epochs": 15, "batch": 16, "cutmix": 0.3} | settings)),
        seed=0,
        keys=[0],
        bar=bar(),
    )
    assert accuracy(models, labeled(real, real.test))[0] > 0.8


def test_a_non_finite_loss_names_the_epoch(real, runtime) -> None:
    settings = TrainSettings(**(PLAIN | {"epochs": 5, "batch": 100, "lr": 1e30}))
    message = r"the training loss became non-finite in epoch [23]: lower the learning rate"
    with pytest.raises(NonFiniteLossError, match=message):
        trained(real, runtime, settings)


def test_fresh_state_is_keyed_and_leaves_the_global_generator_alone(real) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fresh_state(builder(real), 3, "extractor", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert largest_difference(first, fresh_state(builder(real), 3, "extractor", 0)) == 0
    for other in ((3, "extractor", 1), (4, "extractor", 0), (3, "student", 0)):
        assert largest_difference(first, fresh_state(builder(real), *other)) > 0.01
    assert not any(v.requires_grad for v in first.values())


def test_results_do_not_depend_on_global_random_numbers(real, runtime) -> None:
    settings = TrainSettings(epochs=2, batch=8, augment="color_crop_flip_scale_rotate")
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(trained(real, runtime, settings)[0])
    assert largest_difference(*results) == 0
    assert largest_difference(results[0], trained(real, runtime, settings, seed=1)[0]) > 1e-4


def test_float_images_train_as_uint8_ones_do(real, runtime) -> None:
    settings = TrainSettings(**PLAIN)
    as_bytes = labeled(real, real.train)
    as_floats = LabeledImages(
        images=torch.from_numpy(real.train.images) / 255,
        labels=as_bytes.labels,
        mean=real.mean,
        std=real.std,
        classes=3,
    )
    (a,), (b,) = (trained(real, runtime, settings, data=[d]) for d in (as_bytes, as_floats))
    assert largest_difference(a, b) < 1e-6


def test_one_geometric_operation_per_batch_and_a_draw_per_image(real, runtime, monkeypatch) -> None:
    rows: list[torch.Tensor] = []
    original = training.apply

    def spy(x, operations, drawn, u):
        assert drawn == augment.drawn(operations, u)
        rows.append(u)
        return original(x, operations, drawn, u)

    monkeypatch.setattr(training, "apply", spy)
    trained(real, runtime, TrainSettings(epochs=4, batch=7, augment="crop_scale_rotate"))
    assert len(rows) == 12
    assert all(len(u[:, 0].unique()) == 1 for u in rows)
    assert all(len(u[:, k].unique()) == 7 for u in rows for k in range(1, u.shape[1]))
    assert len({float(u[0, 0]) for u in rows}) == 12


def plain_batches(data: LabeledImages, settings: TrainSettings, seed: int, key: int) -> list[tuple[torch.Tensor, ...]]:
    """Images and targets of every batch, one after the other, each drawn when its turn comes."""
    batches = list[tuple[torch.Tensor, ...]]()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    for epoch in range(settings.epochs):
        rng, (steps, size) = keyed_rng(seed, "train", key, epoch), batch_plan(len(data), settings.batch)
        for index in np.resize(rng.permutation(len(data)), steps * size).reshape(steps, size):
            u = rng.random((size, augment.DRAWS), dtype=np.float32)
            u[:, augment.PICK] = u[0, augment.PICK]
            pixels = torch.as_tensor(data.images[index])
            pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
            x = augment.augment((pixels - mean) / std, settings.augment, torch.from_numpy(u))
            rows = torch.from_numpy(index)
            soft = data.soft_labels
            target = F.one_hot(data.labels[rows], 3).float() if soft is None else soft[rows].float().softmax(1)
            (decide, lam, *center), order = rng.random(4), rng.permutation(size)
            if decide < settings.cutmix:
                side = x.shape[-1]
                half, place = side * math.sqrt(1 - lam) / 2, np.arange(side)
                row, column = ((place >= round(c * side - half)) & (place < round(c * side + half)) for c in center)
                box = torch.from_numpy(row[:, None] & column)
                share = 1 - int(box.sum()) / side**2
                x, target = torch.where(box, x[order], x), share * target + (1 - share) * target[order]
            batches.append((x, target))
    return batches


@pytest.mark.parametrize("kind", ["uint8", "float", "soft labels"])
def test_batches_are_those_drawn_one_by_one_to_the_last_byte(real, runtime, monkeypatch, kind: str) -> None:
    data = labeled(real, real.train)
    if kind == "float":
        data = dataclasses.replace(data, images=torch.from_numpy(real.train.images) / 255)
    elif kind == "soft labels":
        logits = torch.randn(21, 3, generator=torch.Generator().manual_seed(0)).half()
        data = dataclasses.replace(data, soft_labels=logits)
    seen: list[list[torch.Tensor]] = [[], []]
    logits_of, cross_entropy = StackedModels.logits, F.cross_entropy

    def recorded_logits(self, x_RBCHW: torch.Tensor, **how: Any) -> torch.Tensor:
        seen[0].append(x_RBCHW)
        return logits_of(self, x_RBCHW, **how)

    def recorded_loss(logits_NK: torch.Tensor, target_NK: torch.Tensor) -> torch.Tensor:
        seen[1].append(target_NK)
        return cross_entropy(logits_NK, target_NK)

    monkeypatch.setattr(StackedModels, "logits", recorded_logits)
    monkeypatch.setattr(F, "cross_entropy", recorded_loss)
    settings = TrainSettings(epochs=5, batch=8, augment="color_crop_flip_scale_rotate_cutout", cutmix=0.7)
    trained(real, runtime, settings, keys=(4, 9), data=[data] * 2, seed=3)
    plain = [plain_batches(data, settings, 3, key) for key in (4, 9)]
    assert len(seen[0]) == len(plain[0]) == 15
    for x_RBCHW, target_NK, *rows in zip(*seen, *plain, strict=True):
        for r, (x, target) in enumerate(rows):
            assert torch.equal(x_RBCHW[r], x)
            assert torch.equal(target_NK.unflatten(0, (2, -1))[r], target)


@pytest.mark.parametrize(("settings", "share"), [({"cutmix": 0.0}, 0.0), ({"cutmix": 1.0}, 1.0), ({}, 0.5)])
@pytest.mark.parametrize("kind", [TrainSettings, StudentSettings])
def test_batches_are_mixed_as_often_as_asked(
    real, runtime, monkeypatch, kind: Any, settings: dict, share: float
) -> None:
    """By default half of the batches; only an image with a box pasted in has a mixed target."""
    originals = {image.numpy().tobytes() for image in normalized(real, torch.float32)}
    mixed: list[bool] = []
    logits, cross_entropy = StackedModels.logits, F.cross_entropy
    seen: list[torch.Tensor] = []

    def recorded_logits(self, x_RBCHW: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.append(x_RBCHW[0])
        return logits(self, x_RBCHW, **how)

    def recorded_loss(logits_NK: torch.Tensor, target_NK: torch.Tensor) -> torch.Tensor:
        pasted = [image.numpy().tobytes() not in originals for image in seen.pop()]
        for target_K, is_pasted in zip(target_NK, pasted, strict=True):
            assert target_K.max() == 1 or is_pasted
        mixed.append(bool((target_NK.max(1).values < 1).any()))
        return cross_entropy(logits_NK, target_NK)

    monkeypatch.setattr(StackedModels, "logits", recorded_logits)
    monkeypatch.setattr(F, "cross_entropy", recorded_loss)
    trained(real, runtime, kind(**({"epochs": 30, "batch": 7, "augment": "none"} | settings)))
    assert len(mixed) == 90
    # a box may be empty, or all that it covers may be pasted from an image of the same class
    assert 0.6 * share <= np.mean(mixed) <= share + 0.1 * (0 < share < 1)
