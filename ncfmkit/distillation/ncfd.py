"""The discrepancy between real and synthetic features, and its streamed, exact gradient (docs/method.md, section 1).

Axes: N images, C classes, D features, T frequencies. Images of several classes are stacked along N; `weight_CN` holds
1/n_c where image n belongs to class c and 0 elsewhere, so `weight_CN @ x_NT` is the mean over each class, any subset of
its columns gives that subset's exact share, and images padded to fill a chunk weigh nothing.

A *statistic* is a mean over images (the characteristic function; the mean feature). That is what makes streaming exact:
it is summed over chunks without a graph, the loss is differentiated with respect to the statistic, and each chunk is
then sent backward with that fixed gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

FLOOR = 1e-14  # under every square root: the gradient of sqrt at 0 is infinite


class CharacteristicFunction(torch.autograd.Function):
    """Where all frequencies fit in one block, their cos and sin are kept for the backward pass; else none is kept."""

    @staticmethod
    def forward(ctx, feat_ND, freq_TD, weight_CN, block):
        kept = []
        parts = []
        for freq in freq_TD.split(block):
            cos_NT, sin_NT = _cos_sin(feat_ND, freq)
            parts.append(torch.stack([weight_CN @ cos_NT, weight_CN @ sin_NT]))
            kept = [cos_NT, sin_NT] if len(freq_TD) <= block else []
        ctx.save_for_backward(feat_ND, freq_TD, weight_CN, *kept)
        ctx.block = block
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, *grads):
        feat_ND, freq_TD, weight_CN, *kept = ctx.saved_tensors
        grad_feat = torch.zeros_like(feat_ND) if ctx.needs_input_grad[0] else None
        grad_freq = []
        for freq, grad_2CT in zip(freq_TD.split(ctx.block), grads[0].split(ctx.block, dim=-1), strict=True):
            cos_NT, sin_NT = kept or _cos_sin(feat_ND, freq)
            grad_re, grad_im = weight_CN.T @ grad_2CT[0], weight_CN.T @ grad_2CT[1]
            grad_phase_NT = grad_im.mul_(cos_NT).sub_(grad_re.mul_(sin_NT))
            if grad_feat is not None:
                grad_feat.addmm_(grad_phase_NT, freq)
            if ctx.needs_input_grad[1]:
                grad_freq.append(grad_phase_NT.T @ feat_ND)
        return grad_feat, torch.cat(grad_freq) if grad_freq else None, None, None


def _cos_sin(feat_ND: torch.Tensor, freq_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    phase_NT = feat_ND @ freq_TD.T
    return phase_NT.cos(), phase_NT.sin_()


def characteristic_function(
    feat_ND: torch.Tensor, freq_TD: torch.Tensor, weight_CN: torch.Tensor, *, block: int = 1024
) -> torch.Tensor:
    """Empirical characteristic functions of C classes, `Phi_c(t) = sum_n weight_cn exp(i <t, f_n>)`.

    Args:
        feat_ND: features, float32 or float64.
        freq_TD: frequencies, same dtype.
        weight_CN: 1/n_c where image n is of class c, else 0.
        block: frequencies handled at once; bounds memory (at the price of computing phases twice where there are
            more), changes nothing else.

    Returns:
        `[2, C, T]`: real and imaginary parts; differentiable in features and frequencies.
    """
    return CharacteristicFunction.apply(feat_ND, freq_TD, weight_CN, block)


def ncfd(real_2CT: torch.Tensor, syn_2CT: torch.Tensor, *, alpha: float = 0.5) -> torch.Tensor:
    """The neural characteristic function discrepancy of each class (Eq. 8), unscaled, `[C]`.

    `amp + pha = |Phi_real - Phi_syn|^2` (Eq. 7), so `alpha amp + (1 - alpha) pha` is
    `(1 - alpha) |Phi_real - Phi_syn|^2 + (2 alpha - 1) amp`, and at alpha 0.5 the amplitudes are not needed.

    Args:
        real_2CT, syn_2CT: characteristic functions as :func:`characteristic_function` gives them.
        alpha: weight of the amplitude term, in [0, 1].
    """
    inner_CT = (1 - alpha) * (real_2CT - syn_2CT).square().sum(0)
    if alpha != 0.5:
        inner_CT = inner_CT + (2 * alpha - 1) * (_amplitude(real_2CT) - _amplitude(syn_2CT)).square()
    return inner_CT.clamp(min=0).add(FLOOR).sqrt().mean(-1)


def _amplitude(phi_2CT: torch.Tensor) -> torch.Tensor:
    return phi_2CT.square().sum(0).add(FLOOR).sqrt()


def mean_features(feat_ND: torch.Tensor, freq_TD: torch.Tensor | None, weight_CN: torch.Tensor) -> torch.Tensor:
    """Mean feature of each class, `[1, C, D]`: the statistic of mean matching (DM)."""
    return (weight_CN @ feat_ND)[None]


def mean_discrepancy(real_1CD: torch.Tensor, syn_1CD: torch.Tensor) -> torch.Tensor:
    """Squared distance of the mean features of each class, `[C]` (distribution matching, Zhao and Bilen 2023)."""
    return (real_1CD - syn_1CD).square().sum((0, 2))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A statistic of a chunk `(feat_ND, freq_TD, weight_CN)` and the discrepancy of two of them, `[C]`."""

    statistic: Callable[..., torch.Tensor]
    discrepancy: Callable[..., torch.Tensor]
    normalize: bool  # whether features are L2-normalized per image
    uses_frequencies: bool

    def features(self, feat_ND: torch.Tensor) -> torch.Tensor:
        """An extractor's output as this metric wants it: float32 or wider, normalized where asked."""
        feat_ND = feat_ND if feat_ND.dtype == torch.float64 else feat_ND.float()
        return F.normalize(feat_ND, dim=1) if self.normalize else feat_ND


