"""The report of a run: its score, pictures, plots, settings and provenance on one self-contained page.

Everything here reads plain arrays and the run's files; nothing needs torch.
"""

from collections.abc import Sequence
from pathlib import Path

from ncfmkit.config import Settings, by_name, to_dict
from ncfmkit.progress import plural
from ncfmkit.reports.curves import accuracies, accuracies_by_bytes, losses
from ncfmkit.reports.layout import Plot, plot, write_page
from ncfmkit.reports.scores import (
    ABSENT,
    BALANCED,
    percent,
    score_cells,
    score_columns,
    share_of_whole,
    time_taken,
    whole_row,
    worst_class,
)
from ncfmkit.reports.strips import MAX_CLASSES, SetImages, class_rows
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import DataInfo, MetricsRow, PoolInfo, RunInfo, Score, Scores

FEW_TEST_IMAGES = 100  # below, the page warns
LISTED_CLASSES = 20  # classes that are not folded away


def write_report(folder: Path, images: SetImages | None = None) -> Path:
    """Writes `folder/report.html` from the run's other files and returns its path.

    One file without scripts or external addresses. What a run has not made yet is left out.

    Args:
        folder: the run directory.
        images: of the set, once there is one.

    Raises:
        UserError: no `run.json`, or a damaged file.
    """
    run = RunDirectory.open(folder)
    info, scores, metrics = run.info(), run.scores(), run.metrics()
    rows = scores.rows if scores else ()
    distilled = next((row for row in rows if row.set == "distilled"), None)
    set_file = folder / "synthetic.safetensors"
    classes = class_rows(images) if images else []
    return write_page(
        folder / "report.html",
        "run.html",
        title=_title(info),
        status=None if info.status == "done" else info.status,
        score=distilled and _score(distilled, rows, info.data, info.settings.get("labels")),
        few=info.data.test if distilled and info.data.test < FEW_TEST_IMAGES else None,
        scores=scores and _score_table(scores, info.data),
        training=_training_plot(rows, info.data),
        by_bytes=_bytes_plot(rows, info.data),
        by_class=_by_class(distilled, info.data) if distilled and distilled.classes else None,
        classes=classes,
        listed=LISTED_CLASSES,
        more_classes=max(0, len(images.classes) - MAX_CLASSES) if images else 0,
        mosaics=any(row.decoded for row in classes),
        set_file=set_file.name if set_file.is_file() else None,
        losses=plot(losses(metrics), name="losses", label=_losses(metrics)) if metrics else None,
        losses_say=_losses(metrics) if metrics else None,
        settings=_settings(info.settings),
        pool=_pool(info.pool) if info.pool and info.pool.accuracies else None,
        provenance=_provenance(info, scores),
    )


def _title(info: RunInfo) -> str:
    """`digits: 10 images stand for 1,347`."""
    distill = info.settings.get("distill")
    ipc = distill.get("ipc") if isinstance(distill, dict) else None
    if not isinstance(ipc, int):
        return info.data.name
    images = ipc * len(info.data.classes)
    return f"{info.data.name}: {plural(images, 'image')} {'stand' if images > 1 else 'stands'} for {info.data.train:,}"


def _score(row: Score, rows: Sequence[Score], data: DataInfo, labels: object) -> dict[str, str]:
    """The score in words: `figure` in percent, what it is beside the `whole` set, `how` it was measured.

    Args:
        labels: the settings `labels`; None in runs of before they were there.
    """
    share, whole = share_of_whole(row, rows), whole_row(row, rows)
    beside = ""
    if share is not None and whole is not None:
        of_whole = percent(whole.last, whole.n)
        beside = f", {100 * share:.1f}% of the accuracy with the whole set ({of_whole}%)"
    students = "one student" if row.n == 1 else f"{row.n} students"
    if isinstance(labels, dict) and labels.get("soft"):
        students += f" with soft labels of the extractors, temperature {_said(labels.get('temperature'))}"
    balanced, worst = "", worst_class(row)
    if row.balanced is not None and worst is not None:
        number, lowest = worst
        balanced = (
            f". The test split is unbalanced: balanced accuracy {percent(row.balanced, row.n)}%, worst class "
            f"{data.classes[number]} with {100 * lowest:.1f}%"
        )
    return {
        "figure": percent(row.last, row.n),
        "whole": beside,
        "how": f"{row.network}, {students}, after the last of {row.epochs:,} epochs; {data.test:,} test images of "
        f"{len(data.classes):,} classes; guessing gives {100 / len(data.classes):.3g}%{balanced}",
    }


def _score_table(scores: Scores, data: DataInfo) -> dict[str, object]:
    """Arguments of the macro `table`."""
    columns, networks = score_columns(scores.rows)
    caption = (
        f"Accuracy on {data.test:,} test images in percent, mean ± standard deviation of n students{networks}. The "
        "last epoch is the result. The best epoch is selected on the test set; it is shown for comparison with papers "
        f"that report it. Measured on {scores.device}."
    )
    if "balanced" in columns:
        caption += f" Balanced: {BALANCED}."
    return {
        "columns": list(columns.values()),
        "rows": [[cells[key] for key in columns] for cells in score_cells(scores.rows)],
        "caption": caption,
        "text_columns": 2 if "network" in columns else 1,
        "strong": [place for place, row in enumerate(scores.rows) if row.set == "distilled"],
    }


