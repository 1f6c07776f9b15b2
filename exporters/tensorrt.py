"""TensorRT engines: built from an ONNX file, stored with a JSON sidecar, run on the machine that built them.

Not yet run on a machine with TensorRT; `python -m pytest -m gpu tests/exporters/test_tensorrt.py` tests it there.

An engine contains compiled code for one GPU and one version of TensorRT. The sidecar, the engine's name with `.json`,
records both, and the model's inputs and outputs. It guards against damage and mix-ups, not against forgery: opening an
engine can run code that it contains, so open only engines from sources that you trust.

Shapes: N images, C channels, H = W side, K classes.
"""

import functools
import hashlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import (
    LAYOUTS,
    Contract,
    ModelMetadata,
    NoMetadata,
    Port,
    read_contract,
)
from ncfmkit.exporters.onnx import read_ports
from ncfmkit.extras import install
from ncfmkit.files import cache_dir, writable, write_atomic
from ncfmkit.progress import notice
from ncfmkit.records import SparseRecord, problems
from ncfmkit.runtime import versions

OLDEST = 10  # major version of TensorRT
BATCHES = (1, 64, 256)  # images at once: fewest, those that the engine is tuned for, most
DEVICE = "cuda"
MOST_SHOWN = 10  # problems of a sidecar in a message
TYPES: dict[str, tuple[str, torch.dtype]] = {  # of inputs and outputs: TensorRT's name and torch's
    "tensor(uint8)": ("UINT8", torch.uint8),
    "tensor(float)": ("FLOAT", torch.float32),
    "tensor(float16)": ("HALF", torch.float16),
}


class Gpu(SparseRecord):
    name: str
    compute_capability: str


class EngineFile(SparseRecord):
    sha256: str
    bytes: int


class SourceFile(SparseRecord):
    sha256: str


class SidecarVersions(SparseRecord):
    """Of the libraries; others than TensorRT's are kept by their names."""

    tensorrt: str


class Sidecar(SparseRecord):
    """What an engine's sidecar holds."""

    format: Literal[1]
    ncfmkit: ModelMetadata | NoMetadata
    input: Port
    output: Port
    batches: tuple[Annotated[int, Field(ge=1)], int, int]  # see BATCHES
    versions: SidecarVersions
    device: Gpu  # that it was built for
    engine: EngineFile
    onnx: SourceFile | None = None  # that it was built from
    seconds: float | None = None  # that building it took

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        _check_batches(self.batches)
        return self


def tensorrt() -> Any:
    """The TensorRT module.

    Raises:
        UserError: it is not installed, too old, does not load, or torch sees no GPU.
    """
    try:
        import tensorrt as trt

        lacking = f"version {trt.__version__} is too old" if int(trt.__version__.split(".")[0]) < OLDEST else ""
    except (ImportError, OSError) as error:
        lacking = str(error)
    if not lacking and not torch.cuda.is_available():
        lacking = "torch sees no GPU"
    if lacking:
        raise UserError(
            f"TensorRT cannot be used ({lacking}): {install('tensorrt')}, on Linux x86-64 with an NVIDIA GPU that "
            "torch sees"
        )
    return trt


