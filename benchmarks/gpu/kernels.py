"""The pieces of a step one by one, and how its real side could be faster."""

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import floor
from benchmarks.gpu.common import DEVICE, PAPER, Result, attempt, milliseconds, tf32
from benchmarks.gpu.plan import SMALL


def kernels() -> Result:
    """The pieces of a step one by one: convolutions by layout, norm with ReLU and pool, phases in TF32."""
    result: Result = {}
    n, width = (4, 16) if SMALL else (1024, 128)
    for label, channels, side in (("conv1", 3, 32), ("conv2", width, 16), ("conv3", width, 8)):
        for layout, memory in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
            x = torch.randn(n, channels, side, side, device=DEVICE).bfloat16().to(memory_format=memory)
            w = torch.randn(width, channels, 3, 3, device=DEVICE).bfloat16().to(memory_format=memory)

            def convolution(x: torch.Tensor = x, w: torch.Tensor = w) -> Result:
                ms = milliseconds(lambda: F.conv2d(x, w, padding=1))
                return {"ms": ms, "TFLOP/s": 2 * w.numel() * x.numel() / x.shape[1] / ms / 1e9}

            for trial in (False, True):
                name = f"{label} {layout}" + (", cuDNN's choice by trial" if trial else "")
                flags = torch.backends.cudnn.flags(
                    enabled=True, benchmark=trial, deterministic=not trial, allow_tf32=False
                )
                with flags:
                    attempt(result, name, convolution)
    x = torch.randn(n, width, 32, 32, device=DEVICE).bfloat16()
    scale = torch.ones(width, device=DEVICE)

    def norm(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            y = F.group_norm(x, width, scale, scale).relu()
        return y.view(n, width, 16, 2, 16, 2).mean((3, 5)).bfloat16()

    attempt(result, "norm, relu, pool; eager, ms", lambda: milliseconds(lambda: norm(x)))
    if not SMALL:
        compiled = torch.compile(norm)
        nhwc = x.to(memory_format=torch.channels_last)
        attempt(result, "norm, relu, pool; compiled nchw, ms", lambda: milliseconds(lambda: compiled(x)))
        attempt(result, "norm, relu, pool; compiled nhwc, ms", lambda: milliseconds(lambda: compiled(nhwc)))
    feat_ND = F.normalize(torch.randn(10 * n, 16 * width, device=DEVICE), dim=1)
    freq_TD = torch.randn(1024, 16 * width, device=DEVICE)
    means = []
    for allow in (False, True):
        with tf32(allow):
            name = f"phases, {'tf32' if allow else 'fp32'}, ms"
            attempt(result, name, lambda: milliseconds(lambda: feat_ND @ freq_TD.T))
            means.append((feat_ND @ freq_TD.T).cos().mean(0))
    result["relative error of the mean of cos by TF32"] = float((means[1] - means[0]).norm() / means[0].norm())
    return result


TILES = {32: (16, 8), 16: (32, 8), 8: (32, 8)}  # side: channels and warps of a program of the fused kernel
OTHER_TILES = ((16, 4), (16, 8), (32, 8), (32, 16), (64, 8))


def norm_pool() -> Result:
    """The fused norm, ReLU and pool: how far from torch's, forward and backward, and how fast."""
    sides = (8,) if SMALL else tuple(TILES)  # the interpreter is slow
    return {f"{side} px": _fused(side) for side in sides}


def _fused(side: int) -> Result:
    from benchmarks.gpu import norm_pool as kernel

    n, width, dtype = (2, 32, torch.float32) if SMALL else (1024, 128, torch.bfloat16)
    x = torch.randn(n, width, side, side, device=DEVICE).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.rand(width, device=DEVICE) + 0.5, torch.randn(width, device=DEVICE)
    leaf = x.float().requires_grad_()
    expected = F.avg_pool2d(F.group_norm(leaf, width, weight, bias).relu(), 2)
    grad = torch.randn_like(expected).to(dtype, memory_format=torch.channels_last)
    (expected_dx,) = torch.autograd.grad(expected, leaf, grad.float())
    saved = (torch.empty(n, width, device=DEVICE), torch.empty(n, width, device=DEVICE))

    def forward(block: int, warps: int) -> torch.Tensor:
        return kernel.forward(x, weight, bias, block=block, warps=warps, save=saved)

    def backward() -> torch.Tensor:
        return kernel.backward(grad, x, weight, bias, saved, block=block, warps=warps)

    block, warps = TILES[side]
    out, dx = forward(block, warps), backward()
    result: Result = {
        "forward error": float((out.float() - expected).norm() / expected.norm()),
        "backward error": float((dx.float() - expected_dx).norm() / expected_dx.norm()),
    }
    if not SMALL:
        ms = milliseconds(lambda: forward(block, warps))
        result |= {
            "forward, ms": ms,
            "forward, TB/s": x.nbytes * 1.25 / ms / 1e9,
            "backward, ms": milliseconds(backward),
        }
        for tile in OTHER_TILES:
            attempt(result, f"forward, tile {tile}, ms", partial(milliseconds, partial(forward, *tile)))
    return result


def real_side() -> Result:
    """The real side of a step as it could be: channels-last bfloat16, the fused kernel, and a CUDA graph of it all."""
    from benchmarks.gpu import norm_pool as kernel

    setting = dataclasses.replace(PAPER, side=16, width=32) if SMALL else PAPER
    n, chunk, dtype = (4, 2, torch.float32) if SMALL else (10_240, 2560, torch.bfloat16)
    torch.backends.cudnn.deterministic = True
    network = floor.build(setting).to(DEVICE).requires_grad_(False)
    images = torch.randint(0, 256, (n, 3, setting.side, setting.side), device=DEVICE, dtype=torch.uint8)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    weights = [c.weight.to(dtype, memory_format=torch.channels_last) for c in convolutions]
    biases = [c.bias.to(dtype) for c in convolutions if c.bias is not None]

    def features(part: torch.Tensor) -> torch.Tensor:
        x = ((part.float() / 255 - 0.5) / 0.25).to(dtype, memory_format=torch.channels_last)
        for weight, bias, norm in zip(weights, biases, norms, strict=True):
            block, warps = TILES[x.shape[-1]]
            x = F.conv2d(x, weight, bias, padding=1)
            x = kernel.forward(x, norm.weight, norm.bias, block=block, warps=warps)
        return x.flatten(1)

    def whole(size: int = chunk) -> torch.Tensor:
        return torch.cat([features(part) for part in images.split(size)])

    few = images[:256]
    expected = network.features((few.float() / 255 - 0.5) / 0.25)
    result: Result = {"error against float32": float((features(few).float() - expected).norm() / expected.norm())}
    result["eager, ms"] = milliseconds(whole, 10)

    def replayed(size: int) -> float:
        whole(size)  # compiles, and chooses algorithms, outside of the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            whole(size)
        return milliseconds(graph.replay)

    sizes = () if SMALL else (96, 160, 320, 1024, 2560)  # up to 160 images, the first map stays in a cache of 50 MB
    for size in sizes:
        attempt(result, f"graph, chunks of {size}, ms", partial(replayed, size))
    return result
