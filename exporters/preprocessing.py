"""The network as shipped: takes pixels, gives scores, with scaling and normalization inside.

Shapes: N images, C channels, H = W side, K classes.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.images import channel_tensors, normalize
from ncfmkit.networks.convnet import NORM_EPS, AveragePool, BatchNorm


class Deployed(nn.Module):
    """Images as a row of `LAYOUTS` has them -> float32 logits or probabilities `[N, K]`; in eval mode.

    The network itself is not changed: this holds a copy.

    Args:
        network: on normalized float32 images `[N, C, H, W]`, gives logits.
        mean, std: per channel, of images in [0, 1].
        layout: a row of `LAYOUTS`.
        output: logits or probabilities.
        half: run the network in float16, except for its norms (their sums overflow and lose digits); pixels are still
            normalized, and probabilities still computed, in float32.
        lowered: write each GroupNorm of one channel per group as what it is, instance normalization, and each average
            pool as torch's: exporters know those as one operator, and leave no reshaping around it. A batch norm goes
            into the convolution before it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layout: str = "uint8-nchw",
        output: str = "logits",
        half: bool = False,
        lowered: bool = False,
    ):
        super().__init__()
        self.network = copy.deepcopy(network)
        self.layout, self.output, self.half_ = LAYOUTS[layout], output, half
        for name, value in zip(("mean", "std"), channel_tensors(mean, std, torch.device("cpu")), strict=True):
            self.register_buffer(name, value)
        if lowered:
            _fold_batch_norms(self.network)
            _replace(self.network, nn.GroupNorm, _as_instance_norm)
            _replace(self.network, AveragePool, lambda pool: nn.AvgPool2d(pool.kernel_size))
        if half:
            self.network.half()
            _replace(self.network, nn.GroupNorm | nn.InstanceNorm2d | nn.LayerNorm | BatchNorm, _NormInFloat32)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, float32 `[N, K]`."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images  # first: few operators take uint8
        x_NCHW = pixels.permute(0, 3, 1, 2) if self.layout.channels_last else pixels
        x_NCHW = normalize(x_NCHW, self.get_buffer("mean"), self.get_buffer("std"))
        logits_NK = self.network(x_NCHW.half() if self.half_ else x_NCHW).float()
        return logits_NK.softmax(1) if self.output == "probabilities" else logits_NK


class _NormInFloat32(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.float()).to(x.dtype)


def _as_instance_norm(norm: nn.GroupNorm) -> nn.Module:
    if norm.num_groups != norm.num_channels:
        return norm
    lowered = nn.InstanceNorm2d(norm.num_channels, eps=norm.eps, affine=True)
    lowered.weight, lowered.bias = norm.weight, norm.bias
    return lowered


def _fold_batch_norms(network: nn.Module) -> None:
    """Puts each batch norm into the convolution before it, and nothing in its place."""
    for blocks in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for i, norm in enumerate(blocks):
            if isinstance(norm, BatchNorm):
                conv = blocks[i - 1]
                assert isinstance(conv, nn.Conv2d), f"a batch norm follows a {type(conv).__name__}"
                conv.weight, bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.mean, norm.var, NORM_EPS, norm.weight, norm.bias
                )
                conv.bias, blocks[i] = bias, nn.Identity()


def _replace(network: nn.Module, kind: Any, change: Callable[[Any], nn.Module]) -> None:
    """Puts `change(layer)` in the place of every layer of that kind."""
    for name in [name for name, module in network.named_modules() if isinstance(module, kind)]:
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, change(network.get_submodule(name)))
