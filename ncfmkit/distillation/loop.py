"""The loop: from initial images to the last step, with metrics, checkpoints and resuming (docs/method.md, section 5).

Each step draws an extractor between its initial and its trained weights, moves the images of every class to match the
real ones at frequencies that tell them apart, and calibrates them by the trained network: :func:`distill_step`.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Protocol

import numpy as np
import torch

from ncfmkit import distributed
from ncfmkit.config import Settings
from ncfmkit.distillation.difficulty import easiest_images
from ncfmkit.distillation.memory import Plan, make_plan
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.problem import Problem, State, StepReport, make_problem, make_state, read
from ncfmkit.distillation.rehearsal import step_seconds
from ncfmkit.distillation.shares import image_rows, joined, on_cpu, share_of
from ncfmkit.distillation.step import distill_step
from ncfmkit.distillation.worth import by_worth
from ncfmkit.errors import Interrupted
from ncfmkit.estimate import Stage
from ncfmkit.files import format_bytes, parse_bytes
from ncfmkit.networks import network_builder
from ncfmkit.progress import notice, track
from ncfmkit.real.store import RealData
from ncfmkit.run import RunDirectory, deferred_interrupts
from ncfmkit.run_records import MetricsRow, Timings
from ncfmkit.runtime import Runtime, device_failures, device_name

TITLE = "distilling"
LOGGED_STEPS = 1000  # lines of metrics.jsonl, at most about
READ_EVERY = {"cuda": 1.0}  # seconds, by device, of whose steps the losses are read together; others read each step

Callback = Callable[[MetricsRow], object]


class Board(Protocol):
    """Where a run is shown beside metrics.jsonl, such as :class:`ncfmkit.reports.event_log.EventLog`."""

    def add_row(self, row: MetricsRow) -> None: ...
    def add_images(self, images_NCHW: np.ndarray, step: int) -> None: ...
    def close(self) -> None: ...


def prepare(
    real: RealData,
    settings: Settings,
    pool: Pool,
    images_NCHW: torch.Tensor,
    runtime: Runtime,
    *,
    easiest: list[np.ndarray] | None = None,
) -> tuple[Problem, State, Plan]:
    """All that a step takes, before the first one.

    With an empty pool it is a rehearsal: what would fail after hours of training extractors fails at once.

    Args:
        images_NCHW: initial images, float32 in [0, 1] `[C*M, ch, H, W]`.
        easiest: positions in the train split that steps draw each class from; None: all.

    Raises:
        UserError: network, factor or memory budget do not fit the data.
    """
    budget = _budget(settings)
    builds = [network_builder(network, real) for network in settings.extractors]
    problem = make_problem(
        real,
        settings.distill,
        seed=settings.seed,
        pool=pool,
        builds=builds,
        runtime=runtime,
        members=settings.pool.members,
        snapshots=settings.pool.snapshots,
        easiest=easiest,
        budget=budget,
        gradient_checkpointing=settings.runtime.gradient_checkpointing,
    )
    state = make_state(problem, images_NCHW)
    plan = make_plan(problem, state, budget=budget, classes_per_batch=settings.runtime.classes_per_batch)
    return problem, state, plan


def estimate_steps(problem: Problem, images_NCHW: torch.Tensor, plan: Plan, *, steps: int) -> Stage:
    """So many steps, one or more.

    Args:
        problem, plan: as of :func:`prepare`, with any pool.
    """
    return Stage(name=TITLE, work=f"{steps:,} steps", seconds=steps * step_seconds(problem, images_NCHW, plan))


def distill(
    run: RunDirectory,
    real: RealData,
    settings: Settings,
    pool: Pool,
    images_NCHW: torch.Tensor,
    runtime: Runtime,
    *,
    open_board: Callable[[int], Board] | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Distills the real images into the synthetic ones; continues from the run's newest checkpoint, if it has one.

    Args:
        run: where losses and checkpoints are kept.
        images_NCHW: initial images, float32 in [0, 1] `[C*M, ch, H, W]`, sorted by class.
        open_board: given the steps that are done, what else shows the rows of metrics.jsonl, and the images at
            checkpoints.
        callback: called with each row of metrics.jsonl. What it raises ends the run, once the state is saved.

    Returns:
        The images after the last step, of all ranks, float32 in [0, 1] `[C*M, ch, H, W]`; those of a class in the order
        of worth, but for a shard, whose checkpoint is what counts.

    Raises:
        NonFiniteLossError: with the class and the step; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; the state is saved first.
    """
    steps, share = settings.distill.steps, settings.distill.easiest
    stored = distributed.from_first(run.load_checkpoint)
    easiest = None
    if share < 1 and (stored is None or stored["step"] < steps):
        builds = [network_builder(network, real) for network in settings.extractors]
        easiest = easiest_images(real, builds, pool, share, runtime)
    problem, state, plan = prepare(real, settings, pool, images_NCHW, runtime, easiest=easiest)
    rows = image_rows(problem.shares, settings.distill.ipc)

    # Resume: random draws are keyed by the step, so the state is all that an interrupted run needs.
    if stored is not None:
        state.load_state_dict(share_of(stored, rows[distributed.rank()]))
        plans = stored.get("plans", [stored["plan"]])
        if stored.get("device") == device_name(runtime.device) and len(plans) == distributed.world():
            plan = Plan(**plans[distributed.rank()])  # the same cuts give the same bytes
        del stored
        notice(f"resuming after step {state.step} of {steps}")
    logged = run.cut_metrics(state.step)
    spent = logged[-1].seconds if logged else 0.0
    if state.step < steps:
        budget = _budget(settings)
        notice(f"memory: {f'budget {format_bytes(budget)}' if budget else 'default budget'}; {plan.describe()}")
    run.update(status="distilling")

    saved = state.step

    def save() -> torch.Tensor | None:
        """Saves the state of all ranks; what a set of it would hold, on the first."""
        nonlocal saved
        mine = state.state_dict() | {"plan": dataclasses.asdict(plan)}
        parts = distributed.gathered_by_first(mine if distributed.world() == 1 else on_cpu(mine))
        whole = None if parts is None else joined(parts, rows)
        with distributed.agreed():
            if parts is not None and whole is not None:
                plans = [part["plan"] for part in parts]
                run.save_checkpoint(whole | {"plans": plans, "device": device_name(runtime.device)})
        saved = state.step
        return None if whole is None else whole.get("average", whole["images"])

    log_every = max(1, math.ceil(steps / LOGGED_STEPS))
    start = time.monotonic() - spent
    with ExitStack() as stack:
        stack.callback(state.recorded.clear)  # they know the state, which knows them: both would stay
        signaled = stack.enter_context(deferred_interrupts())
        bar = stack.enter_context(track(TITLE, steps, done=state.step))
        stack.enter_context(
            device_failures(
                lambda: (
                    f"the state after step {saved} of {steps} is kept: continue with --resume {run.path}"
                    if saved
                    else "no step was saved yet: start again"
                )
            )
        )
        board = open_board(state.step) if open_board and state.step < steps else None
        if board is not None:
            stack.callback(board.close)
        reports: list[StepReport] = []
        while state.step < steps:
            reports.append(distill_step(problem, state, plan))
            # a GPU is waited for once a second; what a checkpoint holds is known to be finite
            due = time.monotonic() - start >= spent + READ_EVERY.get(runtime.device.type, 0)
            stop, due = distributed.any_of(signaled(), due)
            saves = state.step % settings.runtime.checkpoint_every == 0 or state.step == steps or stop
            if not saves and not due:
                continue
            losses, read_before, spent = read(problem, reports), spent, time.monotonic() - start
            logs = [
                MetricsRow(step=report.step + 1, **dataclasses.asdict(of_step), seconds=float(seconds))
                for report, of_step, seconds in zip(
                    reports, losses, np.linspace(read_before, spent, len(reports) + 1)[1:], strict=True
                )
            ]
            reports = []
            logs_due = [row for row in logs if row.step % log_every == 0 or row.step == steps]
            with distributed.agreed() if logs_due else nullcontext():
                for row in logs_due:
                    run.append_metrics(row)
                    if board is not None:
                        board.add_row(row)
            if saves:
                result = save()
                if board is not None and result is not None:
                    board.add_images(_as_bytes(result), state.step)
            for row in logs_due:
                try:
                    if callback is not None:
                        callback(row)
                except BaseException as error:
                    save()
                    error.add_note(
                        f"raised by the callback after step {row.step} of {steps}; the state is saved: "
                        f"continue with ncfmkit.resume({str(run.path)!r})"
                    )
                    raise
            newest = losses[-1]
            calibration = "" if newest.calibration is None else f", calibration {newest.calibration:.3f}"
            bar.advance(len(logs), note=f"matching {newest.matching:.2f}{calibration}")
            if stop:
                raise Interrupted(f"saved after step {state.step} of {steps}: continue with --resume {run.path}")

    run.update(timings=Timings(distill_seconds=round(spent, 2), steps=steps))
    result = state.result
    if settings.distill.shard is None:
        result = by_worth(problem, result, chunk=plan.chunk)
    return _whole(result, rows)


def _whole(images_NCHW: torch.Tensor, rows: list[np.ndarray]) -> torch.Tensor:
    """The images of all ranks, in their order."""
    parts = distributed.gathered(images_NCHW.cpu())
    whole_NCHW = images_NCHW.new_empty((sum(map(len, rows)), *images_NCHW.shape[1:]))
    for part_NCHW, of_rank in zip(parts, rows, strict=True):
        whole_NCHW[of_rank] = part_NCHW.to(whole_NCHW.device)
    return whole_NCHW


def _as_bytes(images: torch.Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8, rounded as the set's are."""
    return images.mul(255).round().to(torch.uint8).cpu().numpy()


def _budget(settings: Settings) -> int | None:
    """Bytes; None: as the device has them."""
    text = settings.runtime.memory_budget
    return parse_bytes(text) if text else None
