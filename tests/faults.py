"""Kills runs at random moments and fails their writes, and checks that the run goes on to the bytes of an unharmed one.

    python -m tests.faults kills --count 200            # kill -9, in one process
    python -m tests.faults kills --count 50 --ranks 3   # of one of three ranks
    python -m tests.faults memory --count 50            # the kernel kills it: its control group is full (Linux, root)
    python -m tests.faults writes --count 200           # one write fails: disk full, input/output error, cut short
    python -m tests.faults every                        # each write fails once, with an input/output error
    python -m tests.faults power --count 100            # and a power cut, after which what was not synced is lost

A trial distills a folder of pictures with a cache of its own and packs the set. A command that was killed is started
again as a user would: `--resume` once there is a run, else the same command. Every process is forked from one that has
imported torch, so that a trial takes seconds and kills hit the work; the ranks are forked alike. Writes fail by a
library (`faulty_writes.c`, built with cc) that stands between the process and libc.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = [
    *("--width", "8", "--pool", "3", "--pool-epochs", "3", "--steps", "60", "--frequencies", "32", "--ipc", "2"),
    *("--real-batch", "16", "--checkpoint-every", "5", "--student-epochs", "10", "--repeats", "3", "--compile", "off"),
    *("--device", "cpu", "--precision", "fp32", "--schedule", "cosine", "--sampler", "gaussian"),
    *("--set", "runtime.classes_per_batch=1", "--set", "distill.average=0.9", "--set", "runtime.rank_timeout=20"),
]
MOST_SECONDS = 300.0  # of one command
MEMORY = 32 * 2**20  # bytes of the control group, on top of what a process has when it is put into it
SHIM = Path(__file__).with_name("faulty_writes.c")
FAULTS = {"disk full": 28, "input/output error": 5, "cut short": 0}  # errno; 0: half of it is written
POWER_CUT = ("power cut", -1)


@dataclass(kw_only=True)
class Tally:
    """What was tried, and what went wrong."""

    trials: int = 0
    faults: int = 0  # kills, or writes that failed
    at: Counter = field(default_factory=Counter)  # what was going on
    wrong: list[str] = field(default_factory=list)


def make_pictures(folder: Path) -> Path:
    """Four classes of gray noise with a mean of their own, and a test split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label in range(4):
            place = folder / split / f"class {label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(40 * label, 40 * label + 100, (12, 12), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def forked(arguments: Sequence[str], log: Path, environment: dict[str, str], prepare: Callable[[], None]) -> int:
    """Starts `ncfmkit ARGUMENTS` in a child of this process; its number."""
    child = os.fork()
    if child:
        return child
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["ncfmkit", *arguments]
    code = 1
    try:
        from ncfmkit.cli.entry import run

        prepare()
        run()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, *, within: float) -> int | None:
    """The exit code of a child, negative of a signal; None: it still runs after so many seconds."""
    end = time.monotonic() + within
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


