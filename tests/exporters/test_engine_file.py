"""The sidecar of an engine: what it guards against, before TensorRT gets to see the engine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import ModelInput, ModelMetadata, ModelOutput, Port
from ncfmkit.exporters.engine_file import Machine, Sidecar, read_engine, sidecar_path, write_engine

HERE = Machine(tensorrt="10.13.3.9", gpu="NVIDIA Fake", compute_capability="8.9")
AGAIN = r"\. .*not portable: .*\(ncfmkit export STUDENT --to tensorrt\)"


@pytest.fixture
def engine_path(tmp_path: Path) -> Path:
    path, engine = tmp_path / "student.engine", b"an engine"
    sidecar = Sidecar(
        format=1,
        ncfmkit=ModelMetadata(
            input=ModelInput(layout="uint8-nchw"), output=ModelOutput(kind="logits"), classes=("a", "b", "c")
        ),
        input=Port(name="images", type="tensor(uint8)", shape=("batch", 3, 8, 8)),
        output=Port(name="logits", type="tensor(float)", shape=("batch", 3)),
        built_for=HERE,
        sha256=hashlib.sha256(engine).hexdigest(),
        seconds=1.5,
        versions={"torch": "2.13.0"},
    )
    write_engine(path, engine, sidecar)
    return path


def refused(engine_path: Path, why: str, here: Machine = HERE) -> None:
    with pytest.raises(UserError, match=rf"student\.engine cannot be used: .*{why}.*{AGAIN}"):
        read_engine(engine_path, here)


def test_reads_what_was_written(engine_path: Path) -> None:
    engine, contract = read_engine(engine_path, HERE)
    assert engine == b"an engine"
    assert (contract.input_name, contract.image_shape, contract.output_name) == ("images", (3, 8, 8), "logits")
    assert (contract.classes, contract.class_count) == (("a", "b", "c"), 3)


def test_refuses_an_engine_without_sidecar(engine_path: Path) -> None:
    sidecar_path(engine_path).unlink()
    refused(engine_path, "its sidecar student.engine.json is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2}'])
def test_refuses_a_sidecar_that_is_none(engine_path: Path, content: bytes) -> None:
    sidecar_path(engine_path).write_bytes(content)
    refused(engine_path, r"student\.engine\.json is damaged, or of another ncfmkit")


@pytest.mark.parametrize(
    "change",
    [
        lambda sidecar: sidecar.pop("sha256"),
        lambda sidecar: sidecar.pop("built_for"),
        lambda sidecar: sidecar.pop("ncfmkit"),
        lambda sidecar: sidecar.update(format=2),
        lambda sidecar: sidecar["built_for"].update(tensorrt=None),
        lambda sidecar: sidecar["ncfmkit"]["classes"].pop(),
        lambda sidecar: sidecar["input"].update(shape=3),
        lambda sidecar: sidecar["output"].update(shape=["batch"]),
    ],
)
def test_refuses_a_damaged_sidecar(engine_path: Path, change: Callable[[Any], Any]) -> None:
    sidecar = json.loads(sidecar_path(engine_path).read_text())
    change(sidecar)
    sidecar_path(engine_path).write_text(json.dumps(sidecar))
    refused(engine_path, r"student\.engine\.json is damaged, or of another ncfmkit")


def test_refuses_another_engine(engine_path: Path) -> None:
    engine_path.write_bytes(b"an angine")
    refused(engine_path, r"student\.engine\.json .*sha256 differs")


@pytest.mark.parametrize(
    ("key", "value"), [("tensorrt", "10.14.1.48"), ("gpu", "NVIDIA Other"), ("compute_capability", "9.0")]
)
def test_refuses_an_engine_of_another_machine(engine_path: Path, key: str, value: str) -> None:
    here = HERE.model_copy(update={key: value})
    built_for = r"TensorRT 10\.13\.3\.9 and NVIDIA Fake \(compute capability 8\.9\)"
    refused(engine_path, rf"it was built for {built_for}, here is TensorRT .*{value}", here)
