"""`validate`: accuracy against a naive count, the gate, providers that do not load, foreign models, the page."""

import functools
import io
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import build_real, write_student
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from ncfmkit import runtime
from ncfmkit.cli import main
from ncfmkit.config import DataSettings, NetworkSettings, Settings
from ncfmkit.errors import UserError
from ncfmkit.jobs import setup
from ncfmkit.real.store import RealData

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ncfmkit.exporters import accuracy as measured  # noqa: E402
from ncfmkit.exporters import matching_data, sessions, timing, validate  # noqa: E402
from ncfmkit.exporters.report import confusion_picture, tables, worst_confusions, write_report  # noqa: E402
from ncfmkit.exporters.validate import Validation  # noqa: E402

SIZE = 8
NO_GPU = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
COUNTS = (9, 6, 11)  # test images of each class


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def data() -> RealData:
    return build_real(test_counts=COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data as PNG files."""
    return write_folder(tmp_path_factory.mktemp("data") / "tiny", build_real(test_counts=COUNTS))


def write_folder(root: Path, real: RealData) -> Path:
    for name, split in (("train", real.train), ("test", real.test)):
        assert split is not None
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            target = root / name / real.classes[label]
            target.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(target / f"{number:03d}.png")
    return root


def run(model: Path, data: RealData, **asked: Any) -> dict[str, Any]:
    """Without timing, unless `effort` asks for it."""
    arguments: Any = SimpleNamespace(open=lambda settings: data)
    return validate.validate(Validation(model=model, **{"out": Path("out"), **asked}), arguments, Settings())


def call(*arguments: Any, columns: int = 200) -> Result:
    texts = ["validate", *map(str, arguments)]
    return CliRunner().invoke(main.app, texts, prog_name="ncfmkit", env={"COLUMNS": str(columns)})


def refused(*arguments: Any, says: str, code: int = 2) -> str:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    assert "unforeseen" not in result.stderr
    assert result.stderr.count("ncfmkit: ") == 1
    message = result.stderr.split("ncfmkit: ")[1]
    assert re.search(says, message), message
    if code == 2:
        assert result.stdout == ""
        assert not Path("out").exists()
    return message


def linear(
    path: Path,
    layout: str = "uint8-nchw",
    *,
    probabilities: bool = False,
    classes: int = 3,
    side: Any = SIZE,
    batch: Any = "N",
    dtype: int | None = None,
    opset: int = 17,
) -> Path:
    """A classifier of other origin: pixels by a matrix of random weights, see `linear_scores`."""
    helper, types = onnx.helper, onnx.TensorProto
    last, real = layout == "uint8-nhwc", layout == "float-nchw"
    shape = [batch, side, side, 3] if last else [batch, 3, side, side]
    nodes = [
        helper.make_node("Cast", ["input"], ["x0"], to=types.FLOAT),
        helper.make_node("Mul", ["x0", "scale"], ["x1"]),
        helper.make_node("Transpose", ["x1"], ["x2"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        helper.make_node("Flatten", ["x2"], ["x3"]),
        helper.make_node("MatMul", ["x3", "weights"], ["x4"]),
        helper.make_node("Softmax" if probabilities else "Identity", ["x4"], ["scores"]),
    ]
    scale = np.array(1 if real else 1 / 255, np.float32)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", dtype or (types.FLOAT if real else types.UINT8), shape)],
        [helper.make_tensor_value_info("scores", types.FLOAT, [batch, classes])],
        [onnx.numpy_helper.from_array(v, n) for n, v in (("scale", scale), ("weights", weights(classes)))],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def weights(classes: int) -> np.ndarray:
    drawn = np.random.default_rng(4).normal(size=(3 * SIZE * SIZE, classes))
    return (drawn - drawn.mean(axis=0)).astype(np.float32)  # without it, one class wins on every picture


def linear_scores(images: np.ndarray, classes: int = 3) -> np.ndarray:
    return (images.reshape(len(images), -1) / 255) @ weights(classes).astype(np.float64)


def damaged(model: Path, path: Path, damage: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The model with its last matrix or bias of 3 outputs changed."""
    proto = onnx.load_model(model)
    tensor = next(t for t in reversed(proto.graph.initializer) if 3 in t.dims and len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(damage(values.copy()), tensor.name))
    onnx.save_model(proto, path)
    return path


def shifted(values: np.ndarray) -> np.ndarray:
    """Every class gets the weights of the next."""
    return np.roll(values, 1, axis=0 if values.shape[0] == 3 else 1)


@pytest.fixture
def wrong(onnx_path: Path, tmp_path: Path) -> Path:
    return damaged(onnx_path, tmp_path / "wrong.onnx", shifted)


def naive(scores: np.ndarray, labels: np.ndarray) -> tuple[int, int, list[list[int]]]:
    """Correct images, images with scores that are not finite, and the confusion matrix, one image at a time."""
    count = scores.shape[1]
    confusion = [[0] * count for _ in range(count)]
    correct = broken = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if any(value != value or value in (float("inf"), float("-inf")) for value in row):
            broken += 1
            continue
        guess = row.index(max(row))
        confusion[label][guess] += 1
        correct += guess == label
    return correct, broken, confusion


def test_tally_is_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 7)).astype(np.float32)  # many ties
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.nan
    scores[rng.integers(0, 500, 20), rng.integers(0, 7, 20)] = np.inf
    scores[3] = -np.inf
    labels = rng.integers(0, 7, 500)
    found = measured.tally(scores, labels)
    correct, broken, confusion = naive(scores, labels)
    assert broken > 20
    assert (found["correct"], found["non_finite"], found["confusion"]) == (correct, broken, confusion)
    assert (found["images"], found["accuracy"]) == (500, correct / 500)


