"""The page and its numbers."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from contenders import ABOUT, RATES, TINY

from benchmarks import __main__ as command
from benchmarks import page
from benchmarks.parts import PARTS


def test_exponents() -> None:
    assert page.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert page.exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert page.exponent([1, 2, 4], [7, 7, 7]) == pytest.approx(0)
    assert page.exponent([1], [7]) is None
    assert page.exponent([1, 2], [0, 7]) is None


def contest(precision: str) -> dict:
    """A row of a step in which ncfmkit ran in that precision."""
    seconds = {"median": 2.0, "least": 1.0, "most": 3.0}
    about = {"seconds": seconds, "parts": dict.fromkeys(PARTS, 1.0)}
    plain, ours = (about | {"precision": p, "compiled": p == "bf16"} for p in ("fp32", precision))
    contenders = {"plain": plain, "ncfmkit": ours}
    return {"setting": asdict(TINY), "contenders": contenders, "notes": [], "speedup": seconds}


def test_a_step_says_the_precision_of_both_sides() -> None:
    result = {"about": ABOUT, "rates": RATES, "options": {}}
    fast, exact = contest("bf16"), contest("fp32")
    missing = "ncfmkit in float32 against plain: missing"
    text = page.tables(result | {"step": [fast, exact]})
    head, _, *rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    places = [head.index(f"{name} runs in") for name in ("plain", "ncfmkit")]
    assert [[row[i] for i in places] for row in rows[:2]] == [["fp32, eager", "bf16, compiled"], ["fp32, eager"] * 2]
    assert missing not in text
    assert missing in page.tables(result | {"step": [fast]})
    assert page.step_line(fast).endswith("2x as fast as plain, in bf16")


@pytest.mark.parametrize(("precision", "expected"), [("bf16", ["bf16", "bf16", "fp32"]), ("fp32", ["fp32", "fp32"])])
def test_one_setting_is_measured_in_float32_too(monkeypatch, tmp_path: Path, precision: str, expected: list) -> None:
    raced: list[tuple[str, str]] = []

    def race(setting, *, runtimes, **_) -> dict:
        raced.append((setting.name, runtimes["ncfmkit"]["precision"]))
        assert runtimes["plain"]["precision"] == "fp32"
        return contest(runtimes["ncfmkit"]["precision"]) | {"flops": 1.0}

    monkeypatch.setattr(command, "race", race)
    monkeypatch.setattr(command.floor, "measure_rates", lambda *_: RATES)
    monkeypatch.setattr(command, "STEPS", (TINY, command.CIFAR10))
    options = argparse.Namespace(
        device="cpu", precision=precision, compile="off", memory_budget=None, match="", rounds=2, limit=1.0
    )
    assert len(command.Bench(options, tmp_path).step()) == len(expected)
    assert [p for _, p in raced] == expected
    assert raced[len(raced) - 1][0] == command.CIFAR10.name


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render()


def test_newer_results_of_the_step_alone_follow_the_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write(name: str, only: str, date: str, device: str = "cpu") -> None:
        options = {"only": only, "match": "", "memory_budget": None}
        about = ABOUT | {"date": date, "device": device}
        found = {"rates": RATES, "options": options, "about": about, "step": [contest("fp32")]}
        (tmp_path / name).write_text(json.dumps(found), encoding="utf-8")

    write("whole.json", "step,growth", "2026-01-02")
    write("newer.json", "step", "2026-01-03")
    write("older.json", "step", "2026-01-01")
    write("other-kind.json", "step", "2026-01-03", device="cuda (NVIDIA H100)")
    write("pool.json", "pool", "2026-01-03")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert [file.name for file, _ in page.steps_since("cpu", "2026-01-02")] == ["newer.json"]
    assert [file.name for file, _ in page.steps_since("gpu", "2026-01-02")] == ["other-kind.json"]
