"""TensorRT engines: built from an ONNX file, run on the machine that built them; their files are in engine_file.py.

Written for TensorRT 10.13 to 11, and not yet run: `python -m pytest -m gpu tests/exporters/test_tensorrt.py` tests it
where one of them is. Networks are strongly typed, so the precision is that of the ONNX graph.

Shapes: N images, C channels, H = W side, K classes.
"""

import functools
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import LAYOUTS, Contract, NoMetadata, read_contract
from ncfmkit.exporters.engine_file import (
    Machine,
    Sidecar,
    read_engine,
    sidecar_path,
    unusable,
    write_engine,
)
from ncfmkit.exporters.onnx import read_ports
from ncfmkit.extras import install
from ncfmkit.files import cache_dir, writable, write_atomic
from ncfmkit.progress import notice
from ncfmkit.runtime import versions

OLDEST = (10, 13)  # version of TensorRT
BATCHES = (1, 64, 256)  # images at once: fewest, those that the engine is tuned for, most
DEVICE = "cuda"


def tensorrt() -> Any:
    """The TensorRT module.

    Raises:
        UserError: it is not installed, too old, does not load, or torch sees no GPU.
    """
    try:
        import tensorrt as trt

        version = tuple(map(int, trt.__version__.split(".")[:2]))
        lacking = f"version {trt.__version__} is too old" if version < OLDEST else ""
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


def _machine(trt: Any) -> Machine:
    major, minor = torch.cuda.get_device_capability()
    return Machine(tensorrt=trt.__version__, gpu=torch.cuda.get_device_name(), compute_capability=f"{major}.{minor}")


@functools.cache
def _log(trt: Any) -> Any:
    """The one logger of the process, as TensorRT demands: quiet, keeps errors for messages."""
    severities = trt.ILogger.Severity

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.errors.append(text.strip())

        def take(self) -> str:
            """What was logged since the last `clear`, or since it was last taken."""
            text = "; ".join(self.errors)
            self.clear()
            return text or "TensorRT does not say why"

        def clear(self) -> None:
            """Before each build, opening and run: what succeeds may log errors, too."""
            self.errors.clear()

    return Log()


def _start(trt: Any, kind: Callable[[Any], Any]) -> Any:
    """A `trt.Builder` or `trt.Runtime`."""
    try:
        return kind(_log(trt))
    except TypeError:  # pybind11's way to say that the library returned nothing
        raise UserError(
            f"TensorRT {trt.__version__} does not start on {torch.cuda.get_device_name()}: {_log(trt).take()}; often "
            "NVIDIA's driver is too old for it, or it no longer supports the GPU"
        ) from None


def build_engine(onnx_path: Path, engine_path: Path) -> None:
    """Builds an engine of an ONNX classifier for this machine's GPU, with its sidecar beside it.

    Tensors have the types of the ONNX graph. float32 means float32: TensorFloat-32, which TensorRT allows itself
    otherwise, is off. Timings of kernels are kept in the cache.

    Args:
        onnx_path: with a dynamic batch; its weights may lie beside it.
        engine_path: where the engine goes.

    Raises:
        UserError: TensorRT is not there, or it cannot build this model (all its errors).
    """
    from onnx import load_model

    trt = tensorrt()
    inputs, outputs, ours = read_ports(onnx_path, load_model(onnx_path, load_external_data=False))
    contract = read_contract(str(onnx_path), inputs, outputs, ours, declared={})
    machine = _machine(trt)
    notice(f"building an engine for {machine.in_words()}, which takes minutes the first time")
    start = time.perf_counter()
    engine = _build(trt, onnx_path, contract, machine)
    seconds = time.perf_counter() - start
    sidecar = Sidecar(
        format=1,
        ncfmkit=ours or NoMetadata(),
        input=inputs[0],
        output=outputs[0],
        built_for=machine,
        sha256=hashlib.sha256(engine).hexdigest(),
        seconds=round(seconds, 1),
        versions=versions(),
    )
    write_engine(engine_path, engine, sidecar)
    notice(f"built in {seconds:.0f} s, for {BATCHES[0]} to {BATCHES[2]} images at once")


def _build(trt: Any, onnx_path: Path, contract: Contract, machine: Machine) -> bytes:
    _log(trt).clear()
    builder = _start(trt, trt.Builder)
    # TensorRT 11 ignores the flag, which has another number there: all its networks are strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _log(trt))
    if not parser.parse_from_file(str(onnx_path)):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)] or [_log(trt).take()]
        listed = "".join(f"\n  {error}" for error in errors)
        raise UserError(f"TensorRT {trt.__version__} cannot read {onnx_path}, {len(errors)} error(s):{listed}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(contract.input_name, *[(count, *_shape(contract)) for count in BATCHES])
    config.add_optimization_profile(profile)
    name = re.sub("[^A-Za-z0-9.]+", "-", f"{machine.gpu}-{machine.compute_capability}-{machine.tensorrt}")
    kept = writable(cache_dir() / "tensorrt") / f"{name}.timing"
    for content in (kept.read_bytes() if kept.is_file() else b"", b""):  # damaged timings are not taken
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            break
    else:  # not even empty ones: built without
        timings = None
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} cannot build an engine of {onnx_path}: {_log(trt).take()}")
    if timings is not None:
        write_atomic(kept, bytes(timings.serialize()))
    return bytes(engine)


