"""Shards: their names and members, and that other programs read them."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from conftest import build_set

from ncfmkit.sets import package
from ncfmkit.sets.views.webdataset import shard_name

SHARD = "tiny-ipc2-000000.tar"
CLASSES = ("cat", "dog", "frog")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10-ipc10", "cifar10-ipc10-000003.tar"),
        ("../../etc/Pass wd{0..9}", "etc-pass-wd-0-9-000003.tar"),
        ("\u732b-IPC10", "\u732b-ipc10-000003.tar"),
        ("?!", "set-000003.tar"),
        ("CON", "con-000003.tar"),
        ("\u732b" * 99, "\u732b" * 26 + "-000003.tar"),
        ("my test set", "train-my-test-set-000003.tar"),
        ("val-train", "train-val-train-000003.tar"),
        ("train-val", "train-val-000003.tar"),
        ("x" * 300, "x" * 80 + "-000003.tar"),
    ],
)
def test_shard_names(name: str, file: str) -> None:
    assert shard_name(name, 3) == file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package.write(build_set(classes=CLASSES, soft=True), tmp_path / "packed", package.Packing(layout="webdataset"))
    return tmp_path / "packed"


def test_members_and_headers(folder: Path) -> None:
    with tarfile.open(folder / SHARD, "r:") as tar:
        members = tar.getmembers()
        files = [tar.extractfile(f"00000009.{kind}") for kind in ("cls", "json")]
        label, text = (file.read() for file in files if file is not None)
    assert [m.name for m in members[:5]] == [*(f"00000000.{k}" for k in ("cls", "json", "npy", "png")), "00000001.cls"]
    assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0o644, 0, 0, "", "")}
    assert (label, text) == (b"1", b'{"class": "dog", "label": 1, "index": 9}')
    assert (folder / "classes.txt").read_bytes() == b"cat\ndog\nfrog\n"


# webdataset leaves files for the garbage collector to close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_plain_webdataset_reads_it(tmp_path: Path, encoding: str) -> None:
    small = build_set(classes=CLASSES, soft=True)
    packing = package.Packing(layout="webdataset", encoding=encoding, shard_bytes=20480)
    package.write(small, tmp_path / "packed", packing)
    shards = [str(path) for path in sorted((tmp_path / "packed").glob("*.tar"))]
    assert len(shards) > 1
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    for i, (sample, row) in enumerate(zip(samples, package.rows_of(small), strict=True)):
        assert (sample["__key__"], sample["cls"]) == (f"{i:08d}", row.label)
        assert sample["json"] == {"class": CLASSES[row.label], "label": row.label, "index": i}
        assert np.array_equal(sample[encoding].transpose(2, 0, 1), row.image)
        assert sample["npy"].dtype == np.float16
        assert row.soft is not None
        assert np.array_equal(sample["npy"], row.soft)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_tar_unpacks_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", folder / SHARD, "-C", tmp_path / "out"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert len(list((tmp_path / "out").iterdir())) == 4 * 24


@pytest.mark.parametrize("odd", ["a\nb", " a", "a ", "", "a\x85b"])
def test_class_names_that_no_line_can_hold(tmp_path: Path, odd: str) -> None:
    package.write(build_set(classes=("cat", odd)), tmp_path / "packed", package.Packing(layout="webdataset"))
    assert not (tmp_path / "packed" / "classes.txt").exists()
