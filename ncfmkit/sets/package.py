"""Writes a set as a folder to ship: its one file, a view for other tools, a dataset card, checksums.

The one file is the set. The view holds the images to train on, for tools that do not know the one file; it is only
written, and `compare.py` holds it against the one file. The folder is written under a temporary name and renamed
when it is complete.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import check_free_folder, replace_folder, sha256_of, write_atomic, write_json
from ncfmkit.mosaic import decode_factors
from ncfmkit.progress import track
from ncfmkit.records import LONGEST_SHOWN, Record
from ncfmkit.sets import croissant, numpy_reader, set_file
from ncfmkit.sets.manifest import tensors_of, to_bytes
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.pictures import ENCODINGS, check_size
from ncfmkit.sets.views.records import Row, View
from ncfmkit.sets.views.table import LAYOUTS, Layout

if TYPE_CHECKING:
    from ncfmkit.reports.sections import Section

FACTS, SUMS, CARD, READER, PREVIEW = "ncfmkit.json", "SHA256SUMS", "README.md", "read_set.py", "preview.png"
EVERYWHERE = {set_file.FILE_NAME, FACTS, CARD, READER, PREVIEW, croissant.NAME}  # the files beside a view
LARGEST_SHARD = 256 << 20  # bytes
LARGEST_FACTS = 1 << 20  # bytes
LARGEST_SUMS = 128 << 20  # bytes, of a million files or so
PART_DECODED = 1 << 20  # values that are decoded at once, if one stored image has no more
MOST_DECODED = 1 << 26  # values that stored images are cut into at once: in float32, some 1 GiB while it is done


class PackageFacts(Record):
    """What `ncfmkit.json` says: the layout of the view, and the encoding of its pictures."""

    kind: Literal["package"] = "package"
    layout: Annotated[str, Field(max_length=LONGEST_SHOWN)]
    encoding: Annotated[str, Field(max_length=LONGEST_SHOWN)]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a set is packed; bad values raise UserError.

    Attributes:
        layout: a name of `LAYOUTS`.
        encoding: of pictures, `png` or lossless `webp`; None: png.
        shard_bytes: the largest size of a shard, in layouts with shards; None: 256 MiB.
    """

    layout: str
    encoding: str | None = None
    shard_bytes: int | None = None

    def __post_init__(self) -> None:
        for flag, value, choices in (("--to", self.layout, LAYOUTS), ("--encoding", self.pictures, ENCODINGS)):
            if value not in choices:
                raise UserError(f"{flag} {str(value)[:LONGEST_SHOWN]}: expected one of {', '.join(choices)}")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise UserError(f"--shard-size {self.shard_bytes}: expected 1 byte or more")
        if self.shard_bytes is not None and not self.row.sharded:
            raise UserError(f"--to {self.layout} has no shards: leave --shard-size out")
        if self.row.module is None and self.encoding is not None:
            raise UserError(f"--to {self.layout} has no pictures: leave --encoding out")

    @property
    def row(self) -> Layout:
        return LAYOUTS[self.layout]

    @property
    def pictures(self) -> str:
        """The encoding, where there are pictures."""
        return ENCODINGS[0] if self.encoding is None else self.encoding


def is_package(path: Path) -> bool:
    """Whether it is a package, be it damaged."""
    return any(os.path.lexists(path / name) for name in (FACTS, SUMS))


