"""A set that promises a score, and what stands for measuring it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import build_set
from recorded import score

from ncfmkit.config import Settings
from ncfmkit.jobs import evaluate
from ncfmkit.jobs.evaluate import settings_for
from ncfmkit.run_records import Accuracy, Scores
from ncfmkit.sets import set_file
from ncfmkit.sets.synthetic import SyntheticSet

PROMISED = {
    "network": "convnet-2 width 8",
    "epochs": 2,
    "n": 3,
    "last": {"mean": 0.6, "std": 0.05},
    "best": {"mean": 0.7, "std": 0.02},
}


def promising_set(path: Path) -> Path:
    """Writes `build_set`'s set with that score."""
    set_file.save(build_set(score=PROMISED), path)
    return path


class Scored:
    """Takes the place of `jobs.evaluate.Scoring`: says this accuracy, and remembers what it was asked to score."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mean: float, **overrides: Any):
        self.mean, self.overrides = mean, overrides
        self.seen: list[SyntheticSet] = []
        monkeypatch.setattr(evaluate, "Scoring", lambda **_: self)

    def __call__(self, result: SyntheticSet) -> tuple[Scores, Settings]:
        self.seen.append(result)
        row = score("distilled", 0.7, n=3, network="convnet-2 width 8").model_copy(
            update={"epochs": 2, "last": Accuracy(mean=self.mean, std=0.01, values=())}
        )
        scores = Scores(device="cpu", precision="fp32", versions={}, rows=(row,))
        return scores, settings_for(result, self.overrides)
