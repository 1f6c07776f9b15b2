"""A synthetic set as one safetensors file with a JSON manifest; docs/formats.md specifies it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ncfmkit.errors import UserError, cause
from ncfmkit.files import METADATA_KEY, check_free, check_name, check_safetensors, tensor_bytes, write_atomic
from ncfmkit.records import problems
from ncfmkit.sets.hub import local
from ncfmkit.sets.manifest import (
    LARGEST_JSON,
    Manifest,
    content_problems,
    parsed,
    read_manifest,
    set_of,
    shape_problems,
    tensors_of,
    value_problems,
    with_digests,
    written,
)
from ncfmkit.sets.subset import first_images
from ncfmkit.sets.synthetic import SyntheticSet

FILE_NAME = "synthetic.safetensors"
DTYPES = {torch.uint8: "U8", torch.int64: "I64", torch.float16: "F16"}
PART = 1 << 24  # bytes written at once
MOST_SHOWN = 100  # problems in a message
UNREADABLE = "it is not a readable safetensors file (damaged or truncated): {}"


def save(synthetic: SyntheticSet, path: str | os.PathLike[str], *, force: bool = False) -> Manifest:
    """Writes the set as one safetensors file; the same set gives the same bytes.

    The tensors are written in parts, since safetensors' own writer copies them: a set may be larger than memory.

    Args:
        synthetic: the set.
        path: the file to write.
        force: overwrite an existing file.

    Returns:
        The manifest with the digests of the tensors in it.

    Raises:
        UserError: the manifest lacks something or does not fit the tensors, the file exists and `force` is false, or it
            cannot be written.

    Example:
        >>> ncfmkit.save(small, "small.safetensors").name
        'digits-ipc1'
    """
    path = Path(path)
    if not force:
        check_free(path)
    manifest = checked(synthetic.manifest, tensors_of(synthetic), path)
    write(dataclasses.replace(synthetic, manifest=manifest), path)
    return manifest


def write(synthetic: SyntheticSet, path: Path) -> None:
    """Writes a set whose manifest is :func:`checked`."""
    write_atomic(path, _parts(tensors_of(synthetic), synthetic.manifest))


def checked(manifest: Manifest, tensors: dict[str, torch.Tensor], path: Path) -> Manifest:
    """The manifest with the digests of the tensors, which are a set as it says; `path` is for the message.

    Raises:
        UserError: they are not: what is written would not be read again.
    """
    try:
        manifest = with_digests(manifest.to_dict(), tensors)
        wrong = shape_problems(manifest, described(tensors)) or value_problems(manifest, tensors)
    except ValidationError as error:
        wrong = [f"its manifest's {problem}" for problem in problems(error)]
    except ValueError as error:  # NaN in the settings
        wrong = [str(error)]
    if wrong:
        raise UserError("\n".join([f"{path} was not written, the set is incomplete or invalid:", *wrong]))
    return manifest


def described(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type, as safetensors writes it, and shape of every tensor."""
    return {name: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}


