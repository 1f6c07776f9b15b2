"""The section of `architectures`: a row for each network, a column for each kind of images."""

from ncfmkit.assessment import Architectures
from ncfmkit.reports.scores import ABSENT, percent, share_of_whole
from ncfmkit.reports.sections import Section, SectionTable
from ncfmkit.run_records import Score


def section(found: Architectures) -> Section:
    """A row for each network, a column for each kind of images."""
    kinds = {"distilled": "the set", "mosaic": "mosaics", "random": "random real", "whole": "whole split"}
    names = list(dict.fromkeys(row.network for row in found.rows))
    by = {(row.network, row.set): row for row in found.rows}
    cells = []
    for name in names:
        rows = {kind: by[name, kind] for kind in kinds}
        share = share_of_whole(rows["distilled"], rows.values())
        cells.append(
            [
                name,
                *(percent(row.last, row.n) for row in rows.values()),
                ABSENT if share is None else f"{100 * share:.0f}",
            ]
        )
    sets = [by[name, "distilled"] for name in names]
    worst, best = min(sets, key=_accuracy), max(sets, key=_accuracy)
    behind = [name for name in names if by[name, "distilled"].last.mean <= by[name, "mosaic"].last.mean]
    sentences = [
        f"Students of {len(names)} networks reach from {100 * worst.last.mean:.1f}% ({worst.network}) to "
        f"{100 * best.last.mean:.1f}% ({best.network}) on the set; that of the students' recipe, {names[0]}, reaches "
        f"{100 * sets[0].last.mean:.1f}%."
    ]
    if behind:
        sentences.append(f"Mosaics of real images train {', '.join(behind)} at least as well as the set does.")
    caption = (
        f"Test accuracy in percent after the last epoch, mean ± standard deviation of {sets[0].n} students of each. "
        "Mosaics and random real images are as many as the set stores; all take as many gradient steps, those of the "
        "whole split at least as many."
    )
    return Section(
        sentences=sentences,
        tables=[
            SectionTable(
                columns=["network", *kinds.values(), "set, % of whole"], rows=cells, caption=caption, strong=[0]
            )
        ],
    )


def _accuracy(row: Score) -> float:
    return row.last.mean
