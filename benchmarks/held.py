"""Counts the bytes that autograd holds between forward and backward passes."""

from collections.abc import Callable
from typing import Any

import torch


class Held:
    """The bytes of the storages that autograd holds now, and the most that it has held."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._references: dict[int, int] = {}

    def _take(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        self._references[address] = self._references.get(address, 0) + 1
        if self._references[address] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _drop(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        self._references[address] -= 1
        if not self._references[address]:
            del self._references[address]
            self.now -= storage.nbytes()

    def watch(self, run: Callable[[], Any]) -> "Held":
        """Runs it, counting every tensor that autograd saves for as long as it keeps it."""
        with torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(t, self), lambda saved: saved.tensor):
            run()
        return self


class _Saved:
    def __init__(self, tensor: torch.Tensor, held: Held):
        self.tensor, self.held = tensor, held
        held._take(tensor.untyped_storage())

    def __del__(self) -> None:
        self.held._drop(self.tensor.untyped_storage())
