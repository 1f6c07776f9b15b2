"""What a model takes and gives: layouts, scores as probabilities, and what ports and metadata say, or do not."""

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from exports import little_memory

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import (
    LARGEST_METADATA,
    LAYOUTS,
    OUTPUTS,
    Contract,
    Port,
    as_declared,
    check_declared,
    read_contract,
    read_metadata,
)
from ncfmkit.files import METADATA_KEY

UINT8, FLOAT, HALF = "tensor(uint8)", "tensor(float)", "tensor(float16)"
OURS = {"classes": ["a", "b", "c"], "input": {"layout": "uint8-nchw"}, "output": {"kind": "logits"}}


def contract(
    shape: Any = ("N", 3, 8, 8),
    type: str = UINT8,
    *,
    scores: Any = ("N", 3),
    scores_type: str = FLOAT,
    metadata: Any = None,
    **declared: str,
) -> Contract:
    """Of a graph with those ports; metadata is text, or what becomes JSON."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return read_contract(
        "x.onnx",
        [Port(name="images", type=type, shape=shape)],
        [Port(name="scores", type=scores_type, shape=scores)],
        read_metadata("x.onnx", {} if metadata is None else {METADATA_KEY: text}),
        declared=declared,
    )


def pictures(count: int = 3, channels: int = 3, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_layout_puts_every_pixel_where_it_says(layout: str, channels: int) -> None:
    row, images = LAYOUTS[layout], pictures(channels=channels)
    before = images.copy()
    arranged = row.arrange(images)
    assert arranged.dtype == row.dtype
    assert arranged.shape == (3, *row.shape(channels, 4))
    assert arranged.flags["C_CONTIGUOUS"]
    for n, c, h, w in product(range(3), range(channels), range(4), range(4)):
        value = arranged[n, h, w, c] if row.channels_last else arranged[n, c, h, w]
        pixel = images[n, c, h, w]
        assert value == (np.float32(pixel) / np.float32(255) if row.dtype is np.float32 else pixel)
    assert np.array_equal(images, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_views(layout: str) -> None:
    images = pictures(6)[::2, ::-1, :, ::-1]
    arranged = LAYOUTS[layout].arrange(images)
    assert arranged.flags["C_CONTIGUOUS"]
    assert np.array_equal(arranged, LAYOUTS[layout].arrange(images.copy()))


@pytest.mark.parametrize("command", ["export", "validate"])
def test_the_help_names_every_layout_and_output(command: str) -> None:
    """It cannot read the table, which needs numpy."""
    shown = call(command, "--help").stdout
    assert "|".join(LAYOUTS) in shown
    assert "|".join(OUTPUTS) in shown


def test_float_layout_reaches_exactly_0_and_1() -> None:
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    assert LAYOUTS["float-nchw"].arrange(images).ravel().tolist() == [0.0, 1.0]


def test_feed_gives_what_the_layout_arranges() -> None:
    images = pictures(size=8)
    nhwc = contract(("N", 8, 8, 3))
    assert np.array_equal(nhwc.feed(images), images.transpose(0, 2, 3, 1))
    assert nhwc.feed(images[:0]).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (pictures(size=4), "3x4x4 uint8"),
        (pictures(channels=1, size=8), "1x8x8 uint8"),
        (pictures(size=8).transpose(0, 2, 3, 1), "8x8x3 uint8"),
        (pictures(size=8)[0], "8x8 uint8"),
        (pictures(size=8)[None], "3x3x8x8 uint8"),
        (pictures(size=8).astype(np.float32), "3x8x8 float32"),
        (pictures(size=8).astype(np.int8), "3x8x8 int8"),
        (pictures(size=8).astype(np.int64), "3x8x8 int64"),
    ],
)
def test_feed_refuses_what_is_not_such_images(images: np.ndarray, got: str) -> None:
    with pytest.raises(UserError, match=f"3x8x8 .*got {got}: "):
        contract().feed(images)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scale", [1, 30, 5000])
def test_probabilities_of_logits_are_their_softmax(dtype: type, scale: float) -> None:
    logits: np.ndarray = (np.random.default_rng(0).normal(size=(5, 7)) * scale).astype(dtype)
    got = contract(scores=("N", 7)).probabilities(logits)
    expected = torch.from_numpy(logits).double().softmax(1).numpy()
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)


def test_probabilities_stay_what_they_are() -> None:
    given = np.array([[0.25, 0.5, 0.25]], np.float32)
    got = contract(output="probabilities").probabilities(given)
    assert got.dtype == np.float64
    assert got.tolist() == given.tolist()


@pytest.mark.parametrize(
    ("shape", "type", "expected"),
    [
        (("N", 3, 8, 8), UINT8, ("uint8-nchw", 3, 8)),
        ((None, 1, 28, 28), UINT8, ("uint8-nchw", 1, 28)),
        (("N", 8, 8, 3), UINT8, ("uint8-nhwc", 3, 8)),
        (("N", 28, 28, 1), UINT8, ("uint8-nhwc", 1, 28)),
        (("N", 3, 3, 3), UINT8, ("uint8-nchw", 3, 3)),
        (("N", 1, 1, 1), UINT8, ("uint8-nchw", 1, 1)),
        (("batch", 3, 224, 224), FLOAT, ("float-nchw", 3, 224)),
    ],
)
def test_types_and_shapes_tell_the_layout(shape: Any, type: str, expected: tuple) -> None:
    found = contract(shape, type, scores=("N", 5))
    assert (found.layout, found.channels, found.size) == expected
    assert (found.input_name, found.output_name, found.class_count) == ("images", "scores", 5)
    assert (found.output, found.classes, found.metadata) == ("logits", None, None)


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_is_declared_of_a_model_that_does_not_say(output: str) -> None:
    found = contract(("N", 3, 3, 3), layout="uint8-nhwc", output=output)
    assert (found.layout, found.output) == ("uint8-nhwc", output)
    with pytest.raises(
        UserError, match=r"x\.onnx: expected .* float32 \[N, C, H, W\], 0 to 1.* 'images' tensor\(uint8\)"
    ):
        contract(layout="float-nchw")


SHAPES = "expected square images of 1 or 3 channels"
REFUSED = {
    "wide": (("N", 3, 8, 9), UINT8, SHAPES),
    "wide, channels last": (("N", 8, 9, 3), UINT8, SHAPES),
    "two channels": (("N", 2, 8, 8), UINT8, SHAPES),
    "float, channels last": (("N", 8, 8, 3), FLOAT, SHAPES),
    "symbolic sides": (("N", 3, "H", "W"), FLOAT, SHAPES),
    "one symbolic side twice": (("N", 3, "S", "S"), UINT8, SHAPES),
    "unknown sides": (("N", 3, None, None), UINT8, SHAPES),
    "symbolic channels": (("N", "C", 8, 8), FLOAT, SHAPES),
    "no pixels": (("N", 3, 0, 0), UINT8, SHAPES),
    "flat": (("N", 192), UINT8, SHAPES),
    "one image": ((3, 8, 8), UINT8, SHAPES),
    "video": (("N", "T", 3, 8, 8), FLOAT, SHAPES),
    "scalar": ((), FLOAT, SHAPES),
    "fixed batch": ((4, 3, 8, 8), UINT8, "takes 4 images .*dynamic batch"),
    "fixed float batch": ((1, 3, 8, 8), FLOAT, "takes 1 images .*dynamic batch"),
    "half": (("N", 3, 8, 8), HALF, "expected uint8 or float32 images"),
    "double": (("N", 3, 8, 8), "tensor(double)", "expected uint8 or float32 images"),
    "int64": (("N", 3, 8, 8), "tensor(int64)", "expected uint8 or float32 images"),
    "not a tensor": ((), "seq(tensor(uint8))", "expected uint8 or float32 images"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_inputs_that_are_no_batch_of_images(why: str) -> None:
    shape, type, says = REFUSED[why]
    with pytest.raises(UserError, match=f"^x\\.onnx:? {says}") as caught:
        contract(shape, type)
    if "batch" not in why:
        assert f"'images' {type} [{', '.join(map(str, shape))}]" in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "type"),
    [
        (("N", "K"), FLOAT),
        (("N", None), FLOAT),
        (("N", 0), FLOAT),
        (("N",), FLOAT),
        ((), FLOAT),
        (("N", 3, 1, 1), FLOAT),
        (("N", 3), "tensor(int64)"),
        (("N", 3), "tensor(double)"),
        (("N", 3), "seq(map(int64,tensor(float)))"),
    ],
)
def test_outputs_that_are_no_scores(scores: Any, type: str) -> None:
    with pytest.raises(UserError, match=r"^x\.onnx: .*float .*\[N, classes\], .*got 'scores' "):
        contract(scores=scores, scores_type=type)


def test_half_scores_are_scores() -> None:
    assert contract(scores_type=HALF).class_count == 3


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 2), (0, 1), (1, 0)])
def test_other_numbers_of_ports(inputs: int, outputs: int) -> None:
    image, score = Port(name="i", type=UINT8, shape=("N", 3, 8, 8)), Port(name="s", type=FLOAT, shape=("N", 3))
    with pytest.raises(UserError, match=rf"^x\.onnx: .*got {inputs} and {outputs}$"):
        read_contract("x.onnx", [image] * inputs, [score] * outputs, None, declared={})


def ours(**changes: Any) -> dict[str, Any]:
    return OURS | changes


@pytest.mark.parametrize(("layout", "output"), list(product(LAYOUTS, OUTPUTS)))
def test_a_model_that_says_it(layout: str, output: str) -> None:
    row = LAYOUTS[layout]
    said = ours(input={"layout": layout}, output={"kind": output}, student={"sha256": "0"})
    type = FLOAT if row.dtype is np.float32 else UINT8
    found = contract(("N", *row.shape(3, 8)), type, metadata=said)
    assert (found.layout, found.output, found.classes) == (layout, output, ("a", "b", "c"))
    assert (found.channels, found.size) == (3, 8)
    assert found.metadata is not None
    assert found.metadata.to_dict() == said


def test_what_a_model_says_decides_where_its_shape_leaves_it_open() -> None:
    assert contract(("N", 3, 3, 3), metadata=ours(input={"layout": "uint8-nhwc"})).layout == "uint8-nhwc"


def test_what_is_declared_may_repeat_but_not_contradict_all_files() -> None:
    ours, silent = contract(metadata=OURS), contract()
    check_declared({"layout": "uint8-nchw", "output": "logits"}, {"x.onnx": ours})
    with pytest.raises(UserError, match=r"^--output probabilities: the metadata of x\.onnx says logits: leave"):
        check_declared({"output": "probabilities"}, {"x.onnx": ours})
    with pytest.raises(UserError, match=r"^--input uint8-nhwc: the metadata of x\.onnx says uint8-nchw: leave"):
        check_declared({"layout": "uint8-nhwc"}, {"x.onnx": ours})
    assert contract(metadata=OURS, output="probabilities").output == "logits"
    check_declared({"output": "probabilities"}, {"x.onnx": ours, "y.onnx": silent})  # it is about the other one


def test_what_is_declared_exists() -> None:
    assert as_declared(None, "probabilities") == {"output": "probabilities"}
    with pytest.raises(UserError, match=r"^--input: expected one of uint8-nchw, .*, got 'rgb'"):
        as_declared("rgb", None)
    with pytest.raises(UserError, match=r"^--output: expected one of logits, probabilities, got 'scores'"):
        as_declared(None, "scores")


def test_metadata_of_others_and_an_empty_one_say_nothing() -> None:
    assert contract(metadata={}).metadata is None
    assert read_metadata("x.onnx", {"author": "me", "classes": "no"}) is None


DAMAGED: dict[str, Any] = {
    "no text": "",
    "not JSON": "{classes: a}",
    "cut": json.dumps(OURS)[:-3],
    "a list": [],
    "a number": 3,
    "null": "null",
    "deep": "[" * 100_000,
    "no input": {k: v for k, v in OURS.items() if k != "input"},
    "no output": {k: v for k, v in OURS.items() if k != "output"},
    "no classes": {k: v for k, v in OURS.items() if k != "classes"},
    "no layout": ours(input={}),
    "no kind": ours(output={}),
    "input of another type": ours(input=["layout"]),
    "null input": ours(input=None),
    "output of another type": ours(output="logits"),
    "another layout": ours(input={"layout": "uint8-chwn"}),
    "layout of another type": ours(input={"layout": ["uint8-nchw"]}),
    "another output": ours(output={"kind": "distances"}),
    "null classes": ours(classes=None),
    "classes in one string": ours(classes="abc"),
    "classes as an object": ours(classes={"a": 0, "b": 1, "c": 2}),
    "classes that are numbers": ours(classes=[0, 1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_metadata(damage: str) -> None:
    with pytest.raises(UserError, match=r"^x\.onnx .*damaged.*newer.*'ncfmkit' metadata: "):
        contract(metadata=DAMAGED[damage])


def test_metadata_of_earlier_versions_and_of_newer_ones_are_kept() -> None:
    """What the first version wrote, and keys that are not known here."""
    first = ours(
        kind="exported student",
        tool="ncfmkit 0.1.0",
        student={"sha256": "0", "network": {"name": "convnet", "width": 8, "depth": None}, "test_accuracy": None},
        trained_on={"name": "x", "manifest_sha256": None},
        int8={},
    )
    newer = first | {"later": {"x": [1, None]}, "input": {"layout": "uint8-nchw", "resize": "crop"}}
    for said in (first, newer):
        found = contract(metadata=said).metadata
        assert found is not None
        assert found.to_dict() == said


def test_metadata_that_are_too_large_are_not_parsed() -> None:
    with pytest.raises(
        UserError, match=r"^x\.onnx: expected 'ncfmkit' metadata of at most 4,194,304 .* got 4,194,305$"
    ):
        contract(metadata=" " * (LARGEST_METADATA + 1))


def test_a_message_on_metadata_is_short() -> None:
    wrong = ours(versions={f"{k}": k for k in range(200_000)}, classes=[0] * 100_000)
    with little_memory(120 << 20), pytest.raises(UserError, match="metadata: ") as caught:
        contract(metadata=wrong)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (("N", 3, 2365, 2365), r"takes images of 3x2365x2365, expected 16,777,216 values at most"),
        (("N", 1, 10**12, 10**12), r"takes images of 1x10+x10+, expected"),
        (("N" * 10_000, 2, 8, 8), r"expected square images.*\[N{20}, 2, 8, 8\]$"),
    ],
)
def test_images_that_would_not_fit_in_memory(shape: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        contract(shape)


def test_classes_that_would_not_fit_in_memory() -> None:
    with pytest.raises(UserError, match=r"expected an output of float scores \[N, classes\], 1,048,576 at most, got"):
        contract(scores=("N", 2**20 + 1))


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a", "b", "c", "d"]])
def test_another_number_of_names_than_of_scores(names: list[str]) -> None:
    says = rf"^x\.onnx is damaged: its metadata names {len(names)} classes, its output has 3$"
    with pytest.raises(UserError, match=says):
        contract(metadata=ours(classes=names))


def test_a_layout_that_the_graph_does_not_have() -> None:
    with pytest.raises(
        UserError, match=r"^x\.onnx: expected .* uint8 \[N, H, W, C\].* 'images' tensor\(uint8\) \[N, 3, 8, 8\]"
    ):
        contract(metadata=ours(input={"layout": "uint8-nhwc"}))
