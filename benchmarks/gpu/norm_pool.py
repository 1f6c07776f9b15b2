"""Instance norm with affine, ReLU and average pool 2 as one Triton kernel on a channels-last map, and its backward.

To be measured, not used: a block of the ConvNet reads and writes its map three times between two convolutions, where
this reads it once and writes a quarter. A program holds all pixels of `block` channels of one image in registers.
Needs triton; with TRITON_INTERPRET=1 set before it is imported, it runs on a CPU.
Shapes: N images, C channels, H = W side (a power of two), Q = H * W / 4 pooled pixels.
"""

import torch
import triton
import triton.language as tl

EPS = 1e-5  # torch's own for GroupNorm


@triton.jit
def _forward(x, weight, bias, out, means, rstds, C: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, SAVE: tl.constexpr):  # fmt: skip  # noqa: E501
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, H * H)
    v = tl.load(x + n * H * H * C + p[:, None] * C + c[None, :]).to(tl.float32)
    mean = tl.sum(v, 0) / (H * H)
    d = v - mean[None, :]
    rstd = 1 / tl.sqrt(tl.sum(d * d, 0) / (H * H) + EPS)
    y = tl.maximum(d * (rstd * tl.load(weight + c))[None, :] + tl.load(bias + c)[None, :], 0)
    y = tl.sum(tl.sum(tl.reshape(y, (H // 2, 2, H // 2, 2, BLOCK)), 3), 1) * 0.25
    q = tl.arange(0, H * H // 4)
    y = tl.reshape(y, (H * H // 4, BLOCK))
    tl.store(out + n * (H * H // 4) * C + q[:, None] * C + c[None, :], y.to(out.dtype.element_ty))
    if SAVE:
        tl.store(means + n * C + c, mean)
        tl.store(rstds + n * C + c, rstd)


@triton.jit
def _backward(x, weight, bias, means, rstds, grad, dx, C: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, H * H)
    at = n * H * H * C + p[:, None] * C + c[None, :]
    mean, rstd, w = tl.load(means + n * C + c), tl.load(rstds + n * C + c), tl.load(weight + c)
    hat = (tl.load(x + at).to(tl.float32) - mean[None, :]) * rstd[None, :]
    q = (p // H // 2) * (H // 2) + (p % H) // 2  # the pooled pixel that p is part of
    g = tl.load(grad + n * (H * H // 4) * C + q[:, None] * C + c[None, :]).to(tl.float32) * 0.25
    g = tl.where(hat * w[None, :] + tl.load(bias + c)[None, :] > 0, g, 0) * w[None, :]
    m1, m2 = tl.sum(g, 0) / (H * H), tl.sum(g * hat, 0) / (H * H)
    tl.store(dx + at, ((g - m1[None, :] - hat * m2[None, :]) * rstd[None, :]).to(dx.dtype.element_ty))


def forward(
    x_NCHW: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    block: int,
    warps: int,
    save: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The pooled map `[N, C, H/2, W/2]`, channels-last, in the dtype of `x_NCHW`.

    Args:
        x_NCHW: a channels-last map; its side and `block` are powers of two, `block` divides C.
        weight_C, bias_C: float32, of the norm.
        block: channels of a program.
        warps: of a program.
        save: where to keep mean and reciprocal standard deviation for the backward pass, float32 `[N, C]` each.
    """
    n, c, h, _ = x_NCHW.shape
    out = torch.empty(n, c, h // 2, h // 2, dtype=x_NCHW.dtype, device=x_NCHW.device)
    out = out.to(memory_format=torch.channels_last)
    means, rstds = save or (out, out)  # not written
    _forward[(n, c // block)](
        x_NCHW, weight_C, bias_C, out, means, rstds, c, h, block, EPS, save is not None, num_warps=warps
    )
    return out


def backward(
    grad_NCHW: torch.Tensor,
    x_NCHW: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor],
    *,
    block: int,
    warps: int,
) -> torch.Tensor:
    """The gradient to `x_NCHW` from that of the pooled map, channels-last; `saved` is what `forward` kept."""
    n, c, h, _ = x_NCHW.shape
    dx = torch.empty_like(x_NCHW)
    _backward[(n, c // block)](x_NCHW, weight_C, bias_C, *saved, grad_NCHW, dx, c, h, block, num_warps=warps)
    return dx
