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
        help="what the pixel values are: in [0, 1], 0 to 255, normalized, or ZCA-whitened; default: bytes where "
        "they are 8-bit, else unit",
        rich_help_panel="Released set",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="per channel, comma-separated: what they were normalized with; default: DATA's own, with zca none",
        rich_help_panel="Released set",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        help="per channel, comma-separated: what they were divided by; default: as --mean",
        rich_help_panel="Released set",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="file of the labels; default: beside images_*.pt as labels_*.pt",
        rich_help_panel="Released set",
    ),
]
ByPosition = Annotated[
    bool,
    typer.Option(
        "--labels-by-position",
        help="with soft labels: the rows are sorted by class, equally many of each",
        rich_help_panel="Released set",
    ),
]
Experiment = Annotated[
    int | None,
    typer.Option(
        "--experiment",
        help="of a file with several sets, a dictionary with a list of them as 'data': which, from 0; default: 0",
        rich_help_panel="Released set",
    ),
]
Factor = Annotated[
    int | None,
    typer.Option(
        "--factor",
        help=f"{SETTINGS['distill.factor'].help}; default: 2 for a list of images and targets, else 1",
        rich_help_panel="Released set",
    ),
]
Decode = Annotated[
    Literal["single", "multi", "bound"] | None,
    typer.Option(
        "--decode",
        help=f"{SETTINGS['distill.decode'].help}; default: single",
        rich_help_panel="Released set",
    ),
]
MaxSize = Annotated[
    str,
    typer.Option(
        "--max-size",
        help="largest file that is read, such as 4GiB; memory: about twice that (float16: thrice), and with zca "
        "four matrices of 8 bytes for each pair of values of an image (32x32 RGB: 0.3 GB)",
        rich_help_panel="Released set",
    ),
]


@o.settings_flags("data", "network", "student", "seed")
def convert(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="a .pt file of images and labels, or a folder of class folders"),
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
    out: Annotated[Path | None, typer.Option("--out", help="the file to write; default: NAME.safetensors")] = None,
    recipe: o.Recipe = None,
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Reads a set that another project released (DM, MTT, DATM, ...) and writes it as an ordinary one."""
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
        **overrides,
    )
    size = out.stat().st_size
    if json:
        o.print_json({"set": str(out), "bytes": size, "manifest": result.manifest})
        return
    print(
        f"{out}: {len(result.images):,} images of {len(result.classes)} classes, {format_bytes(size)}; its score is "
        f"unknown, {shlex.join(['ncfmkit', 'evaluate', str(out), '--data', data.data])} tells it"
    )
