"""`ncfmkit distill`: pool, steps, the set, its pictures, its scores and one page, all in a run directory."""

import dataclasses
import html
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit._version import __version__
from ncfmkit.config import Settings, from_dict, to_dict
from ncfmkit.distillation import loop
from ncfmkit.distillation.initial import from_images, initialize
from ncfmkit.distillation.pool import Pool, open_pool
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.files import write_atomic, write_json
from ncfmkit.jobs.setup import make_settings, resolve
from ncfmkit.mosaic import decoded_count
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments, split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes
from ncfmkit.reports.curves import curves
from ncfmkit.reports.event_log import EventLog, require_tensorboard
from ncfmkit.reports.page import write_report
from ncfmkit.run import RunDirectory, load_run, next_free
from ncfmkit.runtime import Runtime, choose_runtime, cpu_threads, versions
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import check_baselines, herded_subset, parse_baselines
from ncfmkit.sets import set_file
from ncfmkit.sets.loading import load
from ncfmkit.sets.manifest import finished_set, manifest_score
from ncfmkit.sets.synthetic import SyntheticSet

ARTIFACTS = {
    set_file.FILE_NAME: "the set",
    "preview.png": "what it looks like",
    "curves.png": "the losses",
    "scores.json": "the scores",
    "report.html": "all of it on one page",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run gives.

    Attributes:
        set: the distilled set.
        scores: what `scores.json` holds, see :func:`ncfmkit.evaluate`; none: the run was not scored (`repeats=0`).
        run_dir: the run directory, with the set's file, pictures, metrics and a report.
    """

    set: SyntheticSet
    scores: dict[str, Any] | None
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
    baselines: str | Sequence[str] = ("random",),
    callback: loop.Callback | None = None,
    **overrides: Any,
) -> Result:
    """Distills a labeled image set and scores the result; everything is kept in a run directory.

    Args:
        data: a name such as `cifar10`, or the path of a folder of class folders, of Parquet files or of WebDataset
            shards; `ncfmkit recipes --data` lists all kinds.
        recipe: a recipe's name or a path ending in .toml; none: the data's own, or the defaults.
        out: the run directory; none: a fresh one under `runs/`.
        baselines: rows of the table of baselines to score beside the set, such as `("random", "herding")`.
        callback: called with each row of metrics.jsonl, at most a thousand times or so: a dict of `step`, `matching`
            and `calibration` (losses, float; the latter None where it is left out), `lr` and `seconds` since the first
            step. What it raises stops the run with the state saved, so that :func:`resume` goes on.
        overrides: settings by name (docs/settings.md), such as `ipc=1` or `**{"distill.lr": 3e-3}`. And how the data
            are found and read: `data_root`, the folder of torchvision's data sets; `download=True`, let torchvision
            download; `skip_bad=True`, pass over images that cannot be read, and count them.

    Returns:
        The set, its scores and the run directory.

    Raises:
        UserError: the input is wrong; the message says what, and how to fix it.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM arrived; the state is saved, and :func:`ncfmkit.resume` goes on.

    Example:
        >>> result = ncfmkit.distill("digits", ipc=1)
        >>> result.set
        SyntheticSet(10 classes x 1 image of 1x8x8, score 95.1 ± 0.4)
        >>> dataset = result.set.as_dataset()
        >>> ncfmkit.distill("digits", callback=lambda row: print(row["step"], row["matching"]))
    """
    source, settings = split_arguments(data, overrides)
    return _result(start(source, recipe=recipe, out=out, baselines=baselines, overrides=settings, callback=callback))


def _result(folder: Path) -> Result:
    return Result(set=load(folder), scores=load_run(folder).get("scores"), run_dir=folder)


def start(
    source: DataArguments,
    *,
    recipe: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    baselines: str | Sequence[str],
    overrides: dict[str, Any],
    callback: loop.Callback | None = None,
) -> Path:
    """As :func:`distill`: opens the real data, after what can be checked without them. Returns the run directory."""
    settings = make_settings(source.data, os.fspath(recipe) if recipe else None, overrides)
    names = parse_baselines(baselines if isinstance(baselines, str) else ",".join(baselines))
    data_name = Path(source.data).name.split("*")[0].split("{")[0].removesuffix(".parquet").strip("-._") or "data"
    folder = Path(out) if out else next_free(Path("runs"), f"{data_name}-ipc{settings.distill.ipc}")
    RunDirectory.free(folder)
    runtime = choose_runtime(settings.runtime)
    distill_real(
        source.open(settings), settings, runtime, folder=folder, source=source, baselines=names, callback=callback
    )
    return folder


def distill_real(
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    *,
    folder: Path,
    source: DataArguments,
    baselines: Sequence[str] = (),
    callback: loop.Callback | None = None,
) -> None:
    """A new run on real data that are open.

    Args:
        folder: the run directory to make.
        source: where the data came from: a run that is resumed opens them again.
        baselines: names of rows of `BASELINES`.

    Raises:
        UserError, NonFiniteLossError, Interrupted: as :func:`distill`.
    """
    # Check: what would fail late fails now, before an extractor is trained and before anything is written.
    if settings.runtime.log == "tensorboard":
        require_tensorboard()
    settings = resolve(settings, real)
    images = _initial_images(settings, real)
    if settings.student.repeats:
        real.test_split(otherwise=students.NO_SCORE)
        d = settings.distill
        decoded = decoded_count(d.decode, d.factor, d.ipc, d.decoded_per_class)
        check_baselines(real, baselines, stored=d.ipc, decoded=decoded)
    loop.prepare(real, settings, Pool.empty(), images, runtime)

    run = RunDirectory.create(folder, _run_info(real, settings, runtime, source, baselines))
    with run.alone():
        _complete(run, real, settings, runtime, images, baselines, callback)


def resume(path: str | os.PathLike[str], *, callback: loop.Callback | None = None) -> Result:
    """Goes on with an interrupted run, and ends with the same bytes as one that was not interrupted.

    Args:
        path: the run directory.
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
    run = RunDirectory.open(Path(path))
    info = run.info()
    settings = from_dict(info["settings"])
    # what was chosen then, not what would be chosen now
    chosen = dataclasses.replace(
        settings.runtime, precision=info["precision"], compile="on" if info["compile"] else "off"
    )
    runtime = choose_runtime(chosen)
    if info["status"] == "done":
        if not (run.path / "report.html").exists():
            write_report(run.path)
        notice(f"{path} is finished: nothing is left to do")
        return _result(run.path)
    if settings.runtime.log == "tensorboard":
        require_tensorboard()
    with run.alone():
        real = DataArguments(**info["arguments"]).open(settings)
        if real.fingerprint != info["data"]["fingerprint"]:
            raise UserError(f"the data at {info['arguments']['data']} have changed since {path} was started")
        with cpu_threads(info["threads"]):  # sums in another order would end with other bytes
            _complete(run, real, settings, runtime, _initial_images(settings, real), info["baselines"], callback)
    return _result(run.path)


def _complete(
    run: RunDirectory,
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
    callback: loop.Callback | None,
) -> None:
    """All that is left of a run, new or resumed; an interruption says how to go on."""
    d = settings.distill
    notice(f"run directory: {run.path}")
    try:
        notice(
            f"{real.name}: {len(real.train.images):,} images of {len(real.classes)} classes, {real.size}x{real.size} "
            f"{'gray' if real.channels == 1 else 'rgb'} -> {len(real.classes) * d.ipc:,} images ({d.ipc} per class, "
            f"factor {d.factor}, {d.decode}); recipe {settings.recipe}, seed {settings.seed}"
            + (f"; {real.skipped} unreadable images passed over" if real.skipped else "")
        )
        notice(f"device: {runtime.describe()}")

        # The method: a pool of extractors, then the loop.
        pool = open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)
        notice(pool.describe())
        run.update(pool={"key": pool.key, "accuracies": pool.accuracies, "seconds": round(pool.seconds, 1)})
        open_board = None
        if settings.runtime.log == "tensorboard":
            labels_N = np.repeat(np.arange(len(real.classes)), d.ipc)
            open_board = partial(EventLog, run.path, labels_N=labels_N, classes=real.classes)
        images = loop.distill(run, real, settings, pool, images, runtime, open_board=open_board, callback=callback)

        # What it gives: the set and its pictures.
        result = finished_set(settings, real, images)
        set_file.save(result, run.path / set_file.FILE_NAME, force=True)
        sheet = contact_sheet(result.images.numpy(), result.labels.numpy(), result.classes)
        write_atomic(run.path / "preview.png", png_bytes(sheet))
        curves(run.metrics(), run.path / "curves.png")

        # How good it is: students trained on it, and on the baselines.
        if settings.student.repeats:
            run.update(status="scoring")
            scores = students.score_set(
                result.labeled(),
                real,
                settings,
                stored=d.ipc,
                baselines=baselines,
                herding=lambda count: herded_subset(real, count, pool.final[0], settings.network, runtime),
                runtime=runtime,
            )
            write_json(run.path / "scores.json", scores)
            score = manifest_score(scores["rows"][0])
            result = dataclasses.replace(result, manifest=result.manifest | {"score": score})
            set_file.save(result, run.path / set_file.FILE_NAME, force=True)
        run.update(status="done")
        write_report(run.path)
    except KeyboardInterrupt:
        raise Interrupted(f"what was finished is kept: go on with --resume {run.path}") from None


def _initial_images(settings: Settings, real: RealData) -> torch.Tensor:
    d = settings.distill
    if d.init == "load":
        earlier = load(str(d.load))
        return from_images(earlier.images, earlier.classes, real, ipc=d.ipc)
    return initialize(d.init, real, ipc=d.ipc, factor=d.factor, seed=settings.seed)


def _run_info(
    real: RealData, settings: Settings, runtime: Runtime, source: DataArguments, baselines: Sequence[str]
) -> dict[str, Any]:
    return {
        "ncfmkit": __version__,
        "command": shlex.join(["ncfmkit", *sys.argv[1:]]) if "ncfmkit" in Path(sys.argv[0]).name else None,
        "arguments": dataclasses.asdict(source.absolute()),
        "baselines": list(baselines),
        "data": {
            "name": real.name,
            "classes": list(real.classes),
            "train": len(real.train.images),
            "test": len(real.test.images) if real.test else 0,
            "size": real.size,
            "channels": real.channels,
            "fingerprint": real.fingerprint,
            "skipped": real.skipped,
        },
        "settings": to_dict(settings),
        "seed": settings.seed,
        "device": runtime.describe(),
        "precision": runtime.precision,
        "compile": runtime.compile,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "status": "started",
    }
