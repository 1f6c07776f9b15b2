"""Patterns of file names."""

import sys

import pytest

from ncfmkit.errors import UserError
from ncfmkit.real.paths import matching


def test_only_braces_need_the_library_that_expands_them(tmp_path, monkeypatch):
    (tmp_path / "train-0.tar").touch()
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert matching(str(tmp_path / "train-*.tar"), ".tar") == [tmp_path / "train-0.tar"]
    with pytest.raises(ImportError):
        matching(str(tmp_path / "train-{0..1}.tar"), ".tar")


def test_a_shard_that_braces_name_is_not_left_out_in_silence(tmp_path):
    for number in (0, 1, 3):
        (tmp_path / f"train-{number}.tar").touch()
    with pytest.raises(UserError, match=r"train-2\.tar is not there \(1 of 4 files are missing\): copy it, or"):
        matching(str(tmp_path / "train-{0..3}.tar"), ".tar")
    assert len(matching(str(tmp_path / "train-{0,1,3}.tar"), ".tar")) == 3
    assert matching(str(tmp_path / "none-{0..3}.tar"), ".tar") == []


def test_what_macos_keeps_beside_files_is_no_shard(tmp_path):
    for name in ("train-0.tar", "._train-0.tar"):
        (tmp_path / name).touch()
    assert matching(str(tmp_path), ".tar") == [tmp_path / "train-0.tar"]