class Trial:
    """A run of its own, from pictures to a package, whatever befalls it."""

    def __init__(self, folder: Path, pictures: Path, ranks: int = 1):
        self.folder, self.ranks = folder, ranks
        self.run, self.package = folder / "run", folder / "packed"
        self.log = folder.with_suffix(".log")  # apart: what is printed is no file that a fault may hit
        self.start = ["distill", str(pictures), *SMALL, "--out", str(self.run)]
        self.cache = {"NCFMKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        folder.mkdir(parents=True)

    def command(self) -> list[str]:
        """What a user types next."""
        if not (self.run / "run.json").exists():
            return self.start
        if self.status() != "done":
            return ["distill", "--resume", str(self.run)]
        # an interrupted package is incomplete, and verify says so: it is packed anew
        return ["pack", str(self.run), "--to", "parquet", "--license", "mit", "--out", str(self.package), "--force"]

    def status(self) -> str:
        return json.loads((self.run / "run.json").read_text())["status"]

    def stage(self) -> str:
        """Where the work is."""
        if self.package.exists() or ((self.run / "run.json").exists() and self.status() == "done"):
            return "package"
        if not (self.run / "run.json").exists():
            return "store" if not list(self.folder.glob("cache/real/*/store.json")) else "before the run"
        if self.status() == "started":
            return "pool"
        return {"distilling": "steps", "scoring": "students"}[self.status()]

    def begin(self, command: Sequence[str], prepare: Callable[[], None] = lambda: None) -> list[int]:
        """Starts a command, in several ranks if it distills; the children."""
        world = self.ranks if command[0] == "distill" else 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        together = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [forked(command, self.log, self.cache | together | {"RANK": str(r)}, prepare) for r in range(world)]

    def finish(self, children: Sequence[int]) -> list[int]:
        """Exit codes; what goes on for too long is killed and counts as -9."""
        codes = []
        for child in children:
            code = ended(child, within=MOST_SECONDS)
            if code is None:
                os.kill(child, signal.SIGKILL)
                code = ended(child, within=MOST_SECONDS)
            codes.append(-9 if code is None else code)
        return codes

    def whole(self) -> bool:
        """Whether the package is there and verified."""
        if not self.package.exists():
            return False
        (code,) = self.finish(self.begin(["verify", str(self.package)]))
        return code == 0

    def digests(self) -> dict[str, str]:
        """Of what a user ships, by name: the set, and all files of the package."""
        files = [self.run / "synthetic.safetensors", *sorted(p for p in self.package.rglob("*") if p.is_file())]
        return {str(f.relative_to(self.folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def unharmed(folder: Path, pictures: Path, ranks: int) -> tuple[dict[str, str], float]:
    """The digests of a run that nothing befalls, and its seconds."""
    trial, begin = Trial(folder, pictures, ranks), time.monotonic()
    while not trial.package.exists():
        codes = trial.finish(trial.begin(trial.command()))
        assert set(codes) == {0}, trial.said()
    return trial.digests(), time.monotonic() - begin


def kill(victim: int) -> bool:
    """Whether it was killed, and had not ended before."""
    os.kill(victim, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL


@contextlib.contextmanager
def memory_group() -> Iterator[Path]:
    """A control group of `MEMORY` bytes, in either version of the kernel's interface; it has to be empty at the end."""
    limits = {  # and what else would let it grow: swap
        Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", MEMORY),
        Path("/sys/fs/cgroup"): ("memory.max", "memory.swap.max", 0),
    }
    for place, names in limits.items():
        group, (limit, swap, most) = place / f"ncfmkit-faults-{os.getpid()}", names
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                break
            group.rmdir()
    else:
        sys.exit("no control group for memory can be made: this needs Linux, its memory controller and root")
    try:
        (group / limit).write_text(str(MEMORY))
        if (group / swap).exists():
            (group / swap).write_text(str(most))
        yield group
    finally:
        group.rmdir()


def starve(victim: int, group: Path) -> bool:
    """Lets the kernel kill `victim`, and says whether it did, before the process had ended.

    The victim shares a control group with a process that takes memory until none is left.
    """
    glutton = os.fork()
    if not glutton:
        try:
            (group / "cgroup.procs").write_text("0")
            Path(f"/proc/{victim}/oom_score_adj").write_text("1000")  # the kernel chooses it first
            (group / "cgroup.procs").write_text(str(victim))
            taken = []
            while True:
                taken.append(b"x" * 2**20)
        finally:
            os._exit(1)
    code = ended(victim, within=MOST_SECONDS)
    kill(glutton)
    if code is None:
        kill(victim)
    return code == -signal.SIGKILL


def kills(
    folder: Path, pictures: Path, *, count: int, seed: int, ranks: int, by: Callable[[int], bool] = kill
) -> Tally:
    """Kills at random moments until there were so many: in most trials several, until a run comes to its end."""
    expected, seconds = unharmed(folder / "unharmed", pictures, ranks)
    alone = expected if ranks == 1 else unharmed(folder / "alone", pictures, 1)[0]
    tally = Tally()
    if alone != expected:
        tally.wrong.append(f"{ranks} ranks make other bytes than one process")
    while tally.faults < count:
        rng = random.Random(f"{seed}/{tally.trials}")
        trial = Trial(folder / f"trial-{tally.trials}", pictures, ranks)
        after = rng.uniform(0, seconds)  # of work; what is done is not done again, so later kills come sooner
        while not (whole := trial.whole()):
            children = trial.begin(trial.command())
            victim = rng.choice(children)
            code = ended(victim, within=after)
            if code is None:
                stage = trial.stage()
                if by(victim):
                    tally.at[stage] += 1
                    tally.faults += 1
                after = rng.uniform(0, seconds)
            codes = trial.finish([child for child in children if child != victim])
            if code not in (0, None) or (code == 0 and set(codes) - {0}):
                break
        _judge(trial, expected, whole, tally)
    return tally


@dataclass(kw_only=True)
class WriteFault:
    """What happens to one write of a trial."""

    command: str  # whose write it is, `distill` or `pack`
    nth: int  # of the command's writes, from 0
    name: str
    number: int  # as in `FAULTS`
    rng: random.Random  # of what a power cut takes


def random_faults(seed: int, lengths: dict[str, int], tally: Tally, *, power: bool) -> Iterator[WriteFault]:
    """Faults for a trial each, without end; `lengths` is how many writes each command was seen to have."""
    while True:
        rng = random.Random(f"{seed}/{tally.trials}")
        which = rng.choice(["distill", "distill", "distill", "pack"])
        name, number = POWER_CUT if power else rng.choice(list(FAULTS.items()))
        nth = rng.randrange(lengths.get(which, 500))
        yield WriteFault(command=which, nth=nth, name=name, number=number, rng=rng)


def every_fault(tally: Tally) -> Iterator[WriteFault]:
    """An input/output error in each write of a command once, until one comes after its last write."""
    name = "input/output error"
    for which in ("distill", "pack"):
        for nth in itertools.count():
            before = tally.faults
            yield WriteFault(command=which, nth=nth, name=name, number=FAULTS[name], rng=random.Random(nth))
            if tally.faults == before:
                break


def writes(
    folder: Path, pictures: Path, *, faults: Iterator[WriteFault], lengths: dict[str, int], tally: Tally
) -> None:
    """One write of each trial fails; then the command is started again.

    In a power cut the process is killed there instead, and what was not synced is lost.
    """
    shim = ctypes.CDLL(os.environ["FAULTS_SHIM"])
    expected, _ = unharmed(folder / "unharmed", pictures, 1)
    for fault in faults:
        trial = Trial(folder / f"trial-{tally.trials}", pictures)
        journal = trial.folder / "journal"
        power = (fault.name, fault.number) == POWER_CUT
        whole, harm = False, ""
        for _ in range(5):
            if whole := trial.whole():
                break
            command = trial.command()
            hit = not harm and command[0] == fault.command
            nth = fault.nth if hit else -1

            def prepare(nth: int = nth, number: int = fault.number, journal: Path = journal) -> None:
                shim.faults_arm(str(journal.parent).encode(), ctypes.c_long(nth), number, str(journal).encode())

            (code,) = trial.finish(trial.begin(command, prepare))
            done = [line.split("\t") for line in journal.read_text().splitlines()] if journal.exists() else []
            if hit:
                lengths[fault.command] = max(lengths.get(fault.command, 0), len(done))
            if hit and len(done) <= nth and not (power and code == -9):
                harm = "a write that is not there"  # nothing failed, and the command is done
                continue
            if hit and fault.name == "cut short" and done[nth][0] != "W":
                harm = "a call that cannot be cut short"  # nothing failed
                continue
            if hit:
                call = " ".join(done[nth][:2]) if nth < len(done) else ""
                harm = f"{fault.name} in call {nth} of {fault.command}, {call}: exit {code}"
                tally.faults += 1
                tally.at[f"{fault.name}, {trial.stage()}"] += 1
                if power:
                    _lose(done, fault.rng)
                elif code not in ((0,) if fault.name == "cut short" else (0, 1, 2)):
                    break
            elif code != 0:
                break
        _judge(trial, expected, whole, tally, about=harm)


def _lose(done: list[list[str]], rng: random.Random) -> None:
    """What a power cut takes: the content that was not synced, and the last renames since their folder was synced."""
    unsynced: set[str] = set()
    renames: list[tuple[str, str, str]] = []
    for kind, path, to, kept in done:
        if kind in "TW":
            unsynced.add(path)
        elif kind == "S":
            unsynced.discard(path)
            renames = [rename for rename in renames if os.path.dirname(rename[1]) != path]
        elif kind == "R":
            if path in unsynced:
                unsynced.remove(path)
                unsynced.add(to)
            renames.append((path, to, kept))
    for path in unsynced:
        if os.path.isfile(path):
            os.truncate(path, 0)
    for path, to, kept in reversed(renames[rng.randrange(len(renames) + 1) :]):
        if os.path.exists(to):
            os.rename(to, path)
        if os.path.exists(kept):
            os.rename(kept, to)


def _judge(trial: Trial, expected: dict[str, str], whole: bool, tally: Tally, *, about: str = "") -> None:
    found = trial.digests() if whole else {}
    other = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    said = trial.said()
    if other:
        tally.wrong.append(f"trial {tally.trials}, {about}: other bytes in {', '.join(other[:4])}\n{said[-1500:]}")
    elif "Traceback" in said or "unexpected " in said:
        tally.wrong.append(f"trial {tally.trials}, {about}: a traceback, or an unexpected error\n{said[-1500:]}")
    else:
        shutil.rmtree(trial.folder)
        trial.log.unlink()
    tally.trials += 1
    print(f"\r{tally.trials} trials, {tally.faults} faults, {len(tally.wrong)} wrong ", end="", file=sys.stderr)


@contextlib.contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def with_shim() -> None:
    """Starts this program again, with the library between it and libc."""
    if "FAULTS_SHIM" in os.environ:
        return
    library = Path(tempfile.mkdtemp()) / "faulty_writes.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "FAULTS_SHIM": str(library)}
    os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "memory", "writes", "every", "power"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a new folder for the trials; those that went wrong stay there")
    options = parser.parse_args()
    if options.what in ("writes", "every", "power"):
        with_shim()
    for name in ("torch", "ncfmkit.cli.main", "ncfmkit.jobs.distill"):  # children find them imported
        importlib.import_module(name)
    begin = time.monotonic()
    with workplace(options.keep) as folder:
        pictures = make_pictures(folder / "pictures")
        if options.what == "kills":
            tally = kills(folder, pictures, count=options.count, seed=options.seed, ranks=options.ranks)
        elif options.what == "memory":
            with memory_group() as group:
                tally = kills(
                    folder,
                    pictures,
                    count=options.count,
                    seed=options.seed,
                    ranks=options.ranks,
                    by=lambda victim: starve(victim, group),
                )
        else:
            tally = Tally()
            lengths: dict[str, int] = {}
            faults = random_faults(options.seed, lengths, tally, power=options.what == "power")
            drawn = every_fault(tally) if options.what == "every" else itertools.islice(faults, options.count)
            writes(folder, pictures, faults=drawn, lengths=lengths, tally=tally)
    print(file=sys.stderr)
    print(json.dumps({"trials": tally.trials, "faults": tally.faults, "at": dict(tally.at), "wrong": len(tally.wrong)}))
    print(f"seed {options.seed}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
    for text in tally.wrong:
        print(f"\n{text}", file=sys.stderr)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
