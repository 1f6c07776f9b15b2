"""`ncfmkit push`: a package as a data set repository of the Hugging Face Hub."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ncfmkit._version import __version__
from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes
from ncfmkit.jobs.verify import verify
from ncfmkit.progress import notice, plural, shortened_list
from ncfmkit.records import Record
from ncfmkit.sets.hub import Address, asking, parse_address
from ncfmkit.sets.package import LARGEST_SUMS, SUMS, files_in, is_package, listed_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KEPT = ".gitattributes"  # of a repository, which the Hub makes


class Pushed(Record):
    """What was uploaded.

    Attributes:
        repository: the address, `hf://OWNER/NAME`.
        private: whether only its owner sees it.
        files: bytes of the package's files, by name.
        deleted: names of files that the repository had and the package has not.
        url: the page of the repository; None in a dry run.
        commit: the commit that holds the package; None in a dry run.
    """

    repository: str
    private: bool
    files: dict[str, int]
    deleted: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None


def push(
    folder: str | os.PathLike[str], to: str, *, private: bool = True, force: bool = False, dry_run: bool = False
) -> Pushed:
    """Uploads a package to a data set repository of the Hugging Face Hub, in one commit, once it is verified.

    The repository is made where there is none. An earlier package there is replaced: its files that are not part of
    this one are deleted in the same commit.

    Args:
        folder: a package, whose set states the license of its source.
        to: the repository, `hf://OWNER/NAME`.
        private: only the owner sees the repository; False: everybody does. An existing repository stays as it is, and
            has to be so already.
        force: also replace and delete files in the repository that are not of a package.
        dry_run: only verify the package and list its files. The Hub is not asked, and no token is needed.

    Returns:
        What was uploaded, or would be.

    Raises:
        UserError: not a package, no license, not an address; no token, or one that does not permit it; the repository
            holds something else, or the Hub cannot be reached.
        CheckFailed: the package is damaged.

    Example:
        >>> ncfmkit.push("digits-ipc1-parquet", "hf://me/digits-ipc1", dry_run=True).private
        True
    """
    address, folder = parse_address(to), Path(folder)
    if address.revision is not None:
        raise UserError(f"{to}: a package is pushed to the newest state: leave @{address.revision} out")
    if not folder.is_dir() or not is_package(folder):
        raise UserError(f"{folder} is not a package: expected a folder that `ncfmkit pack` wrote")
    manifest = verify(folder).manifest
    assert manifest is not None
    if manifest.source.license is None:
        raise UserError(
            f"{folder} does not state the license of the real images ({manifest.source.name}), which others need to "
            f"know: pack it again with a license, `ncfmkit pack {folder} --to LAYOUT --license mit --out NEW`"
        )
    files = {name: (folder / name).stat().st_size for name in sorted({*files_in(folder), SUMS})}
    if dry_run:
        return Pushed(repository=str(address), private=private, files=files)
    with asking(address, write=True) as api:
        there, parent = _repository(api, address, private)
        foreign = sorted(there.keys() - _package_files(api, address, there, parent) - {KEPT})
        if foreign and not force:
            raise UserError(
                f"{address} holds files that are not of a package ({shortened_list(foreign)}): push to another "
                "repository, or pass --force to replace them (its history keeps them)"
            )
        notice(f"uploading {plural(len(files), 'file')}, {format_bytes(sum(files.values()))}, to {address}")
        deleted = tuple(sorted(there.keys() - files.keys() - {KEPT}))
        commit = _commit(api, address, folder, files, deleted, parent, f"{manifest.name}, by ncfmkit {__version__}")
        url = f"{api.endpoint}/datasets/{address.repository}"
    return Pushed(repository=str(address), private=private, files=files, deleted=deleted, url=url, commit=commit)


def _repository(api: "HfApi", address: Address, private: bool) -> tuple[dict[str, int], str | None]:
    """Bytes of the files in the repository by name, and its newest commit; it is made where there is none.

    Raises:
        UserError: others may see it, or may not, unlike what was asked for.
    """
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    name = address.repository
    try:
        info = api.dataset_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, repo_type="dataset", private=private)
        return {}, None
    if info.private != private:
        now, flag = ("private", "leave --public out") if info.private else ("public", "pass --public")
        raise UserError(
            f"{address} exists and is {now}: {flag}, or change that in its settings, "
            f"{api.endpoint}/datasets/{name}/settings"
        )
    tree = api.list_repo_tree(name, repo_type="dataset", recursive=True, revision=info.sha)
    return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}, info.sha


def _package_files(api: "HfApi", address: Address, there: dict[str, int], commit: str | None) -> set[str]:
    """Names of the files of the package in the repository, by its checksums; empty if it holds none."""
    if there.get(SUMS, LARGEST_SUMS) >= LARGEST_SUMS:
        return set()
    path = api.hf_hub_download(address.repository, SUMS, repo_type="dataset", revision=commit)
    return listed_names(Path(path))


def _commit(
    api: "HfApi",
    address: Address,
    folder: Path,
    files: Iterable[str],
    deleted: Iterable[str],
    parent: str | None,
    message: str,
) -> str:
    """Uploads the files in one commit, which is returned.

    Raises:
        UserError: the Hub left files out.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = address.repository
    additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files]
    deletions = [CommitOperationDelete(path_in_repo=file) for file in deleted]
    commit = api.create_commit(
        name, [*additions, *deletions], commit_message=message, repo_type="dataset", parent_commit=parent
    ).oid
    # a .gitignore in the repository makes it skip files without a word
    missing = sorted(set(files) - set(api.list_repo_files(name, repo_type="dataset", revision=commit)))
    if missing:
        raise UserError(f"{address} lacks {shortened_list(missing)} after the upload: does it have a .gitignore?")
    return commit
