"""The networks, extractors and students alike, in one table. Every one is built by :func:`build`."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ncfmkit.errors import UserError
from ncfmkit.networks.convnet import ConvNet


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    build: Callable[..., nn.Module]  # (channels, classes, size, width, depth) -> module
    smallest: int  # side in pixels of the smallest image it takes
    summary: str


NETWORKS: dict[str, NetworkRow] = {
    "convnet": NetworkRow(build=ConvNet, smallest=4, summary="d blocks of conv 3x3, instance norm, ReLU, average pool"),
}


def build(name: str, *, channels: int, classes: int, size: int, width: int = 128, depth: int | None = None) -> nn.Module:
    """A freshly initialised network, drawn from torch's global generator.

    Every network has `features(x_NCHW) -> feat_ND` and `forward(x_NCHW) -> logits_NK` on normalised float images.

    Args:
        name: a row of `NETWORKS`.
        channels: 1 or 3.
        classes: K, the number of labels.
        size: side of the square images in pixels.
        width: channels of a ConvNet's blocks; other networks have their own.
        depth: blocks of a ConvNet; none: by size.

    Raises:
        UserError: no such network, or the images are too small for it.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown network {name!r}: {hint}known: {', '.join(NETWORKS)}")
    row = NETWORKS[name]
    if size < row.smallest:
        raise UserError(f"network {name} needs images of {row.smallest} pixels or more, got {size}: resize the data")
    return row.build(channels=channels, classes=classes, size=size, width=width, depth=depth)
