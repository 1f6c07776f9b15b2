"""`ncfmkit train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags(*o.READS["train"], of_set=True)
def train(
    path: SetArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="file to write")] = Path("student.safetensors"),
    data: Annotated[
        "DataArguments | None",
        typer.Option(
            "--data",
            help="real data whose test split measures the student",
            rich_help_panel="Data",
            autocompletion=o.complete_data,
        ),
    ] = None,
    set_: o.Set = None,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Trains one student on a set and saves it.

    The file also holds the network, image size, normalization and class names, for `ncfmkit export`.
    """
    from ncfmkit.jobs import train as job

    if data is None and data_flags:
        raise UserError("options of the real data need --data, the data to test the student on")
    if dry_run:
        o.show_estimate(job.dry_run(path, out=out, data=data, force=force, **overrides), json)
        return
    manifest = job.train(path, out=out, data=data, force=force, **overrides)
    if json:
        o.print_json({"student": str(out), **manifest.to_dict()})
        return
    accuracy = manifest.test_accuracy
    print(f"{out}: {manifest.network.name}" + ("" if accuracy is None else f", test accuracy {accuracy:.1%}"))
