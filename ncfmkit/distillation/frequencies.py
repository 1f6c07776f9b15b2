"""The T frequencies at which characteristic functions are compared (docs/method.md, section 2; paper section 4.2.2).

Axes: T frequencies, D features, G = T / 16 mixture components.
"""

import torch
from torch import nn

PER_COMPONENT = 16  # frequencies drawn from each component of the learned mixture


def gaussian(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """`[T, D]` draws of N(0, I), float32 on the generator's device."""
    return torch.randn(count, dim, generator=generator, device=generator.device)


def noise(count: int, dim: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What :class:`SamplingNetwork` takes for `count` frequencies, a multiple of 16: draws `[G, D]` and `[T, D]`."""
    return gaussian(count // PER_COMPONENT, dim, generator), gaussian(count, dim, generator)


class SamplingNetwork(nn.Module):
    """psi: a scale mixture of normals over frequencies, trained to make the discrepancy large.

    Each of T/16 noise vectors is sent through the network to a scale in (-1, 1)^D, and each scale yields 16
    frequencies `sigma * z` of their own. Batch norm uses the statistics of the draw at hand.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim, track_running_stats=False),
            nn.Tanh(),
        )

    def forward(self, eps_GD: torch.Tensor, z_TD: torch.Tensor) -> torch.Tensor:
        """`[T, D]` distinct frequencies; differentiable in the network's parameters."""
        return self.layers(eps_GD).repeat_interleave(PER_COMPONENT, dim=0) * z_TD
