"""Contenders without processes of their own."""

import pytest
from contenders import Here

from benchmarks import __main__ as command
from benchmarks import race


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders run in this process."""
    monkeypatch.setattr(race, "Process", Here)
    monkeypatch.setattr(command, "Process", Here)
