"""TensorRT engines: what is refused, the sidecar, kept timings and the parts of a batch, by a made-up TensorRT.

With `-m gpu` against the real one, which alone can show that it is asked for the right things.
"""

import ctypes
import enum
import hashlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import foreign_model, images_of

from ncfmkit.errors import UserError
from ncfmkit.exporters import tensorrt as tensorrt_engine
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.tensorrt import build_engine, open_engine, publish, sidecar_path, split
from ncfmkit.extras import install


class Logger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 2


class FakeTensorRT:
    """The part of the module that is used. Its attributes are what a test may change, and what it was given."""

    ILogger, TensorIOMode, DataType = Logger, Mode, DataType
    BuilderFlag = SimpleNamespace(TF32="TF32")

    def __init__(self) -> None:
        self.__version__ = "10.13.0"
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.profile: tuple[Any, ...] = ()  # name, fewest, usual, most
        self.seen = self.ran = False  # an engine, images
        self.parser_errors: list[str] = []
        self.logged: list[str] = []  # as an error, by whatever fails
        self.starts = self.builds = self.loads = self.runs = True
        self.takes_kept_timings = True
        self.output = DataType.FLOAT
        self.output_name = "logits"

    def _begin(self, logger: Any) -> None:
        self.logger = logger
        if not self.starts:
            self.complain()
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def complain(self) -> None:
        self.logger.log(Logger.Severity.WARNING, "of no interest")
        for text in self.logged:
            self.logger.log(Logger.Severity.ERROR, text)

    def Builder(self, logger: Any) -> "FakeBuilder":
        self._begin(logger)
        return FakeBuilder(self)

    def OnnxParser(self, network: Any, logger: Any) -> "FakeParser":
        return FakeParser(self)

    def Runtime(self, logger: Any) -> "FakeRuntime":
        self._begin(logger)
        return FakeRuntime(self)


class FakeBuilder:
    def __init__(self, trt: FakeTensorRT):
        self.trt = trt

    def create_network(self, flags: int) -> str:
        return "network"

    def create_builder_config(self) -> "FakeConfig":
        return FakeConfig(self.trt)

    def create_optimization_profile(self) -> Any:
        def set_shape(*shapes: Any) -> None:
            self.trt.profile = shapes

        return SimpleNamespace(set_shape=set_shape)

    def build_serialized_network(self, network: str, config: "FakeConfig") -> memoryview | None:
        if not self.trt.builds:
            self.trt.complain()
        return memoryview(b"an engine") if self.trt.builds else None


class FakeConfig:
    def __init__(self, trt: FakeTensorRT):
        self.trt = trt

    def clear_flag(self, flag: str) -> None:
        pass

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, kept: bytes) -> Any:
        return SimpleNamespace(kept=kept, serialize=lambda: memoryview(kept + b"+timings"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return self.trt.takes_kept_timings or cache.kept == b""


class FakeParser:
    def __init__(self, trt: FakeTensorRT):
        self.trt, self.num_errors = trt, len(trt.parser_errors)

    def parse(self, model: bytes, path: str) -> bool:
        return not self.num_errors

    def get_error(self, index: int) -> str:
        return self.trt.parser_errors[index]


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT):
        self.trt = trt

    def deserialize_cuda_engine(self, content: bytes) -> "FakeEngine | None":
        self.trt.seen = True
        if not self.trt.loads:
            self.trt.complain()
        return FakeEngine(self.trt) if self.trt.loads else None


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRT):
        self.trt = trt

    def create_execution_context(self) -> "FakeContext":
        return FakeContext(self.trt)

    def get_tensor_name(self, index: int) -> str:
        return ("images", self.trt.output_name)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "images" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "images" else self.trt.output


