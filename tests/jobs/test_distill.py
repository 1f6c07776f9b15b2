"""The jobs behind the commands, on the embedded digits with tiny settings: artifacts, determinism, resuming, scores."""

import dataclasses
import errno
import html
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set
from pages import Page
from PIL import Image
from safetensors import safe_open
from small_runs import TINY, make_folder, set_bytes, start, steps_logged

from ncfmkit import estimate
from ncfmkit.config import NetworkSettings, RuntimeSettings, Settings, from_dict, override
from ncfmkit.distillation import loop
from ncfmkit.distillation import pool as pool_module
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.memory import Plan
from ncfmkit.errors import DeviceFailed, Interrupted, NonFiniteLossError, UserError
from ncfmkit.estimate import Stage
from ncfmkit.files import digest
from ncfmkit.jobs import distill as distill_job
from ncfmkit.jobs import setup
from ncfmkit.progress import plural
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.opening import open_real
from ncfmkit.real.store import RealData
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import MetricsRow, Scores
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import SetSize
from ncfmkit.sets import budget, numpy_reader, set_file
from ncfmkit.sets.synthetic import SyntheticSet

pytestmark = pytest.mark.usefixtures("one_cache")


def scores_of(folder: Path) -> Scores:
    scores = RunDirectory.open(folder).scores()
    assert scores is not None
    return scores


def test_every_file_of_a_run_is_there(scored: Path) -> None:
    expected = {"run.json", "metrics.jsonl", "checkpoint", "lock", *distill_job.ARTIFACTS}
    assert {p.name for p in scored.iterdir()} == expected
    kept = ["step-00000008.pt", "step-00000012.pt", "students"]
    assert sorted(p.name for p in (scored / "checkpoint").iterdir()) == kept
    assert steps_logged(scored) == list(range(1, 13))
    for picture in ("preview.png", "curves.png"):
        with Image.open(scored / picture) as image:
            image.verify()


def test_run_json(scored: Path) -> None:
    info = RunDirectory.open(scored).info()
    settings = from_dict(info.settings)
    assert info.status == "done"
    assert settings.recipe == "digits"
    assert settings.distill.steps == 12
    assert settings.network == NetworkSettings(name="convnet", width=8, depth=2)
    assert (info.data.train, info.data.test) == (1347, 450)
    assert [sum(info.data.counts[split]) for split in ("train", "test")] == [1347, 450]
    assert info.seed == 0
    assert info.versions["torch"] == torch.__version__
    assert info.device.startswith("cpu (")
    assert info.pool is not None
    assert len(info.pool.accuracies) == 2
    assert info.timings is not None
    assert info.timings.steps == 12


def test_manifest(scored: Path) -> None:
    small = set_file.load(scored)
    m = small.manifest
    assert m.kind == "synthetic set"
    assert m.format == 1
    assert m.name == "digits-ipc1"
    assert (m.ipc.stored, m.ipc.decoded) == (1, 4)
    assert (m.decode.kind, m.decode.factor, m.decode.budget) == ("single", 2, None)
    assert m.value_range == (0, 255)
    assert m.source.fingerprint == RunDirectory.open(scored).info().data.fingerprint
    assert m.bytes == {"images": 10 * 64, "labels": 10 * 8}
    assert m.sha256["images"] == digest(small.images)
    assert set(m.settings["runtime"]) == {"precision", "compile"}  # the rest is local to a machine
    last = scores_of(scored).rows[0].last
    assert m.score is not None
    assert (m.score.last.mean, m.score.last.std) == (last.mean, last.std)
    assert small.images.shape == (10, 1, 8, 8)
    assert small.labels.tolist() == list(range(10))


def test_score_rows(scored: Path) -> None:
    rows = scores_of(scored).rows
    names = ["random", "random-decoded", "webp", "jpeg", "mosaic", "herding", "herding-webp", "k-center", "whole"]
    assert [row.set for row in rows] == ["distilled", *names]
    assert [row.images for row in rows] == [10, 10, 40, 10, 20, 10, 10, 10, 10, 1347]
    assert [row.decoded for row in rows] == [40, 10, 40, 10, 20, 40, 10, 10, 10, 1347]
    assert [row.steps for row in rows] == [3] * 9 + [11]  # one epoch of the whole split in 11 batches
    stored = {row.set: row.bytes_per_class for row in rows}
    assert stored["distilled"] == stored["random"] == stored["mosaic"] == stored["herding"] == 64
    assert stored["random-decoded"] == 4 * 64
    assert stored["whole"] == 134.7 * 64
    counts = RunDirectory.open(scored).info().data.counts["test"]
    for row in rows:
        assert row.n == 2 == len(row.last.values)
        assert row.network == "convnet-2 width 8"
        assert all(b >= a for a, b in zip(row.last.values, row.best.values, strict=True))
        assert row.last.mean == pytest.approx(np.mean(row.last.values))
        assert row.last.std == pytest.approx(np.std(row.last.values, ddof=1))
        assert row.classes is not None
        assert np.average(np.array(row.classes, float), weights=counts) == pytest.approx(row.last.mean)
        assert row.curve is not None
        assert row.curve.epochs == tuple(range(1, row.epochs + 1))
        assert (row.curve.mean[-1], row.curve.std[-1]) == (row.last.mean, row.last.std)


