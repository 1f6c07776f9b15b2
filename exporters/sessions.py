"""ONNX Runtime's providers, and sessions that run on the requested provider or fail.

ONNX Runtime lists providers that cannot load, and falls back to the CPU with only a log line. A session is returned
only if it has the provider and the nodes that do the work were placed on it.
"""

import ctypes
import hashlib
import importlib.metadata
import io
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract, Port, not_onnx, not_text, read_contract, read_metadata
from ncfmkit.extras import install
from ncfmkit.progress import notice

PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # both own the import name onnxruntime: only one can be installed
Device = Literal["cpu", "cuda"]
LONGEST_REASON = 1000  # characters of ONNX Runtime's message that are shown: it may quote the model
WORK = ("Conv", "Gemm", "MatMul", "InstanceNormalization", "GroupNormalization")  # parts of the names of such nodes


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A row of `PROVIDERS`."""

    name: str  # ONNX Runtime's
    library: str | None  # the file beside ONNX Runtime's that holds it; None: built in
    extra: str  # of ncfmkit, which brings it
    device: Device  # where its inputs and outputs live, ONNX Runtime's and torch's name
    caches: bool = False  # builds an engine, kept in a folder beside the model
    options: dict[str, bool | int | str] = field(default_factory=dict)  # ONNX Runtime's own


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider(name="CPUExecutionProvider", library=None, extra="cpu", device="cpu"),
    "cuda": Provider(
        name="CUDAExecutionProvider",
        library="libonnxruntime_providers_cuda.so",
        extra="gpu",
        device="cuda",
        options={"use_tf32": 0},  # float32 means float32
    ),
    "tensorrt": Provider(
        name="TensorrtExecutionProvider",
        library="libonnxruntime_providers_tensorrt.so",
        extra="tensorrt",
        device="cuda",
        caches=True,
    ),
}


def onnxruntime() -> Any:
    """The ONNX Runtime module, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what matters of its log is found out here and said in one message
    except (ImportError, AttributeError) as error:  # no attributes: half of it was uninstalled with its twin package
        first = f"pip uninstall {' '.join(packages())}, then " if packages() else ""
        raise UserError(
            f"ONNX Runtime cannot be used ({error}): {first}{install('cpu')}, or on Linux with CUDA {install('gpu')}"
        ) from None
    return ort


def packages() -> list[str]:
    """The packages that are installed and own the import name onnxruntime."""
    return [name for name in PACKAGES if any(importlib.metadata.distributions(name=name))]


def missing(name: str) -> str:
    """Why a provider cannot be used on this machine, or "" if it loads."""
    row = PROVIDERS[name]
    try:
        ort = onnxruntime()
    except UserError as error:
        return str(error)
    if row.library is None:
        return ""
    if row.name not in ort.get_available_providers():
        installed = packages() or ["onnxruntime"]
        return (
            f"the installed {' and '.join(installed)} has no {row.name}: pip uninstall {' '.join(installed)}, "
            f"then {install(row.extra)}, on Linux x86-64 with an NVIDIA GPU"
        )
    import torch

    if not torch.cuda.is_available():  # first: without a driver, some versions crash when they load a provider
        return (
            f"torch {torch.__version__} sees no GPU: install a torch for CUDA {ort.cuda_version}, whose libraries "
            f"{row.name} uses, and NVIDIA's driver"
        )
    _load_neighbors(ort, row)
    why = _not_started(ort, row)
    if why:
        # Only now, that ONNX Runtime has tried: loaded before its host is set, such a library crashes the process.
        lacking = _unloadable(Path(ort.__file__).parent / "capi" / row.library) or why
        return (
            f"{row.name} does not load: {lacking}; it needs NVIDIA's driver (libcuda), the libraries of a torch for "
            f"CUDA {ort.cuda_version} and the packages of {install(row.extra)}"
        )
    return ""


