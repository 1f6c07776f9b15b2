"""What the cache holds, and what is removed of it: never what a process uses."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused, succeeds
from small_runs import TINY, make_folder

from ncfmkit import in_use
from ncfmkit.config import DataSettings, NetworkSettings, PoolSettings, Settings, override
from ncfmkit.distillation.pool import open_pool
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir, format_bytes
from ncfmkit.jobs.cache import KINDS, clean, entries, parse_age
from ncfmkit.real.opening import open_real
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime

DAY = 24 * 3600


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    return str(make_folder(tmp_path / "shapes", {"a": 4, "b": 5}))


def open_and_drop(data: str, settings: DataSettings | None = None) -> None:
    """Its store is in the cache, and no longer used."""
    real = open_real(data, settings or DataSettings())
    del real
    gc.collect()


def aged(days: float) -> None:
    """All that is in the cache was last used so many days ago."""
    then = time.time() - days * DAY
    for path in (cache_dir(), *cache_dir().rglob("*")):
        os.utime(path, (then, then))


def test_every_kind_is_listed(shapes: str, real: RealData, runtime: Runtime) -> None:
    open_and_drop(shapes, DataSettings(size=16, resize="crop", classes=("b", "a")))
    pool = PoolSettings(members=2, epochs=1, lr=0.5)
    open_pool(real, [NetworkSettings(width=8, depth=2)], pool, seed=3, runtime=runtime)
    for name in ("real/.tmp-dead", "students/abc", "compiled/x", "tensorrt", "downloads", "remote/abc", "web-runtime"):
        (cache_dir() / name).mkdir(parents=True)
    for name, size in (("compiled/x/code.so", 300), ("tensorrt/gpu.timing", 20), ("downloads/set.tar", 7)):
        (cache_dir() / name).write_bytes(b"x" * size)
    (cache_dir() / "web-runtime" / "a.tgz").touch()
    (cache_dir() / "students/abc/0.json").touch()
    found = entries()
    kinds = ["store", "store", "pool", "students", "compiled", "timing", "remote", "runtime", "download"]
    assert [entry.kind for entry in found] == kinds
    assert set(kinds) == KINDS.keys()
    texts = {entry.belongs_to for entry in found}
    assert "1 student of a set" in texts
    assert "shapes: 9 images of 2 classes, 16x16 gray, size 16, resize crop, classes b, a" in texts
    assert "tiny: convnet, width 8, depth 2, epochs 1, lr 0.5, seed 3, cpu, fp32, 2 members" in texts
    assert {"a store that was not finished", "gpu", "unknown, not finished"} <= texts
    sizes = {entry.kind: entry.bytes for entry in found}
    assert (sizes["compiled"], sizes["timing"], sizes["download"]) == (300, 20, 7)
    assert sizes["pool"] == sum(p.stat().st_size for p in (cache_dir() / "pools").glob("*/*"))


def test_snapshots_of_a_pool_are_counted_with_their_bytes(real: RealData, runtime: Runtime) -> None:
    network = NetworkSettings(width=8, depth=2)
    pool = PoolSettings(members=2, epochs=3, snapshots=2)
    opened = open_pool(real, [network], pool, seed=0, runtime=runtime)
    (before,) = entries("pool")
    parameters = sum(v.numel() for v in opened.final[0].values())
    assert before.belongs_to.endswith(f", 2 members, 4 snapshots ({format_bytes(2 * 2 * parameters * 2)} of the size)")
    (before.path / "member-001.safetensors").write_bytes(b"damaged")
    (after,) = entries("pool")
    assert after.belongs_to.endswith(f", 2 members, 2 snapshots ({format_bytes(2 * parameters * 2)} of the size)")


def test_damaged_or_old_facts_do_not_stop_the_list(shapes: str) -> None:
    open_and_drop(shapes)
    (store,) = (entry.path for entry in entries("store"))
    (cache_dir() / "pools/abc").mkdir(parents=True)
    for content in ("", "[]", "{}", '{"offsets": {"train": []}, "channels": 1}', '{"runtime": 3}'):
        (store / "store.json").write_text(content)
        (cache_dir() / "pools/abc/pool.json").write_text(content)
        assert [e.belongs_to for e in entries()] == ["a damaged store", "made by an earlier version, 0 members"]


def test_cleaning_removes_stores_and_what_leads_to_them(shapes: str) -> None:
    open_and_drop(shapes)
    open_and_drop(shapes, DataSettings(holdout=0.25))
    kept = entries()[0]
    (other,) = (entry for entry in entries() if entry != kept)
    assert [outcome for _, outcome in clean([other])] == ["removed"]
    assert [entry.path for entry in entries()] == [kept.path]
    index = [p.read_text() for p in (cache_dir() / "real/index").iterdir()]
    assert [key[:32] for key in index] == [kept.path.name]
    for settings in (DataSettings(), DataSettings(holdout=0.25)):
        assert sum(open_real(shapes, settings).train.counts()) in (9, 7)


def test_a_store_is_used_as_long_as_it_is_mapped(shapes: str) -> None:
    first, second = open_real(shapes, DataSettings()), open_real(shapes, DataSettings())
    assert [outcome for _, outcome in clean(entries())] == ["in use"]
    assert [outcome for _, outcome in clean(entries(), dry_run=True)] == ["in use"]
    del first
    gc.collect()
    assert [outcome for _, outcome in clean(entries())] == ["in use"]
    np.testing.assert_array_equal(second.train.counts(), [4, 5])
    del second
    gc.collect()
    assert [outcome for _, outcome in clean(entries())] == ["removed"]
    assert entries() == []


def test_what_another_process_uses_stays_until_it_ends(shapes: str) -> None:
    code = (
        "import sys; from ncfmkit.config import DataSettings; from ncfmkit.real.opening import open_real\n"
        "from ncfmkit.config import RuntimeSettings; from ncfmkit.runtime import choose_runtime\n"
        "real = open_real(sys.argv[1], DataSettings()); choose_runtime(RuntimeSettings(compile='auto'))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    command, pipe = [sys.executable, "-c", code, shapes], subprocess.PIPE
    with subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        there = {entry.kind for entry in entries()}
        assert there <= {"store", "compiled"}  # compiled where there is a compiler
        assert {outcome for _, outcome in clean(entries())} == {"in use"}
        process.kill()
    assert [outcome for _, outcome in clean(entries())] == ["removed"] * len(there)
    assert entries() == []


def test_a_store_that_is_being_written_stays(shapes: str) -> None:
    (cache_dir() / "real/.tmp-abc").mkdir(parents=True)
    held = in_use.hold(cache_dir() / "real/abc")
    assert [outcome for _, outcome in clean(entries())] == ["in use"]
    held.close()
    assert [outcome for _, outcome in clean(entries())] == ["removed"]


def test_a_pool_that_is_being_trained_stays(
    real: RealData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tiny_network: NetworkSettings
) -> None:
    from ncfmkit.distillation import pool as pool_module

    original = pool_module.train
    seen: list[str] = []

    def train(*args: object, **kwargs: object) -> object:
        seen.extend(outcome for _, outcome in clean(entries()))
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pool_module, "train", train)
    open_pool(real, [tiny_network], PoolSettings(members=1, epochs=1), seed=0, runtime=runtime)
    assert seen == ["in use"]
    assert [outcome for _, outcome in clean(entries())] == ["removed"]


def test_age_is_that_of_the_last_use(shapes: str) -> None:
    open_and_drop(shapes)
    open_and_drop(shapes, DataSettings(holdout=0.25))
    aged(10)
    open_and_drop(shapes)
    ages = [(time.time() - entry.last_use) / DAY for entry in entries()]
    assert ages == pytest.approx([0, 10], abs=0.01)
    assert [len(entries(older_than=age)) for age in ("0h", "9d", "1w", "239h", "11d", "2w")] == [2, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("text", ["", "30", "d", "1.5d", "-1d", "1y", "1d2h", "9" * 400 + "d"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--older-than .*expected a number of hours, days or weeks, such as 12h"):
        parse_age(text)


def test_ages() -> None:
    assert [parse_age(text) for text in ("12h", " 30D ", "2w")] == [12 * 3600, 30 * DAY, 14 * DAY]


def test_downloads_are_only_listed(shapes: str) -> None:
    (cache_dir() / "downloads").mkdir(parents=True)
    (cache_dir() / "downloads/set.tar").write_bytes(b"x")
    assert [outcome for _, outcome in clean(entries("download"))] == ["kept"]
    assert (cache_dir() / "downloads/set.tar").exists()


def test_a_cache_that_cannot_be_written(shapes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_and_drop(shapes)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(UserError, match=r"cannot remove .*real/[0-9a-f]{32}: Permission denied"):
        list(clean(entries()))


def test_a_use_in_a_cache_that_is_read_only_does_nothing(tmp_path: Path) -> None:
    in_use.hold(Path("/dev/null/x")).close()
    assert in_use.last_use(tmp_path / "nothing") == 0


def test_the_command(shapes: str) -> None:
    open_and_drop(shapes)
    (cache_dir() / "downloads").mkdir(parents=True)
    (cache_dir() / "downloads/set.tar").write_bytes(b"x")
    text = succeeds("cache").stdout
    assert "shapes: 9 images of 2 classes, 8x8 gray" in text
    assert "2 entries, " in text
    listed = json.loads(succeeds("cache", "--json").stdout)
    assert listed["cache"] == str(cache_dir())
    store = next(entry for entry in listed["entries"] if entry["kind"] == "store")
    assert store["bytes"] == sum(p.stat().st_size for p in Path(store["path"]).iterdir())
    dry = succeeds("cache", "--clean", "--dry-run").stdout
    assert "would be removed: store shapes: 9 images" in dry
    assert "would be freed" in dry
    assert Path(store["path"]).exists()
    assert "0 B were freed" in succeeds("cache", "--clean", "--older-than", "1d").stdout
    done = json.loads(succeeds("cache", "--clean", "--json").stdout)
    assert [entry["outcome"] for entry in done["entries"]] == ["removed", "kept"]
    assert (done["freed_bytes"], done["dry_run"]) == (store["bytes"], False)
    assert not Path(store["path"]).exists()
    assert "kept: download" in succeeds("cache", "--clean").stdout
    assert call("cache", "--kind", "pool").stdout.startswith("0 entries, 0 B")


def test_wrong_flags() -> None:
    refused("cache", "--dry-run", says="--dry-run shows what --clean would remove: pass both")
    refused("cache", "--kind", "stores", says="--kind 'stores': expected one of store, pool, students, compiled")
    refused("cache", "--older-than", "month", says="--older-than 'month': expected a number of hours")


def test_a_run_works_after_everything_was_removed(shapes: str, tmp_path: Path) -> None:
    from ncfmkit.jobs.pretrain import pretrain
    from ncfmkit.runtime import choose_runtime

    settings = override(Settings(), TINY | {"runtime.compile": "off"})
    pools = []
    for _ in range(2):
        pools.append(pretrain(open_real(shapes, settings.data), settings, choose_runtime(settings.runtime)))
        gc.collect()
        assert {outcome for _, outcome in clean(entries())} == {"removed"}
    assert pools[0].key == pools[1].key
