"""One step: synthetic images are moved to match the real ones at frequencies chosen to tell them apart.

`distill_step` is section 5 of docs/method.md line by line. Classes are independent problems but for what a step shares
(the extractor, the calibration network, the frequencies), so they are stacked along the batch axis: one optimizer over
the stacked images is one optimizer per class, because AdamW and SGD act on every element alone and every class is
stepped exactly once.
Axes: C classes, M stored images per class, N stacked images, P decoded images per stored image, T frequencies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit import augment
from ncfmkit.distillation import frequencies, ncfd
from ncfmkit.distillation.memory import Plan, class_groups, kept_graphs_of, real_chunks, syn_chunks, within_memory
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.problem import AugmentedNetwork, Problem, State, StepLosses
from ncfmkit.errors import NonFiniteLossError
from ncfmkit.images import gather
from ncfmkit.mosaic import decode, decode_factors
from ncfmkit.rng import keyed_rng, torch_generator


@dataclass(frozen=True)
class ClassDraws:
    """What one class draws in one step, by `(seed, step, class)`."""

    real_index: np.ndarray  # positions in the train split
    matching_P: np.ndarray  # the augmentation shared by real and synthetic images
    calibration_P: np.ndarray


def draw_class(problem: Problem, step: int, label: int) -> ClassDraws:
    rng = keyed_rng(problem.seed, "class", step, label)
    start, stop = problem.real.train.offsets[label : label + 2]
    count = min(problem.settings.real_batch, stop - start)
    matching, calibration = rng.random((2, augment.DRAWS), dtype=np.float32)
    index = start + rng.choice(stop - start, count, replace=False, shuffle=False)
    return ClassDraws(index, matching, calibration)


def distill_step(problem: Problem, state: State, plan: Plan) -> StepLosses:
    """One step of every class: match, ascend psi, calibrate (docs/method.md, section 5).

    Raises:
        NonFiniteLossError: with the class and the step; the images are as the loss found them.
    """
    s = problem.settings

    # Draw what all classes share: a pool member, which matches between its initial and its trained weights and
    # calibrates with its trained ones; the frequencies. Each class draws its own real images and augmentations.
    shared = keyed_rng(problem.seed, "step", state.step)
    member, beta = int(shared.integers(len(problem.pool))), shared.random()
    problem.pool.blend(problem.matcher, member, beta)
    problem.pool.load_final(problem.calibrator, member)
    draws = [draw_class(problem, state.step, c) for c in range(problem.classes)]
    freq_TD = draw_frequencies(problem, state)

    # Match: the images of every class go one step down the discrepancy (Eq. 8).
    def match(classes_per_batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _match(problem, state, plan, draws, freq_TD, classes_per_batch)

    matching_C, freq_grad = within_memory(plan, problem, state, lambda: match(plan.classes_per_batch))
    _check_finite(problem, state, "matching", matching_C, lambda: match(1)[0])
    optimizers = [state.optimizer]
    # Ascend: psi goes one step up the same loss, summed over classes, at the frequencies that it drew.
    if state.psi_optimizer is not None:
        assert freq_TD is not None
        freq_TD.backward(freq_grad)
        optimizers.append(state.psi_optimizer)
    take_step(state, *optimizers)
    loss = matching = s.matching_weight * float(matching_C.mean())

    # Calibrate: the images go one more step, down the cross-entropy of the trained network.
    calibration = None
    if s.calibration_weight > 0:

        def calibrate(classes_per_batch: int) -> torch.Tensor:
            return _calibrate(problem, state, plan, draws, classes_per_batch)

        calibration_C = within_memory(plan, problem, state, lambda: calibrate(problem.classes))
        _check_finite(problem, state, "calibration", calibration_C, lambda: calibrate(1))
        take_step(state, state.optimizer)
        calibration = float(calibration_C.mean())
        loss += s.calibration_weight * calibration
    _check_images(problem, state)

    # The learning rate halves after `patience` steps without a lower loss.
    lr = state.optimizer.param_groups[0]["lr"]
    state.scheduler.step(loss)
    state.step += 1
    return StepLosses(matching=matching, calibration=calibration, lr=lr)


def draw_frequencies(problem: Problem, state: State) -> torch.Tensor | None:
    if not problem.metric.uses_frequencies:
        return None
    generator = torch_generator(problem.runtime.device, problem.seed, "frequencies", state.step)
    count = problem.settings.frequencies
    if state.psi is not None:
        return state.psi(count, generator)
    return frequencies.gaussian(count, problem.feature_dim, generator)


def _match(
    problem: Problem,
    state: State,
    plan: Plan,
    draws: list[ClassDraws],
    freq_TD: torch.Tensor | None,
    classes_per_batch: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Adds the matching gradient to the images; the NCFD of each class, and the frequencies' gradient where learned.

    Both gradients are of the weighted loss, and scaled as the scaler has it.
    """
    learned = state.psi is not None
    freq_leaf = None if freq_TD is None else freq_TD.detach().requires_grad_(learned)
    losses: list[torch.Tensor] = []
    weight = problem.settings.matching_weight * state.scaler.get_scale()
    for group in class_groups(problem.classes, classes_per_batch):
        # The real side needs no gradient but that of the frequencies: its chunks are only summed.
        of_real, of_syn = real_chunks(problem, plan, group), syn_chunks(problem, plan, group)
        real_stat, real_parts = ncfd.streamed_statistic(
            problem.metric, _real_extractor(problem, draws, group), of_real, freq_leaf
        )
        # The synthetic side is summed, then sent backward chunk by chunk with the fixed gradient of the sum.
        u_CP = np.stack([draws[c].matching_P for c in group])
        loss_C, real_grad = ncfd.streamed_backward(
            problem.metric,
            _syn_extractor(problem, state, group, u_CP, problem.features),
            of_syn,
            freq_leaf,
            real_stat,
            weight=weight,
            retain=kept_graphs_of(plan, len(of_syn)),
        )
        losses.append(loss_C)
        if learned:
            for part, chunk in zip(real_parts, of_real, strict=True):
                part.backward(real_grad[:, chunk.classes])
    return torch.cat(losses), None if freq_leaf is None else freq_leaf.grad


