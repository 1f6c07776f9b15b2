"""Shards of a run, distilled apart, and joined: the bytes of a run of all classes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, refused
from small_runs import TINY, make_folder, set_bytes, steps_logged

import ncfmkit
from ncfmkit.config import DistillSettings, Settings, check, override
from ncfmkit.distillation.problem import StepReport, make_problem, read
from ncfmkit.distillation.shares import distilled_labels
from ncfmkit.errors import NonFiniteLossError, UserError
from ncfmkit.jobs import distill as job
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import MetricsRow
from ncfmkit.runtime import Runtime

# one class after the other: a class's sums are then the same whatever classes are beside it
HOW: dict[str, Any] = TINY | {
    "distill.sampler": "gaussian",
    "distill.schedule": "cosine",
    "distill.average": 0.9,
    "runtime.classes_per_batch": 1,
}


def start(out: Path, how: dict[str, Any] | None = None, *, data: str = "digits") -> Path:
    return job.start(DataArguments(data=data), recipe=None, out=out, baselines=(), overrides=HOW | (how or {}))


def shards(folder: Path, of: int, how: dict[str, Any] | None = None) -> list[Path]:
    return [start(folder / f"{k}", (how or {}) | {"distill.shard": f"{k}/{of}"}) for k in range(1, of + 1)]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"distill.sampler": "learned", "distill.sampler_lr": 0.0},
        {"distill.optimizer": "sgd", "distill.ipc": 2, "distill.easiest": 0.5},
        {"labels.soft": True, "pool.epochs": 12},
        {"data.color": "rgb", "distill.bits": 2, "distill.chroma": "4:2:0", "distill.ipc": 2},
    ],
)
def test_shards_joined_are_the_run_of_all_classes(tmp_path: Path, how: dict[str, Any]) -> None:
    parts = shards(tmp_path, 3, how)
    whole = start(tmp_path / "whole", how)
    result = ncfmkit.merge(parts[::-1], out=tmp_path / "joined")
    assert set_bytes(tmp_path / "joined") == set_bytes(whole)
    assert steps_logged(tmp_path / "joined") == steps_logged(whole)
    joined, other = (RunDirectory(path).metrics() for path in (tmp_path / "joined", whole))
    assert [row.matching for row in joined] == pytest.approx([row.matching for row in other], rel=1e-6)
    assert result.scores is not None
    assert result.run_dir == tmp_path / "joined"


def test_stacked_classes_differ_by_rounding_alone(tmp_path: Path) -> None:
    parts = shards(tmp_path, 2, {"runtime.classes_per_batch": None, "student.repeats": 0})
    whole = start(tmp_path / "whole", {"runtime.classes_per_batch": None, "student.repeats": 0})
    joined = ncfmkit.merge(parts, out=tmp_path / "joined").set.images.int()
    assert (joined - ncfmkit.load(whole).images.int()).abs().max() <= 1


def test_an_interrupted_shard_is_resumed(tmp_path: Path) -> None:
    parts = shards(tmp_path, 2)
    shutil.rmtree(parts[1])

    def stop(row: MetricsRow) -> None:
        if row.step == 6:
            raise LookupError("enough")

    how = HOW | {"distill.shard": "2/2"}
    with pytest.raises(LookupError, match="enough"):
        job.start(DataArguments(data="digits"), recipe=None, out=parts[1], baselines=(), overrides=how, callback=stop)
    refused("merge", *parts, says=r"2 is not finished \(status: distilling\): continue with --resume .*2")
    assert call("distill", "--resume", parts[1]).exit_code == 0
    assert call("distill", "--resume", parts[1]).exit_code == 0  # it is finished: nothing happens
    ncfmkit.merge(parts, out=tmp_path / "joined")
    assert set_bytes(tmp_path / "joined") == set_bytes(start(tmp_path / "whole"))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [word for key, value in (HOW | {"student.repeats": 1}).items() for word in ("--set", f"{key}={value}")]
    planned = call("distill", "digits", "--shard", "1/2", *flags, "--dry-run", "--json")
    assert json.loads(planned.stdout)["writes"] == ["runs/digits-ipc1-shard-1-of-2/checkpoint"]
    for shard in ("1/2", "2/2"):
        made = call("distill", "digits", "--shard", shard, *flags)
        assert made.exit_code == 0
        assert f"shard {shard} of the classes" in made.stderr
        assert f"shard {shard} is distilled: once all are, join them with `ncfmkit merge RUN ...`" in made.stderr
        assert made.stdout == ""
    parts = sorted(str(path) for path in Path("runs").iterdir())
    assert parts == ["runs/digits-ipc1-shard-1-of-2", "runs/digits-ipc1-shard-2-of-2"]
    assert "1/2 of the classes: ncfmkit merge joins the shards" in call("inspect", parts[0]).stdout
    merged = call("merge", *parts)
    assert merged.exit_code == 0
    assert "2 shards joined in runs/digits-ipc1" in merged.stderr
    assert "runs/digits-ipc1/synthetic.safetensors" in merged.stdout
    again = call("merge", *parts, "--json")
    assert json.loads(again.stdout)["run"] == "runs/digits-ipc1-2"
    assert set_bytes(Path("runs/digits-ipc1-2")) == set_bytes(Path("runs/digits-ipc1"))


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, two, three = shards(tmp_path, 3)
    refused("merge", one, two, says="shards are missing: 3/3; distill each with --shard")
    refused("merge", one, two, three, one, says="shard 1/3 is given twice: .*1 and .*1")
    refused("merge", one, start(tmp_path / "half", {"distill.shard": "2/2"}), says="it is one of 2 shards, not of 3")
    seeded = start(tmp_path / "seeded", {"distill.shard": "2/3", "seed": 1})
    refused("merge", one, seeded, three, says="seeded is not of the same run as .*1: seed is 1, not 0")
    faster = start(tmp_path / "faster", {"distill.shard": "2/3", "distill.lr": 0.5})
    refused("merge", one, faster, three, says="distill.lr is 0.5, not 0.01")
    coarse = start(tmp_path / "coarse", {"distill.shard": "2/3", "runtime.precision": "bf16"})
    refused("merge", one, coarse, three, says="precision is bf16, not fp32")
    folder = make_folder(tmp_path / "data", {"a": 9, "b": 9, "c": 9})
    how = {"distill.ipc": 1, "runtime.compile": "off", "student.repeats": 0}
    other = start(tmp_path / "other", how | {"distill.shard": "2/3"}, data=str(folder))
    refused("merge", one, other, three, says="its real data differ")
    whole = start(tmp_path / "whole")
    refused("merge", one, whole, says="whole is no shard: it distilled all classes")
    refused("merge", one, tmp_path / "nowhere", says="nowhere is not a run directory")
    for file in (two / "checkpoint").iterdir():
        file.write_bytes(b"damaged")
    refused("merge", one, two, three, says="2 has no whole checkpoint of its last step: distill this shard again")
    refused("merge", one, two, three, "--out", whole, says="whole")
    assert not (tmp_path / "joined").exists()


def test_extractors_that_were_trained_apart_are_noticed(tmp_path: Path) -> None:
    parts = shards(tmp_path, 2)
    run = RunDirectory(parts[1])
    pool = run.info().pool
    assert pool is not None
    run.update(pool=pool.model_copy(update={"accuracies": (0.5, 0.5)}))
    assert "with extractors that were trained apart" in call("merge", *parts, "--out", tmp_path / "joined").stderr


def test_a_shard_has_no_set_for_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a shard has no set of its own"):
        ncfmkit.distill("digits", out=tmp_path / "run", shard="1/2", **HOW)
    with pytest.raises(UserError, match=r"is shard 1/2, without a set of its own: ncfmkit.merge joins the shards"):
        ncfmkit.resume(start(tmp_path / "run", {"distill.shard": "1/2"}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"distill.shard": "0/2"}, "--shard '0/2': expected a number and of how many, such as 3/8"),
        ({"distill.shard": "3/2"}, "--shard '3/2': expected a number"),
        ({"distill.shard": "1 of 2"}, "--shard '1 of 2': expected a number"),
        ({"distill.steps": 0}, "--shard needs --steps of 1 or more"),
        ({"distill.schedule": "plateau"}, "--shard: --schedule plateau follows the loss of all classes"),
        ({"distill.sampler": "learned"}, "--shard: a sampling network learns from all classes"),
        ({"runtime.precision": "fp16"}, "--shard: --precision fp16 scales the gradients of all classes alike"),
    ],
)
def test_what_couples_the_classes_is_refused(how: dict[str, Any], says: str) -> None:
    settings = {"distill.shard": "1/2", "distill.schedule": "constant", "distill.sampler": "gaussian"} | how
    with pytest.raises(UserError, match=re.escape(says)):
        check(override(Settings(recipe="paper"), settings))


def test_more_shards_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shard 11/11: expected at most 10 shards, one for each class"):
        start(tmp_path / "run", {"distill.shard": "11/11"})


@pytest.mark.parametrize("of", [1, 2, 3, 7, 20])
def test_shards_share_the_work(of: int) -> None:
    counts = np.random.default_rng(0).integers(1, 200, 20).tolist()
    parts = [
        distilled_labels("abcdefghij"[: len(counts)], counts, DistillSettings(shard=f"{k}/{of}", real_batch=100))
        for k in range(1, of + 1)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    work = [sum(min(counts[c], 100) for c in part) for part in parts]
    assert max(work) - min(work) <= 100
    assert all(part.tolist() == sorted(part.tolist()) and len(part) for part in parts)


def test_equal_classes_are_shared_evenly() -> None:
    sizes = [len(distilled_labels("abcdefghij", [500] * 10, DistillSettings(shard=f"{k}/4"))) for k in range(1, 5)]
    assert sorted(sizes) == [2, 2, 3, 3]


def test_a_broken_class_of_a_shard_is_named(real: RealData, make_pool: Callable, runtime: Runtime) -> None:
    pool, build = make_pool(real)
    settings = DistillSettings(ipc=1, frequencies=32, shard="2/3")
    problem = make_problem(real, settings, seed=0, pool=pool, builds=[build], runtime=runtime)
    (label,) = problem.label_C
    report = StepReport(step=4, values=torch.tensor([1.0, 1.0, 1e-3, 0, -1, -1]))  # the first class that is there
    with pytest.raises(NonFiniteLossError, match=f"of class '{real.classes[label]}' became non-finite in step 4"):
        read(problem, [report])


def test_a_merge_that_was_cut_off_is_no_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = shards(tmp_path, 2)

    def killed(self: RunDirectory, state: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            ncfmkit.merge(parts, out=tmp_path / "joined")
    refused("distill", "--resume", tmp_path / "joined", says="was not joined to its end: run `ncfmkit merge RUN")
    ncfmkit.merge(parts, out=tmp_path / "joined", force=True)
    assert RunDirectory(tmp_path / "joined").info().status == "done"
