"""`ncfmkit validate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o

if TYPE_CHECKING:
    from ncfmkit.exporters.results import ModelComparison, Validation
    from ncfmkit.real.arguments import DataArguments

SPEED = "Speed"


@o.settings_flags(*o.READS["validate"])
def validate(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="ONNX classifiers or TensorRT engines (.engine); several are compared"),
    ],
    *,
    data: Annotated[
        "DataArguments",
        typer.Option(
            "--data", help="real data with a test split", rich_help_panel="Data", autocompletion=o.complete_data
        ),
    ],
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider",
            metavar="cpu|cuda|tensorrt|openvino|webgpu|tensorrt-rtx|all",
            help="ONNX Runtime provider that runs the model",
            show_default="cpu",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="STUDENT", help="student that the models were exported from"),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option("--max-accuracy-drop", metavar="POINTS", help="exit code 1 if accuracy drops by more"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="folder to make for the results",
            show_default="validation-MODEL, of several validation-comparison",
        ),
    ] = None,
    layout: o.ModelInput = None,
    output: o.ModelOutput = None,
    batches: Annotated[
        str,
        typer.Option("--batches", metavar="N,N", help="batch sizes to time, comma-separated", rich_help_panel=SPEED),
    ] = "1,8,64,256",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", help="CPU threads", show_default="as many as torch uses", rich_help_panel=SPEED
        ),
    ] = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="skip timing", rich_help_panel=SPEED)] = False,
    force: o.Force = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Measures accuracy and speed of exported models on this machine.

    Several models see the same images and are timed by turns; differences of accuracy are tested image by image.

    Exit code 1 if accuracy drops by more than --max-accuracy-drop, or scores are not finite.
    """
    from ncfmkit.errors import CheckFailed
    from ncfmkit.exporters import validate as job

    out = out or Path(f"validation-{models[0].stem}" if len(models) == 1 else job.COMPARISON_FOLDER)
    result = job.validate(
        models[0] if len(models) == 1 else models,
        data=data,
        provider=provider,
        against=against,
        max_accuracy_drop=max_accuracy_drop,
        out=out,
        layout=layout,
        output=output,
        speed=not no_speed,
        batches=batches,
        threads=threads,
        force=force,
        **overrides,
    )
    if json:
        o.print_json(result.to_dict())
    else:
        _show(result, out)
    if result.failures:
        raise CheckFailed("\n".join(result.failures))


def _show(result: "Validation | ModelComparison", out: Path) -> None:
    from rich.console import Console

    from ncfmkit.exporters import comparison_report, report
    from ncfmkit.exporters.results import Validation

    tables = report.tables(result) if isinstance(result, Validation) else comparison_report.tables(result)
    Console(highlight=False).print(tables)
    print(f"\n{out}/report.html  all of it on one page\n{out}/validation.json  the same for machines")
