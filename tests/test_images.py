"""Labeled images: what networks are trained on and tested with."""

import dataclasses

import torch

from ncfmkit.images import labeled


def test_targets_are_those_of_the_index(real) -> None:
    index, cpu = torch.tensor([20, 0, 8]), torch.device("cpu")
    hard = labeled(real, real.train).on(cpu).targets(index)
    assert hard.dtype == torch.float32
    assert hard.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    logits = torch.arange(63).view(21, 3).half() * torch.tensor([0, 0.01, -0.02]).half()
    data = dataclasses.replace(labeled(real, real.train), soft_labels=logits)
    soft = data.on(cpu).targets(index)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft, logits[[20, 0, 8]].float().softmax(1), rtol=0, atol=0)