def probe_model(opset: int) -> bytes:
    """The smallest ONNX model, to see what ONNX Runtime makes of it."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    versions = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=helper.find_min_ir_version_for(versions))
    return model.SerializeToString()


def _not_started(ort: Any, row: Provider) -> str:
    """What ONNX Runtime says of a provider that it does not open a session with, which is little; or "", if it does."""
    try:
        with redirect_stdout(io.StringIO()):
            session = ort.InferenceSession(probe_model(17), providers=[row.name], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's have no common class
        return _reason(error)
    return "" if row.name in session.get_providers() else "ONNX Runtime does not say why"


def _load_neighbors(ort: Any, row: Provider) -> None:
    """Loads the libraries of CUDA and cuDNN that came with torch, and those of TensorRT that came with its package.

    A provider's library names them, but the dynamic linker does not look into Python's packages.
    """
    with redirect_stdout(io.StringIO()):  # what it prints, the linker says again
        ort.preload_dlls()
    if row.extra == "tensorrt":
        with suppress(ImportError, OSError):
            import tensorrt  # noqa: F401


def _unloadable(library: Path) -> str:
    """The dynamic linker's words on what a library lacks, or ""."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error).replace(f"{library.parent}/", "")
    return ""


class Session:
    """A model opened by one provider.

    Attributes:
        contract: what it takes and gives.
        seconds: it took to open and to give its first answer (with TensorRT, with the engine built or read).
        placement: nodes by the provider that ran them, and per provider by operator.
    """

    def __init__(
        self, path: Path, provider: str, *, threads: int | None = None, declared: dict[str, str] | None = None
    ):
        self.path, self.provider, self.row = path, provider, PROVIDERS[provider]
        self._ort = onnxruntime()
        start = time.perf_counter()
        self._session = _start(self._ort, path, self.row, threads)
        try:
            inputs, outputs = (
                [Port(name=p.name, type=p.type, shape=tuple(p.shape)) for p in side]
                for side in (self._session.get_inputs(), self._session.get_outputs())
            )
            about = self._session.get_modelmeta()
            metadata, producer = about.custom_metadata_map, about.producer_name
        except UnicodeDecodeError as error:
            raise not_text(path, error) from None
        ours = read_metadata(str(path), metadata, producer)
        self.contract: Contract = read_contract(str(path), inputs, outputs, ours, declared=declared or {})
        self(self._blank())
        self.seconds = time.perf_counter() - start
        self.placement = self._place(threads)

    def _blank(self) -> np.ndarray:
        return np.zeros((1, *self.contract.image_shape), np.uint8)

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Scores float32 `[N, K]` of uint8 images."""
        return self._run(self._session, images_NCHW)

    def _run(self, session: Any, images_NCHW: np.ndarray) -> np.ndarray:
        feed = {self.contract.input_name: self.contract.feed(images_NCHW)}
        try:
            scores_NK = session.run([self.contract.output_name], feed)[0].astype(np.float32)
        except Exception as error:  # ONNX Runtime's have no common class
            raise UserError(f"{self.path} does not run on {self.row.name}: {_reason(error)}") from None
        expected = (len(images_NCHW), self.contract.class_count)
        if scores_NK.shape != expected:
            raise UserError(f"{self.path}: expected scores of shape {expected}, got {scores_NK.shape}")
        return scores_NK

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        """A call that runs the model on those images, input and output bound to memory of the provider's device.

        It returns when the scores are there: what it takes is the model's time, without copies from and to the host.
        """
        binding = self._session.io_binding()
        value = self._ort.OrtValue.ortvalue_from_numpy(self.contract.feed(images_NCHW), self.row.device, 0)
        binding.bind_ortvalue_input(self.contract.input_name, value)
        binding.bind_output(self.contract.output_name, self.row.device, 0)

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def _place(self, threads: int | None) -> dict[str, Counter[str]]:
        """Which provider runs which operators, from ONNX Runtime's own profile of one run.

        Raises:
            UserError: a node that does the work runs elsewhere than asked.
        """
        if self.row.library is None:
            return {}
        with interrupts.cleaning_up(), tempfile.TemporaryDirectory() as folder:
            session = _start(self._ort, self.path, self.row, threads, profile=Path(folder) / "profile")
            self._run(session, self._blank())  # the batch that TensorRT has an engine for by now
            placement = placed(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))
        check_placement(str(self.path), placement, self.row.name)
        return placement


def placed(profile: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Operators by provider in a profile of ONNX Runtime."""
    found: dict[str, Counter[str]] = {}
    for event in profile:
        details = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in details:
            found.setdefault(details["provider"], Counter())[details["op_name"]] += 1
    return found


