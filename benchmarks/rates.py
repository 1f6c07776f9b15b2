"""`python -m benchmarks.rates RUN ...`: accuracy by bytes per class, of finished runs and of their baselines.

Each run becomes a file in benchmarks/results/rates/, named after its directory, which replaces an earlier one. From
these files, and from nothing else, docs/rates.md and docs/rates.svg are made; without a run they are made anew. Score a
run with the baselines that it is to stand beside: `ncfmkit distill DATA --bytes 12288/class --baselines
random,webp,jpeg,mosaic,herding,herding-webp,whole`. `--scores RUN SCORES.json` adds what was scored later: `ncfmkit
evaluate RUN --data DATA --baselines herding-webp --json > SCORES.json`.

`--student MODEL.onnx VALIDATION.json` adds an exported student, shipped in place of a set: `ncfmkit train`, `ncfmkit
export --precision int8`, `ncfmkit validate MODEL.onnx --json > VALIDATION.json`.
"""

import argparse
import datetime
import hashlib
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from benchmarks.checkout import ROOT, commit
from benchmarks.page import markdown_table
from ncfmkit.config import from_dict, known_names
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import ModelMetadata
from ncfmkit.exporters.results import Validation
from ncfmkit.files import sha256_of
from ncfmkit.records import Record
from ncfmkit.reports.curves import MARKERS, log_bytes
from ncfmkit.reports.layout import PAPER, SERIES, SOFT, STYLE
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import Count, Score, Scores, Share
from ncfmkit.scoring.baselines import BASELINES
from ncfmkit.scoring.students import describe_network

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import Container
    from matplotlib.figure import Figure

RESULTS = ROOT / "benchmarks" / "results" / "rates"
PAGE = ROOT / "docs" / "rates.md"
PLOT = "rates.svg"  # beside the page
STUDENT = "student as int8 ONNX"
ABSOLUTE = r"(?<![\w.:/])/(\S*/)?"  # the folders of a path in a command line, which say nothing on another machine


@dataclass(frozen=True, kw_only=True)
class Published:
    """A record that others published."""

    bytes_per_class: int
    percent: float


# The literature counts 1, 10 and 50 images of CIFAR-10 in float32.
SOURCE = "low-bit patches with trajectory matching, arXiv 2603.13346"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cifar10": (
        Published(bytes_per_class=12_288, percent=68.9),
        Published(bytes_per_class=122_880, percent=79.0),
        Published(bytes_per_class=614_400, percent=83.8),
    )
}

HEAD = """# Accuracy by bytes

How accurate students are that learn from so many bytes per class: of sets by ncfmkit, and of what else could be shipped
in their place. Generated from `benchmarks/results/rates/` by `python -m benchmarks.rates`, which takes the rows from
finished runs.

What counts as a byte, and what each baseline is, is in [method.md](method.md#8-scoring-a-set). Accuracy is percent of
the test images after the last epoch, mean ± standard deviation of n students; all rows of a run take equally many
gradient steps, those of the whole split at least as many; rows of different runs may differ in them. A command makes
its set with the commit beside it: later versions may choose other images, bits and color for the same bytes. Baselines
of a run that its command does not name were scored later, by `ncfmkit evaluate`.
"""

OF_STUDENTS = """
An exported student has the bytes of its file, divided by the classes: it answers as it is, but it trains no other
network, and nobody sees what it learned from.
"""

NO_RUNS = """
No run is recorded yet.
"""


class Rate(Record):
    """A row: what students learned from, or a student that is shipped itself.

    Attributes:
        set: `distilled`, the name of a baseline, or `student`.
        label, network, steps: as in `scores.json`, of a set in fewer bytes with its bits and color; an exported
            student says no steps.
        mean, std, n: test accuracy after the last epoch; std is 0 for one student.
    """

    set: str
    label: str
    network: str
    steps: Count | None
    bytes_per_class: Annotated[float, Field(gt=0)]
    mean: Share
    std: Annotated[float, Field(ge=0)]
    n: Annotated[int, Field(ge=1)]

    @property
    def series(self) -> str:
        """The line that it is a point of."""
        if self.set in BASELINES:
            return BASELINES[self.set].label.replace(", {} per class", "")
        return {"distilled": "sets by ncfmkit", "student": STUDENT}.get(self.set, self.set)


class Rates(Record):
    """What a file in benchmarks/results/rates/ holds: the rows of a run, or of an exported student.

    Attributes:
        data: name of the real data.
        command: that made it, absolute paths without their folders; None: Python code.
        device: that the students were trained and tested on, and the precision.
        commit: of ncfmkit; date: of the recording, such as `2026-11-27`.
    """

    run: str
    data: str
    command: str | None
    device: str
    commit: str
    date: str
    rows: Annotated[tuple[Rate, ...], Field(min_length=1)]


