"""`ncfmkit merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.distill import show


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run directories of all shards, in any order")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="run directory to make", show_default="beside the first shard")
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Joins the shards of a run (`distill --shard`) and scores the set."""
    from ncfmkit.jobs import merge as job
    from ncfmkit.run import RunDirectory

    result = job.merge(runs, out=out, force=force)
    show(RunDirectory.open(result.run_dir), json=json)
