"""`--force` and `--out` of every command that writes: what exists, what is wrong besides, what stays."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, refused, succeeds

from ncfmkit.jobs import distill as distill_job
from ncfmkit.sets import set_file

TINY = [
    *("--width", "8", "--pool", "1", "--pool-epochs", "1", "--steps", "2", "--frequencies", "32", "--real-batch", "16"),
    *("--repeats", "0", "--compile", "off", "--device", "cpu"),
]
QUICK = ["--student-epochs", "1", "--compile", "off"]


pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """What commands start from; tests only read it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(shared_cache))
        succeeds("distill", "digits", *TINY, "--out", folder / "run")
        succeeds("train", folder / "run", *QUICK, "--out", folder / "student.safetensors")
        succeeds("pack", folder / "run", "--to", "safetensors", "--out", folder / "packed")
        succeeds("export", folder / "student.safetensors")
    torch.save([torch.rand(10, 1, 8, 8), torch.arange(10)], folder / "released.pt")
    return folder


# what is given; the output; the same with a wrong input, and what is then said
COMMANDS: dict[str, tuple[list[str], str, list[str], str]] = {
    "distill": (["digits", *TINY], "out", ["digts", *TINY], "no data found at 'digts'"),
    "train": (["MADE/run", *QUICK], "out.safetensors", ["MADE/none", *QUICK], "no synthetic set at .*none"),
    "pack": (["MADE/run", "--to", "png"], "out", ["MADE/none", "--to", "png"], "no synthetic set at .*none"),
    "unpack": (["MADE/packed"], "out.safetensors", ["MADE/none"], "no synthetic set at .*none"),
    "convert": (
        ["MADE/released.pt", "--data", "digits"],
        "out.safetensors",
        ["MADE/released.pt", "--data", "digts"],
        "no data found at 'digts'",
    ),
    "export": (["MADE/student.safetensors"], "out.onnx", ["MADE/none"], "no student at .*none"),
    "validate": (
        ["MADE/student.onnx", "--data", "digits", "--no-speed"],
        "out",
        ["MADE/student.onnx", "--data", "digts", "--no-speed"],
        "no data found at 'digts'",
    ),
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, made: Path) -> tuple[list[str], Path, list[str], str]:
    """The command up to its output, the output, the command with a wrong input, and what that says."""
    given, out, wrong, says = COMMANDS[request.param]

    def whole(arguments: list[str]) -> list[str]:
        return [request.param, *(a.replace("MADE", str(made)) for a in arguments), "--out"]

    return whole(given), Path(out), whole(wrong), says


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.as_posix(): p.read_bytes() for p in files}


def test_an_output_that_exists(command: tuple[list[str], Path, list[str], str]) -> None:
    given, out, wrong, says = command
    succeeds(*given, out)
    before = content(out)
    refused(*given, out, says=f"{out} already exists.*pass --force")
    refused(*wrong, out, says=says)  # not hidden by that
    refused(*wrong, out, "--force", says=says)
    assert content(out) == before
    for path in before:
        if not path.endswith(("SHA256SUMS", ".json")):
            Path(path).write_bytes(b"old")
    succeeds(*given, out, "--force")
    assert content(out).keys() == before.keys()
    assert b"old" not in content(out).values()
    assert [p.name for p in Path().iterdir() if p.name != "cache"] == [out.name]


def test_something_else_than_an_output(command: tuple[list[str], Path, list[str], str]) -> None:
    given, out, _, _ = command
    if out.suffix:
        out.mkdir()
        refused(*given, out, "--force", says=f"--out {out} is a folder: expected the name of a file")
        return
    out.write_text("mine")
    refused(*given, out, "--force", says=f"--out {out} is not a folder")
    out.unlink()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    says = rf"--force overwrites only a folder that `ncfmkit {given[0]}` wrote, and {out} holds something else"
    refused(*given, out, "--force", says=rf"{says} \(thesis\.txt\)")
    assert content(out) == {"out/thesis.txt": b"mine"}


def test_a_place_that_takes_nothing(
    command: tuple[list[str], Path, list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before any work, and not reported as an output that exists."""
    given, out, _, _ = command
    (Path("there")).touch()
    refused(*given, f"there/{out}", says="there is not a folder")
    if given[0] != "distill":  # which makes the folders above
        refused(*given, f"nowhere/{out}", says="there is no folder nowhere: make it first")

    def read_only(**how: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ncfmkit.files.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("ncfmkit.jobs.distill.distill_real", lambda *a, **k: pytest.fail("it began"))
    monkeypatch.setattr("ncfmkit.scoring.students.train", lambda *a, **k: pytest.fail("it began"))
    refused(*given, out, says="Read-only file system")


def test_resume_takes_no_force(made: Path) -> None:
    refused("distill", "--resume", made / "run", "--force", says="pass nothing else")


def broken(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("train", "ncfmkit.scoring.student_file.write_atomic"),
        ("unpack", "ncfmkit.jobs.unpack.write_atomic"),
        ("convert", "ncfmkit.sets.set_file.write_atomic"),
        ("export", "ncfmkit.exporters.onnx.publish"),
        ("pack", "ncfmkit.sets.package.replace_folder"),
        ("validate", "ncfmkit.exporters.validate._write"),
    ],
)
def test_what_is_there_stays_until_the_new_is_ready(
    made: Path, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out, _, _ = COMMANDS[name]
    arguments = [name, *(a.replace("MADE", str(made)) for a in given), "--out", out]
    succeeds(*arguments)
    before = content(Path(out))
    with monkeypatch.context() as patch:
        patch.setattr(where, broken)
        result = call(*arguments, "--force")
    assert result.exit_code == 130, result.output
    assert content(Path(out)) == before
    assert [p.name for p in Path().iterdir() if not p.name.startswith("out") and p.name != "cache"] == []


def test_a_forced_run_that_fails_leaves_the_earlier_one(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made / "run", "run")
    before = set_file.load("run").manifest
    with monkeypatch.context() as patch:
        patch.setattr(distill_job, "open_pool", broken)
        says = r"continue with --resume run; until it is done, the earlier run stays in run\.old"
        result = call("distill", "digits", *TINY, "--seed", "3", "--out", "run", "--force")
    assert result.exit_code == 130
    assert re.search(says, result.stderr)
    assert "the earlier run stays in run.old until this one is done" in result.stderr
    assert set_file.load("run.old").manifest == before
    succeeds("distill", "--resume", "run")
    assert set_file.load("run").manifest.training.seed == 3
    assert not Path("run.old").exists()


def test_larger_weights_of_an_earlier_model_go_with_it(made: Path) -> None:
    Path("out.onnx").write_bytes(b"old")
    Path("out.onnx.data").write_bytes(b"old")
    arguments: list[Any] = ["export", made / "student.safetensors", "--out", "out.onnx"]
    refused(*arguments, says=r"out\.onnx already exists")
    succeeds(*arguments, "--force")
    assert not Path("out.onnx.data").exists()


def test_results_of_a_validation_are_replaced_and_other_files_stay(made: Path) -> None:
    arguments: list[Any] = ["validate", made / "student.onnx", "--data", "digits", "--no-speed", "--out", "out"]
    succeeds(*arguments)
    Path("out/notes.txt").write_text("mine")
    succeeds(*arguments, "--force")
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_package_with_a_hidden_file_is_not_replaced(made: Path) -> None:
    arguments: list[Any] = ["pack", made / "run", "--to", "png", "--out", "out"]
    succeeds(*arguments)
    Path("out/.git").mkdir()
    Path("out/.git/config").write_text("mine")
    refused(*arguments, "--force", says=r"holds something else \(\.git/config\)")
