"""What other programs read of an exported model, by the package onnx and Python's literals alone."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import write_set

from ncfmkit.exporters import export as exporting
from ncfmkit.exporters.contract import ModelInput, ModelMetadata, ModelOutput, ModelSet, ModelStudent
from ncfmkit.exporters.plain_metadata import LONGEST_NAMES, description, plain_metadata
from ncfmkit.real.arguments import DataArguments
from ncfmkit.scoring import student_file
from ncfmkit.scoring.student_manifest import NetworkRecord

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ("it's", 'a "dog"', "größe, 犬", "{0: 1}", "two\nlines", "\ud800")


def about(**changes: Any) -> ModelMetadata:
    made: dict[str, Any] = {
        "input": ModelInput(layout="uint8-nhwc", channels=3, size=32),
        "output": ModelOutput(kind="logits"),
        "classes": NAMES,
    }
    return ModelMetadata(**made | changes)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_programs_read_the_file(
    precision: str, student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, manifest = student_file.load(student_path)
    origin = manifest.trained_on.model_copy(update={"source": "tiny", "license": "cc-by-4.0"})
    student = tmp_path / "s.safetensors"
    student_file.save(network.state_dict(), manifest.model_copy(update={"trained_on": origin}), student)
    calibration = DataArguments(data=str(write_set(tmp_path / "set.safetensors"))) if precision == "int8" else None
    exporting.export(student, out=tmp_path / "m.onnx", precision=precision, calibration=calibration)
    model = onnx.load_model(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    found = {p.key: p.value for p in model.metadata_props}
    assert list(found) == ["task", "imgsz", "names", "license", "ncfmkit"]
    assert found["task"] == "classify"
    assert ast.literal_eval(found["imgsz"]) == [8, 8]
    assert ast.literal_eval(found["names"]) == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert found["license"] == "cc-by-4.0 (of the real images: tiny)"
    assert model.doc_string == (
        "convnet classifier of 3 classes. Takes 3x8x8 RGB images, uint8 [N, C, H, W], 0 to 255, not normalized; gives "
        "logits. Trained on the synthetic set tiny-ipc1, distilled from tiny. Test accuracy of the student that it was "
        "exported from: 75.00%."
    )
    assert (model.producer_name, bool(model.producer_version)) == ("ncfmkit", True)
    for text in (*found.values(), model.doc_string):
        assert os.fspath(tmp_path) not in text


def test_any_names_are_read_as_they_are() -> None:
    names = plain_metadata(about())["names"]
    names.encode()  # the file takes it
    assert ast.literal_eval(names) == dict(enumerate(NAMES))
    assert names.startswith('{0: "it\'s", 1: \'a "dog"\'')  # as the readers have it


def test_texts_are_bounded() -> None:
    long = "x" * 5000
    student = ModelStudent(network=NetworkRecord(name=long, width=1, depth=1))
    model = about(
        classes=(long,) * 300, trained_on=ModelSet(name=long, source=long, license="l\n" * 9000), student=student
    )
    found = plain_metadata(model)
    assert "names" not in found
    assert len(found["license"]) < 500
    assert "\n" not in found["license"]
    assert len(description(model)) < 1000
    just = about(classes=("x" * (LONGEST_NAMES - len("{0: ''}")),))
    assert len(plain_metadata(just)["names"]) == LONGEST_NAMES


def test_what_is_not_known_is_not_said() -> None:
    assert set(plain_metadata(about())) == {"task", "imgsz", "names"}
    assert description(about(input=ModelInput(layout="float-nchw", channels=1, size=28), classes=("a", "b"))) == (
        "Image classifier of 2 classes. Takes 1x28x28 gray images, float32 [N, C, H, W], 0 to 1, not normalized; gives "
        "logits."
    )
