"""How long a command takes, measured on the first steps of each of its stages before the first one starts."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ncfmkit.progress import notice, waiting

ENOUGH_SECONDS = 0.2  # of measured calls; a call that takes longer is measured once
MOST_CALLS = 20
LONG_CALL = 2.0  # seconds; a first call that is longer needs no second one unless it compiled


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of a command's work."""

    name: str  # such as `distilling`
    work: str  # such as `350 steps`
    seconds: float


def seconds_per_call(call: Callable[[], object], device: torch.device, *, compiled: bool, uncounted: int = 0) -> float:
    """Seconds that a call takes, measured after a first one that compiles, allocates and fills caches.

    Args:
        compiled: the first call compiles, so its time says nothing.
        uncounted: calls after the first one that say nothing either.
    """
    first = _timed(call, device)
    for _ in range(uncounted):
        call()
    if first > LONG_CALL and not compiled:
        return first
    seconds, calls = 0.0, 0
    while not calls or (seconds < ENOUGH_SECONDS and calls < MOST_CALLS):
        seconds += _timed(call, device)
        calls += 1
    return seconds / calls


def _timed(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def announce(stages: Iterable[Stage]) -> list[Stage]:
    """Prints each stage as soon as it is measured, then the total; prints nothing if no work is left."""
    known: list[Stage] = []
    with waiting("measuring the first steps (a first run compiles them, which can take minutes)"):
        for stage in stages:
            if not known:
                notice("estimate, measured on the first steps:")
            notice(f"  {stage.name}: {stage.work}, about {duration(stage.seconds)}")
            known.append(stage)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # a plan takes a share of the memory that is free
    if known:
        notice(f"  total: about {duration(total_seconds(known))}")
    return known


def total_seconds(stages: Iterable[Stage]) -> float:
    return sum(stage.seconds for stage in stages)


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min`, `3.5 h` or `11 days`: two digits, since it is an estimate."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            count = seconds / unit
            return f"{count:.1f} {name}" if count < 9.95 else f"{count:.0f} {name}"
    return f"{seconds / 86400:.1f} days" if seconds < 9.95 * 86400 else f"{seconds / 86400:,.0f} days"
