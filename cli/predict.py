"""`ncfmkit predict`."""

import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ncfmkit import interrupts
from ncfmkit.cli import options as o
from ncfmkit.cli.options import csv_line, json_line

if TYPE_CHECKING:
    from ncfmkit.exporters.predict import Answer

FORMATS = ("jsonl", "csv")
COLUMNS = ("file", "rank", "class", "label", "probability", "error")  # of CSV


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX classifier, such as `ncfmkit export` writes")],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILES|FOLDERS", help="pictures (JPEG, PNG, TIFF, GIF, WebP, ...), or folders of them"),
    ],
    *,
    topk: Annotated[
        int | None, typer.Option("--topk", metavar="N", help="classes per picture", show_default="5, or all if fewer")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="pictures per call of the model")] = 64,
    provider: Annotated[
        str,
        typer.Option(
            "--provider",
            metavar="cpu|cuda|tensorrt|openvino|webgpu|tensorrt-rtx",
            help="ONNX Runtime provider that runs the model",
        ),
    ] = "cpu",
    layout: o.ModelInput = None,
    output: o.ModelOutput = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="what is printed: a JSON object per picture, or CSV with a row per picture and class",
        ),
    ] = "jsonl",
) -> None:
    """Classifies pictures with an exported model.

    Prints classes and probabilities of every picture as it comes. Pictures of another size are scaled (short side)
    and cropped to the center, those of another color mode converted. Exit code 1 if pictures are unreadable: what is
    printed of them is the reason, and the others are classified all the same.
    """
    from PIL import Image

    from ncfmkit.errors import UserError
    from ncfmkit.exporters import predict as job

    if format not in FORMATS:
        raise UserError(f"--format {format!r}: expected {' or '.join(FORMATS)}")
    out = sys.stdout  # kept: while a live bar is drawn, it stands in for sys.stdout and would print on stderr
    live = not out.isatty()
    answers = job.predict(
        model, paths, provider=provider, topk=topk, batch=batch, layout=layout, output=output, live=live
    )
    printed = 0
    with (
        interrupts.keeping(lambda: f"interrupted: {printed} pictures were answered"),
        closing(answers),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture's own line says as much
        if format == "csv":
            out.write(csv_line(COLUMNS, out) + "\n")
        for answer in answers:
            with interrupts.held():
                out.write(_csv(answer, out) if format == "csv" else json_line(answer.to_dict(), out) + "\n")
                out.flush()
                printed += 1


def _csv(answer: "Answer", out: TextIO) -> str:
    """A row for each of the likeliest classes, the likeliest first; of an unreadable picture one, with the reason."""
    rows = [(answer.file, i + 1, g.class_name, g.label, g.probability, None) for i, g in enumerate(answer.topk)]
    unread = [(answer.file, None, None, None, None, answer.error)]
    return "".join(csv_line(row, out) + "\n" for row in rows or unread)
