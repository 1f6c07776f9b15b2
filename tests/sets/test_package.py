"""Packages: every layout gives the set back, its files say what is in them, damage is listed."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set

import ncfmkit
from ncfmkit.errors import UserError
from ncfmkit.jobs import pack as pack_job
from ncfmkit.jobs.unpack import unpack
from ncfmkit.sets import loading, package, set_file
from ncfmkit.sets.manifest import DIGEST_KEY, tensors_of, with_digests
from ncfmkit.sets.package import MANIFEST, SUMS, Packing
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.table import LAYOUTS

LICENSED: dict[str, Any] = {"source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": "mit"}}
PLAIN = [name for name, row in LAYOUTS.items() if not row.card]
PICTURES = [name for name, row in LAYOUTS.items() if row.module is not None]


def pack(result: SyntheticSet, folder: Path, layout: str, **how: Any) -> Path:
    package.write(result, folder, Packing(layout=layout, **how))
    return folder


def assert_equal(got: SyntheticSet, expected: SyntheticSet) -> None:
    assert got.manifest == with_digests(expected.manifest, tensors_of(expected))
    for name in ("images", "labels", "soft_labels", "levels"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name


def reseal(folder: Path) -> None:
    """SHA256SUMS as a forger would make it fit."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


SETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gray, bound": {"kind": "bound", "budget": 7, "factor": 3, "channels": 1, "size": 7},
    "soft": {"soft": True},
    "soft, bound": {"soft": True, "kind": "bound", "budget": 7},
    "3 bits": {"bits": 3},
    "5 bits, soft, multi": {"bits": 5, "scale": "channel", "soft": True, "kind": "multi"},
    "odd names": {"classes": ("b/../a", "\x1b[31mred", "ünï | cödé")},
    "scripts": {"classes": ("\u4e2d\u6587", "\u732b" * 99, "\U0001f431 cat")},
    "reserved and decomposed": {"classes": ("CON", "cafe\u0301", "caf\u00e9")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", SETS)
def test_a_package_gives_the_set_back(tmp_path: Path, layout: str, which: str) -> None:
    expected = build_set(**SETS[which], **LICENSED)
    folder = pack(expected, tmp_path / "packed", layout)
    assert_equal(loading.load(folder), expected)
    assert_equal(ncfmkit.load(str(folder)), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("layout", PLAIN)
@pytest.mark.parametrize("which", SETS)
def test_without_a_card_too(tmp_path: Path, layout: str, which: str) -> None:
    expected = build_set(**SETS[which])
    folder = pack(expected, tmp_path / "packed", layout)
    exact = layout != "safetensors" and expected.levels is None
    assert (folder / set_file.FILE_NAME).exists() != exact
    assert not (folder / "README.md").exists()
    assert_equal(loading.load(folder), expected)


@pytest.mark.parametrize("layout", PICTURES)
@pytest.mark.parametrize("which", SETS)
def test_decoded_packages_give_the_stored_set_back(tmp_path: Path, layout: str, which: str) -> None:
    expected = build_set(**SETS[which], **LICENSED)
    folder = pack(expected, tmp_path / "packed", layout, images="decoded")
    assert_equal(loading.load(folder), expected)


@pytest.mark.parametrize("layout", PICTURES)
def test_decoded_pictures_are_the_images_to_train_on(tmp_path: Path, layout: str) -> None:
    result = build_set(soft=True, **LICENSED)
    folder, packing = tmp_path / "packed", Packing(layout=layout, images="decoded")
    package.write(result, folder, packing)
    contents = package.contents_of(with_digests(result.manifest, tensors_of(result)), packing)
    assert packing.row.read is not None
    records = list(packing.row.read(folder, contents))
    images, labels = result.decoded()
    np.testing.assert_array_equal([r.image for r in records], images.mul(255).round())
    assert [r.label for r in records] == labels.tolist()
    np.testing.assert_array_equal(np.concatenate([r.soft for r in records]), result.soft_labels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", [{}, {"images": "decoded", "encoding": "webp"}, {"shard_bytes": 6000}])
def test_the_same_set_gives_the_same_bytes(tmp_path: Path, layout: str, how: dict[str, Any]) -> None:
    if how.get("shard_bytes") and not LAYOUTS[layout].sharded:
        with pytest.raises(UserError, match=f"--to {layout} has no shards"):
            Packing(layout=layout, **how)
        return
    if layout == "safetensors" and how.get("images"):
        with pytest.raises(UserError, match="--to safetensors has no pictures"):
            Packing(layout=layout, **how)
        return
    result = build_set(soft=True, **LICENSED)
    first, second = pack(result, tmp_path / "a", layout, **how), pack(result, tmp_path / "b", layout, **how)
    assert contents(first) == contents(second)
    assert_equal(loading.load(second), result)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_manifest_and_checksums_are_plain_files(tmp_path: Path, layout: str) -> None:
    result = build_set(**LICENSED)
    folder = pack(result, tmp_path / "packed", layout)
    told = json.loads((folder / MANIFEST).read_text())
    facts = told.pop("package")
    assert told == with_digests(result.manifest, tensors_of(result))
    assert facts["layout"] == layout
    assert facts["images"] == "stored"
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert {line.split(": ")[0] for line in done.stdout.splitlines()} == contents(folder).keys() - {SUMS}


def test_parquet_needs_a_license(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--to parquet .*license .*\(tiny\): pass --license"):
        pack(build_set(), tmp_path / "packed", "parquet")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"there already exists: pass --force"):
        pack(build_set(), tmp_path / "there", "png")
    with pytest.raises(UserError, match=r"--out .*: .*no folder .*nowhere"):
        pack(build_set(), tmp_path / "nowhere" / "x", "png")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "sha256_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(build_set(), tmp_path / "new", "png")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack(build_set(), tmp_path / "packed", "webdataset")


def problems_of(folder: Path) -> list[str]:
    result, problems = loading.read(folder)
    assert result is None
    assert problems
    return problems


def test_every_wrong_file_is_listed(folder: Path) -> None:
    shard = next(folder.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    (folder / "classes.txt").unlink()
    (folder / "more.txt").write_text("more")
    (folder / ".gitattributes").write_text("hidden files are others'")
    assert problems_of(folder) == [
        "classes.txt is missing",
        "more.txt is not in SHA256SUMS",
        f"{shard.name} is damaged: its sha256 is not that in SHA256SUMS",
    ]
    with pytest.raises(UserError, match=r"packed .*3 .*:\n  classes\.txt is missing\n  more"):
        loading.load(folder)


@pytest.mark.parametrize(
    "line", ["../up.txt", "/etc/passwd", "a/../../up.txt", "a//b", "./a", "C:/a", "a\\b", "", "short"]
)
def test_sums_stay_inside_the_folder(folder: Path, line: str) -> None:
    (folder.parent / "up.txt").write_text("up")
    digest = "0" * (63 if line == "short" else 64)
    (folder / SUMS).write_text((folder / SUMS).read_text() + f"{digest}  {line}\n")
    assert problems_of(folder)[0].startswith(f"{SUMS} line 4: expected a sha256, two spaces and a path inside")


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    shard = next(folder.glob("*.tar"))
    outside = tmp_path / "outside.tar"
    shard.rename(outside)
    shard.symlink_to(outside)
    assert problems_of(folder) == [f"{shard.name} is not a file of its own (a link, a device)"]


def test_devices_are_not_read(folder: Path) -> None:
    """Opening the pipe would wait for ever."""
    shard = next(folder.glob("*.tar"))
    shard.unlink()
    os.mkfifo(shard)
    assert problems_of(folder) == [f"{shard.name} is not a file of its own (a link, a device)"]


def test_sums_that_are_not_there(folder: Path) -> None:
    (folder / SUMS).unlink()
    assert problems_of(folder) == ["SHA256SUMS is missing, or not such a file"]


def change(folder: Path, **changes: Any) -> None:
    told = json.loads((folder / MANIFEST).read_text()) | changes
    facts = told.pop("package", None)
    rest = {k: v for k, v in told.items() if k != DIGEST_KEY}  # a forger's may hold what JSON has not
    told[DIGEST_KEY] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(told | {"package": facts}))
    reseal(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"package": None}, "its 'package' does not say the layout"),
        ({"package": {"layout": "zip", "images": "stored"}}, "--to zip: expected one of"),
        ({"package": {"layout": ["png"], "images": "stored"}}, "--to .*png.*: expected one of"),
        ({"package": {"layout": "webdataset", "images": "stored", "more": 1}}, "its 'package' does not say"),
        ({"package": {"layout": "webdataset", "images": "decoded", "encoding": "png"}}, "synthetic.safetensors is mis"),
        ({"package": {"layout": "safetensors", "images": "stored"}}, "synthetic.safetensors is missing"),
        ({"ipc": {"stored": 3, "decoded": 12}}, "."),
        ({"ipc": {"stored": 10**12, "decoded": 4 * 10**12}}, "cannot hold images of shape"),
        ({"bytes": {"images": 10**15, "labels": 48}}, "would unpack to .* rejected as a decompression bomb"),
        ({"bytes": {"images": 0, "labels": 48}}, "cannot hold images"),
        ({"classes": ["class 0", "class 1"]}, "."),
        ({"classes": ["class 0", "class 0", "class 1"]}, "'classes' is .*two or more"),
        ({"mean": [float("nan")] * 3}, "NaN is not JSON"),
        ({"mean": [1, 2]}, "'mean' is"),
        ({"decode": {"kind": "single", "factor": 10**9, "budget": None}}, "'decode' is"),
        ({"score": {"n": 3}}, "'score' is"),
        ({"sha256": {"images": "0" * 64, "labels": "0" * 64}}, "sha256 of 'images'"),
    ],
)
def test_a_manifest_that_is_not_true(folder: Path, changes: dict[str, Any], says: str) -> None:
    change(folder, **changes)
    problems = problems_of(folder)
    assert any(re.search(says, problem) for problem in problems), problems


