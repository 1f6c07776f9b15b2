"""The table of sources, and what importing it brings."""

import subprocess
import sys
from pathlib import Path

import pytest
from source_files import PLAIN, class_folders

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.opening import open_real
from ncfmkit.real.sources import NAMED, SOURCES


def test_table_names_are_unique_and_described():
    names = [kind.name for kind in SOURCES]
    assert len(set(names)) == len(names)
    assert {
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "svhn",
        "folder",
        "parquet",
        "webdataset",
        "hub",
        "remote",
        "datasets",
    } == set(names)
    assert all(kind.summary for kind in SOURCES)


def test_no_torch_at_import():
    code = "import sys, ncfmkit.real; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read_whatever_its_type(tmp_path, kind):
    class_folders(tmp_path / "photos", ["a", "b"])
    data = open_real(kind(tmp_path / "photos"), PLAIN)
    assert (data.name, data.classes) == ("photos", ("a", "b"))
    arguments = DataArguments(data=kind(tmp_path / "photos"), data_root=kind(tmp_path))
    assert arguments == DataArguments(data=str(tmp_path / "photos"), data_root=str(tmp_path))


def test_an_empty_text_is_not_the_working_directory(tmp_path, monkeypatch):
    """As of a shell variable that is not set."""
    class_folders(tmp_path, ["a", "b"])
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no data found at ''\. Accepted"):
        open_real("", PLAIN)


@pytest.mark.parametrize("name", NAMED)
def test_a_path_is_never_a_name(tmp_path, monkeypatch, name):
    """A folder that is called as a known set is: as a path it is that folder, as a text the known set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no data found at '\./{name}'"):
        open_real(Path(name), PLAIN)
    class_folders(tmp_path / name, ["a", "b"])
    for data in (open_real(Path(name), PLAIN), DataArguments(data=Path(name)).open(Settings())):
        assert (data.name, data.classes) == (name, ("a", "b"))
    assert DataArguments(data=Path(name)).recorded()["data"] == str(tmp_path / name)
    assert DataArguments(data=name).recorded()["data"] == name
