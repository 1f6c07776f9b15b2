"""TensorRT engines: how they are built and run, and what is refused, by a made-up TensorRT around ONNX Runtime.

With `-m gpu` against the real one, which alone can show that it does what it is asked for.
"""

import ctypes
import enum
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import foreign_model, foreign_scores, images_of

from ncfmkit.errors import UserError
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import tensorrt as tensorrt_engine
from ncfmkit.exporters.engine_file import publish, sidecar_path
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.tensorrt import build_engine, open_engine
from ncfmkit.extras import install
from ncfmkit.real.arguments import DataArguments

pytest.importorskip("onnxruntime")

VERSIONS = {"10.13.3.9": 1, "11.4.0.106": 0}  # and the number that STRONGLY_TYPED has there


@dataclass
class World:
    """What a test changes of the made-up TensorRT, and what it saw."""

    version: str = "10.13.3.9"
    fails: str = ""  # start, parse, build, load or run
    logged: list[str] = field(default_factory=list)  # as an error, by what fails
    refused: list[str] = field(default_factory=list)  # by the parser
    takes_timings: bool = True  # those that were kept
    refuses_timings: bool = False  # empty ones, too
    profile: tuple[Any, ...] = ()  # name, fewest, usual, most
    loaded: bool = False
    ran: list[dict[str, int]] = field(default_factory=list)  # addresses of every run

    def holds(self, part: str) -> bool:
        if part == self.fails:
            log = tensorrt_engine._log(sys.modules["tensorrt"])
            log.log(Severity.WARNING, "of no interest")
            for text in self.logged:
                log.log(Severity.ERROR, text)
        return part != self.fails


world = World()


# The names below are those of NVIDIA's bindings, 10.13.3.9 and 11.4.0.106 alike; a test compares those installed.
# An engine is the range of its batches and the ONNX file, which ONNX Runtime runs.


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class BuilderFlag(enum.Enum):
    TF32 = 6


class DataType(enum.Enum):
    FLOAT = np.float32
    HALF = np.float16
    UINT8 = np.uint8


class INetworkDefinition:
    __slots__ = ("_content",)
    _content: bytes


class OnnxParser:
    __slots__ = ("_errors", "_network")

    def __init__(self, network: INetworkDefinition, logger: ILogger):
        self._network, self._errors = network, list[str]()

    def parse_from_file(self, model: str) -> bool:
        content = onnx.load_model(model)
        self._network._content = content.SerializeToString()
        self._errors = [*world.refused, *refused_by_the_real_parser(content.graph)]
        return world.holds("parse") and not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


