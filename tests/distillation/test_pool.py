"""The extractor pool: its cache, what its key depends on, interruption, and blending."""

import dataclasses
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ncfmkit.config import NetworkSettings, PoolSettings
from ncfmkit.distillation import pool as pool_module
from ncfmkit.distillation.pool import estimate_pool, open_pool, pool_key, snapshot_epochs
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir
from ncfmkit.images import labeled
from ncfmkit.networks import network_builder, resolve_network
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, accuracy, fresh_state

SETTINGS = PoolSettings(members=2, epochs=2, batch=8, lr=0.02)


@pytest.fixture
def open_tiny(real, tiny_network, runtime):
    def opened(members: int = 2, real=real, seed: int = 0, **settings):
        pool = dataclasses.replace(SETTINGS, members=members, **settings)
        return open_pool(real, [tiny_network], pool, seed=seed, runtime=runtime)

    return opened


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be trained")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_second_opening_trains_nothing(open_tiny, monkeypatch, capsys) -> None:
    first = open_tiny()
    assert "training 2 of 2 members, 2 epochs each" in capsys.readouterr().err
    assert first.seconds > 0
    monkeypatch.setattr(pool_module, "train", refuse)
    second = open_tiny()
    assert second.seconds == 0
    assert second.key == first.key
    assert second.accuracies == first.accuracies
    for member in range(2):
        assert same(first.initial[member], second.initial[member])
        assert same(first.final[member], second.final[member])
    assert capsys.readouterr().err == ""
    assert (cache_dir() / "pools" / first.key).is_dir()
    assert not list((cache_dir() / "pools").rglob("*.tmp"))