def _calibrate(
    problem: Problem, state: State, plan: Plan, draws: list[ClassDraws], classes_per_batch: int
) -> torch.Tensor:
    """Adds the calibration gradient to the images; the cross-entropy of each class."""
    weight = problem.settings.calibration_weight * state.scaler.get_scale()
    loss_C = torch.zeros(problem.classes, device=state.images.device)
    for group in class_groups(problem.classes, classes_per_batch):
        u_CP = np.stack([draws[c].calibration_P for c in group])
        logits = _syn_extractor(problem, state, group, u_CP, problem.logits)
        for chunk in syn_chunks(problem, plan, group):
            run = slice(group.start + chunk.classes.start, group.start + chunk.classes.stop)
            labels_N = torch.arange(run.start, run.stop, device=state.images.device)
            label_N = labels_N[(chunk.weight_CN > 0).to(torch.int8).argmax(0)]
            part_C = chunk.weight_CN @ F.cross_entropy(logits(chunk).float(), label_N, reduction="none")
            (part_C.sum() * weight).backward()
            loss_C[run] += part_C.detach()
    return loss_C


def _real_extractor(problem: Problem, draws: list[ClassDraws], group: range) -> ncfd.Extract:
    """Features of real images: gathered, normalized, augmented by their class's draw."""
    index_N = np.concatenate([draws[c].real_index for c in group])
    u_NP = np.concatenate([np.tile(draws[c].matching_P, (len(draws[c].real_index), 1)) for c in group])

    def extract(chunk: Chunk) -> torch.Tensor:
        rows = chunk.index_N.numpy()
        x_NCHW = gather(problem.train_images, index_N[rows], problem.runtime.device)
        return problem.features(x_NCHW, u_NP[rows])

    return extract


def _syn_extractor(
    problem: Problem, state: State, group: range, u_CP: np.ndarray, network: AugmentedNetwork
) -> ncfd.Extract:
    """Network output for synthetic images: decoded, normalized, augmented; the backward pass adds to their gradient."""
    s = problem.settings
    factors = decode_factors(s.decode, s.factor)
    first = group.start * s.ipc

    def extract(chunk: Chunk) -> torch.Tensor:
        index_N = chunk.index_N.to(state.images.device) + first
        images_NCHW = state.images.detach()[index_N]

        def add_gradient(leaf: torch.Tensor) -> None:
            assert state.images.grad is not None
            assert leaf.grad is not None
            state.images.grad.index_add_(0, index_N, leaf.grad)

        if torch.is_grad_enabled():
            images_NCHW.requires_grad_().register_post_accumulate_grad_hook(add_gradient)
        x_NCHW = decode(images_NCHW, factors).flatten(0, 1)
        u_NP = np.repeat(u_CP[chunk.index_N.numpy() // s.ipc], problem.mask_MP.shape[1], axis=0)
        return network(x_NCHW, u_NP)

    return extract


def take_step(state: State, *optimizers: torch.optim.Optimizer) -> None:
    """A step of the images, of psi too where its optimizer is given: each is skipped where its gradient overflowed."""
    for optimizer in optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    if state.psi_optimizer in optimizers:
        state.psi_optimizer.zero_grad()  # frees the gradients
    with torch.no_grad():
        state.images.clamp_(0, 1)


def _check_finite(
    problem: Problem, state: State, name: str, loss_C: torch.Tensor, class_by_class: Callable[[], torch.Tensor]
) -> None:
    if bool(loss_C.isfinite().all()):
        return
    finite_C = class_by_class().isfinite()  # stacked, one class's NaN reaches the others of its chunk as 0 * NaN
    label = problem.real.classes[int(finite_C.to(torch.int8).argmin())]
    raise NonFiniteLossError(
        f"the {name} loss of class {label!r} became non-finite in step {state.step}: lower --lr, "
        "or try --precision fp32; the last checkpoint is kept"
    )


def _check_images(problem: Problem, state: State) -> None:
    """A finite loss may have a gradient that is not."""
    finite_M = state.images.detach().isfinite().flatten(1).all(1)
    if bool(finite_M.all()):
        return
    label = problem.real.classes[int(finite_M.to(torch.int8).argmin()) // problem.settings.ipc]
    raise NonFiniteLossError(
        f"the images of class {label!r} became non-finite in step {state.step}: lower --lr, "
        "or try --precision fp32; the last checkpoint is kept"
    )
