"""Students as ONNX files: every network, precision, layout and output against the student's own logits in float64."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from conftest import TINY_NETWORK, build_real, write_set, write_student
from exports import foreign_model, images_of, logits_in_float64

from ncfmkit import networks
from ncfmkit.config import NetworkSettings
from ncfmkit.errors import UserError
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import onnx as onnx_export
from ncfmkit.exporters.contract import LAYOUTS, OUTPUTS
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.student import load_student
from ncfmkit.exporters.table import EXPORTERS
from ncfmkit.extras import install
from ncfmkit.networks import convnext, densenet, vit
from ncfmkit.real.arguments import DataArguments

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


SIDES = {
    **{"convnet": 8, "alexnet": 8, "vgg11": 28, "resnet18": 9, "resnetap10": 16, "densenet121": 16},
    **{"vit": 9, "convnext": 8, "convnetbn": 8},
}


def write_network(name: Any, folder: Path, *, epochs: int = 0) -> Path:
    network = TINY_NETWORK if name == "convnet" else NetworkSettings(name=name)
    return write_student(folder / "s.safetensors", build_real(size=SIDES[name]), network, epochs=epochs)


def check_scores(model: Path, student: Path, size: int, allowed: float) -> None:
    """Within that part of the largest logit of the student's in float64."""
    images = images_of(20, 3, size)
    got, expected = open_session(model)(images), logits_in_float64(student, images)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < allowed * np.abs(expected).max()  # not 0: they are two computations


