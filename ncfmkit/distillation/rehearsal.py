"""What the steps will cost in time and memory: a few are made on an untrained extractor, and thrown away.

Draws are keyed and the state is the rehearsal's own, so a run ends with the same bytes with it or without.
"""

import dataclasses
from collections.abc import Callable

import torch

from ncfmkit.distillation.memory import Plan, class_groups, real_chunks, syn_chunks
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Architecture, Problem, make_state
from ncfmkit.distillation.step import distill_step
from ncfmkit.estimate import seconds_per_call
from ncfmkit.recorded import Recorded

WHOLE_STEP = 3.0  # seconds; a longer one is reckoned from parts of it
PART = 4  # chunks of a part that is compared with a single one


def step_seconds(problem: Problem, images_NCHW: torch.Tensor, plan: Plan) -> float:
    """Seconds of one step, at the real shapes; the mean over the architectures.

    A long step is not made as a whole: real and synthetic images go through in equal chunks, so its time is reckoned
    from steps with one chunk of either kind and with a few.

    Args:
        problem: with any pool, an empty one too.
        images_NCHW: initial images, as of :func:`ncfmkit.distillation.problem.make_state`.
        plan: it is not changed.
    """
    each = [_seconds_with(problem, architecture, images_NCHW, plan) for architecture in problem.architectures]
    return sum(each) / len(each)


def _seconds_with(problem: Problem, architecture: Architecture, images_NCHW: torch.Tensor, plan: Plan) -> float:
    weights = {name: p.detach().clone() for name, p in architecture.matcher.named_parameters()}
    pool = dataclasses.replace(Pool.empty(), stages=[[weights, weights]])
    settings = dataclasses.replace(problem.settings, bits_from=0.0)  # what takes longest
    problem = dataclasses.replace(
        problem, settings=settings, pool=pool, architectures=(architecture,), chunks={}, shared=False
    )
    groups = list(class_groups(problem.classes, plan.classes_per_batch))
    real = {("real", g, plan.chunk): real_chunks(problem, plan, g) for g in groups}
    synthetic = {("synthetic", g, plan.chunk): syn_chunks(problem, plan, g) for g in groups}
    state = make_state(problem, images_NCHW)
    first_NCHW = state.images.detach().clone()

    def seconds(most_real: int, most_synthetic: int) -> float:
        chunks = {key: _ends(of, most_real) for key, of in real.items()}
        chunks |= {key: _ends(of, most_synthetic) for key, of in synthetic.items()}
        part = dataclasses.replace(problem, chunks=chunks)
        recomputed = max(map(len, synthetic.values())) > plan.kept_graphs
        cut = dataclasses.replace(plan, kept_graphs=1 if recomputed else plan.kept_graphs)

        def step() -> None:
            distill_step(part, state, cut)
            with torch.no_grad():
                state.images.copy_(first_NCHW)  # each step is a first one: none can diverge

        runtime = problem.runtime
        uncounted = Recorded.PLAIN_CALLS if runtime.records else 0
        try:
            return seconds_per_call(step, runtime.device, compiled=runtime.compile, uncounted=uncounted)
        finally:
            state.recorded.clear()  # the next one has other chunks

    def rest(of: dict[tuple, list[Chunk]], made: int, with_one: float, more: Callable[[], float]) -> float:
        """Seconds of the chunks that a step with one of each list leaves out."""
        left = _count(of, None) - _count(of, 1)
        return max(0.0, more() - with_one) / (_count(of, made) - _count(of, 1)) * left if left else 0.0

    one = seconds(1, 1)
    if one * (_count(real, None) + _count(synthetic, None)) / (_count(real, 1) + _count(synthetic, 1)) < WHOLE_STEP:
        most = max(len(of) for of in (real | synthetic).values())
        return seconds(most, most)
    return one + rest(real, PART, one, lambda: seconds(PART, 1)) + rest(synthetic, PART, one, lambda: seconds(1, PART))


def _ends(chunks: list[Chunk], most: int) -> list[Chunk]:
    """At most so many, the last among them: it says how many classes there are."""
    return chunks if len(chunks) <= most else [*chunks[: most - 1], chunks[-1]]


def _count(lists: dict[tuple, list[Chunk]], most: int | None) -> int:
    return sum(len(chunks) if most is None else min(len(chunks), most) for chunks in lists.values())
