"""`ncfmkit convert`."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ncfmkit.cli import options as o
from ncfmkit.config import SETTINGS

Values = Annotated[
    Literal["unit", "bytes", "normalized", "zca"] | None,
    typer.Option(
        "--values",
        help="pixel values: in [0, 1] (unit), 0 to 255 (bytes), normalized, or ZCA-whitened",
        show_default="bytes if they are 8-bit, else unit",
        rich_help_panel="Released set",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="mean of the normalization per channel, comma-separated",
        show_default="that of the data, none with zca",
        rich_help_panel="Released set",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        help="standard deviation of the normalization per channel, comma-separated",
        show_default="that of the data, none with zca",
        rich_help_panel="Released set",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="file of the labels",
        show_default="labels_*.pt beside images_*.pt",
        rich_help_panel="Released set",
    ),
]
ByPosition = Annotated[
    bool,
    typer.Option(
        "--labels-by-position",
        help="for soft labels: rows are sorted by class, with equally many of each",
        rich_help_panel="Released set",
    ),
]
Experiment = Annotated[
    int | None,
    typer.Option(
        "--experiment",
        help="number of the set to take, from 0, if the file is a dictionary with a list of sets as 'data'",
        show_default="0",
        rich_help_panel="Released set",
    ),
]
Factor = Annotated[
    int | None,
    typer.Option(
        "--factor",
        help=SETTINGS["distill.factor"].help,
        show_default="2 for a list of images and targets, else 1",
        rich_help_panel="Released set",
    ),
]
Decode = Annotated[
    Literal["single", "multi", "bound"] | None,
    typer.Option(
        "--decode",
        help=SETTINGS["distill.decode"].help,
        show_default="single",
        rich_help_panel="Released set",
    ),
]
MaxSize = Annotated[
    str,
    typer.Option(
        "--max-size",
        help="maximum size of the file, such as 4GiB; reading takes about twice that memory (float16: three times), "
        "and zca four matrices of 8 bytes per pair of values of an image (32x32 RGB: 0.3 GB)",
        rich_help_panel="Released set",
    ),
]


@o.settings_flags(*o.READS["convert"])
def convert(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=".pt file of images and labels, or folder of class folders"),
    ],
    *,
    data: o.MadeFrom,
    values: Values = None,
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    labels_by_position: ByPosition = False,
    experiment: Experiment = None,
    factor: Factor = None,
    decode: Decode = None,
    max_size: MaxSize = "2GiB",
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write", show_default="name of the set + .safetensors")
    ] = None,
    recipe: o.Recipe = None,
    set_: o.Set = None,
    force: o.Force = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Converts a set that another project released (DM, MTT, DATM, ...)."""
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import convert as job

    out, result = job.convert(
        path,
        data=data,
        values=values,
        mean=mean,
        std=std,
        labels=labels,
        labels_by_position=labels_by_position,
        experiment=experiment,
        factor=factor,
        decode=decode,
        max_size=max_size,
        out=out,
        recipe=recipe,
        force=force,
        **overrides,
    )
    size = out.stat().st_size
    if json:
        o.print_json({"set": str(out), "bytes": size, "manifest": result.manifest.to_dict()})
        return
    print(
        f"{out}: {len(result.images):,} images of {len(result.classes)} classes, {format_bytes(size)}; its score is "
        f"unknown: {shlex.join(['ncfmkit', 'evaluate', str(out), '--data', data.data])} measures it"
    )
