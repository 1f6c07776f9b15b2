"""What tests of commands share: one cache a file, so that a pool is trained once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def one_cache(_own_cache: None, own_folder: None, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for a file, and a folder of its own for each test."""
    monkeypatch.setenv("NCFMKIT_CACHE", str(shared_cache))
