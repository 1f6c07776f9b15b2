"""Students as exporters take them: described as a model is, and what is none."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from exports import write_any_student

from ncfmkit.errors import UserError
from ncfmkit.exporters.student import load_student
from ncfmkit.scoring import student_file


def test_a_student_is_described_as_a_model_is(student_path: Path) -> None:
    student = load_student(student_path)
    contract = student.contract(layout="uint8-nhwc", output="probabilities")
    assert (contract.input_name, contract.layout, contract.image_shape) == ("images", "uint8-nhwc", (3, 8, 8))
    assert (contract.output_name, contract.output) == ("probabilities", "probabilities")
    assert (contract.classes, contract.class_count) == (("class 0", "class 1", "class 2"), 3)
    assert student.sha256() == hashlib.sha256(student_path.read_bytes()).hexdigest()
    assert not student.network.training


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no student at"), (b"", "safetensors"), (b"PK" * 99, "safetensors")]
)
def test_what_is_not_a_student(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    result = call("export", path)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


CHANGES: dict[str, tuple[tuple[str, ...], Any]] = {
    "no mean": (("mean",), None),
    "a mean for other channels": (("mean",), [0.5]),
    "a mean of text": (("mean",), "abc"),
    "a negative std": (("std",), [0.2, -0.1, 0.2]),
    "an infinite std": (("std",), [0.2, float("inf"), 0.2]),
    "numbers for names": (("classes",), [1, 2, 3]),
    "one class": (("classes",), ["a"]),
    "accuracy in words": (("test_accuracy",), "good"),
    "trained on a text": (("trained_on",), "cifar"),
    "no digests": (("trained_on", "sha256"), None),
    "a huge side": (("size",), 10**9),
    "a tool that is a list": (("tool",), []),
    "an unknown network": (("network", "name"), "nets"),
    "a network of another width": (("network", "width"), 9),
    "a huge width": (("network", "width"), 2**16),
    "a width beyond integers": (("network", "width"), 10**30),
    "a huge depth": (("network", "depth"), 10**9),
    "a negative depth": (("network", "depth"), -1),
    "no width": (("network", "width"), None),
    "half a character": (("tool",), "\ud800"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("command", ["export", "inspect"])
def test_damaged_students_are_refused(change: str, command: str, student_path: Path, tmp_path: Path) -> None:
    network, manifest = student_file.load(student_path)
    (*parents, key), value = CHANGES[change]
    metadata: Any = manifest.to_dict()
    place = metadata
    for parent in parents:
        place = place[parent]
    place[key] = value
    if value is None:
        del place[key]
    path = write_any_student(tmp_path / "s.safetensors", network.state_dict(), metadata)
    result = call(command, path)
    assert result.exit_code == 2, result.output
    assert "s.safetensors is damaged" in result.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["s.safetensors"]


@pytest.mark.parametrize("spoil", [lambda t: t.half(), lambda t: t.to(torch.int64), lambda t: t / 0])
def test_parameters_must_be_finite_float32(spoil: Callable, student_path: Path, tmp_path: Path) -> None:
    network, manifest = student_file.load(student_path)
    path = tmp_path / "s.safetensors"
    student_file.save({k: spoil(v) for k, v in network.state_dict().items()}, manifest, path)
    with pytest.raises(UserError, match="expected finite float32 parameters"):
        student_file.load(path)
