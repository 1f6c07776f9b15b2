"""A comparison as people read it: words, table and page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import Page
from recorded import score
from rich.console import Console

from ncfmkit.comparison import ComparedOn, ComparedSet, Comparison, Difference
from ncfmkit.config import Settings, to_dict
from ncfmkit.reports.comparison import tables, verdicts, write_page
from ncfmkit.reports.curves import accuracy_dots
from ncfmkit.reports.strips import SetImages
from ncfmkit.run_records import Accuracy, Score

CLASSES = tuple(str(k) for k in range(10))


def students(name: str, values: list[float], *, per_class: int = 1, **changes: Any) -> Score:
    row = score("distilled", 0.5, n=len(values), images=10 * per_class, bytes_per_class=64.0 * per_class)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    last = Accuracy(mean=mean, std=std, values=tuple(values))
    return row.model_copy(update={"label": name, "last": last} | changes)


def difference(mean: float, p: float | None) -> Difference:
    ends = (None, None) if p is None else (mean - 0.01, mean + 0.01)
    return Difference(mean=mean, low=ends[0], high=ends[1], p=p, p_alone=p)


def compared(row: Score, than_first: Difference | None = None, *, soft: bool = False) -> ComparedSet:
    return ComparedSet(
        name=row.label,
        path=f"runs/{row.label}",
        manifest_sha256="ab" * 32,
        per_class=row.images // 10,
        soft_labels=soft,
        score=row,
        difference=than_first,
    )


def comparison(*sets: ComparedSet, **changes: Any) -> Comparison:
    settings = to_dict(Settings())
    content: dict[str, Any] = {
        "data": ComparedOn(name="digits", fingerprint="f" * 64, test=450, classes=CLASSES),
        "recipe": {name: settings[name] for name in ("seed", "network", "student")},
        "steps": 1200,
        "device": "cpu (EPYC)",
        "precision": "fp32",
        "versions": {"torch": "2.13.0"},
        "sets": sets,
    }
    return Comparison(**content | changes)


FIRST = compared(students("ours", [0.90, 0.91, 0.92]))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            compared(students("theirs", [0.8, 0.81, 0.82]), difference(-0.1, 0.0004)),
            "ours is better than theirs by 10.0 points (p < 0.001).",
        ),
        (
            compared(students("theirs", [0.93, 0.94, 0.95], per_class=5), difference(0.032, 0.0123)),
            "theirs is better than ours by 3.2 points (p = 0.012), with 5 times the bytes per class.",
        ),
        (  # a smaller set that is better says no more
            compared(students("theirs", [0.93, 0.94, 0.95], bytes_per_class=32.0), difference(0.032, 0.0123)),
            "theirs is better than ours by 3.2 points (p = 0.012).",
        ),
        (
            compared(students("theirs", [0.91, 0.90, 0.93]), difference(0.003, 0.05)),
            "No difference between theirs and ours can be seen with n = 3 (p = 0.05).",
        ),
        (
            compared(students("theirs", [0.91, 0.92, 0.93]), difference(0.01, None)),
            "All 3 students of theirs differ from those of ours by +1.0 points: differences without variance cannot be "
            "tested.",
        ),
    ],
)
def test_a_sentence_for_each_set(other: ComparedSet, says: str) -> None:
    assert verdicts(comparison(FIRST, other)) == [says]


def test_one_student_is_no_test() -> None:
    one = [compared(students("a", [0.9])), compared(students("b", [0.8]), difference(-0.1, None))]
    assert verdicts(comparison(*one)) == [
        "One student of each set: no difference can be tested; --repeats 5 trains 5 of each."
    ]


def test_no_sentence_before_the_second_set_is_there() -> None:
    assert verdicts(comparison(FIRST, left=("theirs",))) == []
    others_first = [compared(students("b", [0.9, 0.8])), compared(students("c", [0.9, 0.8]))]
    assert verdicts(comparison(*others_first, left=("a",))) == []


def printed(found: Comparison, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(tables(found))
    return " ".join(capture.get().replace("\u00a0", " ").split())


def test_the_table_of_a_terminal() -> None:
    other = compared(students("theirs", [0.8, 0.81, 0.82]), difference(-0.1, 0.0004))
    text = printed(comparison(FIRST, other, changed=("student.repeats",)))
    for expected in (
        "ours 1 64 91.0 ± 1.0 3",
        "theirs 1 64 81.0 ± 1.0 3 −10.0 −11.0 to −9.0 < 0.001",
        "ours is better than theirs",
        "students: convnet-2 width 64, 1,200 gradient steps, adamw, lr 0.001",
        "the recipe of the first set, with student.repeats 10",
        "not about the methods that made the files",
    ):
        assert expected in text
    assert "labels" not in text
    assert "steps set" not in text
    soft = compared(students("theirs", [0.8, 0.81, 0.82], steps=1224), difference(-0.1, 0.0004), soft=True)
    text = printed(comparison(FIRST, soft), width=120)
    assert "theirs 1 64 soft 1,224" in text
    assert "1,200 gradient steps, rounded up to whole epochs" in text


def images(ipc: int, classes: int = 10) -> SetImages:
    rng = np.random.default_rng(ipc)
    return SetImages(
        stored=rng.integers(0, 256, (ipc * classes, 3, 8, 8), np.uint8),
        labels=np.repeat(np.arange(classes), ipc),
        classes=[f"class <{k}>" for k in range(classes)],
        decoded={},
    )


def test_the_page(tmp_path: Path) -> None:
    other = compared(students("th<b>eirs", [0.8, 0.81, 0.82], per_class=5), difference(-0.1, 0.0004))
    page = Page(write_page(tmp_path / "compare.html", comparison(FIRST, other), [images(1), images(5)]))
    page.check_safe()
    for expected in (
        "digits: 2 sets compared",
        "ours is better than th<b>eirs by 10.0 points (p < 0.001).",
        "−11.0 to −9.0",
        "All 10 stored images.",
        "30 of 50 stored images: the first 3 of each class.",
        "Guessing gives 10%",
        "Accuracy by bytes per class",
        "450 of digits",
        "runs/ours",
        "Holm's correction",
    ):
        assert expected in page.text
    assert len(page.pictures()) == 20
    assert "Not finished" not in page.text


def test_the_page_of_equal_sizes_and_many_classes(tmp_path: Path) -> None:
    other = compared(students("theirs", [0.8, 0.81, 0.82]), difference(-0.1, 0.0004))
    found = comparison(FIRST, other, left=("third",))
    page = Page(write_page(tmp_path / "compare.html", found, [images(1, 40), images(4, 40)]))
    assert "Not finished: the students of third are not trained yet." in page.text
    assert "Accuracy by bytes" not in page.text
    assert "10 of 40 stored images: the first of the first 10 classes." in page.text
    assert "30 of 160 stored images: the first 3 of the first 10 classes." in page.text


@pytest.mark.parametrize("narrow", [False, True])
def test_every_student_is_a_dot_of_its_own(narrow: bool) -> None:
    """At its accuracy, in its set's row; equal ones at other heights."""
    rows = [students("a", [0.9] * 12), students("b", [0.95, 0.8, 0.9502])]
    figure = Figure(figsize=(9, 3))
    accuracy_dots(rows)(figure, narrow)
    (axis,) = figure.axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    means = [line for line in axis.lines if line.get_marker() != "o"]
    for row, line, mean in zip(rows, dots, means, strict=True):
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        assert sorted(x) == pytest.approx(sorted(100 * v for v in row.last.values))
        assert len({(round(a, 6), round(b, 6)) for a, b in zip(x, y, strict=True)}) == row.n
        assert np.ptp(y) < 0.7
        assert np.asarray(mean.get_xdata(), float) == pytest.approx(100 * row.last.mean)
    near = np.asarray(dots[1].get_ydata(), float)
    assert near[1] != near[2]  # 95 and 95.02
    assert [text.get_text() for text in axis.texts] == ["a", "b"]
