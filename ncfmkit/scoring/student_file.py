"""A student as one safetensors file: its parameters, and a JSON manifest with all that is needed to use it."""

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ncfmkit import networks
from ncfmkit.errors import UserError, cause
from ncfmkit.files import METADATA_KEY, check_safetensors, digest, write_atomic
from ncfmkit.records import Record, problems
from ncfmkit.scoring.student_manifest import MOST_PARAMETERS, StudentManifest
from ncfmkit.training import Weights

LARGEST_HEADER = 4 << 20  # bytes, of which the manifest is a part
MOST_SHOWN = 10  # problems in a message


class _Kind(Record, extra="ignore"):
    kind: str = "file of an unknown kind"


def save(state: Weights, manifest: StudentManifest, path: Path) -> None:
    """Writes a student's parameters and manifest, and the digest of each parameter."""
    whole = manifest.model_copy(update={"sha256": {name: digest(tensor) for name, tensor in state.items()}})
    write_atomic(path, to_bytes(state, metadata={METADATA_KEY: json.dumps(whole.to_dict(), sort_keys=True)}))


def load(path: Path) -> tuple[nn.Module, StudentManifest]:
    """The network with its parameters, in eval mode on the CPU, and its manifest.

    The memory that this takes is bounded by the size of the file, whatever the manifest says.

    Raises:
        UserError: no such file, not a student, or damaged.
    """
    if not path.is_file():
        raise UserError(f"no student at {path}")
    check_safetensors(path, "a student")
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as stored:
            text = (stored.metadata() or {}).get(METADATA_KEY, "{}")
            names = stored.keys()
            if len(names) > MOST_PARAMETERS:
                raise UserError(
                    f"{path} is not a student: {len(names):,} tensors, expected {MOST_PARAMETERS:,} at most"
                )
            # copied first and then checked: mapped tensors change with the file
            state = {name: stored.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file (damaged or truncated): {cause(error)}") from None
    try:
        kind = _Kind.model_validate_json(text).kind
        if kind != "student":
            raise UserError(f"{path} is not a student: it holds a {kind[:100]}")
        manifest = StudentManifest.model_validate_json(text)
    except ValidationError as error:
        lines = problems(error)[:MOST_SHOWN]
        raise UserError("\n".join([f"{path} is damaged: its manifest is not a student's:", *lines])) from None
    network = _rebuild(path, state, manifest)
    wrong = [name for name, tensor in state.items() if manifest.sha256.get(name) != digest(tensor)]
    if wrong:
        raise UserError(f"{path} is damaged: the sha256 of {wrong[0][:100]!r} is not the manifest's")
    return network.eval(), manifest


def _check_header(path: Path) -> None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise UserError(
            f"{path} is not a readable safetensors file: its header of {length:,} bytes is larger than "
            f"{LARGEST_HEADER:,}"
        )


def _rebuild(path: Path, state: Weights, manifest: StudentManifest) -> nn.Module:
    """The network of the manifest with the file's parameters, which are all the memory that it gets."""
    m = manifest
    try:
        with torch.device("meta"):
            network = networks.build(
                m.network.name,
                classes=len(m.classes),
                channels=m.channels,
                size=m.size,
                width=m.network.width,
                depth=m.network.depth,
            )
    except UserError as error:
        raise UserError(f"{path} is damaged: {cause(error)}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else "nothing"
        if got != expected.get(name):
            raise UserError(f"{path} is damaged: {name[:100]}: expected {expected.get(name, 'nothing')}, got {got}")
        if state[name].dtype != torch.float32 or not bool(state[name].isfinite().all()):
            raise UserError(
                f"{path} is damaged: {name[:100]}: expected finite float32 parameters, got {state[name].dtype}"
            )
    network.load_state_dict(state, assign=True)
    return network
