"""The benchmark on a tiny setting: its counts, its turns, its rows, its page."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import floor, page, parts, race, settings, training, worker
from benchmarks.reference import Reference
from benchmarks.settings import Setting
from ncfmkit.distillation.step import distill_step
from ncfmkit.exporters.turns import Ended

TINY = Setting(name="tiny", side=8, classes=2, per_class=6, ipc=1, real_batch=4, frequencies=32, width=8)
EAGER = {"device": "cpu", "precision": "fp32", "compile": "off"}


def contender(tmp_path: Path, kind: str = "ncfmkit", **changes) -> worker.Contender:
    setting = dataclasses.replace(TINY, **changes)
    job = {"setting": dataclasses.asdict(setting), "runtime": EAGER, "data": str(setting.pixels(tmp_path))}
    return worker.Contender(job | {"contender": kind})


@pytest.mark.parametrize(
    "changes", [{}, {"ipc": 3, "real_batch": 5}, {"side": 28, "frequencies": 64}, {"sampler": "learned"}]
)
def test_the_work_of_a_step_is_what_torch_counts_in_the_reference(tmp_path: Path, changes: dict) -> None:
    plain = contender(tmp_path, "plain", **changes)
    with FlopCounterMode(display=False) as counter:
        plain.step()
    s, twice = plain.setting, 0
    if s.sampler == "learned":  # the reference computes the phases once more for psi
        twice = 2 * plain.problem.feature_dim * s.frequencies * (s.real_images + s.decoded_images)
    assert floor.work(s).flops == counter.get_total_flops() - twice


def test_pixels_whose_writing_was_ended_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda label: {}[label])  # ends before the first class is written
        with pytest.raises(KeyError):
            TINY.pixels(tmp_path)
    assert np.load(TINY.pixels(tmp_path)).any(axis=(1, 2, 3)).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_floor_is_the_longer_of_computing_and_moving() -> None:
    work = floor.Work(network_flops=8e9, phase_flops=1e9, values=1e6, bytes=1e6)
    rates = {"bf16": {"flops": 4e9, "copy_bytes": 1e6}, "fp32": {"flops": 1e9, "copy_bytes": 1e6}}
    assert work.seconds("bf16", rates) == pytest.approx(3)  # to move: 2 bytes of each value, and the rest
    rates["bf16"]["flops"] = 1e9
    assert work.seconds("bf16", rates) == pytest.approx(9)


def test_rates_are_work_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's operations as torch counts them, and the bytes that the copy reads and writes, in half a second."""
    work: list[float] = []

    def half_a_second(run: Any, device: torch.device) -> float:
        with FlopCounterMode(display=False) as counter:
            result = run()
        work.append(counter.get_total_flops() or result.nbytes + result.nbytes)
        return 0.5

    monkeypatch.setattr(floor, "_median_seconds", half_a_second)
    rates = floor.measure_rates(torch.device("meta"), ("bf16",))
    product, copy, product_bf16, copy_bf16 = (2 * w for w in work)
    assert rates == {
        "fp32": {"flops": product, "copy_bytes": copy},
        "bf16": {"flops": product_bf16, "copy_bytes": copy_bf16},
    }
    assert product_bf16 == product > 1e9
    assert 2 * copy_bf16 == copy > 1e8


def test_the_first_two_runs_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lasted = iter([50, 60, 7, 1, 2, 6, 5, 4, 3])
    clock = itertools.accumulate(x for seconds in lasted for x in (0, seconds))
    monkeypatch.setattr(floor.time, "perf_counter", lambda: float(next(clock)))
    assert floor._median_seconds(lambda: None, torch.device("cpu")) == 4


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_the_parts_make_up_the_step_and_change_nothing(tmp_path: Path, sampler: str) -> None:
    timed, other = (contender(tmp_path, sampler=sampler, classes=10) for _ in range(2))
    assert timed.plan is not None
    assert other.plan is not None
    expected = distill_step(other.problem, other.state, other.plan)
    before = timed.problem.features._compiled
    seconds = parts.split(timed.problem, timed.state, timed.plan)
    assert timed.problem.features._compiled is before
    assert torch.equal(timed.state.images, other.state.images)
    assert expected.matching > 0
    assert all(seconds[p] > 0 for p in parts.PARTS)
    assert distill_step(timed.problem, timed.state, timed.plan) == distill_step(other.problem, other.state, other.plan)


def test_parts_are_charged_where_they_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(parts.time, "perf_counter", lambda: float(next(now)))
    clock = parts.Clock(torch.device("cpu"))
    with clock.part("rest"):  # 0
        with clock.part("data"):  # 1
            pass  # 2
        clock.switch("optimizer")  # 3
    assert (clock.seconds["data"], clock.seconds["rest"], clock.seconds["optimizer"]) == (1, 2, 1)


