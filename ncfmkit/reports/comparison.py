"""Presents a comparison of sets: a table and plain words for the terminal, and one self-contained HTML page.

Everything here reads the result as `compare.json` holds it, and plain arrays; nothing needs torch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ncfmkit.comparison import ComparedSet, Comparison
from ncfmkit.config import from_dict
from ncfmkit.progress import plural
from ncfmkit.reports import layout
from ncfmkit.reports.curves import accuracies_by_bytes, accuracy_dots
from ncfmkit.reports.scores import ABSENT, byte_count, changed_words, percent
from ncfmkit.reports.strips import SetImages, Strip, strip

LEVEL = 0.05  # of the p-values, below which a difference is called one
FEW = 5  # students, which are asked for where there is one
SHOWN_CLASSES = 10  # of each set, on the page
SHOWN_IMAGES = 30  # of each set
COLUMNS = {
    "set": "set",
    "per_class": "images per class",
    "bytes": "bytes per class",
    "labels": "labels",
    "steps": "gradient steps",
    "accuracy": "accuracy %",
    "n": "n",
    "difference": "difference to the first, points",
    "interval": "95% interval",
    "p": "p (Holm)",
}
TEXTS = ("set", "labels")  # columns of text


def columns(found: Comparison) -> dict[str, str]:
    """The columns in which the sets can differ."""
    shown, sets = dict(COLUMNS), found.sets
    if not any(row.soft_labels for row in sets):
        del shown["labels"]
    if len({row.score.steps for row in sets}) == 1:
        del shown["steps"]
    return shown


def cells(row: ComparedSet) -> dict[str, str]:
    """A row of the table, by column."""
    score, difference = row.score, row.difference
    interval = p = mean = ""
    if difference is not None:
        mean, interval, p = _points(difference.mean), ABSENT, ABSENT
        if difference.low is not None and difference.high is not None and difference.p is not None:
            interval = f"{_points(difference.low)} to {_points(difference.high)}".replace(" ", "\u00a0")
            p = _p(difference.p)
    return {
        "set": row.name,
        "per_class": f"{row.per_class:,}",
        "bytes": ABSENT if score.bytes_per_class is None else byte_count(score.bytes_per_class),
        "labels": "soft" if row.soft_labels else "hard",
        "steps": ABSENT if score.steps is None else f"{score.steps:,}",
        "accuracy": percent(score.last, score.n),
        "n": f"{score.n:,}",
        "difference": mean,
        "interval": interval,
        "p": p,
    }


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def verdicts(found: Comparison) -> list[str]:
    """A sentence for each set but the first: whether it is better or worse than that one, and how sure that is."""
    if found.left and found.sets and all(row.difference is None for row in found.sets):
        return []
    first = found.sets[0]
    if first.score.n == 1 and len(found.sets) > 1:
        return [f"One student of each set: no difference can be tested; --repeats {FEW} trains {FEW} of each."]
    return [_verdict(row, first) for row in found.sets[1:]]


def _verdict(row: ComparedSet, first: ComparedSet) -> str:
    difference, n = row.difference, row.score.n
    assert difference is not None
    if difference.p is None:
        return (
            f"All {n} students of {row.name} differ from those of {first.name} by {_points(difference.mean)} points: "
            "differences without variance cannot be tested."
        )
    p = _p(difference.p)
    said = f"p {p}" if p.startswith("<") else f"p = {p}"
    if difference.p >= LEVEL:
        return f"No difference between {row.name} and {first.name} can be seen with n = {n} ({said})."
    better, worse = (row, first) if difference.mean > 0 else (first, row)
    points = f"{100 * abs(difference.mean):.1f}"
    return f"{better.name} is better than {worse.name} by {points} points ({said}){_beside(better, worse)}."


def _beside(better: ComparedSet, worse: ComparedSet) -> str:
    """What a better set costs more, where it does: a larger set is no better method."""
    mine, other = better.score.bytes_per_class, worse.score.bytes_per_class
    if not mine or not other or mine <= 1.01 * other:
        return ""
    return f", with {mine / other:.3g} times the bytes per class"


def how_to_read(found: Comparison) -> str:
    """What the figures of the table are."""
    first = found.sets[0].name
    return (
        "accuracy: test accuracy in percent after the last epoch, mean ± standard deviation of n students; difference, "
        f"interval and p: a paired t-test against {first}, by students of one seed; Holm's correction of p is over all "
        "comparisons, an interval is of its own. The test is about these files and these test images, not about the "
        "methods that made the files"
    )


def recipe_words(found: Comparison) -> str:
    """How all students are trained, and whose settings these are."""
    settings = from_dict(found.recipe)
    student = settings.student
    network = found.sets[0].score.network if found.sets else settings.network.name
    parts = [
        network,
        f"{plural(found.steps, 'gradient step')}{_up_to(found)}",
        f"{student.optimizer}, lr {student.lr:g}",
        f"batches of up to {student.batch}",
        f"augmentation {student.augment}, CutMix {student.cutmix:g}",
        f"seed {settings.seed}",
    ]
    changed = changed_words(found.recipe, found.changed)
    return f"{', '.join(parts)}: the recipe of the first set{changed}"


def _up_to(found: Comparison) -> str:
    return "" if {row.score.steps for row in found.sets} <= {found.steps} else ", rounded up to whole epochs"


def tables(found: Comparison) -> RenderableType:
    """All of the result for a terminal."""
    shown = columns(found)
    heads = shown | {"difference": "vs first", "per_class": "images", "bytes": "bytes", "p": "p"}
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    for key in shown:
        text = key in TEXTS  # figures are never broken, so that a narrow terminal wraps the names
        table.add_column(heads[key], justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in found.sets:
        table.add_row(*(Text(cells(row)[key]) for key in shown))
    lines = [
        "",
        *verdicts(found),
        "",
        f"students: {recipe_words(found)}",
        f"images, bytes: what is stored, per class; {how_to_read(found)}",
    ]
    return Group(table, *map(Text, lines))


def write_page(path: Path, found: Comparison, images: Sequence[SetImages]) -> Path:
    """Writes the page: one file without scripts or external addresses.

    Args:
        images: of each of `found.sets`.
    """
    shown, rows = columns(found), [row.score for row in found.sets]
    sizes = {row.bytes_per_class for row in rows}
    chance = 1 / len(found.data.classes)
    accuracies = "; ".join(f"{row.label}: {percent(row.last, row.n)}%" for row in rows)
    dots = layout.plot(
        accuracy_dots(rows), name="dots", label=f"Test accuracy of every student of each set. {accuracies}"
    )
    by_bytes = None
    if None not in sizes and 0 not in sizes and len(sizes) > 1:
        by_bytes = layout.plot(
            accuracies_by_bytes(rows, chance=None), name="bytes", label=f"Test accuracy by bytes. {accuracies}"
        )
    return layout.write_page(
        path,
        "compare.html",
        title=f"{found.data.name}: {plural(len(found.sets), 'set')} compared",
        verdicts=verdicts(found),
        left=found.left,
        table_of_sets={
            "columns": list(shown.values()),
            "rows": [[cells(row)[key] for key in shown] for row in found.sets],
            "caption": _sentence(how_to_read(found)),
            "strong": [max(range(len(rows)), key=lambda k: rows[k].last.mean)],
        },
        dots=dots,
        chance=f"{100 * chance:.3g}",
        by_bytes=by_bytes,
        sets=[(row.name, *_shown(of_set)) for row, of_set in zip(found.sets, images, strict=True)],
        students=f"All students: {recipe_words(found)}.",
        provenance={
            "Test images": f"{found.data.test:,} of {found.data.name}",
            "Fingerprint": found.data.fingerprint,
            "Device": found.device,
            "Precision": found.precision,
            "Versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        },
        files=[[row.name, row.path, row.manifest_sha256[:16]] for row in found.sets],
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _shown(images: SetImages) -> tuple[list[tuple[str, Strip]], str]:
    """The first images of the first classes, and how many of how many these are."""
    classes = images.classes[:SHOWN_CLASSES]
    most = max(1, SHOWN_IMAGES // len(classes))
    places = [np.flatnonzero(images.labels == label)[:most] for label in range(len(classes))]
    strips = [
        (name, strip(images.stored[place_M])) for name, place_M in zip(classes, places, strict=True) if len(place_M)
    ]
    count = sum(one.count for _, one in strips)
    total = len(images.stored)
    if count == total:
        return strips, f"All {plural(total, 'stored image')}."
    of = "each class" if len(classes) == len(images.classes) else f"the first {len(classes)} classes"
    first = max(one.count for _, one in strips)
    return strips, f"{count} of {total:,} stored images: the first{'' if first == 1 else f' {first}'} of {of}."