def test_the_report_shows_the_set_and_how_it_is_loaded(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(scored / "report.html")
    page.check_safe()
    assert len(page.pictures()) == 10 + 2 * 10
    assert "What students train on" in page.text
    snippets = [html.unescape(code) for code in re.findall(r"<pre>(.*?)</pre>", page.source, re.DOTALL)]
    monkeypatch.chdir(scored)
    monkeypatch.setitem(sys.modules, "read_set", numpy_reader)
    expected, labels = set_file.load(scored).decoded()
    for code in snippets:
        found: dict[str, Any] = {}
        exec(code, found)
        np.testing.assert_allclose(found["images"], expected, atol=1e-6)
        np.testing.assert_array_equal(found["labels"], labels)
        assert len(found.get("dataset", labels)) == 40
    assert len(snippets) == 2


@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_a_report_decodes_the_first_images_of_each_class(kind: str) -> None:
    result = build_set(kind, 2, 14 if kind == "bound" else None, ipc=3)
    images = distill_job.report_images(result)
    assert list(images.decoded) == [0, 1, 3, 4, 6, 7]
    for place, (decoded_PCHW, _) in enumerate(result.decoded_parts(chunk=1)):
        if place in images.decoded:
            np.testing.assert_array_equal(images.decoded[place], (255 * decoded_PCHW).round().byte().numpy())
    assert distill_job.report_images(build_set("single", 1)).decoded == {}


def test_the_recipe_of_the_device_is_recorded(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 5})
    run = start(tmp_path / "run", str(folder), distill__steps=1, student__repeats=0)
    assert RunDirectory.open(run).info().settings["recipe"] == "cpu"
    settings = set_file.load(run).manifest.settings
    assert settings["recipe"] == "cpu"
    assert settings["student"]["epochs"] == 3  # what flags set comes first
    assert settings["distill"]["lr"] == 5e-3


def test_no_path_of_the_machine_is_in_the_set(tmp_path: Path, scored: Path) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 5})
    first = start(tmp_path / "one", str(folder), data__holdout=0.25, distill__steps=1)
    second = start(
        tmp_path / "two",
        str(folder),
        data__holdout=0.25,
        distill__steps=1,
        distill__init="load",
        distill__load=str(first),
    )
    for run in (first, second, scored):
        content = set_bytes(run)
        for secret in (str(tmp_path), str(run), str(Path.home()) + "/", "/tmp/"):
            assert secret.encode() not in content


def test_same_settings_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    one, two, other = (start(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert set_bytes(one) == set_bytes(two)
    assert (one / "preview.png").read_bytes() == (two / "preview.png").read_bytes()
    digests = [set_file.load(run).manifest.sha256 for run in (one, other)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("compile_", ["off", "on"])
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_a_run_ends_with_the_same_bytes_without_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile_: str
) -> None:
    """Everything that a step and a student are made of: psi, both optimizers, a pool that is trained, herding."""
    told: list[list[Stage]] = []

    def announce(stages: Iterable[Stage]) -> list[Stage]:
        told.append(estimate.announce(stages))
        return told[-1]

    def run(name: str) -> Path:
        monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / f"cache of {name}"))  # each run trains its pool
        more: dict[str, Any] = {"distill__sampler": "learned", "student__repeats": 2, "runtime__compile": compile_}
        return start(tmp_path / name, baselines=("random", "herding"), **more)

    monkeypatch.setattr(distill_job, "announce", announce)
    estimated = run("estimated")
    monkeypatch.setattr(distill_job, "announce", lambda stages: [])
    plain = run("plain")
    assert [stage.name for stage in told[0]] == [
        "extractor pool",
        "distilling",
        "students: distilled, 1 per class",
        "students: random real, 1 per class",
        "herding",
        "students: herding, 1 per class",
    ]
    assert set_bytes(estimated) == set_bytes(plain)
    one, two = ([row.last for row in scores_of(path).rows] for path in (estimated, plain))
    assert one == two
    logged = [[(row.matching, row.calibration) for row in RunDirectory(path).metrics()] for path in (estimated, plain)]
    assert logged[0] == logged[1]


def test_the_estimate_of_a_resumed_run_is_of_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(students, "score_set", stop)
        with pytest.raises(Interrupted):
            start(folder)
    for newer in (folder / "checkpoint").glob("step-*12.pt"):
        newer.unlink()
    capsys.readouterr()
    distill_job.resume(folder)
    said = capsys.readouterr().err
    assert "  distilling: 4 steps, about" in said
    assert "extractor pool: 2 x" not in said  # it is in the cache
    distill_job.resume(folder)
    assert "measured on the first steps" not in capsys.readouterr().err


