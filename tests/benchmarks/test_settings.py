"""The settings that are measured."""

import dataclasses
from typing import Any

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
