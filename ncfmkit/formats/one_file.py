"""A synthetic set as one safetensors file with a JSON manifest; docs/formats.md specifies it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ncfmkit.errors import UserError
from ncfmkit.files import write_atomic
from ncfmkit.synthetic import SyntheticSet

FORMAT = 1
METADATA_KEY = "ncfmkit"
DIGEST_KEY = "manifest_sha256"
FILE_NAME = "synthetic.safetensors"


def save(synthetic: SyntheticSet, path: Path) -> None:
    """Writes the set; the same set gives the same bytes. The manifest gets the digests and sizes of the tensors."""
    tensors = {"images": synthetic.images.contiguous(), "labels": synthetic.labels.contiguous()}
    manifest = {
        **synthetic.manifest,
        "format": FORMAT,
        "bytes": {name: tensor.nbytes for name, tensor in tensors.items()},
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
    }
    manifest[DIGEST_KEY] = manifest_digest(manifest)
    metadata = {METADATA_KEY: json.dumps(manifest, sort_keys=True)}  # one key: safetensors writes several in any order
    write_atomic(path, to_bytes(tensors, metadata=metadata))


def load(path: str | Path) -> SyntheticSet:
    """Reads a set from its file, or from the run directory that holds it, and checks it against its manifest.

    Raises:
        UserError: no such file, not a synthetic set, or damaged.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no synthetic set at {path}: expected a .safetensors file or a run directory with {FILE_NAME}")
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable safetensors file (damaged or truncated): {error}") from None
    if METADATA_KEY not in metadata:
        raise UserError(f"{file} is a safetensors file, but not a synthetic set: no {METADATA_KEY!r} manifest in it")
    try:
        manifest = json.loads(metadata[METADATA_KEY])
        _check(file, tensors, manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is damaged: its manifest is not what a set has ({error!r})") from None
    return SyntheticSet(images=tensors["images"], labels=tensors["labels"], manifest=manifest)


def digests(path: Path) -> dict[str, str] | None:
    """The digests that a set's manifest tells of its tensors; none for any other file. The tensors are not read."""
    try:
        with safe_open(path, framework="pt") as stored:
            manifest = json.loads((stored.metadata() or {})[METADATA_KEY])
        return manifest["sha256"] if manifest.get("kind") == "synthetic set" else None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RecursionError):
        return None


def _check(file: Path, tensors: dict[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    if manifest.get("kind") != "synthetic set":
        raise UserError(f"{file} holds a {manifest.get('kind', 'file of an unknown kind')}, not a synthetic set")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {manifest.get('format')}, this ncfmkit reads format {FORMAT}: update ncfmkit"
        )
    if manifest_digest(manifest) != manifest.get(DIGEST_KEY):
        raise UserError(f"{file} is damaged: the sha256 of its manifest is not the one stored in it")
    for name in sorted({"images", "labels", *manifest["sha256"]}):
        if name not in tensors or digest(tensors[name]) != manifest["sha256"].get(name):
            raise UserError(f"{file} is damaged: the sha256 of {name!r} is not the manifest's")
    expected = len(manifest["classes"]) * manifest["ipc"]["stored"]
    if len(tensors["images"]) != expected:
        raise UserError(
            f"{file} is damaged: its manifest speaks of {expected} images, it holds {len(tensors['images'])}"
        )


def manifest_digest(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without this digest: JSON with sorted keys, ", " and ": " between, ASCII."""
    return _sha256(json.dumps({k: v for k, v in manifest.items() if k != DIGEST_KEY}, sort_keys=True).encode())


def digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes (little-endian, row-major)."""
    return _sha256(tensor.contiguous().numpy().tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
