"""The file of a student: earlier and later versions, and memory that no manifest can make large."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import little_memory, write_any_student

from ncfmkit.errors import UserError
from ncfmkit.scoring import student_file

MIB = 1 << 20


@pytest.fixture
def state(student_path: Path) -> dict[str, torch.Tensor]:
    return student_file.load(student_path)[0].state_dict()


@pytest.fixture
def manifest(student_path: Path) -> dict[str, Any]:
    """As JSON."""
    content: dict[str, Any] = student_file.load(student_path)[1].to_dict()
    return content


def test_it_is_written_again_byte_by_byte(student_path: Path, tmp_path: Path) -> None:
    network, found = student_file.load(student_path)
    student_file.save(network.state_dict(), found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == student_path.read_bytes()


def test_loading_draws_no_random_numbers(student_path: Path) -> None:
    before = torch.get_rng_state()
    student_file.load(student_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_files_of_the_first_version_and_of_newer_ones_load(
    state: dict[str, torch.Tensor], manifest: dict[str, Any], tmp_path: Path
) -> None:
    """The first had no digest of the set's manifest; what is not known here is kept."""
    first = {key: manifest[key] for key in manifest if key != "training"}
    first["trained_on"] = {"name": "x", "sha256": {}}
    newer = manifest | {"later": [1, {"x": None}], "network": manifest["network"] | {"norm": "batch"}}
    for content in (first, newer):
        network, found = student_file.load(write_any_student(tmp_path / "s.safetensors", state, content))
        assert found.to_dict() == content
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


CLAIMS: dict[str, dict[str, Any]] = {
    "wide": {"network": {"name": "convnet", "width": 2**16, "depth": 2}},
    "deep": {"network": {"name": "convnet", "width": 8, "depth": 14}, "size": 16384},
    "a large classifier": {"network": {"name": "convnet", "width": 2**16, "depth": 1}, "size": 16384},
    "many classes": {"classes": [str(k) for k in range(300_000)]},
    "another network": {"network": {"name": "densenet121", "width": 128, "depth": None}, "size": 16384},
    "deeply nested": {"later": json.loads("[" * 150 + "]" * 150)},
    "means of many channels": {"mean": [0.5] * 500_000},
    "wrong in many places": {"classes": [0] * 200_000, "sha256": {str(k): k for k in range(120_000)}},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_manifest_cannot_make_it_large(
    claim: str, state: dict[str, torch.Tensor], manifest: dict[str, Any], tmp_path: Path
) -> None:
    path = write_any_student(tmp_path / "s.safetensors", state, manifest | CLAIMS[claim])
    with little_memory(150 * MIB):
        if claim == "deeply nested":
            student_file.load(path)
            return
        with pytest.raises(UserError, match=r"s\.safetensors is damaged: ") as caught:
            student_file.load(path)
    assert len(str(caught.value)) < 3000


def test_a_header_cannot_make_it_large(student_path: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "s.safetensors", student_path.read_bytes()
    for length in (student_file.LARGEST_HEADER + 1, 99_000_000, 2**63):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        with little_memory(20 * MIB), pytest.raises(UserError, match=r"not a readable safetensors file: its header of"):
            student_file.load(path)


def test_tensors_cannot_be_many(manifest: dict[str, Any], tmp_path: Path) -> None:
    state = {f"t{k}": torch.zeros(0) for k in range(student_file.MOST_PARAMETERS + 1)}
    header = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in state}
    text = json.dumps(header | {"__metadata__": {"ncfmkit": json.dumps(manifest)}}).encode()
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with little_memory(50 * MIB), pytest.raises(UserError, match="is not a student: 10,001 tensors, expected 10,000"):
        student_file.load(path)


def test_a_tensor_cannot_be_larger_than_the_file(student_path: Path, tmp_path: Path) -> None:
    content = student_path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"], entry["data_offsets"] = [2**40], [0, 2**42]
            break
    text = json.dumps(header).encode()
    path = tmp_path / "s.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with little_memory(20 * MIB), pytest.raises(UserError, match="not a readable safetensors file"):
        student_file.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": {"name": "convnet", "width": 9, "depth": 2}}, r"expected \(9,.*\), got \(8,"),
        ({"network": {"name": "convnet", "width": 8, "depth": 3}}, r"expected \(.*\), got"),
        ({"network": {"name": "nets", "width": 8, "depth": 2}}, "unknown network 'nets'"),
        ({"mean": [0.5]}, "expected mean and std of 3 channels"),
        ({"std": [0.1, float("nan"), 0.1]}, "std"),
        ({"classes": ["a"]}, "classes: tuple should have at least 2 items"),
        ({"test_accuracy": 97}, "test_accuracy: input should be less than or equal to 1, got 97"),
        ({"kind": ["x"]}, "kind: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_said(
    change: dict[str, Any], says: str, state: dict[str, torch.Tensor], manifest: dict[str, Any], tmp_path: Path
) -> None:
    path = write_any_student(tmp_path / "s.safetensors", state, manifest | change)
    with pytest.raises(UserError, match=rf"(?s)s\.safetensors is damaged: .*{says}"):
        student_file.load(path)


def test_a_long_name_makes_no_long_message(
    state: dict[str, torch.Tensor], manifest: dict[str, Any], tmp_path: Path
) -> None:
    content = manifest | {"network": manifest["network"] | {"name": "x" * 200_000}}
    with pytest.raises(UserError, match="is damaged") as caught:
        student_file.load(write_any_student(tmp_path / "s.safetensors", state, content))
    assert len(str(caught.value)) < 1000
