"""Who watches a run: a callback for each logged step, and TensorBoard."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from small_runs import TINY, set_bytes, steps_logged

import ncfmkit
from ncfmkit.distillation import loop
from ncfmkit.reports.contact_sheet import contact_sheet
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import MetricsRow

HOW: dict[str, Any] = TINY | {"student.repeats": 0}  # 12 steps, a checkpoint every 4


def test_a_callback_gets_the_rows_of_the_metrics(tmp_path: Path) -> None:
    rows: list[MetricsRow] = []
    ncfmkit.distill("digits", out=tmp_path / "run", callback=rows.append, **HOW)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.to_dict() for row in rows] == logged
    assert [row.step for row in rows] == list(range(1, 13))
    assert logged[0].keys() == {"step", "matching", "calibration", "lr", "seconds"}


def test_a_callback_that_raises_stops_the_run_with_its_state_saved(tmp_path: Path) -> None:
    def stop(row: MetricsRow) -> None:
        if row.step == 6:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough") as stopped:
        ncfmkit.distill("digits", out=tmp_path / "run", callback=stop, **HOW)
    (note,) = stopped.value.__notes__
    go_on = f"continue with ncfmkit.resume({str(tmp_path / 'run')!r})"
    assert note == f"raised by the callback after step 6 of 12; the state is saved: {go_on}"
    assert (tmp_path / "run" / "checkpoint" / "step-00000006.pt").is_file()
    rows: list[MetricsRow] = []
    result = ncfmkit.resume(tmp_path / "run", callback=rows.append)
    assert [row.step for row in rows] == list(range(7, 13))
    assert result.run_dir == tmp_path / "run"
    ncfmkit.distill("digits", out=tmp_path / "whole", **HOW)
    assert set_bytes(tmp_path / "run") == set_bytes(tmp_path / "whole")


@pytest.mark.parametrize(("stops", "looks"), [(6, 2), (12, 1)])
def test_a_resumed_run_finds_the_easiest_images_again_if_steps_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: int, looks: int
) -> None:
    def stop(row: MetricsRow) -> None:
        if row.step == stops:
            raise LookupError("enough")

    how = HOW | {"distill.easiest": 0.5}
    ncfmkit.distill("digits", out=tmp_path / "whole", **how)
    look = Mock(wraps=loop.easiest_images)
    monkeypatch.setattr(loop, "easiest_images", look)
    with pytest.raises(LookupError, match="enough"):
        ncfmkit.distill("digits", out=tmp_path / "run", callback=stop, **how)
    ncfmkit.resume(tmp_path / "run")
    assert look.call_count == looks
    assert set_bytes(tmp_path / "run") == set_bytes(tmp_path / "whole")


class FakeWriter:
    """In the place of `SummaryWriter`: remembers what it was given."""

    made: list["FakeWriter"]

    def __init__(self, folder: str, purge_step: int | None = None):
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.images: dict[int, np.ndarray] = {}
        self.open = True
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert (tag, dataformats) == ("synthetic images", "HWC")
        self.images[step] = image

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.open = False


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    monkeypatch.setattr(FakeWriter, "made", [], raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FakeWriter))
    monkeypatch.setattr("ncfmkit.reports.event_log.require_tensorboard", lambda: None)
    monkeypatch.setattr("ncfmkit.jobs.distill.require_tensorboard", lambda: None)
    return FakeWriter.made


def cut_off_after(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    """A run whose process ends in step `step`: what it logged is there, its state is the last checkpoint's."""
    original = RunDirectory.append_metrics

    def cut(self: RunDirectory, row: MetricsRow) -> None:
        if row.step > step:
            raise SystemError("power cut")
        original(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", cut)
        with pytest.raises(SystemError, match="power cut"):
            ncfmkit.distill("digits", out=folder, **HOW, **how)


def test_tensorboard_shows_losses_lr_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[FakeWriter]
) -> None:
    cut_off_after(6, tmp_path / "run", monkeypatch, log="tensorboard")
    result = ncfmkit.resume(tmp_path / "run")
    first, second = writers
    assert [writer.folder for writer in writers] == [str(tmp_path / "run")] * 2
    assert (first.purge_step, second.purge_step) == (None, 5)  # the run goes on from its checkpoint after step 4
    assert not first.open
    assert not second.open
    assert {step for _, _, step in first.scalars} == set(range(1, 7))
    rows = RunDirectory.open(tmp_path / "run").metrics()[4:]
    names = {"loss/matching": "matching", "loss/calibration": "calibration", "lr": "lr"}
    assert second.scalars == [(tag, getattr(row, key), row.step) for row in rows for tag, key in names.items()]
    assert list(first.images) == [4]
    assert list(second.images) == [8, 12]
    sheet = contact_sheet(result.set.images.numpy(), result.set.labels.numpy(), result.set.classes).convert("RGB")
    np.testing.assert_array_equal(second.images[12], np.array(sheet))


def test_without_a_calibration_loss_none_is_logged(tmp_path: Path, writers: list[FakeWriter]) -> None:
    how = HOW | {"distill.calibration_weight": 0}
    ncfmkit.distill("digits", out=tmp_path / "run", log="tensorboard", **how)
    assert {tag for tag, _, _ in writers[0].scalars} == {"loss/matching", "lr"}


def test_a_log_changes_nothing_in_the_set(tmp_path: Path, writers: list[FakeWriter]) -> None:
    ncfmkit.distill("digits", out=tmp_path / "logged", log="tensorboard", **HOW)
    ncfmkit.distill("digits", out=tmp_path / "plain", **HOW)
    assert set_bytes(tmp_path / "logged") == set_bytes(tmp_path / "plain")
    assert len(writers) == 1


def test_without_the_package_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[FakeWriter]
) -> None:
    cut_off_after(6, tmp_path / "begun", monkeypatch, log="tensorboard")
    monkeypatch.undo()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(ncfmkit.UserError, match="--log tensorboard needs the package tensorboard: pip install"):
        ncfmkit.distill("digits", out=tmp_path / "run", log="tensorboard", **HOW)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ncfmkit.UserError, match="--log tensorboard needs the package tensorboard"):
        ncfmkit.resume(tmp_path / "begun")
    assert steps_logged(tmp_path / "begun")[-1] == 6


@pytest.mark.filterwarnings("ignore")  # inside tensorboard
def test_event_files_hold_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_off_after(6, tmp_path / "run", monkeypatch, log="tensorboard")
    ncfmkit.resume(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0, "images": 0}).Reload()
    rows = RunDirectory.open(tmp_path / "run").metrics()
    for tag, key in (("loss/matching", "matching"), ("loss/calibration", "calibration"), ("lr", "lr")):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == list(range(1, 13))
        assert [scalar.value for scalar in scalars] == pytest.approx([getattr(row, key) for row in rows])
    assert [image.step for image in events.Images("synthetic images")] == [4, 8, 12]
