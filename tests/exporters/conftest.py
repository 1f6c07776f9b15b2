"""Fixtures of the exporters' tests."""

from collections.abc import Iterator

import exports
import pytest
from conftest import build_real

from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData


@pytest.fixture
def traced_once() -> Iterator[None]:
    with exports.traced_once():
        yield


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> RealData:
    """Real data that the tiny student knows, which every `DataArguments` now opens to."""
    real = build_real((40, 40, 40), test_counts=(90, 100, 110))  # more than a batch, classes of their own difficulty
    monkeypatch.setattr(DataArguments, "check", lambda self, settings: None)
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: real)
    return real
