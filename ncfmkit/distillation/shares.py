"""Who distills which classes, shards and ranks, and the states of several of them as one (docs/scale.md)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ncfmkit.config import DistillSettings, parse_shard
from ncfmkit.errors import UserError


def distilled_labels(classes: Sequence[str], counts_C: Sequence[int], settings: DistillSettings) -> np.ndarray:
    """The classes that a run distills, ascending, int64: all, those that are new, or a shard of either.

    Every shard has about as many real images in a step.

    Args:
        classes: names, in label order.
        counts_C: training images of each class.

    Raises:
        UserError: there are more shards than classes.
    """
    label_C = np.arange(len(counts_C))
    if settings.add_to is not None:
        label_C = label_C[np.isin(list(classes), settings.new_classes)]
    if settings.shard is None:
        return label_C
    number, of = parse_shard(settings.shard)
    if of > len(label_C):
        raise UserError(f"--shard {settings.shard}: expected at most {len(label_C)} shards, one for each class")
    return dealt(label_C, counts_C, settings, of)[number - 1]


def rank_labels(
    classes: Sequence[str], counts_C: Sequence[int], settings: DistillSettings, world: int
) -> list[np.ndarray]:
    """Of the classes that a run distills, those of each of its ranks, as :func:`distilled_labels`.

    Raises:
        UserError: there are more ranks than classes.
    """
    label_C = distilled_labels(classes, counts_C, settings)
    if world > len(label_C):
        raise UserError(f"{world} ranks for {len(label_C)} classes: start at most one rank for each class")
    return dealt(label_C, counts_C, settings, world)


def dealt(label_C: np.ndarray, counts_C: Sequence[int], settings: DistillSettings, of: int) -> list[np.ndarray]:
    """Classes in so many shares, each ascending, with about as many real images in a step.

    The largest classes are dealt first, each to the share that has least.
    """
    work_C = np.minimum(np.asarray(counts_C)[label_C], settings.real_batch)
    loads, share_C = np.zeros((of, 2), np.int64), np.empty(len(work_C), np.int64)  # real images and classes of each
    for place in np.argsort(-work_C, kind="stable"):
        share_C[place] = np.lexsort((loads[:, 1], loads[:, 0]))[0]
        loads[share_C[place]] += work_C[place], 1
    return [label_C[share_C == share] for share in range(of)]


def image_rows(shares: Sequence[np.ndarray], ipc: int) -> list[np.ndarray]:
    """Where the images of each share are among those of all shares together, which are sorted by class."""
    every = np.sort(np.concatenate(shares))
    return [(np.searchsorted(every, label_C)[:, None] * ipc + np.arange(ipc)).ravel() for label_C in shares]


def joined(parts: Sequence[Any], rows: Sequence[np.ndarray]) -> Any:
    """The states of shares as one: what has the images' shape is put at their places, the rest is equal.

    Args:
        parts: what :meth:`ncfmkit.distillation.problem.State.state_dict` gives.
        rows: as :func:`image_rows` gives them.
    """
    return parts[0] if len(parts) == 1 else _joined(parts, rows, parts[0]["images"].shape)


def _joined(parts: Sequence[Any], rows: Sequence[np.ndarray], shape: torch.Size) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], rows, shape) for key in first}
    if isinstance(first, torch.Tensor) and first.shape == shape:
        whole = first.new_empty((sum(map(len, rows)), *first.shape[1:]))
        for part, of_share in zip(parts, rows, strict=True):
            whole[of_share] = part
        return whole
    return first


def on_cpu(state: Any) -> Any:
    """A state to send to another rank, which may not have the same devices."""
    if isinstance(state, dict):
        return {key: on_cpu(part) for key, part in state.items()}
    return state.cpu() if isinstance(state, torch.Tensor) else state


def share_of(state: Any, rows: np.ndarray) -> Any:
    """The state of a share, of that of all: the inverse of :func:`joined`."""
    return _share_of(state, rows, state["images"].shape)


def _share_of(state: Any, rows: np.ndarray, shape: torch.Size) -> Any:
    if isinstance(state, dict):
        return {key: _share_of(part, rows, shape) for key, part in state.items()}
    if isinstance(state, torch.Tensor) and state.shape == shape:
        return state[rows]
    return state
