"""Scores of a set that is there."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from conftest import build_real, build_set
from small_runs import evaluate_on, evaluation_settings, make_folder, start

from ncfmkit import kept
from ncfmkit.config import RuntimeSettings, Settings, override
from ncfmkit.distillation import pool as pool_module
from ncfmkit.errors import UserError
from ncfmkit.jobs import evaluate as evaluate_job
from ncfmkit.jobs.evaluate import dry_run, evaluate, evaluate_real, no_students, real_mosaics, requested_scoring
from ncfmkit.jobs.pack import quantized
from ncfmkit.networks import convnext, vit
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.opening import open_real
from ncfmkit.run import RunDirectory
from ncfmkit.runtime import choose_runtime
from ncfmkit.scoring import students
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import tensors_of

pytestmark = pytest.mark.usefixtures("one_cache")


def test_evaluate_with_another_network(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"network.name": "alexnet"})
    scores = evaluate_on("digits", result, settings, baselines=("random",))
    assert [row.network for row in scores.rows] == ["alexnet", "alexnet"]
    assert [row.set for row in scores.rows] == ["distilled", "random"]
    assert scores.precision == "fp32"


QUICK: dict[str, Any] = {"student.epochs": 2, "student.repeats": 1, "runtime.compile": "off", "runtime.device": "cpu"}


def test_evaluate_with_all_networks(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vit, "DEPTH", 1)
    monkeypatch.setattr(convnext, "BLOCKS", (1, 1, 1, 1))
    rows = evaluate(scored, data="digits", baselines="random", **(QUICK | {"network.name": "all"})).rows
    said = capsys.readouterr().err
    assert "images of 8 pixels are too small for vgg11, resnet18, resnetap10, densenet121" in said
    assert "  vit: students: random real" in said  # the estimate says of which network
    assert re.search(r"^vit: distilled, \d+ per class: [\d.]+( ± [\d.]+)?%$", said, re.MULTILINE), said
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path))  # where no student is kept
    alone = [
        row
        for name in ("convnet", "convnetbn", "alexnet", "vit", "convnext")
        for row in evaluate(scored, data="digits", baselines="random", **(QUICK | {"network.name": name})).rows
    ]
    names = ("convnet-2 width 8", "convnetbn-2 width 128", "alexnet", "vit", "convnext")
    assert [row.network for row in rows] == [name for name in names for _ in range(2)]
    assert [dict(row) | {"seconds": 0} for row in rows] == [dict(row) | {"seconds": 0} for row in alone]


@pytest.mark.parametrize("names", ["alexnet,convnett", "alexnet,", "alexnet,vgg11", "all,alexnet"])
def test_a_network_that_cannot_be_is_refused_before_any_is_trained(
    scored: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setattr(students, "score", None)
    with pytest.raises(UserError, match=r"expected one of convnet, convnetbn, alexnet|needs images of 28 pixels"):
        evaluate(scored, data="digits", **(QUICK | {"network.name": names}))


def test_baselines_are_chosen_by_the_sets_own_extractors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the students are; extractors may have another width than these."""
    run = start(tmp_path / "run", pool__extractor_width=6, pool__epochs=4, student__repeats=0)
    result = set_file.load(run)
    monkeypatch.setattr(pool_module, "train", None)  # the pool is in the cache
    for network, names in (("convnet", ["convnet-2 width 8"]), ("alexnet", ["alexnet"])):
        changes = {} if network == "convnet" else {"network.name": network}
        scores = evaluate_on("digits", result, evaluation_settings(result, **changes), baselines=("herding",))
        assert [row.network for row in scores.rows] == names * 2