def write(
    synthetic: SyntheticSet,
    folder: Path,
    packing: Packing,
    *,
    assessed: "Sequence[tuple[str, Section]]" = (),
    force: bool = False,
) -> SyntheticSet:
    """Packs a set into a new folder; the same set gives the same bytes. Returns it with the digests in its manifest.

    With `force` the folder replaces another package, once it is whole. `assessed` goes into the card.

    Raises:
        UserError: as :func:`check_writable`, or the disk refuses.
    """
    check_writable(synthetic, folder, packing, force=force)
    manifest = set_file.checked(synthetic.manifest, tensors_of(synthetic), folder)
    synthetic = dataclasses.replace(synthetic, manifest=manifest)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with interrupts.cleaning_up():
        try:
            partial.mkdir()
            _fill(synthetic, partial, packing, assessed)
            replace_folder(partial, folder)
        except OSError as error:
            raise UserError(f"{folder} was not written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return synthetic


def check_writable(synthetic: SyntheticSet, folder: Path, packing: Packing, *, force: bool = False) -> None:
    """Raises UserError unless the set can be packed there: its images fit the view, and the folder can be written."""
    if packing.row.module is not None:
        check_size(synthetic.images.shape[1:], packing.pictures)
        values = _decoded_values(synthetic)
        if values > MOST_DECODED:
            raise UserError(
                f"each stored image decodes to {values:,} values, a view takes {MOST_DECODED:,} at most: use "
                "--to safetensors"
            )
    check_free_folder(folder, force=force, foreign=foreign_files, made_by="pack", replaced=True)


def foreign_files(folder: Path) -> list[str]:
    """Files below a folder that its `SHA256SUMS` does not list, hidden ones too."""
    listed = listed_names(folder / SUMS) if (folder / SUMS).is_file() else {SUMS}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    return sorted(there - listed)


def listed_names(sums: Path) -> set[str]:
    """Names in the lines of a `SHA256SUMS`, which are not checked, and its own."""
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    return {SUMS, *(line[66:] for line in lines)}  # 64 digits and two spaces


def _fill(synthetic: SyntheticSet, folder: Path, packing: Packing, assessed: "Sequence[tuple[str, Section]]") -> None:
    # Pillow and yaml: not needed to read a set
    from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes
    from ncfmkit.sets.card import card

    set_file.write(synthetic, folder / set_file.FILE_NAME)
    view = view_of(synthetic, packing)
    if packing.row.module is not None:
        with track("packing", len(view)) as bar:

            def counted() -> Iterator[Row]:
                for row in rows_of(synthetic):
                    yield row
                    bar.advance()

            packing.row.write(folder, view, counted())
    sheet = contact_sheet(synthetic.images.numpy(), synthetic.labels.numpy(), synthetic.classes)
    write_atomic(folder / PREVIEW, png_bytes(sheet))
    write_atomic(folder / READER, Path(numpy_reader.__file__).read_bytes())
    PackageFacts(layout=packing.layout, encoding=packing.pictures).write(folder / FACTS)
    files = {name: _size_and_digest(folder / name) for name in files_in(folder)}
    sizes = {name: files[name][0] for name in sorted(files)}
    write_atomic(folder / CARD, card(synthetic, view, packing.row, sizes, assessed).encode())
    files[CARD] = _size_and_digest(folder / CARD)
    how = {"layout": packing.layout, "encoding": packing.pictures}
    described = croissant.croissant(synthetic.manifest, **how, files=dict(sorted(files.items())))
    write_json(folder / croissant.NAME, described)
    files[croissant.NAME] = _size_and_digest(folder / croissant.NAME)
    write_atomic(folder / SUMS, "".join(f"{files[name][1]}  {name}\n" for name in sorted(files)).encode())


def _size_and_digest(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256_of(path)


def view_of(synthetic: SyntheticSet, packing: Packing) -> View:
    """What the view of a set is like."""
    channels, height, width = synthetic.images.shape[1:]
    return View(
        name=synthetic.manifest.name,
        classes=synthetic.classes,
        shape=(channels, height, width),
        per_class=synthetic.manifest.ipc.decoded,
        soft=synthetic.soft_labels is not None,
        encoding=packing.pictures,
        shard_bytes=packing.shard_bytes or LARGEST_SHARD,
    )


def rows_of(synthetic: SyntheticSet) -> Iterator[Row]:
    """The images to train on, one after the other, with their soft labels."""
    soft_DK, place = None if synthetic.soft_labels is None else synthetic.soft_labels.numpy(), 0
    for images, labels in synthetic.decoded_parts(max(1, min(64, PART_DECODED // _decoded_values(synthetic)))):
        for image, label in zip(to_bytes(images).numpy(), labels.tolist(), strict=True):
            yield Row(image=image, label=label, soft=None if soft_DK is None else soft_DK[place])
            place += 1


def _decoded_values(synthetic: SyntheticSet) -> int:
    """What one stored image is cut into, those that do not count among them."""
    how = synthetic.manifest.decode
    return synthetic.images[0].numel() * sum(f * f for f in decode_factors(how.kind, how.factor))


def packing_of(folder: Path) -> Packing:
    """How a package was packed.

    Raises:
        UserError: its `ncfmkit.json` does not say so.
    """
    path = folder / FACTS
    if path.is_file() and path.stat().st_size > LARGEST_FACTS:
        raise UserError(f"{path} is damaged: {path.stat().st_size:,} bytes, expected {LARGEST_FACTS:,} at most")
    facts = PackageFacts.read(path)
    packing = Packing(layout=facts.layout)
    return packing if packing.row.module is None else dataclasses.replace(packing, encoding=facts.encoding)


def foreign_to(packing: Packing, names: Iterable[str]) -> list[str]:
    """Which files a package of that layout does not have."""
    return sorted(name for name in names if name not in EVERYWHERE and not packing.row.has_file(name))


def sum_problems(folder: Path) -> list[str]:
    """What is wrong with the files of a package by its `SHA256SUMS`: lines, missing, unlisted and changed files.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        listed, problems = _read_sums(folder)
        if problems:
            return problems
        there = files_in(folder)
        problems += [f"{name} is missing" for name in sorted(listed.keys() - there)]
        problems += [f"{name} is not in {SUMS}" for name in sorted(there - listed.keys())]
        for name in sorted(listed.keys() & there):
            if not _is_own_file(folder, name):
                problems.append(f"{name} is not a file of its own (a link, a device)")
            elif sha256_of(folder / name) != listed[name]:
                problems.append(f"{name} is damaged: its sha256 is not that in {SUMS}")
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None
    return problems


def _read_sums(folder: Path) -> tuple[dict[str, str], list[str]]:
    path = folder / SUMS
    if not _is_own_file(folder, SUMS) or path.stat().st_size > LARGEST_SUMS:
        return {}, [f"{SUMS} is missing, or not such a file"]
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        name = found[2] if found else ""
        if not found or name in listed or not _stays_inside(name):
            return {}, [f"{SUMS} line {number}: expected a sha256, two spaces and a path inside the folder, each once"]
        listed[name] = found[1]
    return listed, []


def _is_own_file(folder: Path, name: str) -> bool:
    """Whether a file lies there itself, and not behind a link.

    In the cache of huggingface_hub, `snapshots/COMMIT/NAME` is a link to `blobs/DIGEST`.
    """
    path, folder = folder / name, Path(os.path.abspath(folder))
    if path.is_symlink():
        target = os.path.normpath(path.parent.absolute() / os.readlink(path))
        if folder.parent.name != "snapshots" or Path(target).parent != folder.parents[1] / "blobs":
            return False
    return path.is_file()


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and ":" not in name and not {"", ".", ".."} & set(parts)


def files_in(folder: Path) -> set[str]:
    """Every file below the folder, relative to it; hidden ones are other tools' own (`.gitattributes`, `.DS_Store`)."""
    found = set()
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found |= {(Path(here) / name).relative_to(folder).as_posix() for name in [*files, *links]}
    return found - {SUMS}
