"""`ncfmkit export`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.exporters.table import EXPORTERS

if TYPE_CHECKING:
    from ncfmkit.exporters.export import Exported
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags(*o.READS["export"])
def export(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="file written by `ncfmkit train`")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="|".join(EXPORTERS), help="format")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="file or folder to write",
            show_default="beside the student, named after it and the precision",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="fp32|fp16|int8", help="precision of weights and arithmetic")
    ] = "fp32",
    layout: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="uint8-nchw|uint8-nhwc|float-nchw",
            help="images that the model takes: pixels 0 to 255 or floats 0 to 1, not normalized",
        ),
    ] = "uint8-nchw",
    output: Annotated[
        str, typer.Option("--output", metavar="logits|probabilities", help="what the model returns")
    ] = "logits",
    opset: Annotated[
        int | None,
        typer.Option("--opset", metavar="N", help="ONNX opset", show_default="17"),
    ] = None,
    calibration: Annotated[
        "DataArguments | None",
        typer.Option(
            "--calibration",
            metavar="SET|DATA",
            help="images to calibrate int8 with",
            show_default="the student's distilled set, if it is in the same folder",
            autocompletion=o.complete_data,
            rich_help_panel="int8",
        ),
    ] = None,
    int8_skip: Annotated[
        str | None,
        typer.Option(
            "--int8-skip", metavar="LAYERS", help="layers that stay float, comma-separated", rich_help_panel="int8"
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            "--max-accuracy-drop",
            metavar="POINTS",
            help="keep layers float until int8 loses at most this on training images of --data",
            rich_help_panel="int8",
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--runtime",
            metavar="FOLDER|TGZ",
            help="an unpacked onnxruntime-web, or the file that `npm pack` writes",
            show_default="that in the cache, else --download fetches it by npm",
            rich_help_panel="Web page",
        ),
    ] = None,
    data: Annotated[
        "DataArguments | None",
        typer.Option(
            "--data",
            help="real data whose test split is compared on as well",
            rich_help_panel="Data",
            autocompletion=o.complete_data,
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="fetch a named data set that is not there (torchvision, hf://), or copy an address; with --to web, "
            "fetch onnxruntime-web",
            rich_help_panel="Data",
        ),
    ] = False,
    force: o.Force = False,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Exports a student to ONNX, TensorRT or a web page.

    The exported model includes the preprocessing: it takes pixels. Its logits are compared with the
    student's; exit code 1 if they differ. A web page classifies pictures in the browser and uploads nothing.
    """
    from ncfmkit.errors import CheckFailed, UserError
    from ncfmkit.exporters import export as exporting
    from ncfmkit.exporters.calibration import is_set

    named = [given.data for given in (data, calibration) if given is not None]
    real = data is not None or (calibration is not None and not is_set(calibration.data))
    if not real and (data_flags or (download and not (to in EXPORTERS and EXPORTERS[to].runtime))):
        raise UserError("options of the real data need --data, the data to compare on")
    if "" in named or (int8_skip is not None and not all(int8_skip.replace(" ", "").split(","))):
        raise UserError("--data, --calibration and --int8-skip: expected names, got an empty one")
    if download and not named:
        overrides["download"] = True  # of what runs a web page
    try:
        result = exporting.export(
            student,
            out=out,
            to=to,
            precision=precision,
            layout=layout,
            output=output,
            opset=opset,
            data=data,
            calibration=calibration,
            int8_skip=[name.strip() for name in int8_skip.split(",")] if int8_skip else [],
            max_accuracy_drop=max_accuracy_drop,
            runtime=runtime,
            force=force,
            **overrides,
        )
    except CheckFailed as error:
        if error.result is not None:
            _show(error.result, json)
        raise
    _show(result, json)


def _show(result: "Exported", json: bool) -> None:
    if json:
        o.print_json(result.to_dict())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ncfmkit.files import format_bytes

    tolerance = result.tolerance
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("compared on")
    for header in ("largest difference", "allowed", "top-1 agreement"):
        table.add_column(header, justify="right")
    for row in result.parity:
        worst = max(row.batches, key=lambda batch: batch.max_abs)
        table.add_row(
            f"{row.count} {row.images} images",
            f"{worst.max_abs:.2g}",
            f"{tolerance.absolute + tolerance.relative * worst.scale:.2g}",
            f"{row.agreement:.2%}",
        )
    table.caption, table.caption_justify = "difference of logits from the student in float32 torch", "left"
    console = Console(highlight=False)
    console.print(table)
    accuracy = result.accuracy
    if accuracy:
        print(
            f"accuracy on {accuracy.images:,} test images of {accuracy.data}: "
            f"{accuracy.exported:.2%}, the student's {accuracy.student:.2%}"
        )
    kept = result.int8.float_layers if result.int8 else ()
    left = f", float layers: {', '.join(kept)}" if kept else ""
    print(f"{result.file}: {result.precision}{left}, opset {result.opset}, {format_bytes(result.bytes)}")
    trying = EXPORTERS[result.to].trying
    if trying is not None:
        print(f"try it at http://127.0.0.1:8000 with this command:\n{trying.format(shlex.quote(result.file))}")
