"""The views of all layouts: the images to train on, read back as they are and by the libraries that they are for."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import build_set
from other_libraries import offline_datasets

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real
from ncfmkit.sets import package
from ncfmkit.sets.package import Packing, rows_of, view_of
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views import parquet
from ncfmkit.sets.views.pictures import check_size
from ncfmkit.sets.views.records import Row
from ncfmkit.sets.views.table import LAYOUTS

VIEWS = [name for name, row in LAYOUTS.items() if row.module is not None]
CLASSES = ("cat", "b/../a", "\u00fcn\u00ef | c\u00f6d\u00e9")
SETS: dict[str, dict[str, Any]] = {
    "plain": {"factor": 1},
    "mosaics": {},
    "gray, bound": {"kind": "bound", "budget": 7, "factor": 3, "channels": 1, "size": 7},
    "soft, bound": {"soft": True, "kind": "bound", "budget": 7},
    "5 bits, soft, multi": {"bits": 5, "scale": "channel", "soft": True, "kind": "multi"},
}


def written(folder: Path, small: SyntheticSet, packing: Packing) -> list[Row]:
    """Writes the view alone, and reads it."""
    folder.mkdir()
    view = view_of(small, packing)
    packing.row.write(folder, view, rows_of(small))
    return list(packing.row.read(folder, view))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal(got: list[Row], expected: list[Row]) -> None:
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a.image, b.image)
        assert a.label == b.label
        assert (a.soft is None) == (b.soft is None)
        assert a.soft is None or b.soft is None or (a.soft.dtype == np.float16 and np.array_equal(a.soft, b.soft))


@pytest.mark.parametrize("which", SETS)
def test_rows_are_the_images_to_train_on(which: str) -> None:
    small = build_set(**SETS[which])
    rows = list(rows_of(small))
    images, labels = small.decoded()
    np.testing.assert_array_equal([row.image for row in rows], images.mul(255).round())
    assert [row.label for row in rows] == labels.tolist()
    if small.soft_labels is not None:
        np.testing.assert_array_equal([row.soft for row in rows], small.soft_labels)


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize("which", SETS)
def test_what_is_written_comes_back(tmp_path: Path, layout: str, encoding: str, which: str) -> None:
    small = build_set(**SETS[which], classes=CLASSES)
    packing = Packing(layout=layout, encoding=encoding)
    assert_equal(written(tmp_path / "a", small, packing), list(rows_of(small)))
    written(tmp_path / "b", small, packing)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("layout", [name for name in VIEWS if LAYOUTS[name].sharded])
@pytest.mark.parametrize("shard_bytes", [1, 9_000, 20_480, 1 << 20])
@pytest.mark.parametrize("which", ["mosaics", "soft, bound"])
def test_shards_stay_below_their_limit(tmp_path: Path, layout: str, shard_bytes: int, which: str) -> None:
    small, packing = build_set(**SETS[which], size=48), Packing(layout=layout, shard_bytes=shard_bytes)
    assert_equal(written(tmp_path / "a", small, packing), list(rows_of(small)))
    shards = sorted((tmp_path / "a").glob(packing.row.data_files()))
    total = sum(path.stat().st_size for path in shards)
    if shard_bytes == 1:
        assert len(shards) == small.manifest.ipc.decoded * 3  # a single sample may exceed it
        return
    if shard_bytes > 10_240 or layout == "parquet":  # a tar has 10 KiB at least
        assert max(path.stat().st_size for path in shards) <= shard_bytes
    assert len(shards) <= 1 + 3 * total / shard_bytes


@pytest.mark.parametrize("group_rows", [1, 5, 1000])
def test_row_groups_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", group_rows)
    small = build_set(soft=True)
    assert_equal(written(tmp_path / "a", small, Packing(layout="parquet")), list(rows_of(small)))
    metadata = pq.read_metadata(next((tmp_path / "a").glob("data/*.parquet")))
    assert metadata.num_row_groups == -(-24 // group_rows)
    assert metadata.row_group(0).column(0).compression == "UNCOMPRESSED"


@pytest.mark.parametrize("layout", VIEWS)
def test_writing_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Rows are on disk before later ones are asked for."""
    monkeypatch.setattr(parquet, "GROUP_ROWS", 2)
    small, on_disk = build_set(size=32), list[int]()
    packing = Packing(layout=layout, shard_bytes=1 if LAYOUTS[layout].sharded else None)

    def rows() -> Iterator[Row]:
        for row in rows_of(small):
            on_disk.append(sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file()))
            yield row

    packing.row.write(tmp_path, view_of(small, packing), rows())
    assert on_disk[0] < on_disk[8] < on_disk[20]


@pytest.mark.parametrize(("shape", "encoding"), [((3, 9460, 9460), "png"), ((1, 16384, 10), "webp")])
def test_pictures_that_others_would_not_open(shape: tuple[int, ...], encoding: str) -> None:
    with pytest.raises(UserError, match="too large for pictures in a package: use --to safetensors"):
        check_size(shape, encoding)
    check_size((3, 9459, 9459), "png")


def test_the_table_needs_no_other_library() -> None:
    code = (
        "import sys, ncfmkit.sets.views.table;"
        "print(*{'torch', 'pyarrow', 'PIL', 'webdataset'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize(
    ("encoding", "how"),
    [
        ("png", {"soft": True}),
        ("webp", {"kind": "bound", "budget": 7}),
        ("png", {"channels": 1, "factor": 1}),
        ("webp", {"channels": 1, "soft": True, "kind": "multi"}),
    ],
)
def test_datasets_loads_only_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, encoding: str, how: dict[str, Any]
) -> None:
    datasets = offline_datasets(tmp_path / "hub", monkeypatch)
    small, folder = build_set(**how, classes=CLASSES), tmp_path / "packed"
    shards = {"shard_bytes": 11_000} if LAYOUTS[layout].sharded else {}
    package.write(small, folder, Packing(layout=layout, encoding=encoding, **shards))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train"}
    rows, expected = loaded["train"], list(rows_of(small))
    image, label, soft = ("image", "label", "soft_labels") if layout != "webdataset" else (encoding, "cls", "npy")
    assert rows.features[image] == datasets.Image()
    assert rows.features[label] == datasets.ClassLabel(names=list(CLASSES))
    assert (soft in rows.features) == (small.soft_labels is not None)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        pixels = np.atleast_3d(np.asarray(row[image])).transpose(2, 0, 1)
        assert (pixels == wanted.image).all()  # a gray WebP has three equal channels
        assert row[label] == wanted.label
        assert wanted.soft is None or np.array_equal(np.array(row[soft], np.float16), wanted.soft)


@pytest.mark.parametrize("layout", VIEWS)
def test_it_is_real_data_for_ncfmkit(tmp_path: Path, layout: str) -> None:
    small, folder = build_set(classes=("cat", "dog", "frog")), tmp_path / "packed"
    package.write(small, folder, Packing(layout=layout))
    where = {"webdataset": folder / "*.tar", "parquet": folder, "png": folder}[layout]
    real = open_real(str(where), DataSettings())
    assert real.classes == small.classes
    assert np.array_equal(real.train.images, [row.image for row in rows_of(small)])
