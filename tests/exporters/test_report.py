"""The report of a validation: few and many classes, hostile names, a busy machine, an unfinished run."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Page
from rich.console import Console

from ncfmkit.exporters import report
from ncfmkit.exporters.accuracy import by_class
from ncfmkit.exporters.contract import NoMetadata
from ncfmkit.exporters.plots import confusion_plot
from ncfmkit.exporters.report import tables, worst_confusions, write_report
from ncfmkit.exporters.results import Conditions, DataFacts, ModelFacts, ProviderRun, Validation
from ncfmkit.exporters.timing import SpeedRow, SpeedSection, Timing


def provider_run(confusion: Any, names: tuple[str, ...]) -> ProviderRun:
    counts = [sum(row) for row in confusion]
    correct = sum(confusion[k][k] for k in range(len(names)))
    return ProviderRun(
        name="ONNX Runtime cpu",
        provider="cpu",
        device="cpu (a CPU, 4 threads)",
        placement={},
        images=sum(counts),
        correct=correct,
        accuracy=correct / sum(counts),
        non_finite=0,
        confusion=confusion,
        classes=by_class(confusion, counts, names),
        accuracy_drop=None,
    )


def a_result(classes: int, names: tuple[str, ...] = (), **changes: Any) -> Validation:
    """What `validate` returns, made up."""
    rng = np.random.default_rng(classes)
    found = rng.integers(0, 3, (classes, classes)) + 40 * np.eye(classes, dtype=int)
    names = names or tuple(f"class {k}" for k in range(classes))
    row = provider_run(tuple(map(tuple, found.tolist())), names)
    result = Validation(
        model=ModelFacts(
            path="m.onnx",
            bytes=10,
            sha256="0" * 64,
            opset=20,
            layout="uint8-nchw",
            channels=1,
            size=8,
            output="logits",
            classes=classes,
            metadata=NoMetadata(),
        ),
        data=DataFacts(
            name="made up", fingerprint="f" * 64, images=row.images, classes=names, size=8, channels=1, skipped=2
        ),
        student=None,
        reference=None,
        providers=(row,),
        left_out={},
        max_accuracy_drop=None,
        conditions=Conditions(threads=4, versions={"torch": "1", "numpy": "2"}, batch=256),
        speed=None,
        complete=True,
        failures=(),
    )
    return result.model_copy(update=changes)


def page_of(result: Validation, folder: Path) -> str:
    write_report(folder / "r.html", result)
    return (folder / "r.html").read_text()


def test_worst_confusions_in_words() -> None:
    row = provider_run(((800, 200, 0), (90, 910, 0), (0, 200, 800)), ("cat", "dog", "ox"))
    assert worst_confusions(row, most=2) == ["cat taken for dog: 200 of 1,000", "ox taken for dog: 200 of 1,000"]
    assert len(worst_confusions(row)) == 3  # no pair that never happened


def test_names_are_harmless_in_a_terminal() -> None:
    result = a_result(3, ("\x1b[31mred", "x" * 300, "a\nb"))
    said = "; ".join(worst_confusions(result.providers[0]))
    assert said.isprintable()
    assert "x" * 41 not in said
    assert "x" * 39 + "…" in said


def test_an_unfinished_report_says_so(tmp_path: Path) -> None:
    assert "Timing was not finished" in page_of(a_result(2, complete=False), tmp_path)
    assert "Timing was not finished" not in page_of(a_result(2), tmp_path)


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_reports_of_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    result = a_result(classes)
    page = page_of(result, tmp_path)
    Page(page)
    assert page.count('<td class="text" data-label="class">') == classes + (10 if classes > 20 else 0)
    assert f"all {classes} classes" in page or classes <= 20
    assert ("A number in place of a name" in page) == (classes > 20)
    assert "2 unreadable images" in page
    assert "torch 1, numpy 2" in page
    console = Console(width=80, file=io.StringIO())
    console.print(tables(result))


@pytest.mark.parametrize(
    ("confusion", "said", "warned"),
    [
        (((49, 1), (0, 49)), "chance level 50.00%", "nly 99 test images: one image is 1.0 points of accuracy"),
        (((50, 0), (0, 50)), "chance level 50.00%", ""),
        (((80, 0), (0, 20)), "chance level 50.00%, always the most frequent class 80.00%", ""),
    ],
)
def test_what_an_accuracy_is_worth(confusion: Any, said: str, warned: str, tmp_path: Path) -> None:
    """Chance, and a warning below 100 images, on the page and in the terminal."""
    result = a_result(2)
    row = provider_run(confusion, result.data.classes)
    data = result.data.model_copy(update={"images": row.images})
    result = result.model_copy(update={"providers": (row,), "data": data})
    shown = io.StringIO()
    Console(width=300, file=shown).print(tables(result))
    for text in (page_of(result, tmp_path), shown.getvalue()):
        assert said in text
        assert ("always the most" in text) == ("always the most" in said)
        assert ("one image is" in text) == bool(warned)
        assert warned in text


@pytest.mark.parametrize("classes", [2, 10, 40, 150])
def test_plots_of_confusions(classes: int) -> None:
    names = tuple(f"<b>$x$ 犬\x1b {'long ' * 9}{k}" for k in range(classes))
    found = np.eye(classes, dtype=int).tolist()
    found[0] = [0] * classes  # every image of the class had scores that were not finite
    drawn = confusion_plot(tuple(map(tuple, found)), names, name="confusion-1")
    for svg, named in ((drawn.wide, 60), (drawn.narrow, 20)):
        Page(svg)
        assert svg.count("&lt;b&gt;$x$ 犬") == (2 * classes if classes <= named else 0)
        assert "\x1b" not in svg
        if classes < 100:  # else it is a label number
            assert (">100</text>" in svg) == (classes <= 10)  # the figures of the cells
        fonts = re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", svg)
        assert fonts
        assert min(map(float, fonts)) >= 7.5  # of a picture whose units are 4/3 pixels on the page
    if classes <= 60:  # the colors are the page's
        assert "fill: var(--series-1)" in drawn.wide
        assert "#1f5a99" not in drawn.wide


def a_section(**changes: Any) -> SpeedSection:
    timed = Timing(batch=1, calls=50, p50_ms=1.0, p95_ms=2.0, p99_ms=3.0, images_per_second=1000.0, times={})
    stopped = "batch 8: MemoryError: no room"
    row = SpeedRow(name="ONNX Runtime cpu", stopped=stopped, failed="no room", batches=(timed,))
    section = SpeedSection(device="cpu (a CPU)", memory_is="peak", largest_batch=1, rows=(row,), others_cpu=None)
    return section.model_copy(update=changes)


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    for others, said in ((0.24, True), (0.01, False), (None, False)):
        section = a_section(others_cpu=others)
        page = page_of(a_result(2, speed=(section,)), tmp_path)
        assert ("Other processes used 24% of the CPUs meanwhile" in page) == said
        assert "ONNX Runtime cpu stopped at batch 8: MemoryError: no room." in page
        assert "ONNX Runtime cpu: no cold start and memory: no room." in page
        assert Page(page).tags.count("svg") == 4


@pytest.mark.parametrize("copied", [True, False])
def test_where_outputs_are_when_timed_is_as_recorded(copied: bool) -> None:
    """Whatever the device is called."""
    text = report._timed_how(a_section(device="WebGPU of a name", outputs_copied=copied))
    assert ("outputs copied to the host" in text) == copied
    assert ("inputs and outputs in device memory" in text) != copied


def test_nothing_timed_has_no_plot(tmp_path: Path) -> None:
    section = a_section(rows=(SpeedRow(name="ONNX Runtime cpu", absent="MemoryError: no room"),))
    page = page_of(a_result(2, speed=(section,)), tmp_path)
    assert Page(page).tags.count("svg") == 2
    assert "ONNX Runtime cpu was not timed: MemoryError: no room." in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\"犬$\x00"
    result = a_result(2, (evil, "b"), left_out={"cuda": evil}, failures=(evil,))
    data = result.data.model_copy(update={"name": evil})
    model = result.model.model_copy(update={"path": evil})
    page = Page(page_of(result.model_copy(update={"data": data, "model": model}), tmp_path))
    assert "script" not in page.tags
