"""One contender of classifier training in a process of its own: a pool member, or students of one score.

Started by :mod:`benchmarks.race` as `python -m benchmarks.training JOB`; a line names a method.
"""

import time
from typing import Any

import torch

from benchmarks import floor
from benchmarks.settings import Setting
from benchmarks.worker import memory, serve
from ncfmkit.config import PoolSettings, RuntimeSettings, StudentSettings, TrainSettings
from ncfmkit.images import LabeledImages
from ncfmkit.progress import track
from ncfmkit.runtime import choose_runtime
from ncfmkit.scoring.students import side_by_side
from ncfmkit.training import StackedModels, accuracy, fresh_state, train

POOL_IMAGES = 2560  # an epoch of the pool's row: 20 batches of 128
EPOCHS = 2  # of students in one step: 8 batches of 100
TEST_IMAGES = 10_000


class Trainer:
    """Trains `together` networks at a time; a step is one epoch of a pool member, or `EPOCHS` of the students."""

    def __init__(self, job: dict[str, Any]):
        self.runtime = choose_runtime(RuntimeSettings(**job["runtime"]))
        self.kind = job["kind"]
        setting = Setting(**job["setting"])
        count = POOL_IMAGES if self.kind == "pool" else setting.decoded_images
        settings: TrainSettings = PoolSettings(epochs=1) if self.kind == "pool" else StudentSettings(epochs=EPOCHS)
        self.settings = settings
        self.data = self._random(count, setting)
        self.test = self._random(TEST_IMAGES // 10, setting)
        self.together = 1
        if job["together"]:
            self.together = side_by_side(StudentSettings.repeats, setting.side, self.runtime)
        self.models = StackedModels(lambda: floor.build(setting), self.together, self.runtime)
        self.models.load([fresh_state(lambda: floor.build(setting), 0, "student", k) for k in range(self.together)])

    @staticmethod
    def _random(count: int, setting: Setting) -> LabeledImages:
        images = torch.randint(0, 256, (count, 3, setting.side, setting.side), dtype=torch.uint8)
        labels = torch.arange(count) % setting.classes
        return LabeledImages(images=images, labels=labels, mean=(0.5,) * 3, std=(0.289,) * 3, classes=setting.classes)

    def about(self) -> dict[str, Any]:
        return {"precision": self.runtime.precision, "compiled": self.runtime.compile, "together": self.together}

    def _clock(self) -> float:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        return time.perf_counter()

    def step(self) -> dict[str, Any]:
        """Seconds of one network's step; networks that are trained together share the time."""
        keys = range(self.together)
        start = self._clock()
        with track("", self.settings.epochs) as bar:
            train(self.models, [self.data] * self.together, self.settings, seed=0, keys=keys, bar=bar)
        return {"seconds": (self._clock() - start) / self.together}

    def test_seconds(self) -> dict[str, float]:
        """Seconds to test one network on `TEST_IMAGES` images, from a tenth of them."""
        accuracy(self.models, self.test)
        start = self._clock()
        accuracy(self.models, self.test)
        return {"seconds": 10 * (self._clock() - start) / self.together}

    def memory(self) -> dict[str, int | None]:
        return memory(self.runtime.device)


if __name__ == "__main__":
    serve(Trainer)