def test_an_extractor_is_trained_once_for_all_selections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With snapshots, which the pool of the run has not; beside these, the weights are the same."""
    run = start(tmp_path / "run", pool__epochs=4, student__repeats=0, seed=5)
    result, opened = set_file.load(run), []

    def open_pool(*arguments: Any, **named: Any) -> pool_module.Pool:
        opened.append(arguments)
        return pool_module.open_pool(*arguments, **named)

    monkeypatch.setattr(evaluate_job, "open_pool", open_pool)
    names = ("herding", "k-center", "el2n", "forgetting")
    scores = evaluate_on("digits", result, evaluation_settings(result), baselines=names)
    assert [row.set for row in scores.rows] == ["distilled", *names]
    assert len(opened) == 1
    said = capsys.readouterr().err
    assert "has no snapshots after epochs 1, 2, 3: training this member again" in said
    assert "extractor pool: 1 x 4 epochs, about" in said
    monkeypatch.setattr(pool_module, "train", None)  # herding finds the member that the others made
    again = evaluate_on("digits", result, evaluation_settings(result), baselines=("herding", "el2n"))
    assert [row.last for row in again.rows[1:]] == [scores.rows[1].last, scores.rows[3].last]


def test_an_extractor_of_one_epoch_has_no_snapshots(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"pool.epochs": 1})
    with pytest.raises(UserError, match=r"--baselines forgetting needs .*--pool-epochs 2 or more"):
        evaluate_on("digits", result, settings, baselines=("herding", "forgetting"))


def test_evaluate_as_the_run_scored(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"student.epochs": 3, "student.repeats": 2})
    scores = evaluate_on("digits", result, settings)
    stored = RunDirectory.open(scored).scores()
    assert stored is not None
    assert dict(scores.rows[0]) | {"seconds": 0} == dict(stored.rows[0]) | {"seconds": 0}


def test_students_are_tested_as_they_are_trained(scored: Path) -> None:
    """With the normalization of the set, whatever that of the data is."""
    result, runtime = set_file.load(scored), choose_runtime(RuntimeSettings(device="cpu", compile="off"))
    settings = evaluation_settings(result, **{"student.epochs": 20})
    digits = open_real("digits", settings.data)
    other = dataclasses.replace(digits, mean=(0.9,), std=(0.05,), fingerprint="other")
    rows = [evaluate_real(result, real, settings, runtime).rows[0] for real in (digits, other)]
    assert rows[0].last == rows[1].last


def test_what_was_evaluated_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each student, in the cache: an interruption leaves what is trained, and more repeats train further ones."""
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(students, "side_by_side", lambda *_: 1)
    path, trained, train = tmp_path / "set.safetensors", [0], students.train
    set_file.save(build_set("single", 1, classes=tuple(str(k) for k in range(10)), channels=1), path)
    how: dict[str, Any] = {"data": "digits", "size": 8, "color": "gray", "device": "cpu", "baselines": "random,herding"}
    how |= {"student.epochs": 2, "pool.epochs": 1, "compile": "off"}

    def counted(*arguments: Any, **named: Any) -> None:
        trained[0] += 1
        if trained[0] == 4:
            raise KeyboardInterrupt
        train(*arguments, **named)

    monkeypatch.setattr(students, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(path, repeats=2, **how)  # two of the set and one of random images
    (folder,) = (tmp_path / "cache" / "students").glob("*/")
    assert len(list(folder.iterdir())) == 3
    left = [stage.work for stage in dry_run(path, repeats=2, **how) if stage.name.startswith("students")]
    assert [work.split(" x ")[0] for work in left] == ["1", "2"]
    capsys.readouterr()
    first = evaluate(path, repeats=2, **how)
    assert trained == [4 + 3]
    said = capsys.readouterr().err
    assert "students: distilled, 2 per class: 2 of 2 are trained already" in said
    assert "students: random real, 2 per class: 1 of 2 are trained already" in said
    assert said.count("are trained already") == 2
    assert evaluate(path, repeats=2, **how) == first
    assert trained == [7]
    more = evaluate(path, repeats=3, **how)
    assert trained == [7 + 3]
    assert [row.last.values[:2] for row in more.rows] == [row.last.values for row in first.rows]
    evaluate(path, repeats=2, **how | {"pool.epochs": 2})  # another extractor herds other images
    assert trained == [10 + 2]
    monkeypatch.setattr(evaluate_job, "open_pool", lambda *_, **__: pytest.fail("no image has to be selected"))
    evaluate(path, repeats=2, **how)
    assert trained == [12]
    assert not list(dry_run(path, repeats=2, **how))
    monkeypatch.setattr(students, "STUDENT_FORMAT", 0)
    evaluate(path, repeats=2, **how | {"baselines": "none"})
    assert trained == [12 + 2]


def test_students_of_a_run_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run leaves them in the cache, where they belong to its set, whether its score is recorded or not."""
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(students, "side_by_side", lambda *_: 1)
    run, trained, train = start(tmp_path / "run", baselines=("random",)), [0], students.train

    def counted(*arguments: Any, **named: Any) -> None:
        trained[0] += 1
        train(*arguments, **named)

    monkeypatch.setattr(students, "train", counted)
    how: dict[str, Any] = {"data": "digits", "device": "cpu", "compile": "off"}
    stored, scores = RunDirectory.open(run).scores(), evaluate(run, baselines="random,mosaic", **how)
    assert stored is not None
    assert scores.rows[:2] == stored.rows
    assert trained == [len(scores.rows[2].last.values)]
    evaluate(run, baselines="none", seed=5, **how)
    assert trained == [2 * len(scores.rows[2].last.values)]


def test_coded_pictures_depend_on_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "set.safetensors"
    set_file.save(build_set("single", 1, classes=tuple(str(k) for k in range(10)), channels=1), path)
    how: dict[str, Any] = {"data": "digits", "size": 8, "color": "gray", "device": "cpu", "compile": "off"}
    how |= {"baselines": "webp", "student.epochs": 1, "repeats": 1}
    evaluate(path, **how)
    monkeypatch.setattr(PIL, "__version__", "0")
    capsys.readouterr()
    evaluate(path, **how)
    said = capsys.readouterr().err
    assert re.findall(r"students: (\w+).* are trained already", said) == ["distilled"]


def test_nothing_is_kept_in_a_cache_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "set.safetensors"
    set_file.save(build_set("single", 1, classes=tuple(str(k) for k in range(10)), channels=1), path)
    how: dict[str, Any] = {"data": "digits", "size": 8, "color": "gray", "device": "cpu", "compile": "off"}

    def refuse(folder: Path) -> None:
        raise UserError(f"cannot make the folder {folder}: Read-only file system")

    monkeypatch.setattr(kept, "make_folder", refuse)
    monkeypatch.setattr(students, "side_by_side", lambda *_: 1)
    for _ in range(2):
        evaluate(path, repeats=2, **how | {"student.epochs": 1})
        said = capsys.readouterr().err
        assert said.count("results are not kept: cannot make the folder") == 1
        assert "trained already" not in said


def test_evaluate_on_other_data_is_refused(tmp_path: Path, scored: Path) -> None:
    result = set_file.load(scored)
    shapes = str(make_folder(tmp_path / "shapes", {"a": 4, "b": 5}))
    with pytest.raises(UserError, match=r"the set has the classes 0, 1, 2, 3, .*shapes has a, b"):
        evaluate_on(shapes, result, evaluation_settings(result))
    digits = str(make_folder(tmp_path / "large", {str(c): 2 for c in range(10)}, size=10))
    settings = evaluation_settings(result, **{"data.size": "none"})
    with pytest.raises(UserError, match=r"the set has images of shape \(1, 8, 8\), large has \(1, 10, 10\)"):
        evaluate_on(digits, result, settings)


def test_evaluate_without_students_is_refused(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"student.repeats": 0})
    with pytest.raises(UserError, match="--repeats 0: expected 1 or more"):
        evaluate_on("digits", result, settings)


def test_a_set_that_was_made_without_a_score_says_so() -> None:
    made = override(Settings(), {"student.repeats": 0})
    assert "--repeats 0, as this set was made: expected 1 or more" in str(no_students(made))
    assert "--repeats 0: expected 1 or more" in str(no_students(Settings()))


@pytest.mark.parametrize("run", [evaluate, dry_run])
def test_too_few_images_for_a_baseline_are_refused_before_anything_is_measured(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = build_set("single", 2, ipc=2, channels=1, size=8)
    set_file.save(small, tmp_path / "set.safetensors")
    data = make_folder(tmp_path / "few", dict.fromkeys(small.classes, 5))
    with pytest.raises(UserError, match="a baseline of 8 real images per class needs more than the"):
        list(run(tmp_path / "set.safetensors", data=data, baselines="random-decoded", holdout=0.2, size=8))
    assert "estimate" not in capsys.readouterr().err


def test_mosaics_are_real_images_stored_and_decoded_as_the_set_is() -> None:
    """As many stored images, each of random real ones in place of the distilled, by another draw for every repeat."""
    real = build_real((30, 30, 30))
    result = build_set("multi", 2, ipc=3, soft=True)
    first, stored_bytes = real_mosaics(result, real, 5, 0)
    assert stored_bytes == result.images.nbytes
    images = torch.as_tensor(first.images)
    assert torch.equal(torch.as_tensor(real_mosaics(result, real, 5, 0)[0].images), images)
    for seed, repeat in ((5, 1), (6, 0)):
        assert not torch.equal(torch.as_tensor(real_mosaics(result, real, seed, repeat)[0].images), images)
    assert first.soft_labels is None
    assert first.labels.tolist() == [c for c in range(3) for _ in range(3 * 5)]
    assert images.shape == (45, 3, 8, 8)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(real.train.images).float(), size=4, mode="bilinear", antialias=True, align_corners=False
    )
    stored = images.view(9, 5, 3, 8, 8)[:, 0] * 255  # what factor 1 decodes to
    for n, image in enumerate(stored):
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
            cell = image[:, top : top + 4, left : left + 4]
            torch.testing.assert_close(cell, cell.round())
            nearest = int((small - cell).abs().amax((1, 2, 3)).argmin())
            assert float((small[nearest] - cell).abs().max()) <= 0.5001  # rounded to a byte
            assert nearest // 30 == n // 3


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
def test_mosaics_beside_a_set_of_fewer_bits_have_as_few(chroma: str) -> None:
    """And are stored as it would be: coded, if that is smaller."""
    real, result = build_real((30, 30, 30)), build_set("single", 1, ipc=3, soft=True)
    eight = torch.as_tensor(real_mosaics(result, real, 5, 0)[0].images)
    mosaics, stored_bytes = real_mosaics(quantized(result, 3, "image", False, chroma), real, 5, 0)
    three = torch.as_tensor(mosaics.images)
    values = dataclasses.replace(result, images=eight.mul(255).round().to(torch.uint8), soft_labels=None)
    stored = quantized(values, 3, "image", False, chroma)
    assert stored_bytes == sum(tensor.nbytes for name, tensor in tensors_of(stored).items() if name != "labels")
    torch.testing.assert_close(three, stored.images / 255, atol=1e-6, rtol=0)
    if chroma == "4:4:4":
        assert max(len(channel.unique()) for image in three for channel in image) <= 8
        assert 0 < (three - eight).abs().max() < 0.15


@pytest.mark.parametrize(
    ("score", "data", "overrides", "says"),
    [
        (True, None, {}, "--score needs --data"),
        (False, "digits", {}, "pass --score"),
        (False, None, {"student.epochs": 1}, "pass --score"),
        (False, None, {"download": True}, "pass --score"),
    ],
)
def test_a_score_that_cannot_be_measured(score: bool, data: str | None, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        requested_scoring(score, data, overrides)


def test_a_score_that_is_measured() -> None:
    scoring = requested_scoring(True, "digits", {"student.epochs": 1, "skip_bad": True})
    assert scoring is not None
    assert scoring.source == DataArguments(data="digits", skip_bad=True)
    assert scoring.overrides == {"student.epochs": 1}
    assert requested_scoring(False, None, {}) is None
