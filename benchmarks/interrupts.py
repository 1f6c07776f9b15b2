"""Interrupts every command at random moments, and checks that what it says is true.

    python -m benchmarks.interrupts                    # 200 interrupts; 10 minutes on 2 CPU cores
    python -m benchmarks.interrupts --count 20 --only train distill

Each trial starts one command in an empty folder, in a process group of its own, and sends SIGINT to the group as a
terminal does: half of them within the first second, the others within the first 15, every third one followed by a
second SIGINT. Seconds count from the first line of `run`: while Python starts, and imports ncfmkit.cli.entry in some
2 ms, it answers by itself. Expected are exit code 130 (0 where the command had ended), no traceback, one line of
`ncfmkit: ...` whose words hold, and no process left behind.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = "import os; from ncfmkit.cli.entry import run; os.mkdir({!r}); run()"
SMALL = [
    *("--width", "8", "--pool", "2", "--pool-epochs", "2", "--steps", "60", "--frequencies", "32"),
    *("--real-batch", "32", "--checkpoint-every", "10", "--student-epochs", "20", "--repeats", "2", "--compile", "off"),
]
STUDENTS = ["--student-epochs", "40", "--repeats", "2", "--compile", "off"]
WRONG = re.compile(r"Traceback|Exception ignored|unforeseen|unexpected|Error")
LATEST = 15.0  # seconds; most of the commands end before
MOST_SECONDS = 120.0  # that a command may go on after a signal


def commands(made: Path) -> dict[str, list[str]]:
    """What is interrupted, on what :func:`prepare` made; a new cache where a name says so."""
    run, student, model = f"{made}/run", f"{made}/student.safetensors", f"{made}/student.onnx"
    return {
        "distill": ["distill", "digits", *SMALL, "--out", "run"],
        "distill, new cache": ["distill", "digits", *SMALL, "--out", "run"],
        "pretrain, new cache": ["pretrain", "digits", "--width", "8", "--pool", "8", "--pool-epochs", "5"],
        "evaluate, new cache": ["evaluate", run, "--data", "digits", "--baselines", "herding", *STUDENTS],
        "compare": ["compare", run, f"{made}/released.safetensors", "--data", "digits", *STUDENTS],
        "train": ["train", run, "--data", "digits", "--student-epochs", "200", "--compile", "off"],
        "pack": ["pack", run, "--to", "parquet", "--license", "mit", "--out", "packed"],
        "unpack": ["unpack", f"{made}/packed"],
        "verify": ["verify", run, "--score", "--data", "digits", "--compile", "off"],
        "convert": ["convert", f"{made}/released.pt", "--data", "digits"],
        "inspect": ["inspect", run],
        "export": ["export", student, "--out", "model.onnx", "--data", "digits"],
        "export int8": ["export", student, "--out", "model.onnx", "--precision", "int8", "--calibration", "digits"],
        "validate": ["validate", model, "--data", "digits", "--out", "results", "--batches", "1"],
        "predict": ["predict", model, f"{made}/pictures", "--batch", "8"],
        "recipes": ["recipes"],
        "doctor": ["doctor"],
    }


def prepare(made: Path) -> None:
    """A run, a package, a student, a model, pictures and a released set."""
    cache = made / "cache"
    _call(made, cache, "distill", "digits", *SMALL, "--out", "run")
    _call(made, cache, "pack", "run", "--to", "webdataset", "--out", "packed")
    _call(made, cache, "train", "run", "--student-epochs", "5", "--compile", "off", "--data", "digits")
    _call(made, cache, "export", "student.safetensors")
    rng = np.random.default_rng(0)
    (made / "pictures").mkdir()
    for number in range(200):
        Image.fromarray(rng.integers(0, 256, (200, 200), np.uint8)).save(made / "pictures" / f"{number:03d}.png")
    images = torch.from_numpy(rng.random((10, 1, 8, 8), np.float32))
    torch.save([images, torch.arange(10)], made / "released.pt")
    _call(made, cache, "convert", "released.pt", "--data", "digits")


def _call(folder: Path, cache: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "ncfmkit", *arguments]
    subprocess.run(command, check=True, cwd=folder, env=_environment(cache), capture_output=True)


def _environment(cache: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"NCFMKIT_CACHE": str(cache), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of one interrupt."""

    name: str
    moments: tuple[float, ...]  # of each signal, in seconds
    code: int
    seconds: float  # to the end
    err: str
    problems: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Exit code and message, without names and numbers, to count by."""
        said = [line.removeprefix("ncfmkit: ") for line in self.err.splitlines() if line.startswith("ncfmkit: ")]
        words = re.sub(r"[\d.]+", "N", re.sub(r"\S*[/.]\S+|\brun\b", "PATH", said[-1])) if said else "no message"
        return f"exit code {self.code}: {words}"


def interrupt(name: str, arguments: Sequence[str], cache: Path, moments: Sequence[float]) -> Trial:
    """Runs a command in an empty folder and sends it SIGINT at those moments, in seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, out, err, begun = (Path(temporary) / part for part in ("folder", "out", "err", "begun"))
        folder.mkdir()
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH.format(str(begun)), *arguments],
                cwd=folder,
                env=_environment(Path(temporary) / "cache" if name.endswith("new cache") else cache),
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        while not begun.exists():
            time.sleep(0.0005)
        start = time.monotonic()
        for moment in moments:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, start + moment - time.monotonic()))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        code = process.wait(MOST_SECONDS)
        seconds = time.monotonic() - start
        problems = check(code, out.read_text(), err.read_text(), folder, twice=len(moments) > 1)
        if _left_behind(process.pid):
            problems.append("a process was left behind")
        return Trial(
            name=name,
            moments=tuple(moments),
            code=code,
            seconds=seconds,
            err=err.read_text(),
            problems=tuple(problems),
        )


