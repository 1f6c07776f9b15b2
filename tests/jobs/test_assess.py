"""What a set is good for: `ncfmkit assess` as a whole, and its first row."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import build_set
from pages import Page
from small_runs import make_folder
from typer.main import get_group

from ncfmkit.assessment import Assessment
from ncfmkit.cli.main import app
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.jobs.assess import assess, dry_run
from ncfmkit.jobs.evaluate import evaluate
from ncfmkit.networks import NETWORKS
from ncfmkit.networks.convnet import ConvNet
from ncfmkit.reports.assessment import SECTIONS
from ncfmkit.scoring import architectures, students, subject
from ncfmkit.scoring.evaluations import EVALUATIONS, parse_evaluations
from ncfmkit.sets import set_file

pytestmark = pytest.mark.usefixtures("one_cache", "own_folder")
CLASSES = tuple(str(k) for k in range(10))
QUICK: dict[str, Any] = {
    "data": "noise",
    "holdout": 0.5,
    "size": 8,
    "color": "gray",
    "student.epochs": 4,
    "student.repeats": 2,
    "student.batch": 16,
    "student.whole_epochs": 1,
    "pool.epochs": 1,
    "runtime.compile": "off",
    "runtime.device": "cpu",
}


@pytest.fixture(autouse=True)
def small(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data, and two small networks in the table."""
    make_folder(Path("noise"), dict.fromkeys(CLASSES, 6))
    other = dataclasses.replace(NETWORKS["alexnet"], build=partial(ConvNet, width=4, depth=1))
    monkeypatch.setattr(architectures, "NETWORKS", {"convnet": NETWORKS["convnet"], "alexnet": other})
    monkeypatch.setitem(NETWORKS, "alexnet", other)


def make_set(name: str, **how: Any) -> Path:
    """A set of noise in the shape of the digits, which are read as 8 x 8 gray pixels."""
    path = Path(f"{name}.safetensors")
    shape: dict[str, Any] = {"classes": CLASSES, "channels": 1, "ipc": 1}
    set_file.save(build_set("single", 1, **(shape | how)), path)
    return path


def quickly(path: Path, only: str = "architectures", **how: Any) -> Assessment:
    return assess(path, only=only, **(QUICK | how))


def test_the_table_is_complete() -> None:
    """Every evaluation has a field of the result of its own type, a section, and its name in the help."""
    shown = next(p for p in get_group(app).commands["assess"].params if p.name == "only").help  # type: ignore[attr-defined]
    for name, row in EVALUATIONS.items():
        assert Assessment.model_fields[name].annotation == row.result | None
        assert Assessment.model_fields[name].default is None
        assert f" {name}" in shown
    assert SECTIONS.keys() == EVALUATIONS.keys()


def test_names_of_evaluations() -> None:
    assert parse_evaluations("all") == ()
    assert parse_evaluations(" architectures, architectures") == ("architectures",)
    for wrong in ("architecture", "architectures,all", "", ","):
        with pytest.raises(UserError, match=r"known: privacy, .*architectures, all$"):
            parse_evaluations(wrong)


def test_architectures_score_as_evaluate_says() -> None:
    """The same students as `evaluate --network all` trains, of each network and each kind of images."""
    path = make_set("a")
    found = quickly(path).architectures
    assert found is not None
    apart = evaluate(path, baselines="mosaic,random,whole", **QUICK, **{"network.name": "convnet,alexnet"})
    assert {row.network for row in found.rows} == {row.network for row in apart.rows}
    by_name = {(row.network, row.set): row for row in apart.rows}
    assert len(by_name) == len(found.rows) == 8
    for row in found.rows:
        alone = by_name[row.network, row.set]
        assert (row.last, row.classes, row.steps, row.n) == (alone.last, alone.classes, alone.steps, 2)


