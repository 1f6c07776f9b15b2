"""Inputs and outputs of an exported classifier, read from the model file, ncfmkit's or any other (docs/formats.md).

Shapes: N images, C channels, H = W side, K classes.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from ncfmkit.errors import UserError
from ncfmkit.files import METADATA_KEY
from ncfmkit.records import Record, SparseRecord, at_most, problems, shortened
from ncfmkit.scoring.student_manifest import Fraction, Names, NetworkRecord

INPUT_NAME = "images"
OUTPUTS = ("logits", "probabilities")
LARGEST_METADATA = 4 << 20  # characters of JSON: the names of some 100,000 classes
LARGEST_IMAGE = 1 << 24  # values of one image that a model takes: 2364x2364 RGB
MOST_CLASSES = 1 << 20
MOST_SHOWN = 10  # problems in a message


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to hand images over: a row of `LAYOUTS`."""

    dtype: type  # numpy's
    port_type: str  # ONNX's name for the type
    channels_last: bool
    summary: str

    def shape(self, channels: int, size: int) -> tuple[int, int, int]:
        """Of one image."""
        return (size, size, channels) if self.channels_last else (channels, size, size)

    def arrange(self, images_NCHW: np.ndarray) -> np.ndarray:
        """uint8 `[N, C, H, W]` as this layout has it, contiguous."""
        arranged = images_NCHW.transpose(0, 2, 3, 1) if self.channels_last else images_NCHW
        if self.dtype is np.float32:
            arranged = arranged.astype(np.float32) / 255
        return np.ascontiguousarray(arranged)


LAYOUTS: dict[str, Layout] = {
    "uint8-nchw": Layout(
        dtype=np.uint8, port_type="tensor(uint8)", channels_last=False, summary="uint8 [N, C, H, W], 0 to 255"
    ),
    "uint8-nhwc": Layout(
        dtype=np.uint8, port_type="tensor(uint8)", channels_last=True, summary="uint8 [N, H, W, C], 0 to 255"
    ),
    "float-nchw": Layout(
        dtype=np.float32, port_type="tensor(float)", channels_last=False, summary="float32 [N, C, H, W], 0 to 1"
    ),
}


class Port(SparseRecord):
    """An input or output as the graph declares it."""

    name: str
    type: str  # such as tensor(uint8)
    shape: tuple[int | str | None, ...]  # a symbolic length is its name, or None


def _one_of(known: Container[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"expected one of {known}")
        return value

    return AfterValidator(check)


class ModelInput(SparseRecord):
    """What a model takes."""

    layout: Annotated[str, _one_of(tuple(LAYOUTS))]
    name: str | None = None
    channels: int | None = None
    size: int | None = None


class ModelOutput(SparseRecord):
    """What a model gives."""

    kind: Annotated[str, _one_of(OUTPUTS)]
    name: str | None = None


class ModelStudent(SparseRecord):
    """The student that a model was exported from."""

    sha256: str | None = None  # of its file
    network: NetworkRecord | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test_accuracy: Fraction | None = None


class ModelSet(SparseRecord):
    """The set that a model's student was trained on."""

    name: str | None = None
    manifest_sha256: str | None = None
    source: str | None = None  # the real data that it was made from
    license: str | None = None  # of those; None: not stated


class CalibrationOrigin(SparseRecord):
    """The images that int8 ranges were taken from: of a set, or of real data."""

    name: str | None = None
    manifest_sha256: str | None = None
    fingerprint: str | None = None
    images: int | None = None


class LayerSearch(SparseRecord):
    """What the search for the layers that stay float measured accuracy on: training images of real data."""

    data: str | None = None
    fingerprint: str | None = None
    split: str | None = None
    images: int | None = None
    max_accuracy_drop: float | None = None  # percentage points


class Int8(SparseRecord):
    """How an int8 model was made."""

    float_layers: Names = ()
    calibration: CalibrationOrigin | None = None
    search: LayerSearch | None = None  # None: there was no search


class ModelMetadata(SparseRecord):
    """What ncfmkit writes into a model, or beside it: what the graph does not say (docs/formats.md)."""

    input: ModelInput
    output: ModelOutput
    classes: Names  # in the order of the output
    kind: str = ""
    tool: str | None = None
    versions: Annotated[dict[str, str], at_most(64)] = Field(default_factory=dict)
    precision: str | None = None
    opset: int | None = None
    student: ModelStudent = ModelStudent()
    trained_on: ModelSet = ModelSet()
    int8: Int8 | None = None


class NoMetadata(Record, extra="forbid"):
    """In the place of :class:`ModelMetadata`, for a model of other origin."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What takes images: a model, or the model that a student would be exported to."""

    input_name: str
    layout: str  # a row of LAYOUTS
    channels: int
    size: int  # side in pixels
    output_name: str
    output: str  # logits or probabilities
    classes: tuple[str, ...] | None  # None: the file does not say
    class_count: int
    metadata: ModelMetadata | None  # None: a model of other origin

    def takes(self) -> str:
        """What a message says of it: `3x32x32 images and has 10 classes`."""
        return f"{format_shape(self.image_shape)} images and has {self.class_count} classes"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of a uint8 image as the toolkit has it, before :meth:`feed` arranges it."""
        return self.channels, self.size, self.size

    def feed(self, images_NCHW: np.ndarray) -> np.ndarray:
        """uint8 `[N, C, H, W]` as the model takes it.

        Raises:
            UserError: images of another shape or type.
        """
        if images_NCHW.dtype != np.uint8 or images_NCHW.shape[1:] != self.image_shape:
            expected, got = map(format_shape, (self.image_shape, images_NCHW.shape[1:]))
            raise UserError(
                f"the model takes {expected} images, got {got} {images_NCHW.dtype}: pass images of that size and color"
            )
        return LAYOUTS[self.layout].arrange(images_NCHW)

    def probabilities(self, scores_NK: np.ndarray) -> np.ndarray:
        """The model's output as probabilities, float64 `[N, K]`."""
        scores_NK = scores_NK.astype(np.float64)
        if self.output == "probabilities":
            return scores_NK
        exponents = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)


