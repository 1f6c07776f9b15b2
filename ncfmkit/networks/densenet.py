"""DenseNet-121 in its CIFAR form with instance norm (docs/method.md, section 7).

Shapes: N images, C channels, H = W side.
"""

import torch
from torch import nn

from ncfmkit.networks.plain import BodyNet

GROWTH = 32  # channels that each layer adds
LAYERS = (6, 12, 24, 16)  # per dense block: with two convolutions each, the stem, 3 transitions and the classifier, 121


def _norm_relu_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [nn.GroupNorm(inputs, inputs), nn.ReLU(), conv]


class DenseLayer(nn.Module):
    """A bottleneck 1x1 and a convolution 3x3, whose channels join those that came in."""

    def __init__(self, inputs: int):
        super().__init__()
        bottleneck = 4 * GROWTH
        self.new = nn.Sequential(*_norm_relu_conv(inputs, bottleneck, 1), *_norm_relu_conv(bottleneck, GROWTH, 3))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([x_NCHW, self.new(x_NCHW)], dim=1)


def densenet121(*, channels: int, classes: int, size: int) -> BodyNet:
    """Four dense blocks, halved in width and side between them; the feature is the mean of the last map, 1024 wide."""
    width = 2 * GROWTH
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    if size >= 128:  # as the ResNets: a quarter of the cost
        layers.append(nn.AvgPool2d(2))
    for block, count in enumerate(LAYERS):
        if block > 0:
            layers += [*_norm_relu_conv(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(DenseLayer(width))
            width += GROWTH
    body = nn.Sequential(*layers, nn.GroupNorm(width, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return BodyNet(body, dims=width, classes=classes, size=size)
