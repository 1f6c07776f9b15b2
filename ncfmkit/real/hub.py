"""Data sets by name through the `datasets` library: `hf://OWNER/NAME`, or `hf://OWNER/NAME:CONFIGURATION`."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncfmkit.errors import UserError
from ncfmkit.extras import import_optional
from ncfmkit.files import HUB
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.memory import open_memory


def open_hub(request: Request) -> Source:
    """A data set from the cache of the `datasets` library, fetched first where the user asked for it.

    Raises:
        UserError: no name, the library is missing, the set is not in its cache, or fetching failed.
    """
    name, _, configuration = request.data.removeprefix(HUB).removeprefix("datasets/").partition(":")
    if not name:
        raise UserError(f"{request.data}: expected hf://OWNER/NAME or hf://OWNER/NAME:CONFIGURATION")
    datasets = import_optional("datasets", "hub", f"{request.data} is read by the library")
    try:
        with _offline(datasets, not request.download):
            found = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of the library, of its HTTP client, of the file system
        if not request.download:
            raise UserError(
                f"{request.data} is not in the cache of the datasets library: pass --download to fetch it ({error})"
            ) from error
        raise UserError(
            f"{request.data}: fetching failed: {error}\nexpected hf://OWNER/NAME or hf://OWNER/NAME:CONFIGURATION, and "
            "a connection to the Hub"
        ) from error
    # what a published set names by path may only be what the library itself fetched
    from huggingface_hub.constants import HF_HUB_CACHE  # datasets brings it

    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    within = tuple(Path(folder).resolve() for folder in caches)
    source = open_memory(dataclasses.replace(request, data=found, within=within))
    return dataclasses.replace(source, name=name.rsplit("/", 1)[-1])


@contextmanager
def _offline(datasets: Any, offline: bool) -> Iterator[None]:
    """Keeps the library from the network: it then takes what its cache holds."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
