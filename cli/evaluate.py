"""`ncfmkit evaluate`."""

from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o

SetArgument = Annotated[
    str,
    typer.Argument(
        metavar="SET", help="file of a synthetic set, its run directory or a package, or hf://OWNER/NAME of a package"
    ),
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
    """Trains students on a set and tests them on real images.

    --network takes several networks, comma-separated, or `all`. What each student gets right is kept in the cache, so
    that the same command continues after Ctrl-C, and a larger --repeats trains only further ones.
    """
    from rich.console import Console

    from ncfmkit.jobs import evaluate as job
    from ncfmkit.reports.scores import score_table

    if dry_run:
        o.show_estimate(job.dry_run(path, data=data, baselines=baselines, **overrides), json)
        return
    scores = job.evaluate(path, data=data, baselines=baselines, **overrides)
    if json:
        o.print_json(scores.to_dict())
        return
    console = Console(highlight=False)
    console.print(score_table(scores.rows))
    console.print(f"[dim]measured on {scores.device}, {scores.precision}[/dim]", soft_wrap=True)
