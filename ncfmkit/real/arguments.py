"""Where the real data are, as the user said it, or the data themselves."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.real.hub import PREFIX
from ncfmkit.real.memory import memory_name
from ncfmkit.real.opening import find_real, open_real
from ncfmkit.real.sources import NAMED, as_text
from ncfmkit.real.store import RealData


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Where the real data are, as the user said it, or the data themselves.

    Args:
        data: a name or a path (str or os.PathLike), or data in memory: `(images, labels)` arrays, a map-style torch
            dataset, a `datasets.Dataset`, or a dict of such by split. Once constructed `data` is always a text, and
            data in memory are in `memory`.
        data_root: folder of torchvision's sets; none: in the cache.
        download: fetch a named set that is not there.
        skip_bad: pass over images that cannot be decoded.

    Raises:
        UserError: data of a type that is not known.
    """

    data: Any
    data_root: str | os.PathLike[str] | None = None
    download: bool = False
    skip_bad: bool = False
    memory: Any = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = isinstance(self.data, str | os.PathLike)
        object.__setattr__(self, "memory", None if named else self.data)
        object.__setattr__(self, "data", as_text(self.data) if named else f"memory-{memory_name(self.data)}")
        object.__setattr__(self, "data_root", self.data_root and os.fspath(self.data_root))

    def open(self, settings: Settings) -> RealData:
        """The real data.

        Raises:
            UserError: they cannot be opened, or have one class alone.
        """
        root = Path(self.data_root) if self.data_root else None
        data = self.data if self.memory is None else self.memory
        real = open_real(data, settings.data, data_root=root, download=self.download, skip_bad=self.skip_bad)
        if len(real.classes) < 2:
            raise UserError(f"{real.name} has one class, {real.classes[0]!r}: a classifier needs two or more")
        return real

    def check(self, settings: Settings) -> None:
        """Raises UserError unless the data can be found; they are not read."""
        find_real(
            self.data if self.memory is None else self.memory,
            settings.data,
            data_root=Path(self.data_root) if self.data_root else None,
            download=self.download,
        )

    def recorded(self) -> dict[str, Any]:
        """As `run.json` keeps them, valid in any working directory; `data` is None for data in memory."""
        place = self.data if self.data in NAMED or self.data.startswith(PREFIX) else os.path.abspath(self.data)
        return {
            "data": place if self.memory is None else None,
            "data_root": self.data_root and os.path.abspath(self.data_root),
            "download": self.download,
            "skip_bad": self.skip_bad,
        }
