"""`ncfmkit distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


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
    force: o.Force = False,
    baselines: o.Baselines = "random",
    set_: o.Set = None,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Distills a labeled image set into a small one, and scores it.

    A run directory keeps the set, its preview, scores, losses and checkpoints.
    """
    from ncfmkit.jobs import distill as job
    from ncfmkit.run import load_run
    from ncfmkit.scoring.baselines import parse_baselines

    names = parse_baselines(baselines)
    if resume is not None:
        if data is not None or data_flags or overrides or recipe or out or force or names != ("random",):
            raise UserError("--resume goes on with the run's own settings: pass nothing else with it")
        folder = Path(resume)
        job.resume(folder)
    elif data is None:
        raise UserError("say what to distill: `ncfmkit distill digits`, a path, or --resume DIR")
    else:
        folder = job.start(data, recipe=recipe, out=out, force=force, baselines=names, overrides=overrides)
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
