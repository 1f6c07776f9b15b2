"""Sets compared by students that are trained alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_set
from pages import Page
from scipy import stats
from small_runs import make_folder

from ncfmkit.comparison import Comparison
from ncfmkit.errors import Interrupted, NonFiniteLossError, UserError
from ncfmkit.jobs import compare as job
from ncfmkit.jobs.compare import compare, dry_run
from ncfmkit.jobs.evaluate import evaluate
from ncfmkit.scoring import students
from ncfmkit.sets import set_file
from ncfmkit.training import StackedModels

pytestmark = pytest.mark.usefixtures("one_cache", "own_folder")
CLASSES = tuple(str(k) for k in range(10))
DIGITS: dict[str, Any] = {"data": "digits", "size": 8, "color": "gray"}
QUICK: dict[str, Any] = {
    "student.epochs": 4,
    "student.repeats": 3,
    "student.evaluations": 1,
    "student.batch": 16,
    "runtime.compile": "off",
    "runtime.device": "cpu",
}


def make_set(name: str, **how: Any) -> Path:
    """A set of noise in the shape of the digits, which are read as 8 x 8 gray pixels."""
    path = Path(f"{name}.safetensors")
    shape: dict[str, Any] = {"classes": CLASSES, "channels": 1}
    set_file.save(build_set("single", 1, **(shape | how)), path)
    return path


@pytest.fixture
def three() -> list[Path]:
    """Of 10, 10 and 40 images: 1, 1 and 3 steps an epoch."""
    return [make_set("a", ipc=1), make_set("b", ipc=1, seed=1), make_set("c", ipc=4)]


def on_digits(sets: Any, **how: Any) -> Comparison:
    return compare(sets, **(DIGITS | QUICK | how))


def test_students_are_trained_alike(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The student of a seed starts from the same weights on every set, and takes as many steps."""
    starts, real_load = [], StackedModels.load

    def load(models: StackedModels, states: Any) -> None:
        starts.append([{name: tensor.clone() for name, tensor in state.items()} for state in states])
        real_load(models, states)

    monkeypatch.setattr(StackedModels, "load", load)
    found = on_digits(three, **{"student.epochs": 60})
    first, *others = starts
    assert len(starts) == 3
    for of_set in others:
        for mine, theirs in zip(of_set, first, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    name = next(iter(first[0]))
    assert not torch.equal(first[0][name], first[1][name])
    assert found.steps == 60
    assert [(row.score.steps, row.score.epochs) for row in found.sets] == [(60, 60), (60, 60), (60, 20)]
    assert [row.score.n for row in found.sets] == [3, 3, 3]
    assert len({row.score.network for row in found.sets}) == 1


def test_differences_are_those_of_pairs(three: list[Path]) -> None:
    found = on_digits(three, **{"student.epochs": 60})
    first, *others = found.sets
    assert first.difference is None
    alone = [stats.ttest_rel(row.score.last.values, first.score.last.values) for row in others]
    smaller, larger = sorted(test.pvalue for test in alone)
    corrected = {smaller: min(1, 2 * smaller), larger: min(1, max(2 * smaller, larger))}
    for row, test in zip(others, alone, strict=True):
        assert row.difference is not None
        assert row.difference.mean == pytest.approx(row.score.last.mean - first.score.last.mean, abs=1e-8)
        assert row.difference.p_alone == pytest.approx(test.pvalue, rel=1e-4)
        assert row.difference.p == pytest.approx(corrected[test.pvalue], rel=1e-4)
        interval = test.confidence_interval(0.95)
        assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_the_first_set_scores_as_evaluate_says(three: list[Path]) -> None:
    found = on_digits(three[:2]).sets[0].score
    alone = evaluate(three[0], **DIGITS, **QUICK).rows[0]
    for name in ("last", "best", "classes", "steps", "epochs", "network", "images", "bytes_per_class"):
        assert getattr(found, name) == getattr(alone, name)


def test_the_recipe_is_that_of_the_first_set(three: list[Path]) -> None:
    other = {"seed": 7, "data": {"size": 8, "color": "gray"}, "network": {"width": 6, "depth": 2}}
    settings = {"student": {"lr": 0.004, "batch": 16, "epochs": 5, "repeats": 2}, "runtime": {"compile": "off"}}
    training = {"version": 1} | other | settings
    own = make_set("own", ipc=2, training=training, seed=5)
    found = compare([own, three[0]], data="digits", repeats=1, device="cpu")
    assert found.recipe["network"] == {"name": "convnet", "width": 6, "depth": 2}
    assert found.recipe["seed"] == 7
    assert found.sets[1].score.network == "convnet-2 width 6"
    assert found.changed == ("student.repeats",)
    assert found.steps == 10
    assert [row.score.steps for row in found.sets] == [10, 10]
    assert found.sets[1].difference is not None
    assert found.sets[1].difference.p is None  # one student


def test_what_is_trained_is_kept(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trained, real_train = [], students.train

    def train(models: Any, data: Any, *arguments: Any, **how: Any) -> None:
        trained.append(len(data[0]))
        real_train(models, data, *arguments, **how)

    monkeypatch.setattr(students, "train", train)
    first = on_digits(three[:2], out="kept")
    assert trained == [10, 10]
    assert on_digits(three[:2], out="kept") == first
    assert trained == [10, 10]
    both = on_digits([three[1], three[0]], out="kept")  # in another order
    assert trained == [10, 10]
    assert [row.name for row in both.sets] == ["b.safetensors", "a.safetensors"]
    assert both.sets[0].score == first.sets[1].score
    assert both.sets[1].difference is not None
    assert first.sets[1].difference is not None
    assert both.sets[1].difference.mean == -first.sets[1].difference.mean
    long = {"student.epochs": 60}
    on_digits(three, out="kept", **long)  # other settings and one more set
    assert trained == [10, 10, 10, 10, 40]
    assert on_digits(three[:2], out="kept") == first  # still there
    assert len(trained) == 5
    three[0].unlink()
    make_set("a", ipc=1, seed=9)
    on_digits(three, out="kept", **long)  # another set of that name
    assert trained[5:] == [10]
    on_digits(three, out="kept", seed=3, **long)
    assert trained[6:] == [10, 10, 40]


def test_further_students_are_added_to_those_that_are_there(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []
    real_train = students.train

    def train(models: Any, data: Any, *arguments: Any, **how: Any) -> None:
        trained.extend((len(data[0]), key) for key in how["keys"])
        real_train(models, data, *arguments, **how)

    monkeypatch.setattr(students, "train", train)
    how = DIGITS | QUICK | {"out": "more"}
    two = compare(three[:2], **how | {"student.repeats": 2})
    assert trained == [(10, 0), (10, 1)] * 2
    trained.clear()
    assert [stage.work for stage in dry_run(three[:2], **how)] == ["1 x 4 epochs"] * 2
    three_each = compare(three[:2], **how)
    assert trained == [(10, 2), (10, 2)]
    for before, after in zip(two.sets, three_each.sets, strict=True):
        assert after.score.last.values[:2] == before.score.last.values
        assert after.score.n == 3


def test_an_interrupted_comparison_goes_on(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real_score, calls = job.score, 0

    def score(*arguments: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real_score(*arguments, **how)

    monkeypatch.setattr(job, "score", score)
    with pytest.raises(Interrupted, match="interrupted: comparison holds 3 of 9 students: run the same command"):
        on_digits(three, **{"student.epochs": 60})
    half = Comparison.read(Path("comparison/compare.json"))
    assert half.left == ("b.safetensors", "c.safetensors")
    assert "Not finished: the students of b.safetensors, c.safetensors" in Page(Path("comparison/compare.html")).text
    found = on_digits(three, **{"student.epochs": 60})
    assert calls == 2 + 3
    assert found.left == ()
    assert found == Comparison.read(Path("comparison/compare.json"))
    page = Page(Path("comparison/compare.html"))
    page.check_safe()
    assert "digits: 3 sets compared" in page.text
    assert sorted(p.name for p in Path("comparison").iterdir()) == ["compare.html", "compare.json", "students"]


def wrong(change: Callable[[], Any], says: str, **how: Any) -> Any:
    return pytest.param(change, says, how, id=says[:30])


@pytest.mark.parametrize(
    ("change", "says", "how"),
    [
        wrong(lambda: ["a.safetensors"], "expected two or more sets, got 1"),
        wrong(lambda: "a.safetensors", "expected two or more sets, got 1"),
        wrong(lambda: ["a.safetensors", "./a.safetensors"], "a.safetensors is given twice"),
        wrong(lambda: ["a.safetensors", "none.safetensors"], "no synthetic set at none.safetensors"),
        wrong(lambda: ["a.safetensors", make_set("same", ipc=1)], "same.safetensors is the same set as a.safetensors"),
        wrong(
            lambda: ["a.safetensors", make_set("odd", ipc=1, classes=("x", "y"))],
            r"odd.safetensors has the classes x, y, a.safetensors has 0, 1, 2, 3, \.\.\. \(10\)",
        ),
        wrong(
            lambda: ["a.safetensors", make_set("large", ipc=1, size=16)],
            r"large.safetensors has images of shape \(1, 16, 16\), a.safetensors has \(1, 8, 8\)",
        ),
        wrong(lambda: ["a.safetensors", "b.safetensors"], "--repeats 0: expected 1 or more", repeats=0),
        wrong(lambda: ["a.safetensors", "b.safetensors"], "expected one of convnet", network="alex"),
        wrong(lambda: ["a.safetensors", "b.safetensors"], "digts", data="digts"),
        wrong(
            lambda: ["a.safetensors", "b.safetensors"],
            r"a.safetensors: the set has images of shape",
            size=16,
            resize="crop",
        ),
        wrong(
            lambda: ["a.safetensors", "c.safetensors"],
            "4 epochs of a.safetensors are 4 gradient steps, 2 epochs of c.safetensors 6: .*--student-epochs 60",
        ),
    ],
)
def test_what_cannot_be_compared(
    three: list[Path], change: Callable[[], Any], says: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before anything is trained or written."""
    monkeypatch.setattr(job, "score", None)
    sets = change()
    how = {key if key != "network" else "network.name": value for key, value in how.items()}
    with pytest.raises(UserError, match=says):
        on_digits(sets, **how)
    with pytest.raises(UserError, match=says):
        list(dry_run(sets, **(DIGITS | QUICK | how)))
    assert not Path("comparison").exists()


def test_as_many_epochs_as_the_message_asks_for_are_enough(three: list[Path]) -> None:
    assert on_digits(three, **{"student.epochs": 60, "student.repeats": 1}).steps == 60


def test_other_data_are_said(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folder(Path("noise"), dict.fromkeys(CLASSES, 6))
    on_digits(three[:2], data=data, holdout=0.5, repeats=1)
    said = capsys.readouterr().err
    for name in ("a.safetensors", "b.safetensors"):
        assert f"{name} was made from other data than noise" in said.replace("\n", " ")


def test_a_folder_of_something_else(three: list[Path]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--out mine holds something else than a comparison \(thesis.txt\)"):
        on_digits(three[:2], out="mine")
    with pytest.raises(UserError, match="there is no folder nowhere"):
        on_digits(three[:2], out="nowhere/out")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_names_the_set(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*arguments: Any, **how: Any) -> None:
        raise NonFiniteLossError("the training loss became non-finite in epoch 1")

    monkeypatch.setattr(students, "train", train)
    with pytest.raises(NonFiniteLossError, match=r"a\.safetensors: the training loss became non-finite"):
        on_digits(three[:2])


def test_a_damaged_student_is_trained_again(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    first = on_digits(three[:2])
    kept = sorted(Path("comparison/students").iterdir())[0]
    whole = kept.read_text()
    kept.write_text(json.dumps({"score": {}}))
    again = on_digits(three[:2])
    assert f"{kept} is damaged: its student is trained again" in capsys.readouterr().err
    assert [row.score.last for row in again.sets] == [row.score.last for row in first.sets]
    assert json.loads(kept.read_text())["result"]["hits"] == json.loads(whole)["result"]["hits"]
