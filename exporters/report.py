"""Presents a validation: tables for the terminal, pictures, and one self-contained HTML page.

Everything here reads the result as stored in `validation.json`; nothing needs torch.

Shapes: K classes.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ncfmkit.exporters.contract import LAYOUTS
from ncfmkit.files import format_bytes
from ncfmkit.progress import plural, printable
from ncfmkit.reports.labels import families, labels
from ncfmkit.reports.page import escaped, facts_html, figure_html, write_page
from ncfmkit.reports.scores import ABSENT

BUSY = 0.05  # share of the CPUs used by others, from which on the report says so
WORST = 5  # confusions that are listed in words
SHOWN_CLASSES = 20  # rows of the table of classes that are not folded away, and classes whose cells have figures
NAMED_CLASSES = 60  # above, the confusion matrix has label numbers in place of names
LONGEST_IN_TEXT, LONGEST_IN_PICTURE = 40, 18  # characters of a class name
INK, LINE = "#444444", "#999999"
COLORS = ("#1f5a99", "#7a4fa3", "#2b8a8a", "#a33b5e")  # of what is validated
TORCH_COLORS = {"torch eager": "#c2571a", "torch.compile": "#a8790a"}


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.2f}"


def _points(drop: float | None) -> str:
    return ABSENT if drop is None else f"{round(drop, 2) + 0.0:.2f}"


def _milliseconds(value: float) -> str:
    return f"{value:,.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _seconds(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.{3 if value < 1 else 1}f}"


def _difference(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def worst_confusions(row: dict[str, Any], *, most: int = WORST) -> list[str]:
    """The classes most often taken for another one, such as `cat taken for dog: 183 of 1,000`."""
    confusion_KK = np.array(row["confusion"])
    np.fill_diagonal(confusion_KK, 0)
    order = np.argsort(-confusion_KK, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(confusion_KK)) for place in order if confusion_KK.flat[place]]
    classes = row["classes"]
    return [
        f"{_class_name(classes[true])} taken for {_class_name(classes[guess])}: "
        f"{confusion_KK[true, guess]:,} of {classes[true]['images']:,}"
        for true, guess in pairs
    ]


def _class_name(row: dict[str, Any]) -> str:
    """As a sentence bears it: no control characters, not too long."""
    return _cut(printable(row["class"]), LONGEST_IN_TEXT)


def _cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def measured_on(result: dict[str, Any]) -> str:
    """The images that accuracies are of."""
    data = result["data"]
    return f"all {data['images']:,} test images of {data['name']} (fingerprint {data['fingerprint'][:12]})"


def gate_line(result: dict[str, Any]) -> str:
    """Whether the gate holds, and what it is."""
    limit, failures = result["max_accuracy_drop"], result["failures"]
    if failures:
        return f"failed: {'; '.join(failures)}"
    if limit is None:
        return "not set: --max-accuracy-drop POINTS sets it"
    what = f"{100 * result['reference']['accuracy']:.2f}%, {result['reference']['what']}"
    return f"passed: no provider is more than {limit:g} points below {what}"


def tables(result: dict[str, Any]) -> RenderableType:
    """All of the result for a terminal of 80 columns or more."""
    parts: list[RenderableType] = [_accuracy_table(result)]
    parts += [Text(f"{name} left out: {why}") for name, why in result["left_out"].items()]
    row = result["providers"][0]
    confusions = worst_confusions(row, most=2)
    weakest = min(row["classes"], key=lambda c: c["accuracy"])
    lines = [f"weakest class: {_class_name(weakest)}, {_percent(weakest['accuracy'])}%"]
    lines += [f"most often confused: {'; '.join(confusions)}"] if confusions else []
    parts += [Text("; ".join(lines)), Text(f"gate {gate_line(result)}")]
    for section in result["speed"] or []:
        parts += [Text(), *_speed_parts(section)]
    return Group(*parts)


def _filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which there is anything, with their cells."""
    kept = [c for c in range(len(columns)) if not rows or any(row[c] not in ("", ABSENT) for row in rows)]
    return [columns[c] for c in kept], [[row[c] for c in kept] for row in rows]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Group:
    """Figures with the text column `what`; figures are never broken, so a narrow terminal wraps the names."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    columns, rows = _filled(columns, rows)
    for header in columns:
        table.add_column(header, justify="left" if header == "what" else "right", no_wrap=header != "what")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return Group(table, Text(caption))


def _accuracy_table(result: dict[str, Any]) -> Group:
    columns = ("what", "accuracy\n%", "drop\npoints", "agreement\n%", "largest\ndifference")
    caption = f"accuracy: on {measured_on(result)}, {'; '.join(_devices(result))}"
    if result["reference"]:
        caption += f"\ndrop: below {_percent(result['reference']['accuracy'])}%, {result['reference']['what']}"
    if result["student"]:
        output = result["model"]["output"]
        caption += f"\nagreement: same class as the student; largest difference: over all {output}"
    return _table(columns, _accuracy_cells(result), caption)


def _runs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Whatever was run on the test images: the student, if there is one, and the model on each provider."""
    return [*([result["student"]] if result["student"] else []), *result["providers"]]


