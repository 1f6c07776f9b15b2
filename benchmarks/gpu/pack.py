"""Fills a folder with what the checks need on a machine without a network, in parts that fit one call each.

    python -m benchmarks.gpu.pack --data DATA [--packages onnxruntime.tar.xz] [--to .gpu]

A call on such a machine takes this checkout, without what git ignores, and one part's folder. CIFAR-10's Parquet files
do not fit into one call, so they are shared out over the first two. Prints each call's command and what it carries;
exit code 2: something does not fit.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.__main__ import ROOT
from benchmarks.gpu.plan import CALL_BYTES, CALL_SECONDS, PARTS
from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes
from ncfmkit.progress import notice

WITH_DATA, WITH_PACKAGES = ("step", "cifar10"), "export"  # the parts that carry them
START_SECONDS = 60  # of a call, for the machine to start and to take the files


def share_out(files: list[Path], room: int, bins: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files by part, the largest first, each into the first part that has room for it.

    Raises:
        UserError: one fits nowhere.
    """
    shared: dict[str, list[Path]] = {name: [] for name in bins}
    for file in sorted(files, key=lambda f: (-f.stat().st_size, f.name)):
        size = file.stat().st_size
        fitting = [name for name, taken in shared.items() if sum(f.stat().st_size for f in taken) + size <= room]
        if not fitting:
            raise UserError(
                f"{file.name} ({format_bytes(size)}) fits into none of the calls: {format_bytes(room)} each"
            )
        shared[fitting[0]].append(file)
    return shared


def pack(data: Path, packages: Path | None, to: Path, *, tree_bytes: int, commit: str) -> list[str]:
    """Fills `to` with a folder for each part, and returns the command of each call.

    Args:
        data: a folder of Parquet files.
        packages: an archive of Python packages for the last part.
        tree_bytes: what the checkout takes of each call.
        commit: what the results shall say that they measured.

    Raises:
        UserError: no data there, or something is larger than a call may carry.
    """
    room = CALL_BYTES - tree_bytes
    files = sorted(data.glob("*.parquet"))
    if not files:
        raise UserError(f"--data {data}: expected a folder of CIFAR-10 as .parquet files, found none in it")
    if too_long := [name for name, seconds in PARTS.items() if seconds + START_SECONDS > CALL_SECONDS]:
        raise UserError(f"part {too_long[0]} takes {PARTS[too_long[0]]} s: a call ends after {CALL_SECONDS} s")
    if packages is not None and packages.stat().st_size > room:
        raise UserError(f"{packages.name} ({format_bytes(packages.stat().st_size)}) is above {format_bytes(room)}")
    shared = share_out(files, room, WITH_DATA)
    commands = []
    for name in PARTS:
        folder = to / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = f"python -m benchmarks.gpu --parts {name} --commit {commit}"
        for file in shared.get(name, []):
            shutil.copy(file, folder / file.name)
            command += f" --data {folder}" if "--data" not in command else ""
        if name == WITH_PACKAGES and packages is not None:
            shutil.copy(packages, folder / packages.name)
            command += f" --packages {folder / packages.name}"
        commands.append(command)
    return commands


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--packages", type=Path, help="archive of Python packages, see onnxruntime_archive.py")
    parser.add_argument("--to", type=Path, default=Path(".gpu"), help="folder to fill; git ignores .gpu")
    options = parser.parse_args()
    try:
        if options.packages and not options.packages.is_file():
            raise UserError(f"--packages {options.packages}: no such file")
        tree, commit = _tree()
        commands = pack(options.data, options.packages, options.to, tree_bytes=tree, commit=commit)
    except UserError as error:
        notice(f"error: {error}")
        return 2
    for name, command in zip(PARTS, commands, strict=True):
        carried = sum(file.stat().st_size for file in (options.to / name).iterdir())
        total = f"{format_bytes(carried + tree)} of {format_bytes(CALL_BYTES)}"
        print(f"{command}\n    carries {options.to / name}, {total} with the checkout; {PARTS[name]} s")
    return 0


def _tree() -> tuple[int, str]:
    """Bytes of the files of this checkout that git does not ignore, and its commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=True).stdout

    try:
        files = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        commit = git("describe", "--always", "--dirty").strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"git cannot say what belongs to the checkout: {error}") from None
    return sum((ROOT / file).stat().st_size for file in files if (ROOT / file).is_file()), commit


if __name__ == "__main__":
    sys.exit(main())
