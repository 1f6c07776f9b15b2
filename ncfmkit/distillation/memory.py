"""How a step is cut up so that it fits in memory; no cut changes a result."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ncfmkit import augment
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.problem import Architecture, Problem, State, default_budget
from ncfmkit.distillation.rounding import working_bytes
from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes
from ncfmkit.mosaic import decode, decode_factors
from ncfmkit.progress import notice
from ncfmkit.runtime import is_out_of_memory, saved_bytes

# Bytes of a chunk's graph that a device handles best; measured on a CPU (docs/experiments.md), not yet on a GPU.
PREFERRED_CHUNK = {"cpu": 64 * 2**20, "cuda": 2 * 2**30, "mps": 256 * 2**20}
LARGEST_CHUNK = 2048  # images
WORKSPACE = {"cuda": 64 * 2**20}  # bytes that cuBLAS and cuDNN take


@dataclass(kw_only=True)
class Plan:
    """How a step is cut up to fit in memory. It changes no result, and it shrinks if the device runs out."""

    chunk: int  # images that go through the extractor at once
    kept_graphs: int  # chunks whose graph may be in memory at once
    classes_per_batch: int  # classes handled together

    def describe(self) -> str:
        graphs = f"up to {self.kept_graphs} graphs of a chunk"
        stacked = f"{self.classes_per_batch} classes stacked" if self.classes_per_batch > 1 else "one class at a time"
        return f"chunks of {self.chunk} images, {graphs} in memory, {stacked}"


def class_groups(classes: int, classes_per_batch: int) -> Iterator[range]:
    for start in range(0, classes, classes_per_batch):
        yield range(start, min(start + classes_per_batch, classes))


def kept_graphs_of(plan: Plan, chunks: int) -> int:
    """Chunks whose graph is kept: all where they fit, else all graphs but the one that recomputation needs."""
    return chunks if chunks <= plan.kept_graphs else plan.kept_graphs - 1


def real_chunks(problem: Problem, plan: Plan, group: range) -> list[Chunk]:
    key = ("real", group, plan.chunk)
    if key not in problem.chunks:
        counts = problem.real_counts()[group.start : group.stop]
        label_N = np.repeat(np.arange(len(group)), counts)
        weight_NP = (1 / counts[label_N])[:, None]
        problem.chunks[key] = cut(label_N, weight_NP, plan.chunk, problem.runtime.device)
    return problem.chunks[key]


def syn_chunks(problem: Problem, plan: Plan, group: range) -> list[Chunk]:
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
        on_device = (torch.from_numpy(v).to(device) for v in (index, label_N[index], weight_CN))
        index_N, chunk_label_N, chunk_weight_CN = on_device
        chunks.append(Chunk(index, index_N, chunk_label_N, slice(low, high), chunk_weight_CN))
    return chunks


def within_memory(plan: Plan, problem: Problem, state: State, phase: Callable[[], Any]) -> Any:
    """Runs a phase; where the device runs out of memory, halves the chunk and runs it again: the result is the same."""
    while True:
        state.images.grad = None  # before another is made
        state.images.grad = torch.zeros_like(state.images)
        try:
            return phase()
        except Exception as error:
            smallest = problem.mask_MP.shape[1]
            recording = problem.runtime.records and torch.cuda.is_current_stream_capturing()
            if not is_out_of_memory(error) or plan.chunk <= smallest or recording:
                raise
            plan.chunk = max(smallest, plan.chunk // 2)
            plan.classes_per_batch = max(1, plan.classes_per_batch // 2)
            problem.chunks.clear()
            state.recorded.clear()
        if problem.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        notice(f"out of memory: chunks of {plan.chunk} images from now on (slower, same result)")


def make_plan(problem: Problem, state: State, *, budget: int | None, classes_per_batch: int | None = None) -> Plan:
    """The plan that keeps what a step has on the device within `budget` bytes.

    Args:
        budget: for the stored images with gradient and optimizer state, networks, psi, real images on the device, and
            what a step works with; not for torch itself. None: no bound, and 256 MiB to work with on a CPU, half of
            the free memory on a GPU.
        classes_per_batch: classes handled together, at most; none: as memory allows.

    Raises:
        UserError: the budget is below what one stored image needs.
    """
    device = problem.runtime.device
    decoded = problem.mask_MP.shape[1]
    per_image = _bytes_per_image(problem, state)
    kept_per_class = _kept_bytes_per_class(problem)
    fixed = _fixed_bytes(problem, state)
    # one stored image on its way, or what an optimizer's step needs beside images, gradient and moments
    least = max(per_image * decoded + kept_per_class, 2 * state.images.nbytes)
    if budget is not None and budget < fixed + least:
        raise UserError(
            f"--memory-budget {format_bytes(budget)} is below what one stored image needs: "
            f"at least {math.ceil((fixed + least) / 2**20)}MiB"
        )
    working = max(least, default_budget(problem.runtime)) if budget is None else budget - fixed
    fitting = problem.classes if not kept_per_class else working // 2 // kept_per_class
    together = max(1, min(classes_per_batch or problem.classes, fitting, problem.classes))
    graphs = max(per_image * decoded, working - together * kept_per_class)
    best = min(LARGEST_CHUNK, PREFERRED_CHUNK[device.type] // per_image)
    chunk = max(decoded, min(best, graphs // per_image))
    return Plan(chunk=chunk, kept_graphs=max(1, graphs // (per_image * chunk)), classes_per_batch=together)


def planned_bytes(problem: Problem, state: State, plan: Plan) -> int:
    """Bytes that a step has on the device at its peak, by the plan; torch itself comes on top of them."""
    groups = list(class_groups(problem.classes, plan.classes_per_batch))
    graphs = min(plan.kept_graphs, max(len(syn_chunks(problem, plan, group)) for group in groups))
    kept = plan.classes_per_batch * _kept_bytes_per_class(problem)
    return _fixed_bytes(problem, state) + kept + graphs * plan.chunk * _bytes_per_image(problem, state)


def _kept_bytes_per_class(problem: Problem) -> int:
    """Bytes of features and phases of a class's real images, which a sampler that learns keeps until the step ends."""
    s = problem.settings
    return s.real_batch * (problem.architecture.feature_dim + 2 * s.frequencies) * 4 if s.sampler == "learned" else 0