def test_accuracy_of_each_class() -> None:
    rows = measured.by_class([[3, 1], [2, 0]], [5, 2], ["a", "b"])  # one image of a is in no column
    assert rows == [
        {"class": "a", "images": 5, "correct": 3, "accuracy": 0.6},
        {"class": "b", "images": 2, "correct": 0, "accuracy": 0.0},
    ]


def test_agreement_by_hand() -> None:
    ours = np.array([[1, 2], [5, 4], [np.nan, 0], [0, 9]], np.float32)
    theirs = np.array([[1, 2.5], [3, 4], [0, 1], [0, 8]], np.float32)
    found = measured.agreement(ours, theirs)
    assert found == {"agreement": 0.5, "disagreements": 2, "max_abs_difference": 2.0}
    nothing = measured.agreement(np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    assert nothing == {"agreement": 0.0, "disagreements": 2, "max_abs_difference": None}


def test_worst_confusions_in_words() -> None:
    classes = [{"class": name, "images": 1000} for name in ("cat", "dog", "ox")]
    row = {"confusion": [[800, 200, 0], [90, 910, 0], [0, 200, 800]], "classes": classes}
    assert worst_confusions(row, most=2) == ["cat taken for dog: 200 of 1,000", "ox taken for dog: 200 of 1,000"]
    assert len(worst_confusions(row)) == 3  # no pair that never happened


def test_all_images_are_scored_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BATCH", 4)
    images = np.arange(11, dtype=np.uint8).reshape(11, 1, 1, 1)
    images.flags.writeable = False
    sizes = []

    def answer(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        assert batch.flags.writeable
        return batch.reshape(len(batch), 1).astype(np.float32)

    np.testing.assert_array_equal(measured.score(answer, images, title="x")[:, 0], np.arange(11))
    assert sizes == [4, 4, 3]


def test_an_export_is_as_accurate_as_its_student(onnx_path: Path, student_path: Path, data: RealData) -> None:
    result = run(onnx_path, data, against=student_path, max_accuracy_drop=0.0)
    assert data.test is not None
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    correct, _, confusion = naive(session.run(None, {"images": np.array(data.test.images)})[0], data.test.labels)
    (row,) = result["providers"]
    assert (row["correct"], row["confusion"], row["images"]) == (correct, confusion, sum(COUNTS))
    assert [c["images"] for c in row["classes"]] == list(COUNTS)
    assert sum(c["correct"] for c in row["classes"]) == correct
    assert (row["agreement"], row["disagreements"], row["accuracy_drop"], row["placement"]) == (1.0, 0, 0.0, {})
    assert 0 < row["max_abs_difference"] < 1e-4
    assert result["student"]["correct"] == correct
    assert (result["failures"], result["speed"], result["left_out"]) == ([], None, {})
    assert result["model"]["opset"] == onnx.load_model(onnx_path).opset_import[0].version
    assert json.loads(Path("out/validation.json").read_text()) == result
    assert sorted(p.name for p in Path("out").iterdir()) == ["report.html", "validation.json"]


def test_without_a_student_the_recorded_accuracy_is_the_reference(
    onnx_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(onnx_path, data)
    (row,) = result["providers"]
    assert result["reference"]["accuracy"] == 0.75  # the metadata's
    assert row["accuracy_drop"] == pytest.approx(100 * (0.75 - row["accuracy"]))
    assert "agreement" not in row
    assert "as recorded in the model, which does not say on which images" in capsys.readouterr().err


def test_a_student_that_is_not_the_models_own_is_told(
    onnx_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_student(Path("other.safetensors"), data, NetworkSettings(width=4, depth=1), epochs=0)
    result = run(onnx_path, data, against=other)
    assert result["providers"][0]["agreement"] < 1
    assert "other.safetensors is not the student that the model was exported from" in capsys.readouterr().err


def test_a_model_that_lost_accuracy_fails(wrong: Path, folder: Path, student_path: Path) -> None:
    arguments = [wrong, "--data", folder, "--against", student_path, "--no-speed", "--max-accuracy-drop", "0.5"]
    result = call(*arguments, "--out", "out", "--json")
    assert result.exit_code == 1
    value = json.loads(result.stdout)
    (row,) = value["providers"]
    assert row["accuracy_drop"] == pytest.approx(100 * (value["student"]["accuracy"] - row["accuracy"]))
    assert row["accuracy_drop"] > 50
    assert value["failures"] == [re.sub(r"\n$", "", result.stderr.split("ncfmkit: ")[1])]
    assert "the student's in this run: allowed are 0.5" in value["failures"][0]
    assert json.loads(Path("out/validation.json").read_text()) == value
    assert "Failed: cpu: accuracy" in Path("out/report.html").read_text()
    assert call(*arguments[:-2], "--out", "no-gate").exit_code == 0
    text = call(*arguments, "--out", "text")
    assert text.exit_code == 1
    assert "gate failed: cpu: accuracy" in text.stdout


def test_the_gate_compares_in_points() -> None:
    def failures(drop: float, limit: float | None) -> list[str]:
        row = {"provider": "cpu", "non_finite": 0, "accuracy": 0.5, "accuracy_drop": drop}
        reference = {"accuracy": 0.5, "what": "the student's"}
        result = {"student": None, "max_accuracy_drop": limit, "providers": [row], "reference": reference}
        return validate.accuracy_failures(result)

    assert failures(100 * (0.6205 - 0.6155), 0.5) == []  # 0.5 points, but for rounding
    assert failures(-3.0, 0.0) == []
    assert failures(80.0, None) == []
    assert len(failures(0.51, 0.5)) == 1


def test_scores_that_are_not_finite_fail_without_a_gate(
    onnx_path: Path, tmp_path: Path, folder: Path, student_path: Path
) -> None:
    broken = damaged(onnx_path, tmp_path / "nan.onnx", lambda values: values * np.float32("nan"))
    result = call(broken, "--data", folder, "--against", student_path, "--no-speed", "--out", "out", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["providers"]
    assert (row["non_finite"], row["correct"], row["max_abs_difference"]) == (sum(COUNTS), 0, None)
    assert f"cpu: the scores of {sum(COUNTS)} of {sum(COUNTS)} images are not finite" in result.stderr
    assert "no image is taken for another class" in Path("out/report.html").read_text()


def test_all_failures_are_listed(wrong: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two providers fail; the second is the CPU under another name."""
    monkeypatch.setitem(sessions.PROVIDERS, "twin", sessions.PROVIDERS["cpu"])
    flags = ["--no-speed", "--max-accuracy-drop", "0", "--out", "out", "--provider", "cpu,twin"]
    message = refused(wrong, "--data", folder, *flags, says=r"cpu: accuracy .*\ntwin: accuracy ", code=1)
    assert message.count("allowed are 0") == 2
    assert "twin: the same as cpu" in Path("out/report.html").read_text()


@pytest.mark.skipif(not NO_GPU, reason="needs an ONNX Runtime without CUDA")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", r"no CUDAExecutionProvider: .*pip install 'ncfmkit\[gpu\]'"),
        ("cpu,tensorrt", r"no TensorrtExecutionProvider: .*pip install 'ncfmkit\[tensorrt\]'"),
    ],
)
def test_a_provider_that_does_not_load_is_an_error(onnx_path: Path, folder: Path, name: str, says: str) -> None:
    refused(onnx_path, "--data", folder, "--provider", name, "--out", "out", says=says)


@pytest.mark.skipif(not NO_GPU, reason="needs an ONNX Runtime without CUDA")
def test_all_lists_what_does_not_load(onnx_path: Path, folder: Path) -> None:
    result = call(onnx_path, "--data", folder, "--provider", "all", "--no-speed", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert [row["provider"] for row in value["providers"]] == ["cpu"]
    assert set(value["left_out"]) == {"cuda", "tensorrt"}
    assert "pip install 'ncfmkit[gpu]'" in value["left_out"]["cuda"]
    assert "provider cuda is left out: " in result.stderr
    assert "cuda left out: the installed onnxruntime has no" in Path("out/report.html").read_text()


def test_all_leaves_out_what_loads_but_does_not_run_the_model(
    onnx_path: Path, data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_model(path: Path, provider: str, **options: Any) -> Any:
        if provider != "cpu":
            raise UserError(f"ONNX Runtime placed 3 Conv on CPU instead of {provider}")
        return sessions.open_session(path, provider)

    monkeypatch.setattr(validate, "missing", lambda name: "")
    monkeypatch.setattr(validate, "open_model", open_model)
    result = run(onnx_path, data, provider="all")
    assert result["left_out"]["tensorrt"] == "ONNX Runtime placed 3 Conv on CPU instead of tensorrt"
    with pytest.raises(UserError, match="instead of cuda"):
        run(onnx_path, data, provider="cuda", out=Path("out2"))


def test_an_engine_runs_on_tensorrt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(validate, "open_model", lambda path, provider, **options: opened.append(provider))
    for provider in (None, "all", "tensorrt"):
        models, left_out = validate.open_models(Validation(model=Path("a.engine"), out=Path("o"), provider=provider))
        assert ([(m.provider, m.built) for m in models], left_out) == ([("tensorrt", None)], {})
    assert opened == ["tensorrt"] * 3
    with pytest.raises(UserError, match=r"--provider cpu: a\.engine is a TensorRT engine, which only tensorrt runs"):
        validate.open_models(Validation(model=Path("a.engine"), out=Path("o"), provider="cpu"))


def test_whether_opening_built_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's TensorRT keeps engines beside the model: only the first opening builds."""
    runner = SimpleNamespace(seconds=90.0)
    monkeypatch.setattr(validate, "open_model", lambda path, provider, **options: runner)
    asked = Validation(model=Path("a.onnx"), out=Path("o"), provider="tensorrt")
    first = validate.open_models(asked)[0][0]
    assert first.built
    assert validate._build_seconds(asked.model, first, 2.0) == 88.0
    engines = sessions.engine_folder(asked.model)
    engines.mkdir(parents=True)
    (engines / "x.engine").write_bytes(b"")
    second = validate.open_models(asked)[0][0]
    assert second.built is False
    assert validate._build_seconds(asked.model, second, 2.0) is None
    assert validate.open_models(Validation(model=Path("a.onnx"), out=Path("o")))[0][0].built is None


@pytest.mark.parametrize("layout", ["uint8-nchw", "uint8-nhwc", "float-nchw"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_any_classifier(layout: str, probabilities: bool, data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear(Path("linear.onnx"), layout, probabilities=probabilities)
    told = {"output": "probabilities"} if probabilities else {}
    result = run(model, data, told=told)
    assert data.test is not None
    correct, _, confusion = naive(linear_scores(data.test.images), data.test.labels)
    (row,) = result["providers"]
    assert (row["correct"], row["confusion"]) == (correct, confusion)
    assert 0 < correct < sum(COUNTS)
    assert (row["accuracy_drop"], result["reference"]) == (None, None)
    assert (result["model"]["layout"], result["model"]["output"]) == (layout, told.get("output", "logits"))
    said = " ".join(capsys.readouterr().err.split())
    assert f"its output {'said' if told else 'taken'} to be {told.get('output', 'logits')}" in said
    assert "its classes to be the data's, in the data's order" in said


@pytest.mark.parametrize("layout", ["uint8-nhwc", "float-nchw"])
def test_a_student_is_fed_as_the_model_is(layout: str, data: RealData, student_path: Path) -> None:
    model = linear(Path("linear.onnx"), layout, probabilities=True)
    result = run(model, data, against=student_path, told={"output": "probabilities"})
    assert data.test is not None
    assert result["student"]["accuracy"] > 0.9  # as on its own pixels
    assert result["providers"][0]["max_abs_difference"] <= 1  # both are probabilities


def test_a_gate_needs_something_to_compare_with(folder: Path) -> None:
    model = linear(Path("linear.onnx"))
    refused(
        *(model, "--data", folder, "--max-accuracy-drop", 1, "--out", "out"),
        says=r"linear\.onnx does not record its student's accuracy: pass --against STUDENT",
    )


def cut(model: Path, path: Path) -> Path:
    path.write_bytes(model.read_bytes()[:-500])
    return path


WRONG_MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "none": (lambda ours: Path("none.onnx"), r"no model at none\.onnx"),
    "text": (lambda ours: write(Path("text.onnx"), b"hello" * 100), "is not a whole ONNX file"),
    "empty": (lambda ours: write(Path("empty.onnx"), b""), r"empty\.onnx"),
    "truncated": (lambda ours: cut(ours, Path("cut.onnx")), r"cut\.onnx is not a whole ONNX file: .* truncated"),
    "opset": (
        lambda ours: linear(Path("new.onnx"), opset=99),
        r"new\.onnx has opset 99, the installed ONNX Runtime .* runs up to",
    ),
    "dtype": (lambda ours: linear(Path("i.onnx"), dtype=6), r"expected uint8 or float32 images, got 'input' tensor\(i"),
    "fixed batch": (lambda ours: linear(Path("one.onnx"), batch=1), "takes 1 images at a time"),
    "any side": (lambda ours: linear(Path("any.onnx"), side="S"), "expected square images .* with fixed sides"),
    "classes": (lambda ours: linear(Path("four.onnx"), classes=4), "tells 4 classes apart, tiny has 3"),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "says"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_wrong_models(onnx_path: Path, folder: Path, make: Callable[[Path], Path], says: str) -> None:
    refused(make(onnx_path), "--data", folder, "--out", "out", "--no-speed", says=says)


WRONG_FLAGS = {
    "provider": (
        ["--provider", "gpu"],
        "unknown provider 'gpu': expected some of cpu, cuda, tensorrt, by comma, or all alone",
    ),
    "batches": (["--batches", "1,x"], "--batches '1,x': expected whole numbers from 1 to 65,536"),
    "threads": (["--threads", "0"], "--threads: expected 1 or more, got 0"),
    "drop": (["--max-accuracy-drop", "-1"], "--max-accuracy-drop: expected 0 to 100 percentage points, got -1"),
    "drop nan": (["--max-accuracy-drop", "nan"], "--max-accuracy-drop: expected 0 to 100 percentage points, got nan"),
    "input": (["--input", "nchw"], "--input: expected one of uint8-nchw, uint8-nhwc, float-nchw, got 'nchw'"),
    "output": (["--output", "scores"], "--output: expected one of logits, probabilities, got 'scores'"),
    "contradicted": (["--output", "probabilities"], "says itself that its output is logits, told was probabilities"),
    "type": (["--input", "float-nchw"], "says itself that its layout is uint8-nchw, told was float-nchw"),
    "against": (["--against", "none.safetensors"], r"no student at none\.safetensors"),
    "out's parent": (["--out", "no/such"], "--out no/such: there is no folder no: make it first"),
    "out in a file": (
        ["--out", "file/out"],
        r"cannot make the folder file/out \(Not a directory\): choose another --out",
    ),
    "out is there": (["--out", "there"], "there is there already: choose another --out"),
    "size": (
        ["--size", "9"],
        r"expected 9x9, got 8x8: pass --size 8 --resize crop, since .*student\.onnx takes 8x8 rgb",
    ),
    "other size": (
        ["--size", "16", "--resize", "crop"],
        r"tiny has 16x16 rgb images, .* takes 8x8 rgb: pass --size 8 -",
    ),
    "color": (["--color", "gray"], "expected gray images, got mode RGB: pass --color rgb --convert-color, since"),
    "gray": (
        ["--color", "gray", "--convert-color"],
        "tiny has 8x8 gray images, .*: pass --color rgb --convert-color, or",
    ),
    "classes": (["--classes", "class 0,class 2"], r"has 3 classes, tiny 2: only .*student\.onnx has 'class 1'"),
    "holdout": (["--holdout", "0.5"], "has a test split of its own"),
}


@pytest.mark.parametrize(("flags", "says"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_wrong_flags(onnx_path: Path, folder: Path, flags: list[str], says: str) -> None:
    Path("file").write_text("")
    Path("there").mkdir()
    refused(onnx_path, "--data", folder, *(["--out", "out"] if "--out" not in flags else []), *flags, says=says)
    assert sorted(p.name for p in Path().iterdir() if p.name != "cache") == ["file", "there"]


def test_pictures_of_several_sizes(onnx_path: Path, tmp_path: Path) -> None:
    """The advice fits the model, not the first picture; and following it works."""
    root = write_folder(tmp_path / "photos", build_real(test_counts=(2, 2, 2), size=20))
    Image.new("RGB", (24, 30)).save(root / "train" / "class 0" / "000.png")
    message = refused(onnx_path, "--data", root, "--out", "out", says=r"class 0/000\.png: expected a square .*24x30")
    flags = ["--size", "8", "--resize", "crop"]
    assert f": pass {' '.join(flags)}, since" in message
    assert call(onnx_path, "--data", root, "--out", "out", "--no-speed", *flags).exit_code == 0


def test_other_classes(data: RealData) -> None:
    shape = {"channels": 3, "size": SIZE, "class_count": 3}

    def message(classes: Sequence[str]) -> str:
        arguments: Any = SimpleNamespace(open=lambda settings: data)
        with pytest.raises(UserError) as caught:
            matching_data.open_fitting(
                arguments, Settings(), matching_data.Taker(name="m.onnx", **shape, classes=tuple(classes))
            )
        return str(caught.value)

    assert message(["class 0", "class 2", "class 1"]) == (
        "m.onnx and tiny have the same classes in another order: label 1 is 'class 2' in the first and 'class 1' in "
        "the second"
    )
    assert message(["class 0", "x", "class 2"]) == (
        "m.onnx has 3 classes, tiny 3: only m.onnx has 'x'; only tiny has 'class 1'"
    )


def test_no_test_split(onnx_path: Path, folder: Path) -> None:
    says = "train has no test split to measure on: pass --holdout with the fraction"
    refused(onnx_path, "--data", folder / "train", "--out", "out", says=says)
    result = call(onnx_path, "--data", folder / "train", "--out", "out", "--holdout", "0.3", "--no-speed", "--json")
    assert json.loads(result.stdout)["data"]["images"] == 2 + 2 + 3


def test_students_that_do_not_fit(onnx_path: Path, folder: Path) -> None:
    flags = [onnx_path, "--data", folder, "--out", "out", "--against"]
    small = write_student(Path("s.safetensors"), build_real(size=4), NetworkSettings(width=4, depth=1), epochs=0)
    refused(*flags, small, says=r"the student takes 3x4x4 images and has 3 classes, the model 3x8x8 images and has 3")
    few = write_student(Path("f.safetensors"), build_real((5, 5)), epochs=0)
    refused(*flags, few, says=r"the student takes 3x8x8 images and has 2 classes, the model 3x8x8 images and has 3")
    renamed = build_real()
    object.__setattr__(renamed, "classes", ("a", "b", "c"))
    other = write_student(Path("o.safetensors"), renamed, epochs=0)
    refused(*flags, other, says=r"--against o\.safetensors has 3 classes, tiny 3: only .* has 'a', 'b', 'c'; only tiny")
    refused(*flags, onnx_path, says="is not a readable safetensors file")


def test_the_new_folder_goes_only_while_it_is_empty() -> None:
    with pytest.raises(KeyError), validate.new_folder(Path("a")):
        raise KeyError
    assert not Path("a").exists()
    with pytest.raises(FileNotFoundError), validate.new_folder(Path("a")):
        (Path("a/kept").touch(), Path("no/such").touch())
    assert Path("a/kept").exists()


def test_accuracies_outlive_an_interruption_of_the_timing(
    onnx_path: Path, data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "time_device", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(onnx_path, data, effort=timing.Effort())
    assert json.loads(Path("out/validation.json").read_text())["providers"][0]["images"] == sum(COUNTS)


@pytest.fixture
def quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls, no compiler, no processes of their own."""
    few = {"calls": 3, "seconds": 0, "warm_calls": 1, "warm_seconds": 0, "block_seconds": 0, "pause": 0}
    known = {"cold_start_seconds": 0.25, "memory_bytes": 7 << 20, "failed": ""}
    monkeypatch.setattr(timing, "Effort", functools.partial(timing.Effort, **few))
    monkeypatch.setattr(timing, "footprint", lambda job: known)
    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "no C++ compiler found")


class Page(HTMLParser):
    """Addresses, and that every element is closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.sources = list[str](), list[str](), list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_whole_command(
    onnx_path: Path, student_path: Path, folder: Path, quick_speed: None, tmp_path: Path
) -> None:
    flags = ["--data", folder, "--against", student_path, "--batches", "2,4", "--threads", "1"]
    result = call(onnx_path, *flags, "--max-accuracy-drop", "0.5", columns=80)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "validation-student"  # the default
    value = json.loads((out / "validation.json").read_text())
    (section,) = value["speed"]
    assert section["device"].startswith("cpu (")
    assert section["device"].endswith("1 threads)")
    assert [row["name"] for row in section["rows"]] == ["ONNX Runtime cpu", "torch eager", "torch.compile"]
    assert [b["batch"] for b in section["rows"][0]["batches"]] == [1, 2, 4]
    assert section["rows"][0]["batches"][0]["times"].keys() == {"torch eager"}
    assert value["conditions"]["threads"] == 1
    text = result.stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for said in (
        "torch student, float32",
        "gate passed: no provider is more than 0.5 points below",
        "torch.compile was not timed: no C++ compiler found",
        "7 MiB",
        "0.250",
        "validation-student/report.html",
    ):
        assert said in text, said
    page = (out / "report.html").read_text()
    assert "script" not in Page(page).tags
    assert "http" not in page
    assert all(source.startswith("data:image/png;base64,") for source in Page(page).sources)
    assert len(Page(page).sources) == 2  # confusions, speed
    for said in (value["model"]["sha256"], value["data"]["fingerprint"], section["device"], "no C++ compiler found"):
        assert said in page
    assert call(onnx_path, *flags).exit_code == 2  # the default folder is there already


def test_json_alone_on_stdout(onnx_path: Path, folder: Path, quick_speed: None) -> None:
    result = call(onnx_path, "--data", folder, "--batches", "1", "--json", "--out", "out")
    assert result.stdout.count("\n") == 1
    assert result.stdout.isascii()
    assert [row["name"] for row in json.loads(result.stdout)["speed"][0]["rows"]] == ["ONNX Runtime cpu"]


def a_result(classes: int, **changes: Any) -> dict[str, Any]:
    """What `validate` returns, made up."""
    rng = np.random.default_rng(classes)
    confusion = (rng.integers(0, 3, (classes, classes)) + 40 * np.eye(classes, dtype=int)).tolist()
    names = [f"class {k}" for k in range(classes)]
    counts = [sum(row) for row in confusion]
    accuracy = sum(confusion[k][k] for k in range(classes)) / sum(counts)
    row = {
        "name": "ONNX Runtime cpu",
        "provider": "cpu",
        "device": "cpu (a CPU, 4 threads)",
        "placement": {},
        "images": sum(counts),
        "correct": sum(confusion[k][k] for k in range(classes)),
        "accuracy": accuracy,
        "non_finite": 0,
        "confusion": confusion,
        "classes": measured.by_class(confusion, counts, names),
        "accuracy_drop": None,
    }
    data = {"name": "made up", "fingerprint": "f" * 64, "images": sum(counts), "classes": names, "skipped": 2}
    model: dict[str, Any] = {"path": "m.onnx", "bytes": 10, "sha256": "0" * 64, "opset": 20, "layout": "uint8-nchw"}
    model |= {"channels": 1, "size": 8, "output": "logits", "classes": classes, "metadata": {}}
    result = {"model": model, "data": data, "student": None, "reference": None, "providers": [row], "left_out": {}}
    result |= {"max_accuracy_drop": None, "conditions": {"threads": 4, "versions": {"torch": "1"}}}
    return result | {"speed": None, "complete": True, "failures": []} | changes


def test_names_are_harmless_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    result = a_result(3)
    for row, name in zip(result["providers"][0]["classes"], ("\x1b[31mred", "x" * 300, "a\nb"), strict=True):
        row["class"] = name
    said = "; ".join(worst_confusions(result["providers"][0]))
    assert said.isprintable()
    assert "x" * 41 not in said
    assert "x" * 39 + "…" in said


def test_an_unfinished_report_says_so(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", a_result(2, complete=False))
    assert "Timing was not finished" in (tmp_path / "r.html").read_text()
    write_report(tmp_path / "r.html", a_result(2))
    assert "Timing was not finished" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("accuracy", [float("nan"), -1.0, 97.0, 10**400])
def test_an_impossible_recorded_accuracy_is_damage(accuracy: Any, onnx_path: Path, folder: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[0].value)
    about["student"]["test_accuracy"] = accuracy
    model.metadata_props[0].value = json.dumps(about)
    onnx.save_model(model, "m.onnx")
    result = call(Path("m.onnx"), "--data", folder, "--out", "o", "--no-speed", "--max-accuracy-drop", "0")
    assert result.exit_code == 2
    assert "its 'ncfmkit' metadata: ValueError('student.test_accuracy" in result.stderr
    assert not Path("o").exists()


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_reports_of_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    result = a_result(classes)
    write_report(tmp_path / "r.html", result)
    page = (tmp_path / "r.html").read_text()
    Page(page)
    assert page.count('<td class="text" data-label="class">') == classes + (10 if classes > 20 else 0)
    assert f"all {classes} classes" in page or classes <= 20
    assert "2 unreadable images" in page
    console = Console(width=80, file=io.StringIO())
    console.print(tables(result))


@pytest.mark.parametrize("classes", [2, 10, 40, 150])
def test_pictures_of_confusions(classes: int) -> None:
    names = [f"<b>$x$ 犬 {'long ' * 9}{k}" for k in range(classes)]
    confusion = np.eye(classes, dtype=int).tolist()
    confusion[0] = [0] * classes  # every image of the class had scores that were not finite
    picture = Image.open(io.BytesIO(confusion_picture(confusion, names)))
    assert picture.format == "PNG"
    assert 300 < picture.height <= 1300


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    timed = {"batch": 1, "calls": 50, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "images_per_second": 1000.0}
    row: dict[str, Any] = {
        "name": "ONNX Runtime cpu",
        "absent": "",
        "failed": "no room",
        "batches": [timed | {"times": {}}],
    }
    row |= dict.fromkeys(("cold_start_seconds", "engine_build_seconds", "compile_seconds", "memory_bytes"))
    section = {"device": "cpu (a CPU)", "memory_is": "peak", "largest_batch": 1, "rows": [row]}
    for others, said in ((0.24, True), (0.01, False), (None, False)):
        result = a_result(2, speed=[section | {"others_cpu": others, "stopped": "batch 8: MemoryError: no room"}])
        write_report(tmp_path / "r.html", result)
        page = (tmp_path / "r.html").read_text()
        assert ("Other processes used 24% of the CPUs meanwhile" in page) == said
        assert "Timing stopped at batch 8: MemoryError: no room." in page
        assert "ONNX Runtime cpu: no cold start and memory: no room." in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    result = a_result(2)
    evil = "<script>alert('x')</script>&\"犬$"
    result["data"]["classes"] = [evil, "b"]
    result["providers"][0]["classes"][0]["class"] = evil
    result["data"]["name"] = result["model"]["path"] = result["model"]["metadata"]["tool"] = evil
    result["left_out"] = {"cuda": evil}
    result["failures"] = [evil]
    write_report(tmp_path / "r.html", result)
    page = Page((tmp_path / "r.html").read_text())
    assert "script" not in page.tags


def test_settings_are_only_those_of_the_data() -> None:
    """The data's flags reach them as in other commands."""
    settings = setup.make_settings("x", None, {"data.size": "8", "data.holdout": "0.2"})
    assert settings.data == DataSettings(size=8, holdout=0.2)
