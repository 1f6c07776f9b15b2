"""The hunts of tests/faults.py, short: kills and failing writes that end with the bytes of an unharmed run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("what", [["kills"], ["kills", "--ranks", "2"], ["memory"], ["writes"], ["power"]])
def test_faults_lose_nothing(what: list[str]) -> None:
    if what[0] in ("writes", "power") and (sys.platform != "linux" or shutil.which("cc") is None):
        pytest.skip("needs Linux and a C compiler")
    command = [sys.executable, "-m", "tests.faults", *what, "--count", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "no control group" in found.stderr:
        pytest.skip(found.stderr)
    assert found.returncode == 0, found.stderr
    tally = json.loads(found.stdout)
    assert tally["wrong"] == 0
    assert tally["trials"] >= 1
    assert what[0] not in ("kills", "memory") or tally["faults"] >= 1