def _shape(contract: Contract) -> tuple[int, int, int]:
    """Of one image as the model takes it."""
    return LAYOUTS[contract.layout].shape(contract.channels, contract.size)


def open_engine(path: Path) -> "EngineSession":
    """An engine that was built on such a machine, ready to run. Only an engine that its sidecar knows is loaded.

    Raises:
        UserError: TensorRT is not there, there is no such file, or the engine has to be exported again.
    """
    if not path.is_file():
        raise UserError(f"no engine at {path}: expected a file written by `ncfmkit export --to tensorrt`")
    trt = tensorrt()
    return EngineSession(path, trt, *read_engine(path, _machine(trt)))


class EngineSession:
    """An engine on the current GPU, of the same shape as `sessions.Session`; made by :func:`open_engine`.

    Attributes:
        contract: what it takes and gives.
        seconds: it took to load and to give its first answer.
        placement: empty: an engine runs whole, in TensorRT.
    """

    provider = "tensorrt"

    def __init__(self, path: Path, trt: Any, engine: bytes, contract: Contract):
        self.path, self.contract = path, contract
        self.placement: dict[str, Counter[str]] = {}
        self._log = _log(trt)
        self._log.clear()
        start = time.perf_counter()
        self._stream = torch.cuda.Stream()  # on torch's default stream TensorRT would synchronize the whole device
        self._runtime = _start(trt, trt.Runtime)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise unusable(path, f"TensorRT does not load it: {self._log.take()}")
        if not self._fits(trt):
            raise unusable(path, f"{sidecar_path(path).name} describes other inputs and outputs")
        half = self._engine.get_tensor_dtype(contract.output_name) == trt.DataType.HALF
        self._scores_dtype = torch.float16 if half else torch.float32
        self(np.zeros((1, *contract.image_shape), np.uint8))
        self.seconds = time.perf_counter() - start

    def _fits(self, trt: Any) -> bool:
        """Whether the engine's own tensors are those of the contract, by which memory is taken."""
        engine, context, contract = self._engine, self._context, self.contract
        return (
            {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
            == {contract.input_name, contract.output_name}
            and trt.nptype(engine.get_tensor_dtype(contract.input_name)) is LAYOUTS[contract.layout].dtype
            and context.set_input_shape(contract.input_name, (1, *_shape(contract)))
            and tuple(context.get_tensor_shape(contract.output_name)) == (1, contract.class_count)
        )

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Scores float32 `[N, K]` of uint8 images; more than the engine takes at once go through in parts.

        Raises:
            UserError: images of another shape or type, or TensorRT fails.
        """
        with torch.cuda.stream(self._stream):
            images, scores_NK = self._on_gpu(images_NCHW)
            self._run(images, scores_NK)
            return scores_NK.float().cpu().numpy()

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        """A call that runs the model on those images, which are on the GPU already, as the scores then are.

        It returns when the scores are there: what it takes is the model's time, without copies from and to the host.
        """
        with torch.cuda.stream(self._stream):
            images, scores_NK = self._on_gpu(images_NCHW)
        return lambda: self._run(images, scores_NK)

    def _on_gpu(self, images_NCHW: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images as the engine takes them, and room for their scores."""
        images = torch.tensor(self.contract.feed(images_NCHW), device=DEVICE)
        return images, torch.empty(len(images), self.contract.class_count, dtype=self._scores_dtype, device=DEVICE)

    def _run(self, images: torch.Tensor, scores_NK: torch.Tensor) -> None:
        """Fills the scores, and waits for them.

        TensorRT wants addresses that are multiples of 256: those of torch's memory are, and so those of parts of
        256 images are.
        """
        context, contract, most = self._context, self.contract, BATCHES[2]
        self._log.clear()
        for first in range(0, len(images), most):
            part, scores = images[first : first + most], scores_NK[first : first + most]
            if not (
                context.set_input_shape(contract.input_name, tuple(part.shape))
                and context.set_tensor_address(contract.input_name, part.data_ptr())
                and context.set_tensor_address(contract.output_name, scores.data_ptr())
                and context.execute_async_v3(self._stream.cuda_stream)
            ):
                raise UserError(f"{self.path} does not run on {len(part)} images: {self._log.take()}")
        self._stream.synchronize()