def _fixed_bytes(problem: Problem, state: State) -> int:
    """Bytes on the device that no chunking changes: images, networks, psi, frequencies, characteristic functions."""
    s = problem.settings
    fixed = state.images.nbytes * (4 if s.optimizer == "adamw" else 3)  # with gradient and moments
    fixed += 0 if state.average is None else state.average.nbytes
    if s.is_quantized:
        channels, *sides = state.images.shape[1:]
        fixed += working_bytes(channels * len(state.images), math.prod(sides))
    fixed += WORKSPACE.get(problem.runtime.device.type, 0) + problem.pool_bytes
    for of in problem.architectures:
        fixed += sum(p.nbytes for network in (of.matcher, of.calibrator) for p in network.parameters())
    if isinstance(problem.train_images, torch.Tensor):
        fixed += problem.train_images.nbytes
    if problem.metric.uses_frequencies:
        fixed += 4 * 2 * problem.classes * s.frequencies * 4
        # learned: frequencies, their normal draws, scales, gradient, and another of each chunk before it is added
        widest = max(of.feature_dim for of in problem.architectures)
        fixed += s.frequencies * widest * 4 * (6 if s.sampler == "learned" else 1)
    if state.psi is not None:
        fixed += 3 * sum(p.nbytes for p in state.psi.parameters())  # with gradient and momentum
    return fixed


def _bytes_per_image(problem: Problem, state: State) -> int:
    """Bytes that one decoded image needs on its way through the largest extractor and back, measured uncompiled."""
    return max(_bytes_of(architecture, problem, state) for architecture in problem.architectures)


def _bytes_of(architecture: Architecture, problem: Problem, state: State) -> int:
    mask_MP = problem.mask_MP
    probe = torch.rand(1, *state.images.shape[1:], device=state.images.device).requires_grad_()
    u_NP = torch.full((mask_MP.shape[1], augment.DRAWS), 0.5)
    drawn = problem.drawn(u_NP)
    factors = decode_factors(problem.settings.decode, problem.settings.factor)

    def run() -> torch.Tensor:
        return architecture.features(decode(probe, factors).flatten(0, 1), u_NP.to(probe.device), drawn, plain=True)

    weights = sum(p.nbytes for p in architecture.matcher.parameters())
    graph = max(0, saved_bytes(run) - weights)
    phases = 4 * 4 * problem.settings.frequencies if problem.metric.uses_frequencies else 0
    return math.ceil(1.5 * graph / mask_MP.shape[1]) + phases
