"""Ranks: one command that works in several processes, started by `torchrun` or `srun` (docs/scale.md).

All else is written as for one process, and asks here for what it shares; in one process nothing is shared, and every
function of this module gives back what it was given. Ranks meet in two ways: :func:`agreed`, :func:`from_first` and
:func:`gathered` wait as long as the slowest rank needs, and find out if one is gone; :func:`add` and :func:`any_of` are
for steps, which all ranks make at the same pace, and fail after `runtime.rank_timeout`.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ncfmkit import interrupts, progress
from ncfmkit.errors import FollowedError, RankFailed, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
COMMANDS = ("distill", "evaluate", "pretrain")  # that work in several processes
BEAT = 1.0  # seconds between two signs of life of a rank
POLL = 0.002  # seconds until the second look at what the others have said; later ones are further apart
LEAVING = 8.0  # seconds that the rank with the store waits for the others at the end
PORTS = 10_000, 20_000  # the first port, and how many, that SLURM's job numbers are spread over


class _Table:
    """A small table of texts that all ranks read and write; each call waits for the one that has it, but not forever.

    Torch's store would wait for as long as the connection counts as open, which after a cut is hours.
    """

    def __init__(self, store: Any):
        self.store, self.seconds = store, _Ranks.timeout
        self._broken = False
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(lambda: self.store.set(key, value))

    def get(self, key: str) -> bytes:
        found: bytes = self._ask(lambda: self.store.get(key))
        return found

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""
        return bool(self._ask(lambda: self.store.check(keys)))

    def _ask(self, call: Callable[[], Any]) -> Any:
        if self._broken:
            raise ConnectionError("the connection is cut")
        answer: Future[Any] = Future()
        self._calls.put((call, answer))
        try:
            return answer.result(self.seconds)
        except TimeoutError:
            self._broken = True
            raise ConnectionError(f"no answer within {self.seconds:g} s") from None

    def _serve(self) -> None:
        while True:
            call, answer = self._calls.get()
            try:
                answer.set_result(call())
            except BaseException as error:  # to the thread that asked
                answer.set_exception(error)


@dataclass(kw_only=True)
class _Ranks:
    """This process among the others."""

    rank: int
    world: int
    local_rank: int = 0  # among those of this machine
    local_world: int = 1
    table: _Table
    timeout: float = 600.0  # seconds
    meetings: int = 0  # so far
    group: Any = None  # of torch.distributed, once it is connected
    group_timeout: float = 0.0
    stopped: threading.Event


_ranks: _Ranks | None = None  # None: one process


@contextmanager
def ranks(command: str, *, apart: bool) -> Iterator[None]:
    """This process as a rank, if it was started as one, while a command works. All but the first are silent.

    Args:
        apart: each process of SLURM works on its own: it distills a shard.

    Raises:
        UserError: the command works in one process, or the ranks do not come together.
    """
    place = _place()
    if place is None or (apart and "RANK" not in os.environ):
        yield
        return
    if command not in COMMANDS:
        raise UserError(
            f"`ncfmkit {command}` works in one process, and this is rank {place[0]} of {place[1]}: start it without "
            "torchrun or srun"
        )
    why: str | None = "unexpectedly"
    try:
        _join(*place)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if place[0] else nullcontext():
            yield
        why = None
    except Exception as error:
        why = str(error).split("\n")[0]
        if not isinstance(error, FollowedError) and _first_says(why):
            raise FollowedError(getattr(error, "exit_code", 1)) from None
        raise
    finally:
        _leave(why)


def _place() -> tuple[int, int] | None:
    """The rank and the number of ranks, as torchrun or srun say; None: one process."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        place = int(env["RANK"]), int(env["WORLD_SIZE"])
    elif {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"} <= env.keys():
        place = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
    else:
        return None
    return place if place[1] > 1 else None


def _join(rank: int, world: int) -> None:
    """Finds the other ranks.

    Raises:
        UserError: they cannot be reached, or were started with other arguments.
    """
    global _ranks
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # each failed connection would be a page; before the import
    import torch
    from torch import distributed

    if not distributed.is_available():
        raise UserError("this torch has no torch.distributed: install another, or start one process")
    for name, value in _slurm_address().items():
        os.environ.setdefault(name, value)
    if rank:
        progress.console.quiet = True
        interrupts.mute()
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(distributed.rendezvous("env://", rank, world, timeout=timedelta(seconds=_Ranks.timeout)))
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"rank {rank} of {world} cannot reach the others at {where} ({_cause(error)}): check MASTER_ADDR and "
            "MASTER_PORT, and that the port is free and open between the machines"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it starts ranks again
    store, for_beats = (distributed.PrefixStore(f"ncfmkit/{attempt}", s) for s in (store, store.clone()))
    _ranks = _Ranks(rank=rank, world=world, table=_Table(store), stopped=threading.Event())
    threading.Thread(target=_beat, args=(_ranks, for_beats), daemon=True).start()
    told = _meet((socket.gethostname(), progress.command_line()))
    hosts, commands = zip(*told, strict=True)
    with agreed():
        if rank == 0 and len(set(commands)) > 1:
            other = next(r for r in range(world) if commands[r] != commands[0])
            raise UserError(
                f"ranks 0 and {other} were started with other arguments: `{commands[0]}` and `{commands[other]}`: "
                "start all alike, or, to distill shards apart, pass --shard to each"
            )
    mine = [r for r in range(world) if hosts[r] == hosts[rank]]
    _ranks.local_rank, _ranks.local_world = mine.index(rank), len(mine)
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        bound = cores < (os.cpu_count() or 1)  # to cores of its own, by srun
        torch.set_num_threads(cores if bound else max(1, cores // len(mine)))
    machines = len(set(hosts))
    progress.notice(f"{world} ranks on {progress.plural(machines, 'machine')}")


def _slurm_address() -> dict[str, str]:
    """Where ranks of srun meet: at the first of its machines, at a port of this job and step."""
    env = os.environ
    if "SLURM_STEP_NODELIST" not in env:
        return {}
    found = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", env["SLURM_STEP_NODELIST"])
    assert found is not None
    number = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    return {
        "MASTER_ADDR": "".join(part or "" for part in found.groups()),
        "MASTER_PORT": str(PORTS[0] + number % PORTS[1]),
    }


def _leave(why: str | None) -> None:
    """The command is over: the others find out, and with what message; the rank with the store goes last."""
    ranks = _ranks
    if ranks is None:
        return
    ranks.stopped.set()
    with suppress(Exception):  # the others may be gone
        ranks.table.set(f"left/{ranks.rank}", why or "")
    if ranks.group is not None:  # those who wait in it find out
        from torch import distributed

        ranks.group = None
        with suppress(Exception):
            distributed.destroy_process_group()
    with suppress(Exception):
        others = [f"left/{r}" for r in range(1, ranks.world)]
        end = time.monotonic() + LEAVING
        while ranks.rank == 0 and time.monotonic() < end and not ranks.table.check(others):
            time.sleep(POLL)


def _first_says(why: str) -> bool:
    """Whether the first rank, another one, ends with the same message."""
    if _ranks is None or _ranks.rank == 0:
        return False
    with suppress(Exception):  # it may be gone
        end = time.monotonic() + 3 * BEAT
        while time.monotonic() < end:
            if _ranks.table.check(["left/0"]):
                return _ranks.table.get("left/0").decode() == why
            time.sleep(POLL)
    return False


def restarted() -> bool:
    """Whether torchrun started the ranks again, because one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun will start the ranks again if one fails."""
    return world() > 1 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _ranks is None else _ranks.rank


def world() -> int:
    """How many processes there are."""
    return 1 if _ranks is None else _ranks.world


def local_rank() -> int:
    """The number of this process among those of its machine, from 0."""
    return 0 if _ranks is None else _ranks.local_rank


def local_world() -> int:
    """How many processes of this machine there are."""
    return 1 if _ranks is None else _ranks.local_world


def is_first() -> bool:
    """Whether this process is the one that reads and writes the user's files, and speaks."""
    return rank() == 0


def first_only(function: Callable[..., T]) -> Callable[..., T | None]:
    """A function that does nothing, and gives None, on all ranks but the first."""

    @wraps(function)
    def on_first(*args: Any, **kwargs: Any) -> T | None:
        return function(*args, **kwargs) if is_first() else None

    return on_first


def wait_at_most(seconds: float) -> None:
    """How long ranks wait for one that is silent, or late for a step."""
    if _ranks is not None:
        _ranks.timeout = _ranks.table.seconds = seconds


@contextmanager
def agreed() -> Iterator[None]:
    """A block that ends well on all ranks, or with an error on all: the first rank that failed raises its own.

    Raises:
        FollowedError: on the other ranks.
        RankFailed: a rank is gone.
    """
    if _ranks is None:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except (FollowedError, RankFailed):
        raise
    except Exception as raised:
        error = raised
    codes = _meet(None if error is None else getattr(error, "exit_code", 1))
    failed = [r for r, code in enumerate(codes) if code is not None]
    if not failed:
        return
    if error is not None and failed[0] == _ranks.rank:
        raise error
    raise FollowedError(codes[failed[0]])


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on all of them. It is pickled on the way; what is raised is raised on all."""
    made = None
    with agreed():
        made = make() if is_first() else None
    return sent(made, source=0)


def sent(value: T | None, *, source: int) -> T:
    """A value of one rank, on all of them."""
    if _ranks is not None:
        values = [value]
        _collective(lambda torch, group: torch.broadcast_object_list(values, src=source, group=group))
        return values[0]  # type: ignore[return-value]
    return value  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank."""
    if _ranks is None:
        return [value]
    values: list[Any] = [None] * _ranks.world
    with agreed():
        pass
    _collective(lambda torch, group: torch.all_gather_object(values, value, group=group))
    return values


def gathered_by_first(value: T) -> list[T] | None:
    """The values of all ranks, in their order, on the first; None on the others."""
    if _ranks is None:
        return [value]
    values: list[Any] | None = [None] * _ranks.world if is_first() else None
    with agreed():
        pass
    _collective(lambda torch, group: torch.gather_object(value, values, group=group))
    return values


def once_per_machine(make: Callable[[], T]) -> T:
    """What each rank makes for itself, the first of every machine before the others, which find it in the cache."""
    made: list[T] = []
    with agreed():
        if local_rank() == 0:
            made.append(make())
    with agreed():
        return made[0] if made else make()


def add(tensor: "torch.Tensor") -> None:
    """Sums a tensor over the ranks, in place."""
    if _ranks is not None:
        _collective(lambda torch, group: torch.all_reduce(tensor, group=group))


def lowest(tensor: "torch.Tensor") -> None:
    """The least of each element over the ranks, in place."""
    if _ranks is not None:
        _collective(lambda torch, group: torch.all_reduce(tensor, op=torch.ReduceOp.MIN, group=group))


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag, whether it is set on any rank."""
    if _ranks is None:
        return flags
    import torch

    set_on = torch.tensor(flags, dtype=torch.int32)
    add(set_on)
    return tuple(bool(n) for n in set_on)


def _collective(work: Callable[[Any, Any], object]) -> None:
    """Does something together with the other ranks, by `torch.distributed`, which is connected at the first time.

    Args:
        work: is given that module, and the group of all ranks.

    Raises:
        RankFailed: naming those that did not take part.
    """
    import torch
    from torch import distributed

    assert _ranks is not None
    try:
        timeout = timedelta(seconds=_ranks.timeout)
        if _ranks.group is None:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            how: dict[str, Any] = {"rank": _ranks.rank, "world_size": _ranks.world, "store": _ranks.table.store}
            with _without_stdout():
                distributed.init_process_group(backend, timeout=timeout, **how)
            _ranks.group, _ranks.group_timeout = distributed.group.WORLD, _ranks.timeout
        if _ranks.group_timeout != _ranks.timeout:  # settings were read in the meantime
            with _without_stdout():
                _ranks.group, _ranks.group_timeout = distributed.new_group(timeout=timeout), _ranks.timeout
        work(distributed, _ranks.group)
    except RuntimeError as error:  # torch raises it for all that can go wrong between ranks
        if str(error).startswith("CUDA error: ") or isinstance(error, torch.OutOfMemoryError):
            raise
        raise _diagnosis(_ranks, error) from None


@contextmanager
def _without_stdout() -> Iterator[None]:
    """A block whose C code prints nothing: gloo of torch 2.9 tells stdout, where `--json` goes, of its connections."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _diagnosis(ranks: _Ranks, error: RuntimeError) -> RankFailed:
    """Who did not take part in something that failed, what it was at, and since when it is silent."""
    try:
        ranks.table.set(f"waited/{ranks.rank}/{ranks.meetings}", "")
        time.sleep(3 * BEAT)  # the others find out as well
        absent = [
            r for r in range(ranks.world) if r != ranks.rank and not ranks.table.check([f"waited/{r}/{ranks.meetings}"])
        ]
        if absent:
            return _failed(ranks, absent, "did not take part")
        return RankFailed(f"the connection between the ranks failed at {_doing()} ({_cause(error)})")
    except (RuntimeError, OSError):
        return _no_answer(ranks, error)


def _no_answer(ranks: _Ranks, error: Exception) -> RankFailed:
    told = f"rank 0 of {ranks.world} does not answer rank {ranks.rank}, which is at {_doing()}"
    return RankFailed(f"{told} ({_cause(error)})")


def _cause(error: Exception) -> str:
    """What torch says of a connection, without its place in torch's code and its advice to developers."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).split("\n")[0]).split(". ")[0]


def _failed(ranks: _Ranks, absent: list[int], what: str) -> RankFailed:
    """The message of the lowest rank that is left; the others are silent, and so are all where the first has spoken."""
    told = [f"rank {r} of {ranks.world} {_last_heard(ranks, r, what)}" for r in absent]
    lowest = min(set(range(ranks.world)) - set(absent))
    spoken = 0 in absent and ranks.table.check(["left/0"])
    message = f"{'; '.join(told)} (rank {ranks.rank}: {_doing()})"
    return RankFailed(message, silent=spoken or lowest != ranks.rank)


def _last_heard(ranks: _Ranks, other: int, what: str) -> str:
    if ranks.table.check([f"left/{other}"]):
        why = ranks.table.get(f"left/{other}").decode()
        return f"has ended: {why}" if why else "has ended"
    if not ranks.table.check([f"beat/{other}"]):
        return f"{what}: it never answered"
    when, host, doing = ranks.table.get(f"beat/{other}").decode().split("\n")
    clock = time.strftime("%H:%M:%S", time.localtime(float(when)))
    return f"{what}: it was last heard of at {clock}, on {host}, at {doing}"


def _doing() -> str:
    """What this rank is at, for people."""
    return "the start" if progress.Tracker.newest is None else str(progress.Tracker.newest)


def _beat(ranks: _Ranks, store: Any) -> None:
    """Shows the others that this rank lives and what it does, as long as it does."""
    host = socket.gethostname()
    with suppress(Exception):  # the store ends with the rank that has it
        while not ranks.stopped.is_set():
            store.set(f"beat/{ranks.rank}", f"{time.time()}\n{host}\n{_doing()}")
            ranks.stopped.wait(BEAT)


def _meet(message: Any) -> list[Any]:
    """The messages of all ranks, on every rank, as soon as the last has given its own; values that JSON has.

    The first collects and publishes them. Nobody is waited for who has ended, or gives no sign of life.
    """
    ranks = _ranks
    assert ranks is not None
    ranks.meetings += 1
    name = f"meeting/{ranks.meetings}"
    try:
        if ranks.rank:
            ranks.table.set(f"{name}/{ranks.rank}", json.dumps(message))
            _await(ranks, {name: 0})
            return json.loads(ranks.table.get(name))
        _await(ranks, {f"{name}/{r}": r for r in range(1, ranks.world)})
        told = [message, *(json.loads(ranks.table.get(f"{name}/{r}")) for r in range(1, ranks.world))]
        ranks.table.set(name, json.dumps(told))
        return told
    except RankFailed:
        raise
    except (RuntimeError, OSError) as error:
        raise _no_answer(ranks, error) from None


def _await(ranks: _Ranks, keys: dict[str, int]) -> None:
    """Waits until all keys are in the store; each is written by the rank beside it."""
    seen: dict[int, tuple[bytes, float]] = {}  # the newest sign of life of each rank, and when it came, by our clock
    pause = POLL
    while keys:
        keys = {key: r for key, r in keys.items() if not ranks.table.check([key])}
        if not keys:
            return
        for r in dict.fromkeys(keys.values()):
            beat = ranks.table.get(f"beat/{r}") if ranks.table.check([f"beat/{r}"]) else b""
            if r not in seen or seen[r][0] != beat:
                seen[r] = beat, time.monotonic()
        now = time.monotonic()
        silent = [r for r, (_, when) in seen.items() if r in keys.values() and now - when > ranks.timeout]
        ended = [r for r in dict.fromkeys(keys.values()) if ranks.table.check([f"left/{r}"])]
        still = [r for r in ended if not ranks.table.check([key for key, of in keys.items() if of == r])]
        if still:
            raise _failed(ranks, still, "has ended")
        if silent:
            raise _failed(ranks, silent, f"is silent for {ranks.timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, BEAT / 4)
