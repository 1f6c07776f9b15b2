"""`ncfmkit train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument
from ncfmkit.errors import UserError


@o.settings_flags("data", "network", "student", "runtime", "seed")
def train(
    path: SetArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="the file to write")] = Path("student.safetensors"),
    data: Annotated[
        str | None, typer.Option("--data", help="real data to test the student on", rich_help_panel="Data")
    ] = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    skip_bad: o.SkipBad = False,
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains one student on a set and keeps it, with network, sizes, normalization and class names in its metadata."""
    from ncfmkit.files import check_free
    from ncfmkit.jobs import train as job
    from ncfmkit.jobs.evaluate import settings_for
    from ncfmkit.real.arguments import DataArguments
    from ncfmkit.runtime import choose_runtime
    from ncfmkit.sets.loading import load

    result = load(path)
    arguments = None
    if data is not None:
        arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    elif data_root or download or skip_bad or any(key.startswith("data.") for key in overrides):
        raise UserError("flags of the real data need --data: it says what to test the student on")
    check_free(out)
    settings = settings_for(result, overrides)
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings) if arguments else None
    metadata = job.train(result, real, settings, runtime, out=out)
    if json:
        o.print_json({"student": str(out), **metadata})
        return
    accuracy = metadata["test_accuracy"]
    print(f"{out}: {metadata['network']['name']}" + ("" if accuracy is None else f", test accuracy {accuracy:.1%}"))