@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name != "convnet"])
def test_every_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConvNet is in `test_inputs_and_outputs`; of others one layer a block, which has all their kinds of nodes."""
    monkeypatch.setattr(densenet, "LAYERS", (1, 1, 1, 1))
    monkeypatch.setattr(vit, "DEPTH", 1)
    monkeypatch.setattr(convnext, "BLOCKS", (1, 1, 1, 1))
    student, model = write_network(name, tmp_path), tmp_path / "s.onnx"
    opset = onnx_export.choose_opset(None)
    takes: dict[str, Any] = {"layout": "uint8-nchw", "output": "logits"}
    onnx_export.save(onnx_export.to_onnx(load_student(student), **takes, half=False, opset=opset), {}, model)
    check_scores(model, student, SIDES[name], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", EXPORTERS["onnx"].precisions)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_in_every_precision(name: str, precision: str, tmp_path: Path) -> None:
    # untrained, int8 is just out of tolerance: of 120 layers, and of an AlexNet by one image in nine
    epochs = 3 if name in ("alexnet", "densenet121") else 0
    student, calibration = write_network(name, tmp_path, epochs=epochs), None
    if precision == "int8":
        calibration = DataArguments(data=str(write_set(tmp_path / "set.safetensors", size=SIDES[name])))
    result = exporting.export(student, out=tmp_path / "s.onnx", precision=precision, calibration=calibration)
    assert result.failures == ()
    check_scores(tmp_path / "s.onnx", student, SIDES[name], {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.4}[precision])


def pairs() -> list[tuple[str, str, str]]:
    """Precision, layout and output, so that any two of them meet."""
    return [
        (precision, layout, OUTPUTS[(p + n) % 2])
        for p, precision in enumerate(EXPORTERS["onnx"].precisions)
        for n, layout in enumerate(LAYOUTS)
    ]


@pytest.mark.parametrize(("precision", "layout", "output"), pairs())
def test_inputs_and_outputs(
    precision: str, layout: str, output: str, student_path: Path, exported: Callable[..., Path]
) -> None:
    session = open_session(exported(precision, layout, output))
    assert (session.contract.layout, session.contract.output) == (layout, output)
    images = images_of(9)
    expected = logits_in_float64(student_path, images)
    if output == "probabilities":
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    got = session(images)
    np.testing.assert_allclose(got, expected, atol={"fp32": 1e-5, "fp16": 0.02, "int8": 0.5}[precision])
    assert np.abs(got - expected).max() > 0  # they are two computations


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", EXPORTERS["onnx"].precisions)
def test_all_inputs_and_outputs(
    precision: str, layout: str, output: str, student_path: Path, exported: Callable[..., Path]
) -> None:
    test_inputs_and_outputs(precision, layout, output, student_path, exported)


def test_gray_and_padded_images(tmp_path: Path) -> None:
    student = write_student(tmp_path / "s.safetensors", build_real(size=28, channels=1), epochs=0)
    exporting.export(student, out=tmp_path / "s.onnx")
    images = images_of(5, 1, 28)
    np.testing.assert_allclose(open_session(tmp_path / "s.onnx")(images), logits_in_float64(student, images), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 33])
def test_any_batch(count: int, onnx_path: Path, student_path: Path) -> None:
    images = images_of(count)
    np.testing.assert_allclose(open_session(onnx_path)(images), logits_in_float64(student_path, images), atol=1e-5)


def test_metadata_and_nodes(onnx_path: Path, student_path: Path) -> None:
    model = onnx.load_model(onnx_path)
    onnx.checker.check_model(model, full_check=True)
    assert [p.key for p in model.metadata_props] == ["task", "imgsz", "names", "ncfmkit"]
    about = json.loads(model.metadata_props[-1].value)
    assert about["classes"] == ["class 0", "class 1", "class 2"]
    assert about["input"] == {"name": "images", "layout": "uint8-nchw", "channels": 3, "size": 8}
    assert about["output"] == {"name": "logits", "kind": "logits"}
    assert about["precision"] == "fp32"
    assert about["trained_on"] == {"name": "tiny-ipc1", "manifest_sha256": "1" * 64}
    assert about["student"]["test_accuracy"] == 0.75
    assert about["student"]["sha256"] == hashlib.sha256(student_path.read_bytes()).hexdigest()
    assert set(about["versions"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert (model.opset_import[0].version, about["opset"]) == (17, 17)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    assert {"blocks.0/Conv", "blocks.1/InstanceNormalization", "classifier/Gemm"} <= set(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(
    ("precision", "layout"), [("fp32", "uint8-nchw"), ("fp16", "uint8-nhwc"), ("int8", "uint8-nchw")]
)
def test_files_have_the_oldest_format_of_their_opset(
    precision: str, layout: str, exported: Callable[..., Path]
) -> None:
    """Readers refuse a newer format whatever the opset: ONNX Runtime 1.16 takes opset 19, and format 9 at most."""
    model = onnx.load_model(exported(precision, layout, "logits"))
    assert (model.ir_version, {o.domain: o.version for o in model.opset_import}) == (8, {"": 17})


def test_no_trace_of_the_machine(onnx_path: Path) -> None:
    content = onnx_path.read_bytes()
    for trace in (b".py", b"site-packages", str(Path.home()).encode(), str(Path(__file__).parent).encode(), b"aten."):
        assert trace not in content


@pytest.mark.parametrize(("precision", "layout"), [("fp16", "uint8-nhwc"), ("int8", "uint8-nchw")])  # int8: of fp32
def test_the_same_export_gives_the_same_bytes(
    precision: str, layout: str, exported: Callable[..., Path], student_path: Path, set_path: Path, tmp_path: Path
) -> None:
    first = exported(precision, layout, "logits")
    again = Path(shutil.copy(student_path, tmp_path / "again.safetensors"))
    calibration = DataArguments(data=str(set_path)) if precision == "int8" else None
    how: dict[str, Any] = {"precision": precision, "layout": layout}
    exporting.export(again, out=tmp_path / "again.onnx", calibration=calibration, **how)
    assert (tmp_path / "again.onnx").read_bytes() == first.read_bytes()


def test_precisions_are_what_they_say(exported: Callable[..., Path]) -> None:
    """The second convolution's weights, and scores that are float32 in every precision."""
    types = {}
    for precision, layout in (("fp32", "uint8-nchw"), ("fp16", "uint8-nhwc"), ("int8", "uint8-nchw")):
        graph = onnx.load_model(exported(precision, layout, "logits")).graph
        named = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
        types[precision] = {
            kind
            for name, kind in named.items()
            if "blocks.4.weight" in name and not name.endswith(("scale", "zero_point"))
        }
        assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert types == {"fp32": {"FLOAT"}, "fp16": {"FLOAT16"}, "int8": {"INT8"}}