@functools.cache
def _log(trt: Any) -> Any:
    """The one logger of the process, as TensorRT demands: quiet, keeps errors for messages."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(text.strip())

        def take(self) -> str:
            """What was logged since the last time."""
            text, self.errors = "; ".join(self.errors), []
            return text or "TensorRT does not say why"

    return Log()


def _start(trt: Any, kind: Callable[[Any], Any]) -> Any:
    """A `trt.Builder` or `trt.Runtime`."""
    log = _log(trt)
    log.errors.clear()
    try:
        return kind(log)
    except TypeError:  # pybind11's way to say that the library returned nothing
        raise UserError(
            f"TensorRT {trt.__version__} does not start on {_device().name}: {log.take()}; often the driver "
            f"({_driver()}) is too old for it, or TensorRT no longer supports the GPU"
        ) from None


def _device() -> Gpu:
    major, minor = torch.cuda.get_device_capability()
    return Gpu(name=torch.cuda.get_device_name(), compute_capability=f"{major}.{minor}")


def _driver() -> str:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        answer = []
    return answer[0] if answer else "unknown"


def build_engine(onnx_path: Path, engine_path: Path, *, batches: tuple[int, int, int] = BATCHES) -> Sidecar:
    """Builds an engine of an ONNX classifier for this machine's GPU; tensors have the types of the ONNX graph.

    float32 means float32: TF32, which TensorRT allows itself otherwise, is off. Timings are kept in the cache.

    Args:
        onnx_path: with a dynamic batch.
        engine_path: where the engine goes; its sidecar goes beside it, see :func:`sidecar_path`.
        batches: images at once: fewest, those that the engine is tuned for, most.

    Returns:
        What the sidecar holds.

    Raises:
        UserError: TensorRT is not there, or it cannot build this model (all its errors).
    """
    from onnx import load_model_from_string

    _check_batches(batches)
    trt = tensorrt()
    onnx_bytes = onnx_path.read_bytes()
    inputs, outputs, ours = read_ports(onnx_path, load_model_from_string(onnx_bytes))
    contract = read_contract(str(onnx_path), inputs, outputs, ours, declared={})
    device = _device()
    notice(f"building a TensorRT {trt.__version__} engine for {device.name}, which takes minutes the first time")
    start = time.perf_counter()
    engine = _build(trt, onnx_path, onnx_bytes, contract, batches)
    seconds = time.perf_counter() - start
    found = versions() | {"tensorrt": trt.__version__, "cuda": torch.version.cuda, "driver": _driver()}
    sidecar = Sidecar(
        format=1,
        ncfmkit=ours or NoMetadata(),
        input=inputs[0],
        output=outputs[0],
        batches=batches,
        versions=SidecarVersions.model_validate(found),
        device=device,
        engine=EngineFile(sha256=_sha256(engine), bytes=len(engine)),
        onnx=SourceFile(sha256=_sha256(onnx_bytes)),
        seconds=round(seconds, 1),
    )
    write_atomic(engine_path, engine)
    sidecar.write(sidecar_path(engine_path))
    notice(f"built in {seconds:.0f} s, for {batches[0]} to {batches[2]} images at once")
    return sidecar


def sidecar_path(engine_path: Path) -> Path:
    return engine_path.with_name(f"{engine_path.name}.json")


def publish(written: Path, target: Path) -> list[Path]:
    """Gives a finished engine and its sidecar the names by which they are found; returns those."""
    os.replace(sidecar_path(written), sidecar_path(target))
    os.replace(written, target)
    return [target, sidecar_path(target)]


def _check_batches(batches: Sequence[int]) -> None:
    fewest, usual, most = batches
    if not 1 <= fewest <= usual <= most:
        raise UserError(f"batches {fewest}, {usual}, {most}: expected 1 <= fewest <= usual <= most")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _build(trt: Any, onnx_path: Path, onnx_bytes: bytes, contract: Contract, batches: tuple[int, int, int]) -> bytes:
    cache_path = _timing_cache_path(trt)
    builder = _start(trt, trt.Builder)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, onnx_path, onnx_bytes)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, config, contract, batches)
    timings = _timing_cache(config, cache_path)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} cannot build an engine of {onnx_path}: {_log(trt).take()}")
    write_atomic(cache_path, bytes(timings.serialize()))
    return bytes(engine)


def _parse(trt: Any, network: Any, path: Path, content: bytes) -> None:
    parser = trt.OnnxParser(network, _log(trt))
    if parser.parse(content, path=str(path)):  # the path is where weights beside the file are looked for
        return
    errors = [str(parser.get_error(i)) for i in range(parser.num_errors)] or [_log(trt).take()]
    listed = "".join(f"\n  {error}" for error in errors)
    raise UserError(f"TensorRT {trt.__version__} cannot read {path}, {len(errors)} error(s):{listed}")


def _add_profile(builder: Any, config: Any, contract: Contract, batches: tuple[int, int, int]) -> None:
    image = LAYOUTS[contract.layout].shape(contract.channels, contract.size)
    profile = builder.create_optimization_profile()
    profile.set_shape(contract.input_name, *[(count, *image) for count in batches])
    added = config.add_optimization_profile(profile)
    assert added >= 0, f"invalid profile {batches} of {image}"


def _timing_cache_path(trt: Any) -> Path:
    device = _device()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{device.name}-{device.compute_capability}-{trt.__version__}")
    return writable(cache_dir() / "tensorrt") / f"{name}.timing"


def _timing_cache(config: Any, path: Path) -> Any:
    """The kept timings, or none yet where TensorRT refuses those (another device, damaged); must outlive the build."""
    kept = path.read_bytes() if path.is_file() else b""
    timings = config.create_timing_cache(kept)
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def open_engine(path: Path) -> "EngineSession":
    """An engine that was built on such a machine, ready to run. Only an engine that its sidecar knows is loaded.

    Raises:
        UserError: TensorRT is not there; no such file; or the engine has to be exported again: its sidecar is missing
            or damaged, the engine is not the one that it describes, or was built with another TensorRT or GPU.
    """
    if not path.is_file():
        raise UserError(f"no engine at {path}: expected a file written by `ncfmkit export --to tensorrt`")
    trt = tensorrt()
    sidecar, contract = _read_sidecar(path)
    engine = path.read_bytes()
    if _sha256(engine) != sidecar.engine.sha256:
        raise _unusable(path, f"it is not the engine that {sidecar_path(path).name} describes: its sha256 differs")
    built = sidecar.versions.tensorrt
    if built != trt.__version__:
        raise _unusable(path, f"it was built with TensorRT {built}, here is {trt.__version__}")
    if sidecar.device != _device():
        raise _unusable(path, f"it was built for {_spoken(sidecar.device)}, here is {_spoken(_device())}")
    return EngineSession(path, trt, engine, sidecar, contract)


def _unusable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} cannot be used: {why}. Engines are not portable: export it again on this machine "
        "(ncfmkit export STUDENT --to tensorrt)"
    )


def _spoken(device: Gpu) -> str:
    return f"{device.name} (compute capability {device.compute_capability})"


def _read_sidecar(path: Path) -> tuple[Sidecar, Contract]:
    """What an engine's sidecar says, checked, and the contract in it."""
    where = sidecar_path(path)
    if not where.is_file():
        raise _unusable(path, f"its sidecar {where.name} is missing")
    try:
        sidecar = Sidecar.model_validate_json(where.read_bytes())
        ours = sidecar.ncfmkit if isinstance(sidecar.ncfmkit, ModelMetadata) else None
        contract = read_contract(str(path), [sidecar.input], [sidecar.output], ours, declared={})
    except (ValidationError, UserError) as error:
        lines = problems(error)[:MOST_SHOWN] if isinstance(error, ValidationError) else [str(error)]
        why = f"its sidecar {where.name} is damaged, or of a newer ncfmkit ({'; '.join(lines)})"
        raise _unusable(path, why) from None
    return sidecar, contract


