"""The extractor pool: networks trained on the real data, kept at stages of their training (docs/method.md, section 3).

A pool lives in the cache under a key of everything that decides its weights; members are files of their own, so a pool
that was interrupted continues where it stopped, and a larger pool keeps the members of a smaller one. Several ranks
train a part of the members each.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ncfmkit import distributed
from ncfmkit.config import NetworkSettings, PoolSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.files import METADATA_KEY, MOVE, cache_dir, digest, locked, writable, write_atomic
from ncfmkit.images import labeled
from ncfmkit.in_use import hold
from ncfmkit.networks import check_extractors, network_builder, resolve_network
from ncfmkit.progress import notice, plural, track
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.training import (
    StackedModels,
    Weights,
    accuracy,
    accuracy_seconds,
    fresh_state,
    train,
    training_seconds,
)

INITIAL, FINAL, SNAPSHOT = "initial", "final", "epoch-{}"  # stages of a member, in its file
TITLE = "extractor pool"
NOT_IN_KEY = ("members", "snapshots", "networks", "extractor_width")  # of the settings: no member depends on them
ABOUT = "pool.json"  # what a pool belongs to
UNREADABLE = (SafetensorError, OSError, ValueError, AttributeError)  # raised by reading a damaged member
POOL_FORMAT = 1  # raised when training changes in a way that the settings do not show


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network at stages of its training, and its accuracy on the test split, a fraction; None: there is none."""

    stages: dict[str, Weights]  # by name: `INITIAL`, `FINAL`, and `SNAPSHOT` of an epoch
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The weights of every member at stages of its training, in main memory.

    Members of several architectures take them in turn: member m has number `m % architectures`.
    """

    key: str  # of several architectures, that of each
    stages: list[list[Weights]]  # of each member: at initialization, snapshots, at the end
    accuracies: list[float | None]  # on the test split, fractions; None where the source has no test split
    seconds: float  # spent training in this run; 0 where all came from the cache
    architectures: int = 1

    @classmethod
    def empty(cls) -> "Pool":
        """A pool without members, to check settings with before any is trained."""
        return cls(key="", stages=[], accuracies=[], seconds=0.0)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def initial(self) -> list[Weights]:
        """Of each member."""
        return [stages[0] for stages in self.stages]

    @property
    def final(self) -> list[Weights]:
        """Of each member."""
        return [stages[-1] for stages in self.stages]

    def describe(self) -> str:
        """One line that says where the pool came from and how good its members are."""
        made = f"trained in {self.seconds:.0f} s" if self.seconds else "from the cache"
        known = sorted(a for a in self.accuracies if a is not None)
        ends = dict.fromkeys(f"{a:.1%}" for a in (*known[:1], *known[-1:]))
        accuracy = f"test accuracy {' to '.join(ends)}" if known else "no test split"
        return f"extractor pool: {plural(len(self), 'member')}, {made}, {accuracy}"

    def placed(self, device: torch.device, *, resident: bool) -> "Pool":
        """The pool for steps on a device: where that is a GPU, its weights are there, or pinned in main memory."""
        if device.type != "cuda":
            return self

        def place(state: Weights) -> Weights:
            return {k: v.to(device) if resident else v.pin_memory() for k, v in state.items()}

        return dataclasses.replace(self, stages=[list(map(place, of_member)) for of_member in self.stages])

    @torch.no_grad()
    def blend(self, network: nn.Module, member: int, beta: float) -> None:
        """Sets `network` to `beta * initial + (1 - beta) * final` of a member, in place."""
        initial, final = self.stages[member][0], self.stages[member][-1]
        for name, parameter in network.named_parameters():
            parameter.copy_(final[name], non_blocking=True)
            if beta > 0:
                parameter.lerp_(initial[name].to(parameter.device, non_blocking=True), beta)

    @torch.no_grad()
    def load(self, network: nn.Module, member: int, stage: int = -1) -> None:
        """Sets `network` to a member's weights at a stage of its training, the end by default, in place."""
        for name, parameter in network.named_parameters():
            # a snapshot is widened on the device: a copy from pinned memory that changes the type would wait
            parameter.copy_(self.stages[member][stage][name].to(parameter.device, non_blocking=True))


def snapshot_epochs(pool: PoolSettings) -> tuple[int, ...]:
    """The epochs after which a member's state is kept, beside the last one: evenly spaced."""
    return tuple(round(pool.epochs * k / (pool.snapshots + 1)) for k in range(1, pool.snapshots + 1))


def _stage_names(pool: PoolSettings) -> list[str]:
    return [INITIAL, *map(SNAPSHOT.format, snapshot_epochs(pool)), FINAL]