def check_placement(where: str, placement: dict[str, Counter[str]], wanted: str) -> None:
    """Raises UserError if a node that does the work ran on another provider than the one wanted."""
    strays = {
        f"{count} {operator} on {provider}"
        for provider, operators in placement.items()
        for operator, count in operators.items()
        if provider != wanted and any(part in operator for part in WORK)
    }
    if strays or wanted not in placement:
        raise UserError(
            f"{where} does not run on {wanted}: ONNX Runtime placed {', '.join(sorted(strays)) or 'no node there'}"
        )


def _start(ort: Any, path: Path, row: Provider, threads: int | None, *, profile: Path | None = None) -> Any:
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    own = _engine_cache(path) if row.caches else row.options
    try:  # without its fallback, which takes the CPU when the provider fails, and prints so
        with redirect_stdout(io.StringIO()):  # the argument is newer than ONNX Runtime 1.22
            session = ort.InferenceSession(str(path), options, providers=[(row.name, own)], enable_fallback=0)
        session.disable_fallback()  # in later runs
    except Exception as error:  # ONNX Runtime's have no common class
        raise _unopened(ort, path, error) from None
    if row.name not in session.get_providers():
        raise UserError(f"{path}: expected {row.name}, ONNX Runtime opened {session.get_providers()}")
    return session


def engine_folder(path: Path) -> Path:
    """Where TensorRT keeps the engines and timings of a model: a folder per content, beside it.

    ONNX Runtime names engines after the file and the graph, not the weights: a model that is exported again under its
    name would be answered by the engine of the one before.
    """
    content = hashlib.sha256()
    for part in (path, path.with_name(f"{path.name}.data")):
        with suppress(OSError), part.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return path.with_name(f"{path.name}.tensorrt") / content.hexdigest()[:16]


def _engine_cache(path: Path) -> dict[str, bool | int | str]:
    folder = engine_folder(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # ONNX Runtime makes only the last one
    except OSError as error:
        raise UserError(
            f"{path}: its engines cannot be kept in {folder} ({error.strerror}): make that writable"
        ) from None
    if not any(folder.glob("*.engine")):
        notice("building the TensorRT engine, which can take minutes")
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


def _unopened(ort: Any, path: Path, error: Exception) -> UserError:
    text, reason = str(error), _reason(error)
    too_new = re.search(r"Opset (\d+) is under development.* till opset (\d+)", text)
    if too_new:
        return UserError(
            f"{path} has opset {too_new[1]}, the installed ONNX Runtime {ort.__version__} runs up to {too_new[2]}: "
            "export it with a lower --opset, or update ONNX Runtime"
        )
    if any(word in text for word in ("INVALID_PROTOBUF", "No graph", "not have a graph", "Missing opset")):
        return not_onnx(path)
    if any(word in text for word in ("External data", "external data", "External initializer", "file size")):
        return UserError(f"{path} stores its weights in another file, which is missing or does not match: {reason}")
    return UserError(f"{path} cannot be opened by ONNX Runtime: {reason}")


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its codes, source lines and signatures, in one line."""
    codes, source = r"\[ONNXRuntimeError\] : \d+ : \w+ : ", r"/onnxruntime_src/\S+ .*?\)( \[with .*?\])? (?=\w)"
    text = re.sub(f"{codes}|Load model from .*? failed:|{source}", "", str(error))
    line = " ".join(text.split(" ; GPU=")[0].split())
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."


def open_session(
    path: Path, provider: str = "cpu", *, threads: int | None = None, declared: dict[str, str] | None = None
) -> Session:
    """A session that really runs on that provider.

    Args:
        path: an ONNX file.
        provider: a row of `PROVIDERS`.
        threads: CPU threads; None: ONNX Runtime's choice.
        declared: `layout` and `output` of a model that does not say them itself.

    Raises:
        UserError: no such file, not an ONNX classifier, or the provider does not load (with what is missing).
    """
    try:
        path.open("rb").close()
    except OSError as error:
        inside = path / "model.onnx"
        if os.path.isfile(inside):  # as in a web page's
            raise UserError(f"{path} is a folder: expected an ONNX file, such as {inside}") from None
        raise UserError(f"no model at {path} ({error.strerror}): expected an ONNX file") from None
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is not an ONNX file: `ncfmkit export` exports a student to ONNX")
    lacking = missing(provider)
    if lacking:
        raise UserError(f"provider {provider} cannot be used: {lacking}")
    return Session(path, provider, threads=threads, declared=declared)
