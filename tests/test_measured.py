"""What `ncfmkit recipes` says of measured scores, and how `python -m benchmarks.recipes` takes them from runs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import succeeds
from small_runs import start

from benchmarks import recipes as benchmark
from ncfmkit import measured
from ncfmkit.config import recipe_names
from ncfmkit.errors import UserError
from ncfmkit.measured import Measurement, Measurements, measurements, recipe_digest

RECIPE = "[network]\nwidth = 8\n[pool]\nmembers = 2\nepochs = 1\n[distill]\nipc = 1\nfactor = 1\nsteps = 12\n"
RECIPE += "frequencies = 32\nreal_batch = 32\n[student]\nepochs = 3\nrepeats = 1\n[runtime]\ncompile = 'off'\n"


def measurement(**changes: Any) -> Measurement:
    about: dict[str, Any] = {
        "recipe": "digits", "recipe_sha256": recipe_digest("digits"), "mean": 0.949, "std": 0.006, "n": 5, "best": 0.95,
        "soft_labels": False, "seed": 0, "pool_seconds": 524.0, "distill_seconds": 13.0, "student_seconds": 3.0,
        "device": "cpu (a processor, 2 threads), fp32", "commit": "abc", "date": "2026-11-27",
    }  # fmt: skip
    return Measurement(**(about | changes))


def test_the_file_of_the_package() -> None:
    content = json.loads((Path(measured.__file__).parent / "recipes" / measured.FILE).read_text(encoding="utf-8"))
    stored = Measurements.model_validate_json(json.dumps(content)).recipes
    assert set(stored) <= set(recipe_names())
    assert all(m.recipe == name for name, m in stored.items())
    assert set(measurements()) == set(stored), "a recipe has changed: measure it again, or take its row away"


def test_the_digest_is_of_what_changes_results(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return recipe_digest(str(tmp_path / "mine.toml"))

    base = digest(RECIPE)
    assert digest(RECIPE) == base
    assert digest("description = 'another'\n" + RECIPE) == base
    assert digest(RECIPE.replace("repeats = 1", "repeats = 7")) == base
    assert digest(RECIPE.replace("steps = 12", "steps = 13")) != base
    assert digest(RECIPE.replace("epochs = 3", "epochs = 4")) != base


def test_a_measurement_of_another_recipe_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = measurement(recipe_sha256="0" * 64)
    (tmp_path / measured.FILE).write_text(
        json.dumps(Measurements(recipes={"digits": old, "cpu": measurement(recipe="cpu")}).to_dict()), encoding="utf-8"
    )
    digest = recipe_digest("digits")
    monkeypatch.setattr(measured, "recipe_digest", lambda name: digest)
    monkeypatch.setattr(measured.resources, "files", lambda _: tmp_path)
    assert list(measurements()) == ["cpu"]


def test_how_a_measurement_reads() -> None:
    took = "pool 8.7 min, steps 13 s, a student 3.0 s"
    where = "cpu (a processor, 2 threads), fp32, 2026-11-27"
    assert measurement().describe() == f"94.9 % ± 0.6 (n = 5); {took}; {where}"
    one = measurement(n=1, std=0.0, soft_labels=True, pool_seconds=0.0).describe()
    assert one.startswith("94.9 % (n = 1, soft labels); steps 13 s, ")


def test_the_command_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "measurements", lambda: {"digits": measurement()})
    text = " ".join(succeeds("recipes").stdout.split())
    assert "94.9 % ± 0.6" in text
    assert "not yet" in text
    rows = json.loads(succeeds("recipes", "--json").stdout)
    assert rows["digits"]["measured"]["n"] == 5
    assert rows["cifar100-ipc1"]["measured"] is None
    assert rows["digits"]["description"].startswith("scikit-learn's digits")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the benchmark writes, and a recipe that it knows by name."""
    monkeypatch.setattr(benchmark, "PLACE", tmp_path / "measured.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    text = "ncfmkit.config.recipe_text"
    monkeypatch.setattr(text, lambda name: RECIPE)
    return tmp_path / "measured.json"


def run_of(out: Path, **overrides: Any) -> Path:
    from ncfmkit.jobs import distill
    from ncfmkit.real.arguments import DataArguments

    source = DataArguments(data="digits")
    return distill.start(source, recipe="mine", out=out, baselines=(), overrides={"device": "cpu", **overrides})


def test_a_run_of_a_recipe_is_its_measurement(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", **{"student.repeats": 2, "seed": 3})
    monkeypatch.setattr(sys, "argv", ["recipes", str(run), "--commit", "abc"])
    benchmark.main()
    (m,) = Measurements.read(place).recipes.values()
    row = json.loads((run / "scores.json").read_text(encoding="utf-8"))["rows"][0]
    assert (m.recipe, m.mean, m.std, m.n) == ("mine", row["last"]["mean"], row["last"]["std"], 2)
    assert (m.seed, m.commit, m.soft_labels) == (3, "abc", False)
    assert m.pool_seconds > 0
    assert m.device.startswith("cpu (")


def test_a_run_with_other_settings_is_refused(place: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=11)
    with pytest.raises(UserError, match=r"has other settings than the recipe mine: distill$"):
        benchmark.measured(run, "abc")
    assert not place.exists()


def test_a_run_without_a_score_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finished, or was not scored"):
        benchmark.measured(start(tmp_path / "run", student__repeats=0), "abc")