def pool_key(real: RealData, network: NetworkSettings, pool: PoolSettings, seed: int, runtime: Runtime) -> str:
    """A digest of what decides the members' weights; how many members and snapshots there are is not part of it."""
    content = _pool_content(real, network, pool, seed, runtime)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _pool_content(
    real: RealData, network: NetworkSettings, pool: PoolSettings, seed: int, runtime: Runtime
) -> dict[str, Any]:
    return {
        "format": POOL_FORMAT,
        "data": real.fingerprint,
        "network": to_dict(network),
        "pool": {k: v for k, v in to_dict(pool).items() if k not in NOT_IN_KEY},
        "seed": seed,
        "runtime": [runtime.device.type, runtime.precision, runtime.compile],
    }


def open_pool(
    real: RealData, networks: Sequence[NetworkSettings], pool: PoolSettings, *, seed: int, runtime: Runtime
) -> Pool:
    """The pool from the cache; members that are missing or damaged are trained first, each under a lock.

    Args:
        networks: the architectures, which the members take in turn; each has a pool of its own in the cache.

    Returns:
        The pool, its weights in main memory.

    Raises:
        UserError: the cache folder cannot be used, or its disk is full.
        NonFiniteLossError: of the training.
    """
    keys: list[str] = []
    members: dict[int, Member] = {}
    seconds = 0.0
    for number, network in enumerate(_resolved(networks, real)):
        mine = range(number, pool.members, len(networks))
        key, of_network, spent = _open_members(real, network, pool, mine, seed=seed, runtime=runtime)
        keys, members, seconds = [*keys, key], members | of_network, seconds + spent
    ordered = [members[m] for m in range(pool.members)]
    return Pool(
        key="+".join(keys),
        stages=[[member.stages[name] for name in _stage_names(pool)] for member in ordered],
        accuracies=[member.accuracy for member in ordered],
        seconds=seconds,
        architectures=len(networks),
    )


def _resolved(networks: Sequence[NetworkSettings], real: RealData) -> list[NetworkSettings]:
    check_extractors(networks)
    return [resolve_network(network, real.size) for network in networks]


def _open_members(
    real: RealData, network: NetworkSettings, pool: PoolSettings, numbers: Sequence[int], *, seed: int, runtime: Runtime
) -> tuple[str, dict[int, Member], float]:
    """The key, the members of those numbers, which are of one architecture, and the seconds spent training."""
    key = pool_key(real, network, pool, seed, runtime)
    folder = _folder(key)
    files = _member_files(folder, numbers)
    start = time.monotonic()
    with closing(hold(folder)):
        if not (writable(folder) / ABOUT).exists():  # for `ncfmkit cache`, which lists pools
            about = _pool_content(real, network, pool, seed, runtime) | {"data_name": real.name}
            _write(folder / ABOUT, json.dumps(about, indent=1).encode())
        with distributed.agreed():
            kept = {m: _kept_member(file, pool) for m, file in files.items()}
        anywhere = set().union(*distributed.gathered({m for m, member in kept.items() if member is not None}))
        missing = [m for m in numbers if m not in anywhere]
        if missing:
            members, epochs = plural(len(numbers), "member"), plural(pool.epochs, "epoch")
            notice(f"extractor pool: training {len(missing)} of {members}, {epochs} each ({network.name})")
            mine = {m: files[m] for m in missing[distributed.rank() :: distributed.world()]}
            with distributed.agreed():
                if mine:
                    _train_members(real, network, pool, mine, seed=seed, runtime=runtime)
        with distributed.agreed():
            opened = {m: member or _read_or_none(files[m], pool) for m, member in kept.items()}
        _exchange(files, opened)
    return (
        key,
        {m: member or _read_member(files[m]) for m, member in opened.items()},
        (time.monotonic() - start if missing else 0.0),
    )


def _train_members(
    real: RealData, network: NetworkSettings, pool: PoolSettings, files: dict[int, Path], *, seed: int, runtime: Runtime
) -> None:
    """Trains members and writes them, unless another process has by then."""
    build, data = network_builder(network, real), labeled(real, real.train)
    models = StackedModels(build, 1, runtime)
    with track(TITLE, len(files) * pool.epochs) as bar:
        for m, file in files.items():
            with locked(file.with_suffix(".lock")):
                if _read_or_none(file, pool) is not None:
                    bar.advance(pool.epochs)
                    continue
                initial = fresh_state(build, seed, "extractor", m)
                models.load([initial])
                snapshots: dict[str, Weights] = {}

                def keep(epoch: int, snapshots: dict[str, Weights] = snapshots) -> None:
                    if epoch in snapshot_epochs(pool):
                        snapshots[SNAPSHOT.format(epoch)] = _rounded(models.states()[0])

                train(models, [data], pool, seed=seed, keys=[m], bar=bar, after_epoch=keep)
                score = accuracy(models, labeled(real, real.test))[0] if real.test else None
                stages = {INITIAL: initial, **snapshots, FINAL: models.states()[0]}
                _write_member(file, Member(stages=stages, accuracy=score))
            bar.advance(0, note="" if score is None else f"member {m}: test accuracy {score:.1%}")


