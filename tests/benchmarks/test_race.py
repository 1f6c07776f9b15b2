"""Contenders in processes and in turns, and the row that they give."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contenders import ABOUT, EAGER, RATES, TINY, contender

from benchmarks import page, parts, race
from ncfmkit.exporters.turns import Ended


def test_a_contender_in_a_process_of_its_own(tmp_path: Path) -> None:
    job = {"setting": dataclasses.asdict(TINY), "runtime": EAGER, "data": str(TINY.pixels(tmp_path))}
    same = contender(tmp_path)
    with race.Process(job | {"contender": "ncfmkit"}, environment=race.TRIM) as process:
        assert process.ask("about") == json.loads(json.dumps(same.about()))
        assert process.ask("step")["seconds"] > 0
        same.step()
        assert process.ask("images") == same.images()
        assert sys.platform != "linux" or process.ask("memory")["resident"] > 50 * 2**20
        with pytest.raises(race.Ended, match="failed: 'Contender' object has no attribute 'fly'"):
            process.ask("fly")


def row_of(tmp_path: Path, *, plain_rate: float | None = None, **runtime) -> dict:
    runtimes = {"plain": EAGER, "ncfmkit": EAGER | runtime}
    how: dict[str, Any] = {"device": torch.device("cpu"), "rates": RATES, "plain_rate": plain_rate}
    return race.race(TINY, folder=tmp_path, runtimes=runtimes, rounds=2, limit=60, **how)


@pytest.mark.usefixtures("here")
def test_a_row_of_two_contenders(tmp_path: Path) -> None:
    row = row_of(tmp_path)
    assert row["notes"] == []
    for name in ("plain", "ncfmkit"):
        found = row["contenders"][name]
        assert len(found["seconds"]["values"]) == 2
        assert found["held"]["bytes"] > 0
        assert sys.platform != "linux" or found["memory"]["resident"] > 50 * 2**20
    assert set(row["contenders"]["ncfmkit"]["parts"]) == set(parts.PARTS)
    assert row["times_floor"] > 1
    plain, ours = (row["contenders"][k]["seconds"]["values"] for k in ("plain", "ncfmkit"))
    assert row["speedup"]["values"] == [a / b for a, b in zip(plain, ours, strict=True)]


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_is_said_in_its_row(tmp_path: Path) -> None:
    row = row_of(tmp_path, memory_budget="1B")
    assert len(row["notes"]) == 1
    refusal = "ncfmkit does not fit: --memory-budget 1 B is below what one stored image needs: at least"
    assert row["notes"][0].startswith(refusal)
    assert "seconds" in row["contenders"]["plain"]
    assert "speedup" not in row
    assert refusal in page.tables({"about": ABOUT, "rates": RATES, "options": {}, "step": [row]})


def test_what_would_take_too_long_is_not_run(tmp_path: Path) -> None:
    row = row_of(tmp_path, plain_rate=1.0)
    assert row["contenders"] == {}
    assert [n.split(": a step would take about ")[0] for n in row["notes"]] == ["plain not run", "ncfmkit not run"]


def test_why_a_contender_ended() -> None:
    assert race.why(-9, "") == "does not fit: killed, probably for its memory"
    assert race.why(1, "torch.OutOfMemoryError: CUDA out of memory") == "does not fit: CUDA out of memory"
    assert race.why(1, "ncfmkit.errors.UserError: no file /home/a/b.npy") == "failed: no file ..."
    assert race.why(3, "") == "failed: exit code 3"


class Fake(race.Process):
    """A contender that ends after some steps."""

    def __init__(self, steps: int = 100):  # starts nothing
        self.left = steps

    def ask(self, order: str) -> dict:
        self.left -= 1
        if self.left < 0:
            raise Ended("failed: it ended")
        return {"seconds": self.left}


def test_turns_of_processes() -> None:
    """More of them in `tests/exporters/test_turns.py`."""
    contenders: dict[str, Any] = {"a": Fake(), "b": Fake(1)}
    seconds, notes = race.turns(contenders, rounds=3, limit=100)
    assert (seconds, notes) == ({"a": [99, 98, 97]}, ["b failed: it ended"])
    late: dict[str, Any] = {"a": Fake()}
    assert len(race.turns(late, rounds=3, limit=0)[0]["a"]) == 2
