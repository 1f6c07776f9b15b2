"""Where the real data are, as the user said it, or the data themselves, and how they are read."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncfmkit.config import Settings, check, full_key, load_recipe, override
from ncfmkit.errors import UserError
from ncfmkit.files import is_address, read_names
from ncfmkit.real.memory import memory_name
from ncfmkit.real.opening import find_real, open_real
from ncfmkit.real.remote import is_remote
from ncfmkit.real.sources import NAMED, as_text
from ncfmkit.real.store import RealData

DEFAULT_RECIPES = {"digits": "digits"}  # of data that has one recipe of its own


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
        """Raises UserError unless the files of the data can be found; they are not read.

        Data in memory and at an address are not checked, because finding them reads all of them.
        """
        if self.memory is None and not is_address(self.data):
            root = Path(self.data_root) if self.data_root else None
            find_real(self.data, settings.data, data_root=root, download=self.download)

    def recorded(self) -> dict[str, Any]:
        """As `run.json` keeps them, valid in any working directory; `data` is None for data in memory."""
        place: str = self.data if self.data in NAMED or is_address(self.data) else os.path.abspath(self.data)
        return {
            "data": place if self.memory is None else None,
            "data_root": self.data_root and os.path.abspath(self.data_root),
            "download": self.download and not is_remote(place),  # what was copied to the cache is gone on with
            "skip_bad": self.skip_bad,
        }


WHERE = {field.name for field in dataclasses.fields(DataArguments) if field.init} - {"data"}


def split_arguments(data: Any, keywords: dict[str, Any]) -> tuple[DataArguments, dict[str, Any]]:
    """What a public function is given as `data` and as `**overrides`: where the data are, and the settings.

    Args:
        data: as :class:`DataArguments` has it, or such an object.
        keywords: fields of :class:`DataArguments` by name, such as `download=True`, and settings.
    """
    where = {key: value for key, value in keywords.items() if key in WHERE}
    settings = {key: value for key, value in keywords.items() if key not in WHERE}
    if isinstance(data, DataArguments) and not where:
        return data, settings
    return DataArguments(data=data, **where), settings


def split_optional(data: Any, keywords: dict[str, Any]) -> tuple[DataArguments | None, dict[str, Any]]:
    """As :func:`split_arguments`, where data may be None.

    Raises:
        UserError: no data, but keywords that say how to read them.
    """
    if data is not None:
        return split_arguments(data, keywords)
    idle = [key for key in keywords if key in WHERE or full_key(key).startswith("data.")]
    if idle:
        raise UserError(f"{', '.join(idle)}: how to read the real data, but no data are given: pass data, too")
    return None, keywords


def read_settings(data: DataArguments | None, overrides: dict[str, Any]) -> Settings:
    """How data are read, where no set or run says it: by their own recipe or the defaults, with overrides.

    Raises:
        UserError: a setting of anything else than the data, or a bad value.
    """
    other = [key for key in overrides if not full_key(key).startswith("data.")]
    if other:
        raise UserError(f"{', '.join(other)}: expected settings of the real data only, such as size")
    recipe = DEFAULT_RECIPES.get(data.data) if data else None
    return check(override(load_recipe(recipe) if recipe else Settings(), read_class_list(overrides)))


def read_class_list(overrides: dict[str, Any]) -> dict[str, Any]:
    """`data.classes` may name a file with one class a line."""
    key = next((k for k in ("data.classes", "classes") if k in overrides), None)
    if key is None or not isinstance(overrides[key], str | os.PathLike) or not os.path.isfile(overrides[key]):
        return overrides
    try:
        names = read_names(Path(overrides[key]))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {overrides[key]}: expected a text file with one class a line: {error}") from None
    if not names:
        raise UserError(f"--classes {overrides[key]}: expected one class a line, got an empty file")
    return overrides | {key: names}