def split(count: int, most: int) -> list[slice]:
    """`count` images in parts of at most `most`."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


class EngineSession:
    """An engine on the current GPU, of the same shape as `sessions.Session`; made by :func:`open_engine`.

    Attributes:
        contract: what it takes and gives.
        seconds: it took to load and to give its first answer.
        placement: empty: an engine runs whole, in TensorRT.
    """

    provider = "tensorrt"

    def __init__(self, path: Path, trt: Any, engine: bytes, sidecar: Sidecar, contract: Contract):
        self.path, self.contract = path, contract
        self.placement: dict[str, Counter[str]] = {}
        self._batches = sidecar.batches
        self._scores_dtype = TYPES[sidecar.output.type][1]
        self._log = _log(trt)
        start = time.perf_counter()
        self._stream = torch.cuda.Stream()  # on torch's default stream TensorRT would synchronize the whole device
        self._runtime = _start(trt, trt.Runtime)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise _unusable(path, f"TensorRT does not load it: {self._log.take()}")
        self._check_ports(trt, sidecar)
        self(np.zeros((self._batches[0], *contract.image_shape), np.uint8))
        self.seconds = time.perf_counter() - start

    def _check_ports(self, trt: Any, sidecar: Sidecar) -> None:
        """Raises UserError if the engine's own tensors are others than the sidecar's, for which memory is taken."""
        expected = {
            port.name: (mode, getattr(trt.DataType, TYPES[port.type][0]))
            for port, mode in ((sidecar.input, trt.TensorIOMode.INPUT), (sidecar.output, trt.TensorIOMode.OUTPUT))
        }
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        found = {n: (self._engine.get_tensor_mode(n), self._engine.get_tensor_dtype(n)) for n in names}
        contract, fewest = self.contract, self._batches[0]
        image = LAYOUTS[contract.layout].shape(contract.channels, contract.size)
        if (
            found != expected
            or not self._context.set_input_shape(contract.input_name, (fewest, *image))
            or tuple(self._context.get_tensor_shape(contract.output_name)) != (fewest, contract.class_count)
        ):
            raise _unusable(self.path, f"{sidecar_path(self.path).name} describes other inputs and outputs")

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Scores float32 `[N, K]` of uint8 images; more than the engine takes at once go through in parts.

        Raises:
            UserError: images of another shape or type, or TensorRT fails.
        """
        scores_NK = np.empty((len(images_NCHW), self.contract.class_count), np.float32)
        with torch.cuda.stream(self._stream):
            for part, images, scores in self._parts(images_NCHW):
                self._run(images, scores)
                scores_NK[part] = scores.float().cpu().numpy()
        return scores_NK

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        """A call that runs the model on those images, which are on the GPU already, as the scores then are.

        It returns when the scores are there: what it takes is the model's time, without copies from and to the host.
        """
        with torch.cuda.stream(self._stream):
            parts = list(self._parts(images_NCHW))

        def call() -> None:
            for _, images, scores in parts:
                self._run(images, scores)

        return call

    def _parts(self, images_NCHW: np.ndarray) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Images as the engine takes them and room for their scores, on the GPU.

        Each part has memory of its own: TensorRT wants addresses aligned to 256 bytes, which a view may not be.
        """
        fed = self.contract.feed(images_NCHW)
        for part in split(len(fed), self._batches[2]):
            images = torch.tensor(fed[part], device=DEVICE)
            scores = torch.empty(len(images), self.contract.class_count, dtype=self._scores_dtype, device=DEVICE)
            yield part, images, scores

    def _run(self, images: torch.Tensor, scores: torch.Tensor) -> None:
        """Fills the scores of one part, and waits for them."""
        context, contract = self._context, self.contract
        if not (
            context.set_input_shape(contract.input_name, tuple(images.shape))
            and context.set_tensor_address(contract.input_name, images.data_ptr())
            and context.set_tensor_address(contract.output_name, scores.data_ptr())
            and context.execute_async_v3(self._stream.cuda_stream)
        ):
            fewest, _, most = self._batches
            raise UserError(
                f"{self.path} does not run on {len(images)} images (built for {fewest} to {most} at once): "
                f"{self._log.take()}"
            )
        self._stream.synchronize()
