"""The public names: imported lazily, the functions they say they are, and a set that trains."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import traced_once
from small_runs import make_folder

import ncfmkit
from ncfmkit.errors import UserError
from ncfmkit.jobs import distill as distill_job
from ncfmkit.real.arguments import DataArguments
from ncfmkit.run import RunDirectory

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
    names = in_a_fresh_python("import ncfmkit; print(*dir(ncfmkit))").split()  # before any of them is used
    assert set(ncfmkit.__all__) <= set(names)
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
        functions = {n: kind for n, kind in kinds.items() if n.islower() and n != "__version__"}
        assert functions == dict.fromkeys(functions, "function"), first
        assert kinds["SyntheticSet"] == kinds["Result"] == "type", first


def functions() -> list[Callable[..., Any]]:
    return [getattr(ncfmkit, name) for name in ncfmkit.__all__ if inspect.isfunction(getattr(ncfmkit, name))]


@pytest.mark.parametrize("function", functions(), ids=lambda f: f.__name__)
def test_docstrings_say_what_a_caller_needs(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{part}\n" in text, f"no {part} in the docstring of {function.__name__}"
    arguments = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    for name in inspect.signature(function).parameters:
        assert name in arguments, f"{name} is not described in the docstring of {function.__name__}"


def test_commands_and_functions_have_the_same_names() -> None:
    """`pretrain`, `recipes`, `cache` and `doctor` are commands alone; `resume`, `load` and `save` functions alone."""
    from ncfmkit.cli import main

    commands = {command.callback.__name__ for command in main.app.registered_commands if command.callback}
    names = {function.__name__ for function in functions()}
    assert names - commands == {"resume", "load", "save"}
    assert commands - names == {"pretrain", "recipes", "cache", "doctor"}


class OnlyPathLike:
    """A path that is neither text nor a `Path`."""

    def __init__(self, path: str):
        self.path = path

    def __fspath__(self) -> str:
        return self.path


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("kind", [str, Path, OnlyPathLike], ids=lambda kind: kind.__name__)
def test_every_function_takes_any_path(kind: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    for split in ("train", "test"):
        make_folder(Path("photos") / split, {"bird": 6, "cat": 6, "dog": 6})
    small = "[network]\nwidth = 8\ndepth = 2\n[runtime]\ncompile = 'off'\ndevice = 'cpu'\n"
    Path("tiny.toml").write_text(small, encoding="utf-8")
    Path("classes.txt").write_text("dog\ncat\n", encoding="utf-8")
    torch.save(torch.rand(4, 1, 8, 8), "images.pt")
    torch.save(torch.tensor([0, 0, 1, 1]), "named.pt")
    photos = kind("photos")
    made: dict[str, Any] = {}
    how = {key: value for key, value in TINY.items() if key != "network.width"} | {"student.repeats": 1}
    how |= {"student.epochs": 1, "distill.ipc": 2, "data.classes": kind("classes.txt")}
    longer: dict[str, Any] = {"pool.epochs": 40}  # extractors that can teach
    calls: dict[str, Callable[[], Any]] = {
        "distill": lambda: ncfmkit.distill(
            photos, recipe=kind("tiny.toml"), out=kind("run"), data_root=kind("elsewhere"), **how
        ),
        "resume": lambda: ncfmkit.resume(kind("run")),
        "load": lambda: ncfmkit.load(kind("run")),
        "save": lambda: ncfmkit.save(made["load"], kind("copy.safetensors")),
        "inspect": lambda: ncfmkit.inspect(kind("copy.safetensors")),
        "evaluate": lambda: ncfmkit.evaluate(kind("run"), data=photos),
        "merge": lambda: ncfmkit.merge([kind("shard-1"), kind("shard-2")], out=kind("joined")),
        "relabel": lambda: ncfmkit.relabel(kind("run"), out=kind("soft.safetensors"), data=photos, **longer),
        "assess": lambda: ncfmkit.assess(
            kind("run"), data=photos, only="architectures", out=kind("assessed"), data_root=kind("elsewhere")
        ),
        "compare": lambda: ncfmkit.compare(
            [kind("run"), kind("soft.safetensors")], data=photos, out=kind("versus"), data_root=kind("elsewhere")
        ),
        "train": lambda: ncfmkit.train(kind("run"), out=kind("student.safetensors"), data=photos),
        "pack": lambda: ncfmkit.pack(
            kind("run"), to="png", out=kind("packed"), license="mit", score=True, data=photos, repeats=2
        ),
        "verify": lambda: ncfmkit.verify(kind("packed"), score=True, data=photos, data_root=kind("elsewhere")),
        "push": lambda: ncfmkit.push(kind("packed"), "hf://me/packed", dry_run=True),
        "unpack": lambda: ncfmkit.unpack(kind("packed"), out=kind("unpacked.safetensors")),
        "convert": lambda: ncfmkit.convert(
            kind("images.pt"),
            data=photos,
            labels=kind("named.pt"),
            classes=kind("classes.txt"),
            out=kind("converted.safetensors"),
        ),
        "export": lambda: ncfmkit.export(
            kind("student.safetensors"),
            out=kind("student.onnx"),
            precision="int8",
            data=photos,
            calibration=kind("run"),
            classes=kind("classes.txt"),
        ),
        "validate": lambda: ncfmkit.validate(
            kind("student.onnx"),
            data=photos,
            against=kind("student.safetensors"),
            out=kind("valid"),
            speed=False,
            classes=kind("classes.txt"),
        ),
        "predict": lambda: list(ncfmkit.predict(kind("student.onnx"), kind("photos/test"))),
    }
    assert calls.keys() == {function.__name__ for function in functions()}
    monkeypatch.setattr("ncfmkit.exporters.calibration.FEWEST", 1)
    for k in (1, 2):
        apart = how | {"distill.shard": f"{k}/2", "distill.schedule": "constant"}
        source = DataArguments(data="photos")
        distill_job.start(source, recipe="tiny.toml", out=f"shard-{k}", baselines=(), overrides=apart)
    with traced_once():
        for name, call in calls.items():
            made[name] = call()
    run = RunDirectory.open(Path("run")).info()
    assert (run.data.name, run.data.train, run.data.classes) == ("photos", 12, ("cat", "dog"))
    assert run.arguments["data"] == str(Path("photos").absolute())
    assert run.arguments["data_root"] == str(Path("elsewhere").absolute())
    assert made["distill"].run_dir == made["resume"].run_dir == Path("run")
    assert made["distill"].scores.rows[0].n == 1
    assert Path("copy.safetensors").read_bytes() == Path("run/synthetic.safetensors").read_bytes()
    assert made["inspect"].summary["source"] == "photos, 12 training images"
    assert made["evaluate"].rows[0].n == 1
    assert [row.name for row in made["compare"].sets] == ["run", "soft.safetensors"]
    assert Path("versus/compare.html").is_file()
    assert made["assess"].architectures.rows[0].n == 1
    assert made["merge"].set.classes == ("cat", "dog")
    assert made["train"].test_accuracy is not None
    assert made["pack"][0] == Path("packed")
    assert made["verify"].measured.n == 2
    assert "train/cat/00000.png" in made["push"].files
    assert made["unpack"][0] == Path("unpacked.safetensors")
    assert made["convert"][1].manifest.source.name == "photos"
    assert made["export"].file == "student.onnx"
    assert made["validate"].data.name == "photos"
    assert json.loads(Path("valid/validation.json").read_text(encoding="utf-8"))["failures"] == []
    assert len(made["predict"]) == 18


@pytest.mark.usefixtures("own_folder")
def test_a_path_is_never_the_name_of_a_source() -> None:
    assert DataArguments(data="digits").data == "digits"
    with pytest.raises(UserError, match="no data found at"):
        ncfmkit.distill(Path("digits"), **TINY)
    make_folder(Path("digits"), {"cat": 6, "dog": 6})
    result = ncfmkit.distill(Path("digits"), ipc=1, compile="off", **TINY)
    assert result.set.classes == ("cat", "dog")


@pytest.mark.parametrize("data", [None, 3, b"digits"])
def test_data_of_another_type(data: Any) -> None:
    with pytest.raises(UserError, match=r"expected a name or a path, .*got a"):
        ncfmkit.distill(data, **TINY)


def test_settings_of_data_that_are_not_given(set_path: Path) -> None:
    for keywords in ({"download": True}, {"size": 8}, {"data.color": "gray"}):
        with pytest.raises(UserError, match=r"how to read the real data, but no data are given"):
            ncfmkit.train(set_path, out="never.safetensors", **keywords)


def test_distill_load_and_use(tmp_path: Path) -> None:
    result = ncfmkit.distill("digits", out=tmp_path / "run", ipc=2, factor=2, baselines=(), **TINY)
    assert isinstance(result, ncfmkit.Result)
    assert result.scores is None
    assert repr(result) == (
        f"Result(SyntheticSet(10 classes x 2 images of 1x8x8, factor 2), run_dir={str(tmp_path / 'run')!r})"
    )
    shown = dataclasses.replace(result, run_dir=Path("a<b"))._repr_html_()
    assert shown.startswith(result.set._repr_html_())
    assert "a&lt;b" in shown
    small = result.set
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
    mean, std = small.manifest.mean[0], small.manifest.std[0]
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
        expected = () if number < 2 else ("random",)
        assert RunDirectory.open(tmp_path / str(number)).info().baselines == expected


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match=r"--ipc \(distill\.ipc\): expected 1 or more .*got 0"):
        ncfmkit.distill("digits", ipc=0)
    with pytest.raises(ncfmkit.UserError, match=r"unknown setting 'icp'; did you mean 'distill\.ipc'"):
        ncfmkit.distill("digits", icp=1)
    with pytest.raises(ncfmkit.UserError, match="no synthetic set at"):
        ncfmkit.load("nowhere")
    with pytest.raises(ncfmkit.UserError, match="is not a run directory"):
        ncfmkit.resume("nowhere")
