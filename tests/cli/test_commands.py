"""The command line: help, flags, one JSON object, one message and an exit code for whatever is wrong."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, refused, succeeds
from PIL import Image
from typer.main import get_group
from typer.testing import CliRunner, Result

import ncfmkit
from ncfmkit.cli import main
from ncfmkit.distillation import loop
from ncfmkit.errors import NonFiniteLossError
from ncfmkit.jobs import distill as distill_job
from ncfmkit.scoring.baselines import BASELINES
from ncfmkit.sets import set_file

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("distill", "merge", "relabel", "pretrain", "evaluate", "assess", "compare", "train"),
    *("pack", "unpack", "verify", "push", "convert", "inspect"),
    *("export", "validate", "predict"),
    *("recipes", "doctor", "cache"),
)
TINY = [
    *("--width", "8", "--pool", "2", "--pool-epochs", "1", "--steps", "8", "--frequencies", "32", "--real-batch", "32"),
    *("--student-epochs", "2", "--repeats", "1", "--checkpoint-every", "4", "--device", "cpu", "--compile", "off"),
]
QUICK = ["--student-epochs", "1", "--repeats", "1", "--compile", "off"]
ONE = ["--student-epochs", "1", "--compile", "off"]  # student, as `train` trains
LAUNCH = "from ncfmkit.cli.entry import run; run()"


pytestmark = pytest.mark.usefixtures("one_cache")


def make_folder(root: Path, counts: dict[str, int], size: int = 8, mode: str = "L") -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        rng = np.random.default_rng(label)
        shape = (size, size) if mode == "L" else (size, size, 3)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A finished run, which tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(shared_cache))
        folder = tmp_path_factory.mktemp("runs") / "done"
        before = signal.getsignal(signal.SIGTERM)
        succeeds("distill", "digits", *TINY, "--out", folder)
        signal.signal(signal.SIGTERM, before)
        return folder


def test_every_command_has_help() -> None:
    listed = succeeds("--help").stdout
    for name in COMMANDS:
        assert name in listed
        assert "Usage: ncfmkit " + name in succeeds(name, "--help").stdout
    assert set(get_group(main.app).commands) == set(COMMANDS)


@pytest.mark.parametrize("command", [[], ["distill"]])
def test_short_name_of_help(command: list[str]) -> None:
    assert succeeds(*command, "-h").stdout == succeeds(*command, "--help").stdout


def test_commands_are_listed_in_groups_with_a_summary_of_one_line() -> None:
    lines = CliRunner().invoke(main.app, ["--help"], env={"COLUMNS": "80"}).stdout.splitlines()
    groups = ["Make a set", "Use a set", "Ship a set", "Deploy a student", "Machine"]
    assert [line.strip("╭╮─ ") for line in lines if "╭" in line] == ["Options", *groups]
    below = lines[next(i for i, line in enumerate(lines) if groups[0] in line) :]
    assert [line.split()[1] for line in below if re.match(r"│ [a-z]", line)] == [
        *("distill", "merge", "relabel", "pretrain", "recipes", "inspect", "evaluate", "assess", "compare", "train"),
        *("pack", "verify", "push", "unpack", "convert"),
        *("export", "validate", "predict", "doctor", "cache"),
    ]
    assert not any(line.startswith("│  ") for line in below), "a summary takes two lines"


def test_python_m_ncfmkit() -> None:
    command = [sys.executable, "-m", "ncfmkit", "--version"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == ncfmkit.__version__ + "\n"


def test_quiet(tmp_path: Path) -> None:
    arguments = ["distill", "digits", *TINY, "--repeats", "0", "--json", "--out"]
    result = succeeds("--quiet", *arguments, "quiet")
    assert result.stderr == ""
    assert one_object(result)["status"] == "done"
    assert "run directory: loud" in succeeds(*arguments, "loud").stderr
    refused("-q", "distill", "digts", says="did you mean 'digits'")


def test_version() -> None:
    assert succeeds("--version").stdout == ncfmkit.__version__ + "\n"


def launched(*arguments: str) -> str:
    return f"import sys; sys.argv = {['ncfmkit', *arguments]}\ntry:\n    {LAUNCH}\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "code",
    ["import ncfmkit", "import ncfmkit.cli.main", launched("--help"), launched("distill", "--help")],
    ids=["import ncfmkit", "import main", "--help", "distill --help"],
)
def test_torch_is_not_imported_for_help(code: str) -> None:
    script = code + "\nimport sys; print({'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules), file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert result.stderr.strip() == "set()"


@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_every_baseline_is_named_in_the_help(command: str) -> None:
    text = " ".join(succeeds(command, "--help").stdout.replace("│", " ").split())
    assert ", ".join([*BASELINES, "none"]) in text


def one_object(result: Result) -> dict[str, Any]:
    assert result.stdout.count("\n") == 1
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def test_distill_json(tmp_path: Path) -> None:
    result = succeeds("distill", "digits", *TINY, "--out", tmp_path / "run", "--json")
    value = one_object(result)
    assert value["run"] == str(tmp_path / "run")
    assert value["status"] == "done"
    assert [r["set"] for r in value["scores"]["rows"]] == ["distilled", "random"]
    assert "extractor pool:" in result.stderr


def other_set(path: Path, done: Path) -> Path:
    """Of the same run, with other pixels."""
    one = set_file.load(done)
    ncfmkit.save(dataclasses.replace(one, images=255 - one.images), path)
    return path


def test_dry_runs_write_nothing(tmp_path: Path, done: Path) -> None:
    other = other_set(tmp_path / "other.safetensors", done)
    before = content(tmp_path)
    text = succeeds("distill", "digits", *TINY, "--out", "new", "--dry-run").stdout
    assert "8 steps of lr 0.01, ncfd, 32 frequencies (learned), 32 real images per class" in text
    assert "new/synthetic.safetensors" in text
    assert "nothing was written: leave out --dry-run to start" in text
    found = one_object(succeeds("distill", "digits", *TINY, "--out", "new", "--dry-run", "--json"))
    assert found["plan"].keys() == {"chunk", "kept_graphs", "classes_per_batch"}
    assert found["seconds"] > 0
    for command in (
        ["pretrain", "digits", "--width", "7", "--pool", "2", "--compile", "off"],
        ["evaluate", done, "--data", "digits", *QUICK],
        ["compare", done, other, "--data", "digits", *QUICK],
        ["train", done, "--student-epochs", "9", "--compile", "off"],
    ):
        result = succeeds(*command, "--dry-run")
        assert re.fullmatch(r"nothing was written; this takes about .*\n", result.stdout)
        assert "device: " in result.stderr
        assert "estimate, measured on the first steps:" in result.stderr
        assert one_object(succeeds(*command, "--dry-run", "--json"))["estimate"][0]["seconds"] > 0
    assert content(tmp_path) == before
    refused("distill", "--resume", done, "--dry-run", says="pass nothing else, except --data")
    refused("evaluate", done, "--data", "digits", "--repeats", "0", "--dry-run", says="expected 1 or more students")


def test_other_commands_json(tmp_path: Path, done: Path) -> None:
    student = tmp_path / "student.safetensors"
    scores = one_object(succeeds("evaluate", done, "--data", "digits", *QUICK, "--json"))
    assert scores["rows"][0]["n"] == 1
    trained = one_object(succeeds("train", done, "--data", "digits", "--out", student, *ONE, "--json"))
    assert trained["student"] == str(student)
    assert 0 <= trained["test_accuracy"] <= 1
    assert one_object(succeeds("inspect", done, "--json"))["manifest"]["kind"] == "synthetic set"
    assert one_object(succeeds("inspect", done / "synthetic.safetensors", "--json"))["kind"] == "synthetic set"
    assert one_object(succeeds("inspect", student, "--json"))["kind"] == "student"
    assert "digits" in one_object(succeeds("recipes", "--json"))
    assert one_object(succeeds("recipes", "digits", "--json"))["distill"]["ipc"] == 1
    assert "folder" in one_object(succeeds("recipes", "--data", "--json"))
    assert "convnet" in one_object(succeeds("recipes", "--networks", "--json"))
    assert "torch" in one_object(succeeds("doctor", "--json"))
    pool = ["--width", "8", "--pool", "2", "--pool-epochs", "1", "--compile", "off", "--device", "cpu"]
    assert len(one_object(succeeds("pretrain", "digits", *pool, "--json"))["accuracies"]) == 2


def test_assess(tmp_path: Path, done: Path) -> None:
    command = ["assess", done, "--data", "digits", *QUICK, "--set", "student.whole_epochs=1", "--out", "good-for"]
    command += ["--only", "privacy"]
    first = succeeds(*command)
    assert "total: about" in first.stderr
    text = " ".join(first.stdout.split())
    for expected in ("Traces of the training images: What does", "good-for/assess.html  all of it on one page"):
        assert " ".join(expected.split()) in text
    again = succeeds(*command, "--json")
    assert "good-for holds privacy" in again.stderr
    assert "total: about" not in again.stderr
    value = one_object(again)
    assert value == json.loads((tmp_path / "good-for" / "assess.json").read_text(encoding="utf-8"))
    refused("assess", done, "--data", "digits", "--only", "fame", says="unknown evaluation 'fame'")


def test_compare(tmp_path: Path, done: Path) -> None:
    command = ["compare", done, other_set(tmp_path / "other.safetensors", done), "--data", "digits", *QUICK[:2]]
    command += ["--repeats", "2", "--out", "versus"]
    first = succeeds(*command)
    assert "versus holds" not in first.stderr
    assert "total: about" in first.stderr
    text = " ".join(first.stdout.split())
    for expected in ("other.safetensors", "vs first", "the recipe of the first set", "versus/compare.html  all of it"):
        assert " ".join(expected.split()) in text
    assert (tmp_path / "versus" / "compare.html").is_file()
    again = succeeds(*command, "--json")
    assert "versus holds 4 of 4 students" in again.stderr
    assert "total: about" not in again.stderr
    value = one_object(again)
    assert value == json.loads((tmp_path / "versus" / "compare.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in value["sets"]] == ["done", "other.safetensors"]
    refused("compare", done, "--data", "digits", says="expected two or more sets, got 1")
    refused("compare", done, done, "--data", "digits", says="is given twice")


def test_distill_prints_files_and_scores(done: Path) -> None:
    text = succeeds("distill", "--resume", done).stdout
    for name, what in distill_job.ARTIFACTS.items():
        assert f"{done / name}  {what}" in text
    assert "distilled, 1 per class" in text
    assert "measured on cpu (" in text


def test_paths_are_printed_as_they_are(tmp_path: Path, done: Path) -> None:
    odd = tmp_path / "run [bold]"
    done.rename(odd)
    try:
        assert f"{odd}/report.html" in succeeds("distill", "--resume", odd).stdout
        assert f"run {odd}" in succeeds("inspect", odd).stdout
    finally:
        odd.rename(done)


def test_inspect_prints_whole_digests(done: Path) -> None:
    digest = set_file.load(done).manifest.manifest_sha256
    narrow = CliRunner().invoke(main.app, ["inspect", str(done)], env={"COLUMNS": "80"})
    assert digest in re.sub(r"[\s]", "", narrow.stdout)


def test_json_has_names_as_they_are(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "odd", {"größe": 4, "犬": 4})
    result = succeeds("distill", folder, *TINY, "--repeats", "0", "--ipc", "1", "--out", "run", "--json")
    assert '["größe", "犬"]' in result.stdout
    assert one_object(result)["data"]["classes"] == ["größe", "犬"]


def test_default_run_directory(tmp_path: Path) -> None:
    for expected in ("runs/digits-ipc1", "runs/digits-ipc1-2"):
        value = one_object(succeeds("distill", "digits", *TINY, "--steps", "0", "--repeats", "0", "--json"))
        assert value["run"] == expected
        assert (tmp_path / expected / "synthetic.safetensors").is_file()


def test_precedence_is_recipe_then_flag(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[distill]\nipc = 2\nsteps = 5\nlr = 2e-3\nfactor = 1\n[student]\nrepeats = 0\n")
    flags = [*TINY, "--repeats", "0", "--steps", "1", "--set", "distill.patience=7"]
    value = one_object(succeeds("distill", "digits", "--recipe", recipe, *flags, "--out", "run", "--json"))
    used = value["settings"]
    assert used["recipe"] == "mine"
    assert (used["distill"]["ipc"], used["distill"]["lr"]) == (2, 0.002)  # the recipe's
    assert (used["distill"]["steps"], used["distill"]["patience"]) == (1, 7)  # the flags'
    assert used["distill"]["alpha"] == 0.5  # the default
    assert used["student"]["lr"] == 1e-3


WRONG_SETTINGS = {
    "--recipe digit": (["--recipe", "digit"], "unknown recipe 'digit'; did you mean 'digits'"),
    "--recipe no.toml": (["--recipe", "no.toml"], r"recipe file not found: no\.toml"),
    "--network": (
        ["--network", "resnet81"],
        r"--network \(network\.name\): expected one of .* got 'resnet81'; did you mean 'resnet18'",
    ),
    "--network of students": (["--network", "convnetbn"], "convnetbn cannot be an extractor.*--extractors convnet"),
    "--metric": (["--metric", "nfcd"], "expected one of ncfd, mean, got 'nfcd'; did you mean 'ncfd'"),
    "--set key": (
        ["--set", "distill.patiense=3"],
        "unknown setting 'distill.patiense'; did you mean 'distill.patience'",
    ),
    "--set ambiguous": (["--set", "epochs=3"], "ambiguous: write one of pool.epochs, student.epochs"),
    "--set no =": (["--set", "ipc"], "--set 'ipc': expected KEY=VALUE"),
    "--precision": (["--precision", "fp23"], "expected one of auto, fp32, bf16, fp16, got 'fp23'"),
    "--device": (["--device", "gpu"], "unknown device 'gpu': expected auto, cpu, cuda"),
    "--ipc 0": (["--ipc", "0"], r"--ipc \(distill\.ipc\): .*1 or more images per class.* 0$"),
    "--ipc one": (["--ipc", "one"], r"--ipc \(distill\.ipc\): .*whole number.* 'one'$"),
    "--ipc 1000": (["--ipc", "1000"], r"--ipc 1000 is above the \d+ training images of class '\d' in digits"),
    "--factor": (["--factor", "9"], r"factor.* 9 is above the image side 8: lower the factor"),
    "--baselines": (
        ["--baselines", "random,hreding"],
        "unknown baseline 'hreding': known: random, random-soft, random-decoded",
    ),
    "--lr nan": (["--lr", "nan"], r"--lr \(distill\.lr\): expected"),
    "--steps -1": (["--steps=-1"], r"--steps \(distill\.steps\): .*0 or more.* -1$"),
    "--memory-budget": (["--memory-budget", "1KB"], "is below what one stored image needs"),
    "--load": (["--init", "load", "--load", "nothing"], "no synthetic set at .*nothing"),
    "--init load": (["--init", "load"], "pass the set to start from"),
    "--classes": (["--classes", "1,two"], "digits has no class 'two'"),
    "--holdout": (["--holdout", "0.5"], "digits has a test split of its own"),
    "--size": (["--size", "12"], "expected 12x12, got 8x8"),
    "--resume too": (["--resume", "x"], "--resume continues with the run's own settings"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_wrong_settings(tmp_path: Path, arguments: list[str], says: str) -> None:
    refused("distill", "digits", *TINY, "--out", "run", *arguments, says=says)
    assert not (tmp_path / "run").exists()


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(
        "distill", "digits", "--device", "cuda", says="device cuda is not available: torch sees no GPU .*--device cpu"
    )


def test_several_wrong_settings_are_told_at_once() -> None:
    message = refused("distill", "digits", "--ipc", "0", "--alpha", "2", says="--ipc")
    assert re.search(r"^--alpha \(distill\.alpha\): .*0 to 1.* 2\.0$", message, re.MULTILINE)


def test_wrong_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    refused("distill", says="say what to distill")
    refused("distill", "digts", says="no data found at 'digts'; did you mean 'digits'")
    refused("distill", "no/such/path", says="no data found at 'no/such/path'")
    refused("distill", "notes.txt", says=r"expected a folder, \.parquet or \.tar files, got a \.txt file")
    refused("distill", "empty", says="empty: expected one folder per class below the folder, got none")
    refused("distill", "cifar10", "--data-root", "empty", says="not found in .*: pass --download")
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 4})
    (folder / "void").mkdir()
    refused("distill", folder, "--repeats", "0", says="class 'void' has no images in shapes")
    (folder / "void").rmdir()
    refused("distill", folder, *TINY, "--ipc", "1", says=r"shapes has no test split .*--holdout .*--repeats 0")
    Image.new("L", (9, 9)).save(folder / "b" / "00.png")
    refused("distill", folder, "--repeats", "0", says=r"b/00\.png: expected 8x8, as a/00\.png, got 9x9: pass --size 8")
    assert not (tmp_path / "runs").exists()


def test_photos_of_every_kind(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", {"a": 4, "b": 4})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 10)).save(folder / "a" / "00.png")
    Image.new("CMYK", (20, 10)).save(folder / "a" / "cmyk.jpg")
    Image.new("RGBA", (9, 12)).save(folder / "b" / "clear.png")
    Image.new("RGB", (9, 12)).save(folder / "b" / "turned.jpg", exif=exif)
    (folder / "b" / "IMG_1.HEIC").write_bytes(b"")
    flags = [*TINY, "--repeats", "0", "--ipc", "1"]
    refused("distill", folder, *flags, says=r"pass --size 10 --resize crop --holdout 0\.1 to")
    advised = ["--size", "10", "--resize", "crop", "--holdout", "0.1"]
    result = succeeds("distill", folder, *flags, *advised, "--out", "run", "--json")
    data = one_object(result)["data"]
    assert (data["channels"], data["train"], data["test"], data["left_out"]) == (1, 9, 2, {".heic": 1})
    kinds = {"CMYK": 1, "transparent": 1, "rgb": 1}  # most are gray
    assert data["changed"] == {"resized": 11, "turned": 1, "converted": kinds}
    assert "photos: left out 1 .heic" in result.stderr
    assert "photos: of 11 pictures, 11 resized to 10x10" in result.stderr


def test_unreadable_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 4})
    (folder / "b" / "01.png").write_bytes(b"no picture")
    flags = [*TINY, "--repeats", "0", "--ipc", "1"]
    refused("distill", folder, *flags, "--out", "run", says=r"b/01\.png is not a readable picture .*--skip-bad")
    assert not Path("run").exists()
    result = succeeds("distill", folder, *flags, "--skip-bad", "--out", "run", "--json")
    assert one_object(result)["data"]["skipped"] == 1
    assert one_object(result)["data"]["skipped_images"] == ["b/01.png"]
    assert "skipped 1 image that cannot be decoded (--skip-bad):\n  b/01.png" in result.stderr
    for picture in (folder / "b").iterdir():
        picture.write_bytes(b"")
    refused("distill", folder, *flags, "--skip-bad", says="class 'b' has no images in shapes")


def test_another_run_in_out(done: Path) -> None:
    before = content(done)
    refused("distill", "digits", *TINY, "--out", done, says="already exists and holds a run: continue it with --resume")
    refused("distill", "digits", *TINY, "--out", done / "run.json", says="is not a folder")
    refused("distill", "digits", *TINY, "--out", done.parent, says="already exists: pass --force")
    assert content(done) == before


def test_resume_takes_nothing_else(tmp_path: Path, done: Path) -> None:
    refused("distill", "--resume", tmp_path, says=r"is not a run directory: no run\.json in it")
    (tmp_path / "run.json").write_text("{}")
    refused("distill", "--resume", tmp_path, says=r"run\.json is damaged: 9 problems\n  arguments: field required")
    for more in (["--ipc", "3"], ["--out", "x"], ["--recipe", "digits"], ["--baselines", "whole"], ["--skip-bad"]):
        refused("distill", "--resume", done, *more, says="pass nothing else, except --data")
    for more in (["--data-root", "x"], ["--data", "x", "--skip-bad"], ["--data", "x", "--size", "9"]):
        refused("distill", "--resume", done, *more, says="pass nothing else, except --data")
    refused("distill", "--data", "digits", says="--data goes with --resume: .* `ncfmkit distill DATA`")


def test_resume_where_the_data_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "shapes", {"a": 4, "b": 4})
    original = loop.distill_step

    def interrupted(problem: Any, state: Any, plan: Any) -> Any:
        if state.step == 5:
            signal.raise_signal(signal.SIGINT)
        return original(problem, state, plan)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "distill_step", interrupted)
        flags = [*TINY, "--repeats", "0", "--ipc", "1", "--out", "run"]
        refused("distill", folder, *flags, says="continue with --resume run", code=130)
    folder.rename(tmp_path / "forms")
    refused(
        "distill",
        "--resume",
        "run",
        says=r"no data found at .*shapes.*\n.*have moved: ncfmkit distill --resume run --data DATA",
    )
    succeeds("distill", "--resume", "run", "--data", "forms")
    info = json.loads(Path("run/run.json").read_text())
    assert info["arguments"]["data"] == str(tmp_path / "forms")
    assert (info["status"], info["data"]["name"]) == ("done", "shapes")


def test_a_model_is_not_a_set(tmp_path: Path, done: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    says = r"m\.onnx is an ONNX model, not a synthetic set: .*`ncfmkit validate`"
    refused("evaluate", "m.onnx", "--data", "digits", says=says)
    for command in (["verify"], ["train"], ["pack", "--to", "png"], ["unpack"]):
        refused(*command, "m.onnx", says=says)
    refused("export", "m.onnx", "--out", "n.onnx", says=r"m\.onnx is an ONNX model, not a student")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "last byte": lambda c: c[:-1] + bytes([c[-1] ^ 1]),
    "truncated": lambda c: c[:-20],
    "empty": lambda c: b"",
    "text": lambda c: b"images",
    "manifest": lambda c: c.replace(b'\\"sha256\\"', b'\\"sha265\\"'),
    "manifest is no JSON": lambda c: c.replace(b'{\\"bytes', b'[\\"bytes'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_set(tmp_path: Path, done: Path, damage: Callable[[bytes], bytes]) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(damage((done / "synthetic.safetensors").read_bytes()))
    for arguments in (["evaluate", copy, "--data", "digits"], ["inspect", copy], ["train", copy, "--out", "s"]):
        refused(*arguments, says=r"copy\.safetensors is (damaged|not a readable safetensors file)")
    assert [p.name for p in tmp_path.iterdir()] == ["copy.safetensors"]


def test_wrong_sets(tmp_path: Path, done: Path) -> None:
    shapes = make_folder(tmp_path / "shapes", {"a": 4, "b": 4})
    refused("evaluate", done, "--data", shapes, says="the set has the classes 0, 1, .*shapes has a, b: pass the data")
    refused("evaluate", done, "--data", "digts", says="did you mean 'digits'")
    refused("evaluate", "nothing", "--data", "digits", says="no synthetic set at nothing")
    refused(
        "evaluate",
        done,
        "--data",
        "digits",
        "--network",
        "resnet",
        *QUICK,
        says="expected one of convnet, .* got 'resnet'",
    )
    refused("evaluate", done, "--data", "digits", "--repeats", "0", says="--repeats 0: expected 1 or more")
    refused("evaluate", done, "--data", "digits", "--baselines", "best", says="unknown baseline 'best'")
    refused("inspect", "nothing", says="no such file or directory: 'nothing'")
    refused("inspect", shapes, says="is not a run directory")
    refused("train", done, "--out", "no/where.safetensors", says="there is no folder no: make it first")
    refused("train", done, "--out", done / "run.json", says="already exists: pass --force")
    refused("recipes", "digist", says="unknown recipe 'digist'; did you mean 'digits'")
    for two in (("digits", "--data"), ("--data", "--networks")):
        refused("recipes", *two, says="expected the name of a recipe, --data or --networks, got several")


def test_train_takes_the_flags_of_the_data(tmp_path: Path, done: Path) -> None:
    for flags in (["--holdout", "0.1"], ["--skip-bad"], ["--download"], ["--data-root", "x"]):
        refused("train", done, *flags, says="options of the real data need --data")
    refused("train", done, "--data", "digits", "--holdout", "0.1", says="digits has a test split of its own")
    names = {str(digit): 3 for digit in range(10)}
    folder = make_folder(tmp_path / "digit folders", names)
    (folder / "3" / "00.png").write_bytes(b"no picture")
    flags = ["--data", str(folder), "--holdout", "0.4", *ONE]
    refused("train", done, *flags, says=r"3/00\.png is not a readable picture .*--skip-bad")
    assert one_object(succeeds("train", done, *flags, "--skip-bad", "--json"))["test_accuracy"] is not None


def test_a_cache_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCFMKIT_CACHE", "/dev/null/x")
    refused("pretrain", "digits", says=r"the cache folder /dev/null/x/.* cannot be used \(.*NCFMKIT_CACHE")


def test_flags_that_do_not_exist() -> None:
    result = call("distill", "digits", "--icp", "3")
    assert result.exit_code == 2
    assert "No such option" in result.stderr
    assert call("distil").exit_code == 2
    assert call("evaluate", "x").exit_code == 2


def test_debug_shows_the_traceback() -> None:
    result = call("--debug", "distill", "digts")
    assert type(result.exception).__name__ == "UserError"


def test_unexpected_errors_are_one_message_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncfmkit.jobs.doctor.examine", lambda: 1 // 0)
    result = call("doctor")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "ncfmkit: unexpected ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.stderr


def test_non_finite_loss_exits_3_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.distill_step

    def explodes(problem: Any, state: Any, plan: Any) -> Any:
        if state.step == 6:
            raise NonFiniteLossError("the matching loss of class '0' became non-finite in step 6: lower --lr")
        return original(problem, state, plan)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "distill_step", explodes)
        refused("distill", "digits", *TINY, "--out", "run", says="became non-finite in step 6: lower --lr", code=3)
    assert [p.name for p in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000004.pt"]
    succeeds("distill", "--resume", "run")


def test_non_finite_training_exits_3() -> None:
    wild = ["--set", "pool.lr=1e30", "--pool-epochs", "2"]
    refused("distill", "digits", *TINY, *wild, "--out", "run", says="training loss became non-finite in epoch", code=3)


def test_interruption_outside_the_steps_exits_130(monkeypatch: pytest.MonkeyPatch, done: Path) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ncfmkit.scoring.students.train", interrupted)
        refused("distill", "digits", *TINY, "--out", "run", says="continue with --resume run", code=130)
        fresh = ("--seed", "99")  # whose students no other test has trained
        refused("evaluate", done, "--data", "digits", *QUICK, *fresh, says="interrupted", code=130)
    succeeds("distill", "--resume", "run")
    assert (Path("run") / "synthetic.safetensors").read_bytes() == (done / "synthetic.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_process_exits_130_and_resume_ends_with_the_same_bytes(
    tmp_path: Path, number: signal.Signals
) -> None:
    arguments = [
        "distill",
        "digits",
        *TINY,
        "--steps",
        "150",
        "--repeats",
        "0",
        "--set",
        "runtime.checkpoint_every=1000",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, *arguments, "--out", "run"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size > 2000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert re.search(r"ncfmkit: saved after step \d+ of 150: continue with --resume run", err)
    assert not (tmp_path / "run" / "synthetic.safetensors").exists()
    succeeds("distill", "--resume", "run")  # here, with other threads than the run was started with
    whole = [sys.executable, "-c", LAUNCH, *arguments, "--out", "whole"]
    subprocess.run(whole, check=True, capture_output=True, env=environment)
    name = "synthetic.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f'"{sys.executable}" -c "{LAUNCH}" recipes | true'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in result.stderr
