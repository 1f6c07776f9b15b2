"""Random draws keyed by what they are for, so that they do not depend on how work is batched, sharded or resumed."""

import zlib

import numpy as np
import torch


def keyed_rng(seed: int, *key: int | str) -> np.random.Generator:
    """A generator for `(seed, key...)`, such as `keyed_rng(seed, "step", step, label)`; words count by their CRC-32."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def torch_generator(device: torch.device | str, seed: int, *key: int | str) -> torch.Generator:
    """The same for torch, on a device."""
    return torch.Generator(device).manual_seed(int(keyed_rng(seed, *key).integers(2**62)))
