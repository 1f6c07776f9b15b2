"""Presents a comparison of models: tables and plain words for the terminal, and one self-contained HTML page.

Everything here reads the result as `validation.json` holds it; nothing needs torch.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from ncfmkit.exporters.comparison import LEVEL
from ncfmkit.exporters.contract import LAYOUTS, ModelMetadata
from ncfmkit.exporters.plots import milliseconds, pareto
from ncfmkit.exporters.report import (
    ABSENT,
    chance_line,
    classes_and_speed,
    few_images_line,
    gate_line,
    measured_on,
    speed_notes,
)
from ncfmkit.exporters.results import ComparedRun, ModelComparison, Pair, ProviderRun
from ncfmkit.exporters.timing import COMPILED, EAGER, SpeedSection
from ncfmkit.files import format_bytes
from ncfmkit.progress import plural
from ncfmkit.reports.layout import write_page
from ncfmkit.reports.sections import Section, SectionPlot, SectionTable, for_page, for_terminal

FRONT = "*"  # behind the latency or the size of a run on its front
PERHAPS = "~"  # of a run that is on it, or is not, by chance
NO_MARK = "\u00a0"  # as long, so that figures stand below each other


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _points(difference: float) -> str:
    return "0.00" if round(difference, 2) == 0 else f"{difference:+.2f}".replace("-", "\u2212")


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def verdicts(found: ModelComparison) -> list[str]:
    """A sentence for each run but the reference: whether it is better or worse than that one, and how sure that is."""
    return [_verdict(pair, _reference(found)) for pair in found.pairs]


def _reference(found: ModelComparison) -> str:
    """What runs are compared with, in a sentence."""
    return "the student in torch" if found.models[0].student else found.reference


def _verdict(pair: Pair, reference: str) -> str:
    one, other = pair.only_right, pair.only_reference_right
    if one == other == 0:
        same = "give every image the same class" if pair.agreement == 1 else "are right on the same images"
        return f"{pair.name} and {reference} {same}."
    p = _p(pair.p)
    said = f"p {p}" if p.startswith("<") else f"p = {p}"
    if pair.p >= LEVEL:
        return (
            f"No difference in accuracy between {pair.name} and {reference} can be seen ({said}): "
            f"{plural(one, 'image')} right in the first alone, {other:,} in the second alone."
        )
    better, worse = (pair.name, reference) if pair.difference > 0 else (reference, pair.name)
    return (
        f"{better} is better than {worse} by {abs(pair.difference):.2f} points ({said}): "
        f"{plural(max(one, other), 'image')} right in it alone, {min(one, other):,} in the other alone."
    )


def section(found: ModelComparison) -> Section:
    """What terminal and page show alike."""
    tables = [_accuracy_table(found), _cost_table(found)]
    plots = []
    if len(found.runs) > 1:
        timed = all(run.latency_ms is not None for run in found.runs)
        plots = [
            SectionPlot(
                draw=pareto(found.runs),
                label="Test accuracy against "
                + ("the latency of one image, and against " if timed else "")
                + "the size of the model",
                caption="Test accuracy against cost. Filled and on the line: no other is at least as accurate and "
                "costs less." + (f" Chance decides on those with {PERHAPS} above." if _any_by_chance(found) else ""),
            )
        ]
    return Section(sentences=verdicts(found), tables=tables, plots=plots)


def _accuracy_table(found: ModelComparison) -> SectionTable:
    student, pairs = found.models[0].student, {pair.name: pair for pair in found.pairs}
    rows = [[found.reference, _percent(student.accuracy), "", "", "", ""]] if student else []
    for run in found.runs:
        pair = pairs.get(run.name)
        against = ["", "", "", ""]
        if pair is not None:
            against = [
                _points(pair.difference),
                _p(pair.p),
                f"{pair.only_right:,} : {pair.only_reference_right:,}".replace(" ", "\u00a0"),
                _percent(pair.agreement),
            ]
        rows.append([run.name, _percent(run.accuracy), *against])
    caption = f"Accuracy on {measured_on(found.models[0])}; {chance_line(found.models[0])}."
    if found.pairs:
        caption += (
            f" Difference and what follows: against {_reference(found)}, image by image. Right alone: images "
            f"that only the one, and only the other, gets right. p: McNemar's exact test of these two counts, with "
            f"Holm's correction for {plural(len(found.pairs), 'pair')}: at {LEVEL} and above, the difference may be "
            "chance. "
            "Agreement: images that get the same class."
        )
    columns = ["what", "accuracy %", "difference, points", "p", "right alone", "agreement %"]
    kept = len(columns) if found.pairs else 2
    return SectionTable(columns=columns[:kept], rows=[row[:kept] for row in rows], caption=caption)


def _cost_table(found: ModelComparison) -> SectionTable:
    timed = any(run.latency_ms is not None for run in found.runs)
    columns = ["what", "accuracy %", "size", *(["latency ms", "images/s"] if timed else [])]
    fronts = "of size, or of latency" if timed else "of size"
    caption = f"{FRONT} on the Pareto front {fronts}: no other is at least as accurate and costs less."
    if _any_by_chance(found):
        caption += (
            f" {PERHAPS} whether it is on the front may be chance: its accuracy cannot be told from that of another "
            f"that costs no more, and none of those is clearly better. Clearly: p below {LEVEL} in McNemar's exact "
            "test, with Holm's correction over all pairs."
        )
    if timed:
        batches = found.models[0].speed[0].largest_batch if found.models[0].speed else 1
        caption += (
            " Latency: the median for one image; images/s: at the best of the batch sizes up to "
            f"{batches:,}. All took turns on {'; '.join(dict.fromkeys(run.device for run in found.runs))}."
        )
    return SectionTable(columns=columns, rows=[_cost_cells(run)[: len(columns)] for run in found.runs], caption=caption)


def _cost_cells(run: ComparedRun) -> list[str]:
    latency = ABSENT if run.latency_ms is None else milliseconds(run.latency_ms)
    return [
        run.name,
        _percent(run.accuracy),
        format_bytes(run.bytes).replace(" ", "\u00a0") + _mark(run.smallest, run.smallest_by_chance),
        latency + _mark(run.fastest, run.fastest_by_chance),
        ABSENT if run.images_per_second is None else f"{run.images_per_second:,.0f}",
    ]


def _any_by_chance(found: ModelComparison) -> bool:
    return any(run.smallest_by_chance or run.fastest_by_chance for run in found.runs)


def _mark(on_front: bool | None, by_chance: bool | None) -> str:
    return PERHAPS if by_chance else FRONT if on_front else NO_MARK


def model_names(found: ModelComparison) -> list[str]:
    """Of each model, in order: as its runs are called, without providers."""
    first = [next(run for run in found.runs if run.model == k) for k in range(len(found.models))]
    return [run.name.removesuffix(f", {run.provider}") for run in first]


def gate_lines(found: ModelComparison) -> list[str]:
    """Whether the gate holds, for each model; one line where it says the same of all."""
    lines = [gate_line(model) for model in found.models]
    if len(set(lines)) == 1:
        return [f"gate {lines[0]}"]
    return [f"gate of {name} {line}" for name, line in zip(model_names(found), lines, strict=True)]


def left_out_lines(found: ModelComparison) -> list[str]:
    """Providers that did not load."""
    return [
        f"{name}: {provider} left out: {why}"
        for name, model in zip(model_names(found), found.models, strict=True)
        for provider, why in model.left_out.items()
    ]


def speeds(found: ModelComparison) -> list[SpeedSection]:
    """The speeds of all models on each device, under the names of the runs; the student's, which all have, once."""
    names = {(run.model, run.provider): run.name for run in found.runs}
    sections: dict[str, SpeedSection] = {}
    for k, model in enumerate(found.models):
        own = {run.name: names[k, run.provider] for run in model.providers}
        for one in model.speed or ():
            rows = [row.model_copy(update={"name": own[row.name]}) for row in one.rows if row.name in own]
            others = [row for row in one.rows if row.name in (EAGER, COMPILED)]
            before = sections.get(one.device)
            known = [row for row in before.rows if row.name not in (EAGER, COMPILED)] if before else []
            sections[one.device] = one.model_copy(update={"rows": (*known, *rows, *others)})
    return list(sections.values())


