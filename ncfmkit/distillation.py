"""The minmax loop: synthetic images are moved to match the real ones at frequencies chosen to tell them apart.

`distill_step` is METHOD section 5 line by line. Classes are independent problems but for what a step shares (the
extractor, the calibration network, the frequencies), so they are stacked along the batch axis: one optimiser over the
stacked images is one optimiser per class, because AdamW and SGD act on every element alone and every class is stepped
exactly once.
Axes: C classes, M stored images per class, N stacked images, P decoded images per stored image, T frequencies.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit import augment, frequencies, ncfd
from ncfmkit.config import DistillSettings
from ncfmkit.draws import keyed_rng, torch_generator
from ncfmkit.errors import NonFiniteLossError, UserError
from ncfmkit.extractors import Pool
from ncfmkit.ncfd import Chunk
from ncfmkit.networks import Classifier
from ncfmkit.networks.convnet import ConvNet
from ncfmkit.progress import notice
from ncfmkit.real import RealData
from ncfmkit.runtime import Runtime, is_out_of_memory, saved_bytes
from ncfmkit.sizes import format_bytes
from ncfmkit.synthetic import decode, decode_factors, decode_mask
from ncfmkit.training import channel_tensors, gather, normalise

# Bytes of a chunk's graph that a device handles best; measured on a CPU (docs/experiments.md), not yet on a GPU.
PREFERRED_CHUNK = {"cpu": 64 * 2**20, "cuda": 2 * 2**30, "mps": 256 * 2**20}
DEFAULT_WORKING = 256 * 2**20  # bytes that a step works with on a CPU, beyond what it keeps
LARGEST_CHUNK = 2048  # images


@dataclass(kw_only=True)
class Plan:
    """How a step is cut up to fit in memory. It changes no result, and it shrinks if the device runs out."""

    chunk: int  # images that go through the extractor at once
    slots: int  # chunks whose graph may be in memory at once
    stack: int  # classes handled together


class Network:
    """A network behind normalisation and augmentation, both compiled where the runtime compiles.

    They are compiled one by one, because torch does not cache the traces of a region that switches autocast itself.
    """

    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], real: RealData, strategy: str, runtime: Runtime
    ):
        self._operations = augment.parse_strategy(strategy)
        mean, std = channel_tensors(real.mean, real.std, runtime.device)

        def prepare(x_NCHW: torch.Tensor, u_NP: torch.Tensor, drawn: tuple[str, ...]) -> torch.Tensor:
            return augment.apply(normalise(x_NCHW, mean, std), self._operations, drawn, u_NP)

        self._autocast = runtime.autocast
        self._plain = prepare, network
        self._compiled = runtime.compiled(prepare), runtime.compiled(network)

    def __call__(self, x_NCHW: torch.Tensor, u_NP: np.ndarray, *, plain: bool = False) -> torch.Tensor:
        """The output for uint8 images, or floats in [0, 1], each augmented by its row of uniform numbers."""
        prepare, network = self._plain if plain else self._compiled
        rows = torch.from_numpy(u_NP)
        x_NCHW = prepare(x_NCHW, rows.to(x_NCHW.device), augment.drawn(self._operations, rows))
        with self._autocast():
            return network(x_NCHW)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every step reads and none changes, but for the weights that are blended into the two networks."""

    real: RealData
    settings: DistillSettings
    seed: int
    pool: Pool
    runtime: Runtime
    metric: ncfd.Metric
    matcher: Classifier  # the matching extractor
    calibrator: Classifier
    features: Network  # of the matcher
    logits: Network  # of the calibrator
    feature_dim: int  # D
    mask_MP: np.ndarray
    train_images: np.ndarray | torch.Tensor  # uint8 [N, ch, H, W], as `real` has them or on the device
    chunks: dict[tuple, list[Chunk]] = field(default_factory=dict)  # they are the same at every step

    @property
    def classes(self) -> int:
        return len(self.real.classes)


@dataclass(kw_only=True)
class State:
    """What a step changes, and a checkpoint holds."""

    images: torch.Tensor  # float32 leaf [C*M, ch, H, W] in [0, 1]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    psi: frequencies.SamplingNetwork | None
    psi_optimizer: torch.optim.Optimizer | None
    step: int = 0

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        if self.psi is not None:
            parts |= {"psi": self.psi, "psi_optimizer": self.psi_optimizer}
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values. Random draws need no state: they are keyed by the step."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "images": self.images.detach(), **states}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.step = stored["step"]
        with torch.no_grad():
            self.images.copy_(stored["images"])
        for name, part in self._parts().items():
            part.load_state_dict(stored[name])


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    matching: float  # weighted, mean over classes
    calibration: float | None  # cross-entropy, mean over classes
    lr: float


