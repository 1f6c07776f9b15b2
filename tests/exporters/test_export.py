"""Exporting: what comes out answers as the student does and says what it is; what does not gets another name."""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import TINY_NETWORK, build_real, build_set, write_student
from torch import nn
from typer.testing import CliRunner, Result

from ncfmkit import networks
from ncfmkit.cli import main, options
from ncfmkit.config import NetworkSettings, Settings
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.scoring import student_file
from ncfmkit.sets import set_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ncfmkit.exporters import export as exporting  # noqa: E402
from ncfmkit.exporters import onnx as onnx_export  # noqa: E402
from ncfmkit.exporters import parity, quantize  # noqa: E402
from ncfmkit.exporters.calibration import spread  # noqa: E402
from ncfmkit.exporters.contract import LAYOUTS, OUTPUTS  # noqa: E402
from ncfmkit.exporters.preprocessing import Deployed  # noqa: E402
from ncfmkit.exporters.sessions import open_session  # noqa: E402
from ncfmkit.exporters.table import EXPORTERS  # noqa: E402

SIDES = {"convnet": 8, "alexnet": 8, "vgg11": 28, "resnet18": 9, "resnetap10": 16, "densenet121": 32}


def images_of(count: int, channels: int, size: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def logits_in_float64(path: Path, images: np.ndarray) -> np.ndarray:
    """The student's own logits of pixels, all in float64, without any code of the exporters."""
    network, metadata = student_file.load(path)
    mean, std = (np.array(metadata[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        return network.double()(torch.from_numpy((images / 255 - mean) / std)).numpy()


def write_set(path: Path, *, count: int = 12, size: int = 8, digests: dict[str, str] | None = None) -> Path:
    """A set of 3 classes; it decodes to as many images as it stores."""
    small = build_set("single", 1, ipc=count // 3, size=size, name="tiny-ipc4")
    real = build_real((count // 3,) * 3, size=size)
    set_file.save(dataclasses.replace(small, images=torch.from_numpy(real.train.images)), path)
    return path


def by_set(path: Path) -> DataArguments:
    return DataArguments(data=str(path))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> DataArguments:
    """Real data that the tiny student knows, without files."""
    real = build_real((40, 40, 40), test_counts=(90, 100, 110))  # more than a batch, classes of their own difficulty
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: real)
    return DataArguments(data="tiny", data_root=None, download=False, skip_bad=False)


ALL = [
    pytest.param(name, precision, marks=[pytest.mark.slow] * (name == "densenet121" and precision != "fp32"))
    for name in networks.NETWORKS
    for precision in EXPORTERS["onnx"].precisions
]


@pytest.mark.parametrize(("name", "precision"), ALL)
def test_every_network_in_every_precision(name: str, precision: str, tmp_path: Path) -> None:
    size = SIDES[name]
    network = TINY_NETWORK if name == "convnet" else NetworkSettings(name=name)
    epochs = 3 if name == "densenet121" else 0  # untrained, int8 of its 120 layers is just out of tolerance
    student = write_student(tmp_path / "s.safetensors", build_real(size=size), network, epochs=epochs)
    calibration = by_set(write_set(tmp_path / "set.safetensors", size=size)) if precision == "int8" else None
    result = exporting.export(student, out=tmp_path / "s.onnx", precision=precision, calibration=calibration)
    assert result["failures"] == []
    images = images_of(20, 3, size)
    expected = logits_in_float64(student, images)
    got = open_session(tmp_path / "s.onnx")(images)
    allowed = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.4}[precision] * np.abs(expected).max()
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < allowed
    assert np.abs(got - expected).max() > 0  # they are two computations


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", EXPORTERS["onnx"].precisions)
def test_inputs_and_outputs(layout: str, output: str, precision: str, student_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.onnx"
    calibration = by_set(write_set(tmp_path / "set.safetensors")) if precision == "int8" else None
    asked: dict[str, Any] = {"layout": layout, "output": output, "precision": precision}
    exporting.export(student_path, out=out, calibration=calibration, **asked)
    session = open_session(out)
    assert (session.contract.layout, session.contract.output) == (layout, output)
    images = images_of(9, 3, 8)
    expected = logits_in_float64(student_path, images)
    if output == "probabilities":
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(session(images), expected, atol={"fp32": 1e-5, "fp16": 0.02, "int8": 0.5}[precision])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28])  # 28 is padded
def test_gray_and_padded_images(channels: int, size: int, tmp_path: Path) -> None:
    student = write_student(tmp_path / "s.safetensors", build_real(size=size, channels=channels), epochs=0)
    exporting.export(student, out=tmp_path / "s.onnx")
    images = images_of(5, channels, size)
    np.testing.assert_allclose(open_session(tmp_path / "s.onnx")(images), logits_in_float64(student, images), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 33])
def test_any_batch(count: int, onnx_path: Path, student_path: Path) -> None:
    images = images_of(count, 3, 8)
    np.testing.assert_allclose(open_session(onnx_path)(images), logits_in_float64(student_path, images), atol=1e-5)


def test_lowered_norms_are_the_same_function_and_leave_the_network_alone(student_path: Path) -> None:
    network, metadata = student_file.load(student_path)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    arguments = {"mean": metadata["mean"], "std": metadata["std"]}
    plain, lowered = Deployed(network, **arguments), Deployed(network, **arguments, lower_norms=True)
    assert not any(isinstance(m, nn.GroupNorm) for m in lowered.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in plain.modules())
    images = torch.from_numpy(images_of(6, 3, 8))
    torch.testing.assert_close(plain(images), lowered(images))
    half = Deployed(network, **arguments, half=True, lower_norms=True)
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.InstanceNorm2d)} == {torch.float32}
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {torch.float16}
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_norm_over_groups_stays_what_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 3))
    lowered = Deployed(network, mean=[0.5] * 3, std=[0.2] * 3, lower_norms=True)
    assert [type(m) for m in lowered.network][1] is nn.GroupNorm


