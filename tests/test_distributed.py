"""Ranks: several processes make what one process makes, and say who is gone where one is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, refused
from ranks import Ended, Ranks, by_srun, by_torchrun, when
from small_runs import TINY, set_bytes, steps_logged

import ncfmkit
from ncfmkit import distributed
from ncfmkit.config import DistillSettings
from ncfmkit.distillation.shares import image_rows, joined, rank_labels, share_of
from ncfmkit.errors import UserError
from ncfmkit.run import RunDirectory

# one class after the other: a class's sums are then the same whatever classes are beside it
ALONE: dict[str, Any] = {"distill.sampler": "gaussian", "distill.average": 0.9, "runtime.classes_per_batch": 1}


def flags(**changes: Any) -> list[str]:
    """A tiny run of digits, on the command line."""
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    named = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    return ["digits", *named, "--baselines", "none"]


def one_process(out: Path, **changes: Any) -> Path:
    result = call("distill", *flags(**changes), "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


def all_end(ranks: list[Ended], code: int = 0) -> None:
    assert [rank.code for rank in ranks] == [code] * len(ranks), [rank.err for rank in ranks]


def test_ranks_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    how = {**ALONE, "distill.ipc": 3, "student.repeats": 4, "pool.members": 4, "distill.schedule": "plateau"}
    how |= {"distill.patience": 2}
    changes = {key.replace(".", "__"): value for key, value in how.items()}
    whole = one_process(tmp_path / "one", **changes)
    caches = [tmp_path / f"cache-{rank}" for rank in range(3)]  # as of three machines
    folders = [tmp_path, tmp_path / "rank-1", tmp_path / "rank-2"]
    for folder in folders[1:]:
        folder.mkdir()
    ranks = Ranks(3, "distill", *flags(**changes), "--out", "three", caches=caches, folders=folders).end()
    all_end(ranks)
    assert not list(folders[1].iterdir())  # the first alone has the run directory
    assert set_bytes(tmp_path / "three") == set_bytes(whole)
    assert steps_logged(tmp_path / "three") == steps_logged(whole)
    ours, others = (RunDirectory(path) for path in (tmp_path / "three", whole))
    for row, other in zip(ours.metrics(), others.metrics(), strict=True):
        assert [row.matching, row.calibration] == pytest.approx([other.matching, other.calibration], rel=1e-6)
        assert row.lr == other.lr
    assert len({row.lr for row in ours.metrics()}) > 1, "the plateau rule has to halve the rate"
    scores, of_whole = ours.scores(), others.scores()
    assert scores is not None
    assert of_whole is not None
    assert scores.rows[0].last == of_whole.rows[0].last
    assert scores.rows[0].classes == of_whole.rows[0].classes
    assert ours.info().ranks == 3
    assert [len(list(run.students.iterdir())) for run in (ours, others)] == [4, 4]  # kept by the first rank
    # the first alone speaks, and members went to the machines that did not train them
    assert "3 ranks on 1 machine" in ranks[0].err
    assert "synthetic.safetensors" in ranks[0].out
    assert [(rank.out, rank.err) for rank in ranks[1:]] == [("", "")] * 2
    members = [{p.name: p.read_bytes() for p in cache.rglob("member-*.safetensors")} for cache in caches]
    assert len(members[0]) == 4
    assert members[0] == members[1] == members[2]


def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    ranks = Ranks(2, "distill", tmp_path / "nowhere", "--out", tmp_path / "run").end()
    all_end(ranks, 2)
    assert "no data found at" in ranks[0].err
    assert ranks[1].err == ""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_sampling_network_learns_from_the_classes_of_all_ranks(tmp_path: Path, precision: str) -> None:
    how = {"distill__sampler": "learned", "distill__steps": 4, "student__repeats": 0, "runtime__precision": precision}
    whole = one_process(tmp_path / "one", **how)
    all_end(Ranks(2, "distill", *flags(**how), "--out", tmp_path / "two").end())
    images, others = (ncfmkit.load(path).images.int() for path in (tmp_path / "two", whole))
    assert (images - others).abs().max() <= 1
    states = [RunDirectory(path).load_checkpoint() for path in (tmp_path / "two", whole)]
    ours, of_whole = (
        torch.cat([part["momentum_buffer"].ravel() for part in state["psi_optimizer"]["state"].values()])
        for state in states
        if state is not None
    )  # sums of all classes' gradients
    assert (ours - of_whole).abs().max() <= of_whole.abs().max() * (1e-4 if precision == "fp32" else 2e-2)


@pytest.mark.slow
def test_srun_starts_ranks_too(tmp_path: Path) -> None:
    how = {key.replace(".", "__"): value for key, value in ALONE.items()}
    whole = one_process(tmp_path / "one", **how)
    ranks = Ranks(2, "distill", *flags(**how), "--out", tmp_path / "two", environment=by_srun).end()
    all_end(ranks)
    assert set_bytes(tmp_path / "two") == set_bytes(whole)
    shards = Ranks(
        2, "distill", *flags(**how), "--schedule", "cosine",
        own=[["--shard", f"{k}/2", "--out", str(tmp_path / f"shard-{k}")] for k in (1, 2)],
        environment=by_srun,
    ).end()  # fmt: skip
    all_end(shards)
    assert all((tmp_path / f"shard-{k}" / "run.json").exists() for k in (1, 2))


LONG = {"distill__steps": 200, "student__repeats": 2, **{k.replace(".", "__"): v for k, v in ALONE.items()}}


def saved(folder: Path) -> bool:
    return RunDirectory(folder).steps_done() > 4  # the first one is known to all ranks by then


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])
def test_ranks_end_when_one_is_killed_and_another_number_goes_on(tmp_path: Path, gone: int) -> None:
    whole = one_process(tmp_path / "one", **LONG)
    run = tmp_path / "three"
    ranks = Ranks(3, "distill", *flags(**LONG), "--out", run)
    when(lambda: saved(run))
    ranks.signal(gone, signal.SIGKILL)
    ended = ranks.end()
    assert [rank.code for rank in ended] == [-9 if r == gone else 1 for r in range(3)]
    says = ended[1 if gone == 0 else 0].err
    assert (f"rank {gone} of 3 did not take part" if gone else "rank 0 of 3 does not answer") in says
    assert f"is kept: continue with --resume {run}" in says
    assert "Traceback" not in says
    assert gone == 0 or ended[2].err == ""

    # the state is of classes, not of ranks
    resumed = Ranks(2, "distill", "--resume", run).end()
    all_end(resumed)
    assert "the run has had 3 ranks and 2 ranks in turn" in resumed[0].err
    assert set_bytes(run) == set_bytes(whole)


@pytest.mark.slow
def test_a_stuck_rank_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = Ranks(3, "distill", *flags(**LONG, runtime__rank_timeout=5), "--out", run)
    when(lambda: saved(run))
    ranks.signal(2, signal.SIGSTOP)
    ended = ranks.end(without=2)
    all_end(ended, 1)
    assert "rank 2 of 3 did not take part: it was last heard of at " in ended[0].err
    assert "(rank 0: distilling: " in ended[0].err
    assert ended[1].err == ""


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    whole = one_process(tmp_path / "one", **LONG)
    run = tmp_path / "two"
    ranks = Ranks(2, "distill", *flags(**LONG), "--out", run)
    when(lambda: saved(run))
    ranks.signal(1, signal.SIGTERM)
    ended = ranks.end()
    all_end(ended, 130)
    assert "continue with --resume" in ended[0].err
    assert ended[1].err == ""
    all_end(Ranks(2, "distill", "--resume", run).end())
    assert set_bytes(run) == set_bytes(whole)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces, joined by a cable."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs Linux, root and iproute2")
    names = [f"ncfmkit-{os.getpid()}-{side}" for side in "ab"]
    try:
        if subprocess.run(["ip", "netns", "add", names[0]], check=False).returncode != 0:
            pytest.skip("network namespaces are not allowed here")
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.97.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_two_hosts_whose_link_is_cut(tmp_path: Path, hosts: list[str], for_good: bool) -> None:
    def environment(rank: int, world: int, port: int) -> dict[str, str]:
        return by_torchrun(rank, world, port) | {"MASTER_ADDR": "10.97.0.1", "GLOO_SOCKET_IFNAME": "cable"}

    whole, run = one_process(tmp_path / "one", **LONG), tmp_path / "two"
    caches = [tmp_path / "cache-a", tmp_path / "cache-b"]
    before = [["ip", "netns", "exec", host] for host in hosts]
    how = flags(**LONG, runtime__rank_timeout=5 if for_good else 60)
    ranks = Ranks(2, "distill", *how, "--out", run, environment=environment, caches=caches, before=before)
    when(lambda: saved(run))
    ip("-n", hosts[0], "link", "set", "cable", "down")
    if not for_good:
        time.sleep(10)
        ip("-n", hosts[0], "link", "set", "cable", "up")
    ended = ranks.end()
    if for_good:
        all_end(ended, 1)
        assert "rank 1 of 2 did not take part: it was last heard of at " in ended[0].err
        assert "rank 0 of 2 does not answer rank 1" in ended[1].err
        all_end(Ranks(1, "distill", "--resume", run).end())
    else:
        all_end(ended)
    assert set_bytes(run) == set_bytes(whole)


@pytest.mark.slow
def test_torchrun_starts_ranks_again_and_the_run_goes_on(tmp_path: Path) -> None:
    whole, run = one_process(tmp_path / "one", **LONG), tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [*torchrun, "-m", "ncfmkit", "distill", *flags(**LONG), "--out", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        when(lambda: saved(run))
        rank = next(
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and (b"RANK=1" in _environment(folder)) and str(run) in _command(folder)
        )
        os.kill(rank, signal.SIGKILL)
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "resuming after step" in err
    assert set_bytes(run) == set_bytes(whole)


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.mark.slow
def test_what_one_rank_finds_wrong_is_said_once(tmp_path: Path) -> None:
    how = flags()
    ranks = Ranks(2, "distill", *how, own=[["--seed", "1"], ["--seed", "2"]]).end()
    all_end(ranks, 2)
    assert "ranks 0 and 1 were started with other arguments" in ranks[0].err
    assert ranks[1].err == ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("a file of the user's")
    ranks = Ranks(2, "distill", *how, "--out", tmp_path / "run").end()
    all_end(ranks, 2)
    assert "already exists: pass --force to overwrite it" in ranks[0].err
    assert ranks[1].err == ""


@pytest.mark.slow
def test_what_fails_on_the_first_rank_alone_is_said_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = Ranks(3, "distill", *flags(**LONG), "--out", run)
    when(lambda: saved(run))
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    ended = ranks.end()
    assert ended[0].code == 2
    assert "cannot write" in ended[0].err
    assert [rank.err for rank in ended[1:]] == ["", ""]


@pytest.mark.slow
def test_members_without_snapshots_are_trained_again_on_all_machines(tmp_path: Path) -> None:
    caches = [tmp_path / "cache-0", tmp_path / "cache-1"]
    how = [text for key in ("network.width=8", "pool.epochs=3", "pool.members=3") for text in ("--set", key)]
    for snapshots in ("0", "1"):
        kept = ["--set", f"pool.snapshots={snapshots}"]
        all_end(Ranks(2, "pretrain", "digits", *how, *kept, "--json", caches=caches).end())
    members = [{p.name: p.read_bytes() for p in cache.rglob("member-*.safetensors")} for cache in caches]
    assert members[0] == members[1]
    assert all(b"epoch-2/" in content for content in members[0].values())


@pytest.mark.slow
def test_students_that_are_trained_are_not_trained_by_another_number_of_ranks(tmp_path: Path) -> None:
    """Three students on two ranks, of which the second has no share of what is left for the fourth, but of the pool."""
    run = one_process(tmp_path / "one", student__repeats=0)
    caches = [tmp_path / "cache-0", tmp_path / "cache-1"]
    command = (
        "evaluate",
        run,
        "--data",
        "digits",
        "--json",
        "--student-epochs",
        3,
        "--baselines",
        "herding",
        "--repeats",
    )
    rows = []
    for repeats, kept in ((3, 0), (4, 3), (4, 4)):
        ranks = Ranks(2, *command, repeats, caches=caches).end()
        all_end(ranks)
        rows.append(json.loads(ranks[0].out)["rows"][0])
        assert ranks[0].err.count(f"{kept} of {repeats} are trained already") == (2 if kept else 0)
        assert [len(list(cache.glob("students/*/*.json"))) for cache in caches] == [2 * repeats, 0]
        for cache in caches:
            shutil.rmtree(cache / "pools", ignore_errors=True)
    assert rows[2] == rows[1]
    assert rows[1]["last"]["values"][:3] == rows[0]["last"]["values"]


@pytest.mark.slow
def test_evaluate_and_pretrain_in_ranks(tmp_path: Path) -> None:
    run = one_process(tmp_path / "one", student__repeats=3)
    ranks = Ranks(2, "evaluate", run, "--data", "digits", "--json", "--baselines", "herding").end()
    all_end(ranks)
    rows = json.loads(ranks[0].out)["rows"]
    scores = RunDirectory(run).scores()
    assert scores is not None
    assert rows[0]["last"]["values"] == pytest.approx(scores.rows[0].last.values)
    assert ranks[1].out == ""
    caches = [tmp_path / "cache-0", tmp_path / "cache-1"]
    settings = [text for key in ("network.width=8", "pool.epochs=1", "pool.members=3") for text in ("--set", key)]
    all_end(Ranks(2, "pretrain", "digits", *settings, "--json", caches=caches).end())
    assert all(len(list(cache.rglob("member-*.safetensors"))) == 3 for cache in caches)


def test_other_commands_work_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused("recipes", says=r"`ncfmkit recipes` works in one process, and this is rank 1 of 4")


def test_one_of_one_ranks_is_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert call("recipes").exit_code == 0


def test_restarts_need_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "may_restart", lambda: True)
    for out in ([], ["--out", "somewhere", "--force"]):
        refused("distill", "digits", *out, says=r"torchrun --max-restarts: .* pass --out with a new directory")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[03-07,9]", "n03"), ("a-1,b[2-3]", "a-1"), ("r[1,4]c.example", "r1c.example"), ("a[2],b", "a2")],
)
def test_ranks_of_srun_meet_at_the_first_node(monkeypatch: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    assert distributed._slurm_address() == {"MASTER_ADDR": first, "MASTER_PORT": "24569"}


def test_one_process_shares_nothing() -> None:
    tensor = torch.arange(3.0)
    distributed.add(tensor)
    distributed.lowest(tensor)
    assert tensor.tolist() == [0, 1, 2]
    assert distributed.any_of(True, False) == (True, False)
    assert distributed.gathered("a") == distributed.gathered_by_first("a") == ["a"]
    assert distributed.from_first(lambda: 3) == distributed.once_per_machine(lambda: 3) == 3
    with pytest.raises(UserError, match="mine"), distributed.agreed():
        raise UserError("mine")


def test_ranks_get_classes_of_about_as_many_images() -> None:
    names, counts = "abcdefg", [500, 20, 500, 60, 500, 40, 500]
    shares = rank_labels(names, counts, DistillSettings(real_batch=100), 3)
    assert sorted(np.concatenate(shares)) == list(range(7))
    loads = [sum(min(counts[label], 100) for label in share) for share in shares]
    assert max(loads) - min(loads) <= 100
    # of a shard's classes, too
    half = rank_labels(names, counts, DistillSettings(real_batch=100, shard="2/2"), 2)
    assert sorted(np.concatenate(half)) == sorted(
        rank_labels(names, counts, DistillSettings(real_batch=100, shard="2/2"), 1)[0]
    )
    with pytest.raises(UserError, match="8 ranks for 7 classes"):
        rank_labels(names, counts, DistillSettings(), 8)


def test_every_rank_goes_on_with_its_own_plan(tmp_path: Path) -> None:
    folder = one_process(tmp_path / "run", distill__sampler="gaussian", student__repeats=0)
    state = RunDirectory(folder).load_checkpoint()
    assert state is not None
    assert len(state["plans"]) == 1
    assert state["plans"][0].keys() == {"chunk", "kept_graphs", "classes_per_batch"}


def test_states_of_ranks_are_joined_and_dealt_again() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((8, 3, 4, 4), np.float32))
    state = {
        "images": images,
        "optimizer": {"state": {0: {"exp_avg": images * 2, "step": torch.tensor(3.0)}}},
        "step": 3,
    }
    rows = image_rows([np.array([1, 4]), np.array([0, 6])], 2)
    assert [of_rank.tolist() for of_rank in rows] == [[2, 3, 4, 5], [0, 1, 6, 7]]
    parts = [share_of(state, of_rank) for of_rank in rows]
    assert parts[1]["optimizer"]["state"][0]["exp_avg"].equal(images[[0, 1, 6, 7]] * 2)
    whole = joined(parts, rows)
    assert whole["images"].equal(images)
    assert whole["optimizer"]["state"][0]["exp_avg"].equal(images * 2)
    assert whole["step"] == 3