def refused_by_the_real_parser(graph: Any) -> Iterable[str]:
    """Of Q/DQ and of pixels: https://github.com/onnx/onnx-tensorrt, builtin_op_importers.cpp and docs/operators.md."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pixels = {p.name for p in graph.input if p.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero_point = (constants[name] for name in node.input[1:])
            if zero_point.dtype != np.int8 or zero_point.any() or not (scale > 0).all():
                yield f"{node.name}: not symmetric int8"
            if constants.get(node.input[0], zero_point).dtype not in (np.int8, np.float32):
                yield f"{node.name}: only activation types allowed as input to this layer"
        elif pixels & set(node.input) and node.op_type != "Cast":
            yield f"{node.name}: uint8 is for a Cast alone"


class IOptimizationProfile:
    __slots__ = ()

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        world.profile = (input, min, opt, max)


class ITimingCache:
    __slots__ = ("_content",)

    def __init__(self, content: bytes):
        self._content = content

    def serialize(self) -> memoryview:
        return memoryview(self._content + b"+timings")


class IBuilderConfig:
    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready = set[str]()

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._ready.add(flag.name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        assert isinstance(profile, IOptimizationProfile)
        self._ready.add("profile")
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        damaged = world.refuses_timings or serialized_timing_cache == b"damaged"
        return None if damaged else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert isinstance(cache, ITimingCache)
        assert ignore_mismatch is False
        taken = world.takes_timings or cache.serialize() == b"+timings"
        self._ready |= {"timings"} if taken else set()
        return taken


class Builder:
    __slots__ = ()

    def __init__(self, logger: ILogger):
        begin(logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << VERSIONS[world.version]  # strongly typed, and nothing else
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> memoryview | None:
        assert config._ready == {"TF32", "profile"} | (set() if world.refuses_timings else {"timings"})
        _, (fewest, *_), _, (most, *_) = world.profile
        return memoryview(f"{fewest} {most}\n".encode() + network._content) if world.holds("build") else None


class IExecutionContext:
    __slots__ = ("_addresses", "_batches", "_engine", "_shape")

    def __init__(self, engine: "ICudaEngine"):
        self._engine, self._addresses = engine, dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert type(shape) is tuple
        self._shape, (fewest, most), known = shape, self._engine._batches, self._engine._input
        return name == known.name and fewest <= shape[0] <= most and list(shape[1:]) == known.shape[1:]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [self._shape[0], *self._engine._output.shape[1:]] if name == self._engine._output.name else [-1]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == FakeStream.cuda_stream
        world.ran.append(dict(self._addresses))
        if not world.holds("run"):
            return False
        images = self._memory(self._engine._input.name, self._shape)
        scores = self._engine._session.run(None, {self._engine._input.name: images})[0]
        self._memory(self._engine._output.name, scores.shape)[:] = scores
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind: Any = self._engine.get_tensor_dtype(name).value
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer((ctypes.c_ubyte * size).from_address(self._addresses[name]), kind).reshape(shape)


class ICudaEngine:
    __slots__ = ("_batches", "_input", "_output", "_session")

    def __init__(self, content: bytes):
        import onnxruntime as ort

        head, _, model = content.partition(b"\n")
        self._batches = tuple(map(int, head.split()))
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        (self._input,), (self._output,) = self._session.get_inputs(), self._session.get_outputs()

    @property
    def num_io_tensors(self) -> int:
        return 2

    def get_tensor_name(self, index: int) -> str:
        return (self._input.name, self._output.name)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        port = next(port for port in (self._input, self._output) if port.name == name)
        names = {"float": DataType.FLOAT, "float16": DataType.HALF, "uint8": DataType.UINT8}
        return names[port.type.removeprefix("tensor(").removesuffix(")")]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class Runtime:
    __slots__ = ()

    def __init__(self, logger: ILogger):
        begin(logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        world.loaded = True
        return ICudaEngine(serialized_engine) if world.holds("load") else None


def begin(logger: ILogger) -> None:
    assert isinstance(logger, ILogger)
    if not world.holds("start"):
        raise TypeError("pybind11::init(): factory function returned nullptr")


CLASSES: tuple[type, ...] = (ILogger, BuilderFlag, DataType, INetworkDefinition, OnnxParser, IOptimizationProfile)
CLASSES += (ITimingCache, IBuilderConfig, Builder, IExecutionContext, ICudaEngine, Runtime)


class FakeStream:
    cuda_stream = 4711

    def synchronize(self) -> None:
        pass


def put_in_place(monkeypatch: pytest.MonkeyPatch, version: str) -> World:
    """The made-up module as `tensorrt`, with a GPU that torch seems to see; its memory is the CPU's."""
    global world
    world = World(version=version)
    module: Any = ModuleType("tensorrt")
    vars(module).update({part.__name__: part for part in CLASSES})
    module.__version__, module.nptype = version, lambda trt_type: trt_type.value
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=VERSIONS[version])
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Fake/1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(tensorrt_engine, "DEVICE", "cpu")
    return world


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> World:
    return put_in_place(monkeypatch, "10.13.3.9")


@pytest.fixture
def engine_path(trt: World, onnx_path: Path, tmp_path: Path) -> Path:
    build_engine(onnx_path, tmp_path / "student.engine")
    return tmp_path / "student.engine"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.usefixtures("traced_once")
