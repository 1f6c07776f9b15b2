"""Predictions of an exported model: what they are, in which order and when they come, and what cannot be read."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import SIDE, foreign_model, foreign_weights
from PIL import Image
from typer.testing import CliRunner, Result

from ncfmkit.cli import main
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import predict as predict_module
from ncfmkit.exporters.predict import find_pictures, predict
from ncfmkit.real.decode import Opened, readable_formats

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "from ncfmkit.cli.entry import run; run()"


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A linear classifier of 3x8x8 pixels, 12 classes without names."""
    return foreign_model(tmp_path / "linear.onnx", classes=12)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: str | Path, content: np.ndarray | Image.Image | bytes, **options: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        Path(path).write_bytes(content)
    else:
        (Image.fromarray(content) if isinstance(content, np.ndarray) else content).save(path, **options)
    return str(path)


def write_many(folder: str, count: int) -> list[str]:
    return [write(f"{folder}/{i:03d}.png", noise(SIDE, SIDE, 3, seed=i)) for i in range(count)]


def call(*arguments: Any) -> Result:
    names = [str(a) for a in arguments]
    return CliRunner().invoke(main.app, ["predict", *names], prog_name="ncfmkit", env={"COLUMNS": "200"})


def answers(*arguments: Any, code: int = 0) -> list[dict[str, Any]]:
    """The lines on stdout, each of them an object."""
    result = call(*arguments)
    assert result.exit_code == code, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(*arguments: Any, says: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unexpected " not in result.stderr
    assert says in result.stderr.split("ncfmkit: ", 1)[1]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    return exponents / exponents.sum()


def by_hand(model: Path, image_CHW: np.ndarray) -> np.ndarray:
    """Probabilities [K] by a session and a softmax of the test's own."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return softmax(session.run(None, {session.get_inputs()[0].name: image_CHW[None]})[0][0])


def check(answer: dict[str, Any], expected_K: np.ndarray, names: Sequence[str] | None) -> None:
    """The answer's classes are the likeliest, in order, with their names and probabilities."""
    order = np.argsort(-expected_K)[: len(answer["topk"])].tolist()
    assert [t["label"] for t in answer["topk"]] == order
    assert [t["class"] for t in answer["topk"]] == [names[k] if names else None for k in order]
    assert [t["probability"] for t in answer["topk"]] == pytest.approx(expected_K[order].tolist(), abs=2e-6)
    assert {k: answer[k] for k in ("class", "label", "probability")} == answer["topk"][0]
    assert list(answer) == ["file", "class", "label", "probability", "topk"]


def test_an_exported_student(onnx_path: Path) -> None:
    images = noise(9, SIDE, SIDE, 3)
    for i, image in enumerate(images):
        write(f"pictures/{i}.png", image)
    result = call(onnx_path, "pictures", "--batch", "4")
    assert result.exit_code == 0, result.stderr
    assert f"{onnx_path}: 3x8x8 images, 3 classes, on cpu; 9 pictures" in result.stderr
    assert "assumed" not in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["file"] for a in found] == [f"pictures/{i}.png" for i in range(9)]
    for answer, image in zip(found, images, strict=True):
        assert len(answer["topk"]) == 3  # all: the model has fewer than five classes
        check(answer, by_hand(onnx_path, image.transpose(2, 0, 1)), ["class 0", "class 1", "class 2"])
        assert sum(t["probability"] for t in answer["topk"]) == pytest.approx(1, abs=2e-6)


def test_a_model_that_names_nothing(model: Path) -> None:
    image = noise(SIDE, SIDE, 3)
    result = call(model, write("x.png", image))
    answer = json.loads(result.stdout)
    assert len(answer["topk"]) == 5
    check(answer, by_hand(model, image.transpose(2, 0, 1)), None)
    said = " ".join(result.stderr.split())
    assert "metadata: input uint8 [N, C, H, W], 0 to 255 (assumed, --input), output logits (assumed, --output)" in said