class FakeContext:
    def __init__(self, trt: FakeTensorRT):
        self.trt = trt
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "images" and shape[0] <= self.trt.profile[3][0]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [self.shape[0], 3]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeStream.cuda_stream
        if not self.trt.runs:
            self.trt.complain()
            return False
        self.trt.ran = True
        images = self._memory("images", DataType.UINT8, self.shape)
        scores = self._memory(self.trt.output_name, self.trt.output, (self.shape[0], 3))
        scores[:] = images.mean(axis=(1, 2, 3))[:, None] + np.arange(3)
        return True

    def _memory(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> np.ndarray:
        kind: Any = {DataType.UINT8: np.uint8, DataType.FLOAT: np.float32, DataType.HALF: np.float16}[dtype]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer((ctypes.c_ubyte * size).from_address(self.addresses[name]), kind).reshape(shape)


class FakeStream:
    cuda_stream = 4711

    def synchronize(self) -> None:
        pass


@pytest.fixture
def trt(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """In the place of `tensorrt`, with a GPU that torch seems to see; its memory is the CPU's."""
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Fake/1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(tensorrt_engine, "DEVICE", "cpu")
    monkeypatch.setattr(tensorrt_engine, "_driver", lambda: "580.1")
    return fake


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(tensorrt_engine, "notice", texts.append)
    return texts


@pytest.fixture
def engine_path(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> Path:
    build_engine(onnx_path, tmp_path / "student.engine")
    return tmp_path / "student.engine"


def expected_scores(images: np.ndarray) -> np.ndarray:
    return (images.mean(axis=(1, 2, 3))[:, None] + np.arange(3)).astype(np.float32)


def edit(engine: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    sidecar = json.loads(sidecar_path(engine).read_text())
    change(sidecar)
    sidecar_path(engine).write_text(json.dumps(sidecar))


def test_names_the_extra_without_tensorrt(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"\(the extra 'tensorrt'\).*Linux x86-64.*NVIDIA GPU"):
        build_engine(onnx_path, tmp_path / "student.engine")
    (tmp_path / "student.engine").write_bytes(b"an engine")
    with pytest.raises(UserError, match=re.escape(install("tensorrt"))):
        open_engine(tmp_path / "student.engine")


def test_needs_a_gpu_that_torch_sees(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU.*\(the extra 'tensorrt'\)"):
        tensorrt_engine.tensorrt()


def test_needs_a_recent_tensorrt(trt: FakeTensorRT) -> None:
    trt.__version__ = "8.6.1"
    with pytest.raises(UserError, match=r"version 8.6.1 is too old.*tensorrt>=10"):
        tensorrt_engine.tensorrt()


def test_says_why_tensorrt_does_not_start(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    trt.starts, trt.logged = False, ["CUDA initialization failure with error: 35"]
    with pytest.raises(UserError, match=r"NVIDIA Fake/1: CUDA .* error: 35; .*driver \(580\.1"):
        build_engine(onnx_path, tmp_path / "student.engine")


@pytest.mark.parametrize(("layout", "shape"), [("uint8-nchw", (3, 8, 8)), ("uint8-nhwc", (8, 8, 3))])
def test_batches_are_of_images_as_the_model_takes_them(
    trt: FakeTensorRT, tmp_path: Path, layout: str, shape: tuple[int, ...]
) -> None:
    build_engine(foreign_model(tmp_path / "m.onnx", layout), tmp_path / "m.engine", batches=(1, 4, 32))
    assert trt.profile == ("input", (1, *shape), (4, *shape), (32, *shape))
    assert (tmp_path / "m.engine").read_bytes() == b"an engine"


def test_the_sidecar_says_what_the_engine_is(
    trt: FakeTensorRT, onnx_path: Path, tmp_path: Path, said: list[str]
) -> None:
    returned = build_engine(onnx_path, tmp_path / "student.engine")
    sidecar = json.loads((tmp_path / "student.engine.json").read_text())
    assert sidecar == returned.to_dict()
    metadata = {p.key: p.value for p in onnx.load(onnx_path).metadata_props}
    assert sidecar["ncfmkit"] == json.loads(metadata["ncfmkit"])
    assert sidecar["ncfmkit"]["classes"] == ["class 0", "class 1", "class 2"]
    assert (sidecar["input"]["name"], sidecar["input"]["type"]) == ("images", "tensor(uint8)")
    assert (sidecar["input"]["shape"][1:], sidecar["output"]["shape"][1:]) == ([3, 8, 8], [3])
    assert sidecar["batches"] == [1, 64, 256]
    assert sidecar["device"] == {"name": "NVIDIA Fake/1", "compute_capability": "8.9"}
    assert (sidecar["versions"]["tensorrt"], sidecar["versions"]["driver"]) == ("10.13.0", "580.1")
    assert {"torch", "cuda", "ncfmkit"} <= set(sidecar["versions"])
    assert sidecar["engine"] == {"sha256": hashlib.sha256(b"an engine").hexdigest(), "bytes": 9}
    assert sidecar["onnx"]["sha256"] == hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    assert sidecar["seconds"] >= 0
    assert "NVIDIA Fake/1, which takes minutes the first time" in said[0]
    assert said[1] == "built in 0 s, for 1 to 256 images at once"


def test_keeps_timings_per_gpu_and_version(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    build_engine(onnx_path, tmp_path / "student.engine")
    kept = tmp_path / "cache" / "tensorrt" / "NVIDIA-Fake-1-8.9-10.13.0.timing"
    assert kept.read_bytes() == b"+timings"
    build_engine(onnx_path, tmp_path / "student.engine")
    assert kept.read_bytes() == b"+timings+timings"  # those kept, and new ones


def test_begins_anew_where_kept_timings_do_not_fit(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    trt.takes_kept_timings = False
    for _ in range(2):
        build_engine(onnx_path, tmp_path / "student.engine")
    (kept,) = (tmp_path / "cache" / "tensorrt").iterdir()
    assert kept.read_bytes() == b"+timings"


def test_reports_all_errors_of_the_parser(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    trt.parser_errors = ["In node 3: UNSUPPORTED_NODE: no Transpose", "In node 7: INVALID_NODE: no Foo"]
    with pytest.raises(UserError, match=r"(?s)student.onnx, 2 error\(s\):\n.*no Transpose\n.*no Foo"):
        build_engine(onnx_path, tmp_path / "student.engine")


def test_says_why_nothing_was_built(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    trt.builds, trt.logged = False, ["no implementation for node Conv", "out of memory"]
    with pytest.raises(UserError, match=r"cannot build .*: no implementation.*Conv; out of memory"):
        build_engine(onnx_path, tmp_path / "student.engine")
    assert not list(tmp_path.glob("student.engine*"))


@pytest.mark.parametrize("batches", [(0, 1, 2), (1, 8, 4), (4, 2, 8)])
def test_refuses_batches_out_of_order(onnx_path: Path, tmp_path: Path, batches: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"1 <= fewest <= usual <= most"):
        build_engine(onnx_path, tmp_path / "student.engine", batches=batches)


def test_refuses_a_fixed_batch(trt: FakeTensorRT, onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match=r"fixed\.onnx .*4 images.*dynamic batch"):
        build_engine(tmp_path / "fixed.onnx", tmp_path / "student.engine")


def test_splits_what_is_too_much_at_once() -> None:
    assert split(5, 8) == [slice(0, 5)]
    assert split(16, 8) == [slice(0, 8), slice(8, 16)]
    assert split(17, 8) == [slice(0, 8), slice(8, 16), slice(16, 17)]
    assert split(0, 8) == []


def test_gives_the_scores_of_all_parts_in_order(trt: FakeTensorRT, engine_path: Path) -> None:
    session = open_engine(engine_path)
    assert (session.path, session.provider, session.placement) == (engine_path, "tensorrt", {})
    assert session.contract.classes == ("class 0", "class 1", "class 2")
    assert session.seconds > 0
    images = images_of(600)
    images.flags.writeable = False  # as a memory-mapped store has them
    scores = session(images)  # the made-up one refuses more than 256 at once
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(images), rtol=1e-6)
    assert session(images[:0]).shape == (0, 3)


def test_reads_float16_scores(trt: FakeTensorRT, engine_path: Path) -> None:
    trt.output = DataType.HALF
    edit(engine_path, lambda sidecar: sidecar["output"].update(type="tensor(float16)"))
    scores = open_engine(engine_path)(images_of(5))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(images_of(5)), rtol=1e-3)


def test_opens_under_the_name_that_it_is_published_by(engine_path: Path) -> None:
    publish(engine_path, engine_path.with_name("other.engine"))
    assert not engine_path.exists()
    assert not sidecar_path(engine_path).exists()
    assert open_engine(engine_path.with_name("other.engine"))(images_of(2)).shape == (2, 3)


def test_refuses_other_images(engine_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes 3x8x8 images, got 1x8x8 uint8"):
        open_engine(engine_path)(np.zeros((1, 1, 8, 8), np.uint8))


def test_says_why_it_does_not_run(trt: FakeTensorRT, engine_path: Path) -> None:
    session = open_engine(engine_path)
    trt.runs, trt.logged = False, ["enqueueV3: out of memory"]
    with pytest.raises(UserError, match=r"2 images .*1 to 256 .*: enqueueV3: out of"):
        session(images_of(2))


AGAIN = r"\. .*not portable: .*\(ncfmkit export STUDENT --to tensorrt\)"


def refused(trt: FakeTensorRT, engine: Path, why: str) -> None:
    """The engine is refused for that reason, before TensorRT gets to see it."""
    with pytest.raises(UserError, match=rf"student\.engine .*: .*{why}.*{AGAIN}"):
        open_engine(engine)
    assert not trt.seen


def test_names_a_file_that_is_not_there(trt: FakeTensorRT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no engine at .*none.engine"):
        open_engine(tmp_path / "none.engine")


def test_refuses_an_engine_without_sidecar(trt: FakeTensorRT, engine_path: Path) -> None:
    sidecar_path(engine_path).unlink()
    refused(trt, engine_path, "its sidecar student.engine.json is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2}'])
def test_refuses_a_sidecar_that_is_none(trt: FakeTensorRT, engine_path: Path, content: bytes) -> None:
    sidecar_path(engine_path).write_bytes(content)
    refused(trt, engine_path, r"student\.engine\.json .*damaged.*newer")


@pytest.mark.parametrize(
    "change",
    [
        lambda sidecar: sidecar.pop("engine"),
        lambda sidecar: sidecar.pop("device"),
        lambda sidecar: sidecar.pop("ncfmkit"),
        lambda sidecar: sidecar.update(format=2),
        lambda sidecar: sidecar.update(batches=[1, 64]),
        lambda sidecar: sidecar.update(batches=[1, 64, "256"]),
        lambda sidecar: sidecar.update(batches=[64, 1, 256]),
        lambda sidecar: sidecar["versions"].update(tensorrt=None),
        lambda sidecar: sidecar["ncfmkit"]["classes"].pop(),
        lambda sidecar: sidecar["input"].update(shape=3),
        lambda sidecar: sidecar["output"].update(shape=["batch"]),
    ],
)
def test_refuses_a_damaged_sidecar(trt: FakeTensorRT, engine_path: Path, change: Callable[[Any], Any]) -> None:
    edit(engine_path, change)
    refused(trt, engine_path, r"student\.engine\.json .*damaged.*newer")


def test_refuses_another_engine(trt: FakeTensorRT, engine_path: Path) -> None:
    engine_path.write_bytes(b"an angine")
    refused(trt, engine_path, r"student\.engine\.json .*sha256 differs")


def test_refuses_an_engine_of_another_tensorrt(trt: FakeTensorRT, engine_path: Path) -> None:
    trt.__version__ = "10.14.1"
    refused(trt, engine_path, "it was built with TensorRT 10.13.0, here is 10.14.1")


@pytest.mark.parametrize(("name", "capability"), [("NVIDIA Fake/1", (9, 0)), ("NVIDIA Fake/2", (8, 9))])
def test_refuses_an_engine_of_another_gpu(
    trt: FakeTensorRT, engine_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    here = rf"{name} \(compute capability {capability[0]}.{capability[1]}\)"
    refused(trt, engine_path, rf"NVIDIA Fake/1 \(compute capability 8\.9\), here is {here}")


def test_says_why_an_engine_does_not_load(trt: FakeTensorRT, engine_path: Path) -> None:
    trt.loads, trt.logged = False, ["magic tag does not match"]
    with pytest.raises(UserError, match=rf"TensorRT .*magic tag does not match{AGAIN}"):
        open_engine(engine_path)


@pytest.mark.parametrize(("name", "output"), [("other", DataType.FLOAT), ("logits", DataType.HALF)])
def test_takes_no_memory_for_other_outputs(trt: FakeTensorRT, engine_path: Path, name: str, output: DataType) -> None:
    trt.output_name, trt.output = name, output
    with pytest.raises(UserError, match=rf"student\.engine\.json .*inputs and outputs{AGAIN}"):
        open_engine(engine_path)
    assert not trt.ran


@pytest.mark.gpu
def test_a_real_engine_scores_as_onnx_runtime_does(onnx_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    engine = tmp_path / "student.engine"
    build_engine(onnx_path, engine, batches=(1, 4, 8))
    build_engine(onnx_path, engine, batches=(1, 4, 8))  # with the kept timings
    session = open_engine(engine)
    images = images_of(20)
    np.testing.assert_allclose(session(images), open_session(onnx_path)(images), rtol=1e-3, atol=1e-3)
    session.bound(images)()
    assert next((tmp_path / "cache" / "tensorrt").glob("*.timing")).stat().st_size > 0
