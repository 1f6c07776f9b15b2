"""`ncfmkit pack`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument

SCORE = "Score"


@o.settings_flags("data", "student", "runtime")
def pack(
    path: SetArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="safetensors|webdataset|parquet|png", help="the layout")],
    out: Annotated[
        Path | None, typer.Option("--out", help="the folder to write; default: named after set and layout")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", help="license of the real images, such as mit; adds the dataset card, needed for parquet"
        ),
    ] = None,
    decoded: Annotated[
        bool, typer.Option("--decoded", help="write the images to train on, for tools that cannot decode")
    ] = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", metavar="png|webp", help="of the pictures, both lossless; default: png")
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option("--shard-size", help="the largest size of a shard (webdataset, parquet); default: 256MiB"),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="8|6|5|4|3|2", help="store the pixels in so many bits")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", metavar="image|channel", help="range of the bits: each image's own, or the set's")
    ] = "image",
    dither: Annotated[bool, typer.Option("--dither", help="spread what the bits round off over the neighbors")] = False,
    score: Annotated[
        bool,
        typer.Option("--score", help="measure the set as it is packed, and promise that score", rich_help_panel=SCORE),
    ] = False,
    data: o.ScoreData = None,
    set_: o.Set = None,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Packs a set for other people's tools: a folder with the set, its manifest, checksums and a dataset card."""
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import pack as job
    from ncfmkit.sets.package import SUMS

    o.check_scoring(score, data_flags)
    folder, result = job.pack(
        path,
        to=to,
        out=out,
        license=license,
        decoded=decoded,
        encoding=encoding,
        shard_size=shard_size,
        bits=bits,
        scale=scale,
        dither=dither,
        score=score,
        data=data,
        **overrides,
    )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in files)
    if json:
        listed = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
        o.print_json({"folder": str(folder), "bytes": size, "files": listed, "manifest": result.manifest})
        return
    print(f"{folder}: {to}, {len(files)} file{'s' if len(files) > 1 else ''}, {format_bytes(size)}")
    if result.manifest["score"] is None and bits is not None and bits < 8:
        print("its score is unknown, since its pixels changed: pack it anew with --score --data DATA to measure it")
    print(f"check it with `ncfmkit verify {folder}`, or with `sha256sum -c {SUMS}` inside")
