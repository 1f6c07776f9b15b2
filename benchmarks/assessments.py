"""`python -m benchmarks.assessments FOLDER ...`: what sets are good for, of finished runs of `ncfmkit assess`.

The result of each folder becomes a file in benchmarks/results/assessments/, named after the folder, which replaces an
earlier one. From these files, and from nothing else, docs/results.md is made; without a folder it is made anew.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkout import ROOT, commit
from benchmarks.page import markdown_table
from ncfmkit.assessment import Assessment
from ncfmkit.errors import UserError
from ncfmkit.jobs.assess import HEADINGS, RESULT_FILE
from ncfmkit.progress import plural
from ncfmkit.records import Record
from ncfmkit.reports.assessment import recipe_words, sections
from ncfmkit.reports.scores import byte_count, time_taken
from ncfmkit.reports.sections import Section

RESULTS = ROOT / "benchmarks" / "results" / "assessments"
PAGE = ROOT / "docs" / "results.md"

HEAD = """# What sets are good for

What `ncfmkit assess` found of a few sets. Generated from `benchmarks/results/assessments/` by `python -m
benchmarks.assessments`, which takes the results from the folders that the command wrote.
[method.md](method.md#what-else-a-set-is-good-for) says what each evaluation measures, and what it does not say. The
page that the command writes also has the plots and the pictures.
"""

NO_RUNS = """
No assessment is recorded yet.
"""


class Recorded(Record):
    """A file in benchmarks/results/assessments/.

    Attributes:
        name: of the folder.
        commit: of ncfmkit; date: of the recording, such as `2026-11-27`.
    """

    name: str
    commit: str
    date: str
    assessment: Assessment


def of_folder(folder: Path, revision: str) -> Recorded:
    """The result in a folder of `ncfmkit assess`; of paths only the last part is kept.

    Raises:
        UserError: there is none.
    """
    found = Assessment.read(folder / RESULT_FILE)
    named = found.set.model_copy(update={"path": Path(found.set.path).name})
    return Recorded(
        name=folder.resolve().name,
        commit=revision,
        date=datetime.date.today().isoformat(),
        assessment=found.model_copy(update={"set": named}),
    )


def recorded() -> list[Recorded]:
    """All that was recorded, by the names of the files."""
    return [Recorded.read(file) for file in sorted(RESULTS.glob("*.json"))]


def render(found: Sequence[Recorded]) -> str:
    """The text of docs/results.md."""
    return HEAD + ("".join(_of_set(one) for one in found) or NO_RUNS)


def _of_set(one: Recorded) -> str:
    found = one.assessment
    labels = "soft" if found.set.soft_labels else "hard"
    about = (
        f"{plural(found.set.per_class, 'stored image')} and {byte_count(found.set.bytes_per_class)} bytes per class, "
        f"{labels} labels; {found.data.name}, {found.data.test:,} test images; {found.device}, {found.precision}; "
        f"commit {one.commit}, {one.date}. Students, unless a section says otherwise: {recipe_words(found)}."
    )
    parts = [f"\n## {one.name}\n\n{about}\n"]
    for name, section in sections(found):
        heading = HEADINGS[name]
        took = time_taken(found.seconds[name])
        parts.append(f"\n### {heading.title}\n\n{heading.asks} Measured in {took}.\n\n{_text(section)}")
    return "".join(parts)


def _text(section: Section) -> str:
    parts = [" ".join(section.sentences)]
    for table in section.tables:
        rows = [[f"**{cell}**" for cell in row] if k in table.strong else row for k, row in enumerate(table.rows)]
        parts.append(markdown_table(table.columns, rows))
        if table.caption:
            parts.append(table.caption)
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--commit", help="the commit that measured; default: that of the checkout")
    arguments = parser.parse_args()
    revision = arguments.commit or commit()
    if revision is None:
        parser.error("--commit: no git repository here")
    try:
        new = [of_folder(folder, revision) for folder in arguments.folders]
        names = [one.name for one in new]
        if len(set(names)) < len(names):
            raise UserError(f"expected different names of folders, got {', '.join(names)}: rename one")
        RESULTS.mkdir(exist_ok=True)
        for one in new:
            one.write(RESULTS / f"{one.name}.json")
        PAGE.write_text(render(recorded()), encoding="utf-8")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
