"""Fills a folder with what the checks need on a machine without a network, where uploads and commands are limited.

    python -m benchmarks.gpu.pack --data DATA [--packages onnxruntime.tar.xz] [--bytes 64MiB] [--seconds 600]

Every part gets an upload, of this checkout without what git ignores and the part's folder, and a command. CIFAR-10's
Parquet files may not fit into one upload, so they are shared out over the first two. Prints each part's command and how
large its upload is; exit code 2: something does not fit.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.checkout import ROOT, commit
from benchmarks.gpu.plan import PARTS
from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes, parse_bytes
from ncfmkit.progress import notice

WITH_DATA, WITH_PACKAGES = ("step", "cifar10"), "export"  # the parts that carry them
START_SECONDS = 60  # of a command, to start and to take the files


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
                f"{file.name} ({format_bytes(size)}) fits into no upload: {format_bytes(room)} are left of each"
            )
        shared[fitting[0]].append(file)
    return shared


def pack(data: Path, packages: Path | None, to: Path, *, room: int, commit: str) -> list[str]:
    """Fills `to` with a folder for each part, and returns the command of each.

    Args:
        data: a folder of Parquet files.
        packages: an archive of Python packages for the last part.
        room: bytes that each folder may take.
        commit: what the results shall say that they measured.

    Raises:
        UserError: no data there, or something is too large.
    """
    files = sorted(data.glob("*.parquet"))
    if not files:
        raise UserError(f"--data {data}: expected a folder of CIFAR-10 as .parquet files, found none in it")
    if packages is not None and packages.stat().st_size > room:
        size = format_bytes(packages.stat().st_size)
        raise UserError(f"{packages.name} ({size}) fits into no upload: {format_bytes(room)} are left of each")
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
    parser.add_argument("--bytes", default="64MiB", help="the most that one upload may take, checkout included")
    parser.add_argument("--seconds", type=float, default=600, help="the most that one command may take")
    options = parser.parse_args()
    try:
        limit = parse_bytes(options.bytes, "--bytes")
        needed = max(PARTS.values()) + START_SECONDS
        if options.seconds < needed:
            raise UserError(f"--seconds {options.seconds:g}: the longest part takes {needed} s with its start")
        if options.packages and not options.packages.is_file():
            raise UserError(f"--packages {options.packages}: no such file")
        tree, measured = _tree()
        if tree > limit:
            raise UserError(f"--bytes {options.bytes}: the checkout alone takes {format_bytes(tree)}")
        commands = pack(options.data, options.packages, options.to, room=limit - tree, commit=measured)
    except UserError as error:
        notice(f"error: {error}")
        return 2
    for name, command in zip(PARTS, commands, strict=True):
        carried = sum(file.stat().st_size for file in (options.to / name).iterdir())
        total = f"{format_bytes(carried + tree)} of {format_bytes(limit)}"
        print(f"{command}\n    needs {options.to / name}, {total} with the checkout; {PARTS[name]} s")
    return 0


def _tree() -> tuple[int, str]:
    """Bytes of the files of this checkout that git does not ignore, and its commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"git cannot say what belongs to the checkout: {error}") from None
    measured = commit()
    if measured is None:
        raise UserError("git names no commit of the checkout: make one first")
    return sum((ROOT / file).stat().st_size for file in said.split("\0") if (ROOT / file).is_file()), measured


if __name__ == "__main__":
    sys.exit(main())