@pytest.mark.parametrize("layout", ["uint8-nchw", "uint8-nhwc", "float-nchw"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_every_layout_and_output_answers_the_same(tmp_path: Path, layout: str, probabilities: bool) -> None:
    image, names = noise(SIDE, SIDE, 3), ("größe", "犬", "c", "d")
    weights = foreign_weights(4) / 8
    model = foreign_model(tmp_path / "m.onnx", layout, names=names, probabilities=probabilities, weights=weights)
    (answer,) = answers(model, write("x.png", image))
    check(answer, softmax(image.transpose(2, 0, 1).ravel() / 255 @ weights), names)


def test_what_the_user_says_of_a_model_without_metadata(onnx_path: Path, tmp_path: Path) -> None:
    image, weights = noise(SIDE, SIDE, 3), foreign_weights(4) / 8
    model = foreign_model(tmp_path / "m.onnx", "float-nchw", probabilities=True, weights=weights)
    result = call(model, write("x.png", image), "--input", "float-nchw", "--output", "probabilities")
    check(json.loads(result.stdout), softmax(image.transpose(2, 0, 1).ravel() / 255 @ weights), None)
    said = " ".join(result.stderr.split())
    assert "0 to 1 (as declared, --input), output probabilities (as declared, --output)" in said
    refused(onnx_path, "x.png", "--output", "probabilities", says="--output probabilities: the metadata of")
    refused(model, "x.png", "--output", "scores", says="--output: expected one of logits, probabilities, got 'scores'")


def test_topk(model: Path) -> None:
    picture = write("x.png", noise(SIDE, SIDE, 3))
    whole = answers(model, picture, "--topk", "12")[0]["topk"]
    assert [t["probability"] for t in whole] == sorted((t["probability"] for t in whole), reverse=True)
    assert answers(model, picture, "--topk", "1")[0]["topk"] == whole[:1]
    refused(model, picture, "--topk", "0", says="--topk: expected 1 to 12, the model's classes, got 0")
    refused(model, picture, "--topk", "13", says="--topk: expected 1 to 12, the model's classes, got 13")


def test_ties_go_to_the_lower_label(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "m.onnx", weights=np.zeros((3 * SIDE * SIDE, 4)))
    (answer,) = answers(model, write("x.png", noise(SIDE, SIDE, 3)))
    assert [(t["label"], t["probability"]) for t in answer["topk"]] == [(k, 0.25) for k in range(4)]


def test_batches_do_not_change_answers(model: Path) -> None:
    write_many("many", 70)
    one, whole = (answers(model, "many", "--batch", batch) for batch in (1, 64))
    assert len(one) == 70
    for a, b in zip(one, whole, strict=True):
        assert (a["file"], [t["label"] for t in a["topk"]]) == (b["file"], [t["label"] for t in b["topk"]])
        assert [t["probability"] for t in a["topk"]] == pytest.approx([t["probability"] for t in b["topk"]], abs=2e-6)
    refused(model, "many", "--batch", "0", says="--batch: expected 1 or more pictures, got 0")


def test_order_is_that_of_the_arguments_and_sorted_in_folders(model: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.tif", "sub/deep/d.gif", "other/e.jpeg", ".hidden.png", ".hidden/f.png"):
        write(f"folder/{name}", noise(SIDE, SIDE, 3), format="png")
    Path("folder/sub/up").symlink_to("..")
    last, plain = write("last.png", noise(SIDE, SIDE, 3)), write("a picture", noise(SIDE, SIDE, 3), format="png")
    inside = [f"folder/{n}" for n in ("a.JPG", "b.png", "other/e.jpeg", "sub/c.tif", "sub/deep/d.gif")]
    found = [a["file"] for a in answers(model, last, "folder/", plain, last, "folder/.hidden.png", "--batch", "2")]
    assert found == [last, *inside, plain, last, "folder/.hidden.png"]
    assert find_pictures(["folder/sub", "."])[0][:3] == ["folder/sub/c.tif", "folder/sub/deep/d.gif", "./last.png"]


def test_names_that_are_not_utf8(model: Path) -> None:
    good, bad = os.fsdecode(b"gr\xfc\xdfe.png"), os.fsdecode(b"b\xe4d.png")
    write(good, noise(SIDE, SIDE, 3))
    write(bad, b"")
    result = call(model, good, bad)
    assert result.exit_code == 1
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == [good, bad]
    assert r"ncfmkit: b\udce4d.png: its format is none of" in result.stderr


def test_names_cannot_write_to_the_terminal(model: Path) -> None:
    bad = write("a\n\x1b[2J.png", b"")
    assert r"ncfmkit: a\n\x1b[2J.png: its format is none of" in call(model, bad).stderr
    refused(model, "\x1b[2J", says=r"no such file or folder: \x1b[2J")


def test_other_sizes_are_brought_to_the_models_and_told(model: Path) -> None:
    wide = noise(20, 33, 3)
    upright = Image.Exif()
    upright[0x0112] = 6  # turned by a quarter: rows and columns change places
    small, same = noise(5, 4, 3), noise(SIDE, SIDE, 3)
    files = [write("wide.png", wide), write("small.png", small), write("same.png", same)]
    files.append(write("turned.png", Image.fromarray(wide), exif=upright))
    result = call(model, *files)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    turned = Image.fromarray(np.rot90(wide, -1).copy())
    for answer, picture in zip(found, [Image.fromarray(p) for p in (wide, small, same)] + [turned], strict=True):
        short = min(picture.size)
        left, top = (picture.width - short) / 2, (picture.height - short) / 2
        resized = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
        check(answer, by_hand(model, np.asarray(resized).transpose(2, 0, 1)), None)
    said = "of 4 pictures, 3 resized to 8x8 (short side, center crop), 1 turned upright (EXIF)\n"
    assert said in result.stderr


def test_other_colors_are_brought_to_the_models_and_told(model: Path) -> None:
    rgb, gray, alpha = noise(SIDE, SIDE, 3), noise(SIDE, SIDE), noise(SIDE, SIDE, 1)
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    cases: list[tuple[Image.Image | np.ndarray, np.ndarray]] = [
        (rgb, rgb),
        (gray, np.stack([gray] * 3, 2)),
        (np.concatenate([rgb, alpha], 2), rgb),
        (palette, np.asarray(palette.convert("RGB"))),
        (gray.astype(np.uint16) * 256 + 7, np.stack([gray] * 3, 2)),
        (Image.fromarray(gray > 99), np.stack([(gray > 99) * np.uint8(255)] * 3, 2)),
    ]
    result = call(model, *(write(f"{i}.png", picture) for i, (picture, _) in enumerate(cases)))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for answer, (_, expected) in zip(found, cases, strict=True):
        check(answer, by_hand(model, expected.transpose(2, 0, 1)), None)
    kinds = "1 gray, 1 transparent, 1 palette, 1 16-bit gray, 1 1-bit"
    assert f"of 6 pictures, 5 converted to rgb ({kinds})\n" in result.stderr


def test_a_gray_model(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "gray.onnx", channels=1, classes=12)
    gray, rgb = noise(SIDE, SIDE), noise(SIDE, SIDE, 3)
    result = call(model, write("gray.png", gray), write("rgb.png", rgb))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for answer, pixels in zip(found, (gray, np.asarray(Image.fromarray(rgb).convert("L"))), strict=True):
        check(answer, by_hand(model, pixels[None]), None)
    assert "of 2 pictures, 1 converted to gray (1 rgb)\n" in result.stderr


def test_unreadable_pictures_are_told_and_the_rest_is_answered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(write("whole.png", noise(40, 40, 3))).read_bytes()
    write("f/0.png", noise(SIDE, SIDE, 3))
    write("f/1.png", whole[: len(whole) // 2])
    write("f/2.png", b"")
    write("f/3.png", noise(SIDE, SIDE, 3), format="tga")
    write("f/4.png", noise(60, 60, 3))
    write("f/5.png", noise(99, 99, 3))
    write("f/6.png", noise(SIDE, SIDE, 3))
    write("f/7.tif", Image.new("F", (SIDE, SIDE)))
    Path("f/8.png").symlink_to("nothing.png")
    write("f/notes.txt", b"")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    result = call(model, "f", "--batch", "2")
    assert result.exit_code == 1
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["file"] for answer in found] == [*(f"f/{i}.png" for i in range(7)), "f/7.tif"]
    assert [i for i, answer in enumerate(found) if "error" not in answer] == [0, 6]
    assert [list(answer) for answer in found if "error" in answer] == [["file", "error"]] * 6
    assert found[4]["error"] == "3600 pixels, the limit is 3000"
    for answer in (found[0], found[6]):  # the answer is its own
        picture = np.asarray(Image.open(answer["file"]))
        check(answer, by_hand(model, picture.transpose(2, 0, 1)), None)
    unknown = f"its format is none of {', '.join(readable_formats())}"
    lines = result.stderr.splitlines()
    assert lines.pop(2) == "left out 1 .txt, 1 broken links"
    assert lines[2:4] == ["ncfmkit: f/1.png: image file is truncated", f"ncfmkit: f/2.png: {unknown}"]
    assert lines[4:6] == [f"ncfmkit: f/3.png: {unknown}", "ncfmkit: f/4.png: 3600 pixels, the limit is 3000"]
    assert lines[6].startswith("ncfmkit: f/5.png: Image size (9801 pixels) exceeds limit of 6000 pixels")
    assert lines[7] == "ncfmkit: f/7.tif: mode F, expected 8 or 16 bits per channel"
    assert lines[8:] == ["ncfmkit: 6 of 8 pictures could not be read"]


def test_nothing_but_unreadable_pictures(model: Path) -> None:
    result = call(model, write("a.png", b""), write("b.png", b"no picture"))
    assert result.exit_code == 1
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == ["a.png", "b.png"]
    assert result.stderr.endswith("ncfmkit: 2 of 2 pictures could not be read\n")


def test_unreadable_pictures_in_python(model: Path) -> None:
    files = [write("a.png", b""), write("b.png", noise(SIDE, SIDE, 3)), write("c.png", b"")]
    answers = predict(model, files, batch=2)
    bad, good = next(answers), next(answers)
    assert (bad.file, bad.class_name, bad.label, bad.probability, bad.topk) == ("a.png", None, None, None, ())
    assert bad.error == f"its format is none of {', '.join(readable_formats())}"
    assert bad.to_dict() == {"file": "a.png", "error": bad.error}
    assert (good.file, good.error, len(good.topk)) == ("b.png", None, 5)
    assert next(answers).file == "c.png"
    with pytest.raises(CheckFailed, match="2 of 3 pictures could not be read"):
        next(answers)


CELLS = ("a,b", 'the "third"', "two\nlines", "=1+1", " @x", "-5", "'quoted", "größe, 犬", "\uff1dx", "plain", "")


def test_csv_says_what_json_lines_say(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "m.onnx", classes=len(CELLS), names=CELLS)
    files = [
        write("a,b.png", noise(SIDE, SIDE, 3)),
        write("=x.png", b""),
        write("-c.png", noise(SIDE, SIDE, 3, seed=1)),
    ]
    expected = answers(model, *(f"./{f}" for f in files), "--topk", len(CELLS), code=1)
    result = call(model, "--topk", len(CELLS), "--format", "csv", "--", *files)
    assert result.exit_code == 1
    header, *rows = list(csv.reader(io.StringIO(result.stdout, newline=""), strict=True))
    assert header == ["file", "rank", "class", "label", "probability", "error"]
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d")) for row in rows for cell in row)
    plain = [[cell.removeprefix("'") for cell in row] for row in rows]
    assert plain == [
        row
        for answer, file in zip(expected, files, strict=True)
        for row in (
            [[file, "", "", "", "", answer["error"]]]
            if "error" in answer
            else [
                [file, str(rank), guess["class"], str(guess["label"]), str(guess["probability"]), ""]
                for rank, guess in enumerate(answer["topk"], 1)
            ]
        )
    ]
    assert '"two\nlines"' in result.stdout
    assert result.stdout.startswith('"file","rank",')
    assert re.search(r'^"a,b\.png",1,"[^"]*.*",\d+,[\d.e-]+,""$', result.stdout, re.MULTILINE)  # numbers are bare


def test_csv_of_a_model_without_names_and_of_names_for_terminals(model: Path) -> None:
    bad, good = write("\x1b[2J\r.png", noise(SIDE, SIDE, 3)), write(os.fsdecode(b"\xe4.png"), noise(SIDE, SIDE, 3))
    result = call(model, bad, good, "--topk", "1", "--format", "csv")
    first, second = result.stdout.splitlines()[1:]
    assert first.startswith(r'"\u001b[2J\r.png",1,"",')
    assert second.startswith(r'"\udce4.png",1,"",')


def test_a_format_that_is_not_known(model: Path) -> None:
    refused(model, "nothing.png", "--format", "xml", says="--format 'xml': expected jsonl or csv")


def test_wrong_paths_are_found_before_anything_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = write("x.png", noise(SIDE, SIDE, 3))
    Path("empty/.hidden").mkdir(parents=True)
    write("empty/notes.heic", b"")
    refused("no.onnx", picture, says="no model at no.onnx")
    refused(picture, picture, says="x.png is not an ONNX file, or is damaged")
    refused(model, picture, "--provider", "gpu", says="unknown provider 'gpu': expected one of cpu, cuda, tensorrt")
    monkeypatch.setattr(predict_module, "open_session", None)
    refused(model, picture, "no.png", says="no such file or folder: no.png\n")
    refused(model, "no.png", picture, "nor/this.png", says="no such file or folder: no.png (and 1 more)")
    refused(model, picture, "", says="no such file or folder: ''")
    refused(model, picture, "empty", says="empty: no pictures in the folder: expected PNG, JPEG, ")
    assert call(model).exit_code == 2


def test_a_folder_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    write("f/sub/x.png", noise(SIDE, SIDE, 3))
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"f/sub: .*Permission denied"):
        find_pictures(["f"])


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "m.onnx", weights=np.full((3 * SIDE * SIDE, 3), 3e38))
    files = [write("black.png", np.zeros((SIDE, SIDE, 3), np.uint8)), write("white.png", noise(SIDE, SIDE, 3))]
    with pytest.raises(CheckFailed, match=r"m\.onnx .*non-finite .*white\.png"):
        list(predict(model, files))


def test_answers_come_batch_by_batch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, opened, original = write_many("many", 11), set(), predict_module.open_picture

    def recorded(path: Any, where: str) -> Opened:
        opened.add(str(path))
        return original(path, where)

    monkeypatch.setattr(predict_module, "open_picture", recorded)
    answers = predict(model, "many", batch=2)
    for done in range(2, 11, 2):
        assert [next(answers).file, next(answers).file] == files[done - 2 : done]
        assert set(files[:done]) <= opened <= set(files[: done + 2])  # no further ahead than a batch
    assert [answer.file for answer in answers] == files[10:]


def launch(*arguments: str, **options: Any) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LAUNCH, "predict", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **options)


def test_a_line_is_written_before_the_last_picture_is_there(model: Path) -> None:
    picture, last = write("x.png", noise(SIDE, SIDE, 3)), write("last.png", noise(SIDE, SIDE, 3))
    with launch(str(model), *[picture] * 2000, last, "--batch", "1") as process:  # more than a pipe holds
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        Path(last).write_bytes(b"no picture")  # not read yet: the command waits, since nobody empties the pipe
        rest, errors = process.stdout.read(), process.stderr.read()
    answers = [json.loads(line) for line in rest.splitlines()]
    assert first["file"] == picture
    assert len(answers) == 2000
    assert answers[-1]["file"] == last
    assert "error" in answers[-1]
    assert process.returncode == 1
    assert "1 of 2001 pictures could not be read" in errors


def test_a_reader_that_leaves_early(model: Path) -> None:
    picture = write("x.png", noise(SIDE, SIDE, 3))
    with launch(str(model), *[picture] * 2000, "--batch", "8") as process:  # more than a pipe holds
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["file"] == picture
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if "linear.onnx" not in line and "assumed" not in line] == []


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """A shell has what runs in its background ignore interrupts, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_interruption_exits_130(model: Path) -> None:
    picture = write("x.png", noise(SIDE, SIDE, 3))
    with launch(str(model), *[picture] * 2000, "--batch", "8") as process:  # it waits: nobody empties the pipe
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert re.search(r"\nncfmkit: interrupted: \d+ pictures were answered\n$", errors)
    assert "Traceback" not in errors


def test_stdout_is_not_the_bars(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live bar on a terminal must not take the answers that go to a file."""
    picture = write("x.png", noise(SIDE, SIDE, 3))
    monkeypatch.setattr("ncfmkit.progress.console._force_terminal", True)
    result = call(model, picture)
    assert json.loads(result.stdout)["file"] == picture
    assert "predicting" in result.stderr


def test_torch_is_not_imported(model: Path) -> None:
    picture = write("x.png", noise(SIDE, SIDE, 3))
    code = f"import sys\ntry:\n    {LAUNCH}\nexcept SystemExit:\n    print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "predict", str(model), picture]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.splitlines()[-1] == "False"
