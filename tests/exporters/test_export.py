"""Exporting: what comes out answers as the student does and says what it is; what does not gets another name."""

import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from conftest import build_real
from exports import logits_in_float64

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import onnx as onnx_export
from ncfmkit.exporters import parity, student
from ncfmkit.exporters.preprocessing import Deployed
from ncfmkit.exporters.table import EXPORTERS
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def perturbed(spoil: Callable[[np.ndarray], None]) -> Callable[[Path, Path], None]:
    """A converter that spoils the classifier's weights."""

    def convert(source: Path, target: Path) -> None:
        model = onnx.load_model(source)
        (weight,) = (t for t in model.graph.initializer if re.search(r"classifier\.weight(_quantized)?$", t.name))
        values = onnx.numpy_helper.to_array(weight).copy()
        spoil(values)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save_model(model, target)

    return convert


def one_weight_by(part: float) -> Callable[[np.ndarray], None]:
    def spoil(values: np.ndarray) -> None:
        values.flat[0] += np.asarray(part * np.abs(values).max(), values.dtype)

    return spoil


def one_class_negated(values: np.ndarray) -> None:
    values[0] *= -1


SPOILS = [("fp32", one_weight_by(0.02)), ("fp16", one_weight_by(1.0)), ("int8", one_class_negated)]


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("precision", "spoil"), SPOILS)
def test_a_perturbed_model_is_kept_under_a_name_that_says_so(
    precision: str,
    spoil: Callable[[np.ndarray], None],
    student_path: Path,
    set_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_export, "convert_for_test", perturbed(spoil), raising=False)
    row = dataclasses.replace(EXPORTERS["onnx"], convert="ncfmkit.exporters.onnx:convert_for_test")
    monkeypatch.setitem(EXPORTERS, "onnx", row)
    folder = tmp_path / "out"
    folder.mkdir()
    calibration = DataArguments(data=str(set_path)) if precision == "int8" else None
    with pytest.raises(CheckFailed, match=r"s\.failed-parity\.onnx") as caught:
        exporting.export(student_path, out=folder / "s.onnx", precision=precision, calibration=calibration)
    assert [p.name for p in folder.iterdir()] == ["s.failed-parity.onnx"]
    assert caught.value.exit_code == 1
    assert caught.value.result is not None
    assert len(caught.value.result.failures) > 1
    for failure in caught.value.result.failures:
        assert failure in str(caught.value)