@pytest.mark.parametrize("sampler", ["gaussian", "learned"])
def test_contenders_of_one_setting_do_the_same_steps(tmp_path: Path, sampler: str) -> None:
    ours, plain = (contender(tmp_path, kind, sampler=sampler, ipc=2) for kind in ("ncfmkit", "plain"))
    assert isinstance(plain.reference, Reference)
    start = ours.state.images.detach().flatten().clone()
    for _ in range(3):
        assert ours.step()["seconds"] > 0
        plain.step()
    a, b = (torch.tensor(c.images()["values"]) for c in (ours, plain))
    # other draws move the images elsewhere; AdamW may turn a step round where a gradient is rounding alone
    assert (a - b).norm() < 0.1 * (a - start).norm()
    assert (a - ours.state.images.flatten()).abs().max() == 0


class Here:
    """Answers as a `race.Process` does, in this process: importing torch takes longer than all that is asked here."""

    def __init__(self, job: dict[str, Any], *, module: str = "benchmarks.worker", environment: object = None):
        self._job = json.loads(json.dumps(job))
        self._make: Any = {"benchmarks.worker": worker.Contender, "benchmarks.training": training.Trainer}[module]
        self._made: Any = None

    def ask(self, order: str) -> Any:
        try:
            self._made = self._made or self._make(self._job)
            return json.loads(json.dumps(getattr(self._made, order)()))
        except Exception as error:
            raise race.Ended(race.why(1, f"{type(error).__name__}: {error}")) from None

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders run in this process."""
    monkeypatch.setattr(race, "Process", Here)
    monkeypatch.setattr(command, "Process", Here)


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


RATES = {"fp32": {"flops": 1e11, "copy_bytes": 1e10}}


def row_of(tmp_path: Path, *, plain_rate: float | None = None, **runtime) -> dict:
    runtimes = {"plain": EAGER, "ncfmkit": EAGER | runtime}
    return race.race(TINY, folder=tmp_path, runtimes=runtimes, rates=RATES, plain_rate=plain_rate, rounds=2, limit=60)


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


def test_settings() -> None:
    names = {(s.name, s.real_batch, s.frequencies) for s in settings.STEPS}
    assert len(names) == len(settings.STEPS)
    for axis, values in settings.AXES.items():
        varied = settings.along(axis)
        same: dict[str, Any] = {axis: values[0]}
        assert [getattr(s, axis) for s in varied] == list(values)
        assert len({dataclasses.replace(s, **same) for s in varied}) == 1
        assert all(s.real_batch <= s.per_class for s in varied)


ABOUT = {"device": "cpu (x)", "versions": {"torch": "2", "python": "3"}, "commit": "abc", "date": "2026-01-01"}


def test_exponents() -> None:
    assert page.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert page.exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert page.exponent([1, 2, 4], [7, 7, 7]) == pytest.approx(0)
    assert page.exponent([1], [7]) is None
    assert page.exponent([1, 2], [0, 7]) is None


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render()


@pytest.mark.parametrize("contenders", ["here", pytest.param("processes", marks=pytest.mark.slow)])
def test_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, contenders: str
) -> None:
    """On tiny settings."""
    if contenders == "here":
        request.getfixturevalue("here")
    monkeypatch.setattr(floor, "measure_rates", lambda *_: RATES)
    monkeypatch.setattr(command, "CIFAR10", TINY)
    monkeypatch.setattr(command, "AXES", {"ipc": (1, 2)})
    monkeypatch.setattr(command, "along", lambda _: [dataclasses.replace(TINY, ipc=v) for v in (1, 2)])
    file, plot = tmp_path / "results.json", tmp_path / "growth.png"
    arguments = [
        "--only",
        "growth,students",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--compile",
        "off",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--json", str(file), "--plot", str(plot)])
    assert command.main() == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["growth"]["ipc"]["rows"][1]["stored_bytes"] == 2 * result["growth"]["ipc"]["rows"][0]["stored_bytes"]
    rows = result["students"]["rows"]
    assert rows["ncfmkit, together"]["together"] == 10
    assert all(row["ten_repeats_seconds"] > 0 for row in rows.values())
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "--only 'speed': expected some of step,growth"),
        (["--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--memory-budget", "lots"], "memory budget 'lots' is not a size"),
        (["--json", "nowhere/x.json"], "there is no folder nowhere"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "mps"], "measures cpu and cuda alone"),
        (["--match", "nothing"], "no setting has it in its name"),
        (["--plot", "x.png", "--only", "step"], "add growth to --only"),
    ],
)
def test_bad_input(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 2
    assert message in capsys.readouterr().err
