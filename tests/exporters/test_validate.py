"""`validate`: accuracy against a naive count, the gate, providers that do not load, foreign models, the command."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest
from conftest import build_real, write_student
from exports import Page, foreign_model, foreign_scores, naive_count, opened
from PIL import Image
from typer.testing import CliRunner, Result

from ncfmkit import runtime
from ncfmkit.cli import main
from ncfmkit.config import NetworkSettings
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.exporters import providers, sessions, timing, validate
from ncfmkit.exporters.results import ProviderRun, Reference, Validation
from ncfmkit.exporters.validate import ValidationConfig
from ncfmkit.extras import install
from ncfmkit.real.store import RealData

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


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


def run(model: Path, data: RealData, **config: Any) -> Validation:
    """Without timing, unless `speed` asks for it."""
    return validate.validate(model, data=opened(data), **{"out": "out", "speed": False, **config})


def call(*arguments: Any, columns: int = 200) -> Result:
    texts = ["validate", *map(str, arguments)]
    return CliRunner().invoke(main.app, texts, prog_name="ncfmkit", env={"COLUMNS": str(columns)})


def refused(*arguments: Any, says: str) -> str:
    message = commands.refused("validate", *arguments, says=says)
    assert not Path("out").exists()
    return message


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


def test_an_export_is_as_accurate_as_its_student(onnx_path: Path, student_path: Path, data: RealData) -> None:
    result = run(onnx_path, data, against=student_path, max_accuracy_drop=0.0)
    assert data.test is not None
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    correct, _, confusion = naive_count(session.run(None, {"images": np.array(data.test.images)})[0], data.test.labels)
    (row,) = result.providers
    assert (row.correct, [*map(list, row.confusion)], row.images) == (correct, confusion, sum(COUNTS))
    assert [c.images for c in row.classes] == list(COUNTS)
    assert sum(c.correct for c in row.classes) == correct
    assert (row.agreement, row.disagreements, row.accuracy_drop, row.placement) == (1.0, 0, 0.0, {})
    assert row.max_abs_difference is not None
    assert 0 < row.max_abs_difference < 1e-4
    assert result.student is not None
    assert result.student.correct == correct
    assert (result.failures, result.speed, result.left_out) == ((), None, {})
    assert result.model.opset == onnx.load_model(onnx_path).opset_import[0].version
    assert json.loads(Path("out/validation.json").read_text()) == result.to_dict()
    assert Validation.read(Path("out/validation.json")) == result
    assert sorted(p.name for p in Path("out").iterdir()) == ["report.html", "validation.json"]


def test_without_a_student_the_recorded_accuracy_is_the_reference(
    onnx_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(onnx_path, data)
    (row,) = result.providers
    assert result.reference is not None
    assert result.reference.accuracy == 0.75  # the metadata's
    assert row.accuracy_drop == pytest.approx(100 * (0.75 - row.accuracy))
    assert row.agreement is None
    assert "agreement" not in json.loads(Path("out/validation.json").read_text())["providers"][0]
    assert "as recorded in the model, which does not say on which images" in capsys.readouterr().err


def test_a_student_that_is_not_the_models_own_is_told(
    onnx_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_student(Path("other.safetensors"), data, NetworkSettings(width=4, depth=1), epochs=0)
    result = run(onnx_path, data, against=other)
    assert result.providers[0].disagreements
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
        row = ProviderRun(
            name="ONNX Runtime cpu",
            device="cpu",
            provider="cpu",
            placement={},
            classes=(),
            images=2,
            correct=1,
            accuracy=0.5,
            non_finite=0,
            confusion=((1, 0), (1, 0)),
            accuracy_drop=drop,
        )
        return validate.accuracy_failures(None, [row], Reference(accuracy=0.5, what="the student's"), limit)

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
    result = call(wrong, "--data", folder, *flags)
    assert result.exit_code == 1
    message = result.stderr.split("ncfmkit: ")[1]
    assert re.search(r"cpu: accuracy .*\ntwin: accuracy ", message)
    assert message.count("allowed are 0") == 2
    assert "twin: the same as cpu" in Path("out/report.html").read_text()


@pytest.mark.skipif(not NO_GPU, reason="needs an ONNX Runtime without CUDA")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", r"no CUDAExecutionProvider: .*pip install .*onnxruntime-gpu.*\(the extra 'gpu'\)"),
        ("cpu,tensorrt", r"no TensorrtExecutionProvider: .*pip install .*tensorrt.*\(the extra 'tensorrt'\)"),
    ],
)
def test_a_provider_that_does_not_load_is_an_error(onnx_path: Path, folder: Path, name: str, says: str) -> None:
    refused(onnx_path, "--data", folder, "--provider", name, "--out", "out", says=says)


@pytest.mark.skipif(not NO_GPU, reason="needs an ONNX Runtime without CUDA")
def test_all_lists_what_does_not_load(onnx_path: Path, folder: Path) -> None:
    result = call(onnx_path, "--data", folder, "--provider", "all", "--no-speed", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["providers"][0]["provider"] == "cpu"
    assert [*(row["provider"] for row in value["providers"]), *value["left_out"]] == list(sessions.PROVIDERS)
    assert {"cuda", "tensorrt"} <= set(value["left_out"])
    assert install("gpu") in value["left_out"]["cuda"]
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
    assert result.left_out["tensorrt"] == "ONNX Runtime placed 3 Conv on CPU instead of tensorrt"
    with pytest.raises(UserError, match="instead of cuda"):
        run(onnx_path, data, provider="cuda", out=Path("out2"))


def test_an_engine_runs_on_tensorrt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(validate, "open_model", lambda path, provider, **options: opened.append(provider))
    for provider in (None, "all", "tensorrt"):
        models, left_out = validate.open_models(
            ValidationConfig(model=Path("a.engine"), out=Path("o"), provider=provider)
        )
        assert ([(m.provider, m.built) for m in models], left_out) == ([("tensorrt", None)], {})
    assert opened == ["tensorrt"] * 3
    with pytest.raises(UserError, match=r"--provider cpu: a\.engine .*only tensorrt"):
        validate.open_models(ValidationConfig(model=Path("a.engine"), out=Path("o"), provider="cpu"))


def test_whether_opening_built_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's TensorRT keeps engines beside the model: only the first opening builds."""
    runner = SimpleNamespace(seconds=90.0)
    monkeypatch.setattr(validate, "open_model", lambda path, provider, **options: runner)
    config = ValidationConfig(model=Path("a.onnx"), out=Path("o"), provider="tensorrt")
    first = validate.open_models(config)[0][0]
    assert first.built
    assert validate._build_seconds(config.model, first, 2.0) == 88.0
    engines = sessions.engine_folder(config.model)
    engines.mkdir(parents=True)
    (engines / "x.engine").write_bytes(b"")
    second = validate.open_models(config)[0][0]
    assert second.built is False
    assert validate._build_seconds(config.model, second, 2.0) is None
    assert validate.open_models(ValidationConfig(model=Path("a.onnx"), out=Path("o")))[0][0].built is None