def not_onnx(path: Path) -> UserError:
    """What is said of a file that is no ONNX model, whoever found it out."""
    return UserError(f"{path} is not an ONNX file, or is damaged or truncated")


def not_text(path: Path, error: UnicodeDecodeError) -> UserError:
    """What is said of a model with names or metadata that are no text."""
    return UserError(f"{path} is damaged: a name or its metadata is not valid UTF-8 ({error.reason})")


def format_shape(shape: Sequence[int]) -> str:
    """Lengths as messages have them: `3x32x32`."""
    return "x".join(map(str, shape))


def read_metadata(where: str, metadata: dict[str, str], producer: str = "") -> ModelMetadata | None:
    """What ncfmkit wrote into a model's metadata, checked; None: nothing.

    Args:
        where: the file, for messages.
        metadata: texts by key.
        producer: the program that the file names as its writer.

    Raises:
        UserError: it is damaged, larger than `LARGEST_METADATA`, or missing where ncfmkit is the writer.
    """
    if producer == "ncfmkit" and METADATA_KEY not in metadata:  # the last thing in the file
        raise UserError(f"{where} is truncated: the metadata that ncfmkit writes at the end is missing")
    text = metadata.get(METADATA_KEY, "{}")
    if len(text) > LARGEST_METADATA:
        raise UserError(
            f"{where}: expected {METADATA_KEY!r} metadata of at most {LARGEST_METADATA:,} characters, got {len(text):,}"
        )
    try:
        return None if text == "{}" else ModelMetadata.model_validate_json(text)
    except ValidationError as error:
        lines = "; ".join(problems(error)[:MOST_SHOWN])
        raise UserError(
            f"{where} is damaged or was written by a newer ncfmkit: its {METADATA_KEY!r} metadata: {lines}"
        ) from None