def make_problem(
    real: RealData,
    settings: DistillSettings,
    *,
    seed: int,
    pool: Pool,
    build: Callable[[], Classifier],
    runtime: Runtime,
    budget: int | None = None,
    gradient_checkpointing: bool = False,
) -> Problem:
    """Checks the settings against the data and prepares the two networks.

    Args:
        budget: as of :func:`make_plan`; real images that take at most a quarter of it are kept on a GPU.

    Raises:
        UserError: the factor is above the side, or the network cannot be checkpointed.
    """
    if settings.factor > real.size:
        raise UserError(f"--factor {settings.factor} is above the image side of {real.name}, {real.size}: lower it")
    matcher, calibrator = (build().to(runtime.device).requires_grad_(False) for _ in range(2))
    probe = torch.zeros(2, real.channels, real.size, real.size, device=runtime.device)
    features = checkpointed_features(matcher) if gradient_checkpointing else matcher.features
    return Problem(
        real=real,
        settings=settings,
        seed=seed,
        pool=pool,
        runtime=runtime,
        metric=ncfd.metric(settings.metric, alpha=settings.alpha),
        matcher=matcher,
        calibrator=calibrator,
        features=Network(features, real, settings.augment, runtime),
        logits=Network(calibrator, real, settings.augment, runtime),
        feature_dim=matcher.features(probe).shape[1],
        mask_MP=decode_mask(settings.decode, settings.factor, settings.ipc, settings.decoded_budget),
        train_images=_train_images(real, runtime, budget),
    )


def _train_images(real: RealData, runtime: Runtime, budget: int | None) -> np.ndarray | torch.Tensor:
    images = real.train.images
    allowed = _default_budget(runtime) if budget is None else budget
    if runtime.device.type != "cuda" or images.nbytes > allowed // 4:
        return images
    return torch.tensor(images, device=runtime.device)  # torch.from_numpy warns of what is read-only


