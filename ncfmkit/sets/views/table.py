"""The table of layouts of packages: to add one, add a row and a file.

Light: a layout's module, with the libraries that it needs, is imported when files are written or read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ncfmkit.sets.views.records import Contents, Record


@dataclass(frozen=True, kw_only=True)
class Layout:
    name: str
    module: str | None = None  # with `write` and `read`; None: the set's one file is the whole layout
    sharded: bool = False  # takes --shard-size
    card: bool = False  # requires a dataset card

    def write(self, folder: Path, contents: Contents, records: Iterable[Record]) -> None:
        """Writes the layout's files into a folder."""
        import_module(self._module()).write(folder, contents, records)

    def read(self, folder: Path, contents: Contents) -> Iterator[Record]:
        """The records of the layout's files, in the order of the set."""
        return import_module(self._module()).read(folder, contents)

    def _module(self) -> str:
        assert self.module is not None, f"layout {self.name} has no files of its own"
        return self.module


LAYOUTS = {
    row.name: row
    for row in (
        Layout(name="safetensors"),
        Layout(
            name="webdataset",
            # .tar shards of pictures, labels and facts, for webdataset and tar
            module="ncfmkit.sets.views.webdataset",
            sharded=True,
        ),
        Layout(
            name="parquet",
            # Parquet with a dataset card, for datasets.load_dataset
            module="ncfmkit.sets.views.parquet",
            sharded=True,
            card=True,
        ),
        Layout(
            name="png",
            # class folders of pictures, for torchvision's ImageFolder
            module="ncfmkit.sets.views.image_folder",
        ),
    )
}