@pytest.mark.parametrize(
    ("opset", "format"),
    [(20, 9), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((18, 8), (21, 10), (23, 11)))],
)
def test_other_opsets(opset: int, format: int, student_path: Path, tmp_path: Path) -> None:
    student, path = load_student(student_path), tmp_path / "s.onnx"
    model = onnx_export.to_onnx(student, layout="uint8-nchw", output="logits", half=False, opset=opset)
    onnx_export.save(model, {}, path)
    loaded = onnx.load_model(path)
    assert (loaded.opset_import[0].version, loaded.ir_version) == (opset, format)
    images = images_of(4)
    np.testing.assert_allclose(open_session(path)(images), logits_in_float64(student_path, images), atol=1e-5)


def test_norms_are_of_a_version_that_the_cuda_provider_has(student_path: Path, tmp_path: Path) -> None:
    """ONNX Runtime 1.29 on an H200 left InstanceNormalization of version 22 to the CPU; 6 is the version before."""
    model = onnx_export.to_onnx(
        load_student(student_path),
        layout="uint8-nchw",
        output="logits",
        half=False,
        opset=onnx_export.choose_opset(None),
    )
    onnx_export.save(model, {}, tmp_path / "m.onnx")
    loaded = onnx.load_model(tmp_path / "m.onnx")
    norms = {node.op_type for node in loaded.graph.node if "Normalization" in node.op_type}
    assert norms == {"InstanceNormalization"}
    schema = onnx.defs.get_schema("InstanceNormalization", loaded.opset_import[0].version)
    assert schema.since_version == 6


def test_the_newest_opset_is_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_export._runs(onnx_export.choose_opset(20))
    monkeypatch.setattr(onnx_export, "_runs", lambda opset: opset <= 19)  # an older ONNX Runtime
    assert onnx_export.choose_opset(None) == 17
    assert onnx_export.choose_opset(19) == 19
    for opset in (16, 20):
        with pytest.raises(UserError, match=rf"--opset {opset}: .*17 to 19.*torch.*onnxruntime"):
            onnx_export.choose_opset(opset)


def test_a_model_that_is_too_large_to_convert(student_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_CONVERTED", 1000)
    how: dict[str, Any] = {"layout": "uint8-nchw", "output": "logits", "half": False}
    with pytest.raises(UserError, match=r"more than \S+ B cannot be written with opset 17: pass --opset 18 or"):
        onnx_export.to_onnx(load_student(student_path), **how, opset=17)


class AboveTwoGibibytes:
    """A model that fails as those do that are too large for one message of protobuf."""

    def __init__(self, model: Any):
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def ByteSize(self) -> int:
        from google.protobuf.message import EncodeError

        raise EncodeError("Failed to serialize proto")


def test_a_model_that_protobuf_cannot_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"more than 2 GiB cannot be written with opset 17: pass --opset 18"):
        onnx_export._with_opset(AboveTwoGibibytes(reducing("ReduceMean", [1], 0)), 17)
    model, written = onnx.load_model(foreign_model(tmp_path / "m.onnx")), list[bool]()
    monkeypatch.setattr(onnx_export, "_write", lambda model, path, *, large: written.append(large))
    onnx_export.save(model, {}, tmp_path / "small.onnx")
    onnx_export.save(AboveTwoGibibytes(model), {}, tmp_path / "large.onnx")
    assert written == [False, True]


