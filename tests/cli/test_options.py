"""The options that commands share: each flag reaches its setting, and data arrive as one object."""

import inspect
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import typer
from commands import refused, succeeds
from typer.testing import CliRunner

from ncfmkit.cli import main, options
from ncfmkit.config import PANELS, SETTINGS, Settings, override
from ncfmkit.errors import UserError
from ncfmkit.real import arguments as real_arguments

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments

FLAGGED = {about.flag: about for about in SETTINGS.values() if about.flag}
# flag: what is typed, its setting, the value there; written down apart from the descriptions
REACHED: dict[str, tuple[str | None, str, Any]] = {
    "--size": ("16", "data.size", 16),
    "--color": ("gray", "data.color", "gray"),
    "--resize": ("crop", "data.resize", "crop"),
    "--classes": ("cat,3", "data.classes", ("cat", "3")),
    "--holdout": ("0.1", "data.holdout", 0.1),
    "--imbalance": ("10", "data.imbalance", 10.0),
    "--image-column": ("front", "data.image_column", "front"),
    "--label-column": ("kind", "data.label_column", "kind"),
    "--ipc": ("3", "distill.ipc", 3),
    "--bytes": ("12KB/class", "distill.bytes", "12KB/class"),
    "--bits": ("3", "distill.bits", 3),
    "--chroma": ("4:2:0", "distill.chroma", "4:2:0"),
    "--factor": ("1", "distill.factor", 1),
    "--decode": ("multi", "distill.decode", "multi"),
    "--shard": ("1/2", "distill.shard", "1/2"),
    "--add-to": ("old.safetensors", "distill.add_to", "old.safetensors"),
    "--drop-classes": ("cat,3", "distill.drop_classes", ("cat", "3")),
    "--init": ("noise", "distill.init", "noise"),
    "--load": ("old.safetensors", "distill.load", "old.safetensors"),
    "--steps": ("20_001", "distill.steps", 20_001),
    "--metric": ("mean", "distill.metric", "mean"),
    "--sampler": ("learned", "distill.sampler", "learned"),
    "--frequencies": ("64", "distill.frequencies", 64),
    "--alpha": ("0.25", "distill.alpha", 0.25),
    "--calibration": ("0", "distill.calibration_weight", 0.0),
    "--real-batch": ("32", "distill.real_batch", 32),
    "--optimizer": ("sgd", "distill.optimizer", "sgd"),
    "--easiest": ("0.5", "distill.easiest", 0.5),
    "--lr": ("1e-2", "distill.lr", 0.01),
    "--schedule": ("cosine", "distill.schedule", "cosine"),
    "--extractor": ("stages", "distill.extractor", "stages"),
    "--extractors": ("convnet,resnetap10", "pool.networks", ("convnet", "resnetap10")),
    "--extractor-width": ("16", "pool.extractor_width", 16),
    "--snapshots": ("7", "pool.snapshots", 7),
    "--soft-labels": (None, "labels.soft", True),
    "--temperature": ("2", "labels.temperature", 2.0),
    "--teacher-stages": ("3", "labels.stages", 3),
    "--label-bits": ("8", "labels.bits", 8),
    "--top": ("5", "labels.top", 5),
    "--network": ("resnet18", "network.name", "resnet18"),
    "--width": ("8", "network.width", 8),
    "--depth": ("2", "network.depth", 2),
    "--pool": ("2", "pool.members", 2),
    "--pool-epochs": ("4", "pool.epochs", 4),
    "--student-epochs": ("5", "student.epochs", 5),
    "--repeats": ("0", "student.repeats", 0),
    "--device": ("cpu", "runtime.device", "cpu"),
    "--precision": ("bf16", "runtime.precision", "bf16"),
    "--compile": ("off", "runtime.compile", "off"),
    "--memory-budget": ("1GiB", "runtime.memory_budget", "1GiB"),
    "--gradient-checkpointing": (None, "runtime.gradient_checkpointing", True),
    "--log": ("tensorboard", "runtime.log", "tensorboard"),
    "--checkpoint-every": ("7", "runtime.checkpoint_every", 7),
    "--seed": ("9", "seed", 9),
}


def typed(command: Callable[..., None], *arguments: str) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_flags_are_those_that_are_tried() -> None:
    assert set(FLAGGED) == set(REACHED)


@pytest.mark.parametrize("flag", REACHED)
def test_every_flag_reaches_its_setting(flag: str) -> None:
    received: dict[str, Any] = {}

    @options.settings_flags(*PANELS)
    def command(*, data: options.ScoreData = None, overrides: dict[str, Any]) -> None:
        received.update(overrides)

    text, key, value = REACHED[flag]
    typed(command, flag, *([] if text is None else [text]))
    assert list(received) == [key]
    setting = operator.attrgetter(key)
    assert setting(override(Settings(), received)) == value != setting(Settings())


def test_flags_have_one_name_each() -> None:
    assert len(FLAGGED) == sum(about.flag is not None for about in SETTINGS.values())
    own = ["--out", "--resume", "--recipe", "--baselines", "--data-root", "--download", "--skip-bad", "--set", "--json"]
    assert not {*own, "--data", "--help"} & set(FLAGGED)


