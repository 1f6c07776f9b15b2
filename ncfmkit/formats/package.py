"""A set as a folder for other people's tools: a layout's files, the manifest, checksums, a dataset card.

A package is written under a temporary name and appears whole. Reading one checks every checksum first, then every
record against the manifest; nothing outside the folder is read, nothing at all is written.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit.errors import UserError
from ncfmkit.files import sha256_of, write_atomic
from ncfmkit.formats import one_file
from ncfmkit.formats.card import card
from ncfmkit.formats.layouts import LAYOUTS, Layout
from ncfmkit.formats.manifest import (
    LARGEST_JSON,
    check_kind,
    content_problems,
    manifest_problems,
    parsed,
    sealed,
    set_of,
    shape_problems,
    tensors_of,
)
from ncfmkit.formats.records import Contents, Record
from ncfmkit.progress import track
from ncfmkit.report import contact_sheet, png_bytes
from ncfmkit.synthetic import SyntheticSet, decode_factors, decoded_rows

MANIFEST = "ncfmkit.json"
SUMS = "SHA256SUMS"
CARD, PREVIEW = "README.md", "preview.png"
KEY = "package"  # of the manifest in a package: what is written below, not part of the set
IMAGES = ("stored", "decoded")
ENCODINGS = ("png", "webp")
LARGEST_SUMS = 1 << 30
# A package may need this many times its own size in memory, or this many bytes: more is a decompression bomb.
MOST_EXPANSION, ALWAYS_ALLOWED = 200, 256 << 20
MOST_DECODED = 1 << 26  # values that stored images are cut into at once: in float32, some 1 GiB while it is done

Allocate = Callable[[tuple[int, ...]], np.ndarray]  # uint8 of that shape


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a set is packed; bad values raise UserError.

    Attributes:
        layout: a name of `LAYOUTS`.
        images: `stored`, or `decoded` for tools that cannot decode; the stored ones are added in their own file.
        encoding: of pictures, `png` or lossless `webp`.
        shard_bytes: the largest size of a shard, where the layout has some.
    """

    layout: str
    images: str = "stored"
    encoding: str = "png"
    shard_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name, choices in (("layout", LAYOUTS), ("images", IMAGES), ("encoding", ENCODINGS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        if self.shard_bytes < 1:
            raise UserError(f"shards of {self.shard_bytes} bytes: expected 1 or more")
        if self.row.write is None and self.images == "decoded":
            raise UserError("decoded images need a layout of pictures: the one file holds the stored ones")

    @property
    def row(self) -> Layout:
        return LAYOUTS[self.layout]


def is_package(path: Path) -> bool:
    return (path / MANIFEST).is_file()


# ---- writing ----------------------------------------------------------------------------------------------------


def write(synthetic: SyntheticSet, folder: Path, packing: Packing) -> None:
    """Packs a set into a new folder; the same set gives the same bytes.

    The card, which needs to know the licence of the source, is written where the manifest states one. The one file is
    added where the layout cannot hold the set exactly (decoded images, quantised pixels), and where a card is, whose
    snippets read it.

    Raises:
        UserError: as :func:`check_writable`, or the disk refuses.
    """
    check_writable(synthetic, folder, packing)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir()
        _fill(synthetic, partial, packing)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} was not written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(synthetic: SyntheticSet, folder: Path, packing: Packing) -> None:
    """Whether the set can be packed there.

    Raises:
        UserError: the folder is there already or cannot be, the layout needs a licence, decoded images are too large.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: choose another --out")
    if not folder.parent.is_dir():
        raise UserError(f"--out {folder}: there is no folder {folder.parent}: make it first")
    if packing.images == "decoded":
        _check_decoded(synthetic)
    if packing.row.card and not _has_card(synthetic):
        raise UserError(
            f"--to {packing.layout} comes with a dataset card, which states the licence of the real images "
            f"({synthetic.manifest['source']['name']}): pass --license, such as --license mit"
        )


def _has_card(synthetic: SyntheticSet) -> bool:
    return synthetic.manifest["source"]["license"] is not None


def _fill(synthetic: SyntheticSet, folder: Path, packing: Packing) -> None:
    manifest, with_card = sealed(synthetic.manifest, tensors_of(synthetic)), _has_card(synthetic)
    if packing.row.write is not None:
        contents = _contents(manifest, packing)
        with track("packing", contents.count) as bar:

            def counted() -> Iterator[Record]:
                for record in _records(synthetic, packing.images):
                    yield record
                    bar.advance()

            packing.row.write(folder, contents, counted())
    exact = packing.row.write is not None and packing.images == "stored" and synthetic.levels is None
    if with_card or not exact:
        one_file.save(synthetic, folder / one_file.FILE_NAME)
    facts = {"layout": packing.layout, "images": packing.images}
    facts |= {} if packing.row.write is None else {"encoding": packing.encoding}
    write_atomic(folder / MANIFEST, json.dumps(manifest | {KEY: facts}, indent=1, sort_keys=True).encode() + b"\n")
    if with_card:
        _write_card(synthetic, manifest, folder, packing)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    write_atomic(folder / SUMS, "".join(lines).encode())


def _write_card(synthetic: SyntheticSet, manifest: dict[str, Any], folder: Path, packing: Packing) -> None:
    sheet = contact_sheet(synthetic.images.numpy(), synthetic.labels.numpy(), synthetic.classes)
    write_atomic(folder / PREVIEW, png_bytes(sheet))
    sizes = {name: (folder / name).stat().st_size for name in sorted(_files(folder))}
    text = card(
        SyntheticSet(**(vars(synthetic) | {"manifest": manifest})),
        layout=packing.layout,
        images=packing.images,
        encoding=packing.encoding,
        file_sizes=sizes,
    )
    write_atomic(folder / CARD, text.encode())


def _contents(manifest: dict[str, Any], packing: Packing) -> Contents:
    stored = packing.images == "stored"
    per_class = manifest["ipc"]["stored" if stored else "decoded"]
    return Contents(
        name=manifest["name"],
        classes=tuple(manifest["classes"]),
        shape=_image_shape(manifest),
        per_class=per_class,
        soft_rows=_soft_rows(manifest, stored) if "soft_labels" in manifest["sha256"] else None,
        encoding=packing.encoding,
        images=packing.images,
        shard_bytes=packing.shard_bytes,
    )


def _soft_rows(manifest: dict[str, Any], stored: bool) -> np.ndarray:
    """Decoded images of each record, int64 `[records]`."""
    how, ipc, classes = manifest["decode"], manifest["ipc"], len(manifest["classes"])
    if not stored:
        return np.ones(classes * ipc["decoded"], np.int64)
    return np.tile(decoded_rows(how["kind"], how["factor"], ipc["stored"], how["budget"]), classes)


def _image_shape(manifest: dict[str, Any]) -> tuple[int, int, int]:
    """Channels and sides of the stored images; a manifest says them, or the bytes of its images, which are square."""
    if "pixels" in manifest:
        channels, height, width = manifest["pixels"]["shape"]
        return channels, height, width
    channels, count = len(manifest["mean"]), len(manifest["classes"]) * manifest["ipc"]["stored"]
    side = math.isqrt(manifest["bytes"].get("images", 0) // (channels * count))
    return channels, side, side


def _records(synthetic: SyntheticSet, images: str) -> Iterator[Record]:
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
        pixels = images.mul(255).round().to(torch.uint8).numpy()
        yield from ((image, label, 1) for image, label in zip(pixels, labels.tolist(), strict=True))


def _decoded_values(synthetic: SyntheticSet) -> int:
    """What one stored image is cut into, those that do not count among them."""
    how = synthetic.manifest["decode"]
    return synthetic.images[0].numel() * sum(f * f for f in decode_factors(how["kind"], how["factor"]))


def _check_decoded(synthetic: SyntheticSet) -> None:
    values = _decoded_values(synthetic)
    if values > MOST_DECODED:
        raise UserError(f"each image decodes to {values} values, decoded packages have {MOST_DECODED} at most")


def _files(folder: Path) -> set[str]:
    """Every file below the folder, relative to it; hidden ones in the folder itself do not count (`.gitattributes`)."""
    found = set()
    for here, folders, files in os.walk(folder):
        if Path(here) == folder:
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".")]
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found |= {(Path(here) / name).relative_to(folder).as_posix() for name in [*files, *links]}
    return found - {SUMS}


# ---- reading ----------------------------------------------------------------------------------------------------


def read(folder: Path, allocate: Allocate | None = None) -> tuple[SyntheticSet | None, list[str]]:
    """The set in a package, and all that is wrong with it; none where anything is.

    Args:
        allocate: gives the array for the stored images; none: in memory.

    Raises:
        UserError: not a package, or one of another kind or format than is known here.
    """
    if not is_package(folder):
        raise UserError(f"{folder} is not a package: expected a folder with {MANIFEST}, as `ncfmkit pack` writes it")
    try:
        wrong = sum_problems(folder)
        if wrong:
            return None, wrong
        manifest = _read_manifest(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        return None, [f"{MANIFEST}: {error}"]
    check_kind(manifest, str(folder))
    facts = manifest.pop(KEY, None)
    problems = manifest_problems(manifest)
    if problems:
        return None, [f"{MANIFEST}: {problem}" for problem in problems]
    try:
        packing = _told(facts)
        if (folder / one_file.FILE_NAME).is_file():
            return _from_file(folder, manifest, packing)
        return _from_records(folder, manifest, packing, allocate or (lambda shape: np.empty(shape, np.uint8)))
    except UserError as error:
        return None, [str(error)]


def sum_problems(folder: Path) -> list[str]:
    """What is wrong with the files of a package by its `SHA256SUMS`: lines, missing, unlisted and changed files."""
    listed, problems = _read_sums(folder)
    there = _files(folder)
    problems += [f"{name} is missing" for name in sorted(listed.keys() - there)]
    problems += [f"{name} is not in {SUMS}" for name in sorted(there - listed.keys())]
    for name in sorted(listed.keys() & there):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            problems.append(f"{name} is not a file of its own (a link, a device)")
        elif sha256_of(folder / name) != listed[name]:
            problems.append(f"{name} is damaged: its sha256 is not that in {SUMS}")
    return problems


def _read_sums(folder: Path) -> tuple[dict[str, str], list[str]]:
    path = folder / SUMS
    if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_SUMS:
        return {}, [f"{SUMS} is missing, or not such a file"]
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        name = found[2] if found else ""
        if not found or name in listed or not _stays_inside(name):
            return {}, [f"{SUMS} line {number}: expected a sha256, two spaces and a path inside the folder, each once"]
        listed[name] = found[1]
    return listed, []


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and ":" not in name and not {"", ".", ".."} & set(parts)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size} bytes, expected {LARGEST_JSON} at most")
    return parsed(path.read_bytes())


def _told(facts: Any) -> Packing:
    """How the package was packed, as its manifest says."""
    if not isinstance(facts, dict) or not {"layout", "images"} <= facts.keys() <= {"layout", "images", "encoding"}:
        raise UserError(f"{MANIFEST}: its {KEY!r} does not say the layout and the images")
    return Packing(**facts)


def _from_file(folder: Path, manifest: dict[str, Any], packing: Packing) -> tuple[SyntheticSet | None, list[str]]:
    """The set of the one file, held against the manifest and the layout's files."""
    result, problems = one_file.read(folder / one_file.FILE_NAME)
    if result is None:
        return None, [f"{one_file.FILE_NAME}: {problem}" for problem in problems]
    if result.manifest != manifest:
        return None, [f"{MANIFEST} and {one_file.FILE_NAME} hold different manifests"]
    if packing.row.read is not None:
        problems = _differences(folder, result, packing)
    return (None, problems) if problems else (result, [])


def _differences(folder: Path, result: SyntheticSet, packing: Packing) -> list[str]:
    """Records that are not the set's; decoded ones may be off by one, since they were interpolated elsewhere."""
    assert packing.row.read is not None
    tolerance = 0 if packing.images == "stored" else 1
    contents = _contents(result.manifest, packing)
    if packing.images == "decoded":
        _check_expansion(folder, (contents.count, *contents.shape))
        _check_decoded(result)
    pairs = zip(_records(result, packing.images), packing.row.read(folder, contents), strict=True)
    for number, (expected, got) in enumerate(pairs):
        if np.abs(expected.image.astype(np.int16) - got.image).max() > tolerance:
            return [f"image {number} of the {packing.layout} files is not the one in {one_file.FILE_NAME}"]
        if expected.soft is not None and (got.soft is None or not np.array_equal(expected.soft, got.soft)):
            return [f"the soft labels {number} of the {packing.layout} files are not those in {one_file.FILE_NAME}"]
    return []


def _from_records(
    folder: Path, manifest: dict[str, Any], packing: Packing, allocate: Allocate
) -> tuple[SyntheticSet | None, list[str]]:
    if packing.row.read is None or packing.images == "decoded" or "pixels" in manifest:
        return None, [f"{one_file.FILE_NAME} is missing: this package cannot be without it"]
    shape = (len(manifest["classes"]) * manifest["ipc"]["stored"], *_image_shape(manifest))
    _check_expansion(folder, shape)
    contents = _contents(manifest, packing)
    images_NCHW, soft = allocate(shape), []
    with track("reading", len(images_NCHW)) as bar:
        for number, record in enumerate(packing.row.read(folder, contents)):
            images_NCHW[number] = record.image
            soft += [] if record.soft is None else [record.soft]
            bar.advance()
    labels = np.repeat(np.arange(len(contents.classes)), contents.per_class)
    tensors = {"images": torch.from_numpy(images_NCHW), "labels": torch.from_numpy(labels)}
    tensors |= {"soft_labels": torch.from_numpy(np.concatenate(soft))} if soft else {}
    described = {name: (one_file.DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    problems = shape_problems(manifest, described) or content_problems(manifest, tensors)
    return (None, problems) if problems else (set_of(tensors, manifest), [])


def _check_expansion(folder: Path, shape: tuple[int, ...]) -> None:
    """Against pictures that unpack to far more than they are: what is allocated is bounded by what is there."""
    there, needed = sum((folder / name).stat().st_size for name in _files(folder)), math.prod(shape)
    if not min(shape) or shape[0] > there:
        raise UserError(f"its {there} bytes cannot hold images of shape {list(shape)}")
    if needed > max(ALWAYS_ALLOWED, MOST_EXPANSION * there):
        raise UserError(
            f"its {there} bytes would unpack to {needed}, more than {MOST_EXPANSION} times as many: refused as a "
            "decompression bomb"
        )