def _training_plot(rows: Sequence[Score], data: DataInfo) -> Plot | None:
    shown = [row for row in rows if row.curve and row.steps and len(row.curve.epochs) > 1]
    if not shown:
        return None
    draw = accuracies(shown, chance=1 / len(data.classes))
    last = "; ".join(f"{row.label}: {percent(row.last, row.n)}% after the last epoch" for row in shown)
    return plot(draw, name="training", label=f"Test accuracy against gradient steps. {last}")


def _bytes_plot(rows: Sequence[Score], data: DataInfo) -> Plot | None:
    shown = [row for row in rows if row.bytes_per_class]
    if len({row.bytes_per_class for row in shown}) < 2:
        return None
    draw = accuracies_by_bytes(shown, chance=1 / len(data.classes))
    points = "; ".join(f"{row.label}: {row.bytes_per_class:,.0f} bytes, {percent(row.last, row.n)}%" for row in shown)
    return plot(draw, name="bytes", label=f"Test accuracy against bytes per class. {points}")


def _by_class(row: Score, data: DataInfo) -> dict[str, object]:
    """Bars of all classes with test images in class order, and the lowest where they are too many to read."""
    known = [(s, name) for name, s in zip(data.classes, row.classes or (), strict=True) if s is not None]
    bars, lowest = (
        [{"name": name, "share": share, "text": f"{100 * share:.1f}"} for share, name in shown]
        for shown in (known, sorted(known)[: LISTED_CLASSES // 2])
    )
    return {
        "bars": bars,
        "lowest": lowest if len(bars) > LISTED_CLASSES else None,
        "chance": 1 / len(data.classes),
        "caption": f"Percent of the test images of each class, mean of {plural(row.n, 'student')} after the last "
        f"epoch. The line is guessing, {100 / len(data.classes):.3g}%.",
    }


def _losses(metrics: Sequence[MetricsRow]) -> str:
    first, last = metrics[0], metrics[-1]
    parts = [
        f"{name} loss {start:.4g} at step {first.step:,}, {end:.4g} at step {last.step:,}"
        for name, start, end in (
            ("matching", first.matching, last.matching),
            ("calibration", first.calibration, last.calibration),
        )
        if start is not None and end is not None
    ]
    return "Thin: as logged; thick: running mean over a twentieth of the run. " + "; ".join(parts).capitalize() + "."


def _settings(settings: dict[str, object]) -> dict[str, list[list[str]]]:
    """`changed` settings with their values and defaults, and the `rest`, by name and value."""
    used, default = by_name(settings), by_name(to_dict(Settings()))
    changed = [key for key, value in used.items() if key not in default or default[key] != value]
    return {
        "changed": [[k, _said(used[k]), _said(default[k]) if k in default else ABSENT] for k in changed],
        "rest": [[key, _said(value)] for key, value in used.items() if key not in changed],
    }


def _said(value: object) -> str:
    """A value as people read it: `none`, `0.667, 0.833`."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _pool(pool: PoolInfo) -> dict[str, str]:
    known = [a for a in pool.accuracies if a is not None]
    text = plural(len(pool.accuracies), "extractor")
    if known:
        text += f", test accuracy {100 * sum(known) / len(known):.1f}% on average"
    if len(known) > 1:
        text += f", from {100 * min(known):.1f}% to {100 * max(known):.1f}%"
    return {"text": text, "members": " · ".join(ABSENT if a is None else f"{100 * a:.1f}" for a in pool.accuracies)}


def _provenance(info: RunInfo, scores: Scores | None) -> dict[str, object]:
    data, times = info.data, info.timings
    distilling = None
    if times:
        each = f", {1000 * times.distill_seconds / times.steps:.3g} ms each" if times.steps else ""
        distilling = f"{time_taken(times.distill_seconds)} for {times.steps:,} steps{each}"
    color = {1: "gray", 3: "RGB"}.get(data.channels, f"{data.channels} channels")
    scoring = sum(row.seconds for row in scores.rows) if scores else 0.0
    return {
        "Data": f"{data.name}, {data.train:,} training images, {data.test:,} test images, {data.size} × {data.size} "
        f"pixels, {color}",
        "Classes": ", ".join(data.classes),
        "Fingerprint": data.fingerprint,
        "Command": info.command,
        "Seed": info.seed,
        "Device": info.device,
        "Precision": info.precision,
        "Compiled": "yes" if info.compile else "no",
        "Pool": info.pool and info.pool.key,
        "Pretraining": info.pool and (time_taken(info.pool.seconds) if info.pool.seconds else "taken from the cache"),
        "Distilling": distilling,
        "Scoring": f"{time_taken(scoring)} on {scores.device}" if scores else None,
        "Versions": ", ".join(f"{name} {v}" for name, v in ({"ncfmkit": info.ncfmkit} | info.versions).items() if v),
    }
