"""`ncfmkit predict`."""

import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ncfmkit import interrupts
from ncfmkit.cli.options import json_line


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
        str, typer.Option("--provider", metavar="cpu|cuda|tensorrt", help="ONNX Runtime provider that runs the model")
    ] = "cpu",
) -> None:
    """Classifies pictures with an exported model.

    Prints classes and probabilities, one JSON object per line. Pictures of another size are scaled (short side) and
    cropped to the center, those of another color mode converted. Exit code 1 if pictures are unreadable; the others
    are classified all the same.
    """
    from PIL import Image

    from ncfmkit.exporters import predict as job

    out = sys.stdout  # kept: while a live bar is drawn, it stands in for sys.stdout and would print on stderr
    live = not out.isatty()
    answers = job.predict(model, paths, provider=provider, topk=topk, batch=batch, live=live)
    printed = 0
    with (
        interrupts.keeping(lambda: f"interrupted: {printed} pictures were answered"),
        closing(answers),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture's own line says as much
        for answer in answers:
            with interrupts.held():
                out.write(json_line(answer.to_dict(), out) + "\n")
                out.flush()
                printed += 1