def test_a_dry_run_plans_what_the_run_does(tmp_path: Path, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = TINY | {"distill.factor": 2, "student.repeats": 2, "student.whole_epochs": 1}
    info, rows = RunDirectory.open(scored).info(), scores_of(scored).rows
    found = distill_job.dry_run(
        DataArguments(data="digits"), recipe=None, out=None, baselines=info.baselines, overrides=overrides
    )
    assert list(tmp_path.iterdir()) == []
    for key in ("data", "settings", "device", "precision", "compile", "baselines"):
        assert found.to_dict()[key] == info.to_dict()[key]
    stages = {stage.name: stage for stage in found.estimate}
    settings = from_dict(info.settings)
    real = open_real("digits", settings.data)
    assert [f"students: {row.label}" for row in rows] == [n for n in stages if "students" in n]
    for row in rows:
        assert stages[f"students: {row.label}"].work == f"{row.n} x {plural(row.epochs, 'epoch')}"
        work = students.row_work(row.set, real, settings, SetSize(stored=1, decoded=4, bytes=64))
        assert work.images == row.decoded  # what a student was trained on
    assert stages["distilling"].work == "12 steps"
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in stages.values()))
    assert found.memory > 0
    assert {Path(name).name for name in found.writes} == set(distill_job.ARTIFACTS)


def test_a_set_of_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = TINY | {"distill.bytes": "60/class", "student.repeats": 0}
    found = distill_job.dry_run(
        DataArguments(data="digits"), recipe=None, out=None, baselines=(), overrides=dict(overrides)
    )
    assert [(fit.bits, fit.ipc) for fit in found.options] == [(6, 1), (5, 1), (4, 1), (3, 2), (2, 3)]
    assert re.search(r"3 images per class in 2 bits: about 5\d bytes per class \(chosen\)", capsys.readouterr().err)
    run = start(tmp_path / "run", distill__bytes="60/class")
    settings = from_dict(RunDirectory.open(run).info().settings).distill
    assert (settings.ipc, settings.bits) == (3, 2)
    result = set_file.load(run)
    assert result.manifest.bytes["pixels"] <= 30 * 16
    assert result.content_bytes == result.manifest.bytes["pixels"] + 30 * 2
    assert all(len(image.unique()) <= 4 for image in result.images)
    assert result.manifest.score is not None
    size = (run / set_file.FILE_NAME).stat().st_size
    said = capsys.readouterr().err
    content = result.content_bytes
    assert (
        f"--bytes 60/class: {content} bytes in all, {content / 10:.0f} per class; the file has {size:,}, with" in said
    )

    at_step(monkeypatch, 7, terminate)
    with pytest.raises(Interrupted):
        start(tmp_path / "interrupted", distill__bytes="60/class")
    distill_job.resume(tmp_path / "interrupted")
    assert torch.equal(set_file.load(tmp_path / "interrupted").images, result.images)


def test_a_set_of_so_many_bytes_has_half_the_color(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, plain = np.random.default_rng(0), TINY | {"student.repeats": 0, "runtime.compile": "off"}
    data = DataArguments(data=(rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), np.arange(60) % 3))
    so_many = {"distill.bytes": "150/class"}
    found = distill_job.dry_run(data, recipe=None, out=None, baselines=(), overrides=plain | so_many)
    assert {fit.chroma for fit in found.options} == {"4:2:0"}
    assert "in 2 bits, color 4:2:0: about" in capsys.readouterr().err

    def made(name: str, **overrides: Any) -> SyntheticSet:
        out = tmp_path / name
        return set_file.load(distill_job.start(data, recipe=None, out=out, baselines=(), overrides=plain | overrides))

    result = made("half", **so_many)
    assert "2 bits, color 4:2:0); recipe" in capsys.readouterr().err
    assert result.manifest.pixels is not None
    assert (result.manifest.pixels.chroma, result.manifest.format) == ("4:2:0", 4)
    assert result.content_bytes <= 3 * 150
    whole = made("whole", **so_many, **{"distill.chroma": "4:4:4"})
    assert whole.manifest.pixels is not None
    assert whole.manifest.pixels.chroma is None
    assert whole.ipc < result.ipc
    asked = made("asked", **{"distill.chroma": "4:2:0", "distill.ipc": 1}).manifest.pixels
    assert asked is not None
    assert (asked.bits, asked.chroma) == (8, "4:2:0")
    assert made("plain", **{"distill.ipc": 1}).manifest.pixels is None


def test_color_of_gray_images_cannot_be_halved(tmp_path: Path) -> None:
    says = "--chroma 4:2:0: expected three channels and a side that is a multiple of 4, got 1 and 8"
    with pytest.raises(UserError, match=says):
        start(tmp_path / "run", distill__chroma="4:2:0")
    overrides = TINY | {"distill.bytes": "100/class", "distill.chroma": "4:2:0"}
    with pytest.raises(UserError, match=says):
        distill_job.dry_run(DataArguments(data="digits"), recipe=None, out=None, baselines=(), overrides=overrides)


