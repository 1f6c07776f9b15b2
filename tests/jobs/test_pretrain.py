"""The pool alone."""

from pathlib import Path

import pytest
from small_runs import TINY, opened

from ncfmkit.jobs import pretrain, setup
from ncfmkit.run import RunDirectory
from ncfmkit.runtime import choose_runtime

pytestmark = pytest.mark.usefixtures("one_cache")


def test_pretrain_makes_the_pool_that_distill_finds(scored: Path) -> None:
    settings = setup.make_settings("digits", None, TINY)
    pool = pretrain.pretrain(opened(settings), settings, choose_runtime(settings.runtime))
    assert pool.seconds == 0
    about = RunDirectory.open(scored).info().pool
    assert about is not None
    assert pool.key == about.key
