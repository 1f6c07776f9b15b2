"""A small Vision Transformer for small images (docs/method.md, section 7).

The encoder of Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words) in half the depth of DeiT-Ti (Touvron et al.
2021, Training Data-Efficient Image Transformers), with the mean of the tokens in place of a class token.

Shapes: N images, C channels, H = W side, T tokens of an image, M = N T tokens in all, D features, A heads of
E features. Tokens of all images lie in one axis: linear layers are plain matrix products, one operator each in what is
exported.
"""

import math

import torch
from torch import nn

from ncfmkit.networks.plain import BodyNet, margin, with_normal_weights

WIDTH, DEPTH, HEADS, HIDDEN = 192, 6, 3, 768  # DeiT-Ti has 12 blocks
MOST_PATCHES = 8  # along a side, while patches have 2 to 16 pixels there: at most 64 tokens up to 128 pixels
EPS = 1e-6


class Patches(nn.Module):
    """Images `[N, C, H, W]` to tokens `[M, D]`: a linear map of each patch, and what is learned of its position.

    Sides that are no multiple of the patch are filled with zeros at the right and the bottom.
    """

    def __init__(self, channels: int, side: int):
        super().__init__()
        patch = min(16, max(2, math.ceil(side / MOST_PATCHES)))
        count = math.ceil(side / patch)
        self.fill = count * patch - side
        self.projection = nn.Conv2d(channels, WIDTH, patch, stride=patch)
        self.positions_TD = nn.Parameter(nn.init.trunc_normal_(torch.empty(count**2, WIDTH), std=0.02))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if self.fill:
            x_NCHW = nn.functional.pad(x_NCHW, [0, self.fill] * 2)
        x_NTD = self.projection(x_NCHW).flatten(2).transpose(1, 2) + self.positions_TD
        return x_NTD.flatten(0, 1)


class Attention(nn.Module):
    """Self-attention of several heads over the tokens of each image, `[M, D]` to `[M, D]`.

    Written out: on a GPU the fused kernels of `scaled_dot_product_attention` sum their gradients in an order that
    changes from run to run, and the same run must give the same bytes. Of 64 tokens they would save little.
    """

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        qkv_3NATE = self.qkv(x_MD).view(-1, self.tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q_NATE, k_NATE, v_NATE = qkv_3NATE.unbind(0)
        weight_NATT = (q_NATE * (WIDTH // HEADS) ** -0.5 @ k_NATE.transpose(-2, -1)).softmax(-1)
        return self.out((weight_NATT @ v_NATE).transpose(1, 2).reshape(-1, WIDTH))


class Block(nn.Module):
    """Attention, then two linear layers with a GELU between them, each beside a shortcut and after a norm."""

    def __init__(self, tokens: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH, eps=EPS), Attention(tokens))
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH, eps=EPS), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
        )

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        x_MD = x_MD + self.attention(x_MD)
        return x_MD + self.mlp(x_MD)


class TokenMean(nn.Module):
    """`[M, D]` to the mean over the tokens of each image, `[N, D]`."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        return x_MD.view(-1, self.tokens, WIDTH).mean(1)


def small_vit(*, channels: int, classes: int, size: int) -> BodyNet:
    """Six encoder blocks on at most 8 x 8 patches (of 4 pixels at 32); the feature is the mean token, 192 wide."""
    patches = Patches(channels, size + 2 * margin(size))
    tokens = len(patches.positions_TD)
    blocks = [Block(tokens) for _ in range(DEPTH)]
    body = nn.Sequential(patches, *blocks, nn.LayerNorm(WIDTH, eps=EPS), TokenMean(tokens))
    return with_normal_weights(BodyNet(body, dims=WIDTH, classes=classes, size=size), nn.Linear)