def test_images_of_least_worth_are_left_out_where_coding_saves_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = set_file.load(start(tmp_path / "whole", distill__ipc=6, distill__bits=2, student__repeats=0))
    monkeypatch.setattr(
        budget, "expected_shares", lambda images, seed, subsampled: {2: 0.5}
    )  # 6 images of 8 bytes and 2 of levels
    run = start(tmp_path / "run", distill__bytes="60/class")
    result = set_file.load(run)
    assert from_dict(RunDirectory.open(run).info().settings).distill.ipc == 6
    assert 3 <= result.ipc < 6
    assert result.content_bytes <= 600
    assert torch.equal(result.images.unflatten(0, (10, -1)), whole.images.unflatten(0, (10, -1))[:, : result.ipc])
    assert result.manifest.name == f"digits-ipc{result.ipc}"
    assert f"so {result.ipc} are kept, those of most worth" in capsys.readouterr().err
    scores = RunDirectory.open(run).scores()
    assert scores is not None
    assert scores.rows[0].bytes_per_class == result.content_bytes / 10


def test_soft_labels_are_part_of_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides: dict[str, Any] = {"labels__soft": True, "pool__epochs": 5, "distill__bytes": "400/class"}
    result = set_file.load(start(tmp_path / "run", student__repeats=0, **overrides))
    assert result.soft_labels is not None
    assert result.content_bytes == result.soft_labels.nbytes + result.manifest.bytes["pixels"] + 2 * len(result)
    assert 3_000 < result.content_bytes <= 4_000
    assert f"--bytes 400/class: {result.content_bytes:,} bytes in all" in capsys.readouterr().err


@pytest.mark.parametrize(("bits", "top", "row"), [(8, 0, 10), (4, 3, 5)])
def test_soft_labels_in_fewer_bits_leave_room_for_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: int, top: int, row: int
) -> None:
    overrides: dict[str, Any] = {"labels__soft": True, "pool__epochs": 5, "distill__bytes": "400/class"}
    overrides |= {"labels__bits": bits, "labels__top": top}
    result = set_file.load(start(tmp_path / "run", student__repeats=0, **overrides))
    assert result.manifest.bytes["soft_labels"] == row * len(result.as_dataset())
    assert 3_000 < result.content_bytes <= 4_000
    assert f"--bytes 400/class: {result.content_bytes:,} bytes in all" in capsys.readouterr().err


def test_the_seed_reaches_every_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, pool, steps, students and baselines: each alone would make the sets of two seeds differ."""
    seeds: dict[str, Any] = {}

    def spy(module: Any, name: str, place: int | None = None) -> None:
        original = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            seeds.setdefault(name, set()).add(named["seed"] if place is None else arguments[place])
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, called)

    spy(distill_job, "initialize")
    spy(distill_job, "open_pool")
    spy(pool_module, "train")
    spy(loop, "make_problem")
    spy(students, "score")
    spy(distill_job, "real_mosaics", 2)
    spy(students, "random_subset", 2)
    start(tmp_path / "run", seed=7, distill__steps=1, baselines=("random", "mosaic"))
    assert len(seeds) == 7
    assert all(found == {7} for found in seeds.values()), seeds


def test_no_steps_keep_the_initialization(tmp_path: Path) -> None:
    run = start(tmp_path / "run", distill__steps=0, student__repeats=0)
    real = open_real("digits", setup.make_settings("digits", None, {}).data)
    expected = initialize("mix", real, ipc=1, factor=1, seed=0)
    assert torch.equal(set_file.load(run).images, expected.mul(255).round().to(torch.uint8))
    assert set_file.load(run).manifest.score is None
    assert not (run / "scores.json").exists()
    assert RunDirectory.open(run).info().status == "done"


def test_load_starts_from_an_earlier_set(tmp_path: Path, scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scored.parent)
    more: dict[str, Any] = {
        "distill__factor": 2,
        "distill__init": "load",
        "distill__load": scored.name,
        "student__repeats": 0,
    }
    run = start(tmp_path / "run", distill__steps=0, **more)
    assert torch.equal(set_file.load(run).images, set_file.load(scored).images)
    assert set_file.load(run).manifest.settings["distill"]["load"] == scored.name
    with pytest.raises(UserError, match=r"expected images of shape \(20, 1, 8, 8\), got \(10, 1, 8, 8\)"):
        start(tmp_path / "more", distill__ipc=2, **more)
    assert not (tmp_path / "more").exists()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Calls `act` once, in the step that follows `step` done ones."""
    original, pending = loop.distill_step, [act]

    def patched(problem: Any, state: Any, plan: Any) -> Any:
        if state.step == step and pending:
            pending.pop()()
        return original(problem, state, plan)

    monkeypatch.setattr(loop, "distill_step", patched)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ZeroDivisionError("killed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Callable[[str], Path]:
    """The uninterrupted run of each sampler, made once."""
    made: dict[str, Path] = {}

    def get(sampler: str) -> Path:
        if sampler not in made:
            made[sampler] = start(tmp_path_factory.mktemp("whole") / sampler, distill__sampler=sampler)
        return made[sampler]

    return get


def same_as(run: Path, whole: Path) -> None:
    assert set_bytes(run) == set_bytes(whole)
    assert steps_logged(run) == list(range(1, 13))
    losses = [[row.model_copy(update={"seconds": 0}) for row in RunDirectory.open(r).metrics()] for r in (run, whole)]
    assert losses[0] == losses[1]
    assert RunDirectory.open(run).info().status == "done"
    assert not list(run.rglob("*.tmp"))


def test_a_run_of_an_earlier_version_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    """Keys that came later are missing."""
    out = tmp_path / "run"
    at_step(monkeypatch, 6, terminate)
    with pytest.raises(Interrupted):
        start(out, distill__sampler="learned")
    info = json.loads((out / "run.json").read_text())
    for key in ("threads", "command", "versions", "replaces", "timings"):
        del info[key]
    for key in ("counts", "skipped_images", "changed", "left_out"):
        del info["data"][key]
    (out / "run.json").write_text(json.dumps(info))
    distill_job.resume(out)
    same_as(out, whole("learned"))
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
@pytest.mark.parametrize("step", [0, 6, 11])
def test_interrupted_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], sampler: str, step: int
) -> None:
    out = tmp_path / "run"
    at_step(monkeypatch, step, terminate)
    with pytest.raises(Interrupted, match=f"saved after step {step + 1} of 12: continue with --resume {out}"):
        start(out, distill__sampler=sampler)
    assert not (out / set_file.FILE_NAME).exists()
    distill_job.resume(out)
    same_as(out, whole(sampler))


