"""Sets on the Hugging Face Hub: `hf://OWNER/NAME`, a data set repository that `ncfmkit push` wrote.

Nothing is asked of the Hub unless such an address is given. Downloads stay in the cache of `huggingface_hub`, from
which they are read when the Hub cannot be reached.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ncfmkit import progress
from ncfmkit._version import __version__
from ncfmkit.errors import UserError
from ncfmkit.extras import import_optional
from ncfmkit.files import HUB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "log in with `hf auth login`, or set the environment variable HF_TOKEN"
HTTP_LIBRARIES = ("httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3")
_ADDRESS = re.compile(rf"{HUB}(?:datasets/)?((?!datasets/)[\w.-]+/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A data set repository.

    Attributes:
        repository: `OWNER/NAME`.
        revision: a branch, tag or commit; None: the newest state.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + ("" if self.revision is None else f"@{self.revision}")


def is_address(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith(HUB)


def parse_address(text: str) -> Address:
    """The address that a text stands for.

    Raises:
        UserError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise UserError(f"{text!r} is not the address of a set on the Hub: expected hf://OWNER/NAME, or with @REVISION")
    return Address(found[1], found[2])


def local(path: str | os.PathLike[str], *, whole: bool = False) -> Path:
    """Where a set lies on this machine: the path itself, or what an address `hf://OWNER/NAME` stands for, downloaded.

    Args:
        path: a path, or an address.
        whole: download the whole package, and return its folder; otherwise only the set's one file.

    Raises:
        UserError: not an address, `huggingface_hub` is missing, no such set, or it can neither be downloaded nor found
            in the cache.
    """
    text = os.fspath(path)
    if not is_address(text):
        if re.match(r"hf:[/\\]\w", text) and not os.path.lexists(text):
            raise UserError(f"{text}: an address of the Hub has two slashes: pass it as text, not as a Path")
        return Path(text)
    from ncfmkit.sets import set_file  # which imports this module

    address = parse_address(text)
    name, revision = address.repository, address.revision
    with asking(address) as api:
        if whole:
            return Path(api.snapshot_download(name, repo_type="dataset", revision=revision))
        return Path(api.hf_hub_download(name, set_file.FILE_NAME, repo_type="dataset", revision=revision))


@contextmanager
def asking(address: Address, *, write: bool = False) -> Iterator["HfApi"]:
    """The client of the Hub, an `HfApi`. What it raises becomes one message, in which the token is not.

    Args:
        address: what it is asked about.
        write: a token is needed.

    Raises:
        UserError: `huggingface_hub` does not import, there is no token, or a request failed.
    """
    import_optional("huggingface_hub", "hub", f"{address} is read and written by the library")
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    # its bars are for people, unless an environment variable decides
    shown = not progress.console.quiet and (progress.console.is_terminal or progress.console.is_jupyter)
    hide = not shown and not are_progress_bars_disabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    token = None
    try:
        token = get_token()
        if token is None and write:
            raise UserError(f"{address}: writing to the Hub needs a token, and there is none: {LOGIN}")
        if token is not None and not re.fullmatch("[!-~]+", token):  # the HTTP library would quote it
            raise UserError(f"the token for the Hub has a space or another character that no token has: {LOGIN}")
        if hide:
            disable_progress_bars()
        yield HfApi(token=token if write else None, library_name="ncfmkit", library_version=__version__)
    except UserError:
        raise
    except Exception as error:  # of the library, of its HTTP client, of the file system
        message = _explained(address, error, has_token=token is not None)
        # without its causes: they may quote a request with its token
        raise UserError(message if token is None else message.replace(token, "***")) from None
    finally:
        if hide:
            enable_progress_bars()


def _explained(address: Address, error: Exception, *, has_token: bool) -> str:
    """What went wrong, and what helps."""
    from huggingface_hub import constants, errors

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    response = next((found for e in causes if (found := getattr(e, "response", None)) is not None), None)
    status = None if response is None else response.status_code
    said = next((f" ({found})" for e in causes if (found := getattr(e, "server_message", None))), "")
    if isinstance(error, errors.GatedRepoError):
        return f"{address} is gated: ask for access on its page of the Hub, then {LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not has_token):
        who = "the token may not read it" if has_token else "there is no token"
        return f"{address}: the Hub has no such data set, or it is private and {who}: check the name, or {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address}: there is no such revision: expected a branch, a tag or a commit after the @"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{address} holds no synthetic set: expected a package that `ncfmkit push` uploaded{said}"
    if status == 401:
        return f"{address}: the Hub does not accept the token{said}: {LOGIN}"
    if status == 403:
        owner = address.repository.split("/")[0]
        return f"{address}: the token does not permit that{said}: use one that may write to the data sets of {owner}"
    if status == 412:
        return f"{address} was changed by somebody else at the same time: push again"
    if any(isinstance(e, errors.OfflineModeIsEnabled) for e in causes):
        return (
            f"{address}: HF_HUB_OFFLINE is set, so the Hub is not asked, and only the cache of huggingface_hub read: "
            "unset it"
        )
    if status is None and any(type(e).__module__.split(".")[0] in HTTP_LIBRARIES for e in causes):
        return (
            f"{address}: the Hub at {constants.ENDPOINT} cannot be reached ({_first_line(causes[-1])}): check the "
            "connection, and the environment variables HF_ENDPOINT and HTTPS_PROXY"
        )
    lines = dict.fromkeys(f"{type(e).__name__}: {_first_line(e)}" for e in (error, causes[-1]))
    return f"{address}: {'; '.join(lines)}{said}"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
