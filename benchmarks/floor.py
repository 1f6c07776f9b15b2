"""What a step has to do, and how fast this machine does such things.

The floor of a step is the longer of two times: its floating-point operations at the rate of a large matrix product, and
its bytes at the rate of a large copy. Operations are counted as direct convolutions, bytes as if what goes in and out
of every convolution passed through main memory once. Both rates are measured, in the precision that is used.

No convolution reaches the rate of a large product, the first with its three channels least of all. So the convolutions
of a step are also measured one by one.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.settings import Setting
from ncfmkit import networks
from ncfmkit.distillation.frequencies import PER_COMPONENT
from ncfmkit.runtime import DTYPES

Network = Callable[[], networks.Classifier]


def build(setting: Setting) -> networks.Classifier:
    """The setting's extractor."""
    return networks.build("convnet", channels=3, classes=setting.classes, size=setting.side, width=setting.width)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step of a setting has to do."""

    network_flops: float  # in the networks' precision
    phase_flops: float  # in float32
    values: float  # numbers that pass in and out of the networks' convolutions, in the networks' precision
    bytes: float  # of everything else: features, frequencies, images and moments

    @property
    def flops(self) -> float:
        return self.network_flops + self.phase_flops

    def seconds(self, precision: str, rates: dict[str, Any]) -> float:
        """The floor, from rates as :func:`measure_rates` gives them."""
        computing = self.network_flops / rates[precision]["flops"] + self.phase_flops / rates["fp32"]["flops"]
        moved = self.values * DTYPES[precision].itemsize + self.bytes
        return max(computing, moved / rates[precision]["copy_bytes"])


def work(setting: Setting) -> Work:
    """Counts the work of a step: matching with one pass over real images, forward and back over the synthetic ones,
    and the calibration's forward and back. Backward passes go to the images alone, for the networks are frozen.
    """
    with torch.device("meta"):
        network, image = build(setting), torch.empty(1, 3, setting.side, setting.side)
    values = 0

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        features = network.features(image)
    passes = setting.real_images + 4 * setting.decoded_images
    dim = features.shape[1]
    classifier = 2 * 2 * dim * setting.classes * setting.decoded_images
    pixels = setting.classes * setting.ipc * 3 * setting.side**2
    adamw = 2 * 7 * 4 * pixels  # two image steps: image, gradient and two moments are read, all but one written
    phases = 2 * dim * setting.frequencies  # of one image
    phase_passes = setting.real_images + 2 * setting.decoded_images
    psi = 0
    if setting.sampler == "learned":  # gradients to the frequencies, and psi's three layers forward and back
        phase_passes += setting.real_images + setting.decoded_images
        psi = 2 * dim**2 * (setting.frequencies // PER_COMPONENT) * (3 + 3 + 2)  # its input needs no gradient
    return Work(
        network_flops=counter.get_total_flops() * passes + classifier,
        phase_flops=phases * phase_passes + psi,
        values=values * passes,
        bytes=4 * dim * (setting.real_images + setting.decoded_images + setting.frequencies) + adamw,
    )


def convolution_seconds(setting: Setting, device: torch.device, precision: str, *, batches: Sequence[int]) -> float:
    """Seconds of a step's convolutions, each measured alone in the layout and the batch that suit it best."""
    with torch.device(device):
        network, image = build(setting), torch.empty(1, 3, setting.side, setting.side)
    shapes: list[tuple[torch.nn.Conv2d, torch.Size]] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda conv, inputs, _: shapes.append((conv, inputs[0].shape[1:])))
    with torch.no_grad():
        network.features(image)
    seconds = 0.0
    for conv, shape in shapes:
        forward, backward = [], []
        for batch, memory_format in product(batches, (torch.contiguous_format, torch.channels_last)):
            x, weight = (
                v.to(dtype=DTYPES[precision], memory_format=memory_format)
                for v in (torch.rand(batch, *shape, device=device), conv.weight.detach())
            )
            run = partial(torch.ops.aten.convolution, x, weight, None, *_how(conv))
            grad = torch.rand_like(run())
            back = partial(
                torch.ops.aten.convolution_backward, grad, x, weight, None, *_how(conv), (True, False, False)
            )
            forward.append(_median_seconds(run, device) / batch)
            backward.append(_median_seconds(back, device) / batch)
        seconds += min(forward) * (setting.real_images + 2 * setting.decoded_images)
        seconds += min(backward) * 2 * setting.decoded_images
    return seconds


def _how(conv: torch.nn.Conv2d) -> tuple[Any, ...]:
    """Stride, padding, dilation, and that it is not transposed, whose output padding is 0; groups."""
    return conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups


def measure_rates(device: torch.device, precisions: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Operations per second of a large square matrix product, bytes per second (read and written) of a large copy."""
    side, count = (8192, 2**28) if device.type == "cuda" else (3072, 2**26)
    rates = {}
    for precision in dict.fromkeys(("fp32", *precisions)):
        a = torch.randn(side, side, device=device).to(DTYPES[precision])
        source = torch.zeros(count, dtype=DTYPES[precision], device=device)
        target = torch.empty_like(source)
        multiplied = _median_seconds(partial(torch.matmul, a, a), device)
        copy = _median_seconds(partial(target.copy_, source), device)
        rates[precision] = {"flops": 2 * side**3 / multiplied, "copy_bytes": 2 * source.nbytes / copy}
        del a, source, target
    if device.type == "cuda":
        torch.cuda.empty_cache()  # contenders need the room
    return rates


def _median_seconds(run: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])
