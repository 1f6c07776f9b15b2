"""Several models in one validation: pairs by counting, fronts by hand, what cannot be compared, table, page, JSON."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from conftest import build_real, write_student
from exports import Page, foreign_model, foreign_weights, opened
from rich.console import Console
from typer.testing import CliRunner

import ncfmkit
from ncfmkit import runtime
from ncfmkit.cli import main
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.exporters import comparison_report, timing, validate
from ncfmkit.exporters.accuracy import Outcome
from ncfmkit.exporters.comparison import better, by_chance, compared, pairs, pareto_front, run_names
from ncfmkit.exporters.results import ModelComparison, Pair
from ncfmkit.exporters.sessions import PROVIDERS
from ncfmkit.real.store import RealData

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("own_folder")

COUNTS = (40, 50, 60)  # test images of each class


@pytest.fixture
def data() -> RealData:
    return build_real(test_counts=COUNTS)


@pytest.fixture
def linear() -> tuple[Path, Path, Path]:
    """Three classifiers of other origin: a plain one, one that is nearly it, one that guesses."""
    weights = foreign_weights()
    noise = np.random.default_rng(1).normal(size=weights.shape).astype(np.float32)
    kinds = {"plain": weights, "near": weights + 0.1 * noise, "guess": noise}
    plain, near, guess = (foreign_model(Path(f"{name}.onnx"), weights=kinds[name]) for name in kinds)
    return plain, near, guess


def run(models: Any, data: RealData, **config: Any) -> ModelComparison:
    """Without timing, unless `speed` asks for it."""
    result = validate.validate(list(models), data=opened(data), **{"out": "out", "speed": False, **config})
    assert isinstance(result, ModelComparison)
    return result


def guesses(model: Path, data: RealData) -> np.ndarray:
    """Classes, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    assert data.test is not None
    scores = session.run(None, {session.get_inputs()[0].name: np.array(data.test.images)})[0]
    return scores.argmax(axis=1)


