"""The networks, extractors and students alike, in one table. Every one is built by :func:`build`."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ncfmkit.config import NetworkSettings
from ncfmkit.errors import UserError
from ncfmkit.networks.convnet import BatchNorm, ConvNet, default_depth
from ncfmkit.networks.convnext import convnext_atto
from ncfmkit.networks.densenet import densenet121
from ncfmkit.networks.plain import BodyNet, alexnet, vgg11
from ncfmkit.networks.resnet import resnet18, resnetap10
from ncfmkit.networks.vit import small_vit

if TYPE_CHECKING:
    from ncfmkit.real.store import RealData

DEFAULT_WIDTH = 128

Classifier = ConvNet | BodyNet  # modules with `features(x_NCHW) -> feat_ND` and `forward(x_NCHW) -> logits_NK`


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    build: Callable[..., Classifier]  # (channels, classes, size), and (width, depth) where they are taken -> module
    smallest: int  # side in pixels of the smallest image; below it, an instance norm would see maps of one pixel, which
    # it zeroes, a ConvNeXt would have no pixel left, a ViT too few to tell apart
    takes_width: bool = False  # whether width and depth are the caller's to choose
    extracts: bool = True  # whether the features of an image depend on nothing else, as an extractor's must
    summary: str


NETWORKS: dict[str, NetworkRow] = {
    "convnet": NetworkRow(
        build=ConvNet,
        smallest=4,
        takes_width=True,
        summary="d blocks of conv 3x3, instance norm, ReLU, average pool",
    ),
    "convnetbn": NetworkRow(
        build=partial(ConvNet, norm=BatchNorm),
        smallest=4,
        takes_width=True,
        extracts=False,
        summary="a ConvNet with batch norm, for students: an exported one has no norm left",
    ),
    "alexnet": NetworkRow(build=alexnet, smallest=8, summary="5 convolutions, 3 max-pools, instance norm"),
    "vgg11": NetworkRow(build=vgg11, smallest=28, summary="8 convolutions 3x3, 5 max-pools, instance norm"),
    "resnet18": NetworkRow(build=resnet18, smallest=9, summary="8 residual blocks, instance norm"),
    "resnetap10": NetworkRow(
        build=resnetap10, smallest=16, summary="4 residual blocks, average pools for strides, instance norm"
    ),
    "densenet121": NetworkRow(build=densenet121, smallest=16, summary="58 densely joined layers, instance norm"),
    "vit": NetworkRow(build=small_vit, smallest=4, summary="6 transformer blocks on at most 8 x 8 patches, layer norm"),
    "convnext": NetworkRow(
        build=convnext_atto, smallest=8, summary="12 blocks of depthwise 7x7 and a wide layer, layer norm"
    ),
}


def build(
    name: str, *, channels: int, classes: int, size: int, width: int = DEFAULT_WIDTH, depth: int | None = None
) -> Classifier:
    """A freshly initialized network, drawn from torch's global generator.

    Every network has `features(x_NCHW) -> feat_ND` and `forward(x_NCHW) -> logits_NK` on normalized float images.

    Args:
        name: a row of `NETWORKS`.
        channels: 1 or 3.
        classes: K, the number of labels.
        size: side of the square images in pixels.
        width: channels of the blocks of a ConvNet, with either norm; others have their own and take only the default.
        depth: blocks of a ConvNet; none: by size, and for the other networks.

    Raises:
        UserError: no such network, the images are too small for it, or it has no such width or depth.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown network {name!r}: {hint}known: {', '.join(NETWORKS)}")
    row = NETWORKS[name]
    if size < row.smallest:
        raise UserError(f"network {name} needs images of {row.smallest} pixels or more, got {size}: resize the data")
    if row.takes_width:
        return row.build(channels=channels, classes=classes, size=size, width=width, depth=depth)
    for key, value, default in (("width", width, DEFAULT_WIDTH), ("depth", depth, None)):
        if value != default:
            raise UserError(f"network {name} has a fixed {key}: leave out --{key} (network.{key}), got {value}")
    return row.build(channels=channels, classes=classes, size=size)


def builder(settings: NetworkSettings, *, channels: int, classes: int, size: int) -> Callable[[], Classifier]:
    """A function that builds the network of those settings, as :func:`build`."""
    return partial(
        build,
        settings.name,
        channels=channels,
        classes=classes,
        size=size,
        width=settings.width,
        depth=settings.depth,
    )


def network_builder(settings: NetworkSettings, real: "RealData") -> Callable[[], Classifier]:
    """A function that builds the network for the data's channels, size and classes."""
    return builder(settings, channels=real.channels, classes=len(real.classes), size=real.size)


def check_extractors(networks: Sequence[NetworkSettings]) -> None:
    """Raises UserError if one of these networks cannot be an extractor, or a teacher of soft labels."""
    for network in networks:
        if not NETWORKS[network.name].extracts:
            raise UserError(
                f"{network.name} cannot be an extractor, because its features of an image depend on the other images "
                "of the batch: pass another network for the extractors, such as --extractors convnet"
            )


def resolve_network(network: NetworkSettings, size: int) -> NetworkSettings:
    """The network with its depth said, where the size of the images decides it."""
    if NETWORKS[network.name].takes_width and network.depth is None:
        return dataclasses.replace(network, depth=default_depth(size))
    return network