def test_metadata_and_nodes(onnx_path: Path, student_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    onnx.checker.check_model(model, full_check=True)
    assert [p.key for p in model.metadata_props] == ["ncfmkit"]
    about = json.loads(model.metadata_props[0].value)
    assert about["classes"] == ["class 0", "class 1", "class 2"]
    assert about["input"] == {"name": "images", "layout": "uint8-nchw", "channels": 3, "size": 8}
    assert about["output"] == {"name": "logits", "kind": "logits"}
    assert about["precision"] == "fp32"
    assert about["trained_on"] == {"name": "tiny-ipc1", "manifest_sha256": "1" * 64}
    assert about["student"]["test_accuracy"] == 0.75
    assert about["student"]["sha256"] == hashlib.sha256(student_path.read_bytes()).hexdigest()
    assert set(about["versions"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert model.opset_import[0].version == about["opset"]
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    assert {"blocks.0/Conv", "blocks.1/InstanceNormalization", "classifier/Gemm"} <= set(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_no_trace_of_the_machine(onnx_path: Path) -> None:
    content = onnx_path.read_bytes()
    for trace in (b".py", b"site-packages", str(Path.home()).encode(), str(Path(__file__).parent).encode(), b"aten."):
        assert trace not in content


@pytest.mark.parametrize("precision", EXPORTERS["onnx"].precisions)
def test_the_same_export_gives_the_same_bytes(precision: str, student_path: Path, tmp_path: Path) -> None:
    calibration = by_set(write_set(tmp_path / "set.safetensors")) if precision == "int8" else None
    for name in ("a", "b"):
        exporting.export(student_path, out=tmp_path / f"{name}.onnx", precision=precision, calibration=calibration)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_precisions_are_smaller_and_what_they_say(student_path: Path, tmp_path: Path) -> None:
    wide = write_student(
        tmp_path / "w.safetensors", build_real(), dataclasses.replace(TINY_NETWORK, width=64), epochs=0
    )
    calibration = by_set(write_set(tmp_path / "set.safetensors"))
    sizes, types = {}, {}
    for precision in ("fp32", "fp16", "int8"):
        out = tmp_path / f"{precision}.onnx"
        exporting.export(wide, out=out, precision=precision, calibration=calibration if precision == "int8" else None)
        model = onnx.load_model(out)
        sizes[precision] = out.stat().st_size
        kinds = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
        types[precision] = {kind for name, kind in kinds.items() if "blocks.4.weight" in name and "scale" not in name}
        assert {onnx.TensorProto.DataType.Name(model.graph.output[0].type.tensor_type.elem_type)} == {"FLOAT"}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert types["fp16"] == {"FLOAT16"}
    assert "INT8" in types["int8"]
    assert "FLOAT" not in types["int8"]


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_opsets(opset: int, student_path: Path, tmp_path: Path) -> None:
    exporting.export(student_path, out=tmp_path / "s.onnx", opset=opset)
    assert onnx.load_model(tmp_path / "s.onnx").opset_import[0].version == opset
    images = images_of(4, 3, 8)
    expected = logits_in_float64(student_path, images)
    np.testing.assert_allclose(open_session(tmp_path / "s.onnx")(images), expected, atol=1e-5)


def test_the_newest_opset_is_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = onnx_export.choose_opset(None)
    assert onnx_export._runs(newest)
    assert not onnx_export._runs(onnx.defs.onnx_opset_version())  # onnx 1.23 knows more than this ONNX Runtime runs
    monkeypatch.setattr(onnx_export, "_runs", lambda opset: opset <= 19)  # an older ONNX Runtime
    assert onnx_export.choose_opset(None) == 19
    assert onnx_export.choose_opset(18) == 18
    for asked in (17, 20):
        with pytest.raises(UserError, match=rf"--opset {asked}: expected 18 to 19, the newest that torch .* exports"):
            onnx_export.choose_opset(asked)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_large_models_keep_their_weights_beside_them(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_EMBEDDED", 1000)
    network = dataclasses.replace(TINY_NETWORK, width=32)
    student_path = write_student(tmp_path / "wide.safetensors", build_real(), network, epochs=0)
    calibration = by_set(write_set(tmp_path / "set.safetensors")) if precision == "int8" else None
    folder = tmp_path / "out"
    folder.mkdir()
    result = exporting.export(student_path, out=folder / "s.onnx", precision=precision, calibration=calibration)
    assert sorted(p.name for p in folder.iterdir()) == ["s.onnx", "s.onnx.data"]
    assert result["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    images = images_of(4, 3, 8)
    expected = logits_in_float64(student_path, images)
    atol = 1e-5 if precision == "fp32" else 0.4 * np.abs(expected).max()
    np.testing.assert_allclose(open_session(folder / "s.onnx")(images), expected, atol=atol)
    shown = call("inspect", folder / "s.onnx", "--json")
    assert json.loads(shown.stdout)["bytes"] == result["bytes"]
    (folder / "s.onnx.data").unlink()
    with pytest.raises(UserError, match=r"s\.onnx"):
        open_session(folder / "s.onnx")


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


@pytest.mark.parametrize(("precision", "spoil"), SPOILS)
def test_a_perturbed_model_is_kept_under_a_name_that_says_so(
    precision: str,
    spoil: Callable[[np.ndarray], None],
    student_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibration = by_set(write_set(tmp_path / "set.safetensors")) if precision == "int8" else None
    monkeypatch.setattr(onnx_export, "convert_for_test", perturbed(spoil), raising=False)
    row = dataclasses.replace(EXPORTERS["onnx"], convert="ncfmkit.exporters.onnx:convert_for_test")
    monkeypatch.setitem(EXPORTERS, "onnx", row)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(CheckFailed, match=r"does not answer as the student does.*s\.failed-parity\.onnx") as caught:
        exporting.export(student_path, out=folder / "s.onnx", precision=precision, calibration=calibration)
    assert [p.name for p in folder.iterdir()] == ["s.failed-parity.onnx"]
    assert caught.value.exit_code == 1
    assert len(caught.value.result["failures"]) > 1
    for failure in caught.value.result["failures"]:
        assert failure in str(caught.value)


def rows_of(expected: np.ndarray, got: np.ndarray, output: str = "logits") -> list[dict[str, Any]]:
    """What `compare` says of two tables of scores; images are their own places in the table."""
    images = np.arange(len(expected))
    return parity.compare(lambda i: expected[i], lambda i: got[i], {"random": images}, output=output)


def test_differences_against_a_naive_loop() -> None:
    rng = np.random.default_rng(1)
    expected = rng.normal(size=(40, 5))
    got = expected + rng.normal(size=(40, 5)) * 1e-3
    (row,) = rows_of(expected, got)
    assert [b["size"] for b in row["batches"]] == [1, 2, 7, 30]
    assert row["max_abs"] == pytest.approx(max(abs(a - b) for a, b in zip(expected.flat, got.flat, strict=True)))
    assert row["max_rel"] == pytest.approx(
        max(
            np.abs(expected[part] - got[part]).max() / np.abs(expected[part]).max()
            for part in (slice(1), slice(1, 3), slice(3, 10), slice(10, 40))
        )
    )
    spread = sum((x - image.mean()) ** 2 for image in expected for x in image)
    squares = sum((a - b) ** 2 for a, b in zip(expected.flat, got.flat, strict=True))
    assert row["rms"] == pytest.approx((squares / spread) ** 0.5)
    assert row["agreement"] == sum(a.argmax() == b.argmax() for a, b in zip(expected, got, strict=True)) / 40


def test_probabilities_are_compared_by_their_logarithms() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 5)) * 5
    other = logits + 0.01 * np.eye(20, 5)
    probabilities = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, other)]
    (row,) = rows_of(*probabilities, output="probabilities")
    assert row["max_abs"] == pytest.approx(0.01 * 4 / 5, rel=1e-3)  # both are centerd


TOLERANCE = parity.Tolerance(absolute=0.1, relative=0.0, rms=1.0, tie=0.05, agreement=1.0)


def test_every_failure_is_listed() -> None:
    expected = np.tile(np.eye(4) * 2, (10, 1))
    got = expected.copy()
    got[0] += 0.5
    got[20] += 0.7
    found = parity.failures(rows_of(expected, got), TOLERANCE)
    assert [re.search(r"batch of (\d+): .* by up to ([\d.]+), allowed 0.1", line).groups() for line in found] == [
        ("1", "0.5"),
        ("30", "0.7"),
    ]
    assert parity.failures(rows_of(expected, expected), TOLERANCE) == []
    tight = dataclasses.replace(TOLERANCE, rms=0.1, absolute=0.75)
    assert "root mean square" in parity.failures(rows_of(expected, got), tight)[0]
    got[5] = np.nan
    for ours, theirs in ((expected, got), (got, expected)):  # neither side may be without an answer
        says = ["40 random images: not all outputs of student and export are finite"]
        assert parity.failures(rows_of(ours, theirs), TOLERANCE) == says


def test_a_constant_student_has_no_spread_to_compare_with() -> None:
    constant = np.full((40, 4), 5.0)
    assert parity.failures(rows_of(constant, constant + 1e-6 * np.eye(40, 4)), TOLERANCE) == []
    assert parity.failures(rows_of(constant, constant + np.eye(40, 4)), TOLERANCE)


def test_every_image_is_compared() -> None:
    expected = np.eye(600, 4) * 2
    got = expected.copy()
    got[-1] += 0.5
    (row,) = rows_of(expected, got)
    assert [b["size"] for b in row["batches"]] == [1, 2, 7, 128, 128, 128, 128, 78]
    assert len(parity.failures([row], TOLERANCE)) == 1


def wrong_mean(values: dict[str, Any]) -> None:
    values["mean"] = [0.4, 0.45, 0.5]


def no_std(values: dict[str, Any]) -> None:
    values["std"] = [1.0, 1.0, 1.0]


@pytest.mark.parametrize("precision", EXPORTERS["onnx"].precisions)
@pytest.mark.parametrize("spoil", [wrong_mean, no_std])
def test_wrong_preprocessing_is_caught(
    spoil: Callable[[dict[str, Any]], None],
    precision: str,
    student_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """int8's own tolerance would let it pass: the float file that it is made from is compared first."""

    def spoiled(network: nn.Module, **values: Any) -> Deployed:
        spoil(values)
        return Deployed(network, **values)

    monkeypatch.setattr(onnx_export, "Deployed", spoiled)
    calibration = by_set(write_set(tmp_path / "set.safetensors")) if precision == "int8" else None
    with pytest.raises(CheckFailed):
        exporting.export(student_path, out=tmp_path / "s.onnx", precision=precision, calibration=calibration)


def test_swapped_channels_are_caught(student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference shares nothing with what is exported."""
    forward = Deployed.forward
    monkeypatch.setattr(Deployed, "forward", lambda self, images: forward(self, images.flip(1)))
    with pytest.raises(CheckFailed):
        exporting.export(student_path, out=tmp_path / "s.onnx")


def test_agreement_leaves_near_ties_out() -> None:
    tied = np.tile([1.0, 0.99, 0.0], (40, 1))
    swapped = tied[:, [1, 0, 2]]
    (row,) = rows_of(tied, swapped)
    assert row["agreement"] == 0
    assert parity.failures([row], TOLERANCE) == []
    clear = np.tile([1.0, 0.92, 0.0], (40, 1))
    found = parity.failures(rows_of(clear, clear[:, [1, 0, 2]]), TOLERANCE)
    assert found == ["40 random images: top-1 agreement 0.00% of the 40 without a near tie, expected 100.00%"]


def test_random_images_are_the_same_every_time() -> None:
    images = parity.random_images(50, 3, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(images, parity.random_images(50, 3, 8))


def test_real_images_and_accuracy(data: DataArguments, student_path: Path, tmp_path: Path) -> None:
    result = exporting.export(student_path, out=tmp_path / "s.onnx", data=data)
    assert [(row["images"], row["count"]) for row in result["parity"]] == [("random", 138), ("real", 300)]
    test = data.open(Settings()).test
    right = (logits_in_float64(student_path, test.images).argmax(1) == test.labels).mean()
    assert result["accuracy"] == {"data": "tiny", "images": 300, "student": right, "exported": right}
    assert right > 0.6  # it was trained


def quantized_inputs(path: Path) -> set[str]:
    """Layers that read dequantized values."""
    graph = onnx.load_model(path).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    work = (node for node in graph.node if node.op_type in quantize.OPERATORS)
    return {node.name.split("/")[0] for node in work if made.get(node.input[0]) == "DequantizeLinear"}


def test_skipped_layers_stay_float(student_path: Path, tmp_path: Path) -> None:
    calibration = by_set(write_set(tmp_path / "set.safetensors"))
    common = {"precision": "int8", "calibration": calibration}
    result = exporting.export(student_path, out=tmp_path / "all.onnx", **common)
    assert quantized_inputs(tmp_path / "all.onnx") == {"blocks.0", "blocks.4", "classifier"}
    assert result["int8"]["float_layers"] == []
    result = exporting.export(student_path, out=tmp_path / "some.onnx", int8_skip=["blocks.4", "classifier"], **common)
    assert quantized_inputs(tmp_path / "some.onnx") == {"blocks.0"}
    assert result["int8"]["float_layers"] == ["blocks.4", "classifier"]
    result = exporting.export(student_path, out=tmp_path / "end.onnx", int8_skip=["blocks"], **common)
    assert quantized_inputs(tmp_path / "end.onnx") == {"classifier"}
    with pytest.raises(UserError, match=r"--int8-skip 'block': no such layer; known: blocks\.0, blocks\.4, classifier"):
        exporting.export(student_path, out=tmp_path / "no.onnx", int8_skip=["block"], **common)
    with pytest.raises(UserError, match=r"--int8-skip leaves no layer to quantize"):
        exporting.export(student_path, out=tmp_path / "no.onnx", int8_skip=["blocks", "classifier"], **common)


def test_activations_and_weights_are_symmetric(student_path: Path, tmp_path: Path) -> None:
    calibration = by_set(write_set(tmp_path / "set.safetensors"))
    exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", calibration=calibration)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model(tmp_path / "s.onnx").graph.initializer}
    points = [value for name, value in values.items() if "zero_point" in name]
    assert points
    assert not any(value.any() for value in points)
    scales = {name: value.shape for name, value in values.items() if name.endswith("weight_scale")}
    assert sorted(scales.values()) == [(3,), (8,), (8,)]  # per output channel


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranges_are_of_all_calibration_images(layout: str, onnx_path: Path, student_path: Path, tmp_path: Path) -> None:
    """The brightest image is the last of several batches, and its channels differ."""
    network, metadata = student_file.load(student_path)
    model = onnx_export.to_onnx(network, metadata, layout=layout, output="logits", half=False, opset=20)
    onnx_export.save(model, {}, tmp_path / "float.onnx")
    images = np.full((70, 3, 8, 8), 128, np.uint8)
    images[-1] = np.array([255, 128, 128], np.uint8)[:, None, None]
    quantize.quantize(tmp_path / "float.onnx", tmp_path / "q.onnx", images, LAYOUTS[layout], [])
    quantized = onnx.load_model(tmp_path / "q.onnx")
    first = next(node for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    brightest = (1 - metadata["mean"][0]) / metadata["std"][0]
    assert values[first.input[1]] * 127 == pytest.approx(brightest, rel=0.01)


def test_real_images_are_spread_over_the_classes() -> None:
    images = np.arange(1000).reshape(-1, 1, 1, 1)
    some = spread(images, 100)[:, 0, 0, 0]
    assert len(some) == 100
    assert (some[0], some[-1]) == (0, 999)
    assert set(np.diff(some)) <= {10, 11}
    np.testing.assert_array_equal(spread(images[:7], 100), images[:7])


def test_the_set_beside_the_student_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = build_real()
    small = set_file.load(write_set(tmp_path / "mine.safetensors"))
    write_set(tmp_path / "another.safetensors", count=15)
    student = write_student(tmp_path / "s.safetensors", real, epochs=0)
    with pytest.raises(UserError, match=r"pass --calibration and the distilled set tiny-ipc1 \(its file or run direc"):
        exporting.export(student, out=tmp_path / "s.onnx", precision="int8")
    network, metadata = student_file.load(student)
    metadata["trained_on"] = {k: small.manifest[k] for k in ("name", "sha256", "manifest_sha256")}
    student_file.save(network.state_dict(), metadata, student)
    result = exporting.export(student, out=tmp_path / "s.onnx", precision="int8")
    assert "mine.safetensors, the set that the student was trained on" in capsys.readouterr().err
    assert result["int8"]["calibration"] == {
        "name": "tiny-ipc4",
        "manifest_sha256": small.manifest["manifest_sha256"],
        "images": 12,
    }
    assert result["parity"][1]["images"] == "distilled"


def test_real_data_calibrate(data: DataArguments, student_path: Path, tmp_path: Path) -> None:
    result = exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", calibration=data, data=data)
    assert result["int8"]["calibration"] == {"name": "tiny", "fingerprint": "tiny-0", "images": 120}
    assert abs(result["accuracy"]["exported"] - result["accuracy"]["student"]) < 0.1


def test_calibration_that_does_not_fit(student_path: Path, tmp_path: Path) -> None:
    few, large = write_set(tmp_path / "few.safetensors", count=9), write_set(tmp_path / "large.safetensors", size=16)
    for path, says in (
        (few, "--calibration: 9 images are too few to calibrate int8 with, expected 10 or more"),
        (large, "takes 3x8x8 images, tiny-ipc4 has 3x16x16: pass another set"),
    ):
        with pytest.raises(UserError, match=says):
            exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", calibration=by_set(path))
    assert not (tmp_path / "s.onnx").exists()


class FakeSearch:
    """Files are named after the layers left float; each quantized layer costs its own accuracy."""

    costs = {"a": 0.01, "b": 0.2, "c": 0.05}  # noqa: RUF012

    def attempt(self, keep: Any) -> Path:
        return Path("+".join(sorted(keep)) or "none")

    def accuracy(self, path: Path) -> float:
        kept = set(self.costs) if path.name == "float" else set(path.name.split("+"))
        return 0.9 - sum(cost for layer, cost in self.costs.items() if layer not in kept)

    def session(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: np.full((len(images), 2), self.accuracy(path))


@pytest.mark.parametrize(
    ("skip", "allowed", "expected"),
    [
        ([], 0.3, []),
        ([], 0.26, []),  # exactly what is lost
        ([], 0.07, ["b"]),
        ([], 0.02, ["b", "c"]),
        (["a"], 0.06, ["a", "b"]),
        (["c"], 0.3, ["c"]),
    ],
)
def test_search_leaves_the_worst_layers_float(
    skip: list[str], allowed: float, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSearch()
    monkeypatch.setattr(quantize, "open_session", fake.session)
    known = {layer: f"{layer}/Conv" for layer in fake.costs}
    probe = images_of(2, 3, 8)
    found = quantize.search(fake.attempt, known, skip, probe, Path("float"), fake.accuracy, allowed)
    assert found == expected
    with pytest.raises(CheckFailed, match=r"int8 loses 1.00 points even with one quantized layer, allowed 0.50"):
        quantize.search(fake.attempt, known, [], probe, Path("float"), fake.accuracy, 0.005)


def test_search_on_a_student_with_a_layer_that_int8_ruins(
    data: DataArguments, student_path: Path, tmp_path: Path
) -> None:
    """One huge activation that the next layer cancels: a range for it leaves nothing for the others."""
    network, metadata = student_file.load(student_path)
    state = network.state_dict()
    state["blocks.1.bias"][0] = 3e4  # the norm after the first convolution, into the second
    state["blocks.4.weight"][:, 0] = 0
    student = tmp_path / "ruined.safetensors"
    student_file.save(state, metadata, student)
    common: dict[str, Any] = {"precision": "int8", "calibration": data, "data": data}
    with pytest.raises(CheckFailed) as caught:
        exporting.export(student, out=tmp_path / "bad.onnx", **common)
    bad = caught.value.result["accuracy"]
    assert bad["exported"] < bad["student"] - 0.1
    result = exporting.export(student, out=tmp_path / "good.onnx", max_accuracy_drop=2.0, **common)
    assert result["int8"]["float_layers"] == ["blocks.4"]
    assert quantized_inputs(tmp_path / "good.onnx") == {"blocks.0", "classifier"}
    assert result["accuracy"]["exported"] >= result["accuracy"]["student"] - 0.02


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main.app, [str(a) for a in arguments], prog_name="ncfmkit", env={"COLUMNS": "200"})


@pytest.fixture
def own_student(student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(student_path, tmp_path / "mine.safetensors"))


def test_command_writes_beside_the_student(own_student: Path, data: DataArguments) -> None:
    result = call("export", own_student, "--data", "tiny")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"138 random images +\S+ +\S+ +100\.00%", result.stdout)
    assert re.search(r"300 real images +\S+ +\S+ +100\.00%", result.stdout)
    assert re.search(r"accuracy on 300 test images of tiny: (\S+%), the student's \1", result.stdout)
    assert re.search(r"mine\.onnx: fp32, opset \d+, [\d.]+ KiB", result.stdout)
    again = call("export", own_student)
    assert again.exit_code == 2
    assert "mine.onnx is there already" in again.stderr
    assert call("export", own_student, "--precision", "fp16").exit_code == 0
    assert sorted(p.name for p in own_student.parent.glob("*.onnx")) == ["mine-fp16.onnx", "mine.onnx"]


def test_command_says_one_json_object(own_student: Path, tmp_path: Path) -> None:
    calibration = write_set(tmp_path / "set.safetensors")
    flags = ("--precision", "int8", "--int8-skip", "blocks.0, classifier", "--calibration", calibration)
    result = call("export", own_student, *flags, "--out", "small.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["file"] == "small.onnx"
    assert content["bytes"] == Path("small.onnx").stat().st_size
    assert content["int8"]["float_layers"] == ["blocks.0", "classifier"]
    assert content["tolerance"]["agreement"] == 0.9
    assert [row["images"] for row in content["parity"]] == ["random", "distilled"]


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
    assert "flags of the real data need --data" in result.stderr


def test_command_refuses_empty_names(own_student: Path) -> None:
    for flags in (["--calibration", ""], ["--int8-skip", "blocks.0,"], ["--int8-skip", ""], ["--data", ""]):
        result = call("export", own_student, "--precision", "int8", *flags)
        assert result.exit_code == 2
        assert "expected names, got an empty one" in result.stderr


def test_json_has_no_nan(own_student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    options.print_json({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": 1.5}


def test_an_interruption_that_a_library_made_another_error_of() -> None:
    def command() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AttributeError("module has no attribute") from None

    with pytest.raises(typer.Exit) as caught:
        main.with_exit_codes(command)()
    assert caught.value.exit_code == 130


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no student at"), (b"", "not a readable safetensors"), (b"PK" * 99, "not a readable")]
)
def test_what_is_not_a_student(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    result = call("export", path)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


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
    assert "broken.onnx is not a whole ONNX file" in result.stderr


CHANGES: dict[str, tuple[tuple[str, ...], Any]] = {
    "no mean": (("mean",), None),
    "a mean for other channels": (("mean",), [0.5]),
    "a mean of text": (("mean",), "abc"),
    "a negative std": (("std",), [0.2, -0.1, 0.2]),
    "an infinite std": (("std",), [0.2, float("inf"), 0.2]),
    "numbers for names": (("classes",), [1, 2, 3]),
    "one class": (("classes",), ["a"]),
    "accuracy in words": (("test_accuracy",), "good"),
    "trained on a text": (("trained_on",), "cifar"),
    "no digests": (("trained_on", "sha256"), None),
    "a huge side": (("size",), 10**9),
    "a tool that is a list": (("tool",), []),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("command", ["export", "inspect"])
def test_damaged_students_are_refused(change: str, command: str, student_path: Path, tmp_path: Path) -> None:
    network, metadata = student_file.load(student_path)
    (*parents, key), value = CHANGES[change]
    place = metadata
    for parent in parents:
        place = place[parent]
    place[key] = value
    if value is None:
        del place[key]
    path = tmp_path / "s.safetensors"
    student_file.save(network.state_dict(), metadata, path)
    result = call(command, path)
    assert result.exit_code == 2, result.output
    assert "s.safetensors is damaged" in result.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["s.safetensors"]


@pytest.mark.parametrize("spoil", [lambda t: t.half(), lambda t: t.to(torch.int64), lambda t: t / 0])
def test_parameters_must_be_finite_float32(spoil: Callable, student_path: Path, tmp_path: Path) -> None:
    network, metadata = student_file.load(student_path)
    path = tmp_path / "s.safetensors"
    student_file.save({k: spoil(v) for k, v in network.state_dict().items()}, metadata, path)
    with pytest.raises(UserError, match="expected finite float32 parameters"):
        student_file.load(path)


@pytest.mark.parametrize("key", ["student", "versions", "trained_on", "int8", "student.network", "int8.calibration"])
@pytest.mark.parametrize("value", ["text", ["list"], "half a character: \ud800"])
def test_inspect_of_hostile_metadata(key: str, value: Any, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[0].value)
    about.setdefault("int8", {})
    *parents, last = key.split(".")
    place = about[parents[0]] if parents else about
    place[last] = value
    onnx_export.save(model, about, tmp_path / "m.onnx")
    result = call("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "m.onnx is damaged, or of a newer ncfmkit" in result.stderr


def test_inspect_shows_no_control_characters(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[0].value)
    about["classes"] = ["\x1b[2J", "b", "c"]
    onnx_export.save(model, about, tmp_path / "m.onnx")
    result = call("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "\\x1b[2J, b, c" in result.stdout


TAKEN = {"out": "taken.onnx"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"to": "coreml"}, r"--to 'coreml': expected onnx or tensorrt"),
        ({"precision": "bf16"}, r"--precision 'bf16' with --to onnx: expected fp32, fp16, int8"),
        ({"to": "tensorrt", "precision": "int8", "out": "s.engine"}, r"'int8' with --to tensorrt: expected fp32, fp16"),
        ({"layout": "nchw"}, r"--input 'nchw' with --to onnx: expected uint8-nchw, uint8-nhwc, float-nchw"),
        ({"output": "classes"}, r"--output 'classes' with --to onnx: expected logits, probabilities"),
        ({"out": "s.pt"}, r"--out .*s\.pt: expected a name that ends in \.onnx"),
        ({"out": "nowhere/s.onnx"}, r"there is no folder .*nowhere: make it first"),
        ({"out": "beside.onnx"}, r"beside\.onnx\.data is there already"),
        ({"out": "failed.onnx"}, r"failed\.failed-parity\.onnx is there already"),
        (TAKEN, r"taken\.onnx is there already: choose another --out, or remove it"),
        ({"opset": 99}, r"--opset 99: expected 18 to \d+"),
        ({"int8_skip": ["a"]}, r"--int8-skip goes with --precision int8, got --precision fp32"),
        ({"calibration": DataArguments(data="digits"), "precision": "fp16"}, r"--calibration goes with"),
        ({"max_accuracy_drop": 1.0}, r"--max-accuracy-drop goes with --precision int8"),
        ({"max_accuracy_drop": 1.0, "precision": "int8"}, r"--max-accuracy-drop needs --data"),
        ({"to": "tensorrt", "out": "s.engine"}, r"TensorRT cannot be used .* pip install 'ncfmkit\[tensorrt\]'"),
    ],
)  # fmt: skip
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
def test_impossible_drop(drop: float, data: DataArguments, student_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--max-accuracy-drop (-1|nan): expected 0 to 100 percentage points"):
        exporting.export(student_path, out=tmp_path / "s.onnx", precision="int8", max_accuracy_drop=drop, data=data)


@pytest.mark.parametrize(
    ("real", "says"),
    [
        (build_real((3, 3)), r"has 3 classes, tiny 2: only .*safetensors has 'class 2'"),
        (build_real(size=16), r"tiny has 16x16 rgb images, .*safetensors takes 8x8 rgb: pass --size 8 --resize crop"),
        (build_real(channels=1), r"tiny has 8x8 gray images, .* takes 8x8 rgb: pass --color rgb --convert-color"),
        (build_real(test_counts=None), r"tiny has no test split"),
    ],
)
def test_data_that_do_not_fit(
    real: RealData, says: str, student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: real)
    arguments = DataArguments(data="tiny", data_root=None, download=False, skip_bad=False)
    with pytest.raises(UserError, match=says):
        exporting.export(student_path, out=tmp_path / "s.onnx", data=arguments)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(student_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write to .*closed"):
        exporting.export(student_path, out=folder / "s.onnx")


def test_missing_packages_are_named(student_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"exporting needs onnxscript: pip install 'ncfmkit\[cpu\]'"):
        exporting.export(student_path, out=tmp_path / "s.onnx")


@pytest.mark.parametrize("name", EXPORTERS)
def test_rows_are_whole(name: str) -> None:
    row = EXPORTERS[name]
    assert all(callable(row.function(role)) for role in ("require", "convert", "publish", "open"))
    assert set(row.precisions) <= set(parity.TOLERANCES)
    assert row.suffix.startswith(".")


def test_the_readme_has_every_row() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name, row in EXPORTERS.items():
        assert f"| `{name}` | {row.summary} | {', '.join(row.precisions)} | `{row.extra}` |" in text


def test_help_does_not_wait_for_the_exporters() -> None:
    table = importlib.import_module("ncfmkit.exporters.table")
    assert not any(name in vars(table) for name in ("np", "torch", "onnx"))