def test_what_is_measured_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each student: an interruption leaves what is trained, and more repeats train only further ones."""
    trained, calls, train = [0], itertools.count(1), students.train

    def counted(*arguments: Any, **how: Any) -> None:
        if next(calls) == 3:  # two students at once
            raise KeyboardInterrupt
        trained[0] += len(how["keys"])
        train(*arguments, **how)

    monkeypatch.setattr(students, "train", counted)
    path = make_set("a")
    with pytest.raises(Interrupted, match="assessment holds what is measured: run the same command to continue"):
        quickly(path)
    assert trained == [2 * 2]
    found = quickly(path)
    rows = found.architectures.rows if found.architectures else ()
    assert trained == [2 * len(rows)]
    assert quickly(path) == found == Assessment.read(Path("assessment/assess.json"))
    fewer = quickly(path, repeats=1).architectures
    assert fewer is not None
    assert [row.last.values for row in fewer.rows] == [row.last.values[:1] for row in rows]
    assert trained == [2 * len(rows)]
    quickly(path, repeats=3)
    assert trained == [3 * len(rows)]
    path.unlink()
    make_set("a", seed=5)
    quickly(path)  # another set of that name
    assert trained == [5 * len(rows)]


def test_the_files() -> None:
    found = quickly(make_set("a"), out="found")
    assert sorted(p.name for p in Path("found").iterdir()) == ["assess.html", "assess.json", "measured"]
    page = Page(Path("found/assess.html"))
    page.check_safe()
    assert "a.safetensors: what the set is good for" in page.text
    assert EVALUATIONS["architectures"].asks in page.text
    assert found.set.name == "a.safetensors"
    assert found.set.bytes_per_class == 64
    assert set(found.changed) >= {"student.epochs", "student.repeats"}


def test_a_dry_run_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_set("a")
    monkeypatch.setattr(subject, "score", None)
    stages = list(dry_run(path, only="architectures", **QUICK))
    assert len(stages) == 8
    assert stages[0].name.startswith("architectures: convnet: students: distilled")
    assert not Path("assessment").exists()


def test_students_that_evaluations_share_are_estimated_once() -> None:
    """For the first of them; the second trains those on mosaics, and those of the other network."""
    path = make_set("a")
    names = [stage.name for stage in dry_run(path, only="ranking,architectures", **QUICK)]
    ranking = [name.removeprefix("ranking: ") for name in names if name.startswith("ranking")]
    assert {"students: distilled, 1 per class", "students: random real, 1 per class"} < set(ranking)
    of_own = [name for name in names if name.startswith("architectures: convnet: ")]
    assert of_own == ["architectures: convnet: students: mosaics of real images, 1 per class"]
    assert len([name for name in names if name.startswith("architectures: alexnet: ")]) == 4
    assert names == [stage.name for stage in dry_run(path, only="ranking,architectures", **QUICK)]
    after_privacy = [stage.name for stage in dry_run(path, only="ranking,privacy", **QUICK)]
    assert [name for name in after_privacy if name.startswith("ranking")] == [
        "ranking: students: distilled, 1 per class, no augmentation",
        "ranking: students: random real, 1 per class, no augmentation",
    ]


def test_attacked_students_serve_other_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of privacy are those that the scores of ranking are about: trained once, with the same result."""
    path, trained, train = make_set("a"), [0], students.train

    def counted(*arguments: Any, **how: Any) -> None:
        trained[0] += len(how["keys"])
        train(*arguments, **how)

    monkeypatch.setattr(students, "train", counted)
    alone = quickly(path, "ranking", out="apart").ranking
    assert trained == [5 * 2]
    kept = {file: file.read_bytes() for file in Path("apart/measured").iterdir()}
    attacked = quickly(path, "privacy", out="apart").privacy
    assert trained == [(5 + 3) * 2]
    assert {file: file.read_bytes() for file in kept} == kept  # what is there stays
    trained[0] = 0
    both = quickly(path, "ranking,privacy", out="both")  # in whichever order they are named
    assert trained == [5 * 2]
    assert alone is not None
    assert both.ranking is not None
    assert [cell.score.last for cell in both.ranking.cells] == [cell.score.last for cell in alone.cells]
    assert len({cell.score.last for cell in alone.cells}) > 1
    assert both.privacy == attacked


