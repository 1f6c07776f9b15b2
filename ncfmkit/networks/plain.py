"""AlexNet and VGG-11, the networks without shortcuts, in their CIFAR forms (docs/method.md, section 7).

Shapes: N images, C channels, H = W side, K classes, D features.
"""

import torch
from torch import nn


def margin(size: int) -> int:
    """Zero pixels to add on every side: images of 28 to 31 pixels grow to 32 (or 33), the others stay."""
    return (33 - size) // 2 if 28 <= size < 32 else 0


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    """A convolution that keeps the side, without the bias that the instance norm would remove."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.GroupNorm(outputs, outputs), nn.ReLU()]


class BodyNet(nn.Module):
    """A body that maps `[N, C, H, W]` to the feature `[N, D]`, then a linear classifier."""

    def __init__(self, body: nn.Module, *, dims: int, classes: int, size: int):
        super().__init__()
        self.pad = margin(size)
        self.body = body
        self.classifier = nn.Linear(dims, classes)

    def features(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """What the classifier reads, `[N, D]`."""
        return self.body(nn.functional.pad(x_NCHW, [self.pad] * 4) if self.pad else x_NCHW)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits `[N, K]`."""
        return self.classifier(self.features(x_NCHW))


def with_normal_weights(network: BodyNet, *kinds: type[nn.Linear | nn.Conv2d]) -> BodyNet:
    """The network with layers of these kinds as they start in ViT and ConvNeXt: truncated normal weights, no bias."""
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def alexnet(*, channels: int, classes: int, size: int) -> BodyNet:
    """Five convolutions and three max-pools; the feature is the last map, averaged down to 4x4 (larger images)."""
    side = (size + 2 * margin(size)) // 8
    window = max(1, side // 4)
    body = nn.Sequential(
        *conv_norm_relu(channels, 128, 5),
        nn.MaxPool2d(2),
        *conv_norm_relu(128, 192, 5),
        nn.MaxPool2d(2),
        *conv_norm_relu(192, 256),
        *conv_norm_relu(256, 192),
        *conv_norm_relu(192, 192),
        nn.MaxPool2d(2),
        nn.AvgPool2d(window),
        nn.Flatten(),
    )
    return BodyNet(body, dims=192 * (side // window) ** 2, classes=classes, size=size)


def vgg11(*, channels: int, classes: int, size: int) -> BodyNet:
    """Eight convolutions 3x3 and five max-pools; the feature is the mean of the last map, 512 wide."""
    layers: list[nn.Module] = []
    inputs = channels
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for outputs in stage:
            layers += conv_norm_relu(inputs, outputs)
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return BodyNet(body, dims=inputs, classes=classes, size=size)
