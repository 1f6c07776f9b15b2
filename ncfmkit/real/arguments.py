"""Where the real data are, as the user said it, and how they are read."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncfmkit.config import Settings, check, full_key, load_recipe, override
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real
from ncfmkit.real.sources import SOURCES
from ncfmkit.real.store import RealData

DEFAULT_RECIPES = {"digits": "digits"}  # of data that has one recipe of its own


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Where the real data are, as the user said it. Paths are kept as text: run.json records them."""

    data: str
    data_root: str | None = None
    download: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        data, root = self.data, self.data_root
        if isinstance(data, os.PathLike):
            data = os.fspath(data)
            if data in {kind.name for kind in SOURCES}:  # a path is never the name of a source
                data = os.path.join(os.curdir, data)
        if not isinstance(data, str):
            raise UserError(f"data: expected a name or a path, got {type(data).__name__}")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "data_root", None if root is None else os.fspath(root))

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

    def absolute(self) -> "DataArguments":
        """The same from any working directory."""
        named = self.data in {kind.name for kind in SOURCES}
        return dataclasses.replace(
            self,
            data=self.data if named else os.path.abspath(self.data),
            data_root=self.data_root and os.path.abspath(self.data_root),
        )


def split_arguments(data: Any, keywords: dict[str, Any]) -> tuple[DataArguments, dict[str, Any]]:
    """What a public function is given as `data` and as `**overrides`: where the data are, and the settings.

    Args:
        data: as :class:`DataArguments` has it, or such an object.
        keywords: fields of :class:`DataArguments` by name, such as `download=True`, and settings.
    """
    fields = {field.name for field in dataclasses.fields(DataArguments)}
    where = {key: value for key, value in keywords.items() if key in fields}
    settings = {key: value for key, value in keywords.items() if key not in fields}
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
    fields = {field.name for field in dataclasses.fields(DataArguments)}
    idle = [key for key in keywords if key in fields or full_key(key).startswith("data.")]
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
        lines = Path(overrides[key]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {overrides[key]}: expected a text file with one class a line: {error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--classes {overrides[key]}: expected one class a line, got an empty file")
    return overrides | {key: names}
