"""`inspect` on exported models: ours, of other origin, damaged and hostile."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

from ncfmkit.exporters import onnx as onnx_export
from ncfmkit.extras import install

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")  # by which the model is exported


def test_inspect_says_what_the_model_is(onnx_path: Path) -> None:
    shown = call("inspect", onnx_path).stdout
    for text in (
        "images: uint8-nchw, 3 x 8 x 8",
        "logits: logits of 3 classes",
        "class 0, class 1",
        "fp32",
        "tiny-ipc1",
    ):
        assert text in shown
    content = json.loads(call("inspect", onnx_path, "--json").stdout)
    assert content["metadata"]["student"]["network"]["name"] == "convnet"
    assert content["nodes"]["Conv"] == 2
    assert content["bytes"] == onnx_path.stat().st_size
    assert content["producer"].startswith("ncfmkit ")


def test_inspect_needs_onnx_alone(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = call("inspect", onnx_path, "--json").stdout
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: object() if name == "onnx" else None)
    shown = call("inspect", onnx_path, "--json")
    assert (shown.exit_code, shown.stdout) == (0, expected), shown.stderr
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    shown = call("inspect", onnx_path)
    assert shown.exit_code == 2
    assert f"reading {onnx_path} needs onnx: {install('cpu')}" in shown.stderr


def test_inspect_runs_nothing(onnx_path: Path, tmp_path: Path) -> None:
    """A model that no program runs is described by what its file says."""
    model = onnx.load_model(onnx_path)
    model.graph.node[0].op_type = "Fancy"
    onnx.save_model(model, tmp_path / "m.onnx")
    assert json.loads(call("inspect", tmp_path / "m.onnx", "--json").stdout)["nodes"]["Fancy"] == 1


def test_inspect_counts_weights_under_any_name(tmp_path: Path, onnx_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    (tmp_path / "m.onnx.data").write_bytes(b"of another model")
    parts = [(tmp_path / name).stat().st_size for name in ("m.onnx", "weights.bin")]
    assert json.loads(call("inspect", tmp_path / "m.onnx", "--json").stdout)["bytes"] == sum(parts)


def test_inspect_of_a_model_of_other_origin(tmp_path: Path) -> None:
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 4, 4]), ("y", ["n", 5]))
    ]
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(np.zeros((48, 5), np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "other", ends[:1], ends[1:], [weight])
    version = onnx.helper.make_opsetid("", 20)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[version], ir_version=10), tmp_path / "other.onnx")
    shown = call("inspect", tmp_path / "other.onnx").stdout
    assert "float-nchw, 3 x 4 x 4" in shown
    assert "of 5 classes" in shown
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "other.onnx").read_bytes()[:200])
    result = call("inspect", tmp_path / "broken.onnx")
    assert result.exit_code == 2
    assert "broken.onnx is not an ONNX file, or is damaged" in result.stderr


@pytest.mark.parametrize("key", ["student", "versions", "trained_on", "int8", "student.network", "int8.calibration"])
@pytest.mark.parametrize("value", ["text", ["list"], "half a character: \ud800"])
def test_inspect_of_hostile_metadata(key: str, value: Any, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[-1].value)
    about.setdefault("int8", {})
    *parents, last = key.split(".")
    place = about[parents[0]] if parents else about
    place[last] = value
    onnx_export.save(model, about, tmp_path / "m.onnx")
    result = call("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "m.onnx is damaged or was written by a newer ncfmkit" in result.stderr


def test_inspect_shows_no_control_characters(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[-1].value)
    about["classes"] = ["\x1b[2J", "b", "c"]
    onnx_export.save(model, about, tmp_path / "m.onnx")
    result = call("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "\\x1b[2J, b, c" in result.stdout
