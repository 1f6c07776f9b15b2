"""The settings that are measured."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contenders import TINY

from benchmarks import settings


def test_settings() -> None:
    names = {(s.name, s.real_batch, s.frequencies) for s in settings.STEPS}
    assert len(names) == len(settings.STEPS)
    for axis, values in settings.AXES.items():
        varied = settings.along(axis)
        same: dict[str, Any] = {axis: values[0]}
        assert [getattr(s, axis) for s in varied] == list(values)
        assert len({dataclasses.replace(s, **same) for s in varied}) == 1
        assert all(s.real_batch <= s.per_class for s in varied)


def test_pixels_whose_writing_was_ended_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda label: {}[label])  # ends before the first class is written
        with pytest.raises(KeyError):
            TINY.pixels(tmp_path)
    assert np.load(TINY.pixels(tmp_path)).any(axis=(1, 2, 3)).all()
    assert len(list(tmp_path.iterdir())) == 1
