"""The examples in --help run as they are written."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import succeeds
from PIL import Image
from typer.main import get_group
from typer.testing import CliRunner

from ncfmkit.cli import main, options
from ncfmkit.cli.examples import EXAMPLES
from ncfmkit.jobs import setup

QUICK = {  # options that make an example short; what it shows is the rest
    "distill": [
        *("--width", "8", "--pool", "2", "--pool-epochs", "6", "--steps", "2", "--frequencies", "32"),
        *("--student-epochs", "2", "--repeats", "2", "--compile", "off", "--set", "student.whole_epochs=1"),
    ],
    "pretrain": ["--width", "8", "--pool", "1", "--pool-epochs", "1"],
    "evaluate": ["--student-epochs", "1", "--repeats", "2"],
    "compare": ["--student-epochs", "1", "--repeats", "2"],
    "assess": ["--student-epochs", "1", "--repeats", "1"],
    "train": ["--student-epochs", "1"],
    "validate": ["--no-speed"],
}
LINES = [line for lines in EXAMPLES.values() for line in lines]


def arguments(line: str) -> list[str]:
    program, *rest = shlex.split(line.partition(" > ")[0])
    assert program == "ncfmkit"
    return rest


def test_every_command_has_examples_of_its_own() -> None:
    assert set(EXAMPLES) == set(get_group(main.app).commands)
    for command, lines in EXAMPLES.items():
        text = succeeds(command, "--help").stdout
        for line in lines:
            assert arguments(line)[0] == command
            assert line in text


@pytest.mark.parametrize("line", LINES)
def test_an_example_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist and its settings have values that they may have."""
    command, *rest = arguments(line)
    with get_group(main.app).commands[command].make_context(command, rest) as context:
        given = {key: value for key, value in context.params.items() if "__" in key and value is not None}
    overrides = {key.replace("__", "."): value for key, value in given.items()}
    assert setup.make_settings("digits", context.params.get("recipe"), overrides)


@pytest.fixture
def folder(own_folder: None, tmp_path: Path) -> Path:
    """What the examples start from: photos, and a set that another project released."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    torch.save([torch.rand(10, 1, 8, 8), torch.arange(10)], tmp_path / "released.pt")
    return tmp_path


@pytest.mark.slow
def test_examples_run_one_after_the_other(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    skipped = [line for line in LINES if "--download" in line or (" push " in line and "--dry-run" not in line)]
    assert len(skipped) == 3
    for line in LINES:
        if line in skipped or line == "ncfmkit inspect student.onnx":  # it is exported later
            continue
        command, *rest = arguments(line)
        if command == "merge":  # the example of `distill` is the first shard
            (first,) = [words for words in map(arguments, EXAMPLES["distill"]) if "--shard" in words]
            succeeds(*(word.replace("1/2", "2/2") for word in first), *QUICK["distill"])
        short = [] if "--resume" in rest else QUICK.get(command, [])
        if command == "convert":  # CIFAR-10 is not here
            rest = [{"cifar10": "digits", "normalized": "unit"}.get(word, word) for word in rest]
        succeeds(command, *rest, *short)
    succeeds(*arguments("ncfmkit inspect student.onnx"))
    made = {"runs", "student.safetensors", "digits.safetensors", "released.safetensors", "student.onnx"}
    assert made <= set(os.listdir(folder))


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    environment = {"_NCFMKIT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["ncfmkit", *words])}
    result = CliRunner().invoke(
        main.app, [], prog_name="ncfmkit", env=environment | {"COMP_CWORD": str(len(words))}, catch_exceptions=False
    )
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pret"], ["pretrain"]),
        (["distill", "dig"], ["digits"]),
        (["distill", "cifar"], ["cifar10", "cifar100"]),
        (["distill", "par"], []),
        (["distill", "digits", "--recipe", "svhn"], ["svhn-ipc1", "svhn-ipc10"]),
        (["recipes", "svhn"], ["svhn-ipc1", "svhn-ipc10"]),
        (["evaluate", "x", "--data", "mn"], ["mnist"]),
        (["train", "x", "--network", "res"], ["resnet18", "resnetap10"]),
        (["distill", "digits", "--sampler", ""], ["gaussian", "learned"]),
        (["distill", "digits", "--freq"], ["--frequencies"]),
    ],
)
def test_the_shell_completes(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_completion_is_installed_by_an_option() -> None:
    text = succeeds("--help").stdout
    assert "--install-completion" in text
    assert "--show-completion" in text


def test_names_complete_alone() -> None:
    assert options.complete_data("") == ["digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "svhn"]
