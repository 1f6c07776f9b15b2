"""Static int8 quantization in QDQ form with ONNX Runtime's quantizer, and the choice of layers that stay float.

Convolutions and linear layers are quantized: weights per channel, activations per tensor, all int8 and symmetric, which
both ONNX Runtime's CPU kernels and TensorRT support. Weights use 7 of the 8 bits: a CPU without VNNI adds pairs of
products in 16 bits, which larger weights overflow, and the model answers wrongly there. Biases stay float32: TensorRT
dequantizes no int32, and ONNX Runtime rounds them to int32 itself when it opens the model.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters.contract import INPUT_NAME, Layout
from ncfmkit.exporters.sessions import open_session
from ncfmkit.progress import notice, track

OPERATORS = ("Conv", "Gemm")
BATCH = 32


def layers(model: Any) -> dict[str, str]:
    """The quantizable layers of a model of ours, in the graph's order, and their nodes: `blocks.0`, `blocks.0/Conv`."""
    return {node.name.split("/")[0]: node.name for node in model.graph.node if node.op_type in OPERATORS}


def chosen(skip: Sequence[str], known: dict[str, str]) -> list[str]:
    """The layers that `--int8-skip` names; a name stands for a layer or for all below it (`blocks` for `blocks.0`).

    Raises:
        UserError: no such layer, with those that there are; or none is left to quantize.
    """
    found: list[str] = []
    for name in skip:
        below = [layer for layer in known if layer == name or layer.startswith(f"{name}.")]
        if not below:
            raise UserError(f"--int8-skip {name!r}: no such layer; known: {', '.join(known)}")
        found += [layer for layer in below if layer not in found]
    if len(found) == len(known):
        raise UserError("--int8-skip leaves no layer to quantize: name fewer layers, or pass --precision fp16 or fp32")
    return found


def quantize(source: Path, target: Path, images_NCHW: np.ndarray, layout: Layout, skip: Sequence[str]) -> None:
    """Writes the int8 version of an exported model.

    Args:
        source: float32 ONNX file of ours.
        target: the file to write.
        images_NCHW: uint8, the ranges of activations are taken from them.
        layout: how the model takes them.
        skip: nodes that stay float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(images_NCHW), BATCH)
            self._batches = ({INPUT_NAME: layout.arrange(images_NCHW[s : s + BATCH])} for s in starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            bar.advance(len(batch[INPUT_NAME]) if batch else 0)
            return batch

    with _quiet(), track("calibrating int8", len(images_NCHW)) as bar:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=list(skip),
            per_channel=True,
            reduce_range=True,  # weights from -64 to 64
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice to optimize the model first, which its own documentation leaves to the session."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def search(
    attempt: Callable[[Sequence[str]], Path],
    known: dict[str, str],
    skip: Sequence[str],
    probe_NCHW: np.ndarray,
    float_model: Path,
    accuracy: Callable[[Path], float],
    allowed: float,
) -> list[str]:
    """Which layers stay float32, so that the accuracy falls by no more than allowed.

    Layers are ranked by what quantizing each alone does to the scores of the probe images; how many of the worst are
    left float is found by bisection.

    Args:
        attempt: quantizes all but the layers that it is given, and returns the file.
        known: quantizable layers as :func:`layers` gives them.
        skip: layers that stay float anyway.
        probe_NCHW: uint8 images for the ranking.
        float_model: the float32 ONNX file.
        accuracy: top-1 accuracy of a file, a fraction; not on test images, which a choice would use up.
        allowed: fraction by which it may be lower than the float model's.

    Returns:
        The layers left float.

    Raises:
        CheckFailed: not even with a single quantized layer.
    """
    base, kept = accuracy(float_model), list(skip)

    def drop(keep: list[str]) -> float:
        """Accuracy lost; a notice says how much."""
        reached = accuracy(attempt(keep))
        notice(f"int8 search: {len(keep)} of {len(known)} layers float: {reached:.2%}, in float32 {base:.2%}")
        return base - reached

    def holds(lost: float) -> bool:
        return lost <= allowed + 1e-9

    first = drop(kept)
    if holds(first):
        return kept
    ranked = _ranked(attempt, known, kept, probe_NCHW, float_model)
    fewest, most = 1, len(ranked) - 1  # of the ranked layers, to leave float
    lost = drop(kept + ranked[:most]) if most else first
    if not holds(lost):
        raise CheckFailed(
            f"int8 loses {100 * lost:.2f} points even with one quantized layer, allowed {100 * allowed:.2f}: "
            "export with --precision fp16, or allow more with --max-accuracy-drop"
        )
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if holds(drop(kept + ranked[:middle])) else (middle + 1, most)
    return kept + ranked[:most]


def _ranked(
    attempt: Callable[[Sequence[str]], Path],
    known: dict[str, str],
    skip: Sequence[str],
    probe_NCHW: np.ndarray,
    float_model: Path,
) -> list[str]:
    """The layers that are not skipped, the most harmful first."""
    candidates = [layer for layer in known if layer not in skip]
    expected = open_session(float_model)(probe_NCHW)
    harm = {}
    with track("int8 search: layers", len(candidates)) as bar:
        for layer in candidates:
            scores = open_session(attempt([other for other in known if other != layer]))(probe_NCHW)
            harm[layer] = float(np.mean((scores - expected) ** 2))
            bar.advance(note=layer)
    return sorted(candidates, key=lambda layer: -harm[layer])
