"""`ncfmkit train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags("data", "network", "student", "runtime", "seed")
def train(
    path: SetArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="the file to write")] = Path("student.safetensors"),
    data: Annotated[
        "DataArguments | None", typer.Option("--data", help="real data to test the student on", rich_help_panel="Data")
    ] = None,
    set_: o.Set = None,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Trains one student on a set and keeps it, with network, sizes, normalization and class names in its metadata."""
    from ncfmkit.jobs import train as job

    if data is None and data_flags:
        raise UserError("flags of the real data need --data: it says what to test the student on")
    metadata = job.train(path, out=out, data=data, **overrides)
    if json:
        o.print_json({"student": str(out), **metadata})
        return
    accuracy = metadata["test_accuracy"]
    print(f"{out}: {metadata['network']['name']}" + ("" if accuracy is None else f", test accuracy {accuracy:.1%}"))
