"""Writes a set as a folder for other tools: a layout's files, the manifest, checksums, a dataset card.

The folder is written under a temporary name and renamed when it is complete. `loading` reads it.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import check_free_folder, replace_folder, sha256_of, write_atomic
from ncfmkit.mosaic import decode_factors, decoded_rows
from ncfmkit.progress import track
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import LONGEST_SHOWN, PACKAGE_FILE, tensors_of, to_bytes
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.pictures import ENCODINGS, check_size
from ncfmkit.sets.views.records import Contents, Record
from ncfmkit.sets.views.table import LAYOUTS, Layout

MANIFEST, SUMS, CARD = PACKAGE_FILE, "SHA256SUMS", "README.md"
KEY = "package"  # of the manifest in a package: what is written below, not part of the set
IMAGES = ("stored", "decoded")
LARGEST_SHARD = 256 << 20  # bytes
# A package may need this many times its own size in memory, or this many bytes: more is a decompression bomb.
MOST_EXPANSION, ALWAYS_ALLOWED = 200, 256 << 20
MOST_DECODED = 1 << 26  # values that stored images are cut into at once: in float32, some 1 GiB while it is done


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a set is packed; bad values raise UserError.

    Attributes:
        layout: a name of `LAYOUTS`.
        images: `stored`, or `decoded` for tools that cannot decode; the stored ones are added in their own file.
        encoding: of pictures, `png` or lossless `webp`; None: png.
        shard_bytes: the largest size of a shard, in layouts with shards; None: 256 MiB.
    """

    layout: str
    images: str = "stored"
    encoding: str | None = None
    shard_bytes: int | None = None

    def __post_init__(self) -> None:
        for flag, value, choices in (
            ("--to", self.layout, LAYOUTS),
            ("--images", self.images, IMAGES),
            ("--encoding", self.pictures, ENCODINGS),
        ):
            if not isinstance(value, str) or value not in choices:
                shown = str(value)[:LONGEST_SHOWN]
                raise UserError(f"{flag} {shown}: expected one of {', '.join(choices)}")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise UserError(f"--shard-size {self.shard_bytes}: expected 1 byte or more")
        if self.shard_bytes is not None and not self.row.sharded:
            raise UserError(f"--to {self.layout} has no shards: leave --shard-size out")
        if self.row.module is None and (self.images == "decoded" or self.encoding is not None):
            raise UserError(f"--to {self.layout} has no pictures: leave --decoded and --encoding out")

    @property
    def row(self) -> Layout:
        return LAYOUTS[self.layout]

    @property
    def pictures(self) -> str:
        """The encoding, where there are pictures."""
        return ENCODINGS[0] if self.encoding is None else self.encoding


def is_package(path: Path) -> bool:
    """Whether it is a package, be it damaged."""
    return any(os.path.lexists(path / name) for name in (MANIFEST, SUMS))


