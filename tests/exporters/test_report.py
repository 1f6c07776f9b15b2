"""The report of a validation: few and many classes, hostile names, a busy machine, an unfinished run."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Page
from PIL import Image
from rich.console import Console

from ncfmkit.exporters import accuracy as measured
from ncfmkit.exporters.report import confusion_picture, tables, worst_confusions, write_report


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


def test_worst_confusions_in_words() -> None:
    classes = [{"class": name, "images": 1000} for name in ("cat", "dog", "ox")]
    row = {"confusion": [[800, 200, 0], [90, 910, 0], [0, 200, 800]], "classes": classes}
    assert worst_confusions(row, most=2) == ["cat taken for dog: 200 of 1,000", "ox taken for dog: 200 of 1,000"]
    assert len(worst_confusions(row)) == 3  # no pair that never happened


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
