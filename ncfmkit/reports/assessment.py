"""Presents what a set was found to be good for: sections for the terminal, and one self-contained HTML page.

Everything here reads the result as `assess.json` holds it; nothing needs torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ncfmkit.assessment import Architectures, Assessment
from ncfmkit.config import from_dict
from ncfmkit.reports import layout, privacy_section
from ncfmkit.reports.scores import ABSENT, byte_count, percent, share_of_whole
from ncfmkit.reports.sections import Section, SectionTable, for_page, for_terminal
from ncfmkit.run_records import Score


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What stands above a section: a row of the table of evaluations, in words."""

    title: str
    asks: str
    source: str


def of_architectures(found: Architectures) -> Section:
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
        f"{100 * best.last.mean:.1f}% ({best.network}) on the set; the one that it was made with reaches "
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


SECTIONS: dict[str, Callable[[Any], Section]] = {  # by the names of the rows
    "architectures": of_architectures,
    "privacy": privacy_section.section,
}


def sections(found: Assessment) -> Iterator[tuple[str, Section]]:
    """Of all results that are there, by name."""
    for name, present in SECTIONS.items():
        result = getattr(found, name)
        if result is not None:
            yield name, present(result)


def tables(found: Assessment, headings: dict[str, Heading]) -> RenderableType:
    """All of the result for a terminal."""
    parts: list[RenderableType] = []
    for name, section in sections(found):
        parts += ["", Text(f"{headings[name].title}: {headings[name].asks}", style="bold"), for_terminal(section)]
    return Group(*parts, Text(f"\nstudents: {recipe_words(found)}"))


def recipe_words(found: Assessment) -> str:
    """How students are trained, and whose settings these are."""
    settings = from_dict(found.recipe)
    student = settings.student
    changed = f", with another {', '.join(found.changed)}" if found.changed else ""
    return (
        f"{settings.network.name}, {student.optimizer}, lr {student.lr:g}, batches of up to {student.batch}, "
        f"augmentation {student.augment}, CutMix {student.cutmix:g}, seed {settings.seed}: the set's own recipe"
        f"{changed}"
    )


def write_page(path: Path, found: Assessment, headings: dict[str, Heading]) -> Path:
    """Writes the page: one file without scripts or external addresses."""
    of = found.set
    return layout.write_page(
        path,
        "assess.html",
        title=f"{of.name}: what the set is good for",
        sections=[(headings[name], for_page(section, name)) for name, section in sections(found)],
        students=f"Students, unless a section says otherwise: {recipe_words(found)}.",
        provenance={
            "Set": of.path,
            "Stored": f"{of.per_class:,} images and {byte_count(of.bytes_per_class)} bytes per class, "
            f"{'soft' if of.soft_labels else 'hard'} labels",
            "Manifest": of.manifest_sha256,
            "Test images": f"{found.data.test:,} of {found.data.name}",
            "Fingerprint": found.data.fingerprint,
            "Device": found.device,
            "Precision": found.precision,
            "Versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        },
    )
