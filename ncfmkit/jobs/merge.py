"""`ncfmkit merge`: the shards of a run, each distilled on its own, become one run (docs/scale.md).

Classes do not depend on one another, so a shard's images are those that a run of all classes makes. The shards' last
states are joined to the checkpoint of such a run, which then goes on from there: set, pictures, scores, report.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.config import Settings, by_name, from_dict, parse_shard, to_dict
from ncfmkit.distillation.shares import distilled_labels, image_rows, joined
from ncfmkit.errors import UserError
from ncfmkit.jobs.distill import Result, resume
from ncfmkit.progress import command_line, notice, shortened_list
from ncfmkit.run import RunDirectory, next_free
from ncfmkit.run_records import MetricsRow, RunInfo


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished run of a shard."""

    run: RunDirectory
    info: RunInfo
    settings: Settings
    number: int  # from 1
    of: int

    def label_C(self) -> np.ndarray:
        """The classes that it distilled, ascending."""
        data = self.info.data
        return distilled_labels(data.classes, data.counts["train"], self.settings.distill)


def merge(
    runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str] | None = None, force: bool = False
) -> Result:
    """Joins the runs of all shards to one run, and scores its set.

    Args:
        runs: the run directories, in any order.
        out: the run directory to make; None: a fresh one beside the first.
        force: replace an existing run.

    Returns:
        As :func:`ncfmkit.distill` of all classes; with the same `runtime.classes_per_batch`, the images are the same
        bytes.

    Raises:
        UserError: a shard is missing, double, not finished or of another run; the message names it.

    Example:
        >>> ncfmkit.merge(["runs/digits-ipc1-shard-1-of-2", "runs/digits-ipc1-shard-2-of-2"])
    """
    shards = _checked([_opened(Path(path)) for path in runs])
    first, state, rows = shards[0], _joined_state(shards), _joined_metrics(shards)
    whole = dataclasses.replace(first.settings, distill=dataclasses.replace(first.settings.distill, shard=None))
    name = f"{first.info.data.name}-ipc{whole.distill.ipc}"
    folder = Path(out) if out else next_free(first.run.path.parent, name)
    changes = {"settings": to_dict(whole), "command": command_line(), "status": "joining", "timings": None, "ranks": 1}
    run = RunDirectory.create(folder, first.info.model_copy(update=changes | {"replaces": ()}), force=force)
    with run.alone():
        for row in rows:
            run.append_metrics(row)
        run.save_checkpoint(state)
        run.update(status="distilling")
    notice(f"{len(shards)} shards joined in {folder}")
    return resume(folder)


def _opened(path: Path) -> Shard:
    run = RunDirectory.open(path)
    info = run.info()
    settings = from_dict(info.settings)
    if settings.distill.shard is None:
        raise UserError(f"{path} is no shard: it distilled all classes")
    if info.status != "done":
        raise UserError(f"{path} is not finished (status: {info.status}): continue with --resume {path}")
    number, of = parse_shard(settings.distill.shard)
    return Shard(run=run, info=info, settings=settings, number=number, of=of)


def _checked(shards: list[Shard]) -> list[Shard]:
    """The shards in their order, if they are all of one run, each once."""
    if not shards:
        raise UserError("say which shards to join: `ncfmkit merge RUN RUN ...`")
    first = shards[0]
    for shard in shards[1:]:
        if wrong := _difference(first, shard):
            raise UserError(f"{shard.run.path} is not of the same run as {first.run.path}: {wrong}")
    by_number: dict[int, Shard] = {}
    for shard in shards:
        if shard.number in by_number:
            twice = by_number[shard.number].run.path
            raise UserError(f"shard {shard.number}/{shard.of} is given twice: {twice} and {shard.run.path}")
        by_number[shard.number] = shard
    missing = [f"{number}/{first.of}" for number in range(1, first.of + 1) if number not in by_number]
    if missing:
        raise UserError(f"shards are missing: {shortened_list(missing)}; distill each with --shard")
    pools = {shard.info.pool.accuracies for shard in shards if shard.info.pool}
    if len(pools) > 1:
        notice(
            "the shards were matched with extractors that were trained apart, on other processors: the set is not the "
            "one that a single run makes (train them once, with ncfmkit pretrain, in a cache that all shards use)"
        )
    return [by_number[number] for number in sorted(by_number)]


def _difference(one: Shard, other: Shard) -> str | None:
    """What keeps two shards from being of one run, if anything does."""
    if one.of != other.of:
        return f"it is one of {other.of} shards, not of {one.of}"
    if one.info.data.fingerprint != other.info.data.fingerprint:
        return "its real data differ"
    if one.info.loaded != other.info.loaded:
        return "the set of --load that it starts from differs"
    for name in ("precision", "compile"):
        here, there = getattr(one.info, name), getattr(other.info, name)
        if here != there:
            return f"{name} is {there}, not {here}"
    of_one, of_other = (_compared(shard.settings) for shard in (one, other))
    keys = [key for key in of_one if of_one[key] != of_other[key]]
    return f"{keys[0]} is {of_other[keys[0]]}, not {of_one[keys[0]]}" if keys else None


def _compared(settings: Settings) -> dict[str, object]:
    """The settings that shards of one run share, by name: all but the shard and what is of a machine."""
    found = by_name(to_dict(settings))
    return {k: v for k, v in found.items() if k != "distill.shard" and not k.startswith("runtime.")}


def _joined_state(shards: Sequence[Shard]) -> dict[str, Any]:
    """The state of a run of all classes after the last step."""
    states = []
    for shard in shards:
        state = shard.run.load_checkpoint()
        if state is None or state["step"] != shard.settings.distill.steps:
            raise UserError(f"{shard.run.path} has no whole checkpoint of its last step: distill this shard again")
        states.append(state)
    return joined(states, image_rows([shard.label_C() for shard in shards], shards[0].settings.distill.ipc))


def _joined_metrics(shards: Sequence[Shard]) -> list[MetricsRow]:
    """Losses are means over classes, seconds those of all shards together."""
    weights = np.array([len(shard.label_C()) for shard in shards], float)
    weights /= weights.sum()
    means = []
    for rows in zip(*(shard.run.metrics() for shard in shards), strict=False):
        calibrations = [row.calibration for row in rows if row.calibration is not None]
        means.append(
            MetricsRow(
                step=rows[0].step,
                matching=float(weights @ [row.matching for row in rows]),
                calibration=float(weights @ calibrations) if calibrations else None,
                lr=rows[0].lr,
                seconds=sum(row.seconds for row in rows),
            )
        )
    return means
