"""The network as it is shipped: norms lowered and kept, and the network itself left alone."""

from pathlib import Path
from typing import Any

import torch
from exports import images_of
from torch import nn

from ncfmkit.exporters.preprocessing import Deployed
from ncfmkit.exporters.student import load_student


def test_lowered_norms_are_the_same_function_and_leave_the_network_alone(student_path: Path) -> None:
    student = load_student(student_path)
    before = {k: v.clone() for k, v in student.network.state_dict().items()}
    takes: dict[str, Any] = {"layout": "uint8-nchw", "output": "logits"}
    plain, lowered = student.deployed(**takes), student.deployed(**takes, lower_norms=True)
    assert not any(isinstance(m, nn.GroupNorm) for m in lowered.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in plain.modules())
    images = torch.from_numpy(images_of(6))
    torch.testing.assert_close(plain(images), lowered(images))
    half = student.deployed(**takes, half=True, lower_norms=True)
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.InstanceNorm2d)} == {torch.float32}
    assert {m.weight.dtype for m in half.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {torch.float16}
    assert all(torch.equal(before[k], v) for k, v in student.network.state_dict().items())


def test_a_norm_over_groups_stays_what_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 3))
    lowered = Deployed(network, mean=[0.5] * 3, std=[0.2] * 3, lower_norms=True)
    assert type(list(lowered.network.children())[1]) is nn.GroupNorm
