"""`ncfmkit cache`."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.errors import UserError
from ncfmkit.progress import printable

if TYPE_CHECKING:
    from ncfmkit.jobs.cache import Entry


def cache(
    *,
    clean: Annotated[bool, typer.Option("--clean", help="remove the listed entries, except those in use")] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="store|pool|students|compiled|timing|remote|runtime|download", help="only this kind"
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="only entries unused for this long, such as 12h, 30d, 2w"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with --clean: remove nothing, show what would be removed")
    ] = False,
    json: o.Json = False,
) -> None:
    """Lists what the cache folder holds and, with --clean, removes it.

    Shows size, last use and what each entry belongs to. Everything is made again when it is needed, except
    downloads, which are only listed.
    """
    from ncfmkit.files import cache_dir, format_bytes
    from ncfmkit.jobs import cache as job

    if dry_run and not clean:
        raise UserError("--dry-run shows what --clean would remove: pass both")
    found = job.entries(kind, older_than)
    if not clean:
        if json:
            o.print_json({"cache": str(cache_dir()), "entries": [_plain(entry) for entry in found]})
        else:
            _show(found, str(cache_dir()))
        return
    done = []
    for entry, outcome in job.clean(found, dry_run=dry_run):
        done.append(_plain(entry) | {"outcome": outcome})
        if not json:
            text = "would be removed" if dry_run and outcome == "removed" else outcome
            print(f"{text}: {entry.kind} {printable(entry.belongs_to)}, {format_bytes(entry.bytes)}, {entry.path}")
    freed = sum(entry["bytes"] for entry in done if entry["outcome"] == "removed")
    if json:
        o.print_json({"cache": str(cache_dir()), "entries": done, "freed_bytes": freed, "dry_run": dry_run})
    else:
        print(f"{format_bytes(freed)} {'would be' if dry_run else 'were'} freed in {cache_dir()}")


def _plain(entry: "Entry") -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "belongs_to": entry.belongs_to,
        "bytes": entry.bytes,
        "last_use": entry.last_use,
        "path": str(entry.path),
    }


def _show(found: list["Entry"], folder: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ncfmkit.files import format_bytes

    console = Console(highlight=False)
    table = Table("kind", "belongs to", box=box.SIMPLE_HEAD)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last use", no_wrap=True)
    for entry in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_use))
        table.add_row(entry.kind, escape(printable(entry.belongs_to)), format_bytes(entry.bytes), when)
    if found:
        console.print(table)
    total = format_bytes(sum(entry.bytes for entry in found))
    advice = "; --clean removes them" if found else ""
    console.print(escape(f"{len(found)} entries, {total} in {folder}{advice}"), soft_wrap=True)
