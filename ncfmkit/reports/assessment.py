"""Presents what a set was found to be good for: sections for the terminal, and one self-contained HTML page.

Everything here reads the result as `assess.json` holds it; nothing needs torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ncfmkit.assessment import Assessment
from ncfmkit.config import from_dict
from ncfmkit.progress import plural
from ncfmkit.reports import (
    architectures_section,
    continual_section,
    layout,
    privacy_section,
    ranking_section,
    search_section,
)
from ncfmkit.reports.scores import byte_count, changed_words, time_taken
from ncfmkit.reports.sections import Section, for_page, for_terminal


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What stands above a section: a row of the table of evaluations, in words."""

    title: str
    asks: str
    source: str


SECTIONS: dict[str, Callable[[Any], Section]] = {  # by the names of the rows
    "privacy": privacy_section.section,
    "ranking": ranking_section.section,
    "continual": continual_section.section,
    "search": search_section.section,
    "architectures": architectures_section.section,
}


def sections(found: Assessment) -> Iterator[tuple[str, Section]]:
    """Of all results that are there, by name."""
    for name, present in SECTIONS.items():
        result = getattr(found, name)
        if result is not None:
            yield name, present(result)


def tables(found: Assessment, headings: dict[str, Heading], asked: Sequence[str] = ()) -> RenderableType:
    """What was asked for, or all of the result, for a terminal."""
    parts: list[RenderableType] = []
    for name, section in sections(found):
        if name in asked or not asked:
            heading = f"{headings[name].title}: {headings[name].asks}"
            parts += ["", Text(heading, style="bold"), for_terminal(section)]
    return Group(*parts, Text(f"\nstudents: {recipe_words(found)}"))


def recipe_words(found: Assessment) -> str:
    """How students are trained, and whose settings these are."""
    settings = from_dict(found.recipe)
    student = settings.student
    changed = changed_words(found.recipe, found.changed)
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
        sections=[
            (headings[name], for_page(section, name), time_taken(found.seconds[name]))
            for name, section in sections(found)
        ],
        students=f"Students, unless a section says otherwise: {recipe_words(found)}.",
        provenance={
            "Set": of.path,
            "Stored": f"{plural(of.per_class, 'image')} and {byte_count(of.bytes_per_class)} bytes per class, "
            f"{'soft' if of.soft_labels else 'hard'} labels",
            "Manifest": of.manifest_sha256,
            "Test images": f"{found.data.test:,} of {found.data.name}",
            "Fingerprint": found.data.fingerprint,
            "Device": found.device,
            "Precision": found.precision,
            "Versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        },
    )
