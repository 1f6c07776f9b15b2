"""A command in several processes, as torchrun or srun start it, without either."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """What a rank leaves: its exit code, what it printed."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """One that SLURM's job numbers lead to, too."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def by_torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def by_srun(rank: int, world: int, port: int) -> dict[str, str]:
    """The port is that of a job number."""
    job = {"SLURM_JOB_ID": str(port - 10_000), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
    return job | {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(world)}


class Ranks:
    """Processes of one command, which :meth:`end` waits for.

    Args:
        own: what each rank is given beside `arguments`.
        caches: a cache of its own for each rank, as on machines that share no disk.
        before: what each rank's command begins with, such as `ip netns exec NAME`.
        folders: where each rank runs, if not here.
    """

    def __init__(
        self,
        world: int,
        *arguments: Any,
        environment: Callable[[int, int, int], dict[str, str]] = by_torchrun,
        own: Sequence[Sequence[str]] | None = None,
        caches: Sequence[Path] | None = None,
        before: Sequence[Sequence[str]] | None = None,
        folders: Sequence[Path] | None = None,
    ):
        port = free_port()
        self.processes = []
        for rank in range(world):
            env = os.environ | {"COLUMNS": "200"} | environment(rank, world, port)
            if caches is not None:
                env["NCFMKIT_CACHE"] = str(caches[rank])
            command = [*(before[rank] if before else ()), sys.executable, "-m", "ncfmkit", *map(str, arguments)]
            command += own[rank] if own else ()
            pipe = subprocess.PIPE
            cwd = folders[rank] if folders else None
            self.processes.append(subprocess.Popen(command, env=env, cwd=cwd, stdout=pipe, stderr=pipe, text=True))

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def end(self, *, without: int | None = None) -> list[Ended]:
        """What each leaves; all are killed in the end, such as one that is stopped and not waited for."""
        try:
            ended = []
            for rank, process in enumerate(self.processes):
                if rank != without:
                    out, err = process.communicate(timeout=240)
                    ended.append(Ended(process.returncode, out, err))
            return ended
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()


def when(happens: Callable[[], bool], *, within: float = 120.0) -> None:
    """Waits until something has happened."""
    end = time.monotonic() + within
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)
