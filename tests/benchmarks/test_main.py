"""The command on tiny settings."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from contenders import RATES, TINY

from benchmarks import __main__ as command
from benchmarks import floor


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
