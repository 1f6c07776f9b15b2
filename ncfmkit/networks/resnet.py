"""ResNet-18 and ResNet-AP-10 in their CIFAR forms with instance norm (docs/method.md, section 7).

Shapes: N images, C channels, H = W side.
"""

import torch
from torch import nn

from ncfmkit.networks.plain import BodyNet, conv_norm_relu


def stem(channels: int, outputs: int, size: int) -> list[nn.Module]:
    """A convolution 3x3 that keeps the side; from 128 px on its map is halved, a quarter of the cost."""
    conv = conv_norm_relu(channels, outputs)
    return [*conv, nn.AvgPool2d(2)] if size >= 128 else conv


class Block(nn.Module):
    """Two convolutions 3x3 beside a shortcut; `halve` halves the side, by a stride or by an average pool."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool, pool: bool):
        super().__init__()
        stride = 2 if halve and not pool else 1
        shrink: list[nn.Module] = [nn.AvgPool2d(2)] if halve and pool else []
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(outputs, outputs),
            nn.ReLU(),
            *shrink,
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(outputs, outputs),
        )
        self.shortcut = nn.Sequential()
        if halve or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(*shrink, conv, nn.GroupNorm(outputs, outputs))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x_NCHW) + self.shortcut(x_NCHW))


def _resnet(blocks: int, *, pool: bool, channels: int, classes: int, size: int) -> BodyNet:
    layers = stem(channels, 64, size)
    inputs = 64
    for outputs in (64, 128, 256, 512):
        for i in range(blocks):
            layers.append(Block(inputs, outputs, halve=i == 0 and outputs > 64, pool=pool))
            inputs = outputs
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return BodyNet(body, dims=inputs, classes=classes, size=size)


def resnet18(*, channels: int, classes: int, size: int) -> BodyNet:
    """Four stages of two blocks, halved by strided convolutions; the feature is the mean of the last map, 512 wide."""
    return _resnet(2, pool=False, channels=channels, classes=classes, size=size)


def resnetap10(*, channels: int, classes: int, size: int) -> BodyNet:
    """Four stages of one block, halved by average pools; the feature is the mean of the last map, 512 wide."""
    return _resnet(1, pool=True, channels=channels, classes=classes, size=size)
