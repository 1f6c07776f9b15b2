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

from ncfmkit.sets import compare, package, set_file
from ncfmkit.sets.package import Packing
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views import decoder
from ncfmkit.sets.views.table import LAYOUTS

VIEWS = [name for name, row in LAYOUTS.items() if row.module is not None]


@pytest.fixture
def small() -> SyntheticSet:
    return build_set(soft=True)


def problems(folder: Path) -> list[str]:
    """Found in this process, which is quicker."""
    packing, result = package.packing_of(folder), set_file.load(folder)
    return compare.differences(
        decoder.decoded(folder, packing.layout, package.view_of(result, packing)), result, packing
    )


def by_child(folder: Path) -> list[str]:
    return compare.view_problems(folder, set_file.load(folder))


@pytest.mark.parametrize("layout", VIEWS)
def test_other_images_labels_and_soft_labels_are_found(tmp_path: Path, layout: str, small: SyntheticSet) -> None:
    """A forger keeps the one file, and writes the view of another set beside it."""
    other = build_set(soft=True, seed=1)
    package.write(small, tmp_path / "packed", Packing(layout=layout))
    assert problems(tmp_path / "packed") == []
    package.write(other, tmp_path / "other", Packing(layout=layout))
    os.replace(tmp_path / "packed" / "synthetic.safetensors", tmp_path / "other" / "synthetic.safetensors")
    found = problems(tmp_path / "other")
    assert by_child(tmp_path / "other") == found
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
    return lambda folder: rewrite(next(folder.glob("data/*.parquet")), change)


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(file).read()), file)


def texts(table: pa.Table) -> pa.Table:
    return table.set_column(1, "label", table["label"].cast(pa.string()))


def labels(table: pa.Table, third: int | None = 2) -> pa.Table:
    column = table["label"].to_pylist()
    column[3] = third
    return table.set_column(1, "label", pa.array(column))


def other_names(table: pa.Table) -> pa.Table:
    metadata = {key: text.replace(b"class 1", b"class 7") for key, text in table.schema.metadata.items()}
    return table.replace_schema_metadata(metadata)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rewritten(lambda table: table.slice(0, 23)), "its parquet view ends after 23 images, the set has 24"),
        (rewritten(lambda t: pa.concat_tables([t, t.slice(0, 1)])), "its parquet view has more images than the 24"),
        (rewritten(labels), "label 3 of its parquet view is 2, expected 0"),
        (rewritten(lambda table: table.drop(["label"])), "its parquet view is not whole: KeyError"),
        (
            rewritten(texts),
            "its parquet view is not whole: TypeError: 'str' object cannot be interpreted as an integer",
        ),
        (rewritten(lambda t: labels(t, None)), "its parquet view is not whole: TypeError: 'NoneType' object cannot"),
        (rewritten(other_names), "its parquet view is not whole: ValueError: it declares other class names"),
        (rewritten(lambda table: table.replace_schema_metadata()), "its parquet view is not whole: KeyError"),
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
        (lambda home: rewrite(home / "metadata.parquet", other_names), "it declares other class names"),
    ],
)
def test_broken_folders(tmp_path: Path, small: SyntheticSet, change: Callable[[Path], Any], expected: str) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="png"))
    change(folder / "train")
    (problem,) = problems(folder)
    assert problem.startswith("its png view is not whole: ")
    assert expected in problem


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("png", name) for name in ("train/metadata.jsonl", "train/class 0/metadata.csv", "test/class 0/00000.png")),
        *(("parquet", name) for name in ("data/test-00000-of-00001.parquet", "more.py", "data/classes.txt")),
        *(("webdataset", name) for name in ("more/set-000000.tar", "data.parquet")),
        ("safetensors", "train/class 0/00000.png"),
    ],
)
def test_a_file_that_the_layout_does_not_have(tmp_path: Path, small: SyntheticSet, layout: str, name: str) -> None:
    """Other libraries would load it, and a forger lists it in the checksums."""
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout=layout))
    assert by_child(folder) == []
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"more")
    assert by_child(folder) == [f"{name} is not a file that a {layout} package has"]


Members = dict[str, bytes]


def shard_with(change: Callable[[Members], Members | None]) -> Callable[[Path], Any]:
    """The shard with other members."""

    def edit(folder: Path) -> None:
        (shard,) = folder.glob("*.tar")
        with tarfile.open(shard) as old:
            members = {member.name: old.extractfile(member).read() for member in old}  # type: ignore[union-attr]
        members = change(members) or members
        with tarfile.open(shard, "w") as new:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))

    return edit


def without(key: str) -> Callable[[Members], Members]:
    return lambda members: {name: content for name, content in members.items() if not name.startswith(key)}


def again(members: Members) -> Members:
    more = {name.replace("00000023", "00000024"): content for name, content in members.items() if "00000023" in name}
    return members | more


