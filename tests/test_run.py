"""A run directory: checkpoints survive damage, metrics are cut, signals wait."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import metrics, run_info, score

from ncfmkit.errors import UserError
from ncfmkit.run import RunDirectory, deferred_interrupts, next_free
from ncfmkit.run_records import PoolInfo

INFO = run_info()
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", INFO)


def state(step: int) -> dict:
    return {"step": step, "images": torch.full((4, 3), float(step))}


def loaded_from(run: RunDirectory) -> dict[str, Any]:
    """The state of the newest good checkpoint, which must be there."""
    loaded = run.load_checkpoint()
    assert loaded is not None
    return loaded


def names(run: RunDirectory) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir())


def test_newest_two_checkpoints_are_kept(run: RunDirectory) -> None:
    for step in (5, 10, 15, 20):
        run.save_checkpoint(state(step))
    assert names(run) == ["step-00000015.pt", "step-00000020.pt"]
    loaded = loaded_from(run)
    assert loaded["step"] == 20
    assert torch.equal(loaded["images"], state(20)["images"])


def test_a_checkpoint_from_a_gpu_is_read_to_the_cpu(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    run.save_checkpoint(state(5))
    assert loaded_from(run)["images"].device == torch.device("cpu")


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "bit flip": flip,
    "flip in the checksum": lambda c: c[:-1] + bytes([c[-1] ^ 1]),
    "truncated": lambda c: c[: len(c) // 2],
    "one byte short": lambda c: c[:-1],
    "empty": lambda c: b"",
    "shorter than a checksum": lambda c: c[:7],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_newest_is_noticed_and_the_one_before_used(
    run: RunDirectory, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    run.save_checkpoint(state(5))
    run.save_checkpoint(state(10))
    newest = run.checkpoints / "step-00000010.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    assert loaded_from(run)["step"] == 5
    said = capsys.readouterr()
    assert "step-00000010.pt is damaged" in said.err
    assert not said.out


def test_all_damaged_is_none(run: RunDirectory) -> None:
    for step in (5, 10):
        run.save_checkpoint(state(step))
    for path in run.checkpoints.iterdir():
        path.write_bytes(flip(path.read_bytes()))
    assert run.load_checkpoint() is None


def test_no_checkpoint_is_none(run: RunDirectory) -> None:
    assert run.load_checkpoint() is None


def test_a_damaged_later_checkpoint_does_not_push_out_a_good_one(run: RunDirectory) -> None:
    for step in (10, 20):
        run.save_checkpoint(state(step))
    newest = run.checkpoints / "step-00000020.pt"
    newest.write_bytes(flip(newest.read_bytes()))
    run.save_checkpoint(state(12))
    assert names(run) == ["step-00000010.pt", "step-00000012.pt"]


def test_other_files_beside_checkpoints_stay(run: RunDirectory) -> None:
    run.checkpoints.mkdir()
    note = run.checkpoints / "step-note.pt"
    note.write_text("mine")
    for step in (1, 2, 3):
        run.save_checkpoint(state(step))
    assert note.read_text() == "mine"
    assert loaded_from(run)["step"] == 3


def test_cut_metrics(run: RunDirectory) -> None:
    rows = metrics(7)
    for row in rows:
        run.append_metrics(row)
    assert run.metrics() == rows
    assert run.cut_metrics(5) == rows[:5]
    assert run.metrics() == rows[:5]
    assert run.cut_metrics(0) == []
    assert run.metrics() == []


def test_cut_metrics_drops_a_line_that_a_crash_cut_short(run: RunDirectory) -> None:
    first, second = metrics(2)
    run.append_metrics(first)
    with open(run.metrics_file, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "match')
    assert run.cut_metrics(9) == [first]
    run.append_metrics(second)
    assert run.metrics() == [first, second]


def test_metrics_that_cannot_be_written(run: RunDirectory) -> None:
    run.metrics_file.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        run.append_metrics(metrics(1)[0])


def test_free(tmp_path: Path) -> None:
    RunDirectory.free(tmp_path / "new" / "run")
    RunDirectory.free(tmp_path)  # empty


def test_another_run_is_refused(run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"already exists and holds a run: .*--resume"):
        RunDirectory.free(run.path)
    with pytest.raises(UserError, match="already exists and holds a run"):
        RunDirectory.create(run.path, run_info(seed=5))
    assert run.info() == INFO


def content(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name != "lock"}


def test_force_keeps_the_earlier_run_until_the_new_one_is_done(run: RunDirectory) -> None:
    run.update(status="done")
    new = RunDirectory.create(run.path, run_info(status="new"), force=True)
    old = run.path.with_name("run.old")
    assert RunDirectory.open(old).info().status == "done"
    assert new.info().status == "new"
    assert new.kept().endswith(f"continue with --resume {run.path}; until it is done, the earlier run stays in {old}")
    third = RunDirectory.create(run.path, INFO, force=True)  # the second was interrupted
    assert content(run.path.parent) == {
        "run",
        "run/run.json",
        *(f"run.old{n}{f}" for n in ("", "-2") for f in ("", "/run.json")),
    }
    third.finish()
    assert content(run.path.parent) == {"run", "run/run.json"}
    assert third.kept().endswith(f"--resume {run.path}")


def test_force_replaces_nothing_but_a_run(run: RunDirectory) -> None:
    (run.path / ".run.json.77.tmp").touch()  # of a process that was killed
    (run.path / "events.out.tfevents.1700000000.host.1.0").touch()  # of --log tensorboard
    RunDirectory.free(run.path, force=True)
    (run.path / "student.safetensors").write_text("mine")
    with pytest.raises(
        UserError, match=r"`ncfmkit distill` wrote, and .*run holds something else \(student\.safetensors\)"
    ):
        RunDirectory.create(run.path, INFO, force=True)
    assert len(content(run.path)) == 4
    assert not run.path.with_name("run.old").exists()


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"replaces": 5}', b'{"replaces": [5]}'])
def test_force_replaces_a_damaged_run(run: RunDirectory, said: bytes) -> None:
    run.info_file.write_bytes(said)
    RunDirectory.create(run.path, INFO, force=True).finish()
    assert content(run.path.parent) == {"run", "run/run.json"}


def test_force_does_not_take_a_run_from_another_process(run: RunDirectory) -> None:
    with run.alone(), pytest.raises(UserError, match="another process works in"):
        RunDirectory.create(run.path, INFO, force=True)
    assert run.info() == INFO


@pytest.mark.parametrize("name", ["../victim", "victim", "run.old/../victim", "run.older", "run.old-x"])
def test_a_run_says_in_vain_that_it_replaces_other_folders(run: RunDirectory, name: str) -> None:
    victim = run.path.parent / name.removeprefix("../").removeprefix("run.old/../")
    RunDirectory.create(victim, INFO)
    (run.path.parent / "run.old").mkdir()
    run.update(replaces=(name, "run.old"))
    run.finish()
    assert (victim / "run.json").exists()


def test_an_earlier_run_that_got_other_files_stays(run: RunDirectory) -> None:
    new = RunDirectory.create(run.path, INFO, force=True)
    note = run.path.with_name("run.old") / "note.txt"
    note.write_text("mine")
    new.finish()
    assert note.read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists: pass --force"):
        RunDirectory.free(tmp_path)
    with pytest.raises(UserError, match=r"wrote, and .* holds something else \(thesis.txt\)"):
        RunDirectory.free(tmp_path, force=True)
    with pytest.raises(UserError, match="is not a folder"):
        RunDirectory.free(tmp_path / "thesis.txt", force=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        RunDirectory.create(tmp_path / "file" / "run", INFO)


def test_a_full_disk_at_the_start_leaves_a_folder_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"the disk is full: .*run\.json was not written"):
            RunDirectory.create(tmp_path / "run", INFO)
    assert RunDirectory.create(tmp_path / "run", INFO).info() == INFO


def test_two_processes_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds the folder free, and the run in it when it has the lock."""
    free, path = RunDirectory.free, tmp_path / "run"

    def free_then_taken(path: Path, *, force: bool = False) -> None:
        free(path, force=force)
        path.mkdir()
        INFO.write(path / "run.json")

    monkeypatch.setattr(RunDirectory, "free", staticmethod(free_then_taken))
    monkeypatch.setattr("os.rename", lambda *_: None)  # of an earlier run: there was none when it looked
    with pytest.raises(UserError, match=r"run already exists and holds a run"):
        RunDirectory.create(path, INFO.model_copy(update={"seed": 5}))
    assert RunDirectory(path).info() == INFO


