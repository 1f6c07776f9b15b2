"""Runs the checks that only a machine with a GPU can make, each in a process of its own with a time limit.

    python -m benchmarks.gpu --data DATA                  # everything; 13 minutes at most
    python -m benchmarks.gpu --parts step --only rates,step
    NCFM_CPU=1 python -m benchmarks.gpu                   # all of it in miniature on a CPU: does it run?

After every check OUT/results-PART.json is written anew and OUT/log-PART.txt grows, so that a check that fails, hangs or
finds no time left costs no other its result. Exit code 1: some check failed.
"""

import argparse
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import ROOT, commit
from benchmarks.gpu.plan import CHECKS, PARTS, SMALL, Check
from ncfmkit.errors import UserError
from ncfmkit.files import write_json
from ncfmkit.progress import notice

LEAST = 5  # seconds that a check is started for
LOGGED = 60_000  # characters of what a check said, at most


class Part:
    """One part's checks, run one after another within its seconds."""

    def __init__(self, name: str, seconds: float, *, out: Path, keep: Path, about: dict[str, Any]):
        self.name, self.seconds, self.out, self.keep = name, seconds, out, keep
        self.start = time.monotonic()
        self.checks: dict[str, dict[str, Any]] = {}
        self.results = {"part": name, "about": about, "checks": self.checks}
        self.environment = os.environ | {
            "NCFM_OUT": str(out),
            "NCFM_KEEP": str(keep),
            "PYTHONUNBUFFERED": "1",
            # both are kept, so that a later check or part finds what an earlier one compiled
            "NCFMKIT_CACHE": os.environ.get("NCFMKIT_CACHE", str(keep / "cache")),
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(keep / "compiled")),
        }
        if SMALL:
            self.environment["TRITON_INTERPRET"] = "1"
        if (keep / "packages").is_dir():
            path = os.environ.get("PYTHONPATH", "")
            self.environment["PYTHONPATH"] = os.pathsep.join([str(keep / "packages"), *filter(None, [path])])
        (out / f"log-{name}.txt").write_text("", encoding="utf-8")
        self.write()

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def write(self) -> None:
        write_json(self.out / f"results-{self.name}.json", self.results)

    def run(self, check: Check, limit: float) -> None:
        """Runs a check for at most `limit` seconds or what is left; its last line of JSON is its result."""
        limit = min(limit, self.left() - 2)
        row: dict[str, Any] = {"limit": round(limit, 1)}
        self.checks[check.name] = row
        if limit < LEAST:
            row["skipped"] = f"{max(0, self.left()):.0f} s are left of this part"
        elif check.needs and not (self.keep / check.needs).exists():
            row["skipped"] = f"there is no {check.needs}: an earlier check makes it"
        else:
            self._start(check, limit, row)
        outcome = row.get("skipped") or f"exit code {row['code']}, {row['seconds']} s"
        said = json.dumps(row.get("result", row.get("tail", "")))
        notice(f"[{time.monotonic() - self.start:4.0f} s] {check.name}: {outcome} {said[:400]}")
        self.write()

    def _start(self, check: Check, limit: float, row: dict[str, Any]) -> None:
        places = {
            "device": "cpu" if SMALL else "cuda",
            "provider": "cpu" if SMALL else "cpu,cuda",
            "data": "digits" if SMALL else str(self.keep / "data"),
            "keep": str(self.keep),
            "out": str(self.out),
            "seconds": f"{limit:.0f}",
        }
        arguments = check.arguments + (check.small if SMALL else ())
        command = [sys.executable, *(argument.format(**places) for argument in arguments)]
        start = time.monotonic()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command, stdout=said, stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT, start_new_session=True
            )
            try:
                row["code"] = process.wait(limit)
            except subprocess.TimeoutExpired:
                row["code"] = "out of time"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # this check and what it started, a group of their own
                    process.wait()
            row["seconds"] = round(time.monotonic() - start, 1)
            said.seek(0)
            text = said.read().decode(errors="replace")
        result = last_json(text)
        if result is not None:
            row["result"] = result
        if row["code"] != 0:
            row["tail"] = text[-2500:]
        with open(self.out / f"log-{self.name}.txt", "a", encoding="utf-8") as log:
            log.write(f"\n=== {check.name}: {row['code']}, {row['seconds']} s\n{text[-LOGGED:]}")


