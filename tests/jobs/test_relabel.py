"""Soft labels of a run, and of a set that is there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set
from golden_sets import label_rows, restored_labels
from small_runs import evaluate_on, evaluation_settings, start

from ncfmkit.config import from_dict
from ncfmkit.errors import UserError
from ncfmkit.jobs import evaluate as evaluate_job
from ncfmkit.jobs import relabel as job
from ncfmkit.jobs.relabel import relabel
from ncfmkit.run import RunDirectory
from ncfmkit.scoring import students
from ncfmkit.sets import label_codes, numpy_reader, set_file

pytestmark = pytest.mark.usefixtures("one_cache")

GOOD: dict[str, Any] = {"pool__epochs": 12, "pool__batch": 32, "pool__lr": 0.05}  # extractors that can teach


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run with soft labels, which tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(shared_cache))
        out = tmp_path_factory.mktemp("runs") / "soft"
        return start(out, baselines=("random",), labels__soft=True, pool__snapshots=2, labels__stages=2, **GOOD)


def test_a_run_with_soft_labels(soft: Path) -> None:
    result = set_file.load(soft)
    assert result.soft_labels is not None
    assert result.soft_labels.dtype == torch.float16
    assert result.soft_labels.shape == (10, 10)
    assert (result.soft_labels.argmax(1) == result.labels).all()
    assert 0.2 < result.soft_labels.float().softmax(1).max(1).values.mean() < 0.999
    assert result.manifest.format == 2
    assert result.manifest.bytes["soft_labels"] == 200
    assert result.manifest.training.labels == {"soft": True, "temperature": 1.0, "stages": 2, "bits": 16, "top": 0}
    assert result.manifest.score is not None
    scores = RunDirectory.open(soft).scores()
    assert scores is not None
    assert [row.set for row in scores.rows] == ["distilled", "random", "random-soft"]
    assert scores.rows[1].last != scores.rows[2].last
    assert [row.steps for row in scores.rows] == [3, 3, 3]


def test_the_numpy_reader_has_the_soft_labels(soft: Path) -> None:
    stored = numpy_reader.read(soft / set_file.FILE_NAME)
    soft_labels = set_file.load(soft).soft_labels
    assert soft_labels is not None
    assert stored.soft_labels is not None
    assert np.array_equal(stored.soft_labels, soft_labels.numpy())


def test_hard_labels_leave_no_trace_in_the_training_record(scored: Path) -> None:
    manifest = set_file.load(scored).manifest
    assert manifest.training.labels == {}
    assert "labels" not in manifest.to_dict()["training"]


def test_hard_and_soft_again(soft: Path, tmp_path: Path) -> None:
    """The same extractors say the same of the same images."""
    result = set_file.load(soft)
    hard = relabel(soft, hard=True, out=tmp_path / "hard.safetensors")
    assert hard.taught is None
    assert hard.set.soft_labels is None
    assert (hard.set.manifest.score, hard.set.manifest.training.labels) == (None, {})
    settings: dict[str, Any] = {"labels.stages": 2, "pool.snapshots": 2}
    again = relabel(hard.file, data="digits", out=tmp_path / "soft.safetensors", **settings)
    assert again.taught is not None
    assert again.set.soft_labels is not None
    assert result.soft_labels is not None
    assert torch.equal(again.set.soft_labels, result.soft_labels)
    assert again.set.manifest.training == result.manifest.training
    assert set_file.load(again.file).manifest == again.set.manifest
    assert torch.equal(again.set.images, result.images)
    warm = relabel(hard.file, data="digits", out=tmp_path / "warm.safetensors", temperature=4.0)
    assert warm.taught is not None
    assert warm.taught.certainty < again.taught.certainty
    assert set_file.load(warm.file).manifest.training.labels["temperature"] == 4.0


@pytest.mark.parametrize(("bits", "top", "row"), [(8, 0, 10), (4, 0, 5), (4, 3, 5)])
def test_soft_labels_in_fewer_bits(soft: Path, tmp_path: Path, bits: int, top: int, row: int) -> None:
    """The codes of the logits that float16 has; what is written is what is given, also without them again."""
    whole, out = set_file.load(soft), tmp_path / "few.safetensors"
    asked: dict[str, Any] = {"labels.bits": bits, "labels.top": top}
    few = relabel(soft, data="digits", out=out, **asked)
    assert whole.soft_labels is not None
    assert few.set.soft_labels is not None
    expected = label_rows(whole.soft_labels.numpy(), bits, top)
    assert np.array_equal(few.set.soft_labels.numpy(), restored_labels(expected, 10, bits, top))
    again = set_file.load(out)
    assert again.soft_labels is not None
    assert torch.equal(again.soft_labels, few.set.soft_labels)
    m = again.manifest
    assert (m.format, m.bytes["soft_labels"]) == (3, 10 * row)
    assert m.labels is not None
    assert m.labels.to_dict() == {"bits": bits, "top": top}
    assert (m.training.labels["bits"], m.training.labels["top"]) == (bits, top)

    asked = {"labels.bits": 16, "labels.top": 0}
    wide = relabel(out, data="digits", out=tmp_path / "wide.safetensors", **asked)
    assert wide.set.soft_labels is not None
    assert torch.equal(wide.set.soft_labels, whole.soft_labels)
    assert (wide.set.manifest.format, wide.set.manifest.labels) == (2, None)
    assert relabel(out, hard=True, out=tmp_path / "hard.safetensors").set.manifest.format == 1


def test_random_images_have_soft_labels_in_as_many_bits(soft: Path, tmp_path: Path) -> None:
    """And their bytes are counted so."""
    out = tmp_path / "few.safetensors"
    asked: dict[str, Any] = {"labels.bits": 4, "labels.top": 1}
    few = relabel(soft, data="digits", out=out, **asked).set
    settings = evaluation_settings(few, **{"student.epochs": 2, "student.repeats": 1})
    seen: list[torch.Tensor] = []
    score = students.score

    def watched(images: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(images(0).soft_labels)
        return score(images, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students, "score", watched)
        scores = evaluate_on("digits", few, settings, baselines=("random-soft", "mosaic"))
    assert [row.bytes_per_class for row in scores.rows] == [64 + 2, 64 + 2, 64]
    for labels in seen[:2]:
        assert np.array_equal(label_codes.rounded(labels.numpy(), 4, 1), labels.numpy())


def test_the_score_of_a_set_with_soft_labels(soft: Path) -> None:
    result = set_file.load(soft)
    settings = evaluation_settings(result, **{"student.epochs": 3, "student.repeats": 1})
    scores = evaluate_on("digits", result, settings, baselines=("random-soft",))
    stored = RunDirectory.open(soft).scores()
    assert stored is not None
    for row, then in zip(scores.rows, (stored.rows[0], stored.rows[2]), strict=True):
        assert dict(row) | {"seconds": 0} == dict(then) | {"seconds": 0}


def test_random_images_have_the_sets_own_teachers(soft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever seed or pool students and baselines are asked for with: the set's labels are theirs, too."""
    opened: list[tuple[int, int]] = []
    original = evaluate_job.open_teachers

    def seen(real: Any, settings: Any, *rest: Any) -> Any:
        opened.append((settings.seed, settings.pool.epochs))
        return original(real, settings, *rest)

    monkeypatch.setattr(evaluate_job, "open_teachers", seen)
    result = set_file.load(soft)
    settings = evaluation_settings(result, **{"seed": 5, "pool.epochs": 4, "student.epochs": 1})
    evaluate_on("digits", result, settings, baselines=("random-soft",))
    assert opened == [(0, GOOD["pool__epochs"])]


