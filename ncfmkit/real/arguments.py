"""Where the real data are, as the user said it."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import find_real, open_real
from ncfmkit.real.sources import SOURCES
from ncfmkit.real.store import RealData


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Where the real data are, as the user said it."""

    data: str
    data_root: str | None = None
    download: bool = False
    skip_bad: bool = False

    def open(self, settings: Settings) -> RealData:
        """The real data.

        Raises:
            UserError: they cannot be opened, or have one class alone.
        """
        root = Path(self.data_root) if self.data_root else None
        real = open_real(self.data, settings.data, data_root=root, download=self.download, skip_bad=self.skip_bad)
        if len(real.classes) < 2:
            raise UserError(f"{real.name} has one class, {real.classes[0]!r}: a classifier needs two or more")
        return real

    def check(self, settings: Settings) -> None:
        """Raises UserError unless the data can be found; they are not read."""
        find_real(
            self.data,
            settings.data,
            data_root=Path(self.data_root) if self.data_root else None,
            download=self.download,
        )

    def absolute(self) -> "DataArguments":
        """The same from any working directory."""
        named = self.data in {kind.name for kind in SOURCES}
        return dataclasses.replace(
            self,
            data=self.data if named else os.path.abspath(self.data),
            data_root=self.data_root and os.path.abspath(self.data_root),
        )
