"""Runs that several jobs start from, made once: each takes the digits' store and pool from one cache."""

from pathlib import Path

import pytest
from small_runs import evaluation_settings, opened, start

from ncfmkit.jobs.train import train_real
from ncfmkit.runtime import choose_runtime
from ncfmkit.scoring.baselines import BASELINES
from ncfmkit.scoring.student_manifest import StudentManifest
from ncfmkit.sets import set_file


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def one_cache(_own_cache: None, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for this file, so that the tiny pool is trained once."""
    monkeypatch.setenv("NCFMKIT_CACHE", str(shared_cache))


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run with every baseline, which tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(shared_cache))
        return start(
            tmp_path_factory.mktemp("runs") / "scored",
            # those need soft labels, and snapshots
            baselines=tuple(name for name in BASELINES if name not in ("random-soft", "el2n", "forgetting")),
            distill__factor=2,
            student__repeats=2,
            student__whole_epochs=1,
        )


@pytest.fixture(scope="session")
def student(scored: Path, shared_cache: Path) -> tuple[Path, StudentManifest]:
    result, out = set_file.load(scored), scored.parent / "student.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(shared_cache))
        settings = evaluation_settings(result, **{"student.epochs": 20})
        return out, train_real(result, opened(settings), settings, choose_runtime(settings.runtime), out=out)
