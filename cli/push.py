"""`ncfmkit push`."""

from pathlib import Path
from typing import Annotated

import typer

from ncfmkit.cli import options as o
from ncfmkit.progress import plural, printable


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="package written by `ncfmkit pack`")],
    to: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="data set repository of the Hugging Face Hub")],
    *,
    public: Annotated[
        bool, typer.Option("--public", help="everybody may see the repository; otherwise it is private")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the package, list its files, upload nothing, and stop")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="replace files in the repository that are not of a package")
    ] = False,
    json: o.Json = False,
) -> None:
    """Uploads a package to the Hugging Face Hub.

    The package is verified first and must state the license of its source. An earlier package in the repository is
    replaced, in one commit. Needs huggingface_hub and a token: `hf auth login`, or the environment variable HF_TOKEN.
    """
    from ncfmkit.files import format_bytes
    from ncfmkit.jobs import push as job
    from ncfmkit.sets.set_file import listed

    found = job.push(folder, to, private=not public, force=force, dry_run=dry_run)
    if json:
        o.print_json(found.to_dict())
        return
    size = f"{plural(len(found.files), 'file')}, {format_bytes(sum(found.files.values()))}"
    if dry_run:
        print(f"{found.repository} would be {'private' if found.private else 'public'}, {size}:")
        print(listed([f"{format_bytes(count):>9}  {printable(name)}" for name, count in found.files.items()]))
        print("nothing was uploaded, and the Hub was not asked")
        return
    print(f"{found.url}: {size}, {'private' if found.private else 'public'}, commit {found.commit}")
    if found.deleted:
        print(f"deleted {plural(len(found.deleted), 'file')} that the package does not have")
    print(f"load it with `ncfmkit.load({found.repository!r})`, check it with `ncfmkit verify {found.repository}`")
