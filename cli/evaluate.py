"""`ncfmkit evaluate`."""

from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o

SetArgument = Annotated[
    str, typer.Argument(metavar="SET", help="a synthetic set's file, its run directory or a package")
]


@o.settings_flags("data", "network", "student", "runtime", "seed")
def evaluate(
    path: SetArgument,
    *,
    data: o.MadeFrom,
    baselines: o.Baselines = "none",
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Scores a set: trains fresh students on it and tests them on the real test split."""
    from rich.console import Console

    from ncfmkit.jobs import evaluate as job
    from ncfmkit.reports.scores import score_table

    scores = job.evaluate(path, data=data, baselines=baselines, **overrides)
    if json:
        o.print_json(scores)
        return
    console = Console(highlight=False)
    console.print(score_table(scores["rows"]))
    console.print(f"[dim]measured on {scores['device']}, {scores['precision']}[/dim]", soft_wrap=True)
