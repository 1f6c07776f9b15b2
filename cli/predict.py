"""`ncfmkit predict`."""

import sys
import warnings
from contextlib import closing
from json import dumps
from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="an ONNX classifier, such as `ncfmkit export` writes")],
    paths: Annotated[
        list[str], typer.Argument(metavar="FILES|FOLDERS", help="pictures: PNG, JPEG, WebP, BMP; folders of them")
    ],
    *,
    topk: Annotated[
        int | None, typer.Option("--topk", metavar="N", help="classes per picture; default 5, or all if fewer")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="pictures that the model is given at once")] = 64,
    provider: Annotated[str, typer.Option("--provider", metavar="cpu|cuda|tensorrt", help="what runs it")] = "cpu",
) -> None:
    """Says what is on pictures: classes and probabilities by an exported model, one JSON object a line (no --json).

    Pictures of another size or color are brought to the model's: short side to its size, then the center.
    Exit code 1 if some could not be read; the others are answered all the same.
    """
    from PIL import Image

    from ncfmkit.exporters import predict as job

    out = sys.stdout  # kept: while a live bar is drawn, it stands in for sys.stdout and would print on stderr
    live = not out.isatty()
    answers = job.predict(model, paths, provider=provider, topk=topk, batch=batch, live=live)
    with closing(answers), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture's own line says as much
        for answer in answers:
            out.write(dumps(answer) + "\n")
            out.flush()
