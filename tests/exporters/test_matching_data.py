"""Real data that do not fit a model or student: what is said, and with which flags that is mended."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import build_real
from exports import opened

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract
from ncfmkit.exporters.matching_data import open_fitting, open_images
from ncfmkit.real.store import RealData

CONTRACT = Contract(
    input_name="images",
    layout="uint8-nchw",
    channels=3,
    size=8,
    output_name="logits",
    output="logits",
    classes=("class 0", "class 1", "class 2"),
    class_count=3,
    metadata=None,
)


def message(real: RealData, contract: Contract = CONTRACT) -> str:
    with pytest.raises(UserError) as caught:
        open_fitting("m.onnx", contract, opened(real), Settings())
    return str(caught.value)


def test_data_that_fit_are_what_was_opened() -> None:
    real = build_real()
    nameless = dataclasses.replace(CONTRACT, classes=None)
    assert open_fitting("m.onnx", CONTRACT, opened(real), Settings()) is real
    assert open_fitting("m.onnx", nameless, opened(real), Settings()) is real


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"size": 16}, "--size 8 --resize crop"),
        ({"channels": 1}, "--color rgb"),
        ({"size": 16, "channels": 1}, "--size 8 --resize crop --color rgb"),
    ],
)
@pytest.mark.parametrize("opening", [open_fitting, open_images])
def test_other_images_are_mended_by_flags(opening: Any, changes: dict[str, Any], flags: str) -> None:
    real = build_real(**changes)
    color = "gray" if real.channels == 1 else "rgb"
    says = rf"^tiny has {real.size}x{real.size} {color} images, m\.onnx takes 8x8 rgb: pass {flags}, "
    with pytest.raises(UserError, match=says):
        opening("m.onnx", CONTRACT, opened(real), Settings())


@pytest.mark.parametrize(
    ("advice", "flags"),
    [
        ("--size 24 --resize crop", "--size 8 --resize crop --color rgb"),
        ("--size 24 --resize crop --holdout 0.1", "--size 8 --resize crop --color rgb --holdout 0.1"),
    ],
)
def test_the_advice_of_opening_is_made_to_fit_the_model(advice: str, flags: str) -> None:
    def refuse(settings: Settings) -> RealData:
        raise UserError(f"x.png is odd: pass {advice}")

    arguments: Any = SimpleNamespace(open=refuse)
    with pytest.raises(UserError, match=rf"^x\.png is odd: pass {flags}, since m\.onnx takes 8x8 rgb$"):
        open_fitting("m.onnx", CONTRACT, arguments, Settings())


def test_other_advice_of_opening_stays() -> None:
    def refuse(settings: Settings) -> RealData:
        raise UserError("no x: pass --data-root")

    arguments: Any = SimpleNamespace(open=refuse)
    with pytest.raises(UserError, match=r"^no x: pass --data-root$"):
        open_fitting("m.onnx", CONTRACT, arguments, Settings())


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("class 0", "class 2", "class 1"), r"another order: label 1 is 'class 2' .*'class 1'"),
        (("class 0", "x", "class 2"), r"only m\.onnx has 'x'; only tiny has 'class 1'$"),
        (("class 0", "class 1"), r"m\.onnx has 2 classes, tiny 3: only tiny has 'class 2'$"),
        (tuple("abcdef"), r"m\.onnx .*'a', 'b', 'c', 'd' .*2 more; .*tiny "),
    ],
)
def test_other_classes(classes: tuple[str, ...], says: str) -> None:
    contract = dataclasses.replace(CONTRACT, classes=classes, class_count=len(classes))
    assert re.search(says, message(build_real(), contract))


def test_another_number_of_classes_without_names() -> None:
    contract = dataclasses.replace(CONTRACT, classes=None, class_count=4)
    assert re.search(r"m\.onnx .*4 classes.* tiny has 3$", message(build_real(), contract))


def test_no_test_split() -> None:
    assert re.search("tiny has no test split .*--holdout", message(build_real(test_counts=None)))
