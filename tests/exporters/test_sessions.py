"""Sessions: their scores, what is refused and how that is said, and whether they run where they were asked to."""

import ctypes
import errno
import importlib
import json
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import little_memory

from ncfmkit.errors import UserError
from ncfmkit.exporters import providers, sessions
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.providers import PROVIDERS, Plugin, Provider, missing
from ncfmkit.exporters.sessions import check_placement, engine_folder, open_session, placed
from ncfmkit.extras import install

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, TYPES = onnx.helper, onnx.TensorProto

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SIZE, CLASSES = 4, 3
WEIGHTS = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, CLASSES)).astype(np.float32)
LINEAR: tuple[Any, ...] = (
    ("Cast", ["images"], ["x1"], {"to": TYPES.FLOAT}),
    ("Flatten", ["x1"], ["x2"], {}),
    ("MatMul", ["x2", "weights"], ["logits"], {}),
)


def linear(
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]] = LINEAR,
    *,
    layout: str = "uint8-nchw",
    opset: int = 17,
    ir: int = 9,
    classes: int = CLASSES,
    domains: Sequence[str] = (),
) -> Any:
    """A model without metadata: pixels times a matrix, or those nodes."""
    row = LAYOUTS[layout]
    type = TYPES.FLOAT if row.dtype is np.float32 else TYPES.UINT8
    graph = helper.make_graph(
        [helper.make_node(kind, *ends, **attributes) for kind, *ends, attributes in nodes],
        "linear",
        [helper.make_tensor_value_info("images", type, ["N", *row.shape(3, SIZE)])],
        [helper.make_tensor_value_info("logits", TYPES.FLOAT, ["N", classes])],
        [onnx.numpy_helper.from_array(WEIGHTS[:, :classes], "weights")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def pictures(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear().SerializeToString())
    return path


def refused(path: Path, says: str, provider: str = "cpu") -> str:
    """What one error says of that file."""
    with pytest.raises(UserError, match=says) as caught:
        open_session(path, provider)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert "/onnxruntime_src/" not in text
    return text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_a_model_of_other_origin(tmp_path: Path, layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear(layout=layout).SerializeToString())
    session = open_session(path, threads=1)
    contract = session.contract
    assert (contract.layout, contract.size, contract.class_count, contract.classes) == (layout, SIZE, CLASSES, None)
    assert session.seconds > 0
    assert session.placement == {}
    assert not session._session._enable_fallback
    images = pictures(5)
    arranged = images.transpose(0, 2, 3, 1) if layout == "uint8-nhwc" else images
    pixels = arranged.reshape(5, -1).astype(np.float64) / (255 if layout == "float-nchw" else 1)
    got = session(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels @ WEIGHTS, rtol=1e-4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_scores_are_those_of_onnx_runtime(model: Path, onnx_path: Path, count: int) -> None:
    for path in (model, onnx_path):
        session = open_session(path)
        images = pictures(count, session.contract.size)
        direct = ort.InferenceSession(str(path), providers=[CPU])
        if count or path == model:  # a convolution takes no empty batch
            assert np.array_equal(session(images), direct.run(None, {"images": images})[0])


def test_the_contract_of_an_exported_student(onnx_path: Path) -> None:
    contract = open_session(onnx_path).contract
    assert (contract.layout, contract.output, contract.channels, contract.size) == ("uint8-nchw", "logits", 3, 8)
    assert contract.classes == ("class 0", "class 1", "class 2")
    assert contract.metadata is not None
    assert contract.metadata.kind == "exported student"


def test_half_scores_become_float32(tmp_path: Path) -> None:
    nodes = [
        *LINEAR[:2],
        ("MatMul", ["x2", "weights"], ["x3"], {}),
        ("Cast", ["x3"], ["logits"], {"to": TYPES.FLOAT16}),
    ]
    proto = linear(nodes)
    proto.graph.output[0].type.tensor_type.elem_type = TYPES.FLOAT16
    path = tmp_path / "half.onnx"
    path.write_bytes(proto.SerializeToString())
    assert open_session(path)(pictures(2)).dtype == np.float32


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads(model: Path, threads: int | None) -> None:
    session = open_session(model, threads=threads)
    assert session._session.get_session_options().intra_op_num_threads == (threads or 0)


def test_wrong_images_are_refused(model: Path) -> None:
    with pytest.raises(UserError, match="the model takes 3x4x4 images, got 3x8x8 uint8"):
        open_session(model)(pictures(2, 8))


def test_what_is_declared_reaches_the_contract(model: Path) -> None:
    assert open_session(model, declared={"output": "probabilities"}).contract.output == "probabilities"


@pytest.mark.parametrize("count", [1, 8])
def test_bound_runs_the_same(onnx_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    session = open_session(onnx_path)
    bindings = []
    make = session._session.io_binding

    def kept() -> Any:
        bindings.append(make())
        return bindings[-1]

    monkeypatch.setattr(session._session, "io_binding", kept)
    images = pictures(count, 8)
    call = session.bound(images)
    expected = session(images)
    for _ in range(2):
        call()
        assert np.array_equal(bindings[0].copy_outputs_to_cpu()[0], expected)
    assert len(bindings) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is no model", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"PK\x03\x04" * 30, b'{"a": 1}', bytes(1000)],
    ids=["empty", "text", "png", "zip", "json", "zeros"],
)
def test_not_an_onnx_file(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    refused(path, "is not an ONNX file, or is damaged or truncated$")
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file(onnx_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, path = onnx_path.read_bytes(), tmp_path / "cut.onnx"
    without_metadata = onnx.load_model(onnx_path)
    del without_metadata.metadata_props[:]
    end_of_model = without_metadata.ByteSize()
    without_opset = onnx.load_model(onnx_path)
    for field in ("metadata_props", "opset_import", "functions"):
        without_opset.ClearField(field)
    end_of_graph = without_opset.ByteSize()
    places = [2, 30, len(whole) // 3, len(whole) // 2, end_of_graph, end_of_model - 1, end_of_model, len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place])
        refused(path, "is (not an ONNX file, or is damaged or )?truncated")
    assert capfd.readouterr() == ("", "")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", r"^no model at .*no\.onnx \(No such file or directory\): expected an ONNX file$")
    refused(tmp_path, r"^no model at .* \(Is a directory\): expected an ONNX file$")
    refused(tmp_path / ("x" * 300), r"^no model at .* \(File name too long\): expected an ONNX file$")


def test_no_permission(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)  # root would be allowed to
    refused(model, r"^no model at .* \(Permission denied\)")


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (
            lambda: linear(opset=99),
            r"opset 99, .*ONNX Runtime \S+ .*\d+: .*--opset, or update",
        ),
        (lambda: linear(ir=99), r"ONNX Runtime: .*IR version: 99"),
        (
            lambda: linear([("Fancy", ["images"], ["logits"], {"domain": "com.mine"})], domains=["com.mine"]),
            r"ONNX Runtime: .*com\.mine.*Fancy",
        ),
        (lambda: linear([("Fancy", ["images"], ["logits"], {})]), r"cannot be opened by ONNX Runtime: .*Fancy"),
        (
            lambda: linear([("MatMul", ["images", "weights"], ["logits"], {})]),
            r"ONNX Runtime: .*tensor\(uint8\)",
        ),
        (lambda: linear(classes=0), r"float .*\[N, classes\], .*got .* \[N, 0\]"),
        (
            lambda: linear([*LINEAR[:2], ("Reshape", ["x2", "seven"], ["logits"], {}), SEVEN], classes=7),
            r"does not run on CPUExecutionProvider: .*[Rr]eshape",
        ),
    ],
    ids=["opset", "ir", "custom operator", "unknown operator", "wrong types", "no classes", "fails when run"],
)
def test_models_that_do_not_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], proto: Callable[[], Any], says: str
) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(proto().SerializeToString())
    refused(path, says)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", [b"images", b"logits", b"MARK", b"KEY", b"VALUE"])
def test_names_that_are_no_text(text: bytes, tmp_path: Path) -> None:
    proto = linear()
    proto.producer_name = "MARK"
    helper.set_model_props(proto, {"KEY": "VALUE"})
    path = tmp_path / "x.onnx"
    path.write_bytes(proto.SerializeToString().replace(text, b"\xff" + text[1:]))
    refused(path, "is damaged: a name or its metadata is not valid UTF-8")


def claims(
    side: int = SIZE, classes: int = CLASSES, *, channels: int = 3, name: str = "images", metadata: str = ""
) -> Any:
    """The mean of each channel as scores, so that any side and any number of classes go through ONNX Runtime."""
    nodes = [
        helper.make_node("Cast", [name], ["x1"], to=TYPES.FLOAT),
        helper.make_node("ReduceMean", ["x1"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    ends = [(name, TYPES.UINT8, ["N", channels, side, side]), ("logits", TYPES.FLOAT, ["N", classes])]
    inputs, outputs = ([helper.make_tensor_value_info(*end)] for end in ends)
    model = helper.make_model(
        helper.make_graph(nodes, "claims", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    if metadata:
        helper.set_model_props(model, {"ncfmkit": metadata})
    return model


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (lambda: claims(10**6), r"takes images of 3x1000000x1000000, expected 16,777,216 values at most$"),
        (lambda: claims(classes=2**40), r"expected an output of float scores \[N, classes\], 1,048,576 at most, got"),
        (lambda: claims(channels=2, name="n" * 2**20), r"expected square images of .*; got .n{99}\.\.\. tensor"),
        (lambda: claims(metadata=" " * (5 << 20)), r"expected 'ncfmkit' metadata of at most 4,194,304 characters"),
        (lambda: claims(metadata='{"classes": ' + "[" * 10**6), "its 'ncfmkit' metadata: .*recursion limit"),
        (
            lambda: linear([("F" * 10**6, ["images"], ["logits"], {})]),
            r"cannot be opened by ONNX Runtime: .*FFF\.\.\.$",
        ),
    ],
    ids=["side", "classes", "port", "metadata", "nested", "operator"],
)
def test_claims_cannot_make_it_large(tmp_path: Path, proto: Callable[[], Any], says: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(proto().SerializeToString())
    with little_memory(100 << 20):
        assert len(refused(path, says)) < 2000


SEVEN: Any = ("Constant", [], ["seven"], {"value_ints": [-1, 7]})


def test_weights_beside_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, beside = tmp_path / "big.onnx", tmp_path / "big.onnx.data"
    onnx.save_model(linear(), path, save_as_external_data=True, location=beside.name, size_threshold=0)
    assert open_session(path)(pictures(2)).shape == (2, CLASSES)
    beside.write_bytes(beside.read_bytes()[:50])
    refused(path, "weights in another file, .*missing")
    beside.unlink()
    refused(path, r"weights in another file, .*missing .*big\.onnx\.data")
    assert capfd.readouterr() == ("", "")


def test_a_model_that_mixes_its_images_up(tmp_path: Path) -> None:
    """It declares N scores and gives one row, whatever N is."""
    nodes = [*LINEAR[:2], ("MatMul", ["x2", "weights"], ["x3"], {}), ("ReduceMax", ["x3"], ["logits"], {"axes": [0]})]
    path = tmp_path / "x.onnx"
    path.write_bytes(linear(nodes).SerializeToString())
    session = open_session(path)
    with pytest.raises(UserError, match=r"x\.onnx: expected scores of shape \(4, 3\), got \(1, 3\)"):
        session(pictures(4))


ROWS = [name for name, row in PROVIDERS.items() if row.library]


@pytest.fixture
def gpu_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONNX Runtime as if built for GPUs, torch as if it saw one; the folder of the providers' libraries."""
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "__file__", str(folder.parent / "__init__.py"))
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublas.so"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    return folder


class Started:
    """A session that has what it was asked for."""

    def __init__(self, model: bytes, options: Any, *, providers: list[tuple[str, Any]], enable_fallback: int):
        self.get_providers = lambda: [*(name for name, _ in providers), CPU]


def test_the_cpu_is_always_there() -> None:
    assert missing("cpu") == ""


@pytest.mark.parametrize("name", ROWS)
def test_a_build_without_the_provider(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime"])
    extra = PROVIDERS[name].extra
    says = (
        f"provider {name} cannot be used: the installed onnxruntime has no {PROVIDERS[name].name}: "
        f"pip uninstall onnxruntime, then {install(extra)}, on Linux x86-64 with an NVIDIA GPU"
    )
    with pytest.raises(UserError) as caught:
        open_session(model, name)
    assert str(caught.value) == says


def test_both_packages_at_once_are_both_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    assert f"pip uninstall onnxruntime onnxruntime-gpu, then {install('gpu')}" in missing("cuda")


def test_packages_are_those_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert providers.packages() == []
    for name in ("onnxruntime_gpu", "onnxruntime_extensions", "onnxruntime"):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    importlib.invalidate_caches()
    assert providers.packages() == ["onnxruntime", "onnxruntime-gpu"]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("content", [None, "this is no library"])
def test_a_library_that_does_not_load(
    gpu_build: Path, model: Path, capfd: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    library = PROVIDERS[name].library
    assert library is not None
    if content:
        (gpu_build / library).write_text(content)
    says = refused_by(name, model)
    assert says.startswith(f"provider {name} cannot be used: {PROVIDERS[name].name} does not load: {library}: ")
    assert install(PROVIDERS[name].extra) in says
    assert capfd.readouterr() == ("", "")


def refused_by(provider: str, model: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_session(model, provider)
    return str(caught.value)


@pytest.mark.parametrize("name", ROWS)
def test_a_provider_that_starts(gpu_build: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Started)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail("a library loaded before ONNX Runtime sets its host"))
    assert missing(name) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing(name).startswith(f"torch {torch.__version__} sees no GPU: install a torch for CUDA")


def test_a_provider_whose_library_loads_and_which_does_not_start(
    gpu_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: types.SimpleNamespace(get_providers=lambda: [CPU]))
    assert "CUDAExecutionProvider does not load: ONNX Runtime does not say why; it needs" in missing("cuda")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 35")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    assert "CUDAExecutionProvider does not load: CUDA failure 35; it needs" in missing("cuda")


@pytest.mark.parametrize("error", [None, ImportError("no"), OSError("libnvinfer.so.10: no such file")])
def test_tensorrts_own_libraries_are_loaded_for_it_alone(
    gpu_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Started)
    (tmp_path / "tensorrt.py").write_text(f"raise {error!r}" if error else "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert missing("cuda") == ""
    assert "tensorrt" not in sys.modules
    assert missing("tensorrt") == ""
    assert ("tensorrt" in sys.modules) == (error is None)


def test_without_onnx_runtime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "packages", lambda: [])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    says = (
        r"^provider cpu cannot be used: ONNX Runtime cannot be used \(.*\): pip .*\(the extra 'cpu'\), or on Linux .*"
    )
    with pytest.raises(UserError, match=says):
        open_session(model)
    assert missing("tensorrt") == missing("cpu")


def test_half_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when one of the two packages takes the files of both along: a folder without code."""
    monkeypatch.setattr(providers, "packages", lambda: ["onnxruntime"])
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    assert f"pip uninstall onnxruntime, then {install('cpu')}" in missing("cpu")


@pytest.mark.parametrize("name", ROWS)
def test_a_session_without_the_provider_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """ONNX Runtime's answer to a provider that does not load."""
    plain = ort.InferenceSession
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, **_: plain(path, options, providers=[CPU]))
    refused(model, rf"expected {PROVIDERS[name].name}, ONNX Runtime opened \['{CPU}'\]$", name)


def test_no_fallback_when_the_provider_fails(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long = (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void> "
        "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] "
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:146 std::conditional_t<THRW, void> "
        "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] "
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; \n\n"
    )
    tried = []

    def fail(self: Any, wanted: list[Any], *_: Any) -> None:
        tried.append(wanted)
        self._fallback_providers = [CPU]
        raise RuntimeError(long)

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", fail)
    says = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    refused(model, f"cannot be opened by ONNX Runtime: {says}$")
    assert all(wanted == [(CPU, {})] for wanted in tried)
    assert capfd.readouterr() == ("", "")


def node(operator: str, provider: str) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{operator}_kernel_time", "args": {"op_name": operator, "provider": provider}}


def test_placed_counts_nodes_only() -> None:
    profile: list[dict[str, Any]] = [
        {"cat": "Session", "name": "model_run"},
        {"cat": "Session", "name": "session_initialization", "args": {}},
        {"cat": "Node", "name": "Conv_fence_before", "args": {"op_name": "Conv"}},
        {"cat": "Kernel", "name": "cudnn", "args": {"op_name": "Conv", "provider": CUDA}},
        node("Conv", CUDA),
        node("Conv", CUDA),
        node("MemcpyToHost", CUDA),
        node("Gather", CPU),
    ]
    assert placed(profile) == {CUDA: {"Conv": 2, "MemcpyToHost": 1}, CPU: {"Gather": 1}}
    assert placed([]) == {}


OPENVINO, FUSED = "OpenVINOExecutionProvider", "OpenVINOExecutionProvider_10383179355879896553_0"  # all that it took
SUBGRAPH = "TRTKernel_graph_main_graph_7213046203958262115_0"


@pytest.mark.parametrize(
    ("wanted", "placement"),
    [
        (CUDA, {CUDA: {"Conv": 3, "FusedConv": 1, "Gemm": 1}}),
        (CUDA, {CUDA: {"Conv": 3}, CPU: {"Shape": 1, "Gather": 2, "Concat": 1, "Unsqueeze": 1}}),
        (TENSORRT, {TENSORRT: {SUBGRAPH: 1}}),
        (TENSORRT, {TENSORRT: {SUBGRAPH: 1}, CPU: {"Cast": 1, "Transpose": 1}}),
        (CPU, {CPU: {"Conv": 1}}),
        (OPENVINO, {OPENVINO: {FUSED: 1}}),
        (OPENVINO, {OPENVINO: {FUSED: 1}, CPU: {"Cast": 1}}),
    ],
)
def test_good_placements(wanted: str, placement: dict[str, Any]) -> None:
    check_placement("x.onnx", counted(placement), wanted)


def counted(placement: dict[str, Any]) -> dict[str, Counter[str]]:
    return {provider: Counter(operators) for provider, operators in placement.items()}


@pytest.mark.parametrize(
    ("wanted", "placement", "strays"),
    [
        (CUDA, {CUDA: {"Gemm": 1}, CPU: {"Conv": 2, "Shape": 1}}, f"2 Conv on {CPU}"),
        (
            CUDA,
            {CUDA: {"Cast": 1}, CPU: {"QLinearConv": 4, "QGemm": 1, "MatMulInteger": 1}},
            f"1 MatMulInteger on {CPU}, 1 QGemm on {CPU}, 4 QLinearConv on {CPU}",
        ),
        (CUDA, {CUDA: {"Conv": 1}, CPU: {"InstanceNormalization": 2}}, f"2 InstanceNormalization on {CPU}"),
        (TENSORRT, {TENSORRT: {SUBGRAPH: 1}, CUDA: {"FusedConv": 1}}, f"1 FusedConv on {CUDA}"),
        (OPENVINO, {OPENVINO: {FUSED: 2}, CPU: {"Conv": 1, "Gemm": 1, "Relu": 2}}, f"1 Conv on {CPU}, 1 Gemm on {CPU}"),
        (CUDA, {CPU: {"Conv": 1}}, f"1 Conv on {CPU}"),
        (CUDA, {CPU: {"Cast": 1}}, "no node there"),
        (TENSORRT, {CUDA: {"Relu": 1}}, "no node there"),
        (CUDA, {}, "no node there"),
    ],
)
def test_bad_placements(wanted: str, placement: dict[str, Any], strays: str) -> None:
    with pytest.raises(UserError) as caught:
        check_placement("x.onnx", counted(placement), wanted)
    assert str(caught.value) == f"x.onnx does not run on {wanted}: ONNX Runtime placed {strays}"


def test_a_real_profile(onnx_path: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    session = ort.InferenceSession(str(onnx_path), options, providers=[CPU])
    session.run(None, {"images": pictures(2, 8)})
    placement = placed(json.loads(Path(session.end_profiling()).read_text()))
    assert set(placement) == {CPU}
    assert sum(count for operator, count in placement[CPU].items() if "Conv" in operator) == 2
    check_placement("x.onnx", placement, CPU)
    with pytest.raises(UserError, match=rf"x\.onnx .*{CUDA}: .*Conv on {CPU}"):
        check_placement("x.onnx", placement, CUDA)


def test_a_session_profiles_itself(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's provider in the role of one from a library."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setitem(PROVIDERS, "cuda", Provider(name=CPU, library="x.so", extra="gpu", device="cpu"))
    session = open_session(model, "cuda")
    assert session.provider == "cuda"
    assert session.placement == {CPU: {"Cast": 1, "Flatten": 1, "MatMul": 1}}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not hasattr(ort, "get_ep_devices"), reason="needs an ONNX Runtime with plug-ins")
def test_a_session_of_a_plugin_profiles_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's provider, which ONNX Runtime offers a device of, in the role of a plug-in."""
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    plugin = Plugin(package="x", module="x", since="1.23", needs="a CPU")
    monkeypatch.setitem(PROVIDERS, "webgpu", Provider(name=CPU, plugin=plugin, extra="webgpu", device="cpu"))
    session, images = open_session(model, "webgpu", threads=1), pictures(3)
    assert session.placement == {CPU: {"Cast": 1, "Flatten": 1, "MatMul": 1}}
    assert not session._session._enable_fallback
    np.testing.assert_allclose(session(images), images.reshape(3, -1).astype(np.float64) @ WEIGHTS, rtol=1e-4)


def test_a_session_refuses_its_own_placement(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setattr(sessions, "placed", lambda profile: counted({CPU: {"Cast": 1}, "other": {"MatMul": 1}}))
    monkeypatch.setitem(PROVIDERS, "cuda", Provider(name=CPU, library="x.so", extra="gpu", device="cpu"))
    refused(model, f"does not run on {CPU}: ONNX Runtime placed 1 MatMul on other$", "cuda")


def test_options_of_tensorrt(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(path: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
        asked.append((providers, enable_fallback, engine_folder(model).is_dir()))
        raise RuntimeError("no GPU")

    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setattr(ort, "InferenceSession", fail)
    refused(model, "cannot be opened by ONNX Runtime: no GPU$", "cuda")
    assert not engine_folder(model).parent.exists()
    refused(model, "cannot be opened by ONNX Runtime: no GPU$", "tensorrt")
    folder = str(engine_folder(model))
    options = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
    }
    assert asked == [([(CUDA, {"use_tf32": 0})], 0, False), ([(TENSORRT, options)], 0, True)]


def test_engines_belong_to_a_content(model: Path) -> None:
    first = engine_folder(model)
    assert first.parent == model.with_name("linear.onnx.tensorrt")
    assert engine_folder(model) == first
    assert not first.parent.exists()
    proto = onnx.load_model(model)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(WEIGHTS + 1, "weights"))
    model.write_bytes(proto.SerializeToString())
    second = engine_folder(model)
    model.with_name("linear.onnx.data").write_bytes(b"weights")
    third = engine_folder(model)
    model.unlink()
    assert len({first, second, third, engine_folder(model)}) == 4


def test_no_place_for_engines(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    model.with_name("linear.onnx.tensorrt").write_text("in the way")
    refused(model, r"engines cannot be kept .*linear\.onnx\.tensorrt/\w+ \(.*\): .*writable$", "tensorrt")
