"""The space of small networks that an architecture search looks through (docs/method.md, section 8).

It is the published one of 720 ConvNets, narrower, and without batch norm.
"""

import itertools
from collections.abc import Callable

from torch import nn

from ncfmkit.assessment import SearchedNetwork
from ncfmkit.networks.plain import BodyNet, margin

GROUPS = 4  # of a group norm

DEPTHS = (1, 2, 3, 4)
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the set's own network; the published ones, up to twice as wide, cost four times
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"sigmoid": nn.Sigmoid, "ReLU": nn.ReLU, "leaky ReLU": nn.LeakyReLU}
NORMS: dict[str, Callable[[int, int], nn.Module]] = {  # (channels, side of the map) -> module
    "none": lambda width, side: nn.Identity(),
    "layer": lambda width, side: nn.LayerNorm((width, side, side)),
    "instance": lambda width, side: nn.GroupNorm(width, width),
    "group": lambda width, side: nn.GroupNorm(GROUPS, width),
}
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
}


def search_space(*, width: int, size: int) -> list[SearchedNetwork]:
    """All networks of the space for images of `size` pixels: 576, less those that pool small images away.

    Args:
        width: of the widest; the others have a half, a quarter and an eighth of its channels, in multiples of 4.
    """
    widths = sorted({max(1, round(width * share / GROUPS)) * GROUPS for share in WIDTHS})
    side = size + 2 * margin(size)
    return [
        SearchedNetwork(depth=depth, width=channels, activation=activation, norm=norm, pooling=pooling)
        for depth, channels, activation, norm, pooling in itertools.product(
            DEPTHS, widths, ACTIVATIONS, NORMS, POOLINGS
        )
        if pooling == "none" or side >= 2**depth  # no norm sees a map of one pixel, which it would set to zero
    ]


def search_net(network: SearchedNetwork, *, channels: int, classes: int, size: int) -> BodyNet:
    """The network, freshly initialized: blocks of conv 3x3, norm, activation, pool; then a linear classifier."""
    side = size + 2 * margin(size)
    layers: list[nn.Module] = []
    for block in range(network.depth):
        layers += [
            nn.Conv2d(network.width if block else channels, network.width, 3, padding=1),
            NORMS[network.norm](network.width, side),
            ACTIVATIONS[network.activation](),
            POOLINGS[network.pooling](),
        ]
        side = side if network.pooling == "none" else side // 2
    body = nn.Sequential(*layers, nn.Flatten())
    return BodyNet(body, dims=network.width * side**2, classes=classes, size=size)
