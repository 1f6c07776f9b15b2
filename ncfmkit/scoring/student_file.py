"""A student as one safetensors file: its parameters, and a JSON manifest with all that is needed to use it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ncfmkit import networks
from ncfmkit.errors import UserError
from ncfmkit.files import METADATA_KEY, check_safetensors, digest, write_atomic
from ncfmkit.training import Weights

LARGEST_SIDE = 16384  # pixels; a larger one is damage


def save(state: Weights, metadata: dict[str, Any], path: Path) -> None:
    """Writes a student's parameters and metadata, and the digest of each parameter."""
    metadata = {**metadata, "sha256": {name: digest(tensor) for name, tensor in state.items()}}
    write_atomic(path, to_bytes(state, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)}))


def load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its parameters, in eval mode on the CPU, and its metadata.

    Raises:
        UserError: no such file, not a student, or damaged.
    """
    if not path.is_file():
        raise UserError(f"no student at {path}")
    check_safetensors(path, "a student")
    try:
        with safe_open(path, framework="pt") as stored:
            text = (stored.metadata() or {}).get(METADATA_KEY, "{}")
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file (damaged or truncated): {error}") from None
    try:
        metadata = json.loads(text)
        if metadata.get("kind") != "student":
            raise UserError(f"{path} is not a student: it holds a {metadata.get('kind', 'file of an unknown kind')}")
        _check(state, metadata)
        network, digests = _rebuild(state, metadata), dict(metadata["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: its metadata or parameters are not a student's ({error!r})") from None
    wrong = [name for name, tensor in state.items() if digests.get(name) != digest(tensor)]
    if wrong:
        raise UserError(f"{path} is damaged: the sha256 of {wrong[0]!r} is not the metadata's")
    return network.eval(), metadata


def _check(state: Weights, metadata: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError if something is missing or not of its kind."""
    channels, size, classes = (metadata[k] for k in ("channels", "size", "classes"))
    if channels not in (1, 3) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
        raise ValueError(f"channels {channels!r}, size {size!r}")
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        if len(metadata[key]) != channels or not all(math.isfinite(v) and v >= least for v in metadata[key]):
            raise ValueError(f"{key} {metadata[key]!r}: expected {channels} finite numbers")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes: expected two or more names")
    accuracy = metadata["test_accuracy"]
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"test_accuracy {accuracy!r}")
    if not isinstance(metadata["trained_on"]["name"], str) or not isinstance(metadata["trained_on"]["sha256"], dict):
        raise TypeError("trained_on: expected a name and digests")
    if not isinstance(metadata["tool"], str):
        raise TypeError("tool: expected a text")
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: expected finite float32 parameters, got {tensor.dtype}")


def _rebuild(state: Weights, metadata: dict[str, Any]) -> nn.Module:
    shape = {k: metadata[k] for k in ("channels", "size")}
    row = {k: metadata["network"][k] for k in ("width", "depth")}
    network = networks.build(metadata["network"]["name"], classes=len(metadata["classes"]), **shape, **row)
    network.load_state_dict(state)
    return network
