"""ViT and ConvNeXt against torch's own transformer and against plain calculations, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ncfmkit.networks import NETWORKS, build, convnext, vit
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, fresh_state


def drawn(network: nn.Module) -> Any:
    """In float64, with parameters that are all different from what they start as."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2 + 0.1
    return network.eval()


def torch_block(block: nn.Module) -> nn.Module:
    """torch's pre-norm encoder layer with the weights of a block of ours."""
    layer = nn.TransformerEncoderLayer(
        192, 3, 768, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        **{"attention.0": "norm1", "attention.1.out": "self_attn.out_proj"},
        **{"mlp.0": "norm2", "mlp.1": "linear1", "mlp.3": "linear2", "attention.1.qkv": "self_attn.in_proj"},
    }
    state = {}
    for key, value in block.state_dict().items():
        module, _, kind = key.rpartition(".")
        joined = "_" if names[module].endswith("in_proj") else "."
        state[f"{names[module]}{joined}{kind}"] = value
    layer.double().load_state_dict(state)
    return layer.eval()


def test_blocks_of_a_vit_are_torchs_encoder_layers() -> None:
    block = drawn(vit.Block(20))
    x_NTD = torch.randn(5, 20, 192, dtype=torch.float64, requires_grad=True)
    ours_NTD, theirs_NTD = block(x_NTD.flatten(0, 1)).view(5, 20, 192), torch_block(block)(x_NTD)
    torch.testing.assert_close(ours_NTD, theirs_NTD, rtol=1e-10, atol=1e-10)
    weight_NTD = torch.randn_like(x_NTD)
    gradients = [torch.autograd.grad((out * weight_NTD).sum(), x_NTD)[0] for out in (ours_NTD, theirs_NTD)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_attention_is_torchs_own() -> None:
    attention = drawn(vit.Attention(7))
    x_NTD = torch.randn(3, 7, 192, dtype=torch.float64)
    q, k, v = (part.view(3, 7, 3, 64).transpose(1, 2) for part in attention.qkv(x_NTD).chunk(3, dim=-1))
    mixed_NTD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = attention.out(mixed_NTD)
    torch.testing.assert_close(attention(x_NTD.flatten(0, 1)).view(3, 7, 192), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "patch", "tokens"),
    [
        (4, 2, 4),
        (8, 2, 16),
        (9, 2, 25),
        (16, 2, 64),
        (28, 4, 64),
        (32, 4, 64),
        (33, 5, 49),
        (128, 16, 64),
        (224, 16, 196),
    ],
)
@torch.no_grad()
def test_a_vit_is_its_patches_through_torchs_encoder(size: int, patch: int, tokens: int) -> None:
    """Patches are cut by a loop, and what is beyond the image is zero; the feature is the mean of normed tokens."""
    network = drawn(build("vit", channels=3, classes=4, size=size))
    patches, *blocks, norm, _ = network.body
    images_NCHW = torch.randn(2, 3, size, size, dtype=torch.float64)
    pad = 2 if size == 28 else 0  # as all networks
    across = int(tokens**0.5)
    whole_NCHW = torch.zeros(2, 3, across * patch, across * patch, dtype=torch.float64)
    whole_NCHW[:, :, pad : pad + size, pad : pad + size] = images_NCHW
    rows: list[torch.Tensor] = []
    for top in range(across):
        for left in range(across):
            cut = whole_NCHW[:, :, top * patch : (top + 1) * patch, left * patch : (left + 1) * patch]
            token_ND = torch.einsum("nchw,dchw->nd", cut, patches.projection.weight) + patches.projection.bias
            rows.append(token_ND + patches.positions_TD[len(rows)])
    assert len(patches.positions_TD) == tokens
    x_NTD = torch.stack(rows, dim=1)
    for block in blocks:
        x_NTD = torch_block(block)(x_NTD)
    expected_ND = F.layer_norm(x_NTD, (192,), norm.weight, norm.bias, 1e-6).mean(1)
    torch.testing.assert_close(network.features(images_NCHW), expected_ND, rtol=1e-9, atol=1e-9)


