"""How far float32 may be from float64: what rounding makes of the very computation at hand, not one machine's figure.

A plain way of computing the same is done in float32 and in float64. The distance between these two is the rounding of
float32 on this machine, with its instruction sets and threads; ours may be `SPARE` times as far from float64.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ncfmkit.networks.convnet import ConvNet

EPS = torch.finfo(torch.float32).eps

# Both do about as many roundings of the same size, in another order. So both errors are draws of about one size, and in
# a norm over many values their quotient is near 1. Four bits are spare for draws that are lucky or unlucky; what is
# wrong (a factor, a sign, a missing term) shows at a thousand times that.
SPARE = 2**4

Values = torch.Tensor | Sequence[torch.Tensor]


def flat(values: Values) -> torch.Tensor:
    """All values in one row, float64."""
    parts = [values] if isinstance(values, torch.Tensor) else values
    return torch.cat([t.detach().double().flatten() for t in parts])


def off(got: Values, exact: Values) -> float:
    """Distance of `got` from `exact`, relative to the length of `exact`; of lists, of all their values together.

    Together, because a value that should be zero and is rounding alone has no digits of its own to be right in.
    """
    return float((flat(got) - flat(exact)).norm() / flat(exact).norm())


def allowed(plain: Values, exact: Values) -> float:
    """What `off(ours, exact)` may be, where `plain` is the plain way's float32. A lucky one counts as one rounding."""
    return SPARE * max(EPS, off(plain, exact))


def smooth(build: Callable[[], ConvNet]) -> Callable[[], ConvNet]:
    """A ConvNet with SiLU for ReLU: at ReLU's kink a rounding switches a whole path of the gradient on or off."""

    def built() -> ConvNet:
        network = build()
        blocks = network.get_submodule("blocks")
        assert isinstance(blocks, nn.Sequential)
        for i, layer in enumerate(blocks):
            if isinstance(layer, nn.ReLU):
                blocks[i] = nn.SiLU()
        return network

    return built
