"""ConvNeXt of the size "atto" with a stem for small images (docs/method.md, section 7).

Liu et al. 2022 (A ConvNet for the 2020s), whose smallest network has 29 million parameters; atto, of 3.7 million, is
from the sizes that timm added. Layer scale is of Touvron et al. 2021 (Going deeper with Image Transformers).

Shapes: N images, C channels, H = W side.
"""

import torch
from torch import nn

from ncfmkit.networks.plain import BodyNet, margin, with_normal_weights

WIDTHS, BLOCKS = (40, 80, 160, 320), (2, 2, 6, 2)  # of each stage
EPS = 1e-6
LAYER_SCALE = 0.1  # Touvron et al. take it for networks of this depth; Liu et al. 1e-6, for 300 epochs of ImageNet


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, `[N, C, H, W]`."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPS)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(x_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution 7x7, then an inverted bottleneck four times as wide, beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            ChannelNorm(width),
            nn.Conv2d(width, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )
        self.scale_C = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return x_NCHW + self.scale_C[:, None, None] * self.residual(x_NCHW)


class MapMean(nn.Module):
    """`[N, C, H, W]` to the mean of each map, `[N, C]`. Of a pool and a flattening, ONNX would have a gathering."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return x_NCHW.mean((2, 3))


def stem_patch(side: int) -> int:
    """Side of the patches that the stem maps: 4 from 64 pixels on, as published; smaller images keep larger maps."""
    return 4 if side >= 64 else 2 if side >= 32 else 1


def convnext_atto(*, channels: int, classes: int, size: int) -> BodyNet:
    """Four stages, halved between them; the feature is the mean of the last map, normed, 320 wide."""
    patch = stem_patch(size + 2 * margin(size))
    layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], patch, stride=patch), ChannelNorm(WIDTHS[0])]
    for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
        if stage > 0:
            before = WIDTHS[stage - 1]
            layers += [ChannelNorm(before), nn.Conv2d(before, width, 2, stride=2)]
        layers += [Block(width) for _ in range(count)]
    body = nn.Sequential(*layers, MapMean(), nn.LayerNorm(WIDTHS[-1], eps=EPS))
    return with_normal_weights(BodyNet(body, dims=WIDTHS[-1], classes=classes, size=size), nn.Conv2d, nn.Linear)
