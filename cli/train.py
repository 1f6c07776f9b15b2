"""`ncfmkit train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument


@o.settings_flags("network", "student", "runtime", "seed")
def train(
    path: SetArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="the file to write")] = Path("student.safetensors"),
    data: Annotated[str | None, typer.Option("--data", help="real data to test the student on")] = None,
    data_root: o.DataRoot = None,
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains one student on a set and keeps it, with network, sizes, normalisation and class names in its metadata."""
    from ncfmkit import jobs
    from ncfmkit.formats import one_file

    result = one_file.load(path)
    arguments = jobs.DataArguments(data=data, data_root=data_root) if data else None
    metadata = jobs.train(result, jobs.settings_for(result, overrides), out=out, arguments=arguments)
    if json:
        o.print_json({"student": str(out), **metadata})
        return
    accuracy = metadata["test_accuracy"]
    print(f"{out}: {metadata['network']['name']}" + ("" if accuracy is None else f", test accuracy {accuracy:.1%}"))
