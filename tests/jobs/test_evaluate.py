"""Scores of a set that is there."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import evaluate_on, evaluation_settings, make_folder

from ncfmkit.errors import UserError
from ncfmkit.jobs.evaluate import requested_scoring
from ncfmkit.real.arguments import DataArguments
from ncfmkit.sets import set_file

pytestmark = pytest.mark.usefixtures("one_cache")


def test_evaluate_with_another_network(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"network.name": "alexnet"})
    scores = evaluate_on("digits", result, settings, baselines=("random",))
    assert [r["network"] for r in scores["rows"]] == ["alexnet", "alexnet"]
    assert [r["set"] for r in scores["rows"]] == ["distilled", "random"]
    assert scores["precision"] == "fp32"


def test_evaluate_as_the_run_scored(scored: Path) -> None:
    result = set_file.load(scored)
    settings = evaluation_settings(result, **{"student.epochs": 3, "student.repeats": 2})
    scores = evaluate_on("digits", result, settings)
    stored = json.loads((scored / "scores.json").read_text())["rows"][0]
    assert scores["rows"][0]["last"] == stored["last"]


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
