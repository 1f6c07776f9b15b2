"""Reads a set from its file, a run directory or a package.

Nothing of a package is used before its checksums are verified, and every record is compared with the manifest, as if
the checksums were forged. Nothing outside the folder is read, nothing is written.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import sha256_of
from ncfmkit.progress import track
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import (
    LARGEST_JSON,
    check_kind,
    content_problems,
    manifest_problems,
    parsed,
    set_of,
    shape_problems,
)
from ncfmkit.sets.package import (
    KEY,
    MANIFEST,
    MOST_EXPANSION,
    SUMS,
    Packing,
    check_decoded,
    contents_of,
    files_in,
    image_shape,
    is_bomb,
    is_package,
    records_of,
)
from ncfmkit.sets.synthetic import SyntheticSet

LARGEST_SUMS = 128 << 20  # bytes, of a million files or so


def load(path: str | os.PathLike[str]) -> SyntheticSet:
    """Reads a set from its file, a run directory or a package, and checks it against its manifest and checksums.

    Args:
        path: the file, run directory or package.

    Returns:
        The set, in memory.

    Raises:
        UserError: nothing there, not a synthetic set, or damaged; all that is wrong is in the message.

    Example:
        >>> images, labels = ncfmkit.load("runs/digits-ipc1").decoded()
    """
    return set_file.require_intact(Path(path), *read(Path(path)))


def check_exists(path: Path) -> None:
    """Raises UserError unless there is something to read as a set; whether it is whole is not looked at."""
    if not (path.is_dir() and is_package(path)):
        set_file.find(path)


def read(path: Path, *, scratch: Path | None = None) -> tuple[SyntheticSet | None, list[str]]:
    """The set, and a list of all problems; None in place of the set if there are any.

    Args:
        scratch: a file that pictures may be unpacked to; then the images are mapped from there, or from the one file,
            and not in memory. None: they are.

    Raises:
        UserError: nothing there, not a synthetic set, or one of a format that is not known here.
    """
    if path.is_dir() and is_package(path):
        return _read_package(path, scratch)
    return set_file.read(set_file.find(path), mapped=scratch is not None)


@contextmanager
def opened(path: Path, beside: Path) -> Iterator[SyntheticSet]:
    """As :func:`load`, for sets larger than memory: the images stay on the disk, at most in a file in `beside`.

    Raises:
        UserError: as :func:`load`.
    """
    scratch = beside / f".unpacked.{os.getpid()}.tmp"
    with interrupts.cleaning_up():
        try:
            try:
                found = read(path, scratch=scratch)
            except OSError as error:
                raise UserError(f"{path} cannot be unpacked in {beside}: {error.strerror or error}") from None
            yield set_file.require_intact(path, *found)
        finally:
            with suppress(OSError):  # Windows keeps a file that is still mapped
                scratch.unlink(missing_ok=True)


def _read_package(folder: Path, scratch: Path | None) -> tuple[SyntheticSet | None, list[str]]:
    try:
        wrong = _sum_problems(folder)
        if wrong:
            return None, wrong
        if not (folder / MANIFEST).is_file():
            return None, [f"{MANIFEST} is missing, and not listed in {SUMS}"]
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
        packing = _packing_from(facts)
        if (folder / set_file.FILE_NAME).is_file():
            return _from_file(folder, manifest, packing, mapped=scratch is not None)
        return _from_records(folder, manifest, packing, scratch)
    except UserError as error:
        return None, [str(error)]


def _sum_problems(folder: Path) -> list[str]:
    """What is wrong with the files of a package by its `SHA256SUMS`: lines, missing, unlisted and changed files."""
    listed, problems = _read_sums(folder)
    if problems:
        return problems
    there = files_in(folder)
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


def packing_of(folder: Path) -> Packing:
    """How a whole package was packed."""
    return _packing_from(_read_manifest(folder).get(KEY))


def _packing_from(facts: Any) -> Packing:
    """How a package was packed, as its manifest says."""
    if not isinstance(facts, dict) or not {"layout", "images"} <= facts.keys() <= {"layout", "images", "encoding"}:
        raise UserError(f"{MANIFEST}: its {KEY!r} does not say the layout and the images")
    packing = Packing(**facts)
    if packing.row.module is not None and packing.encoding is None:
        raise UserError(f"{MANIFEST}: its {KEY!r} does not say the encoding of the pictures")
    return packing


def _from_file(
    folder: Path, manifest: dict[str, Any], packing: Packing, *, mapped: bool
) -> tuple[SyntheticSet | None, list[str]]:
    """The set of the one file, held against the manifest and the layout's files."""
    result, problems = set_file.read(folder / set_file.FILE_NAME, mapped=mapped)
    if result is None:
        return None, [f"{set_file.FILE_NAME}: {problem}" for problem in problems]
    if result.manifest != manifest:
        return None, [f"{MANIFEST} and {set_file.FILE_NAME} hold different manifests"]
    if packing.row.module is not None:
        problems = _differences(folder, result, packing)
    return (None, problems) if problems else (result, [])