@pytest.mark.parametrize("layout", ["uint8-nchw", "uint8-nhwc", "float-nchw"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_any_classifier(layout: str, probabilities: bool, data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    model = foreign_model(Path("linear.onnx"), layout, probabilities=probabilities)
    declared = {"output": "probabilities"} if probabilities else {}
    result = run(model, data, **declared)
    assert data.test is not None
    correct, _, confusion = naive_count(foreign_scores(data.test.images), data.test.labels)
    (row,) = result.providers
    assert (row.correct, [*map(list, row.confusion)]) == (correct, confusion)
    assert 0 < correct < sum(COUNTS)
    assert (row.accuracy_drop, result.reference) == (None, None)
    assert (result.model.layout, result.model.output) == (layout, declared.get("output", "logits"))
    assert json.loads(Path("out/validation.json").read_text())["model"]["metadata"] == {}
    assert Validation.read(Path("out/validation.json")) == result
    said = " ".join(capsys.readouterr().err.split())
    how = "as declared" if declared else "assumed"
    assert f"output {declared.get('output', 'logits')} ({how}, --output)" in said
    assert "classes in the order of the data" in said


@pytest.mark.parametrize("layout", ["uint8-nhwc", "float-nchw"])
def test_a_student_is_fed_as_the_model_is(layout: str, data: RealData, student_path: Path) -> None:
    model = foreign_model(Path("linear.onnx"), layout, probabilities=True)
    result = run(model, data, against=student_path, output="probabilities")
    assert data.test is not None
    assert result.student is not None
    assert result.student.accuracy > 0.9  # as on its own pixels
    largest = result.providers[0].max_abs_difference
    assert largest is not None
    assert largest <= 1  # both are probabilities


def test_a_gate_needs_something_to_compare_with(folder: Path) -> None:
    model = foreign_model(Path("linear.onnx"))
    refused(
        *(model, "--data", folder, "--max-accuracy-drop", 1, "--out", "out"),
        says=r"linear\.onnx .*accuracy: pass --against STUDENT",
    )


def cut(model: Path, path: Path) -> Path:
    path.write_bytes(model.read_bytes()[:-500])
    return path


WRONG_MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "none": (lambda ours: Path("none.onnx"), r"no model at none\.onnx"),
    "text": (lambda ours: write(Path("text.onnx"), b"hello" * 100), r"text\.onnx is not an ONNX file, or is damaged"),
    "empty": (lambda ours: write(Path("empty.onnx"), b""), r"empty\.onnx"),
    "truncated": (lambda ours: cut(ours, Path("cut.onnx")), r"cut\.onnx .* truncated"),
    "opset": (lambda ours: foreign_model(Path("new.onnx"), opset=99), r"new\.onnx has opset 99"),
    "dtype": (lambda ours: foreign_model(Path("i.onnx"), dtype=6), r"uint8 or float32 .*'input' tensor\(int32\)"),
    "fixed batch": (lambda ours: foreign_model(Path("one.onnx"), batch=1), "takes 1 images at a time"),
    "any side": (lambda ours: foreign_model(Path("any.onnx"), side="S"), "expected square images .*fixed sides"),
    "classes": (lambda ours: foreign_model(Path("four.onnx"), classes=4), r"four\.onnx has 4 classes, tiny has 3"),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "says"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_wrong_models(onnx_path: Path, folder: Path, make: Callable[[Path], Path], says: str) -> None:
    refused(make(onnx_path), "--data", folder, "--out", "out", "--no-speed", says=says)


WRONG_FLAGS = {
    "provider": (["--provider", "gpu"], "'gpu': .*cpu, cuda, tensorrt"),
    "batches": (["--batches", "1,x"], "--batches '1,x': .*1 to 65,536"),
    "threads": (["--threads", "0"], "--threads: .*1 or more, got 0"),
    "drop": (["--max-accuracy-drop", "-1"], "--max-accuracy-drop: .*0 to 100.* got -1"),
    "drop nan": (["--max-accuracy-drop", "nan"], "--max-accuracy-drop: .*0 to 100.* got nan"),
    "input": (["--input", "nchw"], "--input: .*uint8-nchw, uint8-nhwc, float-nchw, got 'nchw'"),
    "output": (["--output", "scores"], "--output: .*logits, probabilities, got 'scores'"),
    "contradicted": (["--output", "probabilities"], "--output probabilities: the metadata of .* says logits"),
    "type": (["--input", "float-nchw"], "--input float-nchw: the metadata of .* says uint8-nchw"),
    "against": (["--against", "none.safetensors"], r"no student at none\.safetensors"),
    "out's parent": (["--out", "no/such"], "--out no/such: there is no folder no"),
    "out in a file": (["--out", "file/out"], "--out file/out: file is not a folder"),
    "out is there": (["--out", "there"], "there already exists: pass --force"),
    "size": (["--size", "9"], r"got 8x8: pass --size 8 --resize crop --color rgb, .*student\.onnx takes 8x8 rgb"),
    "other size": (["--size", "16", "--resize", "crop"], r"tiny has 16x16 rgb .* takes 8x8 rgb: pass --size 8 -"),
    "gray": (["--color", "gray"], "tiny has 8x8 gray .*: pass --color rgb, "),
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
    flags = ["--size", "8", "--resize", "crop", "--color", "rgb"]
    assert f": pass {' '.join(flags)}, since" in message
    assert call(onnx_path, "--data", root, "--out", "out", "--no-speed", *flags).exit_code == 0


def test_no_test_split(onnx_path: Path, folder: Path) -> None:
    says = "train has no test split .*--holdout"
    refused(onnx_path, "--data", folder / "train", "--out", "out", says=says)
    result = call(onnx_path, "--data", folder / "train", "--out", "out", "--holdout", "0.3", "--no-speed", "--json")
    assert json.loads(result.stdout)["data"]["images"] == 2 + 2 + 3


def test_students_that_do_not_fit(onnx_path: Path, folder: Path) -> None:
    flags = [onnx_path, "--data", folder, "--out", "out", "--against"]
    small = write_student(Path("s.safetensors"), build_real(size=4), NetworkSettings(width=4, depth=1), epochs=0)
    refused(*flags, small, says=r"student .*3x4x4 .*3 classes, .*model 3x8x8 .*3")
    few = write_student(Path("f.safetensors"), build_real((5, 5)), epochs=0)
    refused(*flags, few, says=r"student .*3x8x8 .*2 classes, .*model 3x8x8 .*3")
    renamed = build_real()
    object.__setattr__(renamed, "classes", ("a", "b", "c"))
    other = write_student(Path("o.safetensors"), renamed, epochs=0)
    refused(*flags, other, says=r"--against o\.safetensors .*3 classes, tiny 3: .*'a', 'b', 'c'; .*tiny")
    refused(*flags, onnx_path, says=r"student\.onnx is an ONNX model, not a student")


def test_accuracies_outlive_an_interruption_of_the_timing(
    onnx_path: Path, data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "time_device", interrupted)
    with pytest.raises(Interrupted, match="interrupted: out has no speeds yet"):
        run(onnx_path, data, speed=True)
    assert json.loads(Path("out/validation.json").read_text())["providers"][0]["images"] == sum(COUNTS)


@pytest.fixture
def quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls, no compiler, no processes of their own."""
    few: dict[str, Any] = {"calls": 3, "seconds": 0, "warm_calls": 1, "warm_seconds": 0, "block_seconds": 0, "pause": 0}
    known = timing.Footprint(cold_start_seconds=0.25, memory_bytes=7 << 20, failed="")
    monkeypatch.setattr(timing, "TimingConfig", functools.partial(timing.TimingConfig, **few))
    monkeypatch.setattr(timing, "footprint", lambda job: known)
    monkeypatch.setattr(runtime, "compiler_missing", lambda device: "no C++ compiler found")


def test_a_device_that_torch_lacks_is_timed_without_the_student(
    onnx_path: Path, student_path: Path, data: RealData, quick_speed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU in the role of a GPU of WebGPU."""
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setattr(providers, "offered_devices", lambda name: ["GPU 8086:1912"])
    monkeypatch.setattr(sessions.Session, "bound", lambda self, images: lambda: self(images))
    row = sessions.Provider(name="CPUExecutionProvider", extra="webgpu", device="webgpu", waits=False)
    monkeypatch.setitem(sessions.PROVIDERS, "webgpu", row)
    result = run(onnx_path, data, provider="cpu,webgpu", against=student_path, speed=True, batches=(1, 2))
    gpu = "WebGPU (GPU 8086:1912)"
    assert [one.device for one in result.providers][1] == gpu
    assert result.speed is not None
    both = {section.device: [row.name for row in section.rows] for section in result.speed}
    assert list(both.values()) == [["ONNX Runtime cpu", "torch eager", "torch.compile"], ["ONNX Runtime webgpu"]]
    assert list(both)[1] == gpu
    assert result.speed[1].memory_is == timing.MEMORY_IS["webgpu"]
    assert [section.outputs_copied for section in result.speed] == [False, True]
    page = Path("out/report.html").read_text()
    assert "inputs in device memory, outputs copied to the host" in page


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
    assert section["device"].endswith("1 thread)")
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
    assert all(source.startswith("#") for source in Page(page).sources)
    assert Page(page).tags.count("svg") == 4  # confusions and speed, for a screen and for a phone
    assert "Only 26 test images: one image is 3.8 points of accuracy." in page
    assert "26 test images; chance level 33.33%, always the most frequent class 42.31%." in page
    for said in (value["model"]["sha256"], value["data"]["fingerprint"], section["device"], "no C++ compiler found"):
        assert said in page
    assert call(onnx_path, *flags).exit_code == 2  # the default folder exists


def test_starts_and_builds_are_in_the_rows_of_what_was_started(
    onnx_path: Path, student_path: Path, data: RealData, quick_speed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_build_seconds", lambda path, model, cold_start: 7 + cold_start)
    result = run(onnx_path, data, against=student_path, speed=True, batches=[1])
    assert result.speed is not None
    rows = result.speed[0].rows
    assert [(row.name, row.cold_start_seconds, row.engine_build_seconds) for row in rows] == [
        ("ONNX Runtime cpu", 0.25, 7.25),
        ("torch eager", 0.25, None),
        ("torch.compile", None, None),
    ]


def test_json_alone_on_stdout(onnx_path: Path, folder: Path, quick_speed: None) -> None:
    result = call(onnx_path, "--data", folder, "--batches", "1", "--json", "--out", "out")
    assert result.stdout.count("\n") == 1
    assert result.stdout.isascii()
    assert [row["name"] for row in json.loads(result.stdout)["speed"][0]["rows"]] == ["ONNX Runtime cpu"]


@pytest.mark.parametrize("accuracy", [float("nan"), -1.0, 97.0, 10**400])
def test_an_impossible_recorded_accuracy_is_damage(accuracy: Any, onnx_path: Path, folder: Path) -> None:
    model = onnx.load_model(onnx_path)
    about = json.loads(model.metadata_props[-1].value)
    about["student"]["test_accuracy"] = accuracy
    model.metadata_props[-1].value = json.dumps(about)
    onnx.save_model(model, "m.onnx")
    result = call(Path("m.onnx"), "--data", folder, "--out", "o", "--no-speed", "--max-accuracy-drop", "0")
    assert result.exit_code == 2
    assert "its 'ncfmkit' metadata: student.test_accuracy: input should be " in result.stderr
    assert not Path("o").exists()
