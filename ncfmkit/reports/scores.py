"""Tables of scores for the terminal."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

ABSENT = "–"
SCORE_COLUMNS = {
    "set": "set",
    "network": "network",
    "steps": "gradient steps",
    "images": "images stored",
    "decoded": "trained on",
    "last": "accuracy %, last epoch",
    "share": "% of whole set",
    "n": "n",
    "best": "best epoch (peeks at the test set)",
}
SHORT_COLUMNS = {  # for a terminal of 80 columns; the caption says what they are
    "steps": "steps",
    "images": "stored",
    "decoded": "trained on",
    "last": "last",
    "share": "% of whole",
    "best": "best*",
}
TEXT_COLUMNS = ("set", "network")


def score_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `scores.json` for a terminal. Accuracies are percent, mean ± standard deviation of n students."""
    columns, networks = score_columns(rows)
    caption = (
        f"last: test accuracy in percent after the last epoch, mean ± standard deviation of n students{networks}\n"
        "best*: the same of the best epoch (peeks at the test set)"
    )
    all_cells = score_cells(rows)
    if "network" in columns:  # below the label: a column of its own would leave too little to both
        all_cells = [cells | {"set": f"{cells['set']}\n{cells['network']}"} for cells in all_cells]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    table.caption, table.caption_justify = Text(f"\n{caption}"), "left"
    shown = {key: SHORT_COLUMNS.get(key, header) for key, header in columns.items() if key != "network"}
    for key, header in shown.items():
        if key in TEXT_COLUMNS:
            table.add_column(header)
        else:  # figures are never broken, so that a narrow terminal wraps the labels
            width = max(map(len, [*header.split(), *(cells[key] for cells in all_cells)]))
            table.add_column(textwrap.fill(header, width), justify="right", no_wrap=True)
    for row, cells in zip(rows, all_cells, strict=True):
        table.add_row(*(Text(cells[key]) for key in shown), style="bold" if row.get("set") == "distilled" else "")
    return table


def score_columns(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, str], str]:
    """The columns to show, and what the caption says of a network that all rows share: it needs no column."""
    networks = {row.get("network") for row in rows}
    if len(networks) != 1:
        return SCORE_COLUMNS, ""
    (network,) = networks
    return {k: v for k, v in SCORE_COLUMNS.items() if k != "network"}, f", {network}" if network else ""


def score_cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "set": str(row.get("label") or row.get("set") or ABSENT),
            "network": str(row.get("network") or ABSENT),
            "steps": counted(row.get("steps")),
            "images": counted(row.get("images")),
            "decoded": counted(row.get("decoded")),
            "last": percent(row, "last"),
            "share": "" if (share := share_of_whole(row, rows)) is None else f"{100 * share:.1f}",
            "n": counted(row.get("n")),
            "best": percent(row, "best"),
        }
        for row in rows
    ]


def share_of_whole(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> float | None:
    """Accuracy relative to that of the same network trained on the whole set; None if there is no such row."""
    whole = [r for r in rows if r.get("set") == "whole" and r.get("network") == row.get("network")]
    part, of = mean_accuracy(row, "last"), mean_accuracy(whole[0], "last") if whole else None
    return part / of if row.get("set") != "whole" and part is not None and of else None


def mean_accuracy(row: dict[str, Any], epoch: str) -> float | None:
    mean = (row.get(epoch) or {}).get("mean")
    return mean if mean is not None and math.isfinite(mean) else None


def percent(row: dict[str, Any], epoch: str) -> str:
    """`89.3 ± 0.4`, never broken across lines; a single student has no deviation."""
    mean, std, n = mean_accuracy(row, epoch), (row.get(epoch) or {}).get("std"), row.get("n")
    if mean is None:
        return ABSENT
    if n == 1 or std is None or not math.isfinite(std):
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f}\u00a0±\u00a0{100 * std:.1f}"


def counted(value: Any) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else str(value)
