"""`ncfmkit relabel`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.cli.evaluate import SetArgument

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments

Data = Annotated[
    "DataArguments | None",
    typer.Option(
        "--data",
        help="real data that the set was made from, on which the extractors are trained",
        rich_help_panel="Data",
        autocompletion=o.complete_data,
    ),
]


@o.settings_flags(*o.READS["relabel"], of_set=True)
def relabel(
    path: SetArgument,
    *,
    data: Data = None,
    hard: Annotated[bool, typer.Option("--hard", help="take soft labels away instead; needs no data")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write", show_default="name of the set + -soft.safetensors")
    ] = None,
    set_: o.Set = None,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Gives a set soft labels: what extractors say of its images."""
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import relabel as job

    if dry_run:
        o.show_estimate(job.dry_run(path, data=data, **overrides), json)
        return
    result = job.relabel(path, data=data, hard=hard, out=out, force=force, **overrides)
    size, taught = result.file.stat().st_size, result.taught
    if json:
        facts = {} if taught is None else {"wrong": taught.wrong, "certainty": taught.certainty}
        o.print_json({"set": str(result.file), "bytes": size, **facts, "manifest": result.set.manifest.to_dict()})
        return
    how = "hard labels" if taught is None else taught.describe(result.set.manifest.bytes["soft_labels"])
    command = ["ncfmkit", "evaluate", str(result.file), "--data", "DATA" if data is None else data.data]
    command += [] if taught is None else ["--baselines", "random-soft"]
    print(f"{result.file}: {format_bytes(size)}; {how}\nits score is unknown: {shlex.join(command)} measures it")