def write(synthetic: SyntheticSet, folder: Path, packing: Packing, *, force: bool = False) -> SyntheticSet:
    """Packs a set into a new folder; the same set gives the same bytes. Returns it with the digests in its manifest.

    The card, which needs to know the license of the source, is written where the manifest states one. The one file is
    added where the layout cannot hold the set exactly (decoded images, quantized pixels), and where a card is, whose
    snippets read it. With `force` the folder replaces another package, once it is whole.

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
            _fill(synthetic, partial, packing)
            replace_folder(partial, folder)
        except OSError as error:
            raise UserError(f"{folder} was not written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return synthetic


def check_writable(synthetic: SyntheticSet, folder: Path, packing: Packing, *, force: bool = False) -> None:
    """Raises UserError unless the set can be packed there.

    The layout may need a license, decoded images may be too large, the folder may exist or not be writable.
    """
    if packing.row.module is not None:
        channels, height, width = synthetic.images.shape[1:]
        check_size((channels, height, width), packing.pictures)
    if packing.images == "decoded":
        check_decoded(synthetic)
    if packing.row.card and not _has_card(synthetic):
        raise UserError(
            f"--to {packing.layout} comes with a dataset card, which states the license of the real images "
            f"({synthetic.manifest['source']['name']}): pass --license, such as --license mit"
        )
    check_free_folder(folder, force=force, foreign=foreign_files, made_by="pack")


def foreign_files(folder: Path) -> list[str]:
    """Files below a folder that its `SHA256SUMS` does not list, hidden ones too."""
    lines = (folder / SUMS).read_text(errors="replace").splitlines() if (folder / SUMS).is_file() else []
    listed = {SUMS} | {line[66:] for line in lines}  # 64 digits and two spaces
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    return sorted(there - listed)


def _has_card(synthetic: SyntheticSet) -> bool:
    return synthetic.manifest["source"]["license"] is not None


def _fill(synthetic: SyntheticSet, folder: Path, packing: Packing) -> None:
    manifest, with_card = synthetic.manifest, _has_card(synthetic)
    if packing.row.module is not None:
        contents = contents_of(manifest, packing)
        with track("packing", contents.count) as bar:

            def counted() -> Iterator[Record]:
                for record in records_of(synthetic, packing.images):
                    yield record
                    bar.advance()

            packing.row.write(folder, contents, counted())
    exact = packing.row.module is not None and packing.images == "stored" and synthetic.levels is None
    if with_card or not exact or is_bomb(folder, synthetic.images.numel()):
        set_file.save(synthetic, folder / set_file.FILE_NAME)
    facts = {"layout": packing.layout, "images": packing.images}
    facts |= {} if packing.row.module is None else {"encoding": packing.pictures}
    write_atomic(folder / MANIFEST, json.dumps(manifest | {KEY: facts}, indent=1, sort_keys=True).encode() + b"\n")
    if with_card:
        _write_card(synthetic, folder, packing)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(files_in(folder))]
    write_atomic(folder / SUMS, "".join(lines).encode())


def _write_card(synthetic: SyntheticSet, folder: Path, packing: Packing) -> None:
    # Pillow and yaml: not needed to read a set
    from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes
    from ncfmkit.sets.card import PREVIEW, card

    sheet = contact_sheet(synthetic.images.numpy(), synthetic.labels.numpy(), synthetic.classes)
    write_atomic(folder / PREVIEW, png_bytes(sheet))
    sizes = {name: (folder / name).stat().st_size for name in sorted(files_in(folder))}
    text = card(
        synthetic,
        layout=packing.layout,
        images=packing.images,
        encoding=packing.pictures,
        file_sizes=sizes,
    )
    write_atomic(folder / CARD, text.encode())


def contents_of(manifest: dict[str, Any], packing: Packing) -> Contents:
    stored = packing.images == "stored"
    per_class = manifest["ipc"]["stored" if stored else "decoded"]
    return Contents(
        name=manifest["name"],
        classes=tuple(manifest["classes"]),
        shape=image_shape(manifest),
        per_class=per_class,
        soft_rows=_soft_rows(manifest, stored) if "soft_labels" in manifest["sha256"] else None,
        encoding=packing.pictures,
        images=packing.images,
        shard_bytes=packing.shard_bytes or LARGEST_SHARD,
    )


def _soft_rows(manifest: dict[str, Any], stored: bool) -> np.ndarray:
    """Decoded images of each record, int64 `[records]`."""
    how, ipc, classes = manifest["decode"], manifest["ipc"], len(manifest["classes"])
    if not stored:
        return np.ones(classes * ipc["decoded"], np.int64)
    return np.tile(decoded_rows(how["kind"], how["factor"], ipc["stored"], how["budget"]), classes)


def image_shape(manifest: dict[str, Any]) -> tuple[int, int, int]:
    """Channels and sides of the stored images; a manifest says them, or the bytes of its images, which are square."""
    if "pixels" in manifest:
        channels, height, width = manifest["pixels"]["shape"]
        return channels, height, width
    channels, count = len(manifest["mean"]), len(manifest["classes"]) * manifest["ipc"]["stored"]
    side = math.isqrt(manifest["bytes"].get("images", 0) // (channels * count))
    return channels, side, side


def records_of(synthetic: SyntheticSet, images: str) -> Iterator[Record]:
    """Stored or decoded images, one after the other, with the soft labels that belong to each."""
    soft_DK = None if synthetic.soft_labels is None else synthetic.soft_labels.numpy()
    place = 0
    for image, label, rows in _stored(synthetic) if images == "stored" else _decoded(synthetic):
        soft = None if soft_DK is None else soft_DK[place : place + rows]
        yield Record(image=image, label=label, soft=soft)
        place += rows


def _stored(synthetic: SyntheticSet) -> Iterator[tuple[np.ndarray, int, int]]:
    rows_N = _soft_rows(synthetic.manifest, stored=True).tolist()
    yield from zip(synthetic.images.numpy(), synthetic.labels.tolist(), rows_N, strict=True)


def _decoded(synthetic: SyntheticSet) -> Iterator[tuple[np.ndarray, int, int]]:
    chunk = max(1, MOST_DECODED // _decoded_values(synthetic))
    for images, labels in synthetic.decoded_parts(min(64, chunk)):
        pixels = to_bytes(images).numpy()
        yield from ((image, label, 1) for image, label in zip(pixels, labels.tolist(), strict=True))


def _decoded_values(synthetic: SyntheticSet) -> int:
    """What one stored image is cut into, those that do not count among them."""
    how = synthetic.manifest["decode"]
    return synthetic.images[0].numel() * sum(f * f for f in decode_factors(how["kind"], how["factor"]))


def check_decoded(synthetic: SyntheticSet) -> None:
    values = _decoded_values(synthetic)
    if values > MOST_DECODED:
        raise UserError(f"each image decodes to {values} values, decoded packages have {MOST_DECODED} at most")


def is_bomb(folder: Path, needed: int) -> bool:
    """Whether what is in the folder is far too small to be worth that many bytes of memory."""
    there = sum((folder / name).stat().st_size for name in files_in(folder))
    return needed > max(ALWAYS_ALLOWED, MOST_EXPANSION * there)


def files_in(folder: Path) -> set[str]:
    """Every file below the folder, relative to it; hidden ones are other tools' own (`.gitattributes`, `.DS_Store`)."""
    found = set()
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found |= {(Path(here) / name).relative_to(folder).as_posix() for name in [*files, *links]}
    return found - {SUMS}