def tables(found: ModelComparison) -> RenderableType:
    """All of the result for a terminal."""
    few = few_images_line(found.models[0])
    lines = [*left_out_lines(found), *gate_lines(found), *([few] if few else [])]
    lines += [note for of_device in speeds(found) for note in speed_notes(of_device)]
    return Group(for_terminal(section(found)), Text(), *map(Text, lines))


def write_comparison(path: Path, found: ModelComparison) -> None:
    """Writes the page: one file without scripts or external addresses."""
    first = found.models[0]
    runs = [(run.name, _own(found, run)) for run in found.runs]
    few = few_images_line(first)
    write_page(
        path,
        "validation_comparison.html",
        title=f"{plural(len(found.models), 'model')} compared on {first.data.name}",
        found=found,
        section_values=for_page(section(found), "pareto"),
        few_images=f"{few[:1].upper()}{few[1:]}. Differences of a few points mean nothing." if few else "",
        left_out=left_out_lines(found),
        gates=[] if found.failures else gate_lines(found),
        measured=measured_on(first),
        complete=all(model.complete for model in found.models),
        models=_model_cells(found),
        provenance={
            "Data": measured_on(first),
            "Fingerprint": first.data.fingerprint,
            "Skipped": plural(first.data.skipped, "unreadable image") if first.data.skipped else None,
            "Student": f"{first.student.path}, {first.student.network}" if first.student else None,
            "Devices": "; ".join(dict.fromkeys(run.device for run in found.runs)),
            "CPU threads": f"{first.conditions.threads}, in ONNX Runtime and in torch",
            "Versions": ", ".join(f"{name} {version}" for name, version in first.conditions.versions.items()),
        },
        **classes_and_speed(first, runs, speeds(found)),
    )


def _own(found: ModelComparison, run: ComparedRun) -> ProviderRun:
    return next(row for row in found.models[run.model].providers if row.provider == run.provider)


def _model_cells(found: ModelComparison) -> Sequence[Sequence[str]]:
    rows = []
    for name, result in zip(model_names(found), found.models, strict=True):
        model, ours = result.model, result.model.metadata
        precision = ours.precision if isinstance(ours, ModelMetadata) else None
        rows.append(
            [
                name,
                model.path,
                precision or ABSENT,
                ABSENT if model.opset is None else str(model.opset),
                f"{LAYOUTS[model.layout].summary}; {model.channels} x {model.size} x {model.size}",
                f"{model.output} of {model.classes} classes",
                model.sha256[:16],
            ]
        )
    return rows