def of_run(path: Path, revision: str, later: Path | None = None) -> Rates:
    """The rows of a run directory.

    Args:
        later: what `ncfmkit evaluate RUN --json` printed, whose baselines stand beside the run's own; None: no more.

    Raises:
        UserError: the run is not finished, was not scored, or does not know the bytes of its rows; or `later` is of
            another set or machine.
    """
    run = RunDirectory.open(path)
    info, scores = run.info(), run.scores()
    if info.status != "done" or scores is None:
        raise UserError(f"{path} is not finished, or was not scored")
    how = from_dict(known_names(info.settings)).distill
    rows = []
    for row in (*scores.rows, *_baselines_of(path, scores, later)):
        if row.bytes_per_class is None:
            raise UserError(
                f"{path} does not say the bytes per class of {row.label!r}, because an earlier version scored it: "
                "distill it anew"
            )
        rate = Rate(
            set=row.set,
            label=f"{row.label}, {how.stored_as}" if row.set == "distilled" and how.is_quantized else row.label,
            network=row.network,
            steps=row.steps,
            bytes_per_class=row.bytes_per_class,
            mean=row.last.mean,
            std=row.last.std,
            n=row.n,
        )
        rows.append(rate)
    return Rates(
        run=path.resolve().name,
        data=info.data.name,
        command=info.command and re.sub(ABSOLUTE, "", info.command),
        device=f"{scores.device}, {scores.precision}",
        commit=revision,
        date=datetime.date.today().isoformat(),
        rows=tuple(rows),
    )


def _baselines_of(path: Path, scores: Scores, later: Path | None) -> list[Score]:
    """What was scored after the run, in the same way."""
    if later is None:
        return []
    found, known = Scores.read(later), {row.set for row in scores.rows}
    same = found.rows[0].last == scores.rows[0].last and found.rows[0].steps == scores.rows[0].steps
    if not same or (found.device, found.precision) != (scores.device, scores.precision):
        raise UserError(
            f"{later} is not of {path} on the same machine: expected its students, as they are in scores.json"
        )
    return [row for row in found.rows if row.set not in known]


def of_student(model: Path, validation: Path, revision: str) -> Rates:
    """The row of an exported student: the bytes of its file, and the accuracy that its validation found.

    Args:
        model: an ONNX file of `ncfmkit export --precision int8`.
        validation: what `ncfmkit validate MODEL --json` printed, or the `validation.json` that it wrote.

    Raises:
        UserError: the validation is of another file, or the model is not one of ours in int8.
    """
    found = Validation.read(validation)
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    if found.model.sha256 != sha256_of(model):
        raise UserError(f"{validation} is the validation of another file than {model}: validate it again")
    about = found.model.metadata
    if not isinstance(about, ModelMetadata) or about.precision != "int8":
        raise UserError(f"{model}: expected an int8 model of ncfmkit: export it with --precision int8")
    ran, network = found.providers[0], about.student.network
    return Rates(
        run=model.stem,
        data=found.data.name,
        command=None,
        device=f"{ran.device}, {ran.provider}",
        commit=revision,
        date=datetime.date.today().isoformat(),
        rows=(
            Rate(
                set="student",
                label=STUDENT,
                network="unknown" if network is None else describe_network(network.settings()),
                steps=None,
                bytes_per_class=found.model.bytes / len(found.data.classes),
                mean=ran.accuracy,
                std=0.0,
                n=1,
            ),
        ),
    )


def recorded() -> list[Rates]:
    """All that was recorded, by the names of the files."""
    return [Rates.read(file) for file in sorted(RESULTS.glob("*.json"))]


def published(data: str) -> tuple[Published, ...]:
    """What was published on data of that name."""
    return PUBLISHED.get(data.lower().replace("-", ""), ())


def by_data(found: Sequence[Rates]) -> dict[str, list[Rates]]:
    names = sorted({rates.data for rates in found})
    return {name: [rates for rates in found if rates.data == name] for name in names}


def render(found: Sequence[Rates]) -> str:
    """The text of docs/rates.md."""
    if not found:
        return HEAD + NO_RUNS
    students = any(row.set == "student" for rates in found for row in rates.rows)
    text = HEAD + (OF_STUDENTS if students else "") + f"\n![accuracy by bytes per class]({PLOT})\n"
    for data, of_data in by_data(found).items():
        text += f"\n## {data}\n\n{_table(data, of_data)}\n\n"
        text += "\n".join(_about(rates) for rates in of_data) + "\n"
    return text


def _table(data: str, found: Sequence[Rates]) -> str:
    cells = [(row.bytes_per_class, _cells(row, rates.run)) for rates in found for row in rates.rows]
    for record in published(data):
        said = [f"*published under other settings*: {SOURCE}", f"{record.bytes_per_class:,}", f"{record.percent:.1f}"]
        cells.append((record.bytes_per_class, [*said, "", "", "", ""]))
    cells.sort(key=lambda row: row[0])
    head = ["", "bytes per class", "accuracy %", "n", "network", "gradient steps", "run"]
    return markdown_table(head, [row for _, row in cells])


