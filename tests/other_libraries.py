"""Other people's libraries for tests: `datasets` without a network and with a cache of the test's own, torchvision."""

import socket
import sys
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
    """torchvision; beside a CPU build of torch it is imported only once these operators have a schema."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    if "torchvision" not in sys.modules:
        try:
            library = torch.library.Library("torchvision", "DEF")
            KEPT.append(library)
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass  # this torchvision brings them
    return pytest.importorskip("torchvision")


KEPT: list[torch.library.Library] = []  # a library's operators go with it
