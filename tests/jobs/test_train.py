"""One student to keep, and its file against damage."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import evaluation_settings, set_bytes

from ncfmkit.errors import Interrupted, UserError
from ncfmkit.jobs import setup
from ncfmkit.jobs import train as train_job
from ncfmkit.jobs.train import Checkpoint, train_real
from ncfmkit.real.opening import open_real
from ncfmkit.real.store import RealData
from ncfmkit.run import read_checkpoint
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import student_file
from ncfmkit.scoring.student_manifest import StudentManifest
from ncfmkit.sets import set_file

pytestmark = pytest.mark.usefixtures("one_cache")


def test_a_student_reloads_with_its_accuracy(scored: Path, student: tuple[Path, StudentManifest]) -> None:
    path, manifest = student
    network, stored = student_file.load(path)
    source = set_file.load(scored / set_file.FILE_NAME).manifest.source
    assert (stored.trained_on.source, stored.trained_on.license) == (source.name, source.license)
    assert {k: v for k, v in stored.to_dict().items() if k != "sha256"} == manifest.to_dict()
    assert not network.training
    real = open_real("digits", dataclasses.replace(setup.make_settings("digits", None, {}).data))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (stored.mean, stored.std))
    test = real.test_split()
    x = (torch.from_numpy(np.array(test.images)).float() / 255 - mean) / std
    with torch.no_grad():
        right = network(x).argmax(1) == torch.from_numpy(test.labels)
    assert right.double().mean().item() == pytest.approx(stored.test_accuracy, abs=1e-9)
    assert stored.test_accuracy is not None
    assert stored.test_accuracy > 0.15


def test_a_student_is_not_overwritten(scored: Path, student: tuple[Path, StudentManifest], runtime: Runtime) -> None:
    before = student[0].read_bytes()
    result = set_file.load(scored)
    with pytest.raises(UserError, match="already exists: pass --force"):
        train_real(result, None, evaluation_settings(result), runtime, out=student[0])
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        train_real(result, None, evaluation_settings(result), runtime, out=scored / "nowhere" / "s.safetensors")
    assert student[0].read_bytes() == before


def at_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, event: Callable[[], Any]) -> list[int]:
    """Lets something happen in that epoch, from 1; the epochs that were trained are in the list returned."""
    original, trained = Checkpoint.after_epoch, []

    def spy(self: Checkpoint, done: int, state: Callable[[], dict[str, Any]]) -> None:
        trained.append(done)
        if done == epoch:
            event()
        original(self, done, state)

    monkeypatch.setattr(Checkpoint, "after_epoch", spy)
    return trained


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


HOW: dict[str, Any] = {
    "student.epochs": 6,
    "student.milestones": "0.5",
    "student.augment": "flip_crop",
    "student.batch": 64,
}


def train_some(scored: Path, runtime: Runtime, out: Path, real: RealData | None = None, **changes: Any) -> bytes:
    """Six epochs with a milestone, momentum and augmentation; the bytes of the student."""
    result = set_file.load(scored)
    train_real(result, real, evaluation_settings(result, **HOW | changes), runtime, out=out)
    return out.read_bytes()


def test_other_data_are_said(
    scored: Path, runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = open_real("digits", setup.make_settings("digits", None, {}).data)
    train_some(scored, runtime, tmp_path / "a.safetensors", real, **{"student.epochs": 1})
    assert "differs from the data" not in capsys.readouterr().err
    train_some(
        scored,
        runtime,
        tmp_path / "b.safetensors",
        dataclasses.replace(real, fingerprint="0" * 64),
        **{"student.epochs": 1},
    )
    assert "digits differs from the data that the set was made from" in capsys.readouterr().err.replace("\n", " ")


def test_a_student_is_tested_as_it_normalizes(scored: Path, runtime: Runtime, tmp_path: Path) -> None:
    """On other data than those of the set: with the normalization of the set, which is in the file."""
    digits, out = open_real("digits", setup.make_settings("digits", None, {}).data), tmp_path / "s.safetensors"
    other = dataclasses.replace(digits, mean=(0.9,), std=(0.05,), fingerprint="other")
    train_some(scored, runtime, out, other, **{"student.epochs": 20})
    trained, stored = student_file.load(out)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (stored.mean, stored.std))
    test = other.test_split()
    with torch.no_grad():
        right = trained((torch.from_numpy(np.array(test.images)).float() / 255 - mean) / std).argmax(1)
    assert stored.test_accuracy == pytest.approx((right == torch.from_numpy(test.labels)).double().mean().item())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("epoch", [1, 4, 6])
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, epoch: int
) -> None:
    out, kept = tmp_path / "s.safetensors", tmp_path / "s.safetensors.checkpoint"
    how: dict[str, Any] = {"student.optimizer": optimizer}
    with monkeypatch.context() as patch:
        at_epoch(patch, epoch, ctrl_c)
        says = rf"interrupted: {kept} holds {epoch} of 6 epochs: run the same command to continue$"
        with pytest.raises(Interrupted, match=says):
            train_some(scored, runtime, out, **how)
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]
    trained = at_epoch(monkeypatch, 0, ctrl_c)
    content = train_some(scored, runtime, out, **how)
    assert trained == list(range(epoch + 1, 7))
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert content == train_some(scored, runtime, tmp_path / "whole.safetensors", **how)


def test_a_crash_loses_what_came_after_the_last_checkpoint(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_job, "CHECKPOINT_SECONDS", 0)
    out = tmp_path / "s.safetensors"
    with monkeypatch.context() as patch:
        at_epoch(patch, 4, lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            train_some(scored, runtime, out)
    stored = read_checkpoint(tmp_path / "s.safetensors.checkpoint")
    assert stored is not None
    assert stored["epoch"] == 3
    assert train_some(scored, runtime, out) == train_some(scored, runtime, tmp_path / "whole.safetensors")


def test_checkpoints_are_not_written_at_every_epoch(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(train_job, "write_checkpoint", lambda path, state: written.append(state["epoch"]))
    train_some(scored, runtime, tmp_path / "s.safetensors")
    assert written == [6]


def test_a_dry_run_counts_the_epochs_that_are_left(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.safetensors"
    with monkeypatch.context() as patch:
        at_epoch(patch, 4, ctrl_c)
        with pytest.raises(Interrupted):
            train_some(scored, runtime, out)
    how = HOW | {"student.repeats": 1, "runtime.device": "cpu", "runtime.compile": "off"}
    (stage,) = train_job.dry_run(scored, out=out, **how)
    assert stage.work == "2 epochs"
    with pytest.raises(UserError, match="is of another training"):
        train_job.dry_run(scored, out=out, **how | {"seed": 5})
    (stage,) = train_job.dry_run(scored, out=out, force=True, **how | {"seed": 5})
    assert stage.work == "6 epochs"


def test_the_checkpoint_of_another_training(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "s.safetensors", tmp_path / "s.safetensors.checkpoint"
    with monkeypatch.context() as patch:
        at_epoch(patch, 3, ctrl_c)
        with pytest.raises(Interrupted):
            train_some(scored, runtime, out)
    before = kept.read_bytes()
    with pytest.raises(UserError, match=rf"{kept} is of another training.*pass --force to train from the start"):
        train_some(scored, runtime, out, seed=5)
    assert kept.read_bytes() == before
    result = set_file.load(scored)
    train_real(result, None, evaluation_settings(result), runtime, out=out, force=True)
    assert "continuing" not in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_damaged_checkpoint_is_noticed(
    scored: Path, runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "s.safetensors", tmp_path / "s.safetensors.checkpoint"
    kept.write_bytes(b"damage" * 20)
    content = train_some(scored, runtime, out)
    assert f"{kept} is damaged" in " ".join(capsys.readouterr().err.split())
    assert content == train_some(scored, runtime, tmp_path / "whole.safetensors")


def test_force_replaces_a_student_once_the_new_one_is_trained(
    scored: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.safetensors"
    before = train_some(scored, runtime, out)
    result = set_file.load(scored)
    with monkeypatch.context() as patch:
        at_epoch(patch, 1, ctrl_c)
        with pytest.raises(Interrupted):
            train_real(result, None, evaluation_settings(result), runtime, out=out, force=True)
    assert out.read_bytes() == before
    train_real(result, None, evaluation_settings(result), runtime, out=out, force=True)  # goes on
    after = out.read_bytes()
    train_real(result, None, evaluation_settings(result), runtime, out=tmp_path / "whole.safetensors")
    assert after == (tmp_path / "whole.safetensors").read_bytes() != before


def test_a_damaged_student_is_refused(tmp_path: Path, student: tuple[Path, StudentManifest]) -> None:
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
    tmp_path: Path, scored: Path, student: tuple[Path, StudentManifest], which: str
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


def test_a_set_is_not_a_student(scored: Path, student: tuple[Path, StudentManifest]) -> None:
    with pytest.raises(UserError, match="is not a student: it holds a synthetic set"):
        student_file.load(scored / set_file.FILE_NAME)
    with pytest.raises(UserError, match="holds a student, not a synthetic set"):
        set_file.load(student[0])
