"""`ncfmkit compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o


@o.settings_flags(*o.READS["compare"], of_set=True)
def compare(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...", help="two or more sets, as `evaluate` takes them; the others are compared with the first"
        ),
    ],
    *,
    data: o.MadeFrom,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="folder for the results; an earlier comparison there is continued",
            show_default="comparison",
        ),
    ] = None,
    set_: o.Set = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Compares sets by the students that they train.

    All students are trained alike, by default as the first set records, and tested on real images. Differences to the
    first set are tested by pairs of students.
    """
    from rich.console import Console

    from ncfmkit.jobs import compare as job
    from ncfmkit.reports.comparison import tables

    if dry_run:
        o.show_estimate(job.dry_run(paths, data=data, out=out, **overrides), json)
        return
    found = job.compare(paths, data=data, out=out, **overrides)
    if json:
        o.print_json(found.to_dict())
        return
    console = Console(highlight=False)
    console.print(tables(found))
    console.print(f"[dim]measured on {found.device}, {found.precision}[/dim]", soft_wrap=True)
    folder = out or Path("comparison")
    print(f"\n{folder / job.PAGE_FILE}  all of it on one page\n{folder / job.RESULT_FILE}  the same for machines")