VIEW = "its webdataset view"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shard_with(without("00000023")), f"{VIEW} ends after 23 images, the set has 24"),
        (shard_with(again), f"{VIEW} has more images than the 24 of the set"),
        (shard_with(lambda m: m | {"00000003.cls": b"2"}), f"label 3 of {VIEW} is 2, expected 0"),
        (shard_with(lambda m: m | {"00000003.cls": b"-"}), f"{VIEW} is not whole: ValueError: invalid literal"),
        (shard_with(without("00000003.cls")), f"{VIEW} is not whole: KeyError: 'cls'"),
        (shard_with(lambda m: m | {"00000003.npy": m["00000004.npy"]}), f"soft labels 3 of {VIEW} are not the set's"),
        (shard_with(lambda m: m | {"00000003.png": m["00000004.png"]}), f"image 3 of {VIEW} is not the set's"),
        (shard_with(lambda m: m | {"00000003.png": m["00000004.png"][:60]}), f"{VIEW} is not whole: OSError: image"),
        (
            shard_with(lambda m: m | {"00000003.json": m["00000004.json"]}),
            f"{VIEW} is not whole: ValueError: the facts",
        ),
        (lambda f: (f / "classes.txt").write_text("a\nb\nc\n"), f"{VIEW} is not whole: ValueError: classes.txt"),
        (lambda f: (f / "classes.txt").unlink(), f"{VIEW} is not whole: ValueError: classes.txt"),
        (lambda f: next(f.glob("*.tar")).write_bytes(b"no tar" * 999), f"{VIEW} is not whole: ReadError"),
        (lambda f: next(f.glob("*.tar")).unlink(), f"{VIEW} ends after 0 images, the set has 24"),
    ],
)
def test_broken_shards(tmp_path: Path, small: SyntheticSet, change: Callable[[Path], Any], expected: str) -> None:
    folder = tmp_path / "what? #1 {0..9}"  # which webdataset would take for an address, or for ten folders
    package.write(small, folder, Packing(layout="webdataset"))
    assert problems(folder) == []
    change(folder)
    (problem,) = problems(folder)
    assert problem.startswith(expected)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_shard_is_not_loaded(tmp_path: Path, small: SyntheticSet) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="webdataset"))
    trap = Trap(tmp_path / "trapped")
    array = io.BytesIO()
    np.save(array, np.array([trap] * 3, object), allow_pickle=True)
    pickles = {f"00000000.{kind}": pickle.dumps(trap) for kind in ("pyd", "pickle", "pth")}
    shard_with(lambda members: pickles | members | {"00000000.npy": array.getvalue()})(folder)
    (problem,) = by_child(folder)
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


def large_picture(folder: Path) -> None:
    (folder / "train" / "class 0" / "00000.png").write_bytes(bomb())


def large_member(folder: Path) -> None:
    """256 MiB of zeros, which take no place on the disk."""
    (shard,) = folder.glob("*.tar")
    rest, info = shard.read_bytes(), tarfile.TarInfo("00000000.more")
    info.size = 256 << 20
    with shard.open("wb") as file:
        file.write(info.tobuf())
        file.seek(info.size, os.SEEK_CUR)
        file.write(rest)


OTHER_SHAPE = "its png view is not whole: ValueError: an image of shape (3, 9000, 9000) with soft labels (3,)"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
@pytest.mark.parametrize(
    ("layout", "grow", "enough"),
    [("png", large_picture, [OTHER_SHAPE]), ("webdataset", large_member, [])],
)
def test_memory_is_limited(
    tmp_path: Path,
    small: SyntheticSet,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    grow: Callable[[Path], None],
    enough: list[str],
) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout=layout))
    grow(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert by_child(folder) == enough  # 2 GiB are
    less = f"import {decoder.__name__} as d; d.MEMORY = 1 << 26; main()"
    monkeypatch.setattr(compare, "CHILD", compare.CHILD.replace("main()", less))
    (problem,) = by_child(folder)
    assert problem in (
        f"its {layout} view needs more memory than 64 MiB",
        f"its {layout} view is not whole: MemoryError: ",
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="processor time is limited on Linux only")
def test_time_is_limited(tmp_path: Path, small: SyntheticSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    package.write(small, folder, Packing(layout="png"))
    monkeypatch.setattr(compare, "LEAST_SECONDS", 1)
    slow = f"import {decoder.__name__} as d; d.decoded = lambda **_: (x for x in iter(int, 1) if x); main()"
    monkeypatch.setattr(compare, "CHILD", compare.CHILD.replace("main()", slow))
    assert by_child(folder) == ["its png view takes more than 1 s of processor time"]
    monkeypatch.setattr(compare, "WAIT", 0)
    assert by_child(folder) == ["its png view was not decoded within 0 s"]
