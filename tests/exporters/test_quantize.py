"""int8: what is quantized and what stays float, the ranges, and the search for the layers that int8 ruins."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import images_of

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import quantize
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.student import load_student
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData, Split
from ncfmkit.scoring import student_file

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture
def calibration(set_path: Path) -> DataArguments:
    return DataArguments(data=str(set_path))


def read_metadata(path: Path) -> dict[str, Any]:
    return json.loads({p.key: p.value for p in onnx.load_model(path).metadata_props}["ncfmkit"])


def quantized_inputs(path: Path) -> set[str]:
    """Layers that read dequantized values."""
    graph = onnx.load_model(path).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    work = (node for node in graph.node if node.op_type in quantize.OPERATORS)
    return {node.name.split("/")[0] for node in work if made.get(node.input[0]) == "DequantizeLinear"}


def test_skipped_layers_stay_float(student_path: Path, calibration: DataArguments, tmp_path: Path) -> None:
    common: dict[str, Any] = {"precision": "int8", "calibration": calibration}
    for skip, quantized in (
        ([], {"blocks.0", "blocks.4", "classifier"}),
        (["blocks.4", "classifier"], {"blocks.0"}),
        (["blocks"], {"classifier"}),
    ):
        out = tmp_path / f"{len(quantized)}-{len(skip)}.onnx"
        result = exporting.export(student_path, out=out, int8_skip=skip, **common)
        assert quantized_inputs(out) == quantized
        kept = {"blocks.0", "blocks.4", "classifier"} - quantized
        assert result.int8 is not None
        assert result.int8.float_layers == tuple(sorted(kept))


def test_layers_that_cannot_be_skipped() -> None:
    known = {layer: f"{layer}/Conv" for layer in ("blocks.0", "blocks.4", "classifier")}
    with pytest.raises(UserError, match=r"--int8-skip 'block'.*blocks\.0, blocks\.4, classifier"):
        quantize.chosen(["block"], known)
    with pytest.raises(UserError, match=r"--int8-skip leaves no layer"):
        quantize.chosen(["blocks", "classifier"], known)


def test_activations_and_weights_are_symmetric(exported: Callable[..., Path]) -> None:
    graph = onnx.load_model(exported("int8", "uint8-nchw", "logits")).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    points = [value for name, value in values.items() if "zero_point" in name]
    assert points
    assert not any(value.any() for value in points)
    scales = {name: value.shape for name, value in values.items() if name.endswith("weight_scale")}
    assert sorted(scales.values()) == [(3,), (8,), (8,)]  # per output channel


def test_weights_leave_room_for_cpus_that_add_pairs_of_products_in_16_bits(exported: Callable[..., Path]) -> None:
    graph = onnx.load_model(exported("int8", "uint8-nchw", "logits")).graph
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("weight_quantized")]
    assert len(weights) == 3
    for weight in weights:
        assert weight.dtype == np.int8
        assert 2 * 255 * int(np.abs(weight.astype(int)).max()) < 2**15  # activations are shifted to 0 to 255 there
        assert np.abs(weight.astype(int)).max() >= 63


def test_int8_kernels_of_this_cpu_calculate_what_the_graph_says(exported: Callable[..., Path]) -> None:
    """Without optimizations the runtime dequantizes, and convolves in float32: no integer kernel can overflow."""
    file = exported("int8", "float-nchw", "logits")
    images = np.random.default_rng(0).random((64, 3, 8, 8), np.float32)
    images[::2] = images[::2].round()  # black and white: the largest sums
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact, fast = (
        onnxruntime.InferenceSession(file, o, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
        for o in (options, None)
    )
    assert np.abs(fast - exact).max() < 0.05 * np.ptp(exact)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranges_are_of_all_calibration_images(
    layout: str, exported: Callable[..., Path], student_path: Path, tmp_path: Path
) -> None:
    """The brightest image is the last of several batches, and its channels differ."""
    float_file = exported("fp32", layout, "probabilities" if layout == "uint8-nhwc" else "logits")
    images = np.full((70, 3, 8, 8), 128, np.uint8)
    images[-1] = np.array([255, 128, 128], np.uint8)[:, None, None]
    quantize.quantize(float_file, tmp_path / "q.onnx", images, LAYOUTS[layout], [])
    quantized = onnx.load_model(tmp_path / "q.onnx")
    first = next(node for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    manifest = load_student(student_path).manifest
    brightest = (1 - manifest.mean[0]) / manifest.std[0]
    assert values[first.input[1]] * 127 == pytest.approx(brightest, rel=0.01)


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
    probe = images_of(2)
    found = quantize.search(fake.attempt, known, skip, probe, Path("float"), fake.accuracy, allowed)
    assert found == expected
    with pytest.raises(CheckFailed, match=r"loses 1\.00 points.*allowed 0\.50"):
        quantize.search(fake.attempt, known, [], probe, Path("float"), fake.accuracy, 0.005)


@pytest.fixture
def ruined(student_path: Path, tmp_path: Path) -> Path:
    """A student with one huge activation that the next layer cancels: a range for it leaves nothing for the others."""
    network, manifest = student_file.load(student_path)
    state = network.state_dict()
    state["blocks.1.bias"][0] = 3e4  # the norm after the first convolution, into the second
    state["blocks.4.weight"][:, 0] = 0
    student_file.save(state, manifest, tmp_path / "ruined.safetensors")
    return tmp_path / "ruined.safetensors"


def test_search_on_a_student_with_a_layer_that_int8_ruins(tiny_data: RealData, ruined: Path, tmp_path: Path) -> None:
    student, data = ruined, DataArguments(data="tiny")
    common: dict[str, Any] = {"precision": "int8", "calibration": data, "data": data}
    with pytest.raises(CheckFailed) as caught:
        exporting.export(student, out=tmp_path / "bad.onnx", **common)
    assert caught.value.result is not None
    bad = caught.value.result.accuracy
    assert bad.exported < bad.student - 0.1
    result = exporting.export(student, out=tmp_path / "good.onnx", max_accuracy_drop=2.0, **common)
    assert result.int8 is not None
    assert result.int8.float_layers == ("blocks.4",)
    assert quantized_inputs(tmp_path / "good.onnx") == {"blocks.0", "classifier"}
    assert result.accuracy is not None
    assert result.accuracy.exported >= result.accuracy.student - 0.02
    assert result.int8.search is not None
    expected = {"data": "tiny", "fingerprint": "tiny-0", "split": "train", "images": 60, "max_accuracy_drop": 2.0}
    assert result.int8.search.to_dict() == expected
    assert read_metadata(tmp_path / "good.onnx")["int8"]["search"] == expected
    plain = exporting.export(ruined, out=tmp_path / "plain.onnx", int8_skip=["blocks.4"], **common)
    assert "search" not in plain.to_dict()["int8"]


def test_test_images_take_no_part_in_the_search(
    tiny_data: RealData, ruined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test images have the labels of other classes: by them, the ruined model is better than the float one."""
    assert tiny_data.test is not None
    turned = np.roll(tiny_data.test.images, 90, axis=0)
    misleading = dataclasses.replace(tiny_data, test=Split(turned, tiny_data.test.offsets))
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: misleading)
    seen: list[tuple[bytes, ...]] = []
    score = exporting.score

    def noted(answers: Any, images: np.ndarray, *, title: str) -> Any:
        if "training images" in title:
            seen.append(tuple(image.tobytes() for image in images))
        return score(answers, images, title=title)

    monkeypatch.setattr(exporting, "score", noted)
    data = DataArguments(data="tiny")
    result = exporting.export(
        ruined, out=tmp_path / "s.onnx", precision="int8", calibration=data, data=data, max_accuracy_drop=2.0
    )
    assert result.int8 is not None
    assert result.int8.float_layers == ("blocks.4",)
    assert len(seen) > 2
    assert set(seen) == {tuple(image.tobytes() for image in tiny_data.train.images[1::2])}
