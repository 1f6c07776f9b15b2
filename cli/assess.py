"""`ncfmkit assess`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument


@o.settings_flags(*o.READS["assess"], of_set=True)
def assess(
    path: SetArgument,
    *,
    data: o.MadeFrom,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            help="evaluations, comma-separated: privacy, ranking, continual, search, architectures; "
            "all: those that the set and its data allow",
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="folder for the results; an earlier assessment there is continued",
            show_default="assessment",
        ),
    ] = None,
    set_: o.Set = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Measures what a set is good for, and what it gives away.

    Each evaluation is a section of one page, beyond the accuracy that `evaluate` measures. Some train dozens of
    students: --dry-run says how long each takes.
    """
    from rich.console import Console

    from ncfmkit.jobs import assess as job
    from ncfmkit.reports.assessment import tables
    from ncfmkit.scoring.evaluations import parse_evaluations

    if dry_run:
        o.show_estimate(job.dry_run(path, data=data, only=only, out=out, **overrides), json)
        return
    found = job.assess(path, data=data, only=only, out=out, **overrides)
    if json:
        o.print_json(found.to_dict())
        return
    console = Console(highlight=False)
    console.print(tables(found, job.HEADINGS, parse_evaluations(only)))
    console.print(f"[dim]measured on {found.device}, {found.precision}[/dim]", soft_wrap=True)
    folder = out or Path("assessment")
    print(f"\n{folder / job.PAGE_FILE}  all of it on one page\n{folder / job.RESULT_FILE}  the same for machines")