def checkpointed_features(network: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's features with each block recomputed in the backward pass, which keeps only the blocks' inputs."""
    from torch.utils.checkpoint import checkpoint_sequential

    if not isinstance(network, ConvNet):
        raise UserError("--gradient-checkpointing works with networks made of blocks: use --network convnet")
    blocks, head = network.blocks, network.features

    def features(x_NCHW: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return head(x_NCHW)
        segments = max(1, len(blocks) // 4)
        return checkpoint_sequential(blocks, segments, network.padded(x_NCHW), use_reentrant=False).flatten(1)

    return features


def make_state(problem: Problem, images_NCHW: torch.Tensor) -> State:
    """The state before the first step, from initial images in [0, 1]."""
    s, device = problem.settings, problem.runtime.device
    images = images_NCHW.to(device).clone().requires_grad_()
    if s.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([images], lr=s.lr, weight_decay=s.weight_decay)
    else:
        optimizer = torch.optim.SGD([images], lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
    psi = psi_optimizer = None
    if s.sampler == "learned":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_rng(problem.seed, "psi").integers(2**62)))
            psi = frequencies.SamplingNetwork(problem.feature_dim).to(device)
        psi_optimizer = torch.optim.SGD(psi.parameters(), lr=s.sampler_lr, momentum=s.sampler_momentum, maximize=True)
    scaler = problem.runtime.scaler(init_scale=2.0**8)  # the matching weight scales the gradient as well
    scaler.scale(images.new_zeros(()))  # makes its scale, which a step reads without ever calling scale()
    return State(
        images=images,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=s.patience),
        scaler=scaler,
        psi=psi,
        psi_optimizer=psi_optimizer,
    )


# ---- one step ---------------------------------------------------------------------------------------------------


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
    """One step of every class: match, ascend psi, calibrate (METHOD section 5).

    Raises:
        NonFiniteLossError: with the class and the step; the images are as the loss found them.
    """
    s = problem.settings
    shared = keyed_rng(problem.seed, "step", state.step)
    member, final_member = shared.integers(len(problem.pool), size=2).tolist()
    beta = shared.random()
    problem.pool.blend(problem.matcher, member, beta)
    problem.pool.load_final(problem.calibrator, final_member)
    draws = [draw_class(problem, state.step, c) for c in range(problem.classes)]
    freq_TD = _draw_frequencies(problem, state)

    def match(stack: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _match(problem, state, plan, draws, freq_TD, stack)

    def calibrate(stack: int) -> torch.Tensor:
        return _calibrate(problem, state, plan, draws, stack)

    matching_C, freq_grad = _within_memory(plan, problem, state, lambda: match(plan.stack))
    _check_finite(problem, state, "matching", matching_C, lambda: match(1)[0])
    _image_step(state)
    if state.psi_optimizer is not None:
        assert freq_TD is not None
        assert freq_grad is not None
        freq_TD.backward(freq_grad / problem.classes)
        state.psi_optimizer.step()
        state.psi_optimizer.zero_grad()  # frees the gradients

    loss = matching = s.matching_weight * float(matching_C.mean())
    calibration = None
    if s.calibration_weight > 0:
        calibration_C = _within_memory(plan, problem, state, lambda: calibrate(problem.classes))
        _check_finite(problem, state, "calibration", calibration_C, lambda: calibrate(1))
        _image_step(state)
        calibration = float(calibration_C.mean())
        loss += s.calibration_weight * calibration
    _check_images(problem, state)

    lr = state.optimizer.param_groups[0]["lr"]
    state.scheduler.step(loss)
    state.step += 1
    return StepLosses(matching=matching, calibration=calibration, lr=lr)


def _draw_frequencies(problem: Problem, state: State) -> torch.Tensor | None:
    if not problem.metric.uses_frequencies:
        return None
    generator = torch_generator(problem.runtime.device, problem.seed, "frequencies", state.step)
    count = problem.settings.frequencies
    if state.psi is not None:
        return state.psi(count, generator)
    return frequencies.gaussian(count, problem.feature_dim, generator)


def _match(
    problem: Problem, state: State, plan: Plan, draws: list[ClassDraws], freq_TD: torch.Tensor | None, stack: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Adds the matching gradient to the images; the NCFD of each class, and its gradient to the frequencies."""
    learned = state.psi is not None
    freq_leaf = None if freq_TD is None else freq_TD.detach().requires_grad_(learned)
    losses: list[torch.Tensor] = []
    weight = problem.settings.matching_weight * state.scaler.get_scale()
    for group in _groups(problem.classes, stack):
        real_chunks, syn_chunks = _real_chunks(problem, plan, group), _syn_chunks(problem, plan, group)
        real = _real_extractor(problem, draws, group)
        real_stat, real_parts = ncfd.streamed_statistic(problem.metric, real, real_chunks, freq_leaf)
        u_CP = np.stack([draws[c].matching_P for c in group])
        loss_C, real_grad = ncfd.streamed_backward(
            problem.metric,
            _syn_extractor(problem, state, group, u_CP, problem.features),
            syn_chunks,
            freq_leaf,
            real_stat,
            weight=weight,
            retain=_retain(plan, len(syn_chunks)),
        )
        losses.append(loss_C)
        if learned:
            for part, chunk in zip(real_parts, real_chunks, strict=True):
                part.backward(real_grad[:, chunk.classes])
    freq_grad = None if freq_leaf is None or freq_leaf.grad is None else freq_leaf.grad / weight
    return torch.cat(losses), freq_grad


def _calibrate(problem: Problem, state: State, plan: Plan, draws: list[ClassDraws], stack: int) -> torch.Tensor:
    """Adds the calibration gradient to the images; the cross-entropy of each class."""
    weight = problem.settings.calibration_weight * state.scaler.get_scale()
    loss_C = torch.zeros(problem.classes, device=state.images.device)
    for group in _groups(problem.classes, stack):
        u_CP = np.stack([draws[c].calibration_P for c in group])
        logits = _syn_extractor(problem, state, group, u_CP, problem.logits)
        for chunk in _syn_chunks(problem, plan, group):
            run = slice(group.start + chunk.classes.start, group.start + chunk.classes.stop)
            labels_N = torch.arange(run.start, run.stop, device=state.images.device)
            label_N = labels_N[(chunk.weight_CN > 0).to(torch.int8).argmax(0)]
            part_C = chunk.weight_CN @ F.cross_entropy(logits(chunk).float(), label_N, reduction="none")
            (part_C.sum() * weight).backward()
            loss_C[run] += part_C.detach()
    return loss_C


def _real_extractor(problem: Problem, draws: list[ClassDraws], group: range) -> ncfd.Extract:
    """Features of real images: gathered, normalised, augmented by their class's draw."""
    index_N = np.concatenate([draws[c].real_index for c in group])
    u_NP = np.concatenate([np.tile(draws[c].matching_P, (len(draws[c].real_index), 1)) for c in group])

    def extract(chunk: Chunk) -> torch.Tensor:
        rows = chunk.index_N.numpy()
        x_NCHW = gather(problem.train_images, index_N[rows], problem.runtime.device)
        return problem.features(x_NCHW, u_NP[rows])

    return extract


def _syn_extractor(problem: Problem, state: State, group: range, u_CP: np.ndarray, network: Network) -> ncfd.Extract:
    """Network output for synthetic images: decoded, normalised, augmented; the backward pass adds to their gradient."""
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


def _image_step(state: State) -> None:
    state.scaler.step(state.optimizer)
    state.scaler.update()
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


# ---- how a step is cut up ---------------------------------------------------------------------------------------


def _groups(classes: int, stack: int) -> Iterator[range]:
    for start in range(0, classes, stack):
        yield range(start, min(start + stack, classes))


def _retain(plan: Plan, chunks: int) -> int:
    """Chunks whose graph is kept: all where they fit, else all slots but the one that recomputation needs."""
    return chunks if chunks <= plan.slots else plan.slots - 1


def _real_chunks(problem: Problem, plan: Plan, group: range) -> list[Chunk]:
    key = ("real", group, plan.chunk)
    if key not in problem.chunks:
        counts = np.minimum(problem.real.train.counts()[group.start : group.stop], problem.settings.real_batch)
        label_N = np.repeat(np.arange(len(group)), counts)
        weight_NP = (1 / counts[label_N])[:, None]
        problem.chunks[key] = cut(label_N, weight_NP, plan.chunk, problem.runtime.device)
    return problem.chunks[key]


def _syn_chunks(problem: Problem, plan: Plan, group: range) -> list[Chunk]:
    key = ("synthetic", group, plan.chunk)
    if key not in problem.chunks:
        mask_MP = problem.mask_MP
        label_N = np.repeat(np.arange(len(group)), len(mask_MP))
        weight_NP = np.tile(mask_MP / mask_MP.sum(), (len(group), 1))
        problem.chunks[key] = cut(label_N, weight_NP, plan.chunk // mask_MP.shape[1], problem.runtime.device)
    return problem.chunks[key]


def cut(label_N: np.ndarray, weight_NP: np.ndarray, size: int, device: torch.device) -> list[Chunk]:
    """A stack, sorted by label, cut into equally long chunks of at most `size` images (at least one).

    Args:
        label_N: the class of each stacked image, from 0.
        weight_NP: the share in its class's mean of each of the P images that the extractor makes of a stacked one.
    """
    total, columns = weight_NP.shape
    length = math.ceil(total / math.ceil(total / max(1, size)))
    chunks = []
    for start in range(0, total, length):
        position = np.arange(start, start + length)
        index, real = np.minimum(position, total - 1), position < total
        low, high = label_N[index[0]], label_N[index[-1]] + 1
        weight_CN = np.zeros((high - low, length * columns), dtype=np.float32)
        row = np.repeat(label_N[index] - low, columns)
        weight_CN[row, np.arange(length * columns)] = (weight_NP[index] * real[:, None]).ravel()
        chunks.append(Chunk(torch.from_numpy(index), slice(low, high), torch.from_numpy(weight_CN).to(device)))
    return chunks


def _within_memory(plan: Plan, problem: Problem, state: State, phase: Callable[[], Any]) -> Any:
    """Runs a phase; where the device runs out of memory, halves the chunk and runs it again: the result is the same."""
    while True:
        state.images.grad = None  # before another is made
        state.images.grad = torch.zeros_like(state.images)
        try:
            return phase()
        except Exception as error:
            smallest = problem.mask_MP.shape[1]
            if not is_out_of_memory(error) or plan.chunk <= smallest:
                raise
            plan.chunk = max(smallest, plan.chunk // 2)
            plan.stack = max(1, plan.stack // 2)
            problem.chunks.clear()
        if problem.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        notice(f"out of memory: chunks of {plan.chunk} images from now on (slower, same result)")


# ---- memory -----------------------------------------------------------------------------------------------------


def make_plan(problem: Problem, state: State, *, budget: int | None, stack: int | None = None) -> Plan:
    """Chunk, slots and stack that keep what a step has on the device within `budget` bytes.

    Args:
        budget: for the stored images with gradient and optimiser state, networks, psi, real images on the device, and
            what a step works with; not for torch itself. None: no bound, and 256 MiB to work with on a CPU, half of
            the free memory on a GPU.
        stack: classes handled together, at most; none: as memory allows.

    Raises:
        UserError: the budget is below what one stored image needs.
    """
    s, device = problem.settings, problem.runtime.device
    decoded = problem.mask_MP.shape[1]
    per_image = _bytes_per_image(problem, state)
    kept_per_real = (problem.feature_dim + 2 * s.frequencies) * 4 if s.sampler == "learned" else 0
    kept_per_class = s.real_batch * kept_per_real
    fixed = _fixed_bytes(problem, state)
    # one stored image on its way, or what an optimiser's step needs beside images, gradient and moments
    least = max(per_image * decoded + kept_per_class, 2 * state.images.nbytes)
    if budget is not None and budget < fixed + least:
        raise UserError(
            f"--memory-budget {format_bytes(budget)} is below what one stored image needs: "
            f"at least {math.ceil((fixed + least) / 2**20)}MiB"
        )
    working = max(least, _default_budget(problem.runtime)) if budget is None else budget - fixed
    fitting = problem.classes if not kept_per_class else working // 2 // kept_per_class
    stack = max(1, min(problem.classes if stack is None else stack, fitting, problem.classes))
    graphs = max(per_image * decoded, working - stack * kept_per_class)
    best = min(LARGEST_CHUNK, PREFERRED_CHUNK[device.type] // per_image)
    chunk = max(decoded, min(best, graphs // per_image))
    return Plan(chunk=chunk, slots=max(1, graphs // (per_image * chunk)), stack=stack)


def _default_budget(runtime: Runtime) -> int:
    """Bytes for a step to work with where nothing is said: half of a GPU's free memory, 256 MiB on a CPU."""
    return torch.cuda.mem_get_info(runtime.device)[0] // 2 if runtime.device.type == "cuda" else DEFAULT_WORKING


def _fixed_bytes(problem: Problem, state: State) -> int:
    """Bytes on the device that no chunking changes: images, networks, psi, frequencies, characteristic functions."""
    s = problem.settings
    fixed = state.images.nbytes * (4 if s.optimizer == "adamw" else 3)  # with gradient and moments
    fixed += sum(p.nbytes for network in (problem.matcher, problem.calibrator) for p in network.parameters())
    if isinstance(problem.train_images, torch.Tensor):
        fixed += problem.train_images.nbytes
    if problem.metric.uses_frequencies:
        fixed += 4 * 2 * problem.classes * s.frequencies * 4
        # learned: frequencies, their normal draws, scales, gradient, and another of each chunk before it is added
        fixed += s.frequencies * problem.feature_dim * 4 * (6 if s.sampler == "learned" else 1)
    if state.psi is not None:
        fixed += 3 * sum(p.nbytes for p in state.psi.parameters())  # with gradient and momentum
    return fixed


def _bytes_per_image(problem: Problem, state: State) -> int:
    """Bytes that one decoded image needs on its way through the extractor and back, measured uncompiled."""
    mask_MP = problem.mask_MP
    probe = torch.rand(1, *state.images.shape[1:], device=state.images.device).requires_grad_()
    u_NP = np.full((mask_MP.shape[1], augment.DRAWS), 0.5, dtype=np.float32)
    factors = decode_factors(problem.settings.decode, problem.settings.factor)

    def run() -> torch.Tensor:
        return problem.features(decode(probe, factors).flatten(0, 1), u_NP, plain=True)

    weights = sum(p.nbytes for p in problem.matcher.parameters())
    graph = max(0, saved_bytes(run) - weights)
    phases = 4 * 4 * problem.settings.frequencies if problem.metric.uses_frequencies else 0
    return math.ceil(1.5 * graph / mask_MP.shape[1]) + phases
