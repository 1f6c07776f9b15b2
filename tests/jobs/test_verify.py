"""Checking a set: its files, its recipe and the score that it promises."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import call, succeeds
from conftest import build_real, build_set
from promises import PROMISED, Scored, promising_set
from scipy import stats

from ncfmkit.config import RuntimeSettings, Settings, StudentSettings, to_dict
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.verify import LEVEL, least_difference, verify
from ncfmkit.real.arguments import DataArguments
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import Figure, ManifestScore


@pytest.fixture(autouse=True)
def _here(own_folder: None) -> None:
    """Commands run in `tmp_path`."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return promising_set(tmp_path / "small.safetensors")


def test_verify_says_what_it_found(small: Path) -> None:
    found = verify(small)
    assert found.problems == ()
    assert found.manifest is not None
    assert found.manifest.name == "tiny-ipc2"
    assert "measured" not in found.to_dict()


def test_a_recipe_that_cannot_run_is_a_problem(tmp_path: Path) -> None:
    settings = to_dict(Settings())
    settings["student"]["epochs"] = 0
    set_file.save(build_set(settings=settings), tmp_path / "set.safetensors")
    with pytest.raises(CheckFailed, match=r"set.safetensors: 1 problem\n  its training record is not one .*epochs"):
        verify(tmp_path / "set.safetensors")


def score_of(values: np.ndarray) -> ManifestScore:
    return score(len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)


def score(n: int, mean: float, std: float) -> ManifestScore:
    last = Figure(mean=mean, std=std)
    return ManifestScore(network="convnet", epochs=1, n=n, last=last, best=last)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 5), (5, 2), (10, 3), (4, 1)])
def test_the_difference_that_is_allowed_is_that_of_the_t_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.6, 0.01, n), rng.normal(0.59, 0.01, m)
    error, allowed = least_difference(score_of(a), score_of(b))
    if m > 1:
        test = stats.ttest_ind(a, b, alternative="greater")
        assert test.statistic * error == pytest.approx(a.mean() - b.mean())
    # a second set whose mean is just there has a p-value of 1%
    shifted = b + a.mean() - b.mean() - allowed
    if m > 1:
        assert stats.ttest_ind(a, shifted, alternative="greater").pvalue == pytest.approx(LEVEL)
    assert 0 < error < allowed


@pytest.mark.parametrize("n", [2, 5])
def test_honest_sets_are_refused_at_the_stated_rate_and_worse_ones_are_caught(n: int) -> None:
    """20,000 pairs of scores, whose students deviate by half a point on 10,000 test images."""
    rng = np.random.default_rng(n)

    def refused(worse: float) -> float:
        count, found = 20_000, 0
        scores = np.round(rng.normal(0.62, 0.005, (2, count, n)), 4)
        scores[1] -= worse
        means, stds = scores.mean(2), scores.std(2, ddof=1)
        for i in range(count):
            promised, measured = (score(n, float(means[k, i]), float(stds[k, i])) for k in (0, 1))
            found += means[0, i] - means[1, i] > least_difference(promised, measured)[1]
        return found / count

    assert refused(0.0) == pytest.approx(0.01, abs=0.0025)  # 3.5 standard errors of that share
    assert refused(0.05) > (0.999 if n == 5 else 0.8)


@pytest.mark.parametrize(("mean", "holds"), [(0.7, True), (0.6, True), (0.4897, True), (0.4895, False), (0.1, False)])
def test_the_promise_holds_within_chance(
    small: Path, monkeypatch: pytest.MonkeyPatch, mean: float, holds: bool
) -> None:
    """The standard error is 2.94 points, and 3.747 of them are allowed at n = 3 and 3."""
    Scored(monkeypatch, mean)
    if holds:
        found = verify(small, score=True, data="digits")
        assert found.promised is not None
        assert found.measured is not None
        assert found.promised.to_dict() == PROMISED
        assert found.measured.last.mean == mean
        return
    says = (
        rf"its students reach {mean:.1%} ± 1.0% \(n = 3\), promised are 60.0% ± 5.0% \(n = 3\): they are "
        rf"{60 - 100 * mean:.2f} points worse, with a standard error of 2.94 points; expected at most 11.03 "
        r"\(one-sided t-test at the 1% level\)"
    )
    with pytest.raises(CheckFailed, match=says) as failed:
        verify(small, score=True, data="digits")
    assert failed.value.result is not None
    assert failed.value.result["measured"]["last"]["mean"] == mean


def test_there_must_be_a_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Scored(monkeypatch, 0.55)
    path = tmp_path / "set.safetensors"
    set_file.save(build_set(), path)
    with pytest.raises(
        UserError,
        match=r"no score to check: `ncfmkit pack .* --score --data DATA",
    ):
        verify(path, score=True, data="digits")
    set_file.save(build_set(score=PROMISED | {"n": 1}), path, force=True)
    with pytest.raises(UserError, match="of one student, which has no standard deviation"):
        verify(path, score=True, data="digits")
    assert not measure.seen


def test_the_score_is_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The students of `verify --score` are trained by the training record, whatever the defaults."""
    recipe = StudentSettings(epochs=3, repeats=2, batch=16, evaluations=1)
    settings = to_dict(dataclasses.replace(Settings(seed=7, runtime=RuntimeSettings(compile="off")), student=recipe))
    settings["network"] = {"name": "convnet", "width": 8, "depth": 2}
    settings["distill"]["ipc"] = 2
    set_file.save(build_set(settings=settings, score=PROMISED | {"last": {"mean": 0, "std": 0}}), tmp_path / "set")
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: build_real())
    found = verify(tmp_path / "set", score=True, data="tiny")
    assert found.measured is not None
    assert (found.measured.epochs, found.measured.n) == (3, 2)
    other = verify(tmp_path / "set", score=True, data="tiny", **{"student.epochs": 1})
    assert other.measured is not None
    assert other.measured.epochs == 1


def test_verify_lists_all_and_exits_with_1(small: Path) -> None:
    succeeds("pack", small, "--to", "png", "--out", "shipped")
    folder = Path("shipped")
    (folder / "train" / "class 0" / "00000.png").write_bytes(b"broken")
    (folder / "train" / "class 1" / "00001.png").unlink()
    result = call("verify", folder)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "ncfmkit: shipped: 2 problems\n"
        "  train/class 1/00001.png is missing\n"
        "  train/class 0/00000.png is damaged: its sha256 is not that in SHA256SUMS\n"
    )
    result = call("verify", folder, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 2