def test_the_one_file_beside_must_be_the_same(tmp_path: Path) -> None:
    folder = pack(build_set(**LICENSED), tmp_path / "packed", "png")
    other = build_set(seed=1, **LICENSED)
    set_file.save(other, folder / set_file.FILE_NAME, force=True)
    reseal(folder)
    assert problems_of(folder) == ["ncfmkit.json and synthetic.safetensors hold different manifests"]
    told = with_digests(other.manifest, tensors_of(other)) | {
        "package": json.loads((folder / MANIFEST).read_text())["package"]
    }
    (folder / MANIFEST).write_text(json.dumps(told))
    reseal(folder)
    assert problems_of(folder) == [
        f"image {i} of the png files is not the one in synthetic.safetensors" for i in range(6)
    ]


def test_soft_labels_beside_must_be_the_same(tmp_path: Path) -> None:
    result = build_set(soft=True)
    folder = pack(result, tmp_path / "packed", "png", images="decoded")
    logits = np.load(folder / "soft_labels.npy")
    logits[3, 1] += 1
    np.save(folder / "soft_labels.npy", logits)
    reseal(folder)
    assert problems_of(folder) == ["soft labels 3 of the png files are not those in synthetic.safetensors"]


def test_a_manifest_that_is_gone(tmp_path: Path) -> None:
    """The one file beside it does not make a whole package of the folder."""
    folder = pack(build_set(**LICENSED), tmp_path / "packed", "png")
    (folder / MANIFEST).unlink()
    assert problems_of(folder) == ["ncfmkit.json is missing"]
    reseal(folder)
    assert problems_of(folder) == ["ncfmkit.json is missing, and not listed in SHA256SUMS"]


