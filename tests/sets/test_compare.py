"""The view of a package against its one file: forged and broken ones are found, within limits."""

import io
import os
import pickle
import resource
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_set
from PIL import Image

from ncfmkit.sets import compare, package
from ncfmkit.sets.package import Packing
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.table import LAYOUTS

VIEWS = [name for name, row in LAYOUTS.items() if row.module is not None]


@pytest.fixture
def small() -> SyntheticSet:
    return build_set(soft=True)


def problems(folder: Path) -> list[str]:
    return compare.view_problems(folder, rows=24)


@pytest.mark.parametrize("layout", VIEWS)
def test_other_images_labels_and_soft_labels_are_found(tmp_path: Path, layout: str, small: SyntheticSet) -> None:
    """A forger keeps the one file, and writes the view of another set beside it."""
    other = build_set(soft=True, seed=1)
    package.write(small, tmp_path / "packed", Packing(layout=layout))
    assert problems(tmp_path / "packed") == []
    package.write(other, tmp_path / "other", Packing(layout=layout))
    os.replace(tmp_path / "packed" / "synthetic.safetensors", tmp_path / "other" / "synthetic.safetensors")
    found = problems(tmp_path / "other")
    assert found[:2] == [
        f"image 0 of its {layout} view is not the set's",
        f"soft labels 0 of its {layout} view are not the set's",
    ]
    assert compare.MOST_PROBLEMS <= len(found) <= compare.MOST_PROBLEMS + 2


def test_the_last_level_may_round_the_other_way(tmp_path: Path, small: SyntheticSet) -> None:
    for off, expected in ((1, []), (2, ["image 7 of its png view is not the set's"])):
        folder = tmp_path / str(off)
        package.write(small, folder, Packing(layout="png"))
        picture = sorted(folder.glob("train/*/*.png"))[7]
        pixels = np.asarray(Image.open(picture)).astype(int)
        pixels[2, 3, 1] += off if pixels[2, 3, 1] < 128 else -off
        Image.fromarray(pixels.astype(np.uint8)).save(picture)
        assert problems(folder) == expected


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        (file,) = folder.glob("data/*.parquet")
        pq.write_table(change(pq.read_table(file)), file)

    return edit


def labels(table: pa.Table) -> pa.Table:
    column = table["label"].to_pylist()
    column[3] = 2
    return table.set_column(1, "label", pa.array(column))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rewritten(lambda table: table.slice(0, 23)), "its parquet view ends after 23 images, the set has 24"),
        (rewritten(lambda t: pa.concat_tables([t, t.slice(0, 1)])), "its parquet view has more images than the 24"),
        (rewritten(labels), "label 3 of its parquet view is 2, expected 0"),
        (rewritten(lambda table: table.drop(["label"])), "its parquet view is not whole: KeyError"),
        (lambda f: next(f.glob("data/*")).write_bytes(b"PAR1"), "its parquet view is not whole: ArrowInvalid"),
        (lambda f: next(f.glob("data/*")).unlink(), "its parquet view ends after 0 images"),
    ],
)
def test_broken_parquet(tmp_path: Path, small: SyntheticSet, change: Callable[[Path], Any], expected: str) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="parquet"))
    change(folder)
    (problem,) = problems(folder)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda home: (home / "class 1" / "00003.png").unlink(), "metadata.parquet lists class 1/00003.png"),
        (lambda home: (home / "class 1" / "00003.png").write_bytes(b"GIF89a"), "UnidentifiedImageError"),
        (lambda home: (home / "class 1").rename(home / "class 9"), "metadata.parquet lists class 1/00000.png"),
    ],
)
def test_broken_folders(tmp_path: Path, small: SyntheticSet, change: Callable[[Path], Any], expected: str) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="png"))
    change(folder / "train")
    (problem,) = problems(folder)
    assert problem.startswith("its png view is not whole: ")
    assert expected in problem


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_shard_is_not_loaded(tmp_path: Path, small: SyntheticSet) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="webdataset"))
    (shard,) = folder.glob("*.tar")
    with tarfile.open(shard) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as new:
        for member, content in members:
            if member.name == "00000000.npy":
                content = io.BytesIO()
                np.save(content, np.array([Trap(tmp_path / "trapped")] * 3, object), allow_pickle=True)
                content = content.getvalue()
            if member.name == "00000000.cls":
                for name in ("00000000.pyd", "00000000.pickle"):
                    data = pickle.dumps(Trap(tmp_path / "trapped"))
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    new.addfile(info, io.BytesIO(data))
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    (problem,) = problems(folder)
    assert problem.startswith("its webdataset view is not whole: ")
    assert not (tmp_path / "trapped").exists()


def bomb() -> bytes:
    """A PNG of 9,000 x 9,000 pixels in RGB: 243 MB, and several times that while it is converted."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    side = (9000).to_bytes(4, "big")
    rows = zlib.compress(bytes(9000 * (1 + 3 * 9000)), 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_memory_is_limited(tmp_path: Path, small: SyntheticSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="png"))
    (folder / "train" / "class 0" / "00000.png").write_bytes(bomb())
    assert problems(folder) == ["image 0 of its png view is not the set's"]  # 2 GiB are enough for this one
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(
        compare, "CHILD", compare.CHILD.replace("main()", f"import {compare.__name__} as c; c.MEMORY = 1 << 26; main()")
    )
    (problem,) = problems(folder)
    assert problem in ("its png view needs more memory than 64 MiB", "its png view is not whole: MemoryError: ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="processor time is limited on Linux only")
def test_time_is_limited(tmp_path: Path, small: SyntheticSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="png"))
    monkeypatch.setattr(compare, "LEAST_SECONDS", 1)
    slow = compare.CHILD.replace(
        "main()", f"import {compare.__name__} as c; c.rows_of = lambda _: iter(int, 1); main()"
    )
    monkeypatch.setattr(compare, "CHILD", slow.replace("iter(int, 1)", "(x for x in iter(int, 1) if x)"))
    assert problems(folder) == ["comparing its view takes more than 1 s of processor time"]
    monkeypatch.setattr(compare, "WAIT", 0)
    assert problems(folder) == ["its view was not compared within 0 s"]
