"""The jobs that the commands do, each one function: distill, resume, pretrain, evaluate, train."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ncfmkit import networks
from ncfmkit._version import __version__
from ncfmkit.config import Settings, from_dict, to_dict
from ncfmkit.distillation import initial
from ncfmkit.distillation.loop import run_steps
from ncfmkit.distillation.memory import _budget, _plan
from ncfmkit.distillation.pool import Pool, open_pool, pool_line
from ncfmkit.distillation.problem import Problem, make_problem, make_state
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.files import write_atomic
from ncfmkit.jobs.evaluate import _scores
from ncfmkit.jobs.setup import make_settings, resolved
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import RealData
from ncfmkit.reports import contact_sheet, curves, page
from ncfmkit.run import RunDirectory, next_free, write_json
from ncfmkit.runtime import Runtime, choose_runtime, cpu_threads, versions
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import check_baselines, herded_subset, parse_baselines
from ncfmkit.sets import set_file
from ncfmkit.sets.loading import load
from ncfmkit.sets.manifest import decoded_per_class, finished_set, manifest_score
from ncfmkit.sets.synthetic import SyntheticSet

ARTIFACTS = {
    set_file.FILE_NAME: "the set",
    "preview.png": "what it looks like",
    "curves.png": "the losses",
    "scores.json": "the scores",
    "report.html": "all of it on one page",
}


def distill(
    data: str,
    *,
    recipe: str | None = None,
    out: str | Path | None = None,
    baselines: Sequence[str] = ("random",),
    data_root: str | None = None,
    download: bool = False,
    skip_bad: bool = False,
    **overrides: Any,
) -> SyntheticSet:
    """Distills a labeled image set and scores the result; everything is kept in a run directory.

    Args:
        data: a known name or a path, see `ncfmkit.real.sources.SOURCES`.
        recipe: a recipe's name or a path ending in .toml; none: the data's own, or the defaults.
        out: the run directory; none: a fresh one under `runs/`.
        baselines: rows of `ncfmkit.scoring.baselines.BASELINES` to score beside the set.
        data_root, download: where torchvision's data sets are, and whether they may be downloaded.
        skip_bad: pass over images that cannot be read, and count them.
        overrides: settings by name, such as `ipc=1` or `**{"distill.lr": 3e-3}`.

    Raises:
        UserError, NonFiniteLossError, Interrupted: as the command's exit codes 2, 3 and 130.
    """
    arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    folder = distill_run(arguments, recipe=recipe, out=out, baselines=baselines, overrides=overrides)
    return load(folder)


def distill_run(
    arguments: DataArguments,
    *,
    recipe: str | None,
    out: str | Path | None,
    baselines: Sequence[str],
    overrides: dict[str, Any],
) -> Path:
    """As :func:`distill`; returns the run directory."""
    data = arguments.data
    settings = make_settings(data, recipe, overrides)
    baselines = parse_baselines(baselines if isinstance(baselines, str) else ",".join(baselines))
    folder = Path(out) if out else next_free(Path("runs"), f"{_slug(data)}-ipc{settings.distill.ipc}")
    RunDirectory.free(folder)
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    settings = resolved(settings, real)
    images = _initial_images(settings, real)
    if settings.student.repeats:
        students.test_split(real)
        check_baselines(real, baselines, stored=settings.distill.ipc, decoded=decoded_per_class(settings))
    _rehearse(settings, real, runtime, images)
    run = RunDirectory.create(folder, _run_info(settings, real, runtime, arguments, baselines))
    with run.alone():
        _go_on(run, settings, real, runtime, images, baselines)
    return folder


def resume(path: str | Path) -> SyntheticSet:
    """Goes on with an interrupted run, and ends with the same bytes as one that was not interrupted.

    Raises:
        UserError: no run there, another process works in it, other data than it started with, or a device that is
            not there.
    """
    run = RunDirectory.open(Path(path))
    info = run.info()
    settings = from_dict(info["settings"])
    asked = dataclasses.replace(
        settings.runtime, precision=info["precision"], compile="on" if info["compile"] else "off"
    )
    runtime = choose_runtime(asked)
    if info["status"] == "done":
        if not (run.path / "report.html").exists():
            page.write_report(run.path)
        notice(f"{path} is finished: nothing is left to do")
        return load(run.path)
    with run.alone():
        real = DataArguments(**info["arguments"]).open(settings)
        if real.fingerprint != info["data"]["fingerprint"]:
            raise UserError(f"the data at {info['arguments']['data']} have changed since {path} was started")
        with cpu_threads(info["threads"]):  # sums in another order would end with other bytes
            _go_on(run, settings, real, runtime, _initial_images(settings, real), info["baselines"])
    return load(run.path)


def _slug(data: str) -> str:
    return Path(data).name.split("*")[0].split("{")[0].removesuffix(".parquet").strip("-._") or "data"


def _initial_images(settings: Settings, real: RealData) -> torch.Tensor:
    d = settings.distill
    if d.init == "load":
        return initial.from_set(load(str(d.load)), real, ipc=d.ipc)
    return initial.initialize(d.init, real, ipc=d.ipc, factor=d.factor, seed=settings.seed)


def _rehearse(settings: Settings, real: RealData, runtime: Runtime, images: torch.Tensor) -> None:
    """Finds what would fail after the pool is trained, before anything is written: network, factor, memory budget."""
    pool = Pool(key="", initial=[], final=[], accuracies=[], seconds=0.0)
    problem = _problem(settings, real, runtime, pool)
    _plan(settings, problem, make_state(problem, images))


def _problem(settings: Settings, real: RealData, runtime: Runtime, pool: Pool) -> Problem:
    return make_problem(
        real,
        settings.distill,
        seed=settings.seed,
        pool=pool,
        build=networks.network_builder(settings.network, real),
        runtime=runtime,
        budget=_budget(settings),
        gradient_checkpointing=settings.runtime.gradient_checkpointing,
    )


def _run_info(
    settings: Settings, real: RealData, runtime: Runtime, arguments: DataArguments, baselines: Sequence[str]
) -> dict[str, Any]:
    return {
        "ncfmkit": __version__,
        "command": shlex.join(["ncfmkit", *sys.argv[1:]]) if "ncfmkit" in Path(sys.argv[0]).name else None,
        "arguments": dataclasses.asdict(arguments.absolute()),
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


def _go_on(
    run: RunDirectory,
    settings: Settings,
    real: RealData,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
) -> None:
    """Everything after the data are open, told how to go on with if it is interrupted."""
    notice(f"run directory: {run.path}")
    try:
        _all_stages(run, settings, real, runtime, images, baselines)
    except KeyboardInterrupt:
        raise Interrupted(f"what was finished is kept: go on with --resume {run.path}") from None


def _all_stages(
    run: RunDirectory,
    settings: Settings,
    real: RealData,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
) -> None:
    """Pool, steps, the set's file, pictures, scores, report."""
    notice(_headline(settings, real))
    notice(f"device: {runtime.describe()}")
    pool = open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)
    notice(pool_line(pool))
    run.update(pool={"key": pool.key, "accuracies": pool.accuracies, "seconds": round(pool.seconds, 1)})
    problem = _problem(settings, real, runtime, pool)
    state = make_state(problem, images)
    run_steps(run, settings, problem, state)
    result = finished_set(settings, real, state.images)
    set_file.save(result, run.path / set_file.FILE_NAME)
    _draw(run, result)
    if settings.student.repeats:
        run.update(status="scoring")
        herding = lambda count: herded_subset(real, count, pool.final[0], settings.network, runtime)  # noqa: E731
        scores = _scores(result, real, settings, baselines, herding, runtime)
        write_json(run.path / "scores.json", scores)
        result = dataclasses.replace(result, manifest=result.manifest | {"score": manifest_score(scores["rows"][0])})
        set_file.save(result, run.path / set_file.FILE_NAME)
    run.update(status="done")
    page.write_report(run.path)


def _headline(settings: Settings, real: RealData) -> str:
    d = settings.distill
    stored = len(real.classes) * d.ipc
    return (
        f"{real.name}: {len(real.train.images):,} images of {len(real.classes)} classes, {real.size}x{real.size} "
        f"{'gray' if real.channels == 1 else 'rgb'} -> {stored:,} images ({d.ipc} per class, factor {d.factor}, "
        f"{d.decode}); recipe {settings.recipe}, seed {settings.seed}"
        + (f"; {real.skipped} unreadable images passed over" if real.skipped else "")
    )


def _draw(run: RunDirectory, result: SyntheticSet) -> None:
    sheet = contact_sheet.contact_sheet(result.images.numpy(), result.labels.numpy(), result.classes)
    write_atomic(run.path / "preview.png", contact_sheet.png_bytes(sheet))
    curves.curves(run.metrics(), run.path / "curves.png")