def naive_block(block: Any, x_NCHW: torch.Tensor) -> torch.Tensor:
    """A ConvNeXt block pixel by pixel, from its definition."""
    depthwise, norm, wide, _, narrow = block.residual
    n, c, h, w = x_NCHW.shape
    padded = F.pad(x_NCHW, [3] * 4)
    out = torch.empty_like(x_NCHW)
    for y in range(h):
        for x in range(w):
            window_NC77 = padded[:, :, y : y + 7, x : x + 7]
            pixel_NC = (window_NC77 * depthwise.weight[:, 0]).sum((2, 3)) + depthwise.bias
            centered_NC = pixel_NC - pixel_NC.mean(1, keepdim=True)
            variance_N1 = centered_NC.square().mean(1, keepdim=True)
            normed_NC = centered_NC / (variance_N1 + 1e-6).sqrt() * norm.weight + norm.bias
            hidden = normed_NC @ wide.weight[:, :, 0, 0].T + wide.bias
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
            result_NC = hidden @ narrow.weight[:, :, 0, 0].T + narrow.bias
            out[:, :, y, x] = x_NCHW[:, :, y, x] + block.scale_C * result_NC
    assert (n, c) == out.shape[:2]
    return out


@torch.no_grad()
def test_blocks_of_a_convnext_are_as_published() -> None:
    block = drawn(convnext.Block(12))
    x_NCHW = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x_NCHW), naive_block(block, x_NCHW), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (27, 1), (28, 2), (32, 2), (63, 2), (64, 4), (224, 4)])
def test_the_stem_of_a_convnext_suits_the_image(size: int, patch: int) -> None:
    with torch.device("meta"):
        network: Any = build("convnext", channels=3, classes=10, size=size)
    assert network.body[0].kernel_size == network.body[0].stride == (patch, patch)


@torch.no_grad()
def test_a_convnext_is_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage: stem, norm, and before each further stage a norm and a halving; the mean map is normed."""
    monkeypatch.setattr(convnext, "BLOCKS", (1, 1, 1, 1))
    network = drawn(build("convnext", channels=3, classes=10, size=16))
    stem, first, *rest = network.body[:-2]

    def norm(x_NCHW: torch.Tensor, layer: Any) -> torch.Tensor:
        return F.layer_norm(x_NCHW.movedim(1, -1), (x_NCHW.shape[1],), layer.weight, layer.bias, 1e-6).movedim(-1, 1)

    images_NCHW = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x_NCHW = norm(F.conv2d(images_NCHW, stem.weight, stem.bias), first)
    sides = []
    for stage in range(4):
        if stage:
            between, halve = rest[3 * stage - 2 : 3 * stage]
            x_NCHW = F.conv2d(norm(x_NCHW, between), halve.weight, halve.bias, stride=2)
        x_NCHW = naive_block(rest[3 * stage], x_NCHW)
        sides.append(x_NCHW.shape[1:])
    assert sides == [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]
    last = network.body[-1]
    expected_ND = F.layer_norm(x_NCHW.mean((2, 3)), (320,), last.weight, last.bias, 1e-6)
    torch.testing.assert_close(network.features(images_NCHW), expected_ND, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vit", "convnext"])
@torch.no_grad()
def test_smallest_images_are_told_apart(name: str) -> None:
    size = NETWORKS[name].smallest
    network = build(name, channels=1, classes=3, size=size)
    assert network.features(torch.randn(6, 1, size, size)).std(0).min() > 1e-3


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_students_side_by_side_are_each_as_alone(name: str, runtime: Runtime) -> None:
    """Their logits and their gradients."""
    make = lambda: build(name, channels=1, classes=3, size=8)  # noqa: E731
    states = [fresh_state(make, seed, "student") for seed in (0, 1)]
    x_RBCHW = torch.randn(2, 4, 1, 8, 8)
    stack = StackedModels(make, 2, runtime)
    stack.load(states)
    logits_RBK = stack.logits(x_RBCHW)
    logits_RBK.square().sum().backward()
    for r, state in enumerate(states):
        network = make()
        network.load_state_dict(state)
        alone_BK = network(x_RBCHW[r])
        alone_BK.square().sum().backward()
        torch.testing.assert_close(logits_RBK[r], alone_BK, rtol=1e-4, atol=1e-5)
        for key, parameter in network.named_parameters():
            gradient = stack.parameters[key].grad
            assert gradient is not None
            torch.testing.assert_close(gradient[r], parameter.grad, rtol=1e-3, atol=1e-5, msg=key)