def test_a_name_that_is_taken_meanwhile_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Path
) -> None:
    """Runs that start together without --out: each finds a name of its own."""
    monkeypatch.chdir(tmp_path)
    checked = distill_job._checked

    def meanwhile(*arguments: Any) -> Any:
        if not Path("runs").exists():
            shutil.copytree(scored, "runs/digits-ipc1")
        return checked(*arguments)

    monkeypatch.setattr(distill_job, "_checked", meanwhile)
    assert start(None, distill__steps=1, student__repeats=0) == Path("runs/digits-ipc1-2")


def test_baselines_without_students_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--baselines mosaic,whole needs students, got --repeats 0"):
        start(tmp_path / "run", baselines=("random", "mosaic", "whole"), student__repeats=0)


def test_a_loaded_set_is_needed_until_a_step_is_saved(
    tmp_path: Path, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(shutil.copy(scored / set_file.FILE_NAME, tmp_path / "first.safetensors"))
    how: dict[str, Any] = {"distill__factor": 2, "distill__init": "load", "distill__load": str(first)}
    how |= {"student__repeats": 0}
    whole, out = start(tmp_path / "whole", **how), tmp_path / "run"
    at_step(monkeypatch, 0, crash)
    with pytest.raises(ZeroDivisionError):
        start(out, **how)
    set_file.save(build_set("single", 2, classes=tuple("0123456789"), channels=1), first, force=True)
    with pytest.raises(UserError, match=r"first\.safetensors has changed since .*run was started: restore it"):
        distill_job.resume(out)
    first.unlink()
    with pytest.raises(UserError, match=r"no synthetic set at .*first\.safetensors"):
        distill_job.resume(out)
    shutil.copy(scored / set_file.FILE_NAME, first)
    at_step(monkeypatch, 6, terminate)
    with pytest.raises(Interrupted):
        distill_job.resume(out)
    first.unlink()
    distill_job.resume(out)
    assert set_bytes(out) == set_bytes(whole)


def test_a_run_that_is_still_going_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def another() -> None:
        with pytest.raises(UserError, match=f"another process works in {out}: wait until it ends"):
            distill_job.resume(out)

    at_step(monkeypatch, 2, another)
    start(out, student__repeats=0)
    assert steps_logged(out) == list(range(1, 13))


@pytest.mark.parametrize("step", [2, 6])
def test_killed_between_checkpoints_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], step: int
) -> None:
    out = tmp_path / "run"
    at_step(monkeypatch, step, crash)
    with pytest.raises(ZeroDivisionError):
        start(out, distill__sampler="learned")
    assert steps_logged(out) == list(range(1, step + 1))
    distill_job.resume(out)
    same_as(out, whole("learned"))


def test_damaged_newest_checkpoint_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    at_step(monkeypatch, 9, terminate)
    with pytest.raises(Interrupted):
        start(out, distill__sampler="learned")
    newest = out / "checkpoint" / "step-00000010.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    distill_job.resume(out)
    said = capsys.readouterr().err
    assert "step-00000010.pt is damaged" in said
    assert "resuming after step 8 of 12" in said
    same_as(out, whole("learned"))


def test_all_checkpoints_lost_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    out = tmp_path / "run"
    at_step(monkeypatch, 9, terminate)
    with pytest.raises(Interrupted):
        start(out)
    for path in (out / "checkpoint").iterdir():
        path.write_bytes(b"")
    distill_job.resume(out)
    same_as(out, whole("learned"))