def test_a_student_in_every_precision(
    version: str, precision: str, student_path: Path, set_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parity gate holds, and nothing of the graph is what the real parser refuses."""
    calibration = DataArguments(data=str(set_path)) if precision == "int8" else None
    out, onnx_file = tmp_path / "s.engine", tmp_path / "s.onnx"
    exporting.export(student_path, out=onnx_file, precision=precision, calibration=calibration)
    put_in_place(monkeypatch, version)  # after torch's exporter, which would look at the GPU
    result = exporting.export(student_path, out=out, to="tensorrt", precision=precision, calibration=calibration)
    assert (result.file, result.precision, result.failures) == (str(out), precision, ())
    assert result.bytes == out.stat().st_size + sidecar_path(out).stat().st_size
    images = images_of(600)  # the engine takes 256 at once
    images.flags.writeable = False  # as a memory-mapped store has them
    session = open_engine(out)
    scores = session(images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, open_session(onnx_file)(images), rtol=1e-4, atol=1e-5)
    assert session(images[:0]).shape == (0, 3)
    assert (session.provider, session.placement) == ("tensorrt", {})
    assert session.contract.classes == ("class 0", "class 1", "class 2")
    assert session.seconds > 0


def test_parts_of_a_batch_are_as_aligned_as_the_whole(engine_path: Path) -> None:
    call = open_engine(engine_path).bound(images_of(600))
    world.ran.clear()
    call()
    first, *others = world.ran
    assert len(others) == 2
    for name in ("images", "logits"):
        assert [(part[name] - first[name]) % 256 for part in others] == [0, 0]
        assert len({part[name] for part in world.ran}) == 3


def test_reads_float16_scores(trt: World, tmp_path: Path) -> None:
    model = onnx.load(foreign_model(tmp_path / "m.onnx"))
    model.graph.node.append(onnx.helper.make_node("Cast", ["scores"], ["half"], to=onnx.TensorProto.FLOAT16))
    model.graph.output[0].name = "half"
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    build_engine(tmp_path / "half.onnx", tmp_path / "half.engine")
    scores = open_engine(tmp_path / "half.engine")(images_of(5))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, foreign_scores(images_of(5)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("layout", "shape"), [("uint8-nchw", (3, 8, 8)), ("uint8-nhwc", (8, 8, 3))])
def test_batches_are_of_images_as_the_model_takes_them(
    trt: World, tmp_path: Path, layout: str, shape: tuple[int, ...]
) -> None:
    build_engine(foreign_model(tmp_path / "m.onnx", layout), tmp_path / "m.engine")
    assert trt.profile == ("input", (1, *shape), (64, *shape), (256, *shape))


def test_the_sidecar_says_what_the_engine_is(engine_path: Path, onnx_path: Path) -> None:
    sidecar = json.loads(sidecar_path(engine_path).read_text())
    metadata = {p.key: p.value for p in onnx.load(onnx_path).metadata_props}
    assert sidecar["ncfmkit"] == json.loads(metadata["ncfmkit"])
    assert (sidecar["input"]["name"], sidecar["input"]["type"]) == ("images", "tensor(uint8)")
    assert (sidecar["input"]["shape"][1:], sidecar["output"]["shape"][1:]) == ([3, 8, 8], [3])
    assert sidecar["built_for"] == {"tensorrt": "10.13.3.9", "gpu": "NVIDIA Fake/1", "compute_capability": "8.9"}
    assert sidecar["sha256"] == hashlib.sha256(engine_path.read_bytes()).hexdigest()
    assert {"torch", "ncfmkit"} <= set(sidecar["versions"])
    assert sidecar["seconds"] >= 0


def test_keeps_timings_per_gpu_and_version(engine_path: Path, onnx_path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "tensorrt" / "NVIDIA-Fake-1-8.9-10.13.3.9.timing"
    assert kept.read_bytes() == b"+timings"
    build_engine(onnx_path, engine_path)
    assert kept.read_bytes() == b"+timings+timings"  # those kept, and new ones


@pytest.mark.parametrize("content", [b"of another GPU", b"damaged"])
def test_begins_anew_where_kept_timings_do_not_fit(
    content: bytes, trt: World, engine_path: Path, onnx_path: Path, tmp_path: Path
) -> None:
    trt.takes_timings = False
    (kept,) = (tmp_path / "cache" / "tensorrt").iterdir()
    kept.write_bytes(content)
    build_engine(onnx_path, engine_path)
    assert kept.read_bytes() == b"+timings"


def test_builds_where_no_timings_are_taken(trt: World, onnx_path: Path, tmp_path: Path) -> None:
    trt.refuses_timings = True
    build_engine(onnx_path, tmp_path / "student.engine")
    assert open_engine(tmp_path / "student.engine")(images_of(2)).shape == (2, 3)
    assert not list((tmp_path / "cache" / "tensorrt").iterdir())


def test_names_the_extra_without_tensorrt(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"\(the extra 'tensorrt'\).*Linux x86-64.*NVIDIA GPU"):
        build_engine(onnx_path, tmp_path / "student.engine")
    (tmp_path / "student.engine").write_bytes(b"an engine")
    with pytest.raises(UserError, match=re.escape(install("tensorrt"))):
        open_engine(tmp_path / "student.engine")


def test_needs_a_gpu_that_torch_sees(trt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU.*\(the extra 'tensorrt'\)"):
        tensorrt_engine.tensorrt()


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.12.0.36"])
def test_needs_a_recent_tensorrt(trt: World, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("tensorrt.__version__", version)
    with pytest.raises(UserError, match=rf"version {version} is too old.*tensorrt-cu13>=10\.13"):
        tensorrt_engine.tensorrt()


@pytest.mark.parametrize("version", ["10.13.0.35", "10.16.1.11", "11.0.0.114"])
def test_takes_a_recent_tensorrt(trt: World, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("tensorrt.__version__", version)
    assert tensorrt_engine.tensorrt().__version__ == version


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("start", r"10.13.3.9 does not start on NVIDIA Fake/1: no driver; out of memory; often"),
        ("parse", r"10.13.3.9 cannot read .*student\.onnx, 1 error\(s\):\n  no driver; out of memory$"),
        ("build", r"10.13.3.9 cannot build an engine of .*student\.onnx: no driver; out of memory$"),
    ],
)
def test_says_why_nothing_was_built(fails: str, says: str, trt: World, onnx_path: Path, tmp_path: Path) -> None:
    trt.fails, trt.logged = fails, ["no driver", "out of memory"]
    with pytest.raises(UserError, match=says):
        build_engine(onnx_path, tmp_path / "student.engine")
    assert not list(tmp_path.glob("student.engine*"))


@pytest.mark.parametrize("fails", ["build", "load", "run"])
def test_errors_of_what_succeeded_are_not_reasons(
    fails: str, trt: World, engine_path: Path, onnx_path: Path, tmp_path: Path
) -> None:
    session = open_engine(engine_path)
    tensorrt_engine._log(sys.modules["tensorrt"]).log(Severity.ERROR, "a tactic was skipped")
    trt.fails, trt.logged = fails, ["out of memory"]
    again: dict[str, Callable[[], object]] = {
        "build": lambda: build_engine(onnx_path, tmp_path / "other.engine"),
        "load": lambda: open_engine(engine_path),
        "run": lambda: session(images_of(2)),
    }
    with pytest.raises(UserError, match="out of memory") as caught:
        again[fails]()
    assert "tactic" not in str(caught.value)


def test_reports_all_errors_of_the_parser(trt: World, onnx_path: Path, tmp_path: Path) -> None:
    trt.refused = ["In node 3: UNSUPPORTED_NODE: no Transpose", "In node 7: INVALID_NODE: no Foo"]
    with pytest.raises(UserError, match=r"(?s)student.onnx, 2 error\(s\):\n.*no Transpose\n.*no Foo"):
        build_engine(onnx_path, tmp_path / "student.engine")


def test_refuses_a_fixed_batch(trt: World, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match=r"fixed\.onnx .*4 images.*dynamic batch"):
        build_engine(tmp_path / "fixed.onnx", tmp_path / "student.engine")


def test_opens_under_the_name_that_it_is_published_by(engine_path: Path) -> None:
    publish(engine_path, engine_path.with_name("other.engine"))
    assert not engine_path.exists()
    assert not sidecar_path(engine_path).exists()
    assert open_engine(engine_path.with_name("other.engine"))(images_of(2)).shape == (2, 3)


def test_refuses_other_images(engine_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes 3x8x8 images, got 1x8x8 uint8"):
        open_engine(engine_path)(np.zeros((1, 1, 8, 8), np.uint8))


def test_names_a_file_that_is_not_there(trt: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no engine at .*none.engine"):
        open_engine(tmp_path / "none.engine")


def test_says_why_it_does_not_run(trt: World, engine_path: Path) -> None:
    session = open_engine(engine_path)
    trt.fails, trt.logged = "run", ["enqueueV3: out of memory"]
    with pytest.raises(UserError, match=r"student\.engine does not run on 2 images: enqueueV3: out of"):
        session(images_of(2))


AGAIN = r"\. .*not portable: .*\(ncfmkit export STUDENT --to tensorrt\)"


@pytest.mark.parametrize(
    ("version", "name", "capability"),
    [("11.4.0.106", "NVIDIA Fake/1", (8, 9)), ("10.13.3.9", "Fake 2", (8, 9)), ("10.13.3.9", "NVIDIA Fake/1", (9, 0))],
)
def test_does_not_load_an_engine_of_another_machine(
    version: str, name: str, capability: tuple[int, int], engine_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = put_in_place(monkeypatch, version)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    here = rf"TensorRT {version} and {name} \(compute capability {capability[0]}.{capability[1]}\){AGAIN}"
    with pytest.raises(UserError, match=rf"for TensorRT 10.13.3.9 and NVIDIA Fake/1 \(.* 8\.9\), here is {here}"):
        open_engine(engine_path)
    assert not elsewhere.loaded


def test_says_why_an_engine_does_not_load(trt: World, engine_path: Path) -> None:
    trt.fails, trt.logged = "load", ["magic tag does not match"]
    with pytest.raises(UserError, match=rf"TensorRT .*magic tag does not match{AGAIN}"):
        open_engine(engine_path)


@pytest.mark.parametrize(
    ("port", "change"),
    [
        ("input", {"name": "other"}),
        ("input", {"shape": [None, 3, 16, 16]}),
        ("input", {"type": "tensor(float)"}),
        ("output", {"name": "other"}),
        ("output", {"shape": [None, 4]}),
    ],
)
def test_takes_no_memory_for_other_inputs_and_outputs(
    port: str, change: dict[str, Any], trt: World, engine_path: Path
) -> None:
    sidecar = json.loads(sidecar_path(engine_path).read_text())
    sidecar[port].update(change)
    sidecar["ncfmkit"] = {}
    sidecar_path(engine_path).write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=rf"student\.engine\.json .*inputs and outputs{AGAIN}"):
        open_engine(engine_path)
    assert not trt.ran


def test_the_made_up_tensorrt_has_what_the_real_one_has() -> None:
    """Needs NVIDIA's bindings, not a GPU."""
    real = pytest.importorskip("tensorrt", exc_type=ImportError)
    names: dict[str, list[str]] = {"__version__": [], "nptype": [], "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"]}
    names |= {part.__name__: [n for n in vars(part) if not n.startswith("_")] for part in CLASSES}
    lacking = [f"{part}.{n}" for part, own in names.items() for n in own if not hasattr(getattr(real, part), n)]
    assert [*lacking, *(part for part in names if not hasattr(real, part))] == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine_answers_as_onnx_runtime_does(
    precision: str, student_path: Path, set_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt", exc_type=ImportError)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    how: dict[str, Any] = {"precision": precision, "calibration": str(set_path) if precision == "int8" else None}
    exporting.export(student_path, out=tmp_path / "s.onnx", **how)
    for _ in range(2):  # the second time with the kept timings
        result = exporting.export(student_path, out=tmp_path / "s.engine", to="tensorrt", force=True, **how)
        assert result.failures == ()
    session, images = open_engine(tmp_path / "s.engine"), images_of(600)
    expected = open_session(tmp_path / "s.onnx")(images)
    most = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1}[precision] * np.abs(expected).max()
    np.testing.assert_allclose(session(images), expected, rtol=0, atol=most)
    session.bound(images)()
    assert next((tmp_path / "cache" / "tensorrt").glob("*.timing")).stat().st_size > 0
