"""`ncfmkit inspect`."""

from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.progress import printable


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="run directory, synthetic set (or hf://OWNER/NAME), package, student, exported model or web page",
        ),
    ],
    *,
    json: o.Json = False,
) -> None:
    """Describes a run, set, package, student or exported model."""
    from ncfmkit.jobs import inspect as job

    what = job.inspect(path)
    if json:
        o.print_json(what.content)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ncfmkit.reports.contact_sheet import terminal_preview
    from ncfmkit.reports.scores import score_table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=escape(what.title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in what.summary.items():
        table.add_row(key, escape(_text(value)))
    console.print(table)
    if what.scores:
        console.print(score_table(what.scores))
    if what.images is not None and console.is_terminal:
        console.print(terminal_preview(what.images.images.numpy(), what.images.labels.numpy(), columns=console.width))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(map(str, value[:8]))) + (f", ... ({len(value)})" if len(value) > 8 else "")
    return "-" if value is None else printable(str(value))
