"""The table of the settings that a command reads: each command runs, and what its job reads of them is recorded."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from commands import succeeds

from ncfmkit.cli import options
from ncfmkit.config import SECTIONS, SETTINGS, Settings

SGD = ["--set", "student.optimizer=sgd", "--set", "pool.optimizer=sgd"]  # so that momentum is read
TINY = [
    *("--width", "8", "--pool", "2", "--pool-epochs", "1", "--steps", "2", "--frequencies", "32", "--real-batch", "32"),
    *("--student-epochs", "2", "--repeats", "2", "--device", "cpu", "--compile", "off", *SGD),
]
RUN = "runs/digits-ipc1"
SCORED = ["--data", "digits", "--student-epochs", "2", "--repeats", "2", *SGD[:2]]
USES: dict[str, list[list[str]]] = {  # in an order in which each finds what it needs
    "distill": [
        ["distill", "digits", *TINY, "--optimizer", "sgd", "--sampler", "learned", "--baselines", "whole"],
        [
            *("distill", "digits", *TINY, "--out", "bound", "--init", "load", "--load", RUN, "--repeats", "0"),
            *("--factor", "2", "--decode", "bound", "--set", "distill.decoded_per_class=4", "--memory-budget", "1GiB"),
        ],
        [
            *("distill", "digits", *TINY, "--out", "stages", "--repeats", "0", "--soft-labels", "--pool-epochs", "5"),
            *("--label-bits", "4", "--top", "3"),
            *("--snapshots", "1", "--extractor", "stages", "--set", "distill.stage_order=rising"),
        ],
        ["distill", "digits", *TINY, "--out", "small", "--bytes", "60/class", "--repeats", "0"],
        ["distill", "digits", *TINY, "--out", "few", "--classes", "0,1", "--repeats", "0"],
        [
            *("distill", "digits", "--add-to", "few", "--classes", "1,2", "--drop-classes", "0", "--out", "grown"),
            *("--device", "cpu"),
        ],
    ],
    "pretrain": [
        ["pretrain", "digits", "--width", "8", "--pool", "1", "--pool-epochs", "1", "--compile", "off", *SGD[2:]]
    ],
    "evaluate": [["evaluate", RUN, *SCORED, "--pool-epochs", "2", "--baselines", "herding,el2n,whole"]],
    "compare": [["compare", RUN, "small", *SCORED]],
    "assess": [["assess", RUN, *SCORED, "--pool-epochs", "1", "--only", "privacy,ranking,continual"]],
    "relabel": [["relabel", RUN, "--data", "digits", "--pool", "1", "--pool-epochs", "5", *SGD[2:]]],
    "train": [["train", RUN, "--data", "digits", "--student-epochs", "2", *SGD[:2]]],
    "pack": [["pack", RUN, "--to", "png", "--score", *SCORED]],
    "verify": [["verify", RUN, "--score", "--data", "digits"]],
    "export": [["export", "student.safetensors", "--data", "digits"]],
    "validate": [["validate", "student.onnx", "--data", "digits", "--no-speed"]],
}
# Where settings are copied, checked or described: that is no use of them.
COPIES = ("dataclasses.py", "copy.py", "ncfmkit/config.py", "sets/card.py")
COPYING = ("make_settings", "describe_network", "work")
RECORDED = {"pack": {"student.whole_epochs"}}  # only kept, in the recipe of the packed set


def _copies(frame: FrameType) -> bool:
    if frame.f_code.co_name == "extractors":  # the settings of networks that jobs build
        return False
    return frame.f_code.co_filename.endswith(COPIES) or frame.f_code.co_name in COPYING


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys of the settings that code has read so far."""
    seen: set[str] = set()
    for cls, section in ({Settings: ""} | {cls: name for name, cls in SECTIONS.items()}).items():

        def watched(self: Any, name: str, section: str = section) -> Any:
            key = f"{section}.{name}".strip(".")
            if key in SETTINGS and not _copies(sys._getframe(1)):
                seen.add(key)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", watched, raising=False)
    return seen


def listed(command: str) -> set[str]:
    reads = options.READS[command]
    return {key for key, about in SETTINGS.items() if about.section in reads or key in reads}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_commands_read_the_settings_that_they_take(
    own_folder: None, read: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    assert set(USES) == set(options.READS) - {"convert"}  # which keeps all of its settings in the set
    wrong = {}
    for command, lines in USES.items():
        monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / f"cache of {command}"))  # so that it reads the data itself
        read.clear()
        for line in lines:
            succeeds(*line)
        idle = listed(command) - read - RECORDED.get(command, set())
        if idle:
            wrong[command] = idle
    assert not wrong
