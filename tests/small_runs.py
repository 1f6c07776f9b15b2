"""Small runs of `ncfmkit distill` on the digits, and what the jobs after it are given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ncfmkit.config import Settings
from ncfmkit.jobs import distill as distill_job
from ncfmkit.jobs.evaluate import evaluate_real, settings_for
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.run_records import Scores
from ncfmkit.runtime import choose_runtime
from ncfmkit.sets import set_file

TINY: dict[str, Any] = {
    "network.width": 8,
    "pool.members": 2,
    "pool.epochs": 1,
    "distill.steps": 12,
    "distill.frequencies": 32,
    "distill.real_batch": 32,
    "student.epochs": 3,
    "student.repeats": 1,
    "runtime.checkpoint_every": 4,
    "runtime.device": "cpu",
}


def start(out: Path | None, data: str = "digits", baselines: tuple[str, ...] = (), **overrides: Any) -> Path:
    folder = {} if data == "digits" else {"distill.ipc": 1, "runtime.compile": "off"}  # what the digits' recipe says
    settings = TINY | folder | {key.replace("__", "."): value for key, value in overrides.items()}
    arguments = DataArguments(data=data)
    return distill_job.start(arguments, recipe=None, out=out, baselines=baselines, overrides=settings)


def set_bytes(folder: Path) -> bytes:
    return (folder / set_file.FILE_NAME).read_bytes()


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_folder(root: Path, counts: dict[str, int], size: int = 8) -> Path:
    """One tree of class folders with gray noise."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        rng = np.random.default_rng(label)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def opened(settings: Settings, data: str = "digits") -> RealData:
    return DataArguments(data=data).open(settings)


def evaluate_on(data: str, result: Any, settings: Settings, **how: Any) -> Scores:
    return evaluate_real(result, opened(settings, data), settings, choose_runtime(settings.runtime), **how)


def evaluation_settings(result: Any, **overrides: Any) -> Any:
    small = {"student.epochs": 2, "student.repeats": 1, "runtime.compile": "off", "runtime.device": "cpu"}
    return settings_for(result, small | overrides)
