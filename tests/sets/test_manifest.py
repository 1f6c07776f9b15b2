"""The set that a distillation ends with."""

import numpy as np
import pytest
import torch
from conftest import build_real

from ncfmkit.config import DistillSettings, Settings
from ncfmkit.sets.manifest import finished_set


@pytest.mark.parametrize("off", [-0.49, -0.2, 0.0, 0.2, 0.49])
def test_pixels_are_stored_as_the_nearest_byte(off: float) -> None:
    real = build_real()
    levels = np.random.default_rng(0).integers(1, 255, (6, 3, 8, 8))
    levels[0, 0, 0, :2] = 0, 255
    images = torch.from_numpy(((levels + off) / 255).clip(0, 1).astype(np.float32))
    result = finished_set(Settings(distill=DistillSettings(ipc=2)), real, images)
    assert result.images.dtype == torch.uint8
    np.testing.assert_array_equal(result.images, levels)


def test_bytes_are_stored_as_they_are() -> None:
    images = torch.arange(6 * 3 * 64, dtype=torch.int32).remainder(256).to(torch.uint8).view(6, 3, 8, 8)
    assert torch.equal(finished_set(Settings(distill=DistillSettings(ipc=2)), build_real(), images).images, images)
