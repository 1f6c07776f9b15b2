"""The table of sources, and what importing it brings."""

import subprocess
import sys
from pathlib import Path

from ncfmkit.real.sources import SOURCES


def test_table_names_are_unique_and_described():
    names = [kind.name for kind in SOURCES]
    assert len(set(names)) == len(names)
    assert {
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "svhn",
        "folder",
        "parquet",
        "webdataset",
    } == set(names)
    assert all(kind.summary for kind in SOURCES)


def test_no_torch_at_import():
    code = "import sys, ncfmkit.real; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
