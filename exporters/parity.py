"""The parity gate: compares an exported model with the student in float32 before the file gets its final name.

Shapes: N images, C channels, H = W side, K classes.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from ncfmkit.progress import Tracker, track
from ncfmkit.records import SparseRecord
from ncfmkit.rng import keyed_rng

BATCHES = (1, 2, 7, 128)  # one, two, odd, large
SMALLEST_PROBABILITY = 1e-30  # where a probability's logarithm stops

Scores = Callable[[np.ndarray], np.ndarray]  # uint8 [N, C, H, W] -> float [N, K]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What may differ, all of it in logits. `scale` is the largest absolute logit of the student in the batch.

    The largest difference of a batch may be `absolute + relative * scale`; the root mean square difference over all
    images of a kind, `rms` of that of the student's logits about their mean; and of the images whose best two logits
    lie further apart than `tie * scale` the same class must win in `agreement`.
    """

    absolute: float
    relative: float
    rms: float
    tie: float
    agreement: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(absolute=1e-4, relative=1e-5, rms=1e-4, tie=1e-4, agreement=1.0),
    "fp16": Tolerance(absolute=1e-3, relative=1e-2, rms=1e-2, tie=2e-2, agreement=0.99),
    "int8": Tolerance(absolute=1e-2, relative=0.5, rms=0.25, tie=0.1, agreement=0.9),
}


Measured = Annotated[float, Field(allow_inf_nan=True)]  # not finite where a model's outputs are not


class ParityBatch(SparseRecord):
    """The largest differences of logits in a batch."""

    size: int  # images
    max_abs: Measured
    max_rel: Measured  # of `scale`
    scale: Measured  # the student's largest absolute logit


class ParityRow(SparseRecord):
    """Differences between student and exported model for one kind of images, in logits."""

    images: str  # their kind, such as random and real
    count: int
    batches: tuple[ParityBatch, ...]
    max_abs: Measured
    max_rel: Measured  # of the largest absolute logit of a batch
    rms: Measured  # relative to `spread`
    spread: Measured  # root mean square of the student's logits about each image's mean
    agreement: Annotated[float, Field(ge=0, le=1)]  # top-1, all images
    finite: bool  # both sides


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row, and what is known of each image."""

    row: ParityRow
    margins: np.ndarray  # [N]: the student's lead of the best class, relative to the scale
    differ: np.ndarray  # bool [N]: whether another class won


def random_images(count: int, channels: int, size: int) -> np.ndarray:
    """Pixels drawn evenly from 0 to 255, the same ones every time; uint8 `[count, channels, size, size]`."""
    return keyed_rng(0, "parity").integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def compare(student: Scores, exported: Scores, images: dict[str, np.ndarray], *, output: str) -> list[Comparison]:
    """Compares student and exported model on every kind of images, in batches of 1, 2, 7 and then 128 images.

    Args:
        student, exported: uint8 images to what `output` says.
        images: uint8 `[N, C, H, W]` by kind, such as random and real.
        output: logits, or probabilities, which are compared by their logarithms.
    """
    with track("comparing with the student", sum(map(len, images.values()))) as bar:
        return [_compare_kind(kind, student, exported, array, output, bar) for kind, array in images.items()]


def _compare_kind(
    kind: str, student: Scores, exported: Scores, images_NCHW: np.ndarray, output: str, bar: Tracker
) -> Comparison:
    batches, expected, got, margins = [], [], [], []
    for batch_NCHW in _batches(images_NCHW):
        a_NK, b_NK = (_logits(scores(batch_NCHW), output) for scores in (student, exported))
        scale = float(np.abs(a_NK).max())
        largest = float(np.abs(a_NK - b_NK).max())
        batches.append(
            ParityBatch(size=len(batch_NCHW), max_abs=largest, max_rel=largest / max(scale, 1e-12), scale=scale)
        )
        best = np.sort(a_NK, axis=1)
        margins.append((best[:, -1] - best[:, -2]) / max(scale, 1e-12))
        expected.append(a_NK)
        got.append(b_NK)
        bar.advance(len(batch_NCHW))
    a_NK, b_NK = np.concatenate(expected), np.concatenate(got)
    centered = a_NK - a_NK.mean(axis=1, keepdims=True)
    differ = a_NK.argmax(1) != b_NK.argmax(1)
    row = ParityRow(
        images=kind,
        count=len(a_NK),
        batches=tuple(batches),
        max_abs=max(b.max_abs for b in batches),
        max_rel=max(b.max_rel for b in batches),
        rms=float(np.sqrt(np.mean((a_NK - b_NK) ** 2) / max(np.mean(centered**2), 1e-24))),
        spread=float(np.sqrt(np.mean(centered**2))),
        agreement=float(1 - differ.mean()),
        finite=bool(np.isfinite(a_NK).all() and np.isfinite(b_NK).all()),
    )
    return Comparison(row=row, margins=np.concatenate(margins), differ=differ)


def _batches(images_NCHW: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of those sizes, then of the last size, as far as the images go."""
    sizes, first = itertools.chain(BATCHES, itertools.repeat(BATCHES[-1])), 0
    while first < len(images_NCHW):
        size = next(sizes)
        yield images_NCHW[first : first + size]
        first += size


def _logits(scores_NK: np.ndarray, output: str) -> np.ndarray:
    """float64 logits; those of probabilities up to a constant per image, which makes no difference to softmax."""
    scores_NK = scores_NK.astype(np.float64)
    if output == "logits":
        return scores_NK
    logs_NK = np.log(np.maximum(scores_NK, SMALLEST_PROBABILITY))
    return logs_NK - logs_NK.mean(axis=1, keepdims=True)


def failures(found: list[Comparison], tolerance: Tolerance) -> list[str]:
    """All that is out of tolerance, each in one line."""
    lines = []
    for compared in found:
        row = compared.row
        kind = f"{row.count} {row.images} images"
        if not row.finite:
            lines.append(f"{kind}: not all outputs of student and export are finite")
            continue
        for batch in row.batches:
            allowed = tolerance.absolute + tolerance.relative * batch.scale
            if batch.max_abs > allowed:
                lines.append(
                    f"{row.images} images, batch of {batch.size}: logits differ by up to {batch.max_abs:.3g}, "
                    f"allowed {allowed:.3g}"
                )
        constant = row.spread <= tolerance.absolute  # such answers have no spread to compare with
        if row.rms > tolerance.rms and not constant:
            lines.append(
                f"{kind}: root mean square difference {row.rms:.2%} of the logits', allowed {tolerance.rms:.2%}"
            )
        clear = compared.margins > tolerance.tie
        if clear.any() and (agree := 1 - compared.differ[clear].mean()) < tolerance.agreement:
            lines.append(
                f"{kind}: top-1 agreement {agree:.2%} of the {clear.sum()} without a near tie, "
                f"expected {tolerance.agreement:.2%}"
            )
    return lines
