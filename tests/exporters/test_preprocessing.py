"""The network as it is shipped: norms lowered and kept, and the network itself left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_real, write_student
from exports import images_of
from torch import nn

from ncfmkit import networks
from ncfmkit.config import NetworkSettings
from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.exporters.preprocessing import Deployed
from ncfmkit.exporters.student import load_student
from ncfmkit.networks.convnet import BatchNorm

BATCH_NORMED = NetworkSettings(name="convnetbn", width=8, depth=2)


def test_lowered_norms_are_the_same_function_and_leave_the_network_alone(student_path: Path) -> None:
    student = load_student(student_path)
    before = {k: v.clone() for k, v in student.network.state_dict().items()}
    takes: dict[str, Any] = {"layout": "uint8-nchw", "output": "logits"}
    plain, lowered = student.deployed(**takes), student.deployed(**takes, lowered=True)
    assert not any(isinstance(m, nn.GroupNorm) for m in lowered.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in plain.modules())
    images = torch.from_numpy(images_of(6))
    torch.testing.assert_close(plain(images), lowered(images))
    half = student.deployed(**takes, half=True, lowered=True)
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.InstanceNorm2d)} == {torch.float32}
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {torch.float16}
    assert all(torch.equal(before[k], v) for k, v in student.network.state_dict().items())


@pytest.mark.parametrize("half", [False, True])
def test_a_batch_norm_goes_into_its_convolution(half: bool, tmp_path: Path) -> None:
    student = load_student(write_student(tmp_path / "s.safetensors", build_real((40, 40, 40)), BATCH_NORMED))
    takes: dict[str, Any] = {"layout": "uint8-nchw", "output": "logits"}
    plain, folded = student.deployed(**takes), student.deployed(**takes, lowered=True, half=half)
    norms = [m for m in plain.modules() if isinstance(m, BatchNorm)]
    assert len(norms) == 2
    assert all(bool((norm.mean.abs() > 0).all()) for norm in norms), "statistics of the training images"
    assert not any(isinstance(m, BatchNorm) for m in folded.modules())
    images = torch.from_numpy(images_of(6))
    expected = plain(images).detach()
    close = 1e-2 if half else 1e-5
    torch.testing.assert_close(folded(images), expected, rtol=close, atol=close * float(expected.abs().max()))


def test_a_norm_over_groups_stays_what_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 3))
    lowered = Deployed(network, mean=[0.5] * 3, std=[0.2] * 3, lowered=True)
    assert type(list(lowered.network.children())[1]) is nn.GroupNorm


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pixel_value_is_normalized_in_full_precision(layout: str) -> None:
    """The network of this test gives out what it is given."""
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.25, 0.3]
    deployed = Deployed(nn.Flatten(), mean=mean, std=std, layout=layout)
    images = np.stack([np.roll(np.arange(256).reshape(16, 16), c) for c in range(3)])[None].astype(np.uint8)
    got = deployed(torch.from_numpy(LAYOUTS[layout].arrange(images))).reshape(1, 3, 16, 16)
    shape = (1, 3, 1, 1)
    expected = (images / 255 - np.reshape(mean, shape)) / np.reshape(std, shape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "convnext"])
@torch.no_grad()
def test_layer_norms_of_half_a_network_are_float32(name: str) -> None:
    network = networks.build(name, channels=1, classes=3, size=8)
    half = Deployed(network, mean=[0.5], std=[0.25], half=True, lowered=True)
    norms = [m for m in half.modules() if isinstance(m, nn.LayerNorm)]
    assert {m.weight.dtype for m in norms} == {torch.float32}
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {torch.float16}
    assert network.classifier.weight.dtype == torch.float32
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    expected = Deployed(network, mean=[0.5], std=[0.25])(images)
    torch.testing.assert_close(half(images), expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_float_pixels_between_two_bytes_stay_what_they_are() -> None:
    deployed = Deployed(nn.Flatten(), mean=[0.5], std=[0.25], layout="float-nchw")
    images = torch.linspace(0, 1, 1000).view(1, 1, 25, 40)
    torch.testing.assert_close(deployed(images).view_as(images), (images - 0.5) * 4, rtol=0, atol=1e-6)