def _exchange(files: dict[int, Path], opened: dict[int, Member | None]) -> None:
    """Writes to this rank's cache what only the caches of ranks on other machines hold."""
    lacking = distributed.gathered({m for m, member in opened.items() if member is None})
    for m, file in files.items():
        having = [rank for rank, of_rank in enumerate(lacking) if m not in of_rank]
        if not having or len(having) == len(lacking):
            continue
        content = None
        with distributed.agreed():
            if distributed.rank() == having[0]:
                content = file.read_bytes()
        content = distributed.sent(content, source=having[0])
        with distributed.agreed():
            if opened[m] is None:
                _write(file, content)


def estimate_pool(
    real: RealData, networks: Sequence[NetworkSettings], pool: PoolSettings, *, seed: int, runtime: Runtime
) -> Iterator[Stage]:
    """The training of those members that :func:`open_pool` will not find; nothing where all are in the cache."""
    for number, network in enumerate(_resolved(networks, real)):
        numbers = range(number, pool.members, len(networks))
        files = _member_files(_folder(pool_key(real, network, pool, seed, runtime)), numbers).values()
        missing = sum(not file.is_file() or not _has_stages(file, pool) for file in files)
        if missing:
            models = StackedModels(network_builder(network, real), 1, runtime)
            each = math.ceil(missing / distributed.world())
            seconds = training_seconds(models, labeled(real, real.train), len(real.train.images), pool)
            if real.test is not None:
                seconds += accuracy_seconds(models, labeled(real, real.test))
            name = TITLE if len(networks) == 1 else f"{TITLE}, {network.name}"
            yield Stage(name=name, work=f"{missing} x {plural(pool.epochs, 'epoch')}", seconds=each * seconds)


def _folder(key: str) -> Path:
    return cache_dir() / "pools" / key


def _member_files(folder: Path, numbers: Sequence[int]) -> dict[int, Path]:
    return {m: folder / f"member-{m:03d}.safetensors" for m in numbers}


def _rounded(state: Weights) -> Weights:
    """A snapshot, in half the bytes."""
    return {name: v.bfloat16() for name, v in state.items()}


def _write_member(file: Path, member: Member) -> None:
    tensors = {f"{stage}/{k}": v for stage, state in member.stages.items() for k, v in state.items()}
    facts = {"test_accuracy": member.accuracy, "sha256": _checksum(tensors, member.accuracy)}
    content = to_bytes(tensors, metadata={METADATA_KEY: json.dumps(facts)})  # one key: more come in a random order
    _write(file, content)


def _write(file: Path, content: bytes) -> None:
    try:
        write_atomic(file, content)
    except UserError as error:
        raise UserError(f"{error}, {MOVE}") from None


def _has_stages(file: Path, pool: PoolSettings) -> bool:
    """Whether a member's file holds the snapshots that are asked for; true of a damaged file, which reading finds."""
    try:
        with safe_open(file, framework="pt") as stored:
            names = {name.split("/", 1)[0] for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        return True
    return names.issuperset(_stage_names(pool))


def _kept_member(file: Path, pool: PoolSettings) -> Member | None:
    """A member from the cache, or None where it is missing, damaged or without snapshots; notices say which."""
    if not file.is_file():
        return None
    if not _has_stages(file, pool):
        notice(
            f"extractor pool: {file} has no snapshots after epochs {', '.join(map(str, snapshot_epochs(pool)))}: "
            "training this member again"
        )
        return None
    try:
        return _read_member(file)
    except UNREADABLE as error:
        notice(f"extractor pool: {file} is damaged ({error}): training this member again")
        return None


def _read_or_none(file: Path, pool: PoolSettings) -> Member | None:
    """A member that another process may have written in the meantime, with its snapshots."""
    with suppress(*UNREADABLE):
        return _read_member(file) if _has_stages(file, pool) else None
    return None


def _read_member(file: Path) -> Member:
    with safe_open(file, framework="pt") as stored:
        facts = json.loads((stored.metadata() or {}).get(METADATA_KEY, "{}"))
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    score = facts.get("test_accuracy")
    if facts.get("sha256") != _checksum(tensors, score):
        raise ValueError("its checksum is wrong")
    stages: dict[str, Weights] = {}
    for name, tensor in tensors.items():
        stage, parameter = name.split("/", 1)
        stages.setdefault(stage, {})[parameter] = tensor.clone()  # off the mapped file, which may change under us
    return Member(stages=stages, accuracy=score)


def _checksum(tensors: Weights, score: float | None) -> str:
    """sha256 of all that a member's file holds."""
    content = [[name, str(v.dtype), list(v.shape), digest(v)] for name, v in sorted(tensors.items())]
    return hashlib.sha256(json.dumps([score, content]).encode()).hexdigest()