def _devices(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["device"] for run in _runs(result)))


def _accuracy_cells(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            run["name"],
            _percent(run["accuracy"]),
            _points(run["accuracy_drop"]) if "accuracy_drop" in run else "",
            _percent(run["agreement"]) if "agreement" in run else "",
            _difference(run["max_abs_difference"]) if "agreement" in run else "",
        ]
        for run in _runs(result)
    ]


SPEED_COLUMNS = ("images/s", "x eager", "x compiled", "p50 ms", "p95 ms", "p99 ms")
START_COLUMNS = ("cold start s", "engine build s", "compilation s", "memory")


def _speed_cells(section: dict[str, Any]) -> list[list[str]]:
    """Rows of batch, name and `SPEED_COLUMNS`; batch by batch, so that contenders stand below each other."""
    found = []
    for row in section["rows"]:
        for place, timed in enumerate(row["batches"]):
            percentiles = [_milliseconds(timed[key]) for key in ("p50_ms", "p95_ms", "p99_ms")]
            ratios = [_times(timed["times"].get(name)) for name in TORCH_COLORS]
            cells = [f"{timed['batch']:,}", row["name"], f"{timed['images_per_second']:,.0f}", *ratios, *percentiles]
            found.append((place, cells))
    return [cells for _, cells in sorted(found, key=lambda pair: pair[0])]


def _start_cells(section: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["name"],
            *(_seconds(row[key]) for key in ("cold_start_seconds", "engine_build_seconds", "compile_seconds")),
            ABSENT if row["memory_bytes"] is None else format_bytes(row["memory_bytes"]),
        ]
        for row in section["rows"]
        if row["batches"] or row["cold_start_seconds"] is not None
    ]


def _calls(section: dict[str, Any]) -> str:
    calls = [timed["calls"] for row in section["rows"] for timed in row["batches"]]
    return "" if not calls else f"{min(calls):,}" if min(calls) == max(calls) else f"{min(calls):,} to {max(calls):,}"


def _timed_how(section: dict[str, Any]) -> str:
    text = f"{_calls(section)} calls each, in turns; inputs and outputs in device memory; images/s from the median"
    if any(row["name"] in TORCH_COLORS for row in section["rows"]):
        text += "; x eager, x compiled: speedup over the float32 student in torch"
    if section["device"].startswith("cuda"):
        text += (
            "; TensorFloat-32 is off in torch and the CUDA provider, ONNX Runtime's TensorRT provider decides itself"
        )
    return text


def _started_how(section: dict[str, Any]) -> str:
    text = (
        "cold start: opening the model and its first answer in a separate process; memory, up to batch "
        f"{section['largest_batch']:,}: {section['memory_is']}"
    )
    if any(row["compile_seconds"] is not None for row in section["rows"]):
        text += "; compilation: the first calls of all batch sizes, using what Inductor's disk cache already had"
    return text