def test_students_are_tested_once() -> None:
    """After the last epoch, however often the set's recipe tests them: no evaluation asks for more."""
    path = make_set("a")
    assert set_file.load(path).manifest.training.settings().student.evaluations > 1
    found = quickly(path)
    assert found.architectures is not None
    assert {row.evaluations for row in found.architectures.rows} == {1}
    assert "student.evaluations" not in found.changed


def wrong(says: str, change: Callable[[], Any] = lambda: "a.safetensors", /, **how: Any) -> Any:
    return pytest.param(says, change, how, id=says[:30])


@pytest.mark.parametrize(
    ("says", "change", "how"),
    [
        wrong("no synthetic set at none.safetensors", lambda: "none.safetensors"),
        wrong("--repeats 0: expected 1 or more", repeats=0),
        wrong("assess tests students after their last epoch alone: leave out student.evaluations", evaluations=3),
        wrong("unknown evaluation 'fame': known: privacy", only="fame"),
        wrong("expected one of convnet", network="alex"),
        wrong("digts", data="digts"),
        wrong("the set has images of shape", size=16, resize="crop"),
        wrong("--out mine holds something else than an assessment", out="mine"),
        wrong(
            r"architectures: images of 4 pixels are too small for every network but convnet\n--only all measures",
            lambda: tiny(),
            size=4,
            resize="crop",
        ),
    ],
)
def test_what_cannot_be_assessed(
    says: str, change: Callable[[], Any], how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is trained or written."""
    make_set("a")
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    monkeypatch.setattr(subject, "score", None)
    how = {key if key != "network" else "network.name": value for key, value in how.items()}
    path, how = change(), {"only": "architectures"} | QUICK | how
    with pytest.raises(UserError, match=says):
        assess(path, **how)
    with pytest.raises(UserError, match=says):
        list(dry_run(path, **how))
    assert not Path("assessment").exists()
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def tiny() -> Path:
    return make_set("tiny", size=4)


def test_all_leaves_out_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    stages = list(dry_run(tiny(), only="all", **(QUICK | {"size": 4, "resize": "crop"})))
    assert stages
    assert "architectures is left out: images of 4 pixels" in capsys.readouterr().err


def test_a_set_that_allows_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EVALUATIONS.keys() - {"architectures"}:
        monkeypatch.delitem(EVALUATIONS, name)
    with pytest.raises(UserError, match="this set and these data allow none of the evaluations"):
        quickly(tiny(), only="all", size=4, resize="crop")


def test_what_an_assessment_loses_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path, said = make_set("a"), lambda: capsys.readouterr().err.replace("\n", " ")
    with monkeypatch.context() as patch:
        patch.setattr(students, "train", interrupt)
        with pytest.raises(Interrupted) as nothing:
            quickly(path)
    assert "holds" not in str(nothing.value)  # nothing is measured yet
    quickly(path)
    assert "will lack" not in said()
    quickly(path, only="ranking")
    assert "will lack" not in said()
    assert quickly(path, only="ranking", repeats=1).architectures is None
    assert (
        "assess.json will lack architectures, measured in another way (settings, data, device or versions): ask"
        in said()
    )
    path.unlink()
    quickly(make_set("a", seed=5))
    assert "assessment holds an assessment of another set, a.safetensors, which is replaced" in said()


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_other_data_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    list(dry_run(make_set("a"), only="architectures", **QUICK))
    assert "noise differs from the data that the set was made from" in capsys.readouterr().err.replace("\n", " ")


def test_a_damaged_result_is_said() -> None:
    path = make_set("a")
    quickly(path)
    for kept in Path("assessment/measured").iterdir():
        kept.write_text(json.dumps({"conditions": {}, "result": {}}))
    with pytest.raises(UserError, match=r"is damaged: .*\n(.*\n)*remove that file"):
        quickly(path)