def test_a_file_of_a_package_is_not_a_set(folder: Path) -> None:
    with pytest.raises(UserError, match=r"ncfmkit\.json .*package: .*folder .*packed$"):
        loading.load(folder / MANIFEST)


def test_what_is_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no synthetic set at .*package .*`ncfmkit pack`"):
        loading.read(tmp_path)
    folder = pack(build_set(), tmp_path / "packed", "png")
    change(folder, kind="student")
    with pytest.raises(UserError, match=r"packed holds a student, not a synthetic set"):
        loading.load(folder)
    change(folder, kind="synthetic set", format=9)
    with pytest.raises(UserError, match=r"packed .*format 9, .*1 and 2: update"):
        loading.load(folder)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    folder = pack(build_set(**LICENSED), tmp_path / "packed", "parquet")
    before = contents(tmp_path)
    loading.load(folder)
    assert contents(tmp_path) == before


def test_records_follow_the_mask_of_bound(tmp_path: Path) -> None:
    """Each stored image carries the soft labels of those of its cells that count, in the order of `decoded`."""
    result = build_set("bound", 2, 7, soft=True, ipc=3)
    records = list(package.records_of(result, "stored"))
    mask = result.mask()
    assert [0 if r.soft is None else len(r.soft) for r in records] == mask.sum(1).tolist() == [4, 3, 0] * 3
    np.testing.assert_array_equal(np.concatenate([r.soft for r in records]), result.soft_labels)


def test_only_the_set_decides_the_bytes(tmp_path: Path) -> None:
    """Other strides and key orders, the same package."""
    result = build_set()
    images = result.images.transpose(2, 3).contiguous().transpose(2, 3)
    other = dataclasses.replace(result, images=images, manifest=dict(reversed(result.manifest.items())))
    assert contents(pack(result, tmp_path / "a", "png")) == contents(pack(other, tmp_path / "b", "png"))


@contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """Bytes of the process's own memory, not of files that are mapped, watched while the body runs."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    seen, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    done.set()
    watcher.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of the process's memory")
@pytest.mark.parametrize("layout", ["safetensors", "webdataset", "png"])
def test_packing_and_unpacking_stream(tmp_path: Path, layout: str) -> None:
    """The images take 96 MiB; less than a quarter of that may come and go."""
    path = tmp_path / "large.safetensors"
    set_file.save(build_set(ipc=233, size=220), path)
    size = path.stat().st_size
    pack_job.pack(path, to="webdataset", out=tmp_path / "warm")  # imports, buffers
    with anonymous_memory() as seen:
        pack_job.pack(path, to=layout, out=tmp_path / "packed")
        unpack(tmp_path / "packed", out=tmp_path / "again.safetensors")
    assert max(seen) - seen[0] < size / 4
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
