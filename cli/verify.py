"""`ncfmkit verify`."""

from typing import Annotated, Any

import typer

from ncfmkit.cli import options as o
from ncfmkit.progress import printable


@o.settings_flags(*o.READS["verify"], of_set=True)
def verify(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="file of a synthetic set, its run directory or a package, or hf://OWNER/NAME"
        ),
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

    Checks checksums, shapes, values, labels, the recipe and a package's view. Lists every problem and exits with code 1
    if there are any.
    """
    from ncfmkit.errors import CheckFailed
    from ncfmkit.jobs import verify as job
    from ncfmkit.sets.manifest import format_score
    from ncfmkit.sets.package import SUMS

    o.check_scoring(score, data_flags)
    try:
        found = job.verify(path, score=score, data=data, **overrides)
    except CheckFailed as error:
        if json:
            o.print_json(error.result)
        raise
    if json:
        o.print_json(found.to_dict())
        return
    manifest = found.manifest
    assert manifest is not None
    checked = ["manifest", *sorted(manifest.sha256), "recipe"]
    checked = [SUMS, *checked, "view"] if found.package else checked
    print(f"{path}: {printable(manifest.name)} is intact; checked: {', '.join(checked)}")
    if found.promised is not None and found.measured is not None:
        print(f"promised {format_score(found.promised)}, reached {format_score(found.measured)}")