def check(code: int, out: str, err: str, folder: Path, *, twice: bool) -> list[str]:
    """What is wrong with the end of a command that was interrupted.

    Args:
        out, err: what it printed.
        folder: where it ran, empty before.
        twice: a second signal may have ended it before it removed temporary files, if it says so.
    """
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems = [f"it printed {found[0]!r}"] if (found := WRONG.search(err)) else []
    said = [line.removeprefix("ncfmkit: ") for line in err.splitlines() if line.startswith("ncfmkit: ")]
    if code == 0:
        return problems + ["exit code 0 and a message"] * bool(said) + ["exit code 0 and no output"] * (not out)
    if code != 130 or len(said) != 1 or not err.endswith(f"{said[0]}\n"):
        return [*problems, f"exit code {code}, messages {said}: expected 130 and one message at the end"]
    hidden = {path for path in there if Path(path).name.startswith(".") or path.split("/")[0].startswith(".")}
    if "temporary files may be left" in said[0]:
        problems += [] if twice else ["temporary files after one signal"]
        there -= hidden
    elif hidden:
        problems.append(f"temporary files were left: {sorted(hidden)}")
    return problems + _lies(said[0].partition("; temporary")[0], out, folder, there)


def _lies(said: str, out: str, folder: Path, there: set[str]) -> list[str]:
    """What does not hold of the message."""
    if said.startswith("interrupted: nothing was written"):
        return [f"nothing was written, and there are {sorted(there)}"] * bool(there)
    if found := re.search(r"--resume (\S+)", said):
        info = json.loads((folder / found[1] / "run.json").read_text())
        step = re.match(r"saved after step (\d+)", said)
        lost = step and not (folder / found[1] / "checkpoint" / f"step-{int(step[1]):08d}.pt").is_file()
        return ["the step is not there"] if lost or "settings" not in info else []
    if found := re.fullmatch(r"interrupted; already written: (.+)", said):
        named = found[1].split(", ")
        missing = [path for path in named if not (folder / path).exists()]
        unnamed = [path for path in there if not any(path == n or path.startswith(f"{n}/") for n in named)]
        return [f"missing {missing}, not named {unnamed}"] * bool(missing or unnamed)
    if found := re.match(r"interrupted: (\S+) keeps (\d+) of \d+ epochs", said):
        return [] if there == {found[1]} and int(found[2]) else [f"there are {sorted(there)}"]
    if found := re.match(r"interrupted: (\S+) has no speeds yet", said):
        return [] if there == {f"{found[1]}/validation.json", f"{found[1]}/report.html"} else [f"there are {there}"]
    if found := re.fullmatch(r"interrupted: (\d+) pictures were answered", said):
        answers = [json.loads(line) for line in out.splitlines()]
        return [] if len(answers) == int(found[1]) else [f"{len(answers)} answers"]
    return ["a message that is not known here"]


def _left_behind(group: int) -> bool:
    """Whether a process of the group is still there after some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="interrupts, over all commands")
    parser.add_argument("--only", nargs="*", help="names of commands, or how they begin")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children would inherit that it is ignored
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        prepare(made)
        chosen = {
            name: arguments
            for name, arguments in commands(made).items()
            if not options.only or any(name.startswith(begin) for begin in options.only)
        }
        trials = []
        for number in range(options.count):
            name = list(chosen)[number % len(chosen)]
            moment = rng.uniform(0, 1 if number // len(chosen) % 2 else LATEST)
            second = (moment + rng.uniform(0, 0.3),) if number % 3 == 0 else ()
            trial = interrupt(name, chosen[name], made / "cache", (moment, *second))
            trials.append(trial)
            moments = ", ".join(f"{m:.3f}" for m in trial.moments)
            print(f"{number + 1}. {name} at {moments} s: {trial.kind}", flush=True)
            for problem in trial.problems:
                print(f"WRONG: {problem}\n{trial.err}", flush=True)
    for kind, count in Counter(trial.kind for trial in trials).most_common():
        print(f"{count:4d}  {kind}")
    waited = [t.seconds - t.moments[0] for t in trials if t.code == 130]
    print(f"seconds from the signal to the end: median {np.median(waited):.2f}, most {max(waited):.2f}")
    tracebacks, wrong = sum("Traceback" in t.err for t in trials), sum(bool(t.problems) for t in trials)
    print(f"{len(trials)} interrupts: {tracebacks} with a traceback, {wrong} with anything wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
