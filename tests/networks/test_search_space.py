"""The space of an architecture search: its size, its networks against plain layers, and what students need of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ncfmkit.assessment import SearchedNetwork
from ncfmkit.networks import build
from ncfmkit.networks.search_space import search_net, search_space
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, fresh_state

ACTIVATE = {"sigmoid": torch.sigmoid, "ReLU": torch.relu, "leaky ReLU": lambda x: torch.where(x > 0, x, 0.01 * x)}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (32, 4 * 4 * 3 * 4 * 3),  # the published 720 without batch norm
        (28, 576),  # padded to 32
        (16, 576),
        (8, 576 - 4 * 3 * 4 * 2),  # four poolings leave nothing
        (4, 576 - 2 * 4 * 3 * 4 * 2),
    ],
)
def test_how_many_there_are(size: int, count: int) -> None:
    space = search_space(width=128, size=size)
    assert len(space) == count
    assert len({str(network) for network in space}) == count
    assert {network.width for network in space} == {16, 32, 64, 128}


def test_group_norm_has_four_groups_in_narrow_networks_too() -> None:
    assert {network.width for network in search_space(width=8, size=8)} == {4, 8}


def reference(network: SearchedNetwork, weights: dict[str, torch.Tensor], x_NCHW: torch.Tensor) -> torch.Tensor:
    """The network as its definition reads, from its parameters in their order."""
    left = list(weights.values())
    for _ in range(network.depth):
        x_NCHW = F.conv2d(x_NCHW, left.pop(0), left.pop(0), padding=1)
        n, c, h, w = x_NCHW.shape
        if network.norm != "none":
            groups = {"layer": 1, "group": 4, "instance": c}[network.norm]
            parts = x_NCHW.reshape(n, groups, -1)
            parts = parts - parts.mean(2, keepdim=True)
            x_NCHW = (parts / (parts.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(n, c, h, w)
            per = (c, h, w) if network.norm == "layer" else (c, 1, 1)
            x_NCHW = x_NCHW * left.pop(0).view(per) + left.pop(0).view(per)
        x_NCHW = ACTIVATE[network.activation](x_NCHW)
        if network.pooling != "none":
            squares = x_NCHW.view(n, c, h // 2, 2, w // 2, 2)
            x_NCHW = squares.amax((3, 5)) if network.pooling == "max" else squares.mean((3, 5))
    return x_NCHW.flatten(1) @ left.pop(0).T + left.pop(0)


def test_every_network_is_what_it_is_called() -> None:
    x_NCHW = torch.randn(3, 2, 8, 8)
    for network in search_space(width=8, size=8):
        net = search_net(network, channels=2, classes=5, size=8)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            weights = {name: p.detach() for name, p in net.named_parameters()}
            torch.testing.assert_close(net(x_NCHW), reference(network, weights, x_NCHW), rtol=1e-4, atol=1e-4)


def test_one_of_them_is_the_convnet() -> None:
    ours = SearchedNetwork(depth=3, width=16, activation="ReLU", norm="instance", pooling="average")
    for size in (28, 32):
        net = search_net(ours, channels=1, classes=10, size=size)
        convnet = build("convnet", channels=1, classes=10, size=size, width=16, depth=3)
        ordered = zip(convnet.state_dict(), net.state_dict().values(), strict=True)
        convnet.load_state_dict(dict(ordered))
        x_NCHW = torch.randn(2, 1, size, size)
        torch.testing.assert_close(net(x_NCHW), convnet(x_NCHW))


@pytest.mark.parametrize("norm", ["none", "layer", "instance", "group"])
def test_students_of_them_answer_side_by_side(norm: str, runtime: Runtime) -> None:
    """Their parameters are all that they are: there are no running statistics."""
    network = SearchedNetwork(depth=2, width=8, activation="sigmoid", norm=norm, pooling="max")

    def one() -> nn.Module:
        return search_net(network, channels=1, classes=3, size=8)

    models = StackedModels(one, 2, runtime)
    states = [fresh_state(one, 0, "student", k) for k in range(2)]
    models.load(states)
    x_NCHW = torch.randn(4, 1, 8, 8)
    logits_RBK = models.logits(x_NCHW.expand(2, -1, -1, -1, -1))
    for state, logits_BK in zip(states, logits_RBK, strict=True):
        torch.testing.assert_close(logits_BK, reference(network, state, x_NCHW), rtol=1e-4, atol=1e-4)
