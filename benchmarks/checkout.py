"""The checkout that is measured: where it lies, and its commit."""

import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str | None:
    """The commit, with `-dirty` where files differ from it; None without git."""
    with suppress(OSError):  # no git
        command = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return done.stdout.strip() or None
    return None