def _cells(row: Rate, run: str) -> list[str]:
    deviation = f" ± {100 * row.std:.1f}" if row.n > 1 else ""
    figure = f"{100 * row.mean:.1f}{deviation}"
    label, figure = (f"**{text}**" if row.set == "distilled" else text for text in (row.label, figure))
    steps = "" if row.steps is None else f"{row.steps:,}"
    return [label, f"{row.bytes_per_class:,.0f}", figure, str(row.n), row.network, steps, run]


def _about(rates: Rates) -> str:
    command = "" if rates.command is None else f"`{rates.command}`; "
    return f"- {rates.run}: {command}{rates.device}; commit {rates.commit}, {rates.date}"


def draw(found: Sequence[Rates], figure: "Figure") -> None:
    """A panel for each data set: accuracy against bytes per class, a line for each kind of row."""
    panels = by_data(found)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (data, of_data) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, data, [row for rates in of_data for row in rates.rows])


def _draw_panel(axis: "Axes", data: str, rows: Sequence[Rate]) -> None:
    several = len({row.network for row in rows if row.set != "student"}) > 1
    lines: dict[str, list[Rate]] = {}
    for row in sorted(rows, key=lambda row: row.bytes_per_class):
        name = f"{row.series}, {row.network}" if several and row.set != "student" else row.series
        lines.setdefault(name, []).append(row)
    places = {name: place for place, name in enumerate(("distilled", *BASELINES, "student"))}
    order = sorted(lines, key=lambda name: places.get(lines[name][0].set, len(places)))
    colors, markers = itertools.cycle(SERIES[1:]), itertools.cycle(MARKERS)  # the first color is that of the sets
    drawn: list[Artist | Container] = []
    for marker, name in zip(markers, order, strict=False):
        of_line = lines[name]
        line = axis.errorbar(
            [row.bytes_per_class for row in of_line],
            [100 * row.mean for row in of_line],
            [100 * row.std for row in of_line],
            color=SERIES[0] if of_line[0].set == "distilled" else next(colors),
            marker=marker,
            linewidth=2.4 if of_line[0].set == "distilled" else 1.2,
            markersize=6,
            elinewidth=1.2,
            label=name,
        )
        drawn.append(line)
    records = published(data)
    if records:
        drawn += axis.plot(
            [record.bytes_per_class for record in records],
            [record.percent for record in records],
            color=SOFT,
            marker="*",
            markersize=10,
            markerfacecolor="none",
            linestyle="none",
            label="published under other settings\n(low-bit patches, trajectory matching)",
        )
    log_bytes(axis, [row.bytes_per_class for row in rows] + [record.bytes_per_class for record in records])
    axis.set_title(data)
    axis.set_ylabel("test accuracy %")
    axis.legend(handles=drawn, loc="upper left", bbox_to_anchor=(1.01, 1.02))


def write(found: Sequence[Rates], page: Path) -> None:
    """Writes the page, and its plot where something is recorded; the plot holds the sha256 of the page's text."""
    import matplotlib
    from matplotlib.figure import Figure

    text, plot = render(found), page.with_name(PLOT)
    page.write_text(text, encoding="utf-8")
    if not found:
        plot.unlink(missing_ok=True)
        return
    # text as shapes: a page on the web shows an SVG file without the fonts of this machine
    with matplotlib.rc_context(STYLE | {"savefig.facecolor": PAPER, "svg.fonttype": "path"}):
        figure = Figure(figsize=(9.25, 4.2 * len(by_data(found))))
        draw(found, figure)
        figure.savefig(plot, format="svg", metadata={"Date": None, "Description": stamp(text)})


def stamp(text: str) -> str:
    """What the plot of a page says of it."""
    return f"sha256 of {PAGE.name}: {hashlib.sha256(text.encode()).hexdigest()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--scores", nargs=2, type=Path, action="append", default=[], metavar=("RUN", "SCORES.json"))
    parser.add_argument(
        "--student", nargs=2, type=Path, action="append", default=[], metavar=("MODEL.onnx", "VALIDATION.json")
    )
    parser.add_argument("--commit", help="the commit that made them; default: that of the checkout")
    arguments = parser.parse_args()
    revision = arguments.commit or commit()
    if revision is None:
        parser.error("--commit: no git repository here")
    try:
        new = [of_run(path, revision) for path in arguments.runs]
        new += [of_run(path, revision, later) for path, later in arguments.scores]
        new += [of_student(model, validation, revision) for model, validation in arguments.student]
        names = [rates.run for rates in new]
        if len(set(names)) < len(names):
            raise UserError(f"expected different names of runs and models, got {', '.join(names)}: rename one")
        RESULTS.mkdir(exist_ok=True)
        for rates in new:
            rates.write(RESULTS / f"{rates.run}.json")
        write(recorded(), PAGE)
    except UserError as error:
        sys.exit(str(error))
    for rates in new:
        for row in rates.rows:
            print(f"{rates.run}: {row.label}: {row.bytes_per_class:,.0f} bytes per class, {100 * row.mean:.1f}%")


if __name__ == "__main__":
    main()