def test_interrupted_in_the_pool_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    whole("learned")
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    out, original, calls = tmp_path / "run", pool_module.train, []

    def second_is_interrupted(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    monkeypatch.setattr(pool_module, "train", second_is_interrupted)
    with pytest.raises(Interrupted, match=f"interrupted; finished work is saved: continue with --resume {out}"):
        start(out)
    assert len(list((tmp_path / "cache" / "pools").rglob("member-*.safetensors"))) == 1
    distill_job.resume(out)
    assert len(calls) == 3  # the finished member was kept
    same_as(out, whole("learned"))


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_interrupted_in_scoring_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: int
) -> None:
    """After some of two students of the set and two of random images, which are not trained again."""
    monkeypatch.setattr(students, "side_by_side", lambda *_: 1)
    how: dict[str, Any] = {"baselines": ("random",), "student__repeats": 2}
    out, expected, train = tmp_path / "run", start(tmp_path / "whole", **how), students.train
    trained: list[int] = []

    def train_until(end: int) -> Callable[..., None]:
        def counted(*args: Any, **kwargs: Any) -> None:
            if len(trained) == end:
                raise KeyboardInterrupt
            trained.extend(kwargs["keys"])
            train(*args, **kwargs)

        return counted

    monkeypatch.setattr(students, "train", train_until(finished))
    with pytest.raises(Interrupted, match="--resume"):
        start(out, **how)
    assert RunDirectory.open(out).info().status == "scoring"
    assert set_file.load(out).manifest.score is None  # the set is there and whole
    monkeypatch.setattr(loop, "distill_step", lambda *a: pytest.fail("steps were done already"))
    monkeypatch.setattr(students, "train", train_until(5))
    capsys.readouterr()
    distill_job.resume(out)
    said = capsys.readouterr().err
    for label, done in (("distilled", min(finished, 2)), ("random real", max(finished - 2, 0))):
        left, already = f"{label}, 1 per class: {2 - done} x ", f"{label}, 1 per class: {done} of 2 are trained already"
        assert (left in said) == (done < 2)
        assert (already in said) == (done > 0)
    assert trained == [0, 1, 0, 1]
    same_as(out, expected)
    timeless = [[row.model_copy(update={"seconds": 0}) for row in scores_of(run).rows] for run in (out, expected)]
    assert timeless[0] == timeless[1]


def test_resuming_a_finished_run_changes_nothing(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in scored.rglob("*") if p.is_file()}
    assert distill_job.resume(scored).set.manifest == set_file.load(scored).manifest
    assert "is already finished" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in scored.rglob("*") if p.is_file()} == before


def test_a_disk_that_fills_up_at_any_file_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    """The 3rd write fails, the 4th after it, the 5th after that, and so on; in the end all is as it would have been."""
    whole("learned")
    out, sync, calls = tmp_path / "run", os.fsync, []

    def full_now_and_then(descriptor: int) -> None:
        calls.append(1)
        if len(calls) in (3, 7, 12, 18, 25, 33, 42, 52):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_now_and_then)
    with pytest.raises(UserError, match=r"the disk is full: .* was not written"):
        start(out)
    failures = 1
    while RunDirectory.open(out).info().status != "done" or not (out / "report.html").exists():
        with suppress(UserError):
            distill_job.resume(out)
            break
        failures += 1
    assert 3 <= failures <= 8
    same_as(out, whole("learned"))
    assert {p.name for p in out.iterdir()} == {p.name for p in whole("learned").iterdir()}


def test_changed_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 5})
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    at_step(monkeypatch, 3, terminate)
    with pytest.raises(Interrupted):
        start(out, "shapes", data__holdout=0.25)
    kept = (folder / "a" / "00.png").read_bytes()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a" / "00.png")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"the data at .*shapes have changed since .* was started"):
        distill_job.resume(out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    folder.joinpath("a", "00.png").write_bytes(kept)
    distill_job.resume(out)
    assert steps_logged(out) == list(range(1, 13))


def change_size(folder: Path) -> None:
    for picture in folder.rglob("*.png"):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(picture)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "fewer": (lambda folder: (folder / "a/03.png").unlink(), ["train images: 9 then, 8 now", "'a': 4 then, 3 now"]),
    "class gone": (lambda folder: shutil.rmtree(folder / "c"), ["classes that are gone: c", "train images: 9 then, 7"]),
    "class new": (lambda folder: shutil.copytree(folder / "c", folder / "d"), ["classes that are new: d"]),
    "renamed": (
        lambda folder: (folder / "a/00.png").rename(folder / "a/9.png"),
        ["classes and numbers of images are the same"],
    ),
    "size": (change_size, ["images: 1x8x8 then, 1x9x9 now"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_about_the_data_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 3, "c": 2})
    at_step(monkeypatch, 3, terminate)
    with pytest.raises(Interrupted):
        start(tmp_path / "run", str(folder), student__repeats=0)
    act, says = CHANGES[change]
    act(folder)
    with pytest.raises(UserError, match=r"Restore them, pass --data .*, or start a new run") as caught:
        distill_job.resume(tmp_path / "run")
    for text in says:
        assert text in str(caught.value)


def test_a_run_on_data_in_memory_is_resumed_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    data = (rng.integers(0, 256, (12, 8, 8), np.uint8), np.arange(12) % 2)
    settings: dict[str, Any] = TINY | {"distill.ipc": 1, "student.repeats": 0, "runtime.compile": "off"}
    whole = distill_job.distill(data, out=tmp_path / "whole", **settings)
    at_step(monkeypatch, 9, terminate)
    with pytest.raises(Interrupted):
        distill_job.distill(data, out=tmp_path / "run", **settings)
    assert RunDirectory.open(tmp_path / "run").info().arguments["data"] is None
    with pytest.raises(UserError, match=r"data in memory, .*: pass them again, as ncfmkit\.resume\('.*', data="):
        distill_job.resume(tmp_path / "run")
    with pytest.raises(UserError, match=r"data in memory have changed since .*\n.*train images: 12 then, 10 now"):
        distill_job.resume(tmp_path / "run", (data[0][:10], data[1][:10]))
    resumed = distill_job.resume(tmp_path / "run", data)
    assert set_bytes(tmp_path / "run") == set_bytes(tmp_path / "whole")
    assert whole.set.classes == resumed.set.classes == ("0", "1")


def test_relative_data_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "shapes", {"a": 4, "b": 5})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    at_step(monkeypatch, 3, terminate)
    with pytest.raises(Interrupted):
        start(Path("run"), "shapes", data__holdout=0.25)
    monkeypatch.chdir(tmp_path / "elsewhere")
    distill_job.resume(Path("../run"))
    assert RunDirectory.open(tmp_path / "run").info().status == "done"