def metric(name: str, *, alpha: float = 0.5, block: int = 1024) -> Metric:
    """The row of that name: `ncfd`, or `mean` for mean matching."""
    rows = {
        "ncfd": Metric(
            statistic=lambda feat, freq, weight: characteristic_function(feat, freq, weight, block=block),
            discrepancy=lambda real, syn: ncfd(real, syn, alpha=alpha),
            normalize=True,
            uses_frequencies=True,
        ),
        "mean": Metric(statistic=mean_features, discrepancy=mean_discrepancy, normalize=False, uses_frequencies=False),
    }
    return rows[name]


@dataclass(frozen=True)
class Chunk:
    """Some of the stacked images: their positions, and each one's share in the mean of its class.

    Chunks of one stack are equally long (the last is padded with weight 0), which is one shape to compile for.
    """

    rows: np.ndarray  # int64 [N], positions in the stack
    index_N: torch.Tensor  # the same on the device
    label_N: torch.Tensor  # int64, the class of each in the stack, on the device
    classes: slice  # the run of the stack's classes that they belong to
    weight_CN: torch.Tensor  # [classes in the run, images that the extractor makes of index_N]


Extract = Callable[[Chunk], torch.Tensor]  # the extractor's features of a chunk's images, in the order of weight_CN


def _added(total: torch.Tensor | None, part: torch.Tensor, chunk: Chunk, chunks: list[Chunk]) -> torch.Tensor:
    """The statistic of a stack `[S, C, T]`, without a graph, with that of one more of its chunks."""
    if total is None:
        total = part.new_zeros(part.shape[0], chunks[-1].classes.stop, part.shape[-1])
    total[:, chunk.classes] += part.detach()
    return total


def streamed_statistic(
    metric: Metric, extract: Extract, chunks: list[Chunk], freq_TD: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The statistic over all chunks of images that need no gradient (the real side).

    Returns:
        The statistic `[S, C, T]`, detached, and each chunk's part of it, with a graph to the frequencies if these
        require a gradient (their features and phases are then kept, the extractor's graph never is).
    """
    keep = freq_TD is not None and freq_TD.requires_grad
    total, parts = None, []
    for chunk in chunks:
        with torch.no_grad():
            feat_ND = metric.features(extract(chunk))
        part = metric.statistic(feat_ND, freq_TD, chunk.weight_CN)
        total = _added(total, part, chunk, chunks)
        parts += [part] if keep else []
    assert total is not None
    return total, parts


def streamed_backward(
    metric: Metric,
    extract: Extract,
    chunks: list[Chunk],
    freq_TD: torch.Tensor | None,
    real_stat: torch.Tensor,
    *,
    weight: float | torch.Tensor,
    retain: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the gradient of `weight * sum_c discrepancy_c` to what `extract` differentiates, and to the frequencies.

    Exact at any chunking. Pass 1 sums the statistic and keeps the graphs of the first `retain` chunks only; pass 2 goes
    backward chunk by chunk with the fixed gradient of the loss with respect to the statistic, after a second forward
    where no graph was kept. Memory: `retain` graphs, one more where there are more chunks than that.

    Args:
        metric: statistic and discrepancy.
        extract: features of a chunk of synthetic images, with a graph back to the images.
        chunks: the stack of synthetic images.
        freq_TD: frequencies; they get the synthetic side of their gradient if they require one.
        real_stat: the statistic of the real images, detached.
        weight: scale of the gradient (not of the value returned), such as the loss weight times an fp16 loss scale.
        retain: chunks whose graph is kept between the passes.

    Returns:
        The discrepancy of each class `[C]`, detached, and the gradient with respect to `real_stat`.
    """
    total, parts = None, []
    for i, chunk in enumerate(chunks):
        with torch.set_grad_enabled(i < retain):
            part = metric.statistic(metric.features(extract(chunk)), freq_TD, chunk.weight_CN)
        total = _added(total, part, chunk, chunks)
        parts += [part] if i < retain else []
    assert total is not None
    leaf, real_leaf = total.requires_grad_(), real_stat.clone().requires_grad_()
    loss_C = metric.discrepancy(real_leaf, leaf)
    grad, real_grad = torch.autograd.grad(loss_C.sum() * weight, (leaf, real_leaf))
    for i, chunk in enumerate(chunks):
        again = i >= retain
        part = metric.statistic(metric.features(extract(chunk)), freq_TD, chunk.weight_CN) if again else parts[i]
        part.backward(grad[:, chunk.classes])
    return loss_C.detach(), real_grad