def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The keys of every training from now on."""
    calls: list[list[int]] = []
    train = pool_module.train

    def spy(*args: Any, **kwargs: Any) -> None:
        calls.append(kwargs["keys"])
        train(*args, **kwargs)

    monkeypatch.setattr(pool_module, "train", spy)
    return calls


def test_members_are_trained_from_their_keyed_initial_weights(open_tiny, real, tiny_network) -> None:
    pool = open_tiny()
    assert len(pool) == 2
    for member in range(2):
        assert same(pool.initial[member], fresh_state(network_builder(tiny_network, real), 0, "extractor", member))
        moved = max(float((pool.final[member][k] - v).abs().max()) for k, v in pool.initial[member].items())
        assert moved > 1e-3
    assert not same(pool.initial[0], pool.initial[1])
    assert not same(pool.final[0], pool.final[1])


def test_a_larger_pool_keeps_the_members_of_a_smaller_one(open_tiny, monkeypatch, capsys) -> None:
    small = open_tiny(members=1)
    capsys.readouterr()
    calls = trained(monkeypatch)
    large = open_tiny(members=3)
    assert calls == [[1], [2]]
    assert "training 2 of 3 members" in capsys.readouterr().err
    assert same(small.final[0], large.final[0])
    monkeypatch.setattr(pool_module, "train", refuse)
    assert len(open_tiny(members=2)) == 2


def test_an_interrupted_pool_goes_on_where_it_stopped(open_tiny, monkeypatch, tmp_path) -> None:
    train, calls = pool_module.train, []

    def interrupted(*args, **kwargs) -> None:
        calls.append(kwargs["keys"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(*args, **kwargs)

    monkeypatch.setattr(pool_module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_tiny(members=3)
    resumed = open_tiny(members=3)
    assert calls == [[0], [1], [1], [2]]

    monkeypatch.setattr(pool_module, "train", train)
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "another cache"))
    whole = open_tiny(members=3)
    for a, b in ((resumed.initial, whole.initial), (resumed.final, whole.final)):
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert resumed.accuracies == whole.accuracies


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "last byte": lambda c: c[:-1] + bytes([c[-1] ^ 1]),
    "truncated": lambda c: c[:-20],
    "empty": lambda c: b"",
    "text": lambda c: b"weights",
    "test accuracy": lambda c: c.replace(b'"test_accuracy\\": 0', b'"test_accuracy\\": 1'),
    "no checksum": lambda c: c.replace(b"sha256", b"sha265"),
    "metadata is no JSON": lambda c: c.replace(b'"{', b'"[', 1),
    "metadata is a list": lambda c: re.sub(rb'"{\\"test_acc.*?}"', b'"[1, 2]"', c),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_member_is_named_and_trained_again(open_tiny, monkeypatch, capsys, damage) -> None:
    whole = open_tiny()
    file = cache_dir() / "pools" / whole.key / "member-001.safetensors"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    capsys.readouterr()
    calls = trained(monkeypatch)
    mended = open_tiny()
    said = capsys.readouterr().err
    assert "member-001.safetensors is damaged" in said
    assert "training 1 of 2 members" in said
    assert calls == [[1]]
    assert file.read_bytes() == content
    assert same(mended.final[1], whole.final[1])


def test_an_unusable_cache_is_named(open_tiny, monkeypatch) -> None:
    monkeypatch.setenv("NCFMKIT_CACHE", "/dev/null/x")
    with pytest.raises(UserError, match=r"cache folder /dev/null/x/pools/\w+ cannot be used .*NCFMKIT_CACHE"):
        open_tiny()


def test_a_full_disk_keeps_the_members_that_are_done(open_tiny, monkeypatch) -> None:
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:  # after pool.json and the first member, each with its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full: .*member-001\.safetensors .*NCFMKIT_CACHE"):
            open_tiny()
    assert [p.name for p in Path(cache_dir()).rglob("*.safetensors")] == ["member-000.safetensors"]
    assert len(open_tiny()) == 2


def test_what_the_key_depends_on(real, make_real, tiny_network, runtime) -> None:
    def key(real=real, network=tiny_network, pool=SETTINGS, seed: int = 0, runtime: Runtime = runtime) -> str:
        return pool_key(real, network, pool, seed, runtime)

    base = key()
    assert key() == base
    assert key(pool=dataclasses.replace(SETTINGS, members=7)) == base
    assert key(runtime=dataclasses.replace(runtime, why="another reason")) == base
    others = [
        key(real=make_real(seed=1)),
        key(network=dataclasses.replace(tiny_network, width=4)),
        key(network=dataclasses.replace(tiny_network, depth=1)),
        key(network=dataclasses.replace(tiny_network, name="alexnet")),
        key(seed=1),
        key(runtime=dataclasses.replace(runtime, precision="bf16")),
        key(runtime=dataclasses.replace(runtime, compile=True)),
    ]
    changes: dict[str, Any] = {
        "epochs": 3, "batch": 4, "optimizer": "adamw", "lr": 0.1, "momentum": 0.1, "weight_decay": 0.1,
        "milestones": (0.5,), "gamma": 0.3, "augment": "none", "cutmix": 0.1,
    }  # fmt: skip
    assert changes.keys() == {f.name for f in dataclasses.fields(PoolSettings)} - {
        "members",
        "snapshots",
        "networks",
        "extractor_width",
    }
    others += [key(pool=dataclasses.replace(SETTINGS, **{k: v})) for k, v in changes.items()]
    assert len({base, *others}) == 1 + len(others)


def test_blend(make_pool, real) -> None:
    pool, build = make_pool(real)
    network = build()
    for member in (0, 1):
        for beta in (0.0, 1.0, 0.3):
            pool.blend(network, member, beta)
            for name, parameter in network.named_parameters():
                initial, final = pool.initial[member][name].double(), pool.final[member][name].double()
                expected = beta * initial + (1 - beta) * final
                tolerance = 0 if beta in (0.0, 1.0) else 1e-7
                torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=tolerance)
        pool.load(network, member)
        assert same({k: v.detach() for k, v in network.named_parameters()}, pool.final[member])


def test_blending_keeps_the_storage_of_the_parameters(make_pool, real) -> None:
    """A compiled network goes on reading the same memory."""
    pool, build = make_pool(real)
    network = build()
    before = [p.data_ptr() for p in network.parameters()]
    kept = {k: v.clone() for k, v in pool.final[0].items()}
    pool.blend(network, 0, 0.5)
    assert [p.data_ptr() for p in network.parameters()] == before
    assert same(pool.final[0], kept)


def test_accuracies_are_those_of_the_final_weights(open_tiny, real, tiny_network, runtime) -> None:
    pool = open_tiny()
    models = StackedModels(network_builder(tiny_network, real), 2, runtime)
    models.load(pool.final)
    assert pool.accuracies == pytest.approx(accuracy(models, labeled(real, real.test)))


def test_without_a_test_split_there_are_no_accuracies(open_tiny, make_real) -> None:
    assert open_tiny(real=make_real(test_counts=None)).accuracies == [None, None]


def test_members_take_architectures_in_turn(open_tiny, real, tiny_network, runtime, capsys) -> None:
    """Each is the member of that number of a pool of its architecture alone."""
    wide = dataclasses.replace(tiny_network, width=6)
    settings = dataclasses.replace(SETTINGS, members=3)
    stages = list(estimate_pool(real, [tiny_network, wide], settings, seed=0, runtime=runtime))
    assert [(stage.name, stage.work) for stage in stages] == [
        ("extractor pool, convnet", "2 x 2 epochs"),
        ("extractor pool, convnet", "1 x 2 epochs"),
    ]
    pool = open_pool(real, [tiny_network, wide], settings, seed=0, runtime=runtime)
    assert (len(pool), pool.architectures, len(pool.accuracies)) == (3, 2, 3)
    narrow = open_tiny(members=3)
    assert pool.key == f"{narrow.key}+{pool_key(real, wide, settings, 0, runtime)}"
    assert same(pool.final[0], narrow.final[0])
    assert same(pool.final[2], narrow.final[2])
    alone = open_pool(real, [wide], settings, seed=0, runtime=runtime)
    assert same(pool.final[1], alone.final[1])
    capsys.readouterr()
    assert open_pool(real, [tiny_network, wide], settings, seed=0, runtime=runtime).seconds == 0
    assert capsys.readouterr().err == ""


def test_snapshots_are_what_shorter_trainings_end_with(open_tiny, monkeypatch) -> None:
    """At a constant rate; they are kept in bfloat16, and change neither the final weights nor the key."""
    plain = open_tiny(epochs=4, milestones=())
    kept = open_tiny(epochs=4, milestones=(), snapshots=1)
    assert kept.key == plain.key
    half = open_tiny(epochs=2, milestones=())
    for member in range(2):
        initial, snapshot, final = kept.stages[member]
        assert same(initial, plain.initial[member])
        assert same(final, plain.final[member])
        assert same(snapshot, {k: v.bfloat16() for k, v in half.final[member].items()})
    monkeypatch.setattr(pool_module, "train", refuse)
    assert all(map(same, open_tiny(epochs=4, milestones=(), snapshots=1).stages[1], kept.stages[1]))
    assert [len(stages) for stages in open_tiny(epochs=4, milestones=()).stages] == [2, 2]


def test_snapshots_are_spread_evenly() -> None:
    for epochs, snapshots, expected in (
        (8, 3, (2, 4, 6)),
        (8, 7, tuple(range(1, 8))),
        (60, 11, tuple(range(5, 60, 5))),
    ):
        assert snapshot_epochs(PoolSettings(epochs=epochs, snapshots=snapshots)) == expected
    for epochs in range(1, 30):
        for snapshots in range(epochs):
            found = snapshot_epochs(PoolSettings(epochs=epochs, snapshots=snapshots))
            assert len(set(found)) == snapshots
            assert all(0 < epoch < epochs for epoch in found)


def test_a_member_without_the_snapshots_is_named_and_trained_again(open_tiny, monkeypatch, capsys) -> None:
    open_tiny(members=1, epochs=4)
    capsys.readouterr()
    calls = trained(monkeypatch)
    opened = open_tiny(members=1, epochs=4, snapshots=3)
    said = capsys.readouterr().err
    assert "member-000.safetensors has no snapshots after epochs 1, 2, 3: training this member again" in said
    assert calls == [[0]]
    assert all(map(same, open_tiny(members=1, epochs=4, snapshots=1).stages[0], opened.stages[0][::2]))
    assert calls == [[0]]  # fewer snapshots are among those that are there


def test_a_network_at_a_stage(make_pool, real) -> None:
    pool, build = make_pool(real)
    middle = {k: v.bfloat16() for k, v in pool.initial[1].items()}
    pool = dataclasses.replace(pool, stages=[pool.stages[0], [pool.initial[1], middle, pool.final[1]]])
    network = build()
    for stage, expected in ((0, pool.initial[1]), (1, {k: v.float() for k, v in middle.items()}), (2, pool.final[1])):
        pool.load(network, 1, stage)
        assert same({k: v.detach() for k, v in network.named_parameters()}, expected)


def test_labeled(real) -> None:
    data = labeled(real, real.train)
    assert data.labels.tolist() == [0] * 7 + [1] * 5 + [2] * 9
    assert data.classes == 3
    assert len(data) == 21


def test_resolve_network_says_the_depth() -> None:
    for size, depth in ((8, 2), (28, 3), (32, 3), (64, 4), (128, 5)):
        assert resolve_network(NetworkSettings(), size).depth == depth
    assert resolve_network(NetworkSettings(depth=1), 32).depth == 1
    assert resolve_network(NetworkSettings(name="resnet18"), 32).depth is None
