"""Taking a package back into the one file."""

import errno
from pathlib import Path
from typing import Any

import pytest
from conftest import build_set
from promises import PROMISED, promising_set

from ncfmkit.errors import UserError
from ncfmkit.jobs.pack import pack
from ncfmkit.jobs.unpack import unpack
from ncfmkit.sets import set_file


@pytest.fixture(autouse=True)
def _here(own_folder: None) -> None:
    """Commands run in `tmp_path`."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return promising_set(tmp_path / "small.safetensors")


@pytest.mark.parametrize("layout", ["safetensors", "webdataset", "png"])
@pytest.mark.parametrize("kind", [{}, {"soft": True}, {"bits": 3}])
def test_unpack_gives_the_same_file(tmp_path: Path, layout: str, kind: dict[str, Any]) -> None:
    path = tmp_path / "small.safetensors"
    set_file.save(build_set(score=PROMISED, **kind), path)
    out, _ = pack(path, to=layout)
    file, manifest = unpack(out)
    assert file == Path("tiny-ipc2.safetensors")
    assert file.read_bytes() == path.read_bytes()
    assert manifest == set_file.load(path).manifest
    assert {p.name for p in tmp_path.iterdir()} == {"small.safetensors", out.name, "tiny-ipc2.safetensors"}


def test_unpack_overwrites_nothing_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    out, _ = pack(small, to="webdataset")
    with pytest.raises(UserError, match=r"small\.safetensors already exists: pass --force"):
        unpack(out, out=small)
    with pytest.raises(UserError, match="there is no folder nowhere: make it first"):
        unpack(out, out="nowhere/x.safetensors")
    file = out / set_file.FILE_NAME
    with pytest.raises(UserError, match=r"is the file itself: choose another"):
        unpack(out, out=file, force=True)
    file.write_bytes(file.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"is damaged: .*not a readable safetensors file"):
        unpack(out)
    assert {p.name for p in tmp_path.iterdir()} == {"small.safetensors", out.name}


def test_a_full_disk_while_unpacking(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = pack(small, to="png")
    before = {p.name for p in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ncfmkit.files.os.replace", full)
    with pytest.raises(UserError, match=r"the disk is full: tiny-ipc2\.safetensors was not written"):
        unpack(out)
    assert {p.name for p in tmp_path.iterdir()} == before