def _parts(tensors: dict[str, torch.Tensor], manifest: Manifest) -> Iterator[bytes | memoryview]:
    """The file as safetensors writes it: the widest numbers first, then by name, the header a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: written(manifest.to_dict())}}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        content = tensor_bytes(tensor)
        yield from (content[start : start + PART] for start in range(0, len(content), PART))


def find(path: str | os.PathLike[str]) -> Path:
    """The file of a set: `path` itself, or the one in the run directory or package `path`, or at the address `hf://`.

    Raises:
        UserError: there is none.
    """
    path = local(path)
    check_name(path)
    if path.is_file() and path.suffix != ".safetensors" and (path.parent / FILE_NAME).is_file():
        raise UserError(f"{path} is part of a package: pass the folder {path.parent}")
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"no synthetic set at {path}: expected a .safetensors file, or a run directory or package with {FILE_NAME} "
            "in it (packages of earlier versions may lack it: pack the original set again)"
        )
    check_safetensors(file, "a synthetic set")
    return file


def load(path: str | os.PathLike[str], *, ipc: int | None = None, mapped: bool = False) -> SyntheticSet:
    """Reads a set from its file, a run directory or a package, and checks it against its manifest and its digests.

    Args:
        path: the file, run directory or package, or `hf://OWNER/NAME` (`@REVISION`) of a package on the Hub.
        ipc: only the first so many stored images of each class, as a set of its own; None: all of them. Where the
            manifest's `order` is `worth`, they match the real images better than others do.
        mapped: leave the images on the disk, for sets larger than memory; whoever changes the file later changes them.

    Returns:
        The set, in memory unless `mapped`.

    Raises:
        UserError: nothing there, not a synthetic set, or damaged; all that is wrong is in the message. Or `ipc` is
            more than the set stores.

    Example:
        >>> images, labels = ncfmkit.load("runs/digits-ipc1").decoded()
        >>> ncfmkit.load("runs/digits-ipc10", ipc=3)
        SyntheticSet(10 classes x 3 images of 1x8x8)
    """
    file = find(path)
    result, wrong = read(file, mapped=mapped)
    if result is not None:
        return result if ipc is None else first_images(result, ipc)
    if len(wrong) == 1:
        raise UserError(f"{file} is damaged: {wrong[0]}")
    raise UserError(f"{file} is damaged, {len(wrong)} problems:\n{listed(wrong)}")


def listed(problems: list[str]) -> str:
    """Problems line by line, as many as people read."""
    lines = [f"  {problem}" for problem in problems[:MOST_SHOWN]]
    more = len(problems) - len(lines)
    return "\n".join([*lines, f"  ... and {more:,} more"] if more else lines)


def read(file: Path, *, mapped: bool = False) -> tuple[SyntheticSet | None, list[str]]:
    """The set, and a list of all problems; None in place of a set that is too damaged to be read.

    Args:
        mapped: leave the tensors on the disk, for sets larger than memory; whoever changes the file later changes them.

    Raises:
        UserError: a safetensors file that is not a set, or of a format that is not known here.
    """
    try:
        manifest, wrong = _read_manifest(file)
        if manifest is None:
            return None, wrong
        with safe_open(file, framework="pt") as stored:
            wrong = shape_problems(manifest, _shapes(stored))
            if wrong:
                return None, wrong
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            if not mapped:  # copied before they are checked
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    except SafetensorError as error:
        return None, [UNREADABLE.format(cause(error))]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    wrong = content_problems(manifest, tensors)
    if wrong:
        return None, wrong
    try:
        return set_of(tensors, manifest), []
    except ValueError as error:
        return None, [str(error)]


def _read_manifest(file: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest, and what is wrong with it or with the header around it."""
    with open(file, "rb") as start:
        length = int.from_bytes(start.read(8), "little")
        if start.read(1) != b"{":
            return None, [UNREADABLE.format("it does not begin as one")]
        if not 1 <= length <= LARGEST_JSON:
            return None, [UNREADABLE.format(f"a header of {length} bytes, expected 1 to {LARGEST_JSON}")]
        content = b"{" + start.read(length - 1)
    try:
        header = parsed(content)
        metadata = header.pop("__metadata__", {})
        if any(not isinstance(v, dict) or v.keys() != {"dtype", "shape", "data_offsets"} for v in header.values()):
            raise ValueError("a tensor without type, shape and offsets, or with more")
        text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    except ValueError as error:
        return None, [UNREADABLE.format(f"its header: {error}")]
    if not isinstance(text, str):
        raise UserError(f"{file} is a safetensors file without a {METADATA_KEY!r} manifest: not a synthetic set")
    return read_manifest(text, str(file))


def _shapes(stored: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def digests(path: Path) -> dict[str, str] | None:
    """The digests that a set's manifest tells of its tensors; none for any other file. The tensors are not read."""
    try:
        manifest, _ = _read_manifest(path)
    except (OSError, UserError):
        return None
    return None if manifest is None else manifest.sha256