def test_open_needs_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"not a run directory: .*run\.json"):
            RunDirectory.open(path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b"{}"])
def test_damaged_info(run: RunDirectory, content: bytes) -> None:
    run.info_file.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged: "):
        RunDirectory.open(run.path).info()


def test_one_process_at_a_time(run: RunDirectory) -> None:
    with (
        run.alone(),
        pytest.raises(UserError, match=r"another process works in .*run: wait"),
        RunDirectory.open(run.path).alone(),
    ):
        raise AssertionError("two work in one run directory")
    with pytest.raises(ZeroDivisionError), run.alone():
        raise ZeroDivisionError
    with run.alone():
        pass


def test_a_killed_process_holds_nothing(run: RunDirectory) -> None:
    code = (
        "import sys, time, pathlib; from ncfmkit.run import RunDirectory\n"
        "with RunDirectory.open(pathlib.Path(sys.argv[1])).alone():\n    print('works', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"works\n"
        with pytest.raises(UserError, match="another process works in"), run.alone():
            pass
        process.kill()
    with run.alone():
        pass


def test_a_run_directory_that_is_not_writable(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"the run directory .*run is not writable"), run.alone():
        pass


def test_update_keeps_the_rest(run: RunDirectory) -> None:
    run.info_file.write_text(json.dumps(INFO.to_dict() | {"later": 1}))
    pool = PoolInfo(key="abc", accuracies=(0.5, None), seconds=2.0)
    run.update(status="done", pool=pool)
    assert run.info().to_dict() == INFO.to_dict() | {"later": 1, "status": "done", "pool": pool.to_dict()}


def test_all_that_is_wrong_with_a_damaged_info_is_said(run: RunDirectory) -> None:
    wrong: dict[str, Any] = INFO.to_dict() | {"seed": "0", "status": 3}
    wrong["data"]["counts"] = {"train": [1, -1]}
    run.info_file.write_text(json.dumps(wrong))
    with pytest.raises(UserError) as caught:
        run.info()
    said = str(caught.value)
    for part in ("run.json is damaged:", "seed: input should be a valid integer, got '0'", "status: ", "train.1: "):
        assert part in said


OLDEST = {  # what the first version wrote
    "ncfmkit": "0.1.0",
    "arguments": {"data": "digits", "data_root": None, "download": False, "skip_bad": False},
    "baselines": ["random"],
    "data": {
        "name": "digits",
        "classes": ["0", "1"],
        "train": 8,
        "test": 4,
        "size": 8,
        "channels": 1,
        "fingerprint": "abc",
        "skipped": 0,
    },
    "settings": {"recipe": "digits"},
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "compile": False,
    "versions": {"torch": "2.9.0"},
    "status": "distilling",
}


def test_what_an_earlier_version_wrote_opens_and_is_kept(run: RunDirectory) -> None:
    run.info_file.write_text(json.dumps(OLDEST))
    info = run.info()
    assert (info.threads, info.pool, info.timings, info.data.counts) == (None, None, None, {})
    run.update(status="done")
    assert (
        json.loads(run.info_file.read_text()).items()
        >= (OLDEST | {"status": "done", "data": info.data.to_dict()}).items()
    )


def test_next_free(tmp_path: Path) -> None:
    assert next_free(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert next_free(tmp_path, "a") == tmp_path / "a-2"
    (tmp_path / "a-2").mkdir()
    assert next_free(tmp_path, "a") == tmp_path / "a-3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_wait_and_a_second_does_not(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    after_second = False

    def work() -> None:
        nonlocal after_second
        with deferred_interrupts() as interrupted:
            assert not interrupted()
            os.kill(os.getpid(), number)
            assert interrupted()
            os.kill(os.getpid(), number)
            after_second = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not after_second
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert "stopping after this step" in capsys.readouterr().err


def test_a_signal_that_came_too_late_for_the_block_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background of a script
    try:
        with deferred_interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), deferred_interrupts():
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with deferred_interrupts() as interrupted:
            seen.extend([interrupted(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]


def test_metrics_pass_over_a_last_line_cut_short(run: RunDirectory) -> None:
    assert run.metrics() == []
    for row in metrics(3):
        run.append_metrics(row)
    whole = run.metrics_file.read_text()
    assert run.metrics() == metrics(3)
    for cut in range(1, 60):
        run.metrics_file.write_text(whole[:-cut])
        assert run.metrics() == metrics(3 if cut == 1 else 2), f"cut by {cut}"


@pytest.mark.parametrize("damage", ['{"st', '{"step": 1}', "[]", '{"step": 1, "matching": NaN}'])
def test_damage_of_metrics_before_the_last_line_is_said(run: RunDirectory, damage: str) -> None:
    for row in metrics(3):
        run.append_metrics(row)
    first, _, last = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join([first, damage, last]))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2: .*: mend or delete the line"):
        run.metrics()


def test_scores(run: RunDirectory) -> None:
    assert run.scores() is None
    assert "scores" not in run.to_dict()
    rows = [score("distilled", 0.5).to_dict(), score("random", 0.3).to_dict()]
    for later in ("steps", "classes", "curve"):
        del rows[1][later]
    content = {"device": "cpu", "precision": "fp32", "versions": {}, "rows": rows}
    run.scores_file.write_text(json.dumps(content))
    scores = run.scores()
    assert scores is not None
    assert scores.rows[0] == score("distilled", 0.5)
    assert (scores.rows[1].steps, scores.rows[1].classes, scores.rows[1].curve) == (None, None, None)
    assert run.to_dict()["scores"] == scores.to_dict()
    run.scores_file.write_text(json.dumps(content | {"rows": [rows[0] | {"n": 0}]}))
    with pytest.raises(UserError, match=r"scores\.json is damaged: rows\.0\.n: .*greater than or equal to 1, got 0"):
        run.scores()


def test_a_start_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.1234.tmp").write_text("{")
    RunDirectory.free(folder)
    (folder / "mine.txt").write_text("a file of the user's")
    with pytest.raises(UserError, match="already exists"):
        RunDirectory.free(folder)
