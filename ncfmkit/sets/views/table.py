"""The one table of layouts that a set is packed as: adding one is adding a row and a file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ncfmkit.sets.views import image_folder, parquet, webdataset
from ncfmkit.sets.views.records import Contents, Record


@dataclass(frozen=True, kw_only=True)
class Layout:
    name: str
    summary: str  # one line for help and documentation
    write: Callable[[Path, Contents, Iterable[Record]], None] | None = None  # none: the one file is all there is
    read: Callable[[Path, Contents], Iterator[Record]] | None = None
    sharded: bool = False  # takes --shard-size
    card: bool = False  # nothing without its dataset card


LAYOUTS = {
    row.name: row
    for row in (
        Layout(name="safetensors", summary="the one file"),
        Layout(
            name="webdataset",
            summary=".tar shards of pictures, labels and facts, for webdataset and tar",
            write=webdataset.write,
            read=webdataset.read,
            sharded=True,
        ),
        Layout(
            name="parquet",
            summary="Parquet with a dataset card, for datasets.load_dataset",
            write=parquet.write,
            read=parquet.read,
            sharded=True,
            card=True,
        ),
        Layout(
            name="png",
            summary="class folders of pictures, for torchvision's ImageFolder",
            write=image_folder.write,
            read=image_folder.read,
        ),
    )
}
