"""`ncfmkit distill`: pool, steps, the set, its pictures, its scores and one page, all in a run directory."""

import dataclasses
import html
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit import distributed, interrupts
from ncfmkit._version import __version__
from ncfmkit.config import Settings, bits_and_color, from_dict, override, to_dict
from ncfmkit.distillation import loop
from ncfmkit.distillation.difficulty import estimate_difficulty
from ncfmkit.distillation.initial import from_images, initialize
from ncfmkit.distillation.memory import Plan, planned_bytes
from ncfmkit.distillation.pool import Pool, estimate_pool, open_pool
from ncfmkit.distillation.shares import distilled_labels
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage, announce, total_seconds
from ncfmkit.files import format_bytes, write_atomic
from ncfmkit.in_use import hold
from ncfmkit.jobs.evaluate import real_mosaics, selecting, set_size
from ncfmkit.jobs.growing import check_place, earlier_set, grown, with_new_classes
from ncfmkit.jobs.relabel import relabeled, softened, teachers_of
from ncfmkit.jobs.setup import cached_of_set, kept_of_set, label_bytes, make_settings, open_data, resolve, room
from ncfmkit.kept import Kept
from ncfmkit.mosaic import decode, decode_factors, decoded_count
from ncfmkit.networks import check_extractors, network_builder
from ncfmkit.progress import command_line, notice, plural, shortened_list
from ncfmkit.real.arguments import DataArguments, split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.records import Record
from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes
from ncfmkit.reports.curves import curves
from ncfmkit.reports.event_log import EventLog, require_tensorboard
from ncfmkit.reports.run_page import write_report
from ncfmkit.reports.strips import DECODED_OF, MAX_CLASSES, SetImages
from ncfmkit.run import RunDirectory, make_next, next_free
from ncfmkit.run_records import DataInfo, PoolInfo, RunInfo, Scores
from ncfmkit.runtime import Runtime, choose_runtime, cpu_threads, versions
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import SetSize, check_baselines, parse_baselines, read_snapshots
from ncfmkit.scoring.coreset import SNAPSHOTS
from ncfmkit.scoring.soft_labels import Teachers
from ncfmkit.sets import budget, set_file
from ncfmkit.sets.manifest import BY_WORTH, Manifest, finished_set, manifest_score, to_bytes
from ncfmkit.sets.subset import first_of_each
from ncfmkit.sets.synthetic import SyntheticSet

ARTIFACTS = {
    set_file.FILE_NAME: "the set",
    "preview.png": "what it looks like",
    "curves.png": "the losses",
    "scores.json": "the scores",
    "report.html": "all of it on one page",
}