def _differences(folder: Path, result: SyntheticSet, packing: Packing) -> list[str]:
    """Records that are not the set's; decoded ones may be off by one, since they were interpolated elsewhere."""
    assert packing.row.module is not None
    tolerance = 0 if packing.images == "stored" else 1
    contents = contents_of(result.manifest, packing)
    if packing.images == "decoded":
        _check_expansion(folder, (contents.count, *contents.shape))
        check_decoded(result)
    pairs = zip(records_of(result, packing.images), packing.row.read(folder, contents), strict=True)
    found = []
    for number, (expected, got) in enumerate(pairs):
        if np.abs(expected.image.astype(np.int16) - got.image).max() > tolerance:
            found.append(f"image {number} of the {packing.layout} files is not the one in {set_file.FILE_NAME}")
        if expected.soft is not None and (got.soft is None or not np.array_equal(expected.soft, got.soft)):
            found.append(f"soft labels {number} of the {packing.layout} files are not those in {set_file.FILE_NAME}")
    return found


def _from_records(
    folder: Path, manifest: dict[str, Any], packing: Packing, scratch: Path | None
) -> tuple[SyntheticSet | None, list[str]]:
    if packing.row.module is None or packing.images == "decoded" or "pixels" in manifest:
        return None, [f"{set_file.FILE_NAME} is missing: this package cannot be without it"]
    shape = (len(manifest["classes"]) * manifest["ipc"]["stored"], *image_shape(manifest))
    _check_expansion(folder, shape)
    contents = contents_of(manifest, packing)
    soft: list[np.ndarray] = []

    def images() -> Iterator[np.ndarray]:
        for record in records:
            soft.extend([] if record.soft is None else [record.soft])
            yield record.image
            bar.advance()

    records = packing.row.read(folder, contents)
    with track("reading", contents.count) as bar:
        images_NCHW = _gathered(images(), shape, scratch)
    labels = np.repeat(np.arange(len(contents.classes)), contents.per_class)
    tensors = {"images": torch.from_numpy(images_NCHW), "labels": torch.from_numpy(labels)}
    tensors |= {"soft_labels": torch.from_numpy(np.concatenate(soft))} if soft else {}
    problems = shape_problems(manifest, set_file.described(tensors)) or content_problems(manifest, tensors)
    return (None, problems) if problems else (set_of(tensors, manifest), [])


def _gathered(images: Iterator[np.ndarray], shape: tuple[int, ...], scratch: Path | None) -> np.ndarray:
    """The images in one array of that shape: in memory, or mapped from `scratch`."""
    if scratch is None:
        images_NCHW = np.empty(shape, np.uint8)
        for number, image in enumerate(images):
            images_NCHW[number] = image
        return images_NCHW
    with open(scratch, "xb") as file:  # not mapped while it grows: a full disk would end the process
        for image in images:
            file.write(image.tobytes())
    return np.memmap(scratch, np.uint8, "c", shape=shape)


def _check_expansion(folder: Path, shape: tuple[int, ...]) -> None:
    """Against pictures that unpack to far more than they are: what is allocated is bounded by what is there."""
    there, needed = sum((folder / name).stat().st_size for name in files_in(folder)), math.prod(shape)
    if not min(shape) or shape[0] > there:
        raise UserError(f"its {there} bytes cannot hold images of shape {list(shape)}")
    if is_bomb(folder, needed):
        raise UserError(
            f"its {there} bytes would unpack to {needed}, more than {MOST_EXPANSION} times as many: rejected as a "
            "decompression bomb"
        )
