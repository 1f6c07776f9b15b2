"""The examples of docs/scale.md: they parse, and the script of the array jobs distills what a single run does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import set_bytes

import ncfmkit
from ncfmkit.jobs.setup import make_settings

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
RECIPE = """
[network]
width = 8
[pool]
members = 1
epochs = 1
[distill]
ipc = 1
factor = 1
steps = 8
frequencies = 32
real_batch = 16
[student]
repeats = 0
[runtime]
compile = "off"
device = "cpu"
classes_per_batch = 1
"""


def example(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.mark.parametrize("language", ["bash", "yaml", "python"])
def test_the_settings_of_the_examples_allow_shards(language: str) -> None:
    """Those of the recipe that they name, with the options that they give."""
    words = re.findall(r"--[a-z]+|[a-z]+", example(language).replace("${RECIPE:-paper}", "paper"))
    how = {key: words[words.index(f"--{key}") + 1] for key in ("recipe", "sampler", "schedule")}
    assert how["recipe"] == "paper"
    assert make_settings("digits", how.pop("recipe"), how | {"shard": "1/8"})


def test_ray_parses() -> None:
    compile(example("python"), "scale.md", "exec")


def test_kubernetes_parses() -> None:
    job = yaml.safe_load(example("yaml"))
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    script = container["command"][-1]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert f'"$shard/{spec["completions"]}"' in script
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in spec["template"]["spec"]["volumes"]
    }


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ncfmkit` in PATH, as it is once the package is installed."""
    program = tmp_path / "bin" / "ncfmkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ncfmkit "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("on_path")
def test_the_array_job_is_run_shard_by_shard_and_again(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "job.sh").write_text(example("bash"))
    env = os.environ | {"DATA": "digits", "RECIPE": "small.toml", "SLURM_ARRAY_TASK_COUNT": "2"}
    for task in ("1", "2", "1"):  # a job that is started again finds its work done
        subprocess.run(["bash", "job.sh"], env=env | {"SLURM_ARRAY_TASK_ID": task}, check=True, capture_output=True)
    ncfmkit.merge(sorted((tmp_path / "runs").iterdir()), out=tmp_path / "joined")
    ncfmkit.distill("digits", recipe="small.toml", out=tmp_path / "whole", schedule="cosine", baselines=())
    assert set_bytes(tmp_path / "joined") == set_bytes(tmp_path / "whole")
