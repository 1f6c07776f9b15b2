"""The loop: steps, metrics, checkpoints, resuming."""

import dataclasses
import math
import time

from ncfmkit.config import Settings
from ncfmkit.distillation.memory import Plan, _budget, _plan
from ncfmkit.distillation.problem import Problem, State, StepLosses
from ncfmkit.distillation.step import distill_step
from ncfmkit.errors import Interrupted
from ncfmkit.files import format_bytes
from ncfmkit.progress import notice, track
from ncfmkit.run import RunDirectory, deferred_interrupts

LOGGED_STEPS = 1000  # lines of metrics.jsonl, at most about


def run_steps(run: RunDirectory, settings: Settings, problem: Problem, state: State) -> None:
    """All steps that are left, with checkpoints; an interruption saves the state first."""
    steps, every = settings.distill.steps, settings.runtime.checkpoint_every
    stored = run.load_checkpoint()
    if stored is not None:
        state.load_state_dict(stored)
        del stored
        notice(f"resuming after step {state.step} of {steps}")
    logged = run.cut_metrics(state.step)
    seconds = logged[-1]["seconds"] if logged else 0.0
    plan = _plan(settings, problem, state)
    if state.step < steps:
        notice(_plan_line(plan, problem, _budget(settings)))
    run.update(status="distilling")
    log_every = max(1, math.ceil(steps / LOGGED_STEPS))
    start = time.monotonic() - seconds
    with deferred_interrupts() as interrupted, track("distilling", steps) as bar:
        bar.advance(state.step)
        while state.step < steps:
            losses = distill_step(problem, state, plan)
            stop = interrupted()
            if state.step % log_every == 0 or state.step == steps:
                row = {"step": state.step, **dataclasses.asdict(losses), "seconds": time.monotonic() - start}
                run.append_metrics(row)
            if state.step % every == 0 or state.step == steps or stop:
                run.save_checkpoint(state.state_dict())
            bar.advance(note=_loss_note(losses))
            if stop:
                raise Interrupted(f"saved after step {state.step} of {steps}: go on with --resume {run.path}")
    logged = run.metrics()
    spent = logged[-1]["seconds"] if logged else 0.0
    run.update(timings={"distill_seconds": round(spent, 2), "steps": steps})


def _plan_line(plan: Plan, problem: Problem, budget: int | None) -> str:
    said = f"budget {format_bytes(budget)}" if budget else "default budget"
    return (
        f"memory: {said}; {plan.chunk} images at once, up to {plan.kept_graphs} such graphs, "
        f"{plan.classes_per_batch} of {problem.classes} classes stacked"
    )


def _loss_note(losses: StepLosses) -> str:
    calibration = "" if losses.calibration is None else f", calibration {losses.calibration:.3f}"
    return f"matching {losses.matching:.2f}{calibration}"
