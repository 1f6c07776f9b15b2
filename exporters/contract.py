"""Inputs and outputs of an exported classifier, read from the model file, ncfmkit's or any other (docs/formats.md).

Shapes: N images, C channels, H = W side, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.files import METADATA_KEY

INPUT_NAME = "images"
OUTPUTS = ("logits", "probabilities")


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


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output as the graph declares it; a symbolic length is its name or None."""

    name: str
    type: str  # such as tensor(uint8)
    shape: list[Any]


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
    metadata: dict[str, Any]  # what ncfmkit wrote into the file; empty for a model of other origin

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


def format_shape(shape: Sequence[int]) -> str:
    """Lengths as messages have them: `3x32x32`."""
    return "x".join(map(str, shape))


def read_contract(
    where: str, inputs: Sequence[Port], outputs: Sequence[Port], metadata: dict[str, str], *, declared: dict[str, str]
) -> Contract:
    """The contract of a graph with those ports and that metadata.

    A model of other origin says only types and shapes: float32 images are then taken to be in [0, 1], the output to be
    logits, and `declared` may say otherwise (`layout`, `output`).

    Raises:
        UserError: the graph is not an image classifier that this toolkit can feed, or `declared` contradicts the file.
    """
    ours = _our_metadata(where, metadata)
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{where}: expected one input and one output, got {len(inputs)} and {len(outputs)}")
    (images,), (scores,) = inputs, outputs
    said = {"layout": ours["input"]["layout"], "output": ours["output"]["kind"]} if ours else {}
    for key, value in declared.items():
        if said.get(key, value) != value:
            raise UserError(
                f"{where}: its metadata says that its {key} is {said[key]}, not {value}: leave that option out"
            )
    known = declared | said
    layout = known.get("layout") or _layout_of(where, images)
    channels, size = _image_shape(where, images, layout)
    count = scores.shape[-1] if len(scores.shape) == 2 else None
    if not isinstance(count, int) or count < 1 or scores.type not in ("tensor(float)", "tensor(float16)"):
        raise UserError(f"{where}: expected an output of float scores [N, classes], got {_port_text(scores)}")
    classes = tuple(ours["classes"]) if ours else None
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
        metadata=ours,
    )


def _our_metadata(where: str, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        ours = json.loads(metadata.get(METADATA_KEY, "{}"))
        if ours != {}:
            layout, output, classes = ours["input"]["layout"], ours["output"]["kind"], ours["classes"]
            if layout not in LAYOUTS or output not in OUTPUTS:
                raise ValueError(f"layout {layout!r}, output {output!r}")
            if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
                raise ValueError("classes are not a list of names")
            _check_optional(ours)
            json.dumps(ours, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, for half a character
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where} is damaged or was written by a newer ncfmkit: its {METADATA_KEY!r} metadata: {repr(error)[:200]}"
        ) from None
    return ours


OPTIONAL: tuple[tuple[str, type | tuple[type, ...]], ...] = (  # entries that need not be there, and what they are
    ("tool", str),
    ("precision", str),
    ("versions", dict),
    ("student", dict),
    ("student.network", dict),
    ("student.test_accuracy", (int, float, type(None))),
    ("trained_on", dict),
    ("int8", dict),
    ("int8.calibration", dict),
    ("int8.float_layers", list),
)


def _check_optional(ours: dict[str, Any]) -> None:
    for path, kind in OPTIONAL:
        *parents, last = path.split(".")
        holder: dict[str, Any] = ours
        for parent in parents:
            holder = holder.get(parent, {})
        if last in holder and not isinstance(holder[last], kind):
            raise TypeError(f"{path} {holder[last]!r}")
    accuracy = ours.get("student", {}).get("test_accuracy")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"student.test_accuracy {accuracy!r}")


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
        if channels in (1, 3) and isinstance(height, int) and height == width > 0:
            return channels, height
    raise UserError(
        f"{where}: expected square images of 1 or 3 channels, {row.summary}, with fixed sides; got {_port_text(images)}"
    )


def _port_text(port: Port) -> str:
    return f"{port.name!r} {port.type} [{', '.join(map(str, port.shape))}]"