def reducing(operator: str, axes: list[int] | None, noop: int, *, domains: tuple[str, ...] = ("",)) -> Any:
    """A model of opset 18 that reduces `[2, 3]`, over the axes of an input where some are given."""
    helper, types = onnx.helper, onnx.TensorProto
    given = ["axes"] if axes is not None else []
    node = helper.make_node(operator, ["x", *given], ["y"], "r", keepdims=1, noop_with_empty_axes=noop)
    ends = [helper.make_tensor_value_info(name, types.FLOAT, None) for name in ("x", "y")]
    ends[0] = helper.make_tensor_value_info("x", types.FLOAT, [2, 3])
    weights = [onnx.numpy_helper.from_array(np.array(axes, np.int64), "axes")] if axes is not None else []
    imports = [helper.make_opsetid(domain, 3 if domain else 18) for domain in domains]
    return helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], weights), opset_imports=imports)


@pytest.mark.parametrize(
    ("operator", "axes", "noop", "shape"),
    [
        ("ReduceMean", [1], 0, (2, 1)),
        ("ReduceMean", [1], 1, (2, 1)),
        ("ReduceMean", None, 0, (1, 1)),
        ("ReduceSum", [1], 1, (2, 1)),
        ("ReduceSum", None, 1, (2, 3)),  # it has the attribute since 13
    ],
)
def test_reductions_mean_the_same_at_an_older_opset(
    operator: str, axes: list[int] | None, noop: int, shape: tuple[int, ...]
) -> None:
    import onnxruntime as ort

    answers = []
    for opset in (18, 17):
        model = onnx_export._with_opset(reducing(operator, axes, noop), opset)
        assert [o.version for o in model.opset_import] == [opset]
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers += session.run(None, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert answers[0].shape == shape
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("axes", [None, []])
def test_a_reduction_of_nothing_is_refused_where_the_opset_has_none(axes: list[int] | None) -> None:
    with pytest.raises(UserError, match=r"r \(ReduceMean\) reduces no axes .*opset 17 .*: pass --opset 18 or"):
        onnx_export._with_opset(reducing("ReduceMean", axes, 1), 17)


def test_the_attribute_of_other_operators_stays() -> None:
    model = reducing("ReduceMean", [1], 0)
    model.graph.node[0].op_type = "Other"
    onnx_export._drop_noop(model.graph, 17)
    assert [a.name for a in model.graph.node[0].attribute] == ["keepdims", "noop_with_empty_axes"]


@pytest.mark.parametrize("domains", [("ai.onnx.ml", ""), ("", "ai.onnx.ml")])
def test_the_opset_is_that_of_onnx_itself(domains: tuple[str, ...]) -> None:
    model = onnx_export._with_opset(reducing("ReduceMean", [1], 0, domains=domains), 17)
    assert {o.domain: o.version for o in model.opset_import}[""] == 17


def test_an_opset_that_onnx_runtime_refuses_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, *_: object, **__: object):
            raise RuntimeError("Opset 27 is under development")

    assert onnx_export._runs(18)
    monkeypatch.setattr("onnxruntime.InferenceSession", Refusing)
    assert not onnx_export._runs(18)