def _notes(section: dict[str, Any]) -> list[str]:
    notes = [f"{row['name']} was not timed: {row['absent']}" for row in section["rows"] if row["absent"]]
    notes += [f"timing stopped at {section['stopped']}"] if section["stopped"] else []
    others = section["others_cpu"] or 0
    if others > BUSY:
        notes.append(
            f"other processes used {others:.0%} of the CPUs meanwhile, so ratios are unreliable: torch's threads wait "
            "for each other; repeat on an idle machine, or with fewer --threads"
        )
    return notes + [
        f"{row['name']}: no cold start and memory: {row['failed']}" for row in section["rows"] if row["failed"]
    ]


def _speed_parts(section: dict[str, Any]) -> list[RenderableType]:
    columns = ["batch", "what", *(c.replace(" ", "\n", 1) for c in SPEED_COLUMNS)]
    timings = _table(columns, _speed_cells(section), _timed_how(section))
    columns = ["what", *("\n".join(c.rsplit(" ", 1)) for c in START_COLUMNS)]
    starts = _table(columns, _start_cells(section), _started_how(section))
    return [Text(f"Speed on {section['device']}", style="bold"), timings, *map(Text, _notes(section)), Text(), starts]


def _png(drawn: Any) -> bytes:
    """The picture of a matplotlib figure."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", bbox_inches="tight", pad_inches=0.05)  # else a label may be cut
    return content.getvalue()


def confusion_picture(confusion: list[list[int]], classes: Sequence[str]) -> bytes:
    """PNG: rows are true classes, columns the model's; color is the share of the true class's images."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count_KK = np.array(confusion, np.float64)
    total_K1 = count_KK.sum(axis=1, keepdims=True)
    share_KK = 100 * np.divide(count_KK, total_K1, out=np.zeros_like(count_KK), where=total_K1 > 0)
    side = min(9.5, max(3.2, 0.42 * len(classes) + 1.6)) if len(classes) <= SHOWN_CLASSES else 9.5
    drawn = Figure(figsize=(side + 0.9, side), dpi=130, layout="constrained", facecolor="white")
    axis = drawn.subplots()
    # a root scale: a few percent, which is what an off-diagonal cell holds, would be white on a plain one
    shown = axis.imshow(share_KK, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axis.set_xlabel("the model's class", fontsize=9, color=INK)
    axis.set_ylabel("true class", fontsize=9, color=INK)
    axis.spines[:].set_color(LINE)
    axis.tick_params(labelsize=8, color=LINE, labelcolor=INK)
    _name_cells(axis, classes)
    if len(classes) <= SHOWN_CLASSES:
        _write_cells(axis, share_KK)
    ticks = [0, 1, 5, 10, 25, 50, 75, 100] if side > 5 else [0, 10, 50, 100]
    bar = drawn.colorbar(shown, ax=axis, shrink=0.8, ticks=ticks)
    bar.set_label("% of the true class's images", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, color=LINE, labelcolor=INK)
    bar.outline.set_edgecolor(LINE)  # type: ignore[operator]
    return _png(drawn)


def _name_cells(axis: Any, classes: Sequence[str]) -> None:
    if len(classes) > NAMED_CLASSES:
        return  # label numbers, as matplotlib spaces them
    from matplotlib import ft2font

    named = labels(classes, shaping=hasattr(ft2font, "__libraqm_version__"))
    names = [_cut(text, LONGEST_IN_PICTURE) for text in named.texts]
    style = {"fontsize": 8 if len(classes) <= 30 else 6, "fontfamily": families(named), "parse_math": False}
    axis.set_xticks(range(len(classes)), names, rotation=90, **style)
    axis.set_yticks(range(len(classes)), names, **style)


def _write_cells(axis: Any, share_KK: np.ndarray) -> None:
    for (true, guess), share in np.ndenumerate(share_KK):
        if share >= 0.5:
            ink = "white" if share > 40 else INK
            axis.text(guess, true, f"{share:.0f}", ha="center", va="center", fontsize=7.5, color=ink)


def speed_picture(section: dict[str, Any]) -> bytes:
    """PNG: images per second against the batch, and latencies at batch 1."""
    from matplotlib.figure import Figure

    rows = [row for row in section["rows"] if row["batches"]]
    own = iter(COLORS)
    colors = {row["name"]: TORCH_COLORS.get(row["name"]) or next(own) for row in rows}
    drawn = Figure(figsize=(9, 3.4), dpi=140, layout="constrained", facecolor="white")
    left, right = drawn.subplots(1, 2, width_ratios=[3, 2])
    _draw_throughput(left, rows, colors)
    _draw_latency(right, rows, colors)
    for axis in (left, right):
        axis.tick_params(which="both", labelsize=8, color=LINE, labelcolor=INK)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(LINE)
    return _png(drawn)


def _draw_throughput(axis: Any, rows: list[dict[str, Any]], colors: dict[str, str]) -> None:
    for row in rows:
        batches = [timed["batch"] for timed in row["batches"]]
        rates = [timed["images_per_second"] for timed in row["batches"]]
        axis.plot(batches, rates, color=colors[row["name"]], marker="o", markersize=4, linewidth=1.6, label=row["name"])
    batches = sorted({timed["batch"] for row in rows for timed in row["batches"]})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(batches, [f"{b:,}" for b in batches])
    axis.minorticks_off()
    low, high, ticks = _log_ticks([timed["images_per_second"] for row in rows for timed in row["batches"]])
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{t:,.10g}" for t in ticks])
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_xlabel("images per call", fontsize=9, color=INK)
    axis.set_title("images per second", fontsize=9, color=INK, loc="left")
    axis.legend(fontsize=8, frameon=False, labelcolor=INK)


def _log_ticks(values: list[float]) -> tuple[float, float, list[float]]:
    """Ends of a logarithmic axis, and ticks at 1, 2 and 5 times powers of ten: at least one on either side of any
    value, where matplotlib's own choice can be none."""
    steps = [float(f"{mantissa}e{power}") for power in range(-6, 12) for mantissa in (1, 2, 5)]
    first = max(k for k, step in enumerate(steps) if step <= min(values))
    last = min(k for k, step in enumerate(steps) if step >= max(values))
    ticks = steps[first : max(last, first + 1) + 1]
    shown = ticks if len(ticks) <= 7 else [t for t in ticks if f"{t:e}"[0] == "1"]
    return ticks[0], ticks[-1], shown


def _draw_latency(axis: Any, rows: list[dict[str, Any]], colors: dict[str, str]) -> None:
    low, high, ticks = _log_ticks([row["batches"][0][key] for row in rows for key in ("p50_ms", "p99_ms")])
    for y, row in enumerate(rows):
        first, color = row["batches"][0], colors[row["name"]]
        axis.plot([first["p50_ms"], first["p99_ms"]], [y, y], color=color, linewidth=1.2)
        for key, marker, size in (("p50_ms", "o", 6), ("p95_ms", "|", 9), ("p99_ms", "|", 14)):
            axis.plot(first[key], y, marker=marker, color=color, markersize=size, markeredgewidth=1.6)
        side, end = ("left", first["p50_ms"]) if first["p50_ms"] ** 2 < low * high else ("right", first["p99_ms"])
        label = f"{row['name']}  {_milliseconds(first['p50_ms'])} ms"
        axis.annotate(label, (end, y), (0, 9), textcoords="offset points", fontsize=8, color=color, ha=side)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{t:.10g}" for t in ticks])
    axis.set_ylim(len(rows) - 0.5, -0.8)
    axis.set_yticks([])
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axis.set_xlabel("ms: dot median, bars p95 and p99", fontsize=9, color=INK)
    axis.set_title("latency of one image", fontsize=9, color=INK, loc="left")


def write_report(path: Path, result: dict[str, Any]) -> None:
    """Writes the page: one file without scripts or external addresses."""
    first = result["providers"][0]
    name = Path(result["model"]["path"]).name
    title = f"{name} on {result['data']['name']}: {_percent(first['accuracy'])}% right"
    if len(result["providers"]) > 1:
        title += f" on {first['provider']}"
    body = [
        f"<h1>{escaped(title)}</h1>",
        _headline(result),
        _accuracy_html(result),
        _classes_html(result),
        *_confusions_html(result),
        "" if result["complete"] else "<p>Timing was not finished; this page has accuracy only.</p>",
        *(part for section in result["speed"] or [] for part in _speed_html(section)),
        facts_html("Model", _model_facts(result), code=("sha256",)),
        facts_html("Measured on", _condition_facts(result), code=("Fingerprint",)),
    ]
    write_page(path, title, body)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _html_table(text_columns: int, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table whose first columns hold text, the others figures."""
    columns, rows = _filled(columns, rows)
    kinds = ["text"] * text_columns + ["figure"] * (len(columns) - text_columns)
    head = "".join(f'<th scope="col" class="{k}">{escaped(c)}</th>' for k, c in zip(kinds, columns, strict=True))
    lines = [
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-label="{escaped(column)}">{escaped(cell)}</td>'
            for kind, column, cell in zip(kinds, columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    ]
    said = f"<caption>{escaped(caption)}</caption>\n" if caption else ""
    return (
        f'<table class="scores">{said}<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table>'
    )


def _headline(result: dict[str, Any]) -> str:
    parts = [f'<p class="notice">Failed: {escaped(line)}.</p>' for line in result["failures"]]
    for row in result["providers"]:
        figures = f"<strong>{_percent(row['accuracy'])}%</strong> right on {escaped(row['provider'])}"
        if row["accuracy_drop"] is not None:
            side = "below" if row["accuracy_drop"] >= 0 else "above"
            figures += f", {abs(row['accuracy_drop']):.2f} points {side} {escaped(result['reference']['what'])}"
        if "agreement" in row:
            figures += f"; the same class as the student for {_percent(row['agreement'])}%"
        parts.append(f'<p class="score">{figures}</p>')
    if not result["failures"]:
        parts.append(f'<p class="soft">Gate {escaped(gate_line(result))}.</p>')
    return "\n".join(parts)


def _accuracy_html(result: dict[str, Any]) -> str:
    columns = ["what", "device", "accuracy %", "drop, points", "agreement %", "largest difference"]
    devices = [run["device"] for run in _runs(result)]
    rows = [[cells[0], device, *cells[1:]] for cells, device in zip(_accuracy_cells(result), devices, strict=True)]
    caption = f"Accuracy on {measured_on(result)}."
    if result["student"]:
        caption += (
            f" Agreement: images that get the student's class; largest difference: over all "
            f"{result['model']['output']}, from the student in float32."
        )
    table = _html_table(2, columns, rows, caption)
    left = "".join(f"<p>{escaped(name)} left out: {escaped(why)}</p>" for name, why in result["left_out"].items())
    return f"<h2>Accuracy</h2>\n{table}\n{left}\n{_placement_html(result)}"


def _placement_html(result: dict[str, Any]) -> str:
    lines = []
    for row in result["providers"]:
        for where, operators in row["placement"].items():
            counts = ", ".join(f"{count} {operator}" for operator, count in sorted(operators.items()))
            lines.append(f"<p>{escaped(row['provider'])}: {escaped(where)} ran {escaped(counts)}</p>")
    if not lines:
        return ""
    return f"<details><summary>which provider ran which nodes</summary>\n{''.join(lines)}</details>"


def _classes_html(result: dict[str, Any]) -> str:
    providers, runs = result["providers"], _runs(result)
    columns = ["class", "test images", *(f"{run.get('provider', 'student')} %" for run in runs)]
    rows = [
        [of_class["class"], f"{of_class['images']:,}"]
        + [_percent(run["confusion"][k][k] / of_class["images"]) for run in runs]
        for k, of_class in enumerate(providers[0]["classes"])
    ]
    caption = f"Accuracy of each class, on {measured_on(result)}."
    if len(rows) <= SHOWN_CLASSES:
        return f"<h2>Classes</h2>\n{_html_table(1, columns, rows, caption)}"
    accuracies = [of_class["accuracy"] for of_class in providers[0]["classes"]]
    weakest = [rows[k] for k in np.argsort(accuracies, kind="stable")[: SHOWN_CLASSES // 2]]
    return (
        f"<h2>Classes</h2>\n{_html_table(1, columns, weakest, f'The weakest of {len(rows)} classes. {caption}')}\n"
        f"<details><summary>all {len(rows)} classes</summary>\n{_html_table(1, columns, rows)}</details>"
    )


def _confusions_html(result: dict[str, Any]) -> list[str]:
    parts, seen = ["<h2>Confusions</h2>"], dict[str, str]()
    for row in result["providers"]:
        key = str(row["confusion"])
        if key in seen:
            parts.append(f"<p>{escaped(row['provider'])}: the same as {escaped(seen[key])}</p>")
            continue
        seen[key] = row["provider"]
        worst = worst_confusions(row)
        said = f"most often, {'; '.join(worst)}" if worst else "no image is taken for another class"
        if row["non_finite"]:
            said += f"; {row['non_finite']:,} images have no class because their scores are not finite"
        caption = f"{row['provider']}: {said}. {_sentence(measured_on(result))}"
        if len(row["classes"]) > NAMED_CLASSES:
            caption += " Classes by label number, in the order of the table of all classes."
        parts.append(figure_html(confusion_picture(row["confusion"], result["data"]["classes"]), "preview", caption))
    return parts


def _speed_html(section: dict[str, Any]) -> list[str]:
    parts = [f"<h2>Speed on {escaped(section['device'])}</h2>"]
    if any(row["batches"] for row in section["rows"]):
        caption = f"Images per second and latency on {section['device']}, {_calls(section)} calls each"
        parts.append(figure_html(speed_picture(section), "curves", caption))
    rows = [[name, batch, *cells] for batch, name, *cells in _speed_cells(section)]
    parts.append(_html_table(1, ["what", "batch", *SPEED_COLUMNS], rows, _sentence(_timed_how(section))))
    parts += [f'<p class="notice">{escaped(_sentence(note))}</p>' for note in _notes(section)]
    parts.append("<h2>Start and memory</h2>")
    columns = ["what", *START_COLUMNS]
    return [*parts, _html_table(1, columns, _start_cells(section), _sentence(_started_how(section)))]


def _model_facts(result: dict[str, Any]) -> dict[str, Any]:
    model, ours, student = result["model"], result["model"]["metadata"], result["student"]
    size = f"{plural(model['channels'], 'channel')}, {model['size']}x{model['size']} pixels"
    facts = {
        "File": f"{model['path']}, {format_bytes(model['bytes'])}",
        "sha256": model["sha256"],
        "Opset": model["opset"],
        "Input": f"{LAYOUTS[model['layout']].summary}; {size}",
        "Output": f"{model['output']} of {model['classes']} classes",
        "Precision": ours.get("precision"),
        "Written by": ours.get("tool"),
        "Origin": None if ours else "no ncfmkit metadata: input, output and classes are assumed or as declared",
    }
    if student:
        facts["Student"] = f"{student['path']}, {student['network']}"
    return facts


def _condition_facts(result: dict[str, Any]) -> dict[str, Any]:
    data, conditions = result["data"], result["conditions"]
    return {
        "Data": measured_on(result),
        "Fingerprint": data["fingerprint"],
        "Skipped": f"{data['skipped']} unreadable images" if data["skipped"] else None,
        "Devices": "; ".join(_devices(result)),
        "CPU threads": f"{conditions['threads']}, in ONNX Runtime and in torch",
        "Versions": ", ".join(f"{name} {version}" for name, version in conditions["versions"].items()),
    }
