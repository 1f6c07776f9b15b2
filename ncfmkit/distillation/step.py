"""One step: synthetic images are moved to match the real ones at frequencies chosen to tell them apart.

`distill_step` is section 5 of docs/method.md line by line. Classes are independent problems but for what a step shares
(the extractor, the calibration network, the frequencies), so they are stacked along the batch axis: one optimizer over
the stacked images is one optimizer per class, because AdamW and SGD act on every element alone and every class is
stepped exactly once.
Axes: C classes, M stored images per class, N stacked images, P decoded images per stored image, T frequencies.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit import augment, distributed
from ncfmkit.distillation import frequencies, ncfd
from ncfmkit.distillation.memory import Plan, class_groups, kept_graphs_of, real_chunks, syn_chunks, within_memory
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.problem import Problem, State, StepReport
from ncfmkit.distillation.rounding import as_stored
from ncfmkit.images import gather, uploaded
from ncfmkit.mosaic import decode, decode_factors
from ncfmkit.recorded import Recorded, TensorFunction, Tensors
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
    of_class = stop - start if problem.easiest is None else len(problem.easiest[label])
    matching, calibration = rng.random((2, augment.DRAWS), dtype=np.float32)
    picks = rng.choice(of_class, min(problem.settings.real_batch, of_class), replace=False, shuffle=False)
    index = start + picks if problem.easiest is None else problem.easiest[label][picks]
    return ClassDraws(index, matching, calibration)


@dataclass(frozen=True)
class Draws:
    """What is drawn in one step; on the host, and what the device needs of it there, too."""

    real_index: list[np.ndarray]  # of each class
    real_index_N: torch.Tensor | None  # of all, where real images are on the device
    u_CP: dict[str, torch.Tensor]  # by phase, on the host
    device_u_CP: dict[str, torch.Tensor]
    noise: tuple[torch.Tensor, ...]  # that frequencies are made of

    @property
    def on_device(self) -> Tensors:
        index_N = () if self.real_index_N is None else (self.real_index_N,)
        return (*self.device_u_CP.values(), *self.noise, *index_N)

    def moved(self, on_device: Tensors) -> "Draws":
        """The same with other tensors in place of those `on_device`."""
        phases, noise = len(self.device_u_CP), len(self.noise)
        return dataclasses.replace(
            self,
            device_u_CP=dict(zip(self.device_u_CP, on_device[:phases], strict=True)),
            noise=on_device[phases : phases + noise],
            real_index_N=None if self.real_index_N is None else on_device[-1],
        )


def draw(problem: Problem, step: int) -> Draws:
    of_class = [draw_class(problem, step, label) for label in problem.label_C.tolist()]
    index = [draws.real_index for draws in of_class]
    device, resident = problem.runtime.device, isinstance(problem.train_images, torch.Tensor)
    u_CP = {
        "matching": torch.from_numpy(np.stack([draws.matching_P for draws in of_class])),
        "calibration": torch.from_numpy(np.stack([draws.calibration_P for draws in of_class])),
    }
    return Draws(
        real_index=index,
        real_index_N=uploaded(torch.from_numpy(np.concatenate(index)), device) if resident else None,
        u_CP=u_CP,
        device_u_CP={phase: uploaded(u, device) for phase, u in u_CP.items()},
        noise=draw_noise(problem, step),
    )


def draw_noise(problem: Problem, step: int) -> tuple[torch.Tensor, ...]:
    """What the frequencies of a step are made of, on the device."""
    if not problem.metric.uses_frequencies:
        return ()
    count, dim = problem.settings.frequencies, problem.architecture.feature_dim
    generator = torch_generator(problem.runtime.device, problem.seed, "frequencies", step)
    if problem.settings.sampler == "learned":
        return frequencies.noise(count, dim, generator)
    return (frequencies.gaussian(count, dim, generator),)


def distill_step(problem: Problem, state: State, plan: Plan) -> StepReport:
    """One step of every class: match, ascend psi, calibrate (docs/method.md, section 5).

    Nothing waits for the device: what the step found is read by :func:`ncfmkit.distillation.problem.read`, which also
    raises where it is not finite.
    """
    # Draw what all classes share: the two networks, the frequencies' noise. Each class draws its own real images and
    # augmentations.
    problem = draw_networks(problem, state.step)
    draws = draw(problem, state.step)

    # Match, ascend psi, calibrate: by a replay of an earlier step, where one is recorded.
    (found,) = _movement(problem, state, plan, draws)(*draws.on_device)
    loss = found[0] + problem.settings.calibration_weight * found[1]
    rate = state.schedule.rate.to(loss.dtype)
    report = StepReport(step=state.step, values=torch.cat([found[:2], rate[None], found[2:]]))

    # The learning rate of the next step; and the average of the images, where it is what is stored.
    state.step += 1
    state.schedule.step(state.step, loss)
    state.follow(problem.settings.average)
    return report


def _movement(problem: Problem, state: State, plan: Plan, draws: Draws) -> TensorFunction:
    """:func:`_move` as a function of the draws on the device; recorded where nothing else of a step changes it."""

    def move(*on_device: torch.Tensor) -> Tensors:
        return (_move(problem, state, plan, draws.moved(on_device)),)

    picks = set(augment.parse_strategy(problem.settings.augment)) & set(augment.GEOMETRIC)
    alone = not problem.shared or distributed.world() == 1
    if not (problem.runtime.records and alone and draws.real_index_N is not None and len(picks) <= 1):
        return move
    key = (problem.current, rounds(problem, state), *dataclasses.astuple(plan))
    if key not in state.recorded:
        for old in [old for old in state.recorded if old[1:] != key[1:]]:  # none of them is replayed again
            del state.recorded[old]
        state.recorded[key] = Recorded(move, problem.runtime.device)
    return state.recorded[key]


def _move(problem: Problem, state: State, plan: Plan, draws: Draws) -> torch.Tensor:
    """Moves the images and psi.

    Returns:
        What a :class:`StepReport` has, without the learning rate: float `[5]`.
    """
    s = problem.settings
    freq_TD = make_frequencies(state, draws.noise)

    # Match: the images of every class go one step down the discrepancy (Eq. 8).
    matching_C, matching_wrong, freq_grad = within_memory(
        plan, problem, state, lambda: _match(problem, state, plan, draws, freq_TD)
    )
    calibration_C, calibration_wrong = torch.zeros_like(matching_C), torch.full_like(matching_wrong, -1)
    optimizers = [state.optimizer]
    # Ascend: psi goes one step up the same loss, summed over classes, at the frequencies that it drew.
    if state.psi_optimizer is not None:
        assert freq_TD is not None
        assert freq_grad is not None
        if problem.shared:
            distributed.add(freq_grad)
        freq_TD.backward(freq_grad)
        optimizers.append(state.psi_optimizer)
    take_step(problem, state, *optimizers)

    # Calibrate: the images go one more step, down the cross-entropy of the trained network.
    if s.calibration_weight > 0:
        calibration_C, calibration_wrong = within_memory(
            plan, problem, state, lambda: _calibrate(problem, state, plan, draws)
        )
        take_step(problem, state, state.optimizer)
    means = problem.mean(s.matching_weight * matching_C, calibration_C)
    # a finite loss may have a gradient that is not
    images_wrong = _first_wrong(state.images.detach().isfinite().view(problem.classes, -1).all(1))
    wrong = torch.stack([matching_wrong, calibration_wrong, images_wrong])
    return torch.cat([means, wrong.to(means.dtype)])


def draw_networks(problem: Problem, step: int) -> Problem:
    """Sets the matching extractor and the calibration network to weights of one pool member (section 3).

    Returns:
        The problem with that member's architecture as the current one.
    """
    s, pool = problem.settings, problem.pool
    shared = keyed_rng(problem.seed, "step", step)
    member = int(shared.integers(len(pool)))
    problem = dataclasses.replace(problem, current=member % pool.architectures)
    matcher, calibrator = problem.architecture.matcher, problem.architecture.calibrator
    if s.extractor == "blend":
        pool.blend(matcher, member, shared.random())
        pool.load(calibrator, member)
        return problem
    last = len(pool.stages[member]) - 1
    newest = last if s.stage_order == "uniform" else min(last, (last + 1) * step // max(1, s.steps))
    stage = int(shared.integers(newest + 1))
    latest = last if s.calibration_stages is None else min(last, stage + s.calibration_stages - 1)
    earliest = last if s.calibration_stages is None else stage
    pool.load(matcher, member, stage)
    pool.load(calibrator, member, int(shared.integers(earliest, latest + 1)))
    return problem


def make_frequencies(state: State, noise: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """`[T, D]`, differentiable in psi where they are learned; None for a metric without them."""
    if state.psi is not None:
        return state.psi(*noise)
    return noise[0] if noise else None


def _match(
    problem: Problem, state: State, plan: Plan, draws: Draws, freq_TD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Adds the matching gradient to the images; the NCFD of each class, and the frequencies' gradient where learned.

    Both gradients are of the weighted loss, and scaled as the scaler has it. Between them, the first class whose loss
    is not finite.
    """
    learned = state.psi is not None
    freq_leaf = None if freq_TD is None else freq_TD.detach().requires_grad_(learned)
    losses: list[torch.Tensor] = []
    broken_C = torch.zeros(problem.classes, dtype=torch.int32, device=state.images.device)
    weight = _scaled(state, problem.settings.matching_weight)
    for group in class_groups(problem.classes, plan.classes_per_batch):
        # The real side needs no gradient but that of the frequencies: its chunks are only summed.
        of_real, of_syn = real_chunks(problem, plan, group), syn_chunks(problem, plan, group)
        real_stat, real_parts = ncfd.streamed_statistic(
            problem.metric, _real_extractor(problem, draws, group, broken_C), of_real, freq_leaf
        )
        # The synthetic side is summed, then sent backward chunk by chunk with the fixed gradient of the sum.
        loss_C, real_grad = ncfd.streamed_backward(
            problem.metric,
            _syn_extractor(problem, state, draws, "matching", group, broken_C),
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
    loss_C = torch.cat(losses)
    return loss_C, _first_wrong(loss_C.isfinite(), broken_C), None if freq_leaf is None else freq_leaf.grad


def _calibrate(problem: Problem, state: State, plan: Plan, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the calibration gradient to the images; the cross-entropy of each class, the first that is not finite."""
    weight = _scaled(state, problem.settings.calibration_weight)
    loss_C = torch.zeros(problem.classes, device=state.images.device)
    broken_C = torch.zeros_like(loss_C, dtype=torch.int32)
    parts = problem.mask_MP.shape[1]
    for group in class_groups(problem.classes, plan.classes_per_batch):
        logits = _syn_extractor(problem, state, draws, "calibration", group, broken_C)
        for chunk in syn_chunks(problem, plan, group):
            label_N = problem.device_label_C[group.start + chunk.label_N].repeat_interleave(parts)
            part_C = chunk.weight_CN @ F.cross_entropy(logits(chunk).float(), label_N, reduction="none")
            (part_C.sum() * weight).backward()
            loss_C[group.start :][chunk.classes] += part_C.detach()
    return loss_C, _first_wrong(loss_C.isfinite(), broken_C)


def _scaled(state: State, weight: float) -> torch.Tensor:
    """A weight of the loss, by which the gradient is scaled."""
    return state.scaler.scale(torch.full((), weight, device=state.images.device))


def _real_extractor(problem: Problem, draws: Draws, group: range, broken_C: torch.Tensor) -> ncfd.Extract:
    """Features of real images: gathered, normalized, augmented by their class's draw."""
    device = problem.runtime.device
    before = sum(len(index) for index in draws.real_index[: group.start])
    index_N = np.concatenate(draws.real_index[group.start : group.stop])

    def extract(chunk: Chunk) -> torch.Tensor:
        of_all = draws.real_index_N
        rows = index_N[chunk.rows] if of_all is None else of_all[before + chunk.index_N]
        x_NCHW = gather(problem.train_images, rows, device)
        label_N = group.start + chunk.label_N
        drawn = problem.drawn(draws.u_CP["matching"][group.start :][chunk.classes])
        feat_ND = problem.architecture.features(x_NCHW, draws.device_u_CP["matching"][label_N], drawn)
        _note_broken(broken_C, feat_ND, label_N)
        return feat_ND

    return extract


def _syn_extractor(
    problem: Problem, state: State, draws: Draws, phase: str, group: range, broken_C: torch.Tensor
) -> ncfd.Extract:
    """Network output for synthetic images: decoded, normalized, augmented; the backward pass adds to their gradient."""
    s = problem.settings
    shown_NCHW = state.images.detach()[group.start * s.ipc : group.stop * s.ipc]
    if rounds(problem, state):  # the gradient passes through as if they were not
        shown_NCHW = as_stored(shown_NCHW, s.stored_bits, subsampled=s.is_subsampled)
    network = problem.architecture.features if phase == "matching" else problem.architecture.logits
    factors = decode_factors(s.decode, s.factor)
    parts = problem.mask_MP.shape[1]

    def extract(chunk: Chunk) -> torch.Tensor:
        images_NCHW = shown_NCHW[chunk.index_N]

        def add_gradient(leaf: torch.Tensor) -> None:
            assert state.images.grad is not None
            assert leaf.grad is not None
            state.images.grad.index_add_(0, chunk.index_N + group.start * s.ipc, leaf.grad)

        if torch.is_grad_enabled():
            images_NCHW.requires_grad_().register_post_accumulate_grad_hook(add_gradient)
        x_NCHW = decode(images_NCHW, factors).flatten(0, 1)
        label_N = (group.start + chunk.label_N).repeat_interleave(parts)
        drawn = problem.drawn(draws.u_CP[phase][group.start :][chunk.classes])
        out_NX = network(x_NCHW, draws.device_u_CP[phase][label_N], drawn)
        _note_broken(broken_C, out_NX, label_N)
        return out_NX

    return extract


def rounds(problem: Problem, state: State) -> bool:
    """Whether a step sees the images as they are stored, in fewer bytes."""
    s = problem.settings
    return s.is_quantized and state.step >= s.bits_from * s.steps


def _note_broken(broken_C: torch.Tensor, out_NX: torch.Tensor, label_N: torch.Tensor) -> None:
    """Counts each class's images whose output is not finite: stacked, one class's NaN reaches others as 0 * NaN."""
    broken_C.index_add_(0, label_N, (~out_NX.detach().isfinite().all(1)).to(broken_C.dtype))


def _first_wrong(finite_C: torch.Tensor, broken_C: torch.Tensor | None = None) -> torch.Tensor:
    """The first class that is not finite, -1 where all are; among those with broken images where there are any."""
    wrong_C = ~finite_C
    if broken_C is not None:
        wrong_C = torch.where((broken_C > 0).any(), broken_C > 0, wrong_C)
    return torch.where(finite_C.all(), -1, wrong_C.to(torch.int8).argmax())


def take_step(problem: Problem, state: State, *optimizers: torch.optim.Optimizer) -> None:
    """A step of the images, of psi too where its optimizer is given: each is skipped where its gradient overflowed."""
    if problem.shared and state.scaler.is_enabled():  # where it overflows on one rank, it does on all
        assert state.images.grad is not None
        broken = (~state.images.grad.isfinite().all()).to(torch.int32)
        distributed.add(broken)
        state.images.grad.masked_fill_(broken > 0, torch.inf)
    for optimizer in optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    if state.psi_optimizer in optimizers:
        state.psi_optimizer.zero_grad()  # frees the gradients
    with torch.no_grad():
        state.images.clamp_(0, 1)
