"""What tests of exporters and of their commands share: pixels, the student's own logits, models of other origin."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ncfmkit.config import Settings
from ncfmkit.exporters import timing
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.student import Student
from ncfmkit.files import METADATA_KEY, digest
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.scoring import student_file

SIDE = 8  # pixels


def images_of(count: int, channels: int = 3, size: int = SIDE, seed: int = 3) -> np.ndarray:
    """uint8 noise `[count, channels, size, size]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def logits_in_float64(path: Path, images: np.ndarray) -> np.ndarray:
    """The student's own logits of pixels, all in float64, without any code of the exporters."""
    network, manifest = student_file.load(path)
    mean, std = (np.array(values)[:, None, None] for values in (manifest.mean, manifest.std))
    with torch.no_grad():
        return network.double()(torch.from_numpy((images / 255 - mean) / std)).numpy()


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Fails if this process's resident memory grows by more bytes meanwhile, where the system tells it."""
    timing._forget_peak()
    before = timing._memory("cpu")
    yield
    after = timing._memory("cpu")
    assert before is None or after is None or after - before < most, f"{(after - before) >> 20} MiB"


def write_any_student(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Path:
    """A student's file with any metadata, the digests those of the parameters."""
    whole = {"sha256": {name: digest(tensor) for name, tensor in state.items()}} | metadata
    path.write_bytes(safetensors.torch.save(state, metadata={METADATA_KEY: json.dumps(whole)}))
    return path


_TRACES: dict[str, bytes] = {}


@contextmanager
def traced_once() -> Iterator[None]:
    """torch's exporter, the slow part of an export, traces each student once a session: for tests of all the rest."""
    from ncfmkit.exporters import onnx as onnx_export

    trace = onnx_export.to_onnx

    def to_onnx(student: Student, **how: Any) -> Any:
        import onnx

        manifest = student.manifest.to_dict()
        parts = [manifest[key] for key in ("sha256", "network", "size", "mean", "std")]
        key = json.dumps([parts, how], sort_keys=True)
        if key not in _TRACES:
            _TRACES[key] = trace(student, **how).SerializeToString()
        return onnx.load_model_from_string(_TRACES[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "to_onnx", to_onnx)
        yield


def opened(real: RealData) -> Any:
    """Arguments that open to these data."""
    return _Opened(data=real.name, real=real)


@dataclass(frozen=True, kw_only=True)
class _Opened(DataArguments):
    real: RealData

    def check(self, settings: Settings) -> None:
        pass

    def open(self, settings: Settings) -> RealData:
        return self.real


def foreign_model(
    path: Path,
    layout: str = "uint8-nchw",
    *,
    classes: int = 3,
    channels: int = 3,
    names: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    probabilities: bool = False,
    side: Any = SIDE,
    batch: Any = "N",
    dtype: int | None = None,
    opset: int = 17,
) -> Path:
    """A classifier of other origin: pixels in [0, 1] times a matrix; with names it says what it takes, as ours do."""
    import onnx

    helper, types = onnx.helper, onnx.TensorProto
    matrix = foreign_weights(classes, channels) if weights is None else weights.astype(np.float32)
    row = LAYOUTS[layout]
    shape = [batch, side, side, channels] if row.channels_last else [batch, channels, side, side]
    nodes = [
        helper.make_node("Cast", ["input"], ["x0"], to=types.FLOAT),
        helper.make_node("Mul", ["x0", "scale"], ["x1"]),
        helper.make_node("Transpose", ["x1"], ["x2"], perm=[0, 3, 1, 2] if row.channels_last else [0, 1, 2, 3]),
        helper.make_node("Flatten", ["x2"], ["x3"]),
        helper.make_node("MatMul", ["x3", "weights"], ["x4"]),
        helper.make_node("Softmax" if probabilities else "Identity", ["x4"], ["scores"]),
    ]
    scale = np.array(1 if row.dtype is np.float32 else 1 / 255, np.float32)
    type = dtype or (types.FLOAT if row.dtype is np.float32 else types.UINT8)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", type, shape)],
        [helper.make_tensor_value_info("scores", types.FLOAT, [batch, matrix.shape[1]])],
        [onnx.numpy_helper.from_array(v, n) for n, v in (("scale", scale), ("weights", matrix))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if names:
        kind = "probabilities" if probabilities else "logits"
        ours = {"input": {"layout": layout}, "output": {"kind": kind}, "classes": list(names)}
        helper.set_model_props(model, {"ncfmkit": json.dumps(ours)})
    onnx.save_model(model, path)
    return path


def foreign_weights(classes: int = 3, channels: int = 3) -> np.ndarray:
    """float32 `[C * H * W, K]`, the default of `foreign_model`."""
    drawn = np.random.default_rng(4).normal(size=(channels * SIDE * SIDE, classes))
    return (drawn - drawn.mean(axis=0)).astype(np.float32)  # without it, one class wins on every picture


def foreign_scores(images_NCHW: np.ndarray, classes: int = 3) -> np.ndarray:
    """The logits of `foreign_model`, float64 `[N, K]`."""
    return (images_NCHW.reshape(len(images_NCHW), -1) / 255) @ foreign_weights(classes).astype(np.float64)


def naive_count(scores: np.ndarray, labels: np.ndarray) -> tuple[int, int, list[list[int]]]:
    """Correct images, images with scores that are not finite, and the confusion matrix, one image at a time."""
    count = scores.shape[1]
    confusion = [[0] * count for _ in range(count)]
    correct = broken = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if any(value != value or value in (float("inf"), float("-inf")) for value in row):
            broken += 1
            continue
        guess = row.index(max(row))
        confusion[label][guess] += 1
        correct += guess == label
    return correct, broken, confusion


class Page(HTMLParser):
    """Addresses, and that every element is closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.sources = list[str](), list[str](), list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