def last_json(text: str) -> Any:
    """The last line that is a JSON object, or None."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def keep_data(source: Path, keep: Path) -> None:
    """Copies real data into the folder that is kept; what comes in several parts is put together there.

    Raises:
        UserError: there are no Parquet files.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise UserError(f"--data {source}: expected a folder of CIFAR-10 as .parquet files, found none in it")
    (keep / "data").mkdir(exist_ok=True)
    for file in files:
        shutil.copy(file, keep / "data" / file.name)


def unpack(archive: Path, keep: Path) -> None:
    """Unpacks Python packages, whole or not at all, to where the checks find them before those that are installed.

    What an earlier archive left there goes.

    Raises:
        UserError: it cannot be read.
    """
    packages, part = keep / "packages", keep / "packages.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        shutil.rmtree(packages, ignore_errors=True)
        part.rename(packages)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"--packages {archive} cannot be unpacked ({error}): expected a whole tar archive") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def chosen(names: str, known: list[str], flag: str) -> list[str]:
    """Names from a comma-separated list; of a check, its first word stands for all that begin with it.

    Raises:
        UserError: an unknown one.
    """
    asked = names.split(",") if names else known
    for name in asked:
        if not any(k == name or k.split()[0] == name for k in known):
            raise UserError(f"{flag} {name!r}: expected some of {', '.join(known)}")
    return [k for k in known if k in asked or k.split()[0] in asked]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="", help="some of " + ",".join(PARTS))
    parser.add_argument("--only", default="", help="names of checks; `step` stands for all that begin with it")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's Parquet files, or of some of them")
    parser.add_argument("--packages", type=Path, help="archive of Python packages for the checks, such as onnxruntime")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="where the results go")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "ncfmkit-gpu", help="data, caches")
    parser.add_argument("--times", type=float, default=1.0, help="every limit times this, where time is not short")
    parser.add_argument("--commit", help="what to say that is measured, where the files come without git")
    parser.add_argument("--list", action="store_true", help="print the checks and their limits")
    options = parser.parse_args()
    try:
        parts = chosen(options.parts, list(PARTS), "--parts")
        names = chosen(options.only, [check.name for check in CHECKS], "--only")
        checks = [check for check in CHECKS if check.part in parts and check.name in names]
        if options.times <= 0:
            raise UserError(f"--times {options.times}: expected a number above 0")
        if options.list:
            for check in checks:
                print(f"{check.part:8} {check.seconds:4.0f} s  {check.name}")
            return 0
        if not SMALL and not torch.cuda.is_available():
            raise UserError(
                f"torch {torch.__version__} sees no GPU: NCFM_CPU=1 runs the checks in miniature on the CPU instead"
            )
        out, keep = options.out.resolve(), options.keep.resolve()
        for folder in (out, keep):
            folder.mkdir(parents=True, exist_ok=True)
        if options.data:
            keep_data(options.data, keep)
        if options.packages:
            unpack(options.packages, keep)
    except UserError as error:
        notice(f"error: {error}")
        return 2
    about = {"commit": options.commit or commit(), "date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0]}
    failed = []
    for name in parts:
        part = Part(name, PARTS[name] * options.times, out=out, keep=keep, about=about)
        for check in checks:
            if check.part == name:
                part.run(check, check.seconds * options.times)
        failed += [check for check, row in part.checks.items() if row.get("code", 0) != 0]
    notice(f"{out}: results-PART.json, log-PART.txt" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
