"""The order of worth: the first images of a class, however many, match its real images (docs/method.md, section 5).

Image after image is taken, each the one with which those taken have the least discrepancy to the real images. A
statistic is a mean over decoded images, so that of any stored images is known from the sum of each.
Axes: M stored images of a class, P decoded images per stored image, S parts of a statistic, F its T or D of all draws.
"""

from collections.abc import Callable

import numpy as np
import torch

from ncfmkit.distillation.problem import Problem
from ncfmkit.distillation.rounding import as_stored
from ncfmkit.distillation.schedule import wide
from ncfmkit.distillation.step import draw_networks, draw_noise
from ncfmkit.images import channel_tensors, gather, normalize
from ncfmkit.mosaic import decode, decode_factors
from ncfmkit.progress import track
from ncfmkit.rng import keyed_rng

TITLE = "order of the images"
DRAWS = 8  # each of an extractor, frequencies, and as many real images as a step takes

Discrepancy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def by_worth(problem: Problem, images_NCHW: torch.Tensor, *, chunk: int) -> torch.Tensor:
    """The images, those of each class in the order of worth; arguments as of :func:`order_of_worth`."""
    order_CM = order_of_worth(problem, images_NCHW, chunk=chunk).to(images_NCHW.device)
    class_C1 = torch.arange(problem.classes, device=images_NCHW.device)[:, None]
    return images_NCHW.unflatten(0, order_CM.shape)[class_C1, order_CM].flatten(0, 1)


@torch.no_grad()
def order_of_worth(problem: Problem, images_NCHW: torch.Tensor, *, chunk: int) -> torch.Tensor:
    """Which image of its class comes first, second, ...: int64 `[C, M]` on the CPU, a permutation in each row.

    Extractors and frequencies are drawn as further steps would draw them; the frequencies are Gaussian whatever the
    sampler, and nothing is augmented. What a class draws depends on the seed and its label alone. It takes the forward
    passes of `DRAWS` steps.

    Args:
        images_NCHW: of the problem's classes, float in [0, 1] `[C*M, ch, H, W]`, on its device.
        chunk: images that go through an extractor at once.
    """
    s = problem.settings
    if s.ipc == 1:
        return torch.zeros(problem.classes, 1, dtype=torch.int64)
    if s.is_quantized:
        rounded_NCHW = as_stored(images_NCHW, s.stored_bits, subsampled=s.is_subsampled)
    else:
        rounded_NCHW = images_NCHW.mul(255).round() / 255
    mask_MP, orders = torch.from_numpy(problem.mask_MP).to(images_NCHW.device), []
    with track(TITLE, problem.classes) as bar:
        for label, of_class_MCHW in zip(problem.label_C.tolist(), rounded_NCHW.split(s.ipc), strict=True):
            real_SF, sum_SMF = _statistics(problem, label, of_class_MCHW, chunk)
            orders.append(greedy_order(real_SF, sum_SMF, mask_MP, problem.metric.discrepancy))
            bar.advance()
    return torch.stack(orders)


def greedy_order(
    real_SF: torch.Tensor, sum_SMF: torch.Tensor, mask_MP: torch.Tensor, discrepancy: Discrepancy
) -> torch.Tensor:
    """The order in which stored images are taken, int64 `[M]`.

    Args:
        real_SF: the statistic of the real images.
        sum_SMF: the sum over the decoded images of each stored one.
        mask_MP: which decoded images count. Where its rows differ (`bound`), an image stays among those of equal rows,
            since it was trained as it is decoded there.
        discrepancy: of two statistics `[S, M, F]`, `[M]`.
    """
    count_M, free_M = mask_MP.sum(1), torch.ones(len(mask_MP), dtype=torch.bool, device=mask_MP.device)
    taken_SF, taken, order = torch.zeros_like(real_SF), 0, []
    for place_P in mask_MP:
        mean_SMF = (taken_SF[:, None] + sum_SMF) / (taken + count_M)[:, None]
        loss_M = discrepancy(real_SF[:, None].expand_as(mean_SMF), mean_SMF)
        pick = int(torch.where(free_M & (mask_MP == place_P).all(1), loss_M, torch.inf).argmin())
        free_M[pick] = False
        taken_SF, taken = taken_SF + sum_SMF[:, pick], taken + int(count_M[pick])
        order.append(pick)
    return torch.tensor(order)


def _statistics(
    problem: Problem, label: int, images_MCHW: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The statistic of a class's real images `[S, F]`, and its sum over the decoded ones of each stored `[S, M, F]`."""
    s, device, (start, stop) = problem.settings, images_MCHW.device, problem.real.train.offsets[label : label + 2]
    factors, size = decode_factors(s.decode, s.factor), max(1, chunk // problem.mask_MP.shape[1])
    parts = list(zip(images_MCHW.split(size), torch.from_numpy(problem.mask_MP).to(device).split(size), strict=True))
    of_real, of_stored = [], []
    for step in range(s.steps, s.steps + DRAWS):
        at = draw_networks(problem, step)
        noise = draw_noise(at, step)
        freq_TD = noise[-1] if noise else None  # of the learned sampler, the normal draws that it would scale
        rng = keyed_rng(problem.seed, "worth", step, label)
        index_N = start + rng.choice(stop - start, min(s.real_batch, stop - start), replace=False)
        sums_S1F = [
            _sums(at, gather(at.train_images, rows, device), torch.ones(1, len(rows), device=device), freq_TD)
            for rows in np.split(index_N, range(chunk, len(index_N), chunk))
        ]
        sums_SMF = [
            _sums(at, decode(x_NCHW, factors).flatten(0, 1), torch.block_diag(*mask_NP.float()), freq_TD)
            for x_NCHW, mask_NP in parts
        ]
        of_real.append(torch.cat(sums_S1F, dim=1).sum(1) / len(index_N))
        of_stored.append(torch.cat(sums_SMF, dim=1))
    return torch.cat(of_real, dim=-1), torch.cat(of_stored, dim=-1)


def _sums(
    problem: Problem, x_NCHW: torch.Tensor, weight_CN: torch.Tensor, freq_TD: torch.Tensor | None
) -> torch.Tensor:
    """Weighted sums over images of what the statistic is the mean of, `[S, C, F]`."""
    real, metric = problem.real, problem.metric
    with problem.runtime.autocast():
        x_NCHW = normalize(x_NCHW, *channel_tensors(real.mean, real.std, x_NCHW.device))
        feat_ND = problem.architecture.matcher.features(x_NCHW)
    return metric.statistic(metric.features(feat_ND), freq_TD, weight_CN).to(wide(x_NCHW.device))
