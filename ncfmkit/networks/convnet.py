"""ConvNet-d, the field's standard small network (docs/method.md, section 7).

Shapes: N images, C channels, H = W side, K classes, D features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ncfmkit.errors import UserError

NORM_EPS = 1e-5


def default_depth(size: int) -> int:
    """Blocks for images of `size` pixels: the published depths, 2 for images smaller than those."""
    return 2 if size < 28 else 3 if size < 64 else 4 if size < 128 else 5


class AveragePool(nn.AvgPool2d):
    """The mean of every 2 x 2 pixels. Compiled, it is written as such, which fuses with what is around it.

    Exporters put `nn.AvgPool2d` in its place: torch before 2.12 says of all that it compiles that it is exported.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x_NCHW.shape
        if not torch.compiler.is_compiling() or h % 2 or w % 2:
            return super().forward(x_NCHW)
        return x_NCHW.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


class BatchNorm(nn.Module):
    """Batch norm of maps by the batch in training, and by `mean` and `var` in eval mode.

    Training does not touch these two: :meth:`ncfmkit.training.StackedModels.settle` sets them from the training images
    as they are, all at once, so that no running average of augmented batches is left in a student.
    """

    mean: torch.Tensor  # [C]
    var: torch.Tensor  # [C]

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if self.training:
            return F.batch_norm(x_NCHW, None, None, self.weight, self.bias, training=True, eps=NORM_EPS)
        return F.batch_norm(x_NCHW, self.mean, self.var, self.weight, self.bias, eps=NORM_EPS)


def instance_norm(channels: int) -> nn.Module:
    """Instance norm with affine parameters."""
    return nn.GroupNorm(channels, channels)


class ConvNet(nn.Module):
    """`depth` blocks of conv 3x3, a norm with affine, ReLU, average pool 2; then a linear classifier.

    The flattened last map is the feature. 28 px images are padded to 32.

    Args:
        norm: makes the norm of that many channels.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        size: int,
        width: int = 128,
        depth: int | None = None,
        norm: Callable[[int], nn.Module] = instance_norm,
    ):
        super().__init__()
        self.pad = 2 if size == 28 else 0
        side = size + 2 * self.pad
        depth = default_depth(size) if depth is None else depth
        if depth < 1 or side >> depth < 1:
            raise UserError(
                f"--depth (network.depth) {depth} does not suit images of {size} pixels: "
                f"expected 1 to {side.bit_length() - 1}"
            )
        blocks: list[nn.Module] = []
        for i in range(depth):
            blocks += [
                nn.Conv2d(channels if i == 0 else width, width, 3, padding=1),
                norm(width),
                nn.ReLU(),
                AveragePool(),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (side >> depth) ** 2, classes)

    def padded(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """What goes into the first block."""
        return nn.functional.pad(x_NCHW, [self.pad] * 4) if self.pad else x_NCHW

    def features(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The flattened last map, `[N, D]`."""
        return self.blocks(self.padded(x_NCHW)).flatten(1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits `[N, K]`."""
        return self.classifier(self.features(x_NCHW))
