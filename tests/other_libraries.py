"""Other people's libraries for tests: `datasets` without a network and with a cache of the test's own, torchvision."""

import socket
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


def offline_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`datasets`, caching in `folder`; to connect to anything is an error."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    datasets.disable_progress_bars()
    return datasets


def _refuse(_: socket.socket, address: Any) -> None:
    raise OSError(f"a test wants to connect to {address}")


def import_torchvision() -> ModuleType:
    """torchvision; the test skips where it is not installed or cannot be imported."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    said = _said_by_torchvision()
    if "operator torchvision::nms does not exist" in said:
        _operators()
    elif said:
        pytest.skip(f"torchvision does not import here: {said}")
    try:
        return import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import here: {error}")


@cache
def _said_by_torchvision() -> str:
    """What importing it fails with, empty where it does not, asked in another process: it may end the one it is in."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else ""


@cache  # a library's operators go with it
def _operators() -> torch.library.Library:
    """What a torchvision of CUDA lacks beside a CPU build of torch: its own library, which does not load.

    Where that library does load, it finds them taken and aborts the process.
    """
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
