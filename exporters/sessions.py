"""ONNX Runtime's sessions, which run on the requested provider or fail.

ONNX Runtime falls back to the CPU with only a log line. A session is returned only if it has the provider and the nodes
that do the work were placed on it.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract, Port, not_onnx, not_text, read_contract, read_metadata
from ncfmkit.exporters.providers import PROVIDERS, Options, Provider, missing, onnxruntime, reason, start_session
from ncfmkit.progress import notice

WORK = ("Conv", "Gemm", "MatMul", "InstanceNormalization", "GroupNormalization")  # parts of the names of such nodes


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
            raise UserError(f"{self.path} does not run on {self.row.name}: {reason(error)}") from None
        expected = (len(images_NCHW), self.contract.class_count)
        if scores_NK.shape != expected:
            raise UserError(f"{self.path}: expected scores of shape {expected}, got {scores_NK.shape}")
        return scores_NK

    def bound(self, images_NCHW: np.ndarray) -> Callable[[], None]:
        """A call that runs the model on those images, input and output bound to memory of the provider's device.

        It returns when the scores are there: what it takes is the model's time, without copies from and to the host; of
        a provider that waits for nothing else, with the copy of the scores to the host.
        """
        binding = self._session.io_binding()
        value = self._ort.OrtValue.ortvalue_from_numpy(self.contract.feed(images_NCHW), self.row.device, 0)
        binding.bind_ortvalue_input(self.contract.input_name, value)
        binding.bind_output(self.contract.output_name, self.row.device if self.row.waits else "cpu", 0)

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def _place(self, threads: int | None) -> dict[str, Counter[str]]:
        """Which provider runs which operators, from ONNX Runtime's own profile of one run.

        Raises:
            UserError: a node that does the work runs elsewhere than asked.
        """
        if self.row.library is None and self.row.plugin is None:
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
    own = _engine_cache(path) if row.caches else row.options(threads)
    try:
        session = start_session(ort, row, str(path), options, own)
        session.disable_fallback()  # in later runs
    except UserError:
        raise
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


def _engine_cache(path: Path) -> Options:
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
    text, why = str(error), reason(error)
    too_new = re.search(r"Opset (\d+) is under development.* till opset (\d+)", text)
    if too_new:
        return UserError(
            f"{path} has opset {too_new[1]}, the installed ONNX Runtime {ort.__version__} runs up to {too_new[2]}: "
            "export it with a lower --opset, or update ONNX Runtime"
        )
    if any(word in text for word in ("INVALID_PROTOBUF", "No graph", "not have a graph", "Missing opset")):
        return not_onnx(path)
    if any(word in text for word in ("External data", "external data", "External initializer", "file size")):
        return UserError(f"{path} stores its weights in another file, which is missing or does not match: {why}")
    return UserError(f"{path} cannot be opened by ONNX Runtime: {why}")


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
