"""Accuracy by bytes: what is taken from runs and models, the page and its plot."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from recorded import run_info, score

from benchmarks import rates
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import ModelMetadata
from ncfmkit.exporters.results import Conditions, DataFacts, ModelFacts, ProviderRun, Validation
from ncfmkit.files import sha256_of
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import Score, Scores

ROWS = (score("distilled", 0.66, bytes_per_class=11_610.0), score("webp", 0.45, n=3, bytes_per_class=12_301.4))


def run_of(folder: Path, rows: tuple[Score, ...] = ROWS, *, data: str = "cifar10", **changes: Any) -> Path:
    about = run_info().data.model_copy(update={"name": data})
    command = "ncfmkit distill /some/where/cifar10 --bytes 12288/class --out=/else/where/a.run --data-root s3://b/c"
    run = RunDirectory.create(folder, run_info(**{"status": "done", "data": about, "command": command} | changes))
    if rows:
        Scores(device="cpu (EPYC)", precision="fp32", versions={}, rows=rows).write(run.scores_file)
    return folder


def recorded(tmp_path: Path) -> list[rates.Rates]:
    """Two sizes of sets on CIFAR-10, and digits."""
    larger = (score("distilled", 0.70, bytes_per_class=122_000.0), score("random", 0.5, bytes_per_class=122_880.0))
    runs = [
        run_of(tmp_path / "large", (*larger, score("random-decoded", 0.6, bytes_per_class=491_520.0))),
        run_of(tmp_path / "small"),
        run_of(tmp_path / "digits", (score("distilled", 0.96, n=1, bytes_per_class=60.0),), data="digits"),
    ]
    return [rates.of_run(run, "abc") for run in runs]


def test_a_run_gives_its_rows(tmp_path: Path) -> None:
    found = rates.of_run(run_of(tmp_path / "small"), "abc")
    assert (found.run, found.data, found.device, found.commit) == ("small", "cifar10", "cpu (EPYC), fp32", "abc")
    assert found.command == "ncfmkit distill cifar10 --bytes 12288/class --out=a.run --data-root s3://b/c"
    assert [row.label for row in found.rows] == [row.label for row in ROWS]
    assert [(row.set, row.bytes_per_class, row.mean, row.std, row.n, row.steps) for row in found.rows] == [
        ("distilled", 11_610.0, 0.66, 0.00449, 5, 1200),
        ("webp", 12_301.4, 0.45, 0.00449, 3, 1200),
    ]


def test_baselines_that_were_scored_later(tmp_path: Path) -> None:
    run, file = run_of(tmp_path / "small"), tmp_path / "scores.json"
    scores = Scores(
        device="cpu (EPYC)",
        precision="fp32",
        versions={},
        rows=(ROWS[0], score("herding-webp", 0.5, bytes_per_class=12_000.0)),
    )
    scores.write(file)
    assert [row.set for row in rates.of_run(run, "abc", file).rows] == ["distilled", "webp", "herding-webp"]
    for other in (scores.model_copy(update={"precision": "bf16"}), scores.model_copy(update={"rows": ROWS[1:]})):
        other.write(file)
        with pytest.raises(UserError, match=r"scores\.json is not of .*small on the same machine"):
            rates.of_run(run, "abc", file)


def test_a_row_says_how_its_set_is_stored(tmp_path: Path) -> None:
    """The set's: what stands beside it is stored otherwise."""
    settings = {"distill": {"ipc": 10, "bits": 2, "chroma": "4:2:0"}}
    set_row, webp = rates.of_run(run_of(tmp_path / "small", settings=settings), "abc").rows
    assert (set_row.label, webp.label) == (f"{ROWS[0].label}, 2 bits, color 4:2:0", ROWS[1].label)


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        ((), {}, "is not finished, or was not scored"),
        (ROWS, {"status": "scoring"}, "is not finished, or was not scored"),
        ((ROWS[0], score("webp", 0.4)), {}, "does not say the bytes per class of 'webp, 1 image per class'"),
    ],
)
def test_a_run_without_bytes_is_refused(
    tmp_path: Path, rows: tuple[Score, ...], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        rates.of_run(run_of(tmp_path / "run", rows, **changes), "abc")


def validation_of(model: Path, *, precision: str = "int8", **changes: Any) -> Validation:
    classes = tuple("abcde")
    metadata = ModelMetadata.model_validate_json(
        f'{{"input": {{"layout": "uint8-nchw"}}, "output": {{"kind": "logits"}}, "classes": [], "precision": '
        f'"{precision}", "student": {{"network": {{"name": "convnet", "width": 64, "depth": 3}}}}}}'
    )
    facts = ModelFacts(
        path=str(model), bytes=model.stat().st_size, sha256=sha256_of(model), opset=20, layout="uint8-nchw",
        channels=3, size=32, output="logits", classes=5, metadata=metadata,
    )  # fmt: skip
    run = ProviderRun(
        name="ONNX Runtime cpu", provider="cpu", device="cpu (EPYC)", placement={}, images=200, correct=131,
        non_finite=0, accuracy=0.655, confusion=((0,),), classes=(), accuracy_drop=None,
    )  # fmt: skip
    return Validation(
        model=facts.model_copy(update=changes), student=None, reference=None, providers=(run,), left_out={},
        data=DataFacts(
            name="cifar10", fingerprint="f", images=200, classes=classes, size=32, channels=3, skipped=0
        ),
        max_accuracy_drop=None, conditions=Conditions(threads=1, versions={}, batch=1), speed=None, complete=True,
        failures=(),
    )  # fmt: skip


def test_a_student_has_the_bytes_of_its_file(tmp_path: Path) -> None:
    model, file = tmp_path / "student.onnx", tmp_path / "validation.json"
    model.write_bytes(b"x" * 1234)
    validation_of(model).write(file)
    found = rates.of_student(model, file, "abc")
    (row,) = found.rows
    assert (found.run, found.data, found.command) == ("student", "cifar10", None)
    assert (row.bytes_per_class, row.mean, row.std, row.n) == (1234 / 5, 0.655, 0, 1)
    assert (row.series, row.network, row.steps) == ("student as int8 ONNX", "convnet-3 width 64", None)
    validation_of(model, precision="fp16").write(file)
    with pytest.raises(UserError, match="expected an int8 model of ncfmkit: export it with --precision int8"):
        rates.of_student(model, file, "abc")
    validation_of(model, sha256="0" * 64).write(file)
    with pytest.raises(UserError, match=r"is the validation of another file than .*: validate it again"):
        rates.of_student(model, file, "abc")
    with pytest.raises(UserError, match="no such file"):
        rates.of_student(tmp_path / "none.onnx", file, "abc")


def test_the_page_says_what_was_recorded(tmp_path: Path) -> None:
    text = rates.render(recorded(tmp_path))
    cifar, digits = text.split("\n## ")[1:]
    rows = [line.strip("| ").split(" | ") for line in cifar.splitlines() if line.startswith("| ")][1:]
    assert [row[1:3] for row in rows] == [
        ["11,610", "**66.0 ± 0.4**"],
        ["12,288", "68.9"],
        ["12,301", "45.0 ± 0.4"],
        ["122,000", "**70.0 ± 0.4**"],
        ["122,880", "50.0 ± 0.4"],
        ["122,880", "79.0"],
        ["491,520", "60.0 ± 0.4"],
        ["614,400", "83.8"],
    ]
    assert [row[0].startswith("*published under other settings*") for row in rows] == [k in (1, 5, 7) for k in range(8)]
    assert "| **96.0** | 1 |" in digits
    assert "published" not in digits
    assert "- small: `ncfmkit distill cifar10 --bytes 12288/class --out=a.run" in cifar
    assert "No run is recorded" not in text


def test_the_plot_s_points_are_where_the_numbers_say(tmp_path: Path) -> None:
    figure = Figure(layout="constrained")
    rates.draw(recorded(tmp_path), figure)
    cifar, digits = figure.axes
    assert (cifar.get_title(), digits.get_title()) == ("cifar10", "digits")
    lines = {
        points.get_label(): [tuple(point) for point in points[0].get_xydata().round(6).tolist()]
        for points in cifar.containers
    }
    assert lines == {
        "sets by ncfmkit": [(11_610, 66), (122_000, 70)],
        "random real as WebP": [(12_301.4, 45)],
        "random real": [(122_880, 50), (491_520, 60)],
    }
    (others,) = [line for line in cifar.lines if "published" in str(line.get_label())]
    assert [tuple(point) for point in np.asarray(others.get_xydata())] == [
        (12_288, 68.9),
        (122_880, 79.0),
        (614_400, 83.8),
    ]
    assert others.get_linestyle() == "None"
    low, high = cifar.get_xlim()
    assert low <= 11_610
    assert high >= 614_400
    assert cifar.get_xscale() == "log"
    assert not [line for line in digits.lines if "published" in str(line.get_label())]


def test_networks_have_lines_of_their_own(tmp_path: Path) -> None:
    rows = [score("distilled", 0.6, network=name, bytes_per_class=9.0) for name in ("wide", "deep")]
    figure = Figure(layout="constrained")
    rates.draw([rates.of_run(run_of(tmp_path / "run", tuple(rows)), "abc")], figure)
    assert {points.get_label() for points in figure.axes[0].containers} == {
        "sets by ncfmkit, wide",
        "sets by ncfmkit, deep",
    }


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rates", *map(str, arguments)])
    rates.main()


def test_the_command_keeps_files_and_writes_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rates, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(rates, "PAGE", tmp_path / "rates.md")
    run = run_of(tmp_path / "small")
    call(monkeypatch, run, "--commit", "abc")
    model, file = tmp_path / "student.onnx", tmp_path / "validation.json"
    model.write_bytes(b"x" * 1234)
    validation_of(model).write(file)
    call(monkeypatch, "--student", model, file, "--commit", "abc")
    call(monkeypatch, run, "--commit", "abd")  # replaces the earlier one
    found = rates.recorded()
    assert [(r.run, r.commit) for r in found] == [("small", "abd"), ("student", "abc")]
    text = (tmp_path / "rates.md").read_text(encoding="utf-8")
    assert text == rates.render(found)
    assert text.count("| small |") == 2
    assert text.count("| student |") == 1
    plot = (tmp_path / "rates.svg").read_text(encoding="utf-8")
    assert rates.stamp(text) in plot
    with pytest.raises(SystemExit, match="expected different names of runs and models, got small, small"):
        call(monkeypatch, run, run, "--commit", "abc")
    with pytest.raises(SystemExit, match=r"is not a run directory: no run\.json in it"):
        call(monkeypatch, tmp_path, "--commit", "abc")
    assert (tmp_path / "rates.md").read_text(encoding="utf-8") == text
    for kept in rates.RESULTS.iterdir():
        kept.unlink()
    call(monkeypatch, "--commit", "abc")
    assert "No run is recorded yet." in (tmp_path / "rates.md").read_text(encoding="utf-8")
    assert not (tmp_path / "rates.svg").exists()


def test_the_page_is_what_the_results_say() -> None:
    """Of whatever is recorded; the plot was made with this page."""
    found, plot = rates.recorded(), rates.PAGE.with_name(rates.PLOT)
    text = rates.PAGE.read_text(encoding="utf-8")
    assert text == rates.render(found)
    assert plot.exists() == bool(found)
    assert not found or rates.stamp(text) in plot.read_text(encoding="utf-8")
