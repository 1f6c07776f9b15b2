"""The table of exporters: its rows are whole, documented, and light to read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ncfmkit.exporters import parity
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.table import EXPORTERS

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("name", EXPORTERS)
def test_rows_are_whole(name: str) -> None:
    row = EXPORTERS[name]
    optional = [role for role in ("runtime", "foreign") if getattr(row, role) is not None]
    assert all(callable(row.function(role)) for role in ("require", "convert", "publish", "open", *optional))
    assert set(row.precisions) <= set(parity.TOLERANCES)
    assert set(row.layouts or ()) <= set(LAYOUTS)
    assert row.suffix.startswith(".") or (row.suffix == row.beside == "" and row.foreign is not None)


def test_the_readme_has_every_row() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name, row in EXPORTERS.items():
        assert re.search(rf"\| `{name}` \|.*\b{', '.join(row.precisions)}\b.*`{row.extra}`", text), name


def test_help_does_not_wait_for_what_exports() -> None:
    """The table is read by `--help`."""
    code = "import sys, ncfmkit.exporters.table; print({'numpy', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout == "set()\n"