def read_contract(
    where: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    metadata: ModelMetadata | None,
    *,
    declared: dict[str, str],
) -> Contract:
    """The contract of a graph with those ports and that metadata.

    A model of other origin says only types and shapes: float32 images are then taken to be in [0, 1], the output to be
    logits, and `declared` may say otherwise (`layout`, `output`). Metadata win over it: see :func:`check_declared`.

    Raises:
        UserError: the graph is not an image classifier that this toolkit can feed.
    """
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{where}: expected one input and one output, got {len(inputs)} and {len(outputs)}")
    (images,), (scores,) = inputs, outputs
    said = {"layout": metadata.input.layout, "output": metadata.output.kind} if metadata else {}
    known = declared | said
    layout = known.get("layout") or _layout_of(where, images)
    channels, size = _image_shape(where, images, layout)
    count = scores.shape[-1] if len(scores.shape) == 2 else None
    if (
        not isinstance(count, int)
        or not 1 <= count <= MOST_CLASSES
        or scores.type not in ("tensor(float)", "tensor(float16)")
    ):
        raise UserError(
            f"{where}: expected an output of float scores [N, classes], {MOST_CLASSES:,} at most, "
            f"got {_port_text(scores)}"
        )
    classes = metadata.classes if metadata else None
    if classes is not None and len(classes) != count:
        raise UserError(f"{where} is damaged: its metadata names {len(classes)} classes, its output has {count}")
    return Contract(
        input_name=images.name,
        layout=layout,
        channels=channels,
        size=size,
        output_name=scores.name,
        output=known.get("output", "logits"),
        classes=classes,
        class_count=count,
        metadata=metadata,
    )


def as_declared(layout: str | None, output: str | None) -> dict[str, str]:
    """What the user says of models without metadata, by key; without what is None.

    Raises:
        UserError: no such layout or output.
    """
    for flag, value, known in (("--input", layout, tuple(LAYOUTS)), ("--output", output, OUTPUTS)):
        if value is not None and value not in known:
            raise UserError(f"{flag}: expected one of {', '.join(known)}, got {value!r}")
    return {key: value for key, value in (("layout", layout), ("output", output)) if value is not None}


def check_declared(declared: dict[str, str], contracts: Mapping[str, Contract]) -> None:
    """Raises UserError if every model has metadata, and that of one contradicts what the user says.

    Args:
        declared: of :func:`as_declared`.
        contracts: of the models, by name.
    """
    if any(contract.metadata is None for contract in contracts.values()):
        return
    for where, contract in contracts.items():
        said = {"layout": contract.layout, "output": contract.output}
        for flag, key in (("--input", "layout"), ("--output", "output")):
            if declared.get(key, said[key]) != said[key]:
                raise UserError(
                    f"{flag} {declared[key]}: the metadata of {where} says {said[key]}: leave {flag} out, which is for "
                    "models without metadata"
                )


def assumed_text(contract: Contract, declared: dict[str, str]) -> str:
    """What a model without metadata is taken to take and give, and which of it the user said."""
    layout, output = ("as declared" if key in declared else "assumed" for key in ("layout", "output"))
    return (
        f"input {LAYOUTS[contract.layout].summary} ({layout}, --input), output {contract.output} ({output}, --output)"
    )


def _layout_of(where: str, images: Port) -> str:
    """The first layout of that type where the channels would be 1 or 3; the first of that type if that fits none."""
    of_type = [name for name, row in LAYOUTS.items() if row.port_type == images.type]
    if not of_type:
        raise UserError(f"{where}: expected uint8 or float32 images, got {_port_text(images)}")
    if len(images.shape) == 4:
        for name in of_type:
            if images.shape[3 if LAYOUTS[name].channels_last else 1] in (1, 3):
                return name
    return of_type[0]


def _image_shape(where: str, images: Port, layout: str) -> tuple[int, int]:
    shape, row = images.shape, LAYOUTS[layout]
    if len(shape) == 4 and images.type == row.port_type:
        channels, height, width = (shape[3], *shape[1:3]) if row.channels_last else shape[1:]
        if isinstance(shape[0], int):
            raise UserError(f"{where} takes {shape[0]} images at a time: export it with a dynamic batch")
        if isinstance(channels, int) and channels in (1, 3) and isinstance(height, int) and height == width and height:
            if channels * height**2 > LARGEST_IMAGE:
                raise UserError(
                    f"{where} takes images of {channels}x{height}x{height}, expected {LARGEST_IMAGE:,} values at most"
                )
            return channels, height
    raise UserError(
        f"{where}: expected square images of 1 or 3 channels, {row.summary}, with fixed sides; got {_port_text(images)}"
    )


def _port_text(port: Port) -> str:
    """A port in a message, which its names do not make long."""
    return f"{shortened(port.name)} {port.type} [{', '.join(str(length)[:20] for length in port.shape[:8])}]"
