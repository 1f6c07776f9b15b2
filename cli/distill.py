"""`ncfmkit distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags("data", "distill", "network", "pool", "student", "runtime", "seed")
def distill(
    data: Annotated[
        "DataArguments | None", typer.Argument(help="digits, cifar10, ... or a path (`ncfmkit recipes --data`)")
    ] = None,
    *,
    recipe: o.Recipe = None,
    out: Annotated[str | None, typer.Option("--out", help="run directory; default: a fresh one under runs/")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="DIR", help="go on with an interrupted run")] = None,
    moved: Annotated[
        "DataArguments | None",
        typer.Option("--data", metavar="DATA", help="with --resume: where the data are now", rich_help_panel="Data"),
    ] = None,
    baselines: o.Baselines = "random",
    set_: o.Set = None,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Makes a small synthetic set from a labeled image set, and scores it."""
    from ncfmkit.jobs import distill as job
    from ncfmkit.run import load_run
    from ncfmkit.scoring.baselines import parse_baselines

    names = parse_baselines(baselines)
    if resume is not None:
        settings = data is not None or overrides or recipe or out or names != ("random",)
        if settings or (data_flags if moved is None else moved.skip_bad):
            raise UserError(
                "--resume goes on with the run's own settings: pass nothing else with it, except --data (and with it "
                "--data-root or --download) where the data are elsewhere now"
            )
        folder = Path(resume)
        if moved is None:
            job.resume(folder)
        else:
            job.resume(folder, moved.data, data_root=moved.data_root, download=moved.download)
    elif moved is not None:
        raise UserError("--data goes with --resume: to start a run, name the data first, as in `ncfmkit distill DATA`")
    elif data is None:
        raise UserError("say what to distill: `ncfmkit distill digits`, a path, or --resume DIR")
    else:
        folder = job.start(data, recipe=recipe, out=out, baselines=names, overrides=overrides)
    run = load_run(folder)
    if json:
        o.print_json({"run": str(folder), **run})
    else:
        _show(folder, run)


def _show(folder: Path, run: dict[str, Any]) -> None:
    """The paths of what was made, and the score table last."""
    from rich.console import Console
    from rich.markup import escape

    from ncfmkit.jobs import distill as job
    from ncfmkit.reports.scores import score_table

    console = Console(highlight=False)
    for name, what in job.ARTIFACTS.items():
        if (folder / name).exists():
            console.print(f"{escape(str(folder / name))}  [dim]{what}[/dim]", soft_wrap=True)
    if "scores" in run:
        console.print(score_table(run["scores"]["rows"]))
        console.print(f"[dim]measured on {run['device']}[/dim]", soft_wrap=True)