def test_every_flag_is_in_the_help_of_distill() -> None:
    text = succeeds("distill", "--help").stdout
    lines = {found.group(1): line for line in text.splitlines() if (found := re.match(r"│ +(--[a-z-]+)", line))}
    for flag, about in FLAGGED.items():
        assert PANELS[about.section] in text
        assert about.help.split()[0] in lines[flag]
        assert all(choice in lines[flag] for choice in about.choices) or flag == "--network"
    assert "0 to 1" in lines["--alpha"]


def test_defaults_are_shown() -> None:
    text = " ".join(succeeds("distill", "--help").stdout.replace("│", " ").split())
    for flag, about in FLAGGED.items():
        if about.kind is not bool:
            shown = re.search(rf"{flag} [^[]*\[default: ([^]]*)\]", text)
            assert shown, flag
            assert override(Settings(), {about.key: shown[1].replace("empty", "")}) == Settings(), flag
    assert "[default: random]" in text
    assert "[default: from the set]" not in text


def test_defaults_of_commands_on_sets_are_the_sets_own() -> None:
    text = " ".join(succeeds("evaluate", "--help").stdout.replace("│", " ").split())
    assert re.search(r"--student-epochs [^[]*\[default: from the set\]", text)
    assert re.search(r"--device [^[]*\[default: auto\]", text)


def test_flags_that_a_command_defines_itself_are_left_to_it() -> None:
    text = succeeds("convert", "--help").stdout
    assert len(re.findall(r"│ +--factor ", text)) == 1
    assert "2 for a list of images and targets" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["evaluate", "x", "--data", "digits"], "runtime.checkpoint_every"),
        (["train", "x"], "student.repeats"),
        (["pack", "x", "--to", "png"], "distill.ipc"),
        (["convert", "x", "--data", "digits"], "pool.members"),
        (["pretrain", "digits"], "student.epochs"),
    ],
)
def test_settings_that_a_command_does_not_use(command: list[str], key: str) -> None:
    refused(*command, "--set", f"{key}=3", says=rf"--set {key}: this command does not use the setting {key}$")


@pytest.mark.parametrize(
    ("command", "flag"), [("train", "--repeats"), ("evaluate", "--checkpoint-every"), ("pretrain", "--memory-budget")]
)
def test_flags_without_an_effect_are_gone(command: str, flag: str) -> None:
    assert flag not in succeeds(command, "--help").stdout


def test_no_flag_of_a_section_that_a_command_does_not_take() -> None:
    text = succeeds("pretrain", "--help").stdout
    assert "--pool-epochs" in text
    assert "--student-epochs" not in text
    assert "--ipc" not in text


def test_a_command_gets_one_object_for_the_data() -> None:
    received: list[Any] = []

    @options.settings_flags("data")
    def command(*, data: options.MadeFrom, overrides: dict[str, Any]) -> None:
        received.append((data, overrides))

    typed(command, "--data", "digits")
    typed(command, "--data", "x", "--data-root", "folder", "--download", "--skip-bad", "--size", "8")
    assert received == [
        (real_arguments.DataArguments(data="digits"), {}),
        (
            real_arguments.DataArguments(data="x", data_root="folder", download=True, skip_bad=True),
            {"data.size": "8"},
        ),
    ]


def test_data_that_must_be_named() -> None:
    @options.settings_flags("data")
    def command(*, data: options.MadeFrom, overrides: dict[str, Any]) -> None:
        raise AssertionError

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "--data" in result.output


@pytest.mark.parametrize(
    ("arguments", "named", "flags"),
    [
        ([], [], False),
        (["--seed", "3"], [], False),
        (["--size", "8"], [], True),
        (["--set", "data.size=8"], [], True),
        (["--data-root", "x"], [], True),
        (["--download"], [], True),
        (["--skip-bad"], [], True),
        (["a"], ["first"], False),
        (["--second", "b", "--skip-bad"], ["second"], True),
        (["a", "--second", "b", "--skip-bad"], ["first", "second"], True),
    ],
)
def test_data_that_need_not_be_named(arguments: list[str], named: list[str], flags: bool) -> None:
    """Two kinds of data, as of `export`: what is said of where they are goes for both."""
    received: dict[str, Any] = {}

    @options.settings_flags("data", "seed")
    def command(
        first: Annotated["DataArguments | None", typer.Argument()] = None,
        *,
        second: Annotated["DataArguments | None", typer.Option("--second")] = None,
        set_: options.Set = None,
        data_flags: bool,
        overrides: dict[str, Any],
    ) -> None:
        received.update(first=first, second=second, data_flags=data_flags)

    typed(command, *arguments)
    names = {"first": "a", "second": "b"}
    skip = "--skip-bad" in arguments
    for parameter, name in names.items():
        expected = real_arguments.DataArguments(data=name, skip_bad=skip) if parameter in named else None
        assert received[parameter] == expected
    assert received["data_flags"] is flags


def test_flags_of_data_without_a_score() -> None:
    with pytest.raises(UserError, match="pass --score"):
        options.check_scoring(False, True)
    options.check_scoring(True, True)
    options.check_scoring(False, False)


@pytest.mark.parametrize("command", main.app.registered_commands, ids=lambda c: c.callback.__name__)
def test_where_data_are_is_asked_once_where_data_are_named(command: Any) -> None:
    names = list(inspect.signature(command.callback).parameters)
    where = ["data_root", "download", "skip_bad"]
    assert [name for name in names if name in where] in (where, [])
    assert ("data_root" in names) == ("data__size" in names)
    assert "overrides" not in names
    assert "data_flags" not in names
