"""`ncfmkit pack`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument

SCORE = "Score"


@o.settings_flags(*o.READS["pack"], of_set=True)
def pack(
    path: SetArgument,
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="safetensors|webdataset|parquet|png", help="layout of the package")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder to write", show_default="named after set and layout")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", help="license of the real images, such as mit, for the dataset card"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding", metavar="png|webp", help="format of the pictures, both lossless", show_default="png"
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option("--shard-size", help="maximum size of a shard (webdataset, parquet)", show_default="256MiB"),
    ] = None,
    ipc: Annotated[
        int | None,
        typer.Option("--ipc", help="stored images per class, the first ones of the set", show_default="all"),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="8|6|5|4|3|2", help="bits per pixel value", show_default="8")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="image|channel",
            help="value range that --bits divides: per image, or per channel of the set",
        ),
    ] = "image",
    dither: Annotated[bool, typer.Option("--dither", help="Floyd-Steinberg dithering with --bits")] = False,
    chroma: Annotated[
        str | None,
        typer.Option(
            "--chroma",
            metavar="4:4:4|4:2:0",
            help="resolution of the color: as it is, or half of it in each direction",
            show_default="4:4:4",
        ),
    ] = None,
    assessment: Annotated[
        Path | None,
        typer.Option("--assessment", help="folder of `assess`, of this set, for the dataset card"),
    ] = None,
    score: Annotated[
        bool,
        typer.Option(
            "--score",
            help="train students on the packed set and record their accuracy",
            rich_help_panel=SCORE,
        ),
    ] = False,
    data: o.ScoreData = None,
    set_: o.Set = None,
    force: o.Force = False,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Packs a set as a folder to ship, which other tools read.

    The folder holds the set's one file, its images to train on in the layout of --to, a reader in Python, a dataset
    card and checksums.
    """
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import pack as job
    from ncfmkit.sets.package import SUMS

    o.check_scoring(score, data_flags)
    folder, result = job.pack(
        path,
        to=to,
        out=out,
        license=license,
        encoding=encoding,
        shard_size=shard_size,
        ipc=ipc,
        bits=bits,
        scale=scale,
        dither=dither,
        chroma=chroma,
        assessment=assessment,
        score=score,
        data=data,
        force=force,
        **overrides,
    )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in files)
    if json:
        listed = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
        o.print_json({"folder": str(folder), "bytes": size, "files": listed, "manifest": result.manifest.to_dict()})
        return
    print(f"{folder}: {to}, {len(files)} file{'s' if len(files) > 1 else ''}, {format_bytes(size)}")
    if result.manifest.score is None:
        print("its score is unknown: pack it with --score --data DATA to measure it")
    if result.manifest.source.license is None:
        print("the license of the real images is not stated: pack it with --license before you publish it")
    print(f"check it with `ncfmkit verify {shlex.quote(str(folder))}`, or with `sha256sum -c {SUMS}` inside")
