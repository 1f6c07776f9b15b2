"""Patterns of file names."""

import sys

import pytest

from ncfmkit.real.paths import matching


def test_only_braces_need_the_library_that_expands_them(tmp_path, monkeypatch):
    (tmp_path / "train-0.tar").touch()
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert matching(str(tmp_path / "train-*.tar"), ".tar") == [tmp_path / "train-0.tar"]
    with pytest.raises(ImportError):
        matching(str(tmp_path / "train-{0..1}.tar"), ".tar")
