"""The public names: imported lazily, the functions they say they are, and a set that trains."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ncfmkit
from ncfmkit.run import load_run

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {
    "network.width": 8,
    "pool.members": 1,
    "pool.epochs": 1,
    "distill.steps": 2,
    "distill.frequencies": 32,
    "distill.real_batch": 16,
    "student.repeats": 0,
}


def in_a_fresh_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = "{'torch', 'numpy', 'sklearn', 'PIL', 'matplotlib', 'rich', 'typer'}"
    assert in_a_fresh_python(f"import ncfmkit, sys; print({heavy} & set(sys.modules))") == "set()"


def test_every_public_name_is_there() -> None:
    for name in ncfmkit.__all__:
        assert getattr(ncfmkit, name) is not None
    assert set(ncfmkit._HOMES) | {"__version__"} == set(ncfmkit.__all__)
    with pytest.raises(AttributeError, match="module 'ncfmkit' has no attribute 'destill'"):
        _ = ncfmkit.destill


FIRST = {
    "a job": "import ncfmkit.jobs.distill",
    "the command line": "import ncfmkit.cli.main, ncfmkit.cli.distill",
    "several": "from ncfmkit import run; from ncfmkit.jobs import distill; from ncfmkit.scoring import students",
    "all": "import pkgutil, importlib\n"
    "for m in pkgutil.walk_packages(ncfmkit.__path__): importlib.import_module('ncfmkit.' + m.name)",
}


def test_names_are_functions_whatever_was_imported_before() -> None:
    """A module of the same name would take the function's place in the package.

    In one process for all, which forgets the package in between: the libraries below it are imported once.
    """
    code = f"""
import sys
for first in {list(FIRST.values())}:
    for name in [n for n in sys.modules if n.split(".")[0] == "ncfmkit"]:
        del sys.modules[name]
    import ncfmkit
    exec(first)
    print(*(f"{{n}}:{{type(getattr(ncfmkit, n)).__name__}}" for n in ncfmkit.__all__))
"""
    lines = in_a_fresh_python(code).splitlines()
    for first, line in zip(FIRST, lines, strict=True):
        kinds = dict(word.split(":") for word in line.split())
        functions = {n: kinds[n] for n in ("distill", "resume", "load", "save")}
        assert functions == dict.fromkeys(functions, "function"), first
        assert kinds["SyntheticSet"] == "type", first


def test_distill_load_and_use(tmp_path: Path) -> None:
    small = ncfmkit.distill("digits", out=tmp_path / "run", ipc=2, factor=2, baselines=(), **TINY)
    assert isinstance(small, ncfmkit.SyntheticSet)
    again = ncfmkit.load(tmp_path / "run")
    same = ncfmkit.load(str(tmp_path / "run" / "synthetic.safetensors"))
    assert torch.equal(again.images, small.images)
    assert again.manifest == same.manifest == small.manifest
    assert small.images.dtype == torch.uint8
    assert small.images.shape == (20, 1, 8, 8)
    assert small.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert small.ipc == 2
    images, labels = small.decoded()
    assert images.shape == (80, 1, 8, 8)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert labels.tolist() == [c for c in range(10) for _ in range(8)]
    dataset = small.as_dataset()
    assert len(dataset) == 80
    image, label = dataset[-1]
    mean, std = small.manifest["mean"][0], small.manifest["std"][0]
    torch.testing.assert_close(image, (images[-1] - mean) / std)
    assert int(label) == 9
    x_NCHW, y_N = next(iter(torch.utils.data.DataLoader(dataset, batch_size=16)))
    assert x_NCHW.shape == (16, 1, 8, 8)
    assert y_N.dtype == torch.int64
    ncfmkit.save(small, tmp_path / "copy.safetensors")
    run = tmp_path / "run" / "synthetic.safetensors"
    assert (tmp_path / "copy.safetensors").read_bytes() == run.read_bytes()


def test_baselines_as_text_or_names(tmp_path: Path) -> None:
    for number, baselines in enumerate(("none", ("none",), "random", ["random", " random "])):
        ncfmkit.distill("digits", out=tmp_path / str(number), baselines=baselines, **TINY)
        expected = [] if number < 2 else ["random"]
        assert load_run(tmp_path / str(number))["baselines"] == expected


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match=r"--ipc \(distill\.ipc\): expected 1 or more .*got 0"):
        ncfmkit.distill("digits", ipc=0)
    with pytest.raises(ncfmkit.UserError, match="unknown setting 'icp': did you mean 'ipc'"):
        ncfmkit.distill("digits", icp=1)
    with pytest.raises(ncfmkit.UserError, match="no synthetic set at"):
        ncfmkit.load("nowhere")
    with pytest.raises(ncfmkit.UserError, match="is not a run directory"):
        ncfmkit.resume("nowhere")
