"""Presents a validation: tables for the terminal, and one self-contained HTML page.

Everything here reads the result as stored in `validation.json`; nothing needs torch.

Shapes: K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ncfmkit.exporters.contract import LAYOUTS, ModelMetadata
from ncfmkit.exporters.plots import (
    FIGURED,
    NAMED,
    TORCH_COLORS,
    confusion_plot,
    milliseconds,
    shortened_name,
    speed_plot,
)
from ncfmkit.exporters.results import ProviderRun, StudentRun, Validation
from ncfmkit.exporters.timing import SpeedSection
from ncfmkit.files import format_bytes
from ncfmkit.progress import plural
from ncfmkit.reports.layout import write_page
from ncfmkit.reports.scores import ABSENT

BUSY = 0.05  # share of the CPUs used by others, from which on the report says so
FEW_IMAGES = 100  # test images, below which the report warns
UNEVEN = 1.25  # times the even share, from which on the share of the most frequent class is told
WORST = 5  # confusions that are listed in words
SHOWN_CLASSES = 20  # rows of the table of classes that are not folded away
LONGEST_IN_TEXT = 40  # characters of a class name


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.2f}"


def _points(drop: float | None) -> str:
    return ABSENT if drop is None else f"{round(drop, 2) + 0.0:.2f}"


def _seconds(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.{3 if value < 1 else 1}f}"


def worst_confusions(row: ProviderRun, *, most: int = WORST) -> list[str]:
    """The classes most often taken for another one, such as `cat taken for dog: 183 of 1,000`."""
    confusion_KK = np.array(row.confusion)
    np.fill_diagonal(confusion_KK, 0)
    order = np.argsort(-confusion_KK, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(confusion_KK)) for place in order if confusion_KK.flat[place]]
    names = [shortened_name(of_class.name, LONGEST_IN_TEXT) for of_class in row.classes]
    return [
        f"{names[true]} taken for {names[guess]}: {confusion_KK[true, guess]:,} of {row.classes[true].images:,}"
        for true, guess in pairs
    ]


def measured_on(result: Validation) -> str:
    """The images that accuracies are of."""
    data = result.data
    return f"all {data.images:,} test images of {data.name} (fingerprint {data.fingerprint[:12]})"


def chance_line(result: Validation) -> str:
    """What guessing reaches, where the classes are uneven also what always the same answer does."""
    largest = max(of_class.images for of_class in result.providers[0].classes) / result.data.images
    even = 1 / len(result.data.classes)
    line = f"chance level {_percent(even)}%"
    return line if largest < UNEVEN * even else f"{line}, always the most frequent class {_percent(largest)}%"


def few_images_line(result: Validation) -> str:
    """A warning where an accuracy is of too few images to mean much, else ""."""
    count = result.data.images
    if count >= FEW_IMAGES:
        return ""
    return f"only {plural(count, 'test image')}: one image is {100 / count:.1f} points of accuracy"


def gate_line(result: Validation) -> str:
    """Whether the gate holds, and what it is."""
    limit, reference = result.max_accuracy_drop, result.reference
    if result.failures:
        return f"failed: {'; '.join(result.failures)}"
    if limit is None or reference is None:
        return "not set: --max-accuracy-drop POINTS sets it"
    what = f"{100 * reference.accuracy:.2f}%, {reference.what}"
    return f"passed: no provider is more than {limit:g} points below {what}"


def tables(result: Validation) -> RenderableType:
    """All of the result for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [_accuracy_table(result)]
    parts += [Text(f"{name} left out: {why}") for name, why in result.left_out.items()]
    row = result.providers[0]
    confusions = worst_confusions(row, most=2)
    weakest = min(row.classes, key=lambda c: c.accuracy)
    lines = [f"weakest class: {shortened_name(weakest.name, LONGEST_IN_TEXT)}, {_percent(weakest.accuracy)}%"]
    lines += [f"most often confused: {'; '.join(confusions)}"] if confusions else []
    parts += [Text("; ".join(lines)), Text(f"gate {gate_line(result)}")]
    few = few_images_line(result)
    parts += [Text(few)] if few else []
    for section in result.speed or ():
        parts += [Text(), *_speed_parts(section)]
    return Group(*parts)


@dataclass(frozen=True)
class Cells:
    """A table: text, row by row."""

    columns: list[str]
    rows: list[list[str]]


