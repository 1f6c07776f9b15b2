"""Tables of scores: what they say, and how a terminal shows it."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ncfmkit.config import by_name
from ncfmkit.run_records import Accuracy, Score

ABSENT = "–"
SCORE_COLUMNS = {
    "set": "set",
    "network": "network",
    "steps": "gradient steps",
    "images": "images stored",
    "decoded": "trained on",
    "bytes": "bytes per class",
    "last": "accuracy %, last epoch",
    "balanced": "balanced accuracy %",
    "worst": "worst class %",
    "share": "% of whole set",
    "n": "n",
    "best": "best epoch (peeks at the test set)",
}
SHORT_COLUMNS = {  # for a terminal of 80 columns; the caption says what they are
    "steps": "steps",
    "images": "stored",
    "decoded": "trained on",
    "bytes": "bytes",
    "last": "last",
    "balanced": "balanced",
    "share": "% of whole",
    "best": "best*",
}
TEXT_COLUMNS = ("set", "network")
BALANCED = "the mean of the accuracies of the classes; worst: that of the class with the lowest one"


def score_table(rows: Sequence[Score]) -> Table:
    """The rows of `scores.json` for a terminal. Accuracies are percent, mean ± standard deviation of n students."""
    columns, networks = score_columns(rows)
    caption = (
        f"last: test accuracy in percent after the last epoch, mean ± standard deviation of n students{networks}\n"
    )
    all_cells = score_cells(rows)
    if "balanced" in columns:  # the narrowest terminal has no room for the best epoch, too, nor for another column
        del columns["best"], columns["worst"]
        all_cells = [cells | {"balanced": f"{cells['balanced']}\nworst {cells['worst']}"} for cells in all_cells]
        caption += f"balanced: {BALANCED}"
    else:
        caption += "best*: the same of the best epoch (peeks at the test set)"
    if "bytes" in columns:
        caption = f"bytes: what is stored, per class\n{caption}"
    if "network" in columns:  # below the label: a column of its own would leave too little to both
        all_cells = [cells | {"set": f"{cells['set']}\n{cells['network']}"} for cells in all_cells]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    table.caption, table.caption_justify = Text(f"\n{caption}"), "left"
    shown = {key: SHORT_COLUMNS.get(key, header) for key, header in columns.items() if key != "network"}
    for key, header in shown.items():
        if key in TEXT_COLUMNS:
            table.add_column(header)
        else:  # figures are never broken, so that a narrow terminal wraps the labels
            figures = (line for cells in all_cells for line in cells[key].splitlines())
            width = max(map(len, [*header.split(), *figures]))
            table.add_column(textwrap.fill(header, width), justify="right", no_wrap=True)
    for row, cells in zip(rows, all_cells, strict=True):
        table.add_row(*(Text(cells[key]) for key in shown), style="bold" if row.set == "distilled" else "")
    return table


def score_columns(rows: Sequence[Score]) -> tuple[dict[str, str], str]:
    """The columns to show, and what the caption says of a network that all rows share: it needs no column."""
    columns, networks = dict(SCORE_COLUMNS), {row.network for row in rows}
    if all(row.bytes_per_class is None for row in rows):  # an earlier version scored them
        del columns["bytes"]
    if all(row.balanced is None for row in rows):
        del columns["balanced"], columns["worst"]
    if all(share_of_whole(row, rows) is None for row in rows):
        del columns["share"]
    if len(networks) > 1:
        return columns, ""
    del columns["network"]
    return columns, f", {rows[0].network}"


def score_cells(rows: Sequence[Score]) -> list[dict[str, str]]:
    return [
        {
            "set": row.label,
            "network": row.network,
            "steps": ABSENT if row.steps is None else f"{row.steps:,}",
            "images": f"{row.images:,}",
            "decoded": f"{row.decoded:,}",
            "bytes": ABSENT if row.bytes_per_class is None else byte_count(row.bytes_per_class),
            "last": percent(row.last, row.n),
            "balanced": ABSENT if row.balanced is None else percent(row.balanced, row.n),
            "worst": ABSENT if (worst := worst_class(row)) is None else f"{100 * worst[1]:.1f}",
            "share": "" if (share := share_of_whole(row, rows)) is None else f"{100 * share:.1f}",
            "n": f"{row.n:,}",
            "best": percent(row.best, row.n),
        }
        for row in rows
    ]


def worst_class(row: Score) -> tuple[int, float] | None:
    """The number of the class with the lowest accuracy, mean over the students, and that; None: it is not known."""
    known = [(share, k) for k, share in enumerate(row.classes or ()) if share is not None]
    if not known:
        return None
    share, number = min(known)
    return number, share


def whole_row(row: Score, rows: Iterable[Score]) -> Score | None:
    """The row of the same network trained on the whole set."""
    return next((r for r in rows if r.set == "whole" and r.network == row.network), None)


def share_of_whole(row: Score, rows: Iterable[Score]) -> float | None:
    """Accuracy relative to that of the same network trained on the whole set; None if there is no such row."""
    whole = whole_row(row, rows)
    if row.set == "whole" or whole is None or not whole.last.mean:
        return None
    return row.last.mean / whole.last.mean


def changed_words(recipe: Mapping[str, Any], changed: Sequence[str]) -> str:
    """Such as `, with student.repeats 5`, behind whose recipe it is; nothing where it is not changed.

    Args:
        recipe: sections of settings by name.
        changed: names of the settings in it that are others.
    """
    values = by_name(recipe)
    return f", with {', '.join(f'{name} {values[name]}' for name in changed)}" if changed else ""


def byte_count(count: float) -> str:
    """`12,288`, and from a million on `15.4M`, since a terminal has little room."""
    return f"{count:,.0f}" if count < 999_999.5 else f"{count / 1e6:,.1f}M"


def percent(accuracy: Accuracy, n: int) -> str:
    """`89.3 ± 0.4`, never broken across lines; a single student has no deviation."""
    deviation = f"\u00a0±\u00a0{100 * accuracy.std:.1f}" if n > 1 else ""
    return f"{100 * accuracy.mean:.1f}{deviation}"


def time_taken(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
