"""`ncfmkit unpack`."""

from pathlib import Path
from typing import Annotated

import typer

from ncfmkit.cli import options as o
from ncfmkit.progress import printable


def unpack(
    path: Annotated[
        str, typer.Argument(metavar="PACKAGE", help="folder written by `ncfmkit pack`, or hf://OWNER/NAME")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write", show_default="name of the set + .safetensors")
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Copies the set's one file out of a package, once it is checked."""
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import unpack as job

    file, manifest = job.unpack(path, out=out, force=force)
    if json:
        o.print_json({"set": str(file), "manifest": manifest.to_dict()})
        return
    name, size = printable(manifest.name), format_bytes(file.stat().st_size)
    count = len(manifest.classes) * manifest.ipc.stored
    print(f"{file}: {name}, {count:,} images, {size}")
