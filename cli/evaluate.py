"""`ncfmkit evaluate`."""

from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o

SetArgument = Annotated[
    str, typer.Argument(metavar="SET", help="file of a synthetic set, its run directory or a package")
]


@o.settings_flags(*o.READS["evaluate"], of_set=True)
def evaluate(
    path: SetArgument,
    *,
    data: o.MadeFrom,
    baselines: o.Baselines = "none",
    set_: o.Set = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains students on a set and tests them on real images."""
    from rich.console import Console

    from ncfmkit.jobs import evaluate as job
    from ncfmkit.reports.scores import score_table
    from ncfmkit.runtime import choose_runtime
    from ncfmkit.scoring.baselines import parse_baselines
    from ncfmkit.sets.loading import load

    result = load(path)
    settings = job.settings_for(result, overrides)
    names = parse_baselines(baselines)
    runtime = choose_runtime(settings.runtime)
    real = data.open(settings)
    if dry_run:
        o.show_estimate(job.estimate(result, real, settings, runtime, baselines=names), json)
        return
    scores = job.evaluate(result, real, settings, runtime, baselines=names)
    if json:
        o.print_json(scores)
        return
    console = Console(highlight=False)
    console.print(score_table(scores["rows"]))
    console.print(f"[dim]measured on {scores['device']}, {scores['precision']}[/dim]", soft_wrap=True)
