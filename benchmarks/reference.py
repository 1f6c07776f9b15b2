"""One step of docs/method.md, section 5, as one would write it first: measure of speed and oracle of correctness.

Class by class, eager, whole batches, float32 unless `dtype` says otherwise, every class with its own optimizer. It
shares with the library the random draws, the networks and the decoding's mask, so that the same draws give the same
step; the augmentation, the decoding, the discrepancy, the sampling network and the update are written here once more.

In float64, with the same draws, it is the yardstick of the tests: how far float32 may be off is what its rounding
makes of this very step, not a figure that suits one processor.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit import augment as a
from ncfmkit.config import DistillSettings
from ncfmkit.distillation.problem import Problem
from ncfmkit.distillation.step import draw_class
from ncfmkit.rng import keyed_rng, torch_generator


def augment(x_NCHW: torch.Tensor, u_P: np.ndarray) -> torch.Tensor:
    """color_crop_cutout, one draw for the batch."""
    u, side = [float(v) for v in u_P], x_NCHW.shape[-1]
    x_NCHW = x_NCHW + (u[a.BRIGHTNESS] - 0.5)
    gray = x_NCHW.mean(1, keepdim=True)
    x_NCHW = (x_NCHW - gray) * (2 * u[a.SATURATION]) + gray
    mean = x_NCHW.mean((1, 2, 3), keepdim=True)
    x_NCHW = (x_NCHW - mean) * (u[a.CONTRAST] + 0.5) + mean
    pad = side // 8
    top, left = (math.floor(u[k] * (2 * pad + 1)) for k in (a.MOVE_Y, a.MOVE_X))
    x_NCHW = F.pad(x_NCHW, (pad, pad, pad, pad))[:, :, top : top + side, left : left + side]
    top, left = (math.floor(u[k] * side) - side // 4 for k in (a.CUT_Y, a.CUT_X))
    keep = torch.ones(side, side, device=x_NCHW.device)
    keep[max(0, top) : max(0, top + side // 2), max(0, left) : max(0, left + side // 2)] = 0
    return x_NCHW * keep


def decode(images_MCHW: torch.Tensor, factor: int) -> torch.Tensor:
    """The factor * factor cells of every image, enlarged, `[M, factor**2, C, H, W]`."""
    side = images_MCHW.shape[-1]
    cell = side // factor
    cells = [
        F.interpolate(images_MCHW[:, :, y : y + cell, x : x + cell], size=side, mode="bilinear", align_corners=False)
        for y in range(0, cell * factor, cell)
        for x in range(0, cell * factor, cell)
    ]
    return torch.stack(cells, dim=1)


def characteristic_function(feat_ND: torch.Tensor, freq_TD: torch.Tensor) -> torch.Tensor:
    """Complex, `[T]`."""
    phase_NT = F.normalize(feat_ND, dim=1) @ freq_TD.T
    return torch.complex(phase_NT.cos().mean(0), phase_NT.sin().mean(0))


def ncfd(real_T: torch.Tensor, syn_T: torch.Tensor, alpha: float) -> torch.Tensor:
    """Equation 8 with amplitude and phase written out."""
    amp_real, amp_syn, product = real_T.abs(), syn_T.abs(), (real_T * syn_T.conj()).real
    amplitude, phase = (amp_real - amp_syn) ** 2, 2 * (amp_real * amp_syn - product)
    return (alpha * amplitude + (1 - alpha) * phase).clamp(min=1e-14).sqrt().mean()


def psi(parameters: list[torch.Tensor], eps_GD: torch.Tensor, z_TD: torch.Tensor) -> torch.Tensor:
    """The learned frequencies, `[T, D]`."""
    x = eps_GD
    for layer in range(3):
        weight, bias, gain, offset = parameters[4 * layer : 4 * layer + 4]
        x = x @ weight.T + bias
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * gain + offset
        x = x.tanh() if layer == 2 else torch.where(x > 0, x, 0.2 * x)
    return x.repeat_interleave(16, dim=0) * z_TD


@dataclass(frozen=True)
class Gradients:
    """A loss of a step, mean over classes, and its gradients where it was taken."""

    loss: float
    images: list[torch.Tensor]  # [M, ch, H, W] of each class
    psi: list[torch.Tensor]  # of psi's parameters, in their order; empty where frequencies are not learned


class Reference:
    """The images of every class, and the step that moves them.

    Args:
        problem: settings, real data and pool; its own two networks are left alone.
        images_NCHW: images to start from, in [0, 1], sorted by class.
        psi_parameters: of the sampling network, where frequencies are learned.
        dtype: what everything but the random draws is computed in.
    """

    def __init__(
        self,
        problem: Problem,
        images_NCHW: torch.Tensor,
        psi_parameters: list[torch.Tensor] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ):
        s = problem.settings
        self.problem, self.device, self.dtype = problem, problem.runtime.device, dtype
        starts = images_NCHW.detach().to(self.device, dtype).split(s.ipc)
        self.images = [x.clone().requires_grad_() for x in starts]  # one leaf per class
        self.optimizers = [self._optimizer(s, x) for x in self.images]
        self.psi = None
        if psi_parameters is not None:
            self.psi = [p.detach().to(dtype, copy=True).requires_grad_() for p in psi_parameters]
            self.psi_optimizer = torch.optim.SGD(self.psi, lr=s.sampler_lr, momentum=s.sampler_momentum, maximize=True)
        self.matcher, self.calibrator = (
            copy.deepcopy(n).to(dtype) for n in (problem.architecture.matcher, problem.architecture.calibrator)
        )
        mean, std = (
            torch.tensor(v, device=self.device, dtype=dtype).view(1, -1, 1, 1)
            for v in (problem.real.mean, problem.real.std)
        )
        self.mean, self.std = mean, std

    @staticmethod
    def _optimizer(s: DistillSettings, images: torch.Tensor) -> torch.optim.Optimizer:
        if s.optimizer == "adamw":
            return torch.optim.AdamW([images], lr=s.lr, weight_decay=s.weight_decay)
        return torch.optim.SGD([images], lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)

    def _decoded(self, label: int) -> torch.Tensor:
        s = self.problem.settings
        factors = {"single": [s.factor], "multi": range(1, s.factor + 1), "bound": range(s.factor, 0, -1)}[s.decode]
        decoded_MP = torch.cat([decode(self.images[label], f) for f in factors], dim=1)
        return decoded_MP[torch.from_numpy(self.problem.mask_MP)]

    def _draw_networks(self, step: int) -> None:
        pool, rng = self.problem.pool, keyed_rng(self.problem.seed, "step", step)
        member, beta = int(rng.integers(len(pool))), float(rng.random())
        with torch.no_grad():
            for name, parameter in self.matcher.named_parameters():
                ends = pool.initial[member][name].to(parameter), pool.final[member][name].to(parameter)
                parameter.copy_(beta * ends[0] + (1 - beta) * ends[1])
            for name, parameter in self.calibrator.named_parameters():
                parameter.copy_(pool.final[member][name])

    def draw_frequencies(self, step: int) -> torch.Tensor | None:
        s, dim = self.problem.settings, self.problem.architecture.feature_dim
        if s.metric == "mean":
            return None
        generator = torch_generator(self.device, self.problem.seed, "frequencies", step)

        def normal(count: int) -> torch.Tensor:
            return torch.randn(count, dim, generator=generator, device=self.device).to(self.dtype)

        if self.psi is None:
            return normal(s.frequencies)
        eps_GD = normal(s.frequencies // 16)
        return psi(self.psi, eps_GD, normal(s.frequencies))

    def _discrepancy(self, real_ND: torch.Tensor, syn_ND: torch.Tensor, freq_TD: torch.Tensor | None) -> torch.Tensor:
        if freq_TD is None:
            return (real_ND.mean(0) - syn_ND.mean(0)).square().sum()
        real_T, syn_T = characteristic_function(real_ND, freq_TD), characteristic_function(syn_ND, freq_TD)
        return ncfd(real_T, syn_T, self.problem.settings.alpha)

    def matching(self, step: int) -> Gradients:
        """Weighted NCFD of every class, and its gradients where images and psi are now."""
        problem, s = self.problem, self.problem.settings
        self._draw_networks(step)
        freq_TD = self.draw_frequencies(step)
        losses, grads, ascent = [], [], []
        for c in range(problem.classes):
            draw = draw_class(problem, step, c)
            real = torch.from_numpy(problem.real.train.images[draw.real_index]).to(self.device).to(self.dtype) / 255
            both = (torch.cat([real, self._decoded(c)]) - self.mean) / self.std
            both = augment(both, draw.matching_P)
            with torch.no_grad():
                real_ND = self.matcher.features(both[: len(real)].detach())
            syn_ND = self.matcher.features(both[len(real) :])
            loss = s.matching_weight * self._discrepancy(real_ND, syn_ND, None if freq_TD is None else freq_TD.detach())
            if self.psi is not None:
                ascent.append(s.matching_weight * self._discrepancy(real_ND, syn_ND.detach(), freq_TD))
            losses.append(loss.item())
            grads += torch.autograd.grad(loss, self.images[c])
        psi_grads = [] if self.psi is None else list(torch.autograd.grad(torch.stack(ascent).sum(), self.psi))
        return Gradients(float(np.mean(losses)), grads, psi_grads)

    def calibration(self, step: int) -> Gradients:
        """Cross-entropy of every class, unweighted, and the gradients of the weighted one where the images are now."""
        problem, losses, grads = self.problem, [], []
        self._draw_networks(step)
        for c in range(problem.classes):
            x_NCHW = augment((self._decoded(c) - self.mean) / self.std, draw_class(problem, step, c).calibration_P)
            label_N = torch.full((len(x_NCHW),), c, device=self.device)
            loss = F.cross_entropy(self.calibrator(x_NCHW), label_N)
            losses.append(loss.item())
            grads += torch.autograd.grad(problem.settings.calibration_weight * loss, self.images[c])
        return Gradients(float(np.mean(losses)), grads, [])

    def move(self, grads: list[torch.Tensor]) -> None:
        """One step of every class's optimizer down these gradients."""
        for images, grad, optimizer in zip(self.images, grads, self.optimizers, strict=True):
            images.grad = grad.to(self.dtype)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)

    def ascend(self, psi_grads: list[torch.Tensor]) -> None:
        """One step of psi up these gradients."""
        assert self.psi is not None
        for parameter, grad in zip(self.psi, psi_grads, strict=True):
            parameter.grad = grad.to(self.dtype)
        self.psi_optimizer.step()

    def step(self, step: int) -> tuple[float, float | None]:
        """One step of every class; the weighted matching loss and the cross-entropy, means over classes."""
        matching = self.matching(step)
        self.move(matching.images)
        if self.psi is not None:
            self.ascend(matching.psi)
        if self.problem.settings.calibration_weight == 0:
            return matching.loss, None
        calibration = self.calibration(step)
        self.move(calibration.images)
        return matching.loss, calibration.loss
