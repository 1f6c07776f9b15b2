"""Packages: they hold the set's one file and what goes with it, damage is listed, nothing half is left."""

import dataclasses
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import build_set

import ncfmkit
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs import pack as pack_job
from ncfmkit.jobs.unpack import unpack
from ncfmkit.sets import numpy_reader, package, set_file
from ncfmkit.sets.package import FACTS, READER, SUMS, Packing
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.table import LAYOUTS

BESIDE = {set_file.FILE_NAME, FACTS, READER, SUMS, "README.md", "croissant.json", "preview.png"}


def pack(result: SyntheticSet, folder: Path, layout: str, **how: Any) -> Path:
    package.write(result, folder, Packing(layout=layout, **how))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "how", [{}, {"soft": True, "kind": "bound", "budget": 7}, {"bits": 3, "classes": ("\x1b[31mred", "b")}]
)
def test_a_package_holds_the_one_file(tmp_path: Path, layout: str, how: dict[str, Any]) -> None:
    small = build_set(**how)
    set_file.save(small, tmp_path / "small.safetensors")
    folder = pack(small, tmp_path / "packed", layout)
    there = contents(folder)
    assert there[set_file.FILE_NAME] == (tmp_path / "small.safetensors").read_bytes()
    assert there[READER] == Path(numpy_reader.__file__).read_bytes()
    assert there.keys() >= BESIDE
    assert (there.keys() == BESIDE) == (layout == "safetensors")
    assert ncfmkit.load(folder).manifest == small.manifest
    assert ncfmkit.verify(folder).problems == ()
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert {line.rpartition(": ")[0] for line in done.stdout.splitlines()} == there.keys() - {SUMS}
    assert contents(folder) == there  # reading and checking write nothing


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_set_decides_the_bytes(tmp_path: Path, layout: str) -> None:
    """Other strides, the same package."""
    small = build_set(soft=True)
    images = small.images.transpose(2, 3).contiguous().transpose(2, 3)
    other = dataclasses.replace(small, images=images)
    assert contents(pack(small, tmp_path / "a", layout)) == contents(pack(other, tmp_path / "b", layout))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"layout": "zip"}, "--to zip: expected one of safetensors, webdataset, parquet, png"),
        ({"layout": "png", "encoding": "jpeg"}, "--encoding jpeg: expected one of png, webp"),
        ({"layout": "png", "shard_bytes": 5}, "--to png has no shards: leave --shard-size out"),
        ({"layout": "parquet", "shard_bytes": 0}, "--shard-size 0: expected 1 byte or more"),
        ({"layout": "safetensors", "encoding": "png"}, "--to safetensors has no pictures: leave --encoding out"),
    ],
)
def test_what_no_package_is_like(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Packing(**how)


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


def test_what_decodes_to_too_much_gets_no_view(tmp_path: Path) -> None:
    large = build_set("multi", 64, classes=("cat", "dog"), ipc=1, size=64, channels=1)
    with pytest.raises(UserError, match="decodes to 366,346,240 values, a view takes 67,108,864 at most: use --to saf"):
        pack(large, tmp_path / "packed", "png")
    assert not list(tmp_path.iterdir())
    pack(large, tmp_path / "packed", "safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack(build_set(), tmp_path / "packed", "webdataset")


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(CheckFailed) as failed:
        ncfmkit.verify(folder)
    assert failed.value.result is not None
    problems: list[str] = failed.value.result["problems"]
    assert all(problem in str(failed.value) for problem in problems)
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


@pytest.mark.parametrize("name", sorted(BESIDE - {SUMS}))
@pytest.mark.parametrize("edit", [lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: c[:-1], lambda c: b""])
def test_damage_to_any_file_is_found(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(edit((folder / name).read_bytes()))
    assert problems_of(folder) == [f"{name} is damaged: its sha256 is not that in SHA256SUMS"]


@pytest.mark.parametrize(
    "line", ["../up.txt", "/etc/passwd", "a/../../up.txt", "a//b", "./a", "C:/a", "a\\b", "", "short"]
)
def test_sums_stay_inside_the_folder(folder: Path, line: str) -> None:
    (folder.parent / "up.txt").write_text("up")
    digest = "0" * (63 if line == "short" else 64)
    before = (folder / SUMS).read_text()
    (folder / SUMS).write_text(before + f"{digest}  {line}\n")
    number = before.count("\n") + 1
    assert problems_of(folder)[0].startswith(f"{SUMS} line {number}: expected a sha256, two spaces and a path inside")


def test_links_are_not_followed_and_devices_not_read(folder: Path, tmp_path: Path) -> None:
    shard = next(folder.glob("*.tar"))
    shard.rename(tmp_path / "outside.tar")
    shard.symlink_to(tmp_path / "outside.tar")
    expected = [f"{shard.name} is not a file of its own (a link, a device)"]
    assert problems_of(folder) == expected
    shard.unlink()
    os.mkfifo(shard)  # opening it would wait for ever
    assert problems_of(folder) == expected


def test_sums_that_are_not_there_or_too_large(folder: Path) -> None:
    os.truncate(folder / SUMS, (1 << 27) + 1)
    assert problems_of(folder) == ["SHA256SUMS is missing, or not such a file"]
    (folder / SUMS).unlink()
    assert problems_of(folder) == ["SHA256SUMS is missing, or not such a file"]


def reseal(folder: Path) -> None:
    """SHA256SUMS as a forger would make it fit."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged"),
        (b'{"kind": "synthetic set", "layout": "png", "encoding": "png"}', "kind: "),
        (b'{"kind": "package", "layout": "zip", "encoding": "png"}', "--to zip: expected one of"),
        (b'{"kind": "package", "layout": "png", "encoding": "gif"}', "--encoding gif: expected one of"),
        (b'{"kind": "package", "layout": ["png"], "encoding": "png"}', "layout: input should be a valid string"),
    ],
)
def test_a_layout_that_is_none(folder: Path, content: bytes, says: str) -> None:
    (folder / FACTS).write_bytes(content)
    reseal(folder)
    (problem,) = problems_of(folder)
    assert says in problem


def test_a_file_of_a_package_is_not_a_set(folder: Path) -> None:
    with pytest.raises(UserError, match=r"ncfmkit\.json .*package: .*folder .*packed$"):
        ncfmkit.load(folder / FACTS)


def test_a_package_without_the_one_file(folder: Path) -> None:
    """As earlier versions wrote them."""
    (folder / set_file.FILE_NAME).unlink()
    reseal(folder)
    for read in (ncfmkit.load, ncfmkit.verify, ncfmkit.unpack):
        with pytest.raises(UserError, match=r"no synthetic set at .*packages of earlier versions may lack it"):
            read(folder)


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