WRONG = {"mean": [0.4, 0.45, 0.5], "std": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(("precision", "key"), [("fp32", "std"), ("fp16", "mean"), ("int8", "mean")])
def test_wrong_preprocessing_is_caught(
    precision: str, key: str, student_path: Path, set_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8's own tolerance would let it pass: the float file that it is made from is compared first."""
    monkeypatch.setattr(student, "Deployed", lambda network, **values: Deployed(network, **values | {key: WRONG[key]}))
    calibration = DataArguments(data=str(set_path)) if precision == "int8" else None
    with pytest.raises(CheckFailed):
        exporting.export(student_path, out=tmp_path / "s.onnx", precision=precision, calibration=calibration)


def test_int8_of_an_opset_that_does_not_run_says_which_does(
    student_path: Path, set_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a ViT in ONNX Runtime 1.31."""

    def unopened(path: Path) -> None:
        raise UserError("its node does not fit")

    monkeypatch.setattr(onnx_export, "open_for_test", unopened, raising=False)
    monkeypatch.setitem(
        EXPORTERS, "onnx", dataclasses.replace(EXPORTERS["onnx"], open="ncfmkit.exporters.onnx:open_for_test")
    )
    how: dict[str, Any] = {
        "out": tmp_path / "s.onnx",
        "precision": "int8",
        "calibration": DataArguments(data=str(set_path)),
    }
    with pytest.raises(
        UserError, match=r"^--precision int8 --opset 21: .* does not run convnet so: pass --opset 20 or"
    ):
        exporting.export(student_path, opset=21, **how)
    with pytest.raises(UserError, match="its node does not fit"):
        exporting.export(student_path, opset=20, **how)


def test_swapped_channels_are_caught(student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference shares nothing with what is exported."""
    forward = Deployed.forward
    monkeypatch.setattr(Deployed, "forward", lambda self, images: forward(self, images.flip(1)))
    with pytest.raises(CheckFailed):
        exporting.export(student_path, out=tmp_path / "s.onnx")


@pytest.mark.usefixtures("traced_once")
def test_real_images_and_accuracy(tiny_data: RealData, student_path: Path, tmp_path: Path) -> None:
    result = exporting.export(student_path, out=tmp_path / "s.onnx", data=DataArguments(data="tiny"))
    assert [(row.images, row.count) for row in result.parity] == [("random", 138), ("real", 300)]
    test = tiny_data.test_split()
    right = (logits_in_float64(student_path, test.images).argmax(1) == test.labels).mean()
    assert result.accuracy is not None
    assert result.accuracy.to_dict() == {"data": "tiny", "images": 300, "student": right, "exported": right}
    assert right > 0.6  # it was trained


@pytest.mark.usefixtures("traced_once")
def test_int8_by_real_data_that_it_is_measured_on_too(tiny_data: RealData, student_path: Path, tmp_path: Path) -> None:
    data = DataArguments(data="tiny")
    result = exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", calibration=data, data=data)
    assert result.int8 is not None
    assert result.int8.calibration is not None
    assert result.int8.calibration.to_dict() == {"name": "tiny", "fingerprint": "tiny-0", "images": 60}
    assert result.accuracy is not None
    assert abs(result.accuracy.exported - result.accuracy.student) < 0.1


@pytest.fixture
def own_student(student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(student_path, tmp_path / "mine.safetensors"))


@pytest.mark.usefixtures("traced_once")
def test_command_writes_beside_the_student(own_student: Path, tiny_data: RealData) -> None:
    result = call("export", own_student, "--data", "tiny")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"138 random images +\S+ +\S+ +100\.00%", result.stdout)
    assert re.search(r"300 real images +\S+ +\S+ +100\.00%", result.stdout)
    assert re.search(r"accuracy on 300 test images of tiny: (\S+%), the student's \1", result.stdout)
    assert re.search(r"mine\.onnx: fp32, opset \d+, [\d.]+ KiB", result.stdout)
    again = call("export", own_student)
    assert again.exit_code == 2
    assert "mine.onnx already exists: pass --force" in again.stderr
    assert call("export", own_student, "--precision", "fp16").exit_code == 0
    assert sorted(p.name for p in own_student.parent.glob("*.onnx")) == ["mine-fp16.onnx", "mine.onnx"]


@pytest.mark.usefixtures("traced_once")
def test_command_says_one_json_object(own_student: Path, set_path: Path) -> None:
    flags = ("--precision", "int8", "--int8-skip", "blocks.0, classifier", "--calibration", set_path)
    result = call("export", own_student, *flags, "--out", "small.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["file"] == "small.onnx"
    assert content["bytes"] == Path("small.onnx").stat().st_size
    assert content["int8"]["float_layers"] == ["blocks.0", "classifier"]
    assert content["tolerance"]["agreement"] == 0.9
    assert [row["images"] for row in content["parity"]] == ["distilled"]


@pytest.mark.usefixtures("traced_once")
def test_command_ends_with_1_and_every_failure(own_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.replace(parity.TOLERANCES["fp16"], absolute=0, relative=0)
    monkeypatch.setitem(parity.TOLERANCES, "fp16", strict)
    result = call("export", own_student, "--precision", "fp16", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["file"].endswith("mine-fp16.failed-parity.onnx")
    assert len(content["failures"]) == 4
    assert result.stderr.count("random images, batch of") == 4
    assert result.stderr.count("ncfmkit: ") == 1


def test_command_refuses_flags_of_data_that_it_does_not_open(own_student: Path) -> None:
    result = call("export", own_student, "--size", "8")
    assert result.exit_code == 2
    assert "need --data" in result.stderr


def test_command_refuses_empty_names(own_student: Path) -> None:
    for flags in (["--calibration", ""], ["--int8-skip", "blocks.0,"], ["--int8-skip", ""], ["--data", ""]):
        result = call("export", own_student, "--precision", "int8", *flags)
        assert result.exit_code == 2
        assert "got an empty one" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"to": "coreml"}, r"--to 'coreml': .*onnx or tensorrt"),
        ({"precision": "bf16"}, r"--precision 'bf16' .*fp32, fp16, int8"),
        ({"to": "tensorrt", "precision": "bf16", "out": "s.engine"}, r"'bf16' with --to tensorrt: .*fp32, fp16, int8"),
        ({"layout": "nchw"}, r"--input 'nchw' .*uint8-nchw, uint8-nhwc, float-nchw"),
        ({"output": "classes"}, r"--output 'classes' .*logits, probabilities"),
        ({"out": "s.pt"}, r"--out .*s\.pt: .*\.onnx"),
        ({"out": "nowhere/s.onnx"}, r"no folder .*nowhere"),
        ({"out": "beside.onnx"}, r"beside\.onnx\.data already exists: pass --force"),
        ({"out": "failed.onnx"}, r"failed\.failed-parity\.onnx already exists: pass --force"),
        ({"out": "taken.onnx"}, r"taken\.onnx already exists: pass --force"),
        ({"opset": 99}, r"--opset 99: expected 17 to \d+"),
        ({"int8_skip": ["a"]}, r"--int8-skip .*--precision int8.*fp32"),
        ({"calibration": DataArguments(data="digits"), "precision": "fp16"}, r"--calibration .*--precision int8.*fp16"),
        ({"max_accuracy_drop": 1.0}, r"--max-accuracy-drop .*--precision int8.*fp32"),
        ({"max_accuracy_drop": 1.0, "precision": "int8"}, r"--max-accuracy-drop .*--data"),
        ({"to": "tensorrt", "out": "s.engine"}, r"TensorRT .*pip install .*\(the extra 'tensorrt'\)"),
    ],
)
def test_bad_requests(arguments: dict[str, Any], says: str, student_path: Path, tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("beside.onnx.data", "failed.failed-parity.onnx", "taken.onnx")]
    for path in mine:
        path.write_bytes(b"mine")
    out = tmp_path / arguments.get("out", "s.onnx")
    with pytest.raises(UserError, match=says):
        exporting.export(student_path, **(arguments | {"out": out}))
    assert sorted(tmp_path.iterdir()) == mine
    assert {path.read_bytes() for path in mine} == {b"mine"}


@pytest.mark.parametrize("drop", [-1, float("nan")])
def test_impossible_drop(drop: float, student_path: Path, tmp_path: Path) -> None:
    data = DataArguments(data="tiny")
    with pytest.raises(UserError, match=r"--max-accuracy-drop (-1|nan): expected 0 to 100"):
        exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", max_accuracy_drop=drop, data=data)


@pytest.mark.parametrize(
    ("real", "says"),
    [
        (build_real((3, 3)), r"safetensors has 3 classes, tiny 2"),
        (build_real(size=16), r"tiny .*16x16 rgb .*safetensors .*8x8 rgb: .*--size 8 --resize crop"),
    ],
)
def test_data_that_do_not_fit_the_student(
    real: RealData, says: str, student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataArguments, "check", lambda self, settings: None)
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: real)
    with pytest.raises(UserError, match=says):
        exporting.export(student_path, out=tmp_path / "s.onnx", data=DataArguments(data="tiny"))


@pytest.mark.parametrize(
    ("error", "says"),
    [(errno.EACCES, r"cannot write .*s\.onnx: Permission denied$"), (errno.ENOSPC, r"s\.onnx: .*; the disk is full$")],
)
def test_a_folder_that_cannot_be_written_to(
    error: int, says: str, student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(UserError, match=says):
        exporting.export(student_path, out=tmp_path / "s.onnx")
