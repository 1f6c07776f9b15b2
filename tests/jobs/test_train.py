"""One student to keep, and its file against damage."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import evaluation_settings, set_bytes

from ncfmkit.errors import UserError
from ncfmkit.jobs import setup
from ncfmkit.jobs.train import train_real
from ncfmkit.real.opening import open_real
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import student_file
from ncfmkit.sets import set_file

pytestmark = pytest.mark.usefixtures("one_cache")


def test_a_student_reloads_with_its_accuracy(student: tuple[Path, dict[str, Any]]) -> None:
    path, metadata = student
    network, stored = student_file.load(path)
    assert {k: v for k, v in stored.items() if k != "sha256"} == metadata
    assert not network.training
    real = open_real("digits", dataclasses.replace(setup.make_settings("digits", None, {}).data))
    mean, std = (torch.tensor(stored[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    test = real.test_split()
    x = (torch.from_numpy(np.array(test.images)).float() / 255 - mean) / std
    with torch.no_grad():
        right = network(x).argmax(1) == torch.from_numpy(test.labels)
    assert right.double().mean().item() == pytest.approx(stored["test_accuracy"], abs=1e-9)
    assert stored["test_accuracy"] > 0.15


def test_a_student_is_not_overwritten(scored: Path, student: tuple[Path, dict[str, Any]], runtime: Runtime) -> None:
    before = student[0].read_bytes()
    result = set_file.load(scored)
    with pytest.raises(UserError, match="already exists: pass --force"):
        train_real(result, None, evaluation_settings(result), runtime, out=student[0])
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        train_real(result, None, evaluation_settings(result), runtime, out=scored / "nowhere" / "s.safetensors")
    assert student[0].read_bytes() == before


def test_a_damaged_student_is_refused(tmp_path: Path, student: tuple[Path, dict[str, Any]]) -> None:
    content = student[0].read_bytes()
    copy = tmp_path / "copy.safetensors"
    for cut in (0, 7, 100, len(content) // 2, len(content) - 1):
        copy.write_bytes(content[:cut])
        with pytest.raises(UserError, match="not a readable safetensors file"):
            student_file.load(copy)
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged: the sha256"):
        student_file.load(copy)
    with pytest.raises(UserError, match="no student at"):
        student_file.load(tmp_path / "nothing")


@pytest.mark.parametrize("which", ["set", "student"])
def test_no_flipped_byte_ends_in_anything_but_a_user_error(
    tmp_path: Path, scored: Path, student: tuple[Path, dict[str, Any]], which: str
) -> None:
    """Every third byte of the header, and some of the tensors: loaded, or refused with a message."""
    content = set_bytes(scored) if which == "set" else student[0].read_bytes()
    load = set_file.load if which == "set" else student_file.load
    copy = tmp_path / "copy.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for position in [*range(0, header, 3), *range(header, len(content), 40)]:
        copy.write_bytes(content[:position] + bytes([content[position] ^ 2]) + content[position + 1 :])
        try:
            load(copy)
        except UserError:
            refused += 1
            continue
        assert position < header  # a change of the tensors is always noticed
    assert refused


def test_a_set_is_not_a_student(scored: Path, student: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="is not a student: it holds a synthetic set"):
        student_file.load(scored / set_file.FILE_NAME)
    with pytest.raises(UserError, match="holds a student, not a synthetic set"):
        set_file.load(student[0])