def test_large_models_keep_their_weights_beside_them(
    set_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8, whose float32 file is large on the way, too."""
    monkeypatch.setattr(onnx_export, "LARGEST_EMBEDDED", 1000)
    network = dataclasses.replace(TINY_NETWORK, width=32)
    student_path = write_student(tmp_path / "wide.safetensors", build_real(), network, epochs=0)
    folder = tmp_path / "out"
    folder.mkdir()
    calibration = DataArguments(data=str(set_path))
    result = exporting.export(student_path, out=folder / "s.onnx", precision="int8", calibration=calibration)
    assert sorted(p.name for p in folder.iterdir()) == ["s.onnx", "s.onnx.data"]
    assert result.bytes == sum(p.stat().st_size for p in folder.iterdir())
    images = images_of(4)
    expected = logits_in_float64(student_path, images)
    np.testing.assert_allclose(open_session(folder / "s.onnx")(images), expected, atol=0.4 * np.abs(expected).max())
    shown = call("inspect", folder / "s.onnx", "--json")
    assert json.loads(shown.stdout)["bytes"] == result.bytes
    (folder / "s.onnx.data").unlink()
    with pytest.raises(UserError, match=r"s\.onnx"):
        open_session(folder / "s.onnx")


@pytest.mark.parametrize("location", ["../w.bin", "link.bin", "nothing.bin", "sub", "", "a\0b", "{folder}/w.bin"])
def test_weights_are_looked_for_in_the_models_folder_alone(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(b"secret")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    model = onnx.load_model(foreign_model(folder / "m.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location.format(folder=tmp_path)
    onnx.save_model(model, folder / "m.onnx")
    with pytest.raises(UserError, match=r"m\.onnx stores weights in '.*', which is not a file in its folder"):
        onnx_export.graph_facts(folder / "m.onnx")
    with pytest.raises(UserError, match=r"m\.onnx"):  # ONNX Runtime refuses it, too
        open_session(folder / "m.onnx")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=re.escape(f"needs onnxscript: {install('cpu')}")):
        onnx_export.require_packages()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_file_says_what_onnx_runtime_says(precision: str, exported: Callable[..., Path]) -> None:
    path = exported(precision, "uint8-nchw", "logits")
    assert onnx_export.read_graph(path)[0] == open_session(path).contract


def older(path: Path) -> None:
    """Weights are listed among the inputs, too, and the shape of the output is left open."""
    model = onnx.load_model(path)
    weights = model.graph.initializer
    model.graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save_model(model, path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", [None, older], ids=["new", "old"])
def test_a_file_of_other_origin_says_what_onnx_runtime_says(
    layout: str, change: Callable[[Path], None] | None, tmp_path: Path
) -> None:
    path = foreign_model(tmp_path / "m.onnx", layout, classes=5)
    if change is not None:
        change(path)
    contract = onnx_export.read_graph(path)[0]
    assert contract == open_session(path).contract
    assert (contract.layout, contract.class_count) == (layout, 5)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"PK\x03\x04" * 30, b'{"a": 1}', bytes(1000)])
def test_not_a_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.onnx is not an ONNX file, or is damaged or truncated$"):
        onnx_export.read_graph(tmp_path / "x.onnx")


def test_half_a_model(onnx_path: Path, tmp_path: Path) -> None:
    whole, path = onnx_path.read_bytes(), tmp_path / "cut.onnx"
    without_metadata = onnx.load_model(onnx_path)
    del without_metadata.metadata_props[:]
    end = without_metadata.ByteSize()
    for place in (2, 30, len(whole) // 3, len(whole) // 2, end - 1, end, len(whole) - 1):
        path.write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"cut\.onnx is (not an ONNX file, or is damaged or )?truncated"):
            onnx_export.read_graph(path)


@pytest.mark.parametrize("text", [b"input", b"scores", b"MARK", b"KEY", b"VALUE", b"MatMul"])
def test_what_is_no_text(text: bytes, tmp_path: Path) -> None:
    model = onnx.load_model(foreign_model(tmp_path / "m.onnx"))
    model.producer_name = "MARK"
    onnx.helper.set_model_props(model, {"KEY": "VALUE"})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(text, b"\xff" + text[1:]))
    with pytest.raises(UserError, match=r"m\.onnx is damaged: a name or its metadata is not valid UTF-8"):
        onnx_export.read_graph(tmp_path / "m.onnx")


def test_ports_that_are_no_images(tmp_path: Path) -> None:
    model = onnx.load_model(foreign_model(tmp_path / "m.onnx"))
    for change, got in (
        (lambda type: type.tensor_type.__setattr__("elem_type", 99), r"'input' tensor\(99\)"),
        (lambda type: type.sequence_type.SetInParent(), "'input' sequence_type"),
        (lambda type: type.ClearField("sequence_type"), "'input' None"),
    ):
        change(model.graph.input[0].type)
        onnx.save_model(model, tmp_path / "m.onnx")
        with pytest.raises(UserError, match=rf"m\.onnx: expected uint8 or float32 images, got {got}"):
            onnx_export.read_graph(tmp_path / "m.onnx")
