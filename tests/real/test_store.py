"""The store: built once, keyed by content, whole or absent."""

import collections
import errno
import json
import os
import shutil
import tempfile

import numpy as np
import pytest
from PIL import Image

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir
from ncfmkit.real import building, opening, store
from ncfmkit.real.opening import open_real

PLAIN = DataSettings()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "real"


@pytest.fixture
def pets(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            image = np.random.default_rng([c, i]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def forbid(monkeypatch, module, name, error=AssertionError("must not be called")):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module, name, fail)


def stores(cache):
    return sorted(p for p in cache.iterdir() if p.is_dir() and p.name != "index")


def test_cache_dir(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("NCFMKIT_CACHE")
    assert cache_dir().name == "ncfmkit"


def test_images_are_mapped_read_only_and_statistics_are_theirs(pets):
    data = open_real(str(pets), PLAIN)
    assert isinstance(data.train.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.train.images[0] = 0
    assert data.train.offsets.dtype == data.train.labels.dtype == np.int64
    assert data.mean == pytest.approx(data.train.images.mean((0, 2, 3)) / 255)
    assert data.std == pytest.approx(data.train.images.std((0, 2, 3)) / 255)


def test_second_open_reads_no_source_file(pets, monkeypatch):
    first = open_real(str(pets), PLAIN)
    forbid(monkeypatch, opening, "build_store")
    forbid(monkeypatch, opening, "fingerprint")
    second = open_real(str(pets), PLAIN)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert (first.fingerprint, first.mean, first.classes) == (second.fingerprint, second.mean, second.classes)


def test_a_copy_elsewhere_uses_the_same_store_under_its_own_name(pets, tmp_path, monkeypatch, cache):
    first = open_real(str(pets), PLAIN)
    shutil.copytree(pets, tmp_path / "other" / "animals")
    forbid(monkeypatch, building, "open_picture")
    second = open_real(str(tmp_path / "other" / "animals"), PLAIN)
    assert (second.name, second.fingerprint, len(stores(cache))) == ("animals", first.fingerprint, 1)


def test_changed_content_and_settings_make_other_stores(pets, cache):
    prints = {open_real(str(pets), PLAIN).fingerprint}
    Image.new("RGB", (4, 4), "red").save(pets / "cat" / "0.png")
    data = open_real(str(pets), PLAIN)
    assert data.train.images[0, :, 0, 0].tolist() == [255, 0, 0]
    prints |= {data.fingerprint, open_real(str(pets), DataSettings(holdout=0.2)).fingerprint}
    prints |= {open_real(str(pets), PLAIN, skip_bad=True).fingerprint}
    assert len(prints) == len(stores(cache)) == 4


def test_no_absolute_path_is_kept(pets, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(pets)
    assert open_real(".", PLAIN).name == "pets"
    for file in cache.rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no"), MemoryError()])
def test_interrupted_build_leaves_nothing(pets, monkeypatch, cache, error):
    real, calls = building.fit, []

    def fit(*args):
        calls.append(args)
        if len(calls) == 7:
            raise error
        return real(*args)

    monkeypatch.setattr(building, "fit", fit)
    with pytest.raises(type(error)):
        open_real(str(pets), PLAIN)
    assert not stores(cache)
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]
    monkeypatch.undo()
    monkeypatch.setenv("NCFMKIT_CACHE", str(cache.parent))
    assert len(open_real(str(pets), PLAIN).train.images) == 10


def test_stale_folders_go_but_those_being_written_stay(pets, cache):
    (cache / ".tmp-dead").mkdir(parents=True)
    (cache / ".tmp-alive").mkdir()
    with store.lock_of(cache / "alive"):
        open_real(str(pets), PLAIN)
    assert [p.name for p in cache.glob(".tmp-*")] == [".tmp-alive"]


def test_fingerprints_are_those_of_version_0_1(tmp_path):
    """Sets and runs hold them: they change only where the same files give other pixels."""
    digits = "dcf4ba7c288816b5ecfbd32cb2e87ae8619e35a34cc18e8423f937f12ce71083"
    assert open_real("digits", PLAIN).fingerprint == digits
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "bmp" / name).mkdir(parents=True)
        for i in range(5):
            image = np.random.default_rng([c, i]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "bmp" / name / f"{i}.bmp")
    folder = "9a272595e2702912c7898eab0fcb5b7be8f7ed272b0d54e9977269c5dbb94041"
    assert open_real(str(tmp_path / "bmp"), PLAIN).fingerprint == folder


def test_a_store_of_an_earlier_version_is_written_anew_under_the_same_fingerprint(pets, cache, capsys):
    """Earlier ones do not say what was changed; sets and runs that were made from them keep their fingerprint."""
    data = open_real(str(pets), PLAIN)
    facts = stores(cache)[0] / "store.json"
    kept = json.loads(facts.read_text())
    facts.write_text(json.dumps({key: value for key, value in kept.items() if key != "changed"}))
    assert open_real(str(pets), PLAIN).changed == data.changed
    assert json.loads(facts.read_text()) == kept
    assert "of another version: reading the source again" in capsys.readouterr().err


def test_what_is_skipped_depends_on_the_formats_that_are_read(pets, monkeypatch):
    prints = [open_real(str(pets), PLAIN, skip_bad=skip).fingerprint for skip in (False, True)]
    monkeypatch.setattr(opening, "readable_formats", lambda: ("PNG",))
    assert open_real(str(pets), PLAIN).fingerprint == prints[0]
    assert open_real(str(pets), PLAIN, skip_bad=True).fingerprint not in prints


@pytest.mark.parametrize("damage", ["missing", "short", "long", "json", "no json"])
def test_damaged_store_is_rebuilt(pets, cache, capsys, damage):
    expected = np.array(open_real(str(pets), PLAIN).train.images)
    folder = stores(cache)[0]
    images, facts = folder / "train.npy", folder / "store.json"
    if damage == "missing":
        images.unlink()
    elif damage == "short":
        os.truncate(images, images.stat().st_size - 1)
    elif damage == "long":
        images.write_bytes(images.read_bytes() + b"x")
    elif damage == "json":
        facts.write_text(facts.read_text()[:-20])
    else:
        facts.unlink()
    np.testing.assert_array_equal(open_real(str(pets), PLAIN).train.images, expected)
    assert (
        "pets: its store in the cache is damaged or of another version: reading the source again"
        in capsys.readouterr().err
    )
    assert json.loads(facts.read_text())["offsets"] == {"train": [0, 5, 10]}


def test_too_little_disk_space(pets, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(UserError, match=r"needs 480 B in .*, where 10 B are free: .*NCFMKIT_CACHE"):
        open_real(str(pets), PLAIN)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk of .*/real is full: .*NCFMKIT_CACHE"),
        (errno.EIO, r"store of images cannot be written in .*/real \(Input/output error\): .*NCFMKIT_CACHE"),
    ],
)
@pytest.mark.parametrize("at", ["_write_header", "os.fsync", "os.replace", "json.dump"])
def test_a_disk_that_refuses_is_a_user_error(pets, monkeypatch, cache, number, message, at):
    *module, name = at.split(".")
    forbid(monkeypatch, getattr(store, module[0]) if module else store, name, OSError(number, os.strerror(number)))
    with pytest.raises(UserError, match=message):
        open_real(str(pets), PLAIN)
    assert not stores(cache)


def test_an_error_of_the_source_is_not_blamed_on_the_cache(pets, monkeypatch, cache):
    """As reading gives it, without the name of a file."""
    forbid(monkeypatch, building, "open_picture", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        open_real(str(pets), PLAIN)
    assert not stores(cache)


def test_an_unusable_cache_is_named(pets, monkeypatch):
    monkeypatch.setenv("NCFMKIT_CACHE", "/dev/null/x")
    with pytest.raises(UserError, match=r"cache folder /dev/null/x/real.* cannot be used .*NCFMKIT_CACHE"):
        open_real(str(pets), PLAIN)


def test_a_cache_that_is_not_writable_is_named_but_can_be_read(pets, monkeypatch):
    images = np.array(open_real(str(pets), PLAIN).train.images)
    forbid(monkeypatch, tempfile, "TemporaryFile", OSError(errno.EROFS, "Read-only file system"))
    np.testing.assert_array_equal(open_real(str(pets), PLAIN).train.images, images)
    with pytest.raises(UserError, match=r"\(Read-only file system\): make it writable, .*NCFMKIT_CACHE"):
        open_real(str(pets), DataSettings(holdout=0.5))


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
def test_a_damaged_index_is_written_again(pets, cache, content):
    data = open_real(str(pets), PLAIN)
    (index,) = (cache / "index").iterdir()
    whole = index.read_bytes()
    index.write_bytes(content)
    assert open_real(str(pets), PLAIN).fingerprint == data.fingerprint
    assert index.read_bytes() == whole
    assert len(stores(cache)) == 1


def test_threads_give_the_same_store(pets, monkeypatch):
    alone = open_real(str(pets), PLAIN)
    monkeypatch.setenv("NCFMKIT_CACHE", str(pets.parent / "elsewhere"))
    monkeypatch.setattr(building, "THREADS_FROM", 0)
    monkeypatch.setattr(building, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(building.os, "sched_getaffinity", lambda _: range(2))
    threaded = open_real(str(pets), PLAIN)
    np.testing.assert_array_equal(alone.train.images, threaded.train.images)
    assert (alone.mean, alone.std, alone.fingerprint) == (threaded.mean, threaded.std, threaded.fingerprint)


def test_threads_stop_at_the_first_bad_image(pets, monkeypatch, cache):
    monkeypatch.setattr(building, "THREADS_FROM", 0)
    monkeypatch.setattr(building, "CHUNK_IMAGES", 1)
    monkeypatch.setattr(building.os, "sched_getaffinity", lambda _: range(2))
    for bad in ("cat/3.png", "dog/1.png"):
        (pets / bad).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cat/3\.png is not a readable picture"):
        open_real(str(pets), PLAIN)
    assert not stores(cache)