def shown(result: ModelComparison, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(comparison_report.tables(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_model_is_validated_as_if_alone(linear: tuple[Path, ...], data: RealData) -> None:
    found = run(linear, data)
    for model, path in zip(found.models, linear, strict=True):
        alone = validate.validate(path, data=opened(data), out=f"alone-{path.stem}", speed=False)
        assert model == alone
    assert json.loads(Path("out/validation.json").read_text()) == found.to_dict()
    assert ModelComparison.read(Path("out/validation.json")) == found
    assert sorted(p.name for p in Path("out").iterdir()) == ["report.html", "validation.json"]
    for row, path in zip(found.runs, linear, strict=True):
        assert (row.name, row.bytes, row.latency_ms, row.fastest) == (path.name, path.stat().st_size, None, None)


def test_pairs_are_counts_of_images(linear: tuple[Path, ...], data: RealData) -> None:
    """Against a loop over the images, with what ONNX Runtime answers."""
    found = run(linear, data)
    assert data.test is not None
    first, *others = (guesses(path, data).tolist() for path in linear)
    assert found.reference == "plain.onnx"
    assert [pair.name for pair in found.pairs] == ["near.onnx", "guess.onnx"]
    for pair, other in zip(found.pairs, others, strict=True):
        only = only_first = same = 0
        for label, a, b in zip(data.test.labels.tolist(), first, other, strict=True):
            only += b == label != a
            only_first += a == label != b
            same += a == b
        assert (pair.only_right, pair.only_reference_right) == (only, only_first)
        assert only + only_first > 0
        assert pair.agreement == pytest.approx(same / sum(COUNTS))
        assert pair.difference == pytest.approx(100 * (only - only_first) / sum(COUNTS))
    near, guess = found.pairs
    assert {near.p, guess.p} == {max(near.p_alone, guess.p), min(1, 2 * min(near.p_alone, guess.p_alone))}  # Holm
    by_accuracy = {run.name: run.accuracy for run in found.runs}
    for pair in found.pairs:
        assert 100 * (by_accuracy[pair.name] - by_accuracy["plain.onnx"]) == pytest.approx(pair.difference)


def test_with_a_student_that_is_the_reference(
    exported: Callable[..., Path], student_path: Path, data: RealData, linear: tuple[Path, ...]
) -> None:
    ours, other_output = exported(), exported(output="probabilities")
    found = run([ours, other_output, linear[2]], data, against=student_path, max_accuracy_drop=1)
    assert found.reference == "torch student, float32"
    assert len(found.pairs) == 3
    assert [pair.difference for pair in found.pairs[:2]] == [0, 0]
    assert found.pairs[2].p < 0.001
    assert found.failures == (f"guess.onnx: {found.models[2].failures[0]}",)
    assert "student's in this run: allowed are 1" in found.failures[0]
    for model in found.models[:2]:  # like scores are compared: logits with logits, probabilities with probabilities
        assert model.student is not None
        assert model.providers[0].max_abs_difference is not None
        assert model.providers[0].max_abs_difference < 1e-4
    text = shown(found)
    assert "the student in torch is better than guess.onnx by" in " ".join(text.split())
    assert "give every image the same class" in " ".join(text.split())
    assert "gate of student.onnx passed: " not in text  # both have that name: paths tell them apart
    assert re.search(r"gate of \S+fp32-uint8-nchw-probabilities/student\.onnx passed: ", "".join(text.split("\n")))
    page = Path("out/report.html").read_text()
    assert "Failed: guess.onnx: cpu: accuracy" in page
    assert "Gate" not in page


def test_output_is_of_the_models_without_metadata(exported: Callable[..., Path], data: RealData) -> None:
    other = foreign_model(Path("other.onnx"), probabilities=True)
    found = run([exported(), other], data, output="probabilities")
    assert [model.model.output for model in found.models] == ["logits", "probabilities"]
    with pytest.raises(UserError, match=r"^--output probabilities: the metadata of student\.onnx says logits"):
        run([exported()], data, output="probabilities")


def test_outcomes_that_are_not_finite_are_wrong() -> None:
    labels = np.array([0, 1, 1, 0])
    ours, theirs = (
        Outcome(guesses_N=np.array(values), classes=2, max_abs_difference=None)
        for values in ([0, -1, 1, -1], [0, 1, 1, -1])
    )
    (pair,) = pairs({"a": ours}, theirs, labels)
    assert (pair.only_right, pair.only_reference_right, pair.agreement, pair.difference) == (0, 1, 0.5, -25)


@pytest.mark.parametrize(
    ("costs", "accuracies", "front"),
    [
        ([1, 2, 3], [0.5, 0.6, 0.7], [True, True, True]),
        ([1, 2, 3], [0.7, 0.6, 0.8], [True, False, True]),
        ([2, 1, 1], [0.7, 0.7, 0.6], [False, True, False]),  # as accurate and cheaper; as cheap and better
        ([1, 1], [0.5, 0.5], [True, True]),  # equal ones do not dominate each other
        ([5], [0.1], [True]),
    ],
)
def test_fronts_by_hand(costs: list[float], accuracies: list[float], front: list[bool]) -> None:
    assert pareto_front(costs, accuracies) == front


def outcome(guesses_N: Any) -> Outcome:
    return Outcome(guesses_N=np.array(guesses_N), classes=2, max_abs_difference=None)


def test_what_is_better_by_more_than_chance() -> None:
    """Each is right on the first so many images, so that of two only the better one is right alone."""
    labels = np.zeros(100, int)
    right = [100, 91, 89, 98]
    outcomes = [outcome(np.arange(100) >= count) for count in right]
    p = {(m, k): 2 * 0.5 ** abs(right[m] - right[k]) for m in range(4) for k in range(m)}
    ordered = sorted(p, key=lambda pair: p[pair])
    sure, largest = set(), 0.0
    for place, pair in enumerate(ordered):
        largest = max(largest, min(1, p[pair]) * (len(p) - place))
        sure |= {pair} if largest < 0.05 else set()
    assert 0 < len(sure) < len(p)
    found = better(outcomes, labels)
    for m in range(4):
        for k in range(4):
            assert found[m, k] == (right[m] > right[k] and (max(m, k), min(m, k)) in sure), (m, k)


@pytest.mark.parametrize(
    ("costs", "accuracies", "sure", "expected"),
    [
        ([1, 2], [0.6, 0.7], {(1, 0)}, [False, False]),  # what costs more is better
        ([1, 2], [0.6, 0.7], set(), [False, True]),  # on the front by chance
        ([1, 2], [0.7, 0.6], {(0, 1)}, [False, False]),  # off the front, and worse
        ([1, 2], [0.7, 0.6], set(), [False, True]),  # off the front by chance
        ([1, 1], [0.7, 0.6], set(), [True, True]),  # either may be the better one
        ([1, 1], [0.7, 0.7], set(), [False, False]),  # equal ones do not dominate each other
        ([1, 2, 3], [0.5, 0.6, 0.61], {(1, 0), (2, 0)}, [False, False, True]),  # not told apart from the second
        ([1, 2, 3], [0.7, 0.6, 0.61], {(0, 1), (0, 2)}, [False, False, False]),  # the first is better than both
    ],
)
def test_places_by_chance(
    costs: list[float], accuracies: list[float], sure: set[tuple[int, int]], expected: list[bool]
) -> None:
    better_MM = np.zeros((len(costs), len(costs)), bool)
    for pair in sure:
        better_MM[pair] = True
    assert by_chance(costs, accuracies, better_MM) == expected


def test_marks_of_chance(linear: tuple[Path, ...], data: RealData) -> None:
    """As if the guessing one were worse than both others, which are not told apart; all have the same size."""
    found = run(linear, data)
    accuracies = (0.9, 0.8, 0.4)
    models = [
        model.model_copy(update={"providers": (model.providers[0].model_copy(update={"accuracy": accuracy}),)})
        for model, accuracy in zip(found.models, accuracies, strict=True)
    ]
    better_MM = np.array([[False, False, True], [False, False, True], [False, False, False]])
    found = compared([path.name for path in linear], models, found.reference, found.pairs, better_MM)
    assert [r.smallest for r in found.runs] == [True, False, False]
    assert [r.smallest_by_chance for r in found.runs] == [True, True, False]
    assert [r.fastest_by_chance for r in found.runs] == [None] * 3
    text = " ".join(shown(found, 120).split())
    assert "~ whether it is on the front may be chance: its accuracy cannot be told from" in text
    assert re.search(r"near\.onnx \S+ [\d.]+\sKiB~", text)
    assert re.search(r"guess\.onnx \S+ [\d.]+\sKiB(?![*~])", text)
    comparison_report.write_comparison(Path("chance.html"), found)
    assert "Chance decides on those with ~ above" in Path("chance.html").read_text()
    alone = run(linear[:1], data, out="alone")
    assert "~" not in shown(alone, 120)


def test_names_of_runs() -> None:
    assert run_names([("a", "cpu"), ("b", "cpu")]) == ["a", "b"]
    assert run_names([("a", "cpu"), ("a", "cuda"), ("b", "cpu")]) == ["a, cpu", "a, cuda", "b, cpu"]


def test_speeds_are_measured_by_turns_over_all_models(
    linear: tuple[Path, ...], data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one race; each model keeps the rows of its own, on the page they are together."""
    few: dict[str, Any] = {"calls": 3, "seconds": 0, "warm_calls": 1, "warm_seconds": 0, "block_seconds": 0, "pause": 0}
    quick = timing.TimingConfig(batches=(1, 4), **few)
    raced = []
    race = timing.race

    def counted(
        calls: dict[str, timing.Call], config: timing.TimingConfig
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        raced.append(list(calls))
        return race(calls, config)

    jobs: list[timing.Job] = []

    def footprint(job: timing.Job) -> timing.Footprint:
        jobs.append(job)
        return timing.Footprint(cold_start_seconds=0.25 * len(jobs), memory_bytes=7 << 20, failed="")

    monkeypatch.setattr(timing, "race", counted)
    monkeypatch.setattr(timing, "TimingConfig", lambda **_: quick)
    monkeypatch.setattr(timing, "footprint", footprint)
    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "no C++ compiler found")
    monkeypatch.setitem(PROVIDERS, "twin", PROVIDERS["cpu"])
    student = write_student(Path("student.safetensors"), data, epochs=0)
    found = run(linear[:2], data, against=student, speed=True, provider="cpu,twin")
    names = ["plain.onnx, cpu", "plain.onnx, twin", "near.onnx, cpu", "near.onnx, twin"]
    assert raced == [[*names, "torch eager"]] * 2  # a race for each batch
    assert [job.path for job in jobs] == ["plain.onnx"] * 2 + ["near.onnx"] * 2 + [str(student)]
    assert [run.name for run in found.runs] == names
    for k, model in enumerate(found.models):
        assert model.complete
        assert model.speed is not None
        (section,) = model.speed
        assert [row.name for row in section.rows] == [
            *("ONNX Runtime cpu", "ONNX Runtime twin"),
            *("torch eager", "torch.compile"),
        ]
        assert [row.cold_start_seconds for row in section.rows[:2]] == [0.25 * (2 * k + 1), 0.25 * (2 * k + 2)]
    for row in found.runs:
        section = (found.models[row.model].speed or ())[0]
        (timed,) = (r.batches for r in section.rows if r.name == f"ONNX Runtime {row.provider}")
        assert row.latency_ms == timed[0].p50_ms
        assert row.images_per_second == max(t.images_per_second for t in timed)
    latencies = [row.latency_ms for row in found.runs if row.latency_ms is not None]
    accuracies = [row.accuracy for row in found.runs]
    assert [row.fastest for row in found.runs] == pareto_front(latencies, accuracies)
    assert [row.smallest for row in found.runs] == pareto_front([row.bytes for row in found.runs], accuracies)
    (joined,) = comparison_report.speeds(found)
    assert [row.name for row in joined.rows] == [*names, "torch eager", "torch.compile"]
    page = Path("out/report.html").read_text()
    assert Page(page).tags.count("svg") == 2 + 2 * len({m.confusion for v in found.models for m in v.providers}) + 2
    text = shown(found)
    assert "latency" in text
    assert "torch.compile was not timed: no C++ compiler found" in " ".join(text.split())


def test_accuracies_outlive_an_interruption_of_the_timing(
    linear: tuple[Path, ...], data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "time_device", interrupted)
    with pytest.raises(Interrupted, match="interrupted: out has no speeds yet"):
        run(linear, data, speed=True)
    kept = ModelComparison.read(Path("out/validation.json"))
    assert [model.complete for model in kept.models] == [False] * 3
    assert "Timing was not finished" in Path("out/report.html").read_text()


NAMES = ("class 0", "class 1", "class 2")
UNLIKE: dict[str, tuple[Callable[[], Path], str]] = {
    "classes": (
        lambda: foreign_model(Path("b.onnx"), classes=4),
        r"b\.onnx takes 3x8x8 images and has 4 classes, a\.onnx takes 3x8x8 images and has 3 classes",
    ),
    "channels": (
        lambda: foreign_model(Path("b.onnx"), channels=1, weights=foreign_weights(channels=1)),
        r"b\.onnx takes 1x8x8 .* a\.onnx takes 3x8x8 .*: only models of one image size",
    ),
    "names": (
        lambda: foreign_model(Path("b.onnx"), names=["class 0", "class 1", "ox"]),
        r"a\.onnx has 3 classes, b\.onnx 3: only a\.onnx has 'class 2'; only b\.onnx has 'ox'",
    ),
    "order": (
        lambda: foreign_model(Path("b.onnx"), names=["class 1", "class 0", "class 2"]),
        r"a\.onnx and b\.onnx have the same classes in another order",
    ),
    "twice": (lambda: Path("./a.onnx"), r"a\.onnx is given twice: name each one once"),
    "none": (lambda: Path("none.onnx"), r"no model at none\.onnx"),
}


@pytest.mark.parametrize(("make", "says"), UNLIKE.values(), ids=UNLIKE)
def test_what_cannot_be_compared(make: Callable[[], Path], says: str) -> None:
    """Found out before the data are looked for."""
    first = foreign_model(Path("a.onnx"), names=NAMES)
    commands.refused("validate", first, make(), "--data", "none", "--out", "out", says=says)
    assert not Path("out").exists()


def test_no_model_at_all(data: RealData) -> None:
    with pytest.raises(UserError, match="expected one or more models, got none"):
        run([], data)


def test_a_copy_is_told(linear: tuple[Path, ...], data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    Path("copy.onnx").write_bytes(linear[0].read_bytes())
    found = run([linear[0], Path("copy.onnx")], data)
    assert "copy.onnx and plain.onnx have the same sha256: they may be one model, twice" in capsys.readouterr().err
    assert found.pairs[0].p == 1
    assert "copy.onnx: the same as plain.onnx" in Path("out/report.html").read_text()


def test_a_model_that_names_its_classes_is_checked_wherever_it_stands(linear: tuple[Path, ...], data: RealData) -> None:
    named = foreign_model(Path("named.onnx"), names=["a", "b", "c"])
    with pytest.raises(UserError, match=r"named\.onnx has 3 classes, tiny 3: only named\.onnx has 'a'"):
        run([linear[0], named], data)


def test_one_in_a_sequence_is_a_comparison_of_one(linear: tuple[Path, ...], data: RealData) -> None:
    found = ncfmkit.validate(linear[:1], data=opened(data), speed=False)
    assert isinstance(found, ModelComparison)
    assert (found.pairs, len(found.runs)) == ((), 1)
    assert "1 model compared on tiny" in Path("validation-comparison/report.html").read_text()
    assert "p:" not in shown(found)


def test_the_command(linear: tuple[Path, ...], data: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncfmkit.real.arguments.DataArguments.check", lambda self, settings: None)
    monkeypatch.setattr("ncfmkit.real.arguments.DataArguments.open", lambda self, settings: data)
    arguments = ["validate", *map(str, linear), "--data", "tiny", "--no-speed"]

    def call(*more: str) -> Any:
        return CliRunner().invoke(main.app, [*arguments, *more], prog_name="ncfmkit", env={"COLUMNS": "80"})

    result = call()
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in text
    for said in (
        "McNemar's exact test of these two counts, with Holm's correction for 2 pairs",
        "No difference in accuracy between near.onnx and plain.onnx can be seen (p = ",
        "chance level 33.33%",
        "gate not set",
        "validation-comparison/report.html all of it on one page",
    ):
        assert said in text, said
    page = Path("validation-comparison/report.html").read_text()
    assert "script" not in Page(page).tags
    assert all(source.startswith("#") for source in Page(page).sources)
    assert re.search(r"<h1>3 models compared on tiny</h1>", page)
    assert call().exit_code == 2  # the default folder exists
    result = call("--json", "--force")
    value = json.loads(result.stdout)
    assert value.keys() == {"models", "runs", "reference", "pairs", "failures"}
    assert value == json.loads(Path("validation-comparison/validation.json").read_text())


def a_pair(**changes: Any) -> Pair:
    pair = Pair(
        name="b", difference=1.0, agreement=0.9, only_right=12, only_reference_right=2, p=0.0129, p_alone=0.0129
    )
    return pair.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "b is better than a by 1.00 points (p = 0.013): 12 images right in it alone, 2 in the other alone."),
        (
            {"difference": -1.0, "only_right": 2, "only_reference_right": 12, "p": 0.0001},
            "a is better than b by 1.00 points (p <0.001): 12 images right in it alone, 2 in the other alone.",
        ),
        (
            {"p": 0.06},
            "No difference in accuracy between b and a can be seen (p = 0.06): 12 images right in the first alone, "
            "2 in the second alone.",
        ),
        ({"only_right": 0, "only_reference_right": 0, "p": 1.0}, "b and a are right on the same images."),
        (
            {"only_right": 0, "only_reference_right": 0, "p": 1.0, "agreement": 1.0},
            "b and a give every image the same class.",
        ),
    ],
)
def test_verdicts(changes: dict[str, Any], said: str, linear: tuple[Path, ...], data: RealData) -> None:
    found = run(linear[:1], data).model_copy(update={"reference": "a", "pairs": (a_pair(**changes),)})
    assert comparison_report.verdicts(found) == [said]


def test_hostile_names_and_many_models(data: RealData) -> None:
    weights = foreign_weights()
    names = ["<b>[red]$x$&'.onnx", *(f"{'long ' * 12}{k}.onnx" for k in range(12))]
    paths = [foreign_model(Path(name), weights=weights * (k + 1)) for k, name in enumerate(names)]
    found = run(paths, data)
    assert "<b>[red]$x$&'.onnx" in shown(found, 300)
    page = Path("out/report.html").read_text()
    assert "<b>" not in page
    assert Page(page).tags.count("svg") == 4
    # all have one size and give the same classes, so that each is on the front, and surely
    assert [(run.smallest, run.smallest_by_chance) for run in found.runs] == [(True, False)] * len(names)
