"""The table of layouts of packages: to add one, add a row and a file.

Light: a view's module, with the libraries that it needs, is imported when files are written or compared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ncfmkit.sets.views.records import Row, View


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of packages.

    Attributes:
        module: with `write`, `read`, `features`, `DATA_FILES` and `FILES`; None: the set's one file is the layout.
        library: what the view is meant for.
        sharded: takes --shard-size.
    """

    name: str
    module: str | None = None
    library: str = "ncfmkit"
    sharded: bool = False

    def write(self, folder: Path, view: View, rows: Iterable[Row]) -> None:
        """Writes the view's files into a folder."""
        self._module().write(folder, view, rows)

    def read(self, folder: Path, view: View) -> Iterator[Row]:
        """The rows of the view's files, decoded by the library that they are for: not for files of strangers."""
        return self._module().read(folder, view)

    def has_file(self, name: str) -> bool:
        """Whether the view has a file of that name, relative to the package."""
        return self.module is not None and self._module().FILES.fullmatch(name) is not None

    def data_files(self) -> str:
        """The view's files, as a pattern for `datasets`."""
        return self._module().DATA_FILES

    def features(self, view: View) -> list[dict[str, Any]] | None:
        """The columns, as a dataset card declares them; None where the files declare them."""
        return self._module().features(view)

    def _module(self) -> Any:
        assert self.module is not None, f"layout {self.name} has no view"
        return import_module(self.module)


LAYOUTS = {
    row.name: row
    for row in (
        Layout(name="safetensors"),
        Layout(
            name="webdataset",
            # .tar shards of pictures, labels and facts, for webdataset and tar
            module="ncfmkit.sets.views.webdataset",
            library="webdataset",
            sharded=True,
        ),
        Layout(
            name="parquet",
            # Parquet, for datasets.load_dataset
            module="ncfmkit.sets.views.parquet",
            library="datasets",
            sharded=True,
        ),
        Layout(
            name="png",
            # class folders of pictures, for torchvision's ImageFolder
            module="ncfmkit.sets.views.image_folder",
            library="torchvision",
        ),
    )
}
