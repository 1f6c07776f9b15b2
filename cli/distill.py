"""`ncfmkit distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit import distributed
from ncfmkit.cli import options as o
from ncfmkit.config import from_dict
from ncfmkit.errors import UserError
from ncfmkit.progress import plural, printable

if TYPE_CHECKING:
    from ncfmkit.jobs.distill import Planned
    from ncfmkit.real.arguments import DataArguments
    from ncfmkit.run import RunDirectory


@o.settings_flags(*o.READS["distill"])
def distill(
    data: Annotated[
        "DataArguments | None",
        typer.Argument(
            help="digits, cifar10, ... or a path; `ncfmkit recipes --data` lists what it can be",
            autocompletion=o.complete_data,
        ),
    ] = None,
    *,
    recipe: o.Recipe = None,
    out: Annotated[
        str | None, typer.Option("--out", help="run directory to make", show_default="a new one below runs/")
    ] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="DIR", help="continue an interrupted run")] = None,
    moved: Annotated[
        "DataArguments | None",
        typer.Option("--data", metavar="DATA", help="with --resume: where the data are now", rich_help_panel="Data"),
    ] = None,
    force: o.Force = False,
    baselines: o.Baselines = "random",
    set_: o.Set = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Distills a labeled image set into a small one, and scores it.

    A run directory keeps the set, its preview, scores, losses and checkpoints.
    """
    from ncfmkit.jobs import distill as job
    from ncfmkit.scoring.baselines import parse_baselines

    names = parse_baselines(baselines)
    if data is not None and resume is None and distributed.may_restart():
        if out is None or force:
            raise UserError(
                "torchrun --max-restarts: ranks that are started again go on in the directory of the run: pass --out "
                "with a new directory, without --force"
            )
        if distributed.restarted() and distributed.from_first(lambda: job.is_of_this_command(Path(out))):
            job.go_on(Path(out))
            return _show_first(Path(out), json=json)
    if resume is not None:
        settings = data is not None or overrides or recipe or out or force or dry_run or names != ("random",)
        if settings or (data_flags if moved is None else moved.skip_bad):
            raise UserError(
                "--resume continues with the run's own settings: pass nothing else, except --data (and with it "
                "--data-root or --download) where the data have moved"
            )
        folder = Path(resume)
        if moved is None:
            job.go_on(folder)
        else:
            job.go_on(folder, moved.data, data_root=moved.data_root, download=moved.download)
    elif moved is not None:
        raise UserError("--data goes with --resume: to start a run, name the data first, as in `ncfmkit distill DATA`")
    elif data is None:
        raise UserError("say what to distill: `ncfmkit distill digits`, a path, or --resume DIR")
    elif dry_run:
        found = job.dry_run(data, recipe=recipe, out=out, force=force, baselines=names, overrides=overrides)
        o.print_json(found.to_dict()) if json else _show_plan(found)
        return
    else:
        folder = job.start(data, recipe=recipe, out=out, force=force, baselines=names, overrides=overrides)
    _show_first(folder, json=json)


def _show_first(folder: Path, *, json: bool) -> None:
    """What a run made; its directory is known to the first of its ranks."""
    from ncfmkit.run import RunDirectory

    if distributed.is_first():
        show(RunDirectory.open(folder), json=json)


def show(run: "RunDirectory", *, json: bool) -> None:
    """The paths of what was made, and the score table last."""
    from rich.console import Console
    from rich.markup import escape

    from ncfmkit.jobs import distill as job
    from ncfmkit.reports.scores import score_table

    if json:
        o.print_json({"run": str(run.path), **run.to_dict()})
        return
    console = Console(highlight=False)
    for name, what in job.ARTIFACTS.items():
        if (run.path / name).exists():
            console.print(f"{escape(str(run.path / name))}  [dim]{what}[/dim]", soft_wrap=True)
    scores = run.scores()
    if scores is not None:
        console.print(score_table(scores.rows))
        console.print(f"[dim]measured on {scores.device}[/dim]", soft_wrap=True)


def _show_plan(found: "Planned") -> None:
    """The settings that matter, and what would be written; data, device, memory and estimate were said before."""
    from ncfmkit.estimate import duration
    from ncfmkit.files import format_bytes
    from ncfmkit.scoring.students import describe_network

    s = from_dict(found.settings)
    d, pool, student = s.distill, s.pool, s.student
    beside = f", and for each baseline ({', '.join(found.baselines)})" if found.baselines else ""
    scored = f"{student.repeats} of {student.epochs:,} epochs for the set{beside}"
    students = "none" if not student.repeats else scored if d.shard is None else "by ncfmkit merge"
    other = "" if s.extractors == (s.network,) else f": {', '.join(map(describe_network, s.extractors))}"
    part = "" if d.shard is None else f"; shard {d.shard} of the classes"
    top = f", top {s.labels.top}" if s.labels.top else ""
    averaged = f", average of decay {d.average:g}" if d.average else ""
    rows = {
        "data": f"{found.data.train:,} images to train on, {found.data.test:,} to test on",
        "recipe": f"{s.recipe}, seed {s.seed}",
        "network": describe_network(s.network),
        "pool": f"{plural(pool.members, 'extractor')} of {plural(pool.epochs, 'epoch')}{other}",
        "images": f"{d.ipc} per class, factor {d.factor}, {d.stored_as}, from {d.init}{part}",
        "matching": f"{d.steps:,} steps of lr {d.lr:g}, {d.metric}, {d.frequencies} frequencies ({d.sampler}), "
        f"{d.real_batch} real images per class, schedule {d.schedule}{averaged}",
        "labels": f"soft, by the pool at temperature {s.labels.temperature:g}, {s.labels.bits} bits{top}"
        if s.labels.soft
        else "hard",
        "students": students,
        "memory": f"{format_bytes(found.memory)} for a step on {found.device.split()[0]}, {found.precision}",
        "time": f"about {duration(found.seconds)}",
        "writes": ", ".join(found.writes),
    }
    for name, text in rows.items():
        print(f"{name:9} {printable(text)}")
    print("nothing was written: leave out --dry-run to start")
