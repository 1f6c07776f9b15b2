"""`ncfmkit verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.progress import printable


@o.settings_flags(*o.READS["verify"], of_set=True)
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="file of a synthetic set, its run directory or a package")
    ],
    *,
    score: Annotated[
        bool,
        typer.Option(
            "--score", help="train students by the set's recipe and compare their accuracy with the recorded one"
        ),
    ] = False,
    data: o.ScoreData = None,
    json: o.Json = False,
    data_flags: bool,
    overrides: dict[str, Any],
) -> None:
    """Checks that a set is intact and, with --score, its accuracy.

    Checks checksums, shapes, values, labels and the recipe. Lists every problem and exits with code 1 if there are any.
    """
    from ncfmkit.errors import CheckFailed
    from ncfmkit.jobs import verify as job
    from ncfmkit.sets.manifest import format_score
    from ncfmkit.sets.package import SUMS, is_package

    o.check_scoring(score, data_flags)
    try:
        found = job.verify(path, score=score, data=data, **overrides)
    except CheckFailed as error:
        if json:
            o.print_json(error.result)
        raise
    if json:
        o.print_json(found)
        return
    manifest = found["manifest"]
    sums = [SUMS] if is_package(path) else []
    checked = ", ".join([*sums, "manifest", *sorted(manifest["sha256"]), "recipe"])
    print(f"{path}: {printable(manifest['name'])} is intact; checked: {checked}")
    if "measured" in found:
        print(f"promised {format_score(found['promised'])}, reached {format_score(found['measured'])}")