def _filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Cells:
    """The columns in which there is anything, with their cells."""
    kept = [c for c in range(len(columns)) if not rows or any(row[c] not in ("", ABSENT) for row in rows)]
    return Cells([columns[c] for c in kept], [[row[c] for c in kept] for row in rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Group:
    """Figures with the text column `what`; figures are never broken, so a narrow terminal wraps the names."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    cells = _filled(columns, rows)
    for header in cells.columns:
        table.add_column(header, justify="left" if header == "what" else "right", no_wrap=header != "what")
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return Group(table, Text(caption))


def _accuracy_table(result: Validation) -> Group:
    columns = ("what", "accuracy\n%", "drop\npoints", "agreement\n%", "largest\ndifference")
    caption = f"accuracy: on {measured_on(result)}, {'; '.join(_devices(result))}; {chance_line(result)}"
    if result.reference:
        caption += f"\ndrop: below {_percent(result.reference.accuracy)}%, {result.reference.what}"
    if result.student:
        caption += f"\nagreement: same class as the student; largest difference: over all {result.model.output}"
    return _table(columns, _accuracy_cells(result), caption)


def _devices(result: Validation) -> list[str]:
    return list(dict.fromkeys(run.device for run in result.runs))


def _accuracy_cells(result: Validation) -> list[list[str]]:
    rows = [[run.name, _percent(run.accuracy), "", "", ""] for run in [result.student] if run]
    for run in result.providers:
        compared = ["", ""]
        if run.agreement is not None:
            largest = run.max_abs_difference
            compared = [_percent(run.agreement), ABSENT if largest is None else f"{largest:.3g}"]
        rows.append([run.name, _percent(run.accuracy), _points(run.accuracy_drop), *compared])
    return rows


SPEED_COLUMNS = ("images/s", "x eager", "x compiled", "p50 ms", "p95 ms", "p99 ms")
START_COLUMNS = ("cold start s", "engine build s", "compilation s", "memory")


def _speed_cells(section: SpeedSection) -> list[list[str]]:
    """Rows of batch, name and `SPEED_COLUMNS`; batch by batch, so that contenders stand below each other."""
    found = []
    for row in section.rows:
        for place, timed in enumerate(row.batches):
            ratios = [f"{timed.times[name]:.2f}" if name in timed.times else "" for name in TORCH_COLORS]
            percentiles = map(milliseconds, (timed.p50_ms, timed.p95_ms, timed.p99_ms))
            cells = [f"{timed.batch:,}", row.name, f"{timed.images_per_second:,.0f}", *ratios, *percentiles]
            found.append((place, cells))
    return [cells for _, cells in sorted(found, key=lambda pair: pair[0])]


def _start_cells(section: SpeedSection) -> list[list[str]]:
    return [
        [
            row.name,
            *map(_seconds, (row.cold_start_seconds, row.engine_build_seconds, row.compile_seconds)),
            ABSENT if row.memory_bytes is None else format_bytes(row.memory_bytes),
        ]
        for row in section.rows
        if row.batches or row.cold_start_seconds is not None
    ]


def _calls(section: SpeedSection) -> str:
    calls = [timed.calls for row in section.rows for timed in row.batches]
    return "" if not calls else f"{min(calls):,}" if min(calls) == max(calls) else f"{min(calls):,} to {max(calls):,}"


def _timed_how(section: SpeedSection) -> str:
    where = "inputs and outputs in device memory"
    if section.outputs_copied:
        where = "inputs in device memory, outputs copied to the host, which is what waits for the GPU"
    text = f"{_calls(section)} calls each, in turns; {where}; images/s from the median"
    if any(row.name in TORCH_COLORS for row in section.rows):
        text += "; x eager, x compiled: speedup over the float32 student in torch"
    if section.device.startswith("cuda"):
        text += (
            "; TensorFloat-32 is off in torch and the CUDA provider, ONNX Runtime's TensorRT provider decides itself"
        )
    return text


def _started_how(section: SpeedSection) -> str:
    text = (
        "cold start: opening the model and its first answer in a separate process; memory, up to batch "
        f"{section.largest_batch:,}: {section.memory_is}"
    )
    if any(row.compile_seconds is not None for row in section.rows):
        text += "; compilation: the first calls of all batch sizes, using what Inductor's disk cache already had"
    return text


def speed_notes(section: SpeedSection) -> list[str]:
    """What hampered the timing."""
    notes = [f"{row.name} was not timed: {row.absent}" for row in section.rows if row.absent]
    notes += [f"{row.name} stopped at {row.stopped}" for row in section.rows if row.stopped]
    others = section.others_cpu or 0
    if others > BUSY:
        notes.append(
            f"other processes used {others:.0%} of the CPUs meanwhile, so ratios are unreliable: torch's threads wait "
            "for each other; repeat on an idle machine, or with fewer --threads"
        )
    return notes + [f"{row.name}: no cold start and memory: {row.failed}" for row in section.rows if row.failed]


def _speed_parts(section: SpeedSection) -> list[RenderableType]:
    columns = ["batch", "what", *(c.replace(" ", "\n", 1) for c in SPEED_COLUMNS)]
    timings = _table(columns, _speed_cells(section), _timed_how(section))
    columns = ["what", *("\n".join(c.rsplit(" ", 1)) for c in START_COLUMNS)]
    starts = _table(columns, _start_cells(section), _started_how(section))
    return [Text(f"Speed on {section.device}", style="bold"), timings, *map(Text, speed_notes(section)), Text(), starts]


def write_report(path: Path, result: Validation) -> None:
    """Writes the page: one file without scripts or external addresses."""
    first = result.providers[0]
    title = f"{Path(result.model.path).name} on {result.data.name}: {_percent(first.accuracy)}% right"
    if len(result.providers) > 1:
        title += f" on {first.provider}"
    write_page(
        path,
        "validation.html",
        title=title,
        result=result,
        ours=result.model.metadata if isinstance(result.model.metadata, ModelMetadata) else None,
        layout=LAYOUTS[result.model.layout].summary,
        measured=measured_on(result),
        chance=chance_line(result),
        few_images=few_images_line(result),
        gate=gate_line(result),
        devices=_devices(result),
        accuracy=_accuracy_cells_of_page(result),
        percent=_percent,
        format_bytes=format_bytes,
        **classes_and_speed(result, [(row.provider, row) for row in result.providers], result.speed or ()),
    )


def classes_and_speed(
    result: Validation, runs: Sequence[tuple[str, ProviderRun]], speed: Sequence[SpeedSection]
) -> dict[str, object]:
    """What `validation_classes.html` and `validation_speed.html` take.

    Args:
        result: whose data and student these are.
        runs: of models on these data, each with a name.
        speed: of these runs, by device.
    """
    classes, first = class_cells(result.student, runs), runs[0][1]
    weakest = np.argsort([of_class.accuracy for of_class in first.classes], kind="stable")[: SHOWN_CLASSES // 2]
    drawn: dict[object, str] = {}  # the run whose confusions are drawn, by the confusions
    for name, row in runs:
        drawn.setdefault(row.confusion, name)
    return {
        "runs": runs,
        "speed": speed,
        "class_names": result.data.classes,
        "classes": classes,
        "weakest": [classes.rows[k] for k in weakest] if len(classes.rows) > SHOWN_CLASSES else None,
        "drawn": drawn,
        "figured": len(result.data.classes) <= FIGURED[False],
        "numbered": len(result.data.classes) > NAMED[True],
        # what the templates ask for, row by row
        "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
        "worst_confusions": worst_confusions,
        "confusion_plot": confusion_plot,
        "speed_plot": speed_plot,
        "speed_cells": lambda section: _filled(
            ["what", "batch", *SPEED_COLUMNS], [[name, batch, *cells] for batch, name, *cells in _speed_cells(section)]
        ),
        "start_cells": lambda section: _filled(["what", *START_COLUMNS], _start_cells(section)),
        "calls": _calls,
        "timed_how": _timed_how,
        "started_how": _started_how,
        "notes": speed_notes,
    }


def _accuracy_cells_of_page(result: Validation) -> Cells:
    columns = ("what", "device", "accuracy %", "drop, points", "agreement %", "largest difference")
    pairs = zip(_accuracy_cells(result), result.runs, strict=True)
    return _filled(columns, [[cells[0], run.device, *cells[1:]] for cells, run in pairs])


def class_cells(student: StudentRun | None, runs: Sequence[tuple[str, ProviderRun]]) -> Cells:
    """The accuracy of each class, by run."""
    columns = [("student", student.confusion)] if student else []
    columns += [(name, run.confusion) for name, run in runs]
    rows = [
        [of_class.name, f"{of_class.images:,}", *(_percent(c[k][k] / of_class.images) for _, c in columns)]
        for k, of_class in enumerate(runs[0][1].classes)
    ]
    return Cells(["class", "test images", *(f"{name} %" for name, _ in columns)], rows)