def test_the_seed_of_the_teachers_is_recorded(soft: Path, tmp_path: Path) -> None:
    """By it they are found again."""
    again = relabel(soft, data="digits", out=tmp_path / "again.safetensors", seed=5)
    assert set_file.load(again.file).manifest.training.settings().seed == 5
    assert set_file.load(soft).manifest.training.settings().seed == 0


def test_soft_labels_of_random_images_need_teachers(scored: Path) -> None:
    result = set_file.load(scored)
    with pytest.raises(UserError, match=r"random-soft needs a set with soft labels .*this one has hard labels"):
        evaluate_on("digits", result, evaluation_settings(result), baselines=("random-soft",))
    released = build_set("single", 2, ipc=1, channels=1, size=8, soft=True)
    with pytest.raises(UserError, match="this one has soft labels of unknown teachers"):
        evaluate_on("digits", released, evaluation_settings(released), baselines=("random-soft",))


def test_a_run_without_soft_labels_has_no_such_baseline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--baselines random-soft needs --soft-labels"):
        start(tmp_path / "run", baselines=("random-soft",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, r"soft labels need --data"),
        ({"hard": True, "data": "digits"}, r"--hard takes soft labels away: leave out --data"),
        ({"hard": True, "temperature": 2.0}, r"--hard takes soft labels away: leave out --data"),
        ({"hard": True}, r"has hard labels already"),
        ({"data": "digits", "labels.stages": 2}, r"--teacher-stages \(labels\.stages\) 2: expected at most 1, the"),
        ({"data": "digits", "pool.networks": "convnetbn"}, r"convnetbn cannot be an extractor.*--extractors convnet"),
        ({"data": "digits", "label_bits": 7}, r"unknown setting"),
        ({"data": "digits", "labels.bits": 12}, r"--label-bits \(labels\.bits\) 12: expected 16, 8 or 4"),
        ({"data": "digits", "labels.top": 3}, r"--top \(labels\.top\) needs --label-bits \(labels\.bits\) 8 or 4"),
        (
            {"data": "digits", "labels.top": 10, "labels.bits": 4},
            r"--top 10: expected fewer than the 10 classes of digits",
        ),
        ({"data": "digits", "temperature": 0.0}, r"--temperature \(labels\.temperature\): expected more than 0"),
    ],
)
def test_bad_input_writes_nothing(scored: Path, tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=says):
        relabel(scored, out=out, **arguments)
    assert not out.exists()


def test_an_existing_file_is_kept(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"out\.safetensors already exists: pass --force"):
        relabel(scored, data="digits", out=out)
    assert out.read_bytes() == b"mine"


def test_a_dry_run_says_which_extractors_are_trained(scored: Path) -> None:
    stages = list(job.dry_run(scored, data="digits", **{"pool.members": 3}))
    assert [stage.work for stage in stages] == ["1 x 1 epoch"]
    assert list(job.dry_run(scored, data="digits")) == []


def test_other_data_are_said(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(job.dry_run(scored, data="digits"))
    assert "differs from the data" not in capsys.readouterr().err
    job.dry_run(scored, data="digits", **{"data.imbalance": 2})
    assert "digits differs from the data that the set was made from" in capsys.readouterr().err.replace("\n", " ")


def test_the_settings_of_a_run_with_soft_labels_are_read_again(soft: Path) -> None:
    settings = from_dict(RunDirectory.open(soft).info().settings)
    assert (settings.labels.soft, settings.labels.stages, settings.pool.snapshots) == (True, 2, 2)