def test_a_known_name_stays_a_name_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert DataArguments(data="digits").recorded()["data"] == "digits"
    assert DataArguments(data="x/*.parquet").recorded()["data"] == str(tmp_path / "x/*.parquet")
    assert DataArguments(data="mnist", data_root="d").recorded()["data_root"] == str(tmp_path / "d")


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("seconds", [0, 0.05, 1000])
def test_non_finite_loss_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, bits: int
) -> None:
    monkeypatch.setitem(loop.READ_EVERY, "cpu", seconds)
    original = loop.distill_step

    def poisoned(problem: Any, state: Any, plan: Any) -> Any:
        if state.step == 10:
            with torch.no_grad():
                state.images.fill_(float("nan"))
        return original(problem, state, plan)

    out = tmp_path / "run"
    monkeypatch.setattr(loop, "distill_step", poisoned)
    with pytest.raises(NonFiniteLossError, match="loss of class '0' became non-finite in step 10"):
        start(out, distill__bits=bits)
    stored = RunDirectory.open(out).load_checkpoint()
    assert stored is not None
    assert stored["step"] == 8
    assert bool(stored["images"].isfinite().all())


def test_losses_read_together_are_those_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seconds in (0, 1000):
        monkeypatch.setitem(loop.READ_EVERY, "cpu", seconds)
        monkeypatch.setattr(loop, "LOGGED_STEPS", 6)  # every second step, of 12
        rows: list[MetricsRow] = []
        distill_job.distill("digits", out=tmp_path / str(seconds), callback=rows.append, **TINY)
        kept = [json.loads(line) for line in (tmp_path / str(seconds) / "metrics.jsonl").read_text().splitlines()]
        assert [row.to_dict() for row in rows] == kept
        assert all(a["seconds"] < b["seconds"] for a, b in pairwise(kept))
        found.append(([row | {"seconds": 0} for row in kept], set_bytes(tmp_path / str(seconds))))
    assert found[0] == found[1]