class Planned(Record):
    """What a run would do, as :func:`dry_run` finds it.

    Attributes:
        run, writes: its directory and files.
        plan: how a step is cut up.
        memory: bytes that a step takes on the device.
        options: with `bytes`, what would fit.
        estimate: of each stage.
        seconds: their sum.
    """

    run: str
    writes: tuple[str, ...]
    data: DataInfo
    settings: dict[str, object]
    device: str
    precision: str
    compile: bool
    baselines: tuple[str, ...]
    plan: Plan
    memory: int
    options: tuple[budget.Fit, ...]
    estimate: tuple[Stage, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run gives.

    Attributes:
        set: the distilled set.
        scores: what `scores.json` holds, see :func:`ncfmkit.evaluate`; None: the run was not scored (`repeats=0`).
        run_dir: the run directory, with the set's file, pictures, metrics and a report.
    """

    set: SyntheticSet
    scores: Scores | None
    run_dir: Path

    def __repr__(self) -> str:
        return f"Result({self.set!r}, run_dir={str(self.run_dir)!r})"

    def _repr_html_(self) -> str:
        """The set as it shows itself, and where the run is."""
        return f"{self.set._repr_html_()}<p>run directory: <code>{html.escape(str(self.run_dir))}</code></p>"


def distill(
    data: Any,
    *,
    recipe: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    baselines: str | Sequence[str] = ("random",),
    callback: loop.Callback | None = None,
    **overrides: Any,
) -> Result:
    """Distills a labeled image set and scores the result; everything is kept in a run directory.

    Args:
        data: a name such as `cifar10`, or the path of a folder of class folders, of Parquet files or of WebDataset
            shards (`ncfmkit recipes --data` lists all kinds); or data in memory: `(images, labels)` as arrays, a
            map-style torch dataset, a `datasets.Dataset`, or a dict of such by split.
        recipe: a recipe's name or a path ending in .toml; None: the data's own, or the device's (`cpu` or `gpu`).
        out: the run directory; None: a fresh one under `runs/`.
        force: replace an existing run; it stays beside the new one, as `NAME.old`, until that is done.
        baselines: rows of the table of baselines to score beside the set, such as `("random", "herding")`.
        callback: called with each row of metrics.jsonl, at most a thousand times or so: its attributes are `step`,
            `matching` and `calibration` (losses, float; the latter None where it is left out), `lr` and `seconds` since
            the first step. What it raises stops the run with the state saved; :func:`resume` continues it.
        overrides: settings by name (docs/settings.md), such as `ipc=1` or `**{"distill.lr": 3e-3}`. And how the data
            are found and read: `data_root`, the folder of torchvision's data sets; `download=True`, fetch
            what is not there; `skip_bad=True`, pass over images that cannot be read, and count them.

    Returns:
        The set, its scores and the run directory.

    Raises:
        UserError: the input is wrong; the message says what, and how to fix it.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM arrived; the state is saved, and :func:`ncfmkit.resume` continues.

    Example:
        >>> result = ncfmkit.distill("digits", ipc=1)
        >>> result.set
        SyntheticSet(10 classes x 1 image of 1x8x8, score 95.1 ± 0.4)
        >>> dataset = result.set.as_dataset()
        >>> ncfmkit.distill("digits", callback=lambda row: print(row.step, row.matching))
    """
    source, settings = split_arguments(data, overrides)
    if settings.get("distill.shard", settings.get("shard")) is not None:
        raise UserError("a shard has no set of its own: distill it with `ncfmkit distill DATA --shard ...`")
    run_dir = start(
        source, recipe=recipe, out=out, force=force, baselines=baselines, overrides=settings, callback=callback
    )
    return _result(run_dir)


def _result(folder: Path) -> Result:
    run = RunDirectory.open(folder)
    shard = from_dict(run.info().settings).distill.shard
    if shard is not None:
        raise UserError(f"{folder} is shard {shard}, without a set of its own: ncfmkit.merge joins the shards")
    return Result(set=set_file.load(folder), scores=run.scores(), run_dir=folder)


def start(
    source: DataArguments,
    *,
    recipe: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    force: bool = False,
    baselines: str | Sequence[str],
    overrides: dict[str, Any],
    callback: loop.Callback | None = None,
) -> Path:
    """As :func:`distill`: opens the real data, after what can be checked without them. Returns the run directory."""
    real, settings, runtime, folder, chosen, names = _opened(source, recipe, out, force, baselines, overrides)
    return distill_real(
        real,
        settings,
        runtime,
        folder=folder,
        chosen=chosen,
        force=force,
        source=source,
        baselines=names,
        callback=callback,
    )


def dry_run(
    source: DataArguments,
    *,
    recipe: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    force: bool = False,
    baselines: str | Sequence[str],
    overrides: dict[str, Any],
) -> Planned:
    """What :func:`start` would do: every check that it makes, its plan, and a measured estimate. Writes no run.

    The store of the real data and compiled code go to the cache, where the run finds them.
    """
    real, settings, runtime, folder, _, names = _opened(source, recipe, out, force, baselines, overrides)
    asked = settings
    settings, images = _checked(real, asked, names)
    options = () if asked.distill.bytes is None else tuple(budget.fits(asked.distill, room(asked, real, coded=True)))
    problem, state, plan = loop.prepare(real, settings, Pool.empty(), images, runtime)
    notice(_headline(real, settings))
    for fit in options:
        notice(f"--bytes {settings.distill.bytes}: {_describe_fit(fit, chosen=fit.bits == settings.distill.bits)}")
    notice(f"device: {runtime.describe()}")
    memory = planned_bytes(problem, state, plan)
    notice(f"memory of a step: {format_bytes(memory)}; {plan.describe()}")
    stages = announce(_estimate(real, settings, runtime, images, names, steps_done=0))
    info = _run_info(real, settings, runtime, source, names)
    return Planned(
        run=str(folder),
        writes=_writes(folder, settings),
        data=info.data,
        settings=info.settings,
        device=info.device,
        precision=info.precision,
        compile=info.compile,
        baselines=info.baselines,
        plan=plan,
        memory=memory,
        options=options,
        estimate=tuple(stages),
        seconds=total_seconds(stages),
    )


def _writes(folder: Path, settings: Settings) -> tuple[str, ...]:
    if settings.distill.shard is not None:
        return (str(folder / "checkpoint"),)
    return tuple(str(folder / name) for name in ARTIFACTS if settings.student.repeats or name != "scores.json")


def _opened(
    source: DataArguments,
    recipe: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    force: bool,
    baselines: str | Sequence[str],
    overrides: dict[str, Any],
) -> tuple[RealData, Settings, Runtime, Path, Path | None, tuple[str, ...]]:
    """The real data, settings, runtime, run directory and baselines; the data are opened after all other checks.

    Beside the run directory, the name that it is chosen after, if the user said none.
    """
    settings = make_settings(source.data, os.fspath(recipe) if recipe else None, overrides)
    check_extractors(settings.extractors)
    if settings.runtime.log == "tensorboard":
        require_tensorboard()
    names = parse_baselines(baselines if isinstance(baselines, str) else ",".join(baselines))
    if settings.labels.soft:  # what the labels alone are worth, random images with the same say
        names = tuple(dict.fromkeys([*names, "random-soft"]))
    elif "random-soft" in names:
        raise UserError("--baselines random-soft needs --soft-labels")
    asked = [name for name in names if name not in ("random", "random-soft")]  # these come without being asked for
    if asked and not settings.student.repeats:
        raise UserError(f"--baselines {','.join(asked)} needs students, got --repeats 0: leave one of the two out")
    if (by_snapshots := read_snapshots(names)) and not settings.pool.snapshots:
        enough = min(SNAPSHOTS, max(1, settings.pool.epochs - 1))
        epochs = "" if settings.pool.epochs > enough else f" and --pool-epochs {enough + 1}"
        raise UserError(
            f"--baselines {by_snapshots[0]} needs snapshots of the extractors' training: pass --snapshots "
            f"{enough}{epochs}, or leave it out and ask `ncfmkit evaluate` for it"
        )
    data_name = Path(source.data).name.split("*")[0].split("{")[0].removesuffix(".parquet").strip("-._") or "data"
    part = "" if settings.distill.shard is None else f"-shard-{settings.distill.shard.replace('/', '-of-')}"
    size = settings.distill.bytes and re.sub(r"\W+", "-", f"{settings.distill.bytes}-bytes".replace("/", "-per-"))
    name = f"{data_name}-{size or f'ipc{settings.distill.ipc}'}{part}"
    chosen = None if out else Path("runs", name)
    folder = distributed.from_first(lambda: Path(out) if out else next_free(Path("runs"), name))
    with distributed.agreed():
        source.check(settings)
        check_place(folder, settings)
        if distributed.is_first():
            RunDirectory.free(folder, force=force)
        runtime = choose_runtime(settings.runtime)
    return open_data(source, settings), settings, runtime, folder, chosen, names


def distill_real(
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    *,
    folder: Path,
    chosen: Path | None = None,
    force: bool = False,
    source: DataArguments,
    baselines: Sequence[str] = (),
    callback: loop.Callback | None = None,
) -> Path:
    """A new run on real data that are open. Returns the run directory.

    Args:
        folder: the run directory to make.
        chosen: make this one instead, or with the next free number if it is taken by now; None: `folder`.
        force: replace an existing run.
        source: where the data came from: a run that is resumed opens them again.
        baselines: names of rows of `BASELINES`.
        callback: as of :func:`distill`.

    Raises:
        UserError, NonFiniteLossError, Interrupted: as :func:`distill`.
    """
    # Check: what would fail late fails now, before an extractor is trained and before anything is written.
    with distributed.agreed():
        settings, images = _checked(real, settings, baselines)
        loop.prepare(real, settings, Pool.empty(), images, runtime)
        info = _run_info(real, settings, runtime, source, baselines)

    def create() -> Path:
        return RunDirectory.create(folder if chosen is None else make_next(chosen), info, force=force).path

    run = RunDirectory(distributed.from_first(create))
    with run.alone():
        _complete(run, real, settings, runtime, images, baselines, callback)
    return run.path


def _checked(real: RealData, settings: Settings, baselines: Sequence[str]) -> tuple[Settings, torch.Tensor]:
    """The settings with what the data decide, and the initial images.

    Raises:
        UserError: no test split, or too few images for a baseline.
    """
    settings = with_new_classes(resolve(settings, real), real)
    images = _initial_images(settings, real)
    if settings.student.repeats:
        real.test_split(otherwise=students.NO_SCORE)
        check_baselines(real, baselines, _size(settings, real))
    return settings, images


def _size(settings: Settings, real: RealData) -> SetSize:
    """At most, of the set that is made."""
    d = settings.distill
    return SetSize(
        stored=d.ipc,
        decoded=decoded_count(d.decode, d.factor, d.ipc, d.decoded_per_class),
        bytes=float(budget.bytes_of_class(d, d.stored_bits, d.ipc, room(settings, real, coded=False))),
        soft_label=label_bytes(settings, len(real.classes)),
    )


def _estimate(
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
    *,
    steps_done: int,
    kept: Kept | None = None,
) -> Iterator[Stage]:
    """What is left of a run, stage by stage, each measured when it is asked for."""
    d = settings.distill
    yield from estimate_pool(real, settings.extractors, settings.pool, seed=settings.seed, runtime=runtime)
    if d.steps > steps_done:
        if d.easiest < 1:
            builds = [network_builder(network, real) for network in settings.extractors]
            yield estimate_difficulty(real, builds, settings.pool, runtime)
        problem, _, plan = loop.prepare(real, settings, Pool.empty(), images, runtime)
        yield loop.estimate_steps(problem, images, plan, steps=d.steps - steps_done)
    if d.shard is not None:
        return
    yield from students.estimate_scores(
        real,
        settings,
        extractor=settings.extractors[0],
        snapshots=settings.pool.snapshots,
        size=_size(settings, real),
        baselines=baselines,
        runtime=runtime,
        kept=kept,
    )


def _headline(real: RealData, settings: Settings) -> str:
    d = settings.distill
    return (
        f"{real.name}: {len(real.train.images):,} images of {len(real.classes)} classes, {real.size}x{real.size} "
        f"{'gray' if real.channels == 1 else 'rgb'} -> {len(real.classes) * d.ipc:,} images ({d.ipc} per class, "
        f"factor {d.factor}, {d.decode}{'' if d.stored_bits == 8 else f', {d.stored_bits} bits'}"
        f"{f', color {d.chroma}' if d.is_subsampled else ''}); recipe "
        f"{settings.recipe}, seed {settings.seed}"
        + (f"; new classes: {shortened_list(d.new_classes)}, the others from {d.add_to}" if d.add_to else "")
        + (f"; shard {d.shard} of the classes" if d.shard else "")
        + (f"; {real.skipped} unreadable images skipped" if real.skipped else "")
    )


def _describe_fit(fit: budget.Fit, *, chosen: bool) -> str:
    how = bits_and_color(fit.bits, fit.chroma)
    text = f"{plural(fit.ipc, 'image')} per class in {how}: about {fit.bytes:,} bytes per class"
    return f"{text} (chosen)" if chosen else text


def resume(
    path: str | os.PathLike[str],
    data: Any = None,
    *,
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
    callback: loop.Callback | None = None,
) -> Result:
    """Continues an interrupted run, and ends with the same bytes as one that was not interrupted.

    Args:
        path: the run directory.
        data: where the data are now, or data in memory, as :func:`distill` takes them; None: where they were.
        data_root, download: as :func:`distill` takes them; None, false: as the run was started.
        callback: as of :func:`distill`, for the steps that are left.

    Returns:
        As :func:`distill`.

    Raises:
        UserError: no run there, another process works in it, other data than it started with, or a device that is
            not there.
        NonFiniteLossError, Interrupted: as :func:`distill`.

    Example:
        >>> result = ncfmkit.resume("runs/digits-ipc1")
    """
    go_on(path, data, data_root=data_root, download=download, callback=callback)
    return _result(Path(path))


def is_of_this_command(folder: Path) -> bool:
    """Whether a run is there that the running command line started."""
    return (folder / "run.json").exists() and RunDirectory.open(folder).info().command == command_line()


def go_on(
    path: str | os.PathLike[str],
    data: Any = None,
    *,
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
    callback: loop.Callback | None = None,
) -> None:
    """As :func:`resume`, also of a run that distills a shard."""
    run = RunDirectory(Path(path))
    info = distributed.from_first(lambda: RunDirectory.open(run.path).info())
    settings = from_dict(info.settings)
    if info.status == "joining":
        raise UserError(f"{path} was not joined to its end: run `ncfmkit merge RUN ... --out {path} --force` again")
    # what was chosen then, not what would be chosen now
    chosen = {"runtime.precision": info.precision, "runtime.compile": "on" if info.compile else "off"}
    runtime = choose_runtime(override(settings, chosen).runtime)
    if info.status == "done":
        if not distributed.is_first():
            return
        if settings.distill.shard is None and not (run.path / "report.html").exists():
            write_report(run.path, report_images(set_file.load(run.path)))
        run.finish()
        notice(f"{path} is already finished")
        return
    if settings.runtime.log == "tensorboard":
        require_tensorboard()
    arguments: dict[str, Any] = dict(info.arguments)
    arguments |= {} if data is None else {"data": data}
    arguments |= {} if data_root is None else {"data_root": data_root}
    arguments |= {"download": True} if download else {}
    if arguments["data"] is None:
        call = f"ncfmkit.resume({str(path)!r}, data=...)"
        raise UserError(f"{path} was started on data in memory, in Python: pass them again, as {call}")
    with interrupts.keeping(run.kept), run.alone():
        source = DataArguments(**arguments)
        try:
            real = open_data(source, settings)
        except UserError as error:
            if source.memory is not None:
                raise
            raise UserError(f"{error}\nif the data have moved: ncfmkit distill --resume {path} --data DATA") from error
        if real.fingerprint != info.data.fingerprint:
            raise UserError(_changed(run.path, source, info.data, _data_info(real)))
        if _digest(settings.distill.add_to) != info.added_to:
            raise UserError(f"the set {settings.distill.add_to} has changed since {path} was started: restore it")
        images = _images_to_go_on(run, settings, real, info.loaded)
        run.update(arguments=source.recorded(), ranks=distributed.world())
        threads = torch.get_num_threads()
        if info.ranks == distributed.world():  # sums in another order would end with other bytes
            threads = info.threads or threads
        else:
            ranks = " and ".join(plural(count, "rank") for count in (info.ranks, distributed.world()))
            notice(f"the run has had {ranks} in turn: its images differ by rounding from those of one that has not")
        with cpu_threads(threads):
            _complete(run, real, settings, runtime, images, info.baselines, callback)


def _changed(path: Path, source: DataArguments, then: DataInfo, now: DataInfo) -> str:
    """The message about data that are not those that a run was started with: what changed, and what to do."""
    lines = []
    gone = [name for name in then.classes if name not in now.classes]
    new = [name for name in now.classes if name not in then.classes]
    lines += [f"  classes that are gone: {shortened_list(gone)}"] if gone else []
    lines += [f"  classes that are new: {shortened_list(new)}"] if new else []
    if (then.size, then.channels) != (now.size, now.channels):
        shapes = [f"{info.channels}x{info.size}x{info.size}" for info in (then, now)]
        lines.append(f"  images: {shapes[0]} then, {shapes[1]} now")
    for split, images_then, images_now in (("train", then.train, now.train), ("test", then.test, now.test)):
        if images_then != images_now:
            lines.append(f"  {split} images: {images_then:,} then, {images_now:,} now")
        before, after = (dict(zip(i.classes, i.counts.get(split, ()), strict=False)) for i in (then, now))
        other = [name for name in before if name in after and before[name] != after[name]]
        lines += [f"    of class {name!r}: {before[name]:,} then, {after[name]:,} now" for name in other[:4]]
        lines += [f"    and of {len(other) - 4:,} more classes"] if len(other) > 4 else []
    if not lines:
        lines.append("  classes and numbers of images are the same, but other files, names of files or pixels")
    place = f"at {source.data}" if source.memory is None else "in memory"
    return "\n".join(
        [
            f"the data {place} have changed since {path} was started:",
            *lines,
            "Restore them, pass --data with the location of the original data, or start a new run with another --out.",
        ]
    )


def _complete(
    run: RunDirectory,
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
    callback: loop.Callback | None,
) -> None:
    """All that is left of a run, new or resumed; an interruption says how to continue."""
    d, earlier = settings.distill, earlier_set(settings)
    notice(f"run directory: {run.path}")
    for replaced in run.replaced():
        notice(f"the earlier run stays in {replaced} until this one is done")
    with interrupts.keeping(run.kept):
        notice(_headline(real, settings))
        notice(f"device: {runtime.describe()}")
        there = distributed.from_first(lambda: _finished_set(run))
        kept = None if there is None else kept_of_set(run.students, there, real, settings, runtime)
        announce(_estimate(real, settings, runtime, images, baselines, steps_done=run.steps_done(), kept=kept))

        # The method: a pool of extractors, then the loop.
        pool = open_pool(real, settings.extractors, settings.pool, seed=settings.seed, runtime=runtime)
        notice(pool.describe())
        if d.extractor == "stages":
            notice(_describe_stages(settings))
        about_pool = PoolInfo(key=pool.key, accuracies=tuple(pool.accuracies), seconds=round(pool.seconds, 1))
        run.update(pool=about_pool)
        soft = settings.labels.soft and d.shard is None
        teachers = teachers_of(real, settings, settings.extractors, pool, runtime) if soft else None
        open_board = None
        if settings.runtime.log == "tensorboard" and distributed.is_first():
            labels_N = np.repeat(distilled_labels(real.classes, real.train.counts().tolist(), d), d.ipc)
            open_board = partial(EventLog, run.path, labels_N=labels_N, classes=real.classes)
        images = loop.distill(run, real, settings, pool, images, runtime, open_board=open_board, callback=callback)

        if d.shard is not None:
            run.update(status="done")
            run.finish()
            notice(f"shard {d.shard} is distilled: once all are, join them with `ncfmkit merge RUN ...`")
            return

        # What it gives: the set and its pictures.
        stored = to_bytes(images).cpu()
        stored = stored if earlier is None else grown(stored, earlier, settings, real)
        in_order = d.ipc > 1 and (earlier is None or earlier.manifest.order == BY_WORTH)
        distilled = _within_budget(settings, real, stored, order=BY_WORTH if in_order else None)
        result = distributed.from_first(lambda: _write_set(run, distilled, settings, teachers))

        # How good it is: students trained on it, and on the baselines.
        if settings.student.repeats:
            run.update(status="scoring")
            kept = kept_of_set(run.students, result.manifest, real, settings, runtime)
            scores = students.score_set(
                result.labeled(),
                real,
                settings,
                size=set_size(result),
                baselines=baselines,
                mosaic=lambda repeat: real_mosaics(result, real, settings.seed, repeat),
                soften=lambda data: softened(data, settings, teachers) if teachers is not None else data,
                select=selecting(real, settings.extractors[0], lambda: pool, runtime),
                runtime=runtime,
                kept=kept,
            )
            result = dataclasses.replace(result, manifest=result.manifest.changed(score=manifest_score(scores.rows[0])))
            if distributed.is_first():
                scores.write(run.scores_file)
                set_file.save(result, run.path / set_file.FILE_NAME, force=True)
                cached = cached_of_set(result.manifest, real, settings, runtime)
                with closing(hold(cached.folder)):
                    kept.copy_to(cached)  # `evaluate` of the run trains the others
        run.update(status="done")
        if distributed.is_first():
            if d.bytes is not None:
                notice(_describe_size(result, d.bytes, (run.path / set_file.FILE_NAME).stat().st_size))
            write_report(run.path, report_images(result))
        run.finish()


def _finished_set(run: RunDirectory) -> Manifest | None:
    """The manifest of a run's set, whose students are being scored; None: it is not there yet."""
    if run.info().status != "scoring":
        return None
    try:
        return set_file.load(run.path).manifest
    except UserError:  # it is written again
        return None


def _within_budget(settings: Settings, real: RealData, images_NCHW: torch.Tensor, *, order: str | None) -> SyntheticSet:
    """The set, of as many images as fit `--bytes`: those of least worth are left out where coding saves too little."""
    result = finished_set(settings, real, images_NCHW, order=order)
    if settings.distill.bytes is None:
        return result
    classes = len(result.classes)
    most, label = budget.parse_budget(settings.distill.bytes, classes) * classes, label_bytes(settings, classes)
    while (size := result.content_bytes + classes * result.manifest.ipc.decoded * label) > most:
        ipc = min(result.ipc - 1, int(result.ipc * most / size))
        assert ipc
        of_class = f"{plural(result.ipc, 'image')} per class take {size / classes:,.0f} bytes"
        notice(f"--bytes {settings.distill.bytes}: {of_class}, so {ipc} are kept, those of most worth")
        smaller = dataclasses.replace(settings, distill=dataclasses.replace(settings.distill, ipc=ipc))
        first_NCHW = first_of_each(images_NCHW, settings.distill.ipc, ipc)
        result = finished_set(smaller, real, first_NCHW, order=order)
    return result


def _write_set(run: RunDirectory, result: SyntheticSet, settings: Settings, teachers: Teachers | None) -> SyntheticSet:
    """The set, with soft labels where it has teachers, in the run's directory with its pictures."""
    taught = None
    if teachers is not None:
        result, taught = relabeled(result, settings, teachers)
    result = dataclasses.replace(result, manifest=set_file.save(result, run.path / set_file.FILE_NAME, force=True))
    if taught is not None:
        notice(taught.describe(result.manifest.bytes["soft_labels"]))
    sheet = contact_sheet(result.images.numpy(), result.labels.numpy(), result.classes)
    write_atomic(run.path / "preview.png", png_bytes(sheet))
    curves(run.metrics(), run.path / "curves.png")
    return result


def _describe_size(result: SyntheticSet, asked: str, size: int) -> str:
    """What a set takes of the bytes that were asked for."""
    content, of_class = result.content_bytes, result.content_bytes / len(result.classes)
    return (
        f"--bytes {asked}: {content:,} bytes in all, {of_class:,.0f} per class; the file has {size:,}, with its "
        "manifest and labels"
    )


def _describe_stages(settings: Settings) -> str:
    """What the networks of a step are, where they are stages of a training."""
    d, stages = settings.distill, settings.pool.snapshots + 2
    text = f"matching at one of {stages} stages of an extractor's training, the early ones first"
    text = text if d.stage_order == "rising" else text.removesuffix(", the early ones first")
    if d.calibration_stages is None:
        return f"{text}, calibration at its end"
    clipped = f" ({d.calibration_stages} asked for)" if d.calibration_stages > stages else ""
    return f"{text}, calibration at one of {min(stages, d.calibration_stages)}{clipped} from there on"


def report_images(result: SyntheticSet) -> SetImages:
    """What the report shows of a set: what the first stored images of each class decode to, if they are mosaics."""
    how, ipc = result.manifest.decode, result.ipc
    mask, decoded = result.mask(), {}
    for label in range(min(len(result.classes), MAX_CLASSES) if how.factor > 1 else 0):
        for place in range(label * ipc, label * ipc + min(ipc, DECODED_OF)):
            (cells_PCHW,) = decode(result.images[place : place + 1].float() / 255, decode_factors(how.kind, how.factor))
            decoded[place] = cells_PCHW[mask[place]].mul(255).round().to(torch.uint8).numpy()
    return SetImages(
        stored=result.images.numpy(), labels=result.labels.numpy(), classes=result.classes, decoded=decoded
    )


def _initial_images(settings: Settings, real: RealData) -> torch.Tensor:
    d = settings.distill
    if d.init == "load":
        earlier = set_file.load(str(d.load))
        return from_images(earlier.images, earlier.classes, real, ipc=d.ipc)
    label_C = distilled_labels(real.classes, real.train.counts().tolist(), dataclasses.replace(d, shard=None))
    drawn = initialize(d.init, real, ipc=d.ipc, factor=d.factor, seed=settings.seed, labels=label_C.tolist())
    images = torch.zeros(len(real.classes), d.ipc, *drawn.shape[1:])
    images[label_C] = drawn.unflatten(0, (-1, d.ipc))
    return images.flatten(0, 1)


def _images_to_go_on(run: RunDirectory, settings: Settings, real: RealData, loaded: str | None) -> torch.Tensor:
    """The initial images of a run that is resumed, which the state of its last step replaces, if there is one.

    Raises:
        UserError: no step is saved, and the set of `--load` has changed or is gone.
    """
    d = settings.distill
    if loaded is None:
        return _initial_images(settings, real)
    saved = distributed.from_first(lambda: run.load_checkpoint() is not None)
    if saved:
        return torch.zeros(len(real.classes) * d.ipc, real.channels, real.size, real.size)
    with distributed.agreed():
        if _digest(d.load) != loaded:
            raise UserError(f"the set {d.load} has changed since {run.path} was started: restore it")
        return _initial_images(settings, real)


def _digest(path: str | None) -> str | None:
    """Of the set at that place; None: no set."""
    return None if path is None else set_file.load(path).manifest.manifest_sha256


def _data_info(real: RealData) -> DataInfo:
    splits = {"train": real.train} | ({"test": real.test} if real.test else {})
    return DataInfo(
        name=real.name,
        classes=real.classes,
        train=len(real.train.images),
        test=len(real.test.images) if real.test else 0,
        counts={name: tuple(split.counts().tolist()) for name, split in splits.items()},
        size=real.size,
        channels=real.channels,
        fingerprint=real.fingerprint,
        skipped=real.skipped,
        skipped_images=real.skipped_images,
        changed=real.changed,
        left_out=real.left_out,
    )


def _run_info(
    real: RealData, settings: Settings, runtime: Runtime, source: DataArguments, baselines: Sequence[str]
) -> RunInfo:
    return RunInfo(
        ncfmkit=__version__,
        command=command_line(),
        arguments=source.recorded(),
        baselines=tuple(baselines),
        data=_data_info(real),
        settings=to_dict(settings),
        seed=settings.seed,
        device=runtime.describe(),
        precision=runtime.precision,
        compile=runtime.compile,
        threads=torch.get_num_threads(),
        ranks=distributed.world(),
        added_to=_digest(settings.distill.add_to),
        loaded=_digest(settings.distill.load),
        versions=versions(),
        status="started",
    )