def test_a_gpu_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nand more")

    for step, says in (
        (10, r"the state after step 8 of 12 is kept: continue with --resume .*run-10"),
        (2, "start again"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, step, fails)
            with pytest.raises(DeviceFailed, match=rf"^the GPU failed \(.* launch failure\): .*{says}"):
                start(tmp_path / f"run-{step}")
    distill_job.resume(tmp_path / "run-10")
    start(tmp_path / "whole")
    assert set_bytes(tmp_path / "run-10") == set_bytes(tmp_path / "whole")


def test_a_run_goes_on_with_its_own_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a step without enough memory left it, so that the sums are the same."""
    plans: list[tuple[int, Plan]] = []
    original = loop.distill_step

    def spy(problem: Any, state: Any, plan: Plan) -> Any:
        if state.step == 5:
            plan.chunk = 7
        plans.append((state.step, dataclasses.replace(plan)))
        return original(problem, state, plan)

    monkeypatch.setattr(loop, "distill_step", spy)
    at_step(monkeypatch, 9, terminate)
    with pytest.raises(Interrupted):
        start(tmp_path / "run")
    distill_job.resume(tmp_path / "run")
    assert plans[0][1].chunk != 7
    assert {plan.chunk for step, plan in plans if step > 5} == {7}
    assert plans[-1][0] == 11


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"runtime__memory_budget": "1KiB"}, "--memory-budget 1 KiB is below what one stored image needs: at least"),
        ({"runtime__memory_budget": "plenty"}, "memory budget 'plenty' is not a size"),
        ({"distill__ipc": 500}, r"--ipc 500 is above the \d+ training images of class '\d'"),
        ({"distill__bytes": "9/class"}, "--bytes 9/class: one image per class in 2 bits takes 18 bytes: pass 18/class"),
        ({"distill__bytes": "lots"}, "--bytes 'lots' is not a size"),
        (
            {"distill__bytes": "1KB", "distill__init": "load", "distill__load": "x"},
            "pass --bits or --chroma, not --bytes",
        ),
        ({"distill__bytes": "1KB", "distill__ipc": 1}, "--bytes chooses how many images are stored: leave --ipc out"),
        ({"distill__factor": 9}, r"--factor \(distill\.factor\) 9 is above the image side 8"),
        ({"network__name": "vgg11", "network__width": 128}, "network vgg11 needs images of 28 pixels or more, got 8"),
        ({"network__name": "convnett"}, r"--network \(network\.name\): .*got 'convnett'; did you mean 'convnet'\?"),
        ({"network__depth": 9}, "depth"),
        ({"distill__augment": "colour_crop"}, "unknown augmentation 'colour'"),
        ({"data__classes": "0,1,eleven"}, "digits has no class 'eleven'"),
        ({"data__holdout": 0.1}, "digits has a test split of its own"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_wrong_settings_leave_nothing(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["el2n", "forgetting"])
def test_baselines_that_read_snapshots_are_refused_without_any(tmp_path: Path, name: str) -> None:
    """Before a pool is trained, with the flag to pass; with it, the run has their rows."""
    with pytest.raises(UserError, match=rf"--baselines {name} needs snapshots .*--snapshots 2, or leave it out"):
        start(tmp_path / "run", baselines=("random", name), pool__epochs=3)
    with pytest.raises(UserError, match="pass --snapshots 1 and --pool-epochs 2, or leave it out"):
        start(tmp_path / "run", baselines=(name,), pool__epochs=1)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("cache/pools/*"))
    run = start(tmp_path / "run", baselines=(name,), pool__epochs=3, pool__snapshots=2)
    assert [row.set for row in scores_of(run).rows] == ["distilled", name]


@pytest.mark.parametrize("name", ["random", "herding", "random-decoded"])
def test_too_few_images_for_a_baseline_are_noticed_at_once(tmp_path: Path, name: str) -> None:
    few: dict[str, Any] = {"distill__init": "noise", "distill__ipc": 200}
    with pytest.raises(UserError, match="a baseline of 200 real images per class needs more than the"):
        start(tmp_path / "run", baselines=(name,), **few)
    assert not (tmp_path / "run").exists()


def test_folders_without_what_a_run_needs(tmp_path: Path) -> None:
    folder = str(make_folder(tmp_path / "shapes", {"many": 9, "few": 2}))
    with pytest.raises(UserError, match=r"shapes has no test split .*--holdout .*--repeats 0"):
        start(tmp_path / "run", folder)
    with pytest.raises(UserError, match="--ipc 3 is above the 1 training images of class 'few' in shapes"):
        start(tmp_path / "run", folder, data__holdout=0.5, distill__ipc=3)
    with pytest.raises(UserError, match=r"--factor 9 is above the image side of shapes, 8: lower it"):
        start(tmp_path / "run", folder, data__size=None, distill__factor=9, student__repeats=0)
    assert not (tmp_path / "run").exists()


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--classes \(data\.classes\): expected two or more classes"):
        start(tmp_path / "run", data__classes="3")
    folder = str(make_folder(tmp_path / "shapes", {"round": 4}))
    with pytest.raises(UserError, match="shapes has one class, 'round': a classifier needs two or more"):
        start(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_precision_that_is_asked_for_is_used_when_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, terminate)
    with pytest.raises(Interrupted):
        start(tmp_path / "run", runtime__precision="bf16", student__repeats=0)
    used: list[RuntimeSettings] = []

    def spy(settings: RuntimeSettings) -> Runtime:
        used.append(settings)
        return choose_runtime(settings)

    monkeypatch.setattr(distill_job, "choose_runtime", spy)
    distill_job.resume(tmp_path / "run")
    assert (used[0].precision, used[0].compile) == ("bf16", "off")


def test_the_header_names_only_known_tensors(scored: Path) -> None:
    with safe_open(scored / set_file.FILE_NAME, framework="pt") as stored:
        assert sorted(stored.keys()) == ["images", "labels"]
        assert list(stored.metadata()) == ["ncfmkit"]


def test_a_run_on_real_data_that_are_open(tmp_path: Path, real: RealData, runtime: Runtime) -> None:
    """The job needs no source: images in memory will do."""
    settings = override(Settings(), TINY | {"distill.ipc": 2, "distill.factor": 2, "student.repeats": 0})
    source = DataArguments(data="in memory")
    distill_job.distill_real(real, settings, runtime, folder=tmp_path / "run", source=source)
    result = set_file.load(tmp_path / "run")
    assert result.classes == real.classes
    assert result.images.shape == (2 * len(real.classes), real.channels, real.size, real.size)
    assert not torch.equal(result.images, set_file.load(start_images(real, settings, runtime, tmp_path)).images)
    with pytest.raises(UserError, match="already exists and holds a run"):
        distill_job.distill_real(real, settings, runtime, folder=tmp_path / "run", source=source)


def start_images(real: RealData, settings: Settings, runtime: Runtime, folder: Path) -> Path:
    """A run of no steps: the images that the other starts from."""
    none = dataclasses.replace(settings, distill=dataclasses.replace(settings.distill, steps=0))
    distill_job.distill_real(real, none, runtime, folder=folder / "start", source=DataArguments(data="in memory"))
    return folder / "start"
