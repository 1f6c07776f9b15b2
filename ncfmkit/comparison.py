"""What `compare.json` holds: students of several sets, trained alike, and their differences to the first set's."""

from typing import Annotated

from pydantic import Field

from ncfmkit.records import Record
from ncfmkit.run_records import Count, Score, Share

Points = Annotated[float, Field(ge=-1, le=1)]


class Difference(Record):
    """Test accuracy of a set's students minus that of the first set's, as fractions (docs/method.md, section 8).

    Attributes:
        mean: over the pairs of students of one seed.
        low, high: ends of its 95% interval, of this comparison alone; None: no test can be made.
        p: of the two-sided paired t-test, with Holm's correction over all comparisons.
        p_alone: without it.
    """

    mean: Points
    low: float | None
    high: float | None
    p: Share | None
    p_alone: Share | None


class ComparedSet(Record):
    """A set and its students.

    Attributes:
        name: short, unique in the comparison.
        path: as it was given.
        manifest_sha256: which set it is.
        per_class: stored images of a class.
        soft_labels: students are trained on its soft labels.
        score: of its students; `score.last.values[r]` is of the student of seed r.
        difference: to the first set; None: it is the first.
    """

    name: str
    path: str
    manifest_sha256: str
    per_class: Count
    soft_labels: bool
    score: Score
    difference: Difference | None = None


class ComparedOn(Record):
    """The real data that students were tested on; `test` counts the images."""

    name: str
    fingerprint: str
    test: Count
    classes: tuple[str, ...]


class Comparison(Record):
    """What `compare.json` holds.

    Attributes:
        data: what students were tested on.
        recipe: of all students: sections of the settings by name, as `config.from_dict` reads them.
        changed: the settings in it that the user set; the others are recorded in the first set.
        steps: gradient steps that every student takes, up to whole epochs.
        device, precision, versions: where they were trained.
        sets: in the order given, as far as their students are trained.
        left: names of the sets whose students are not trained yet.
    """

    data: ComparedOn
    recipe: dict[str, object]
    changed: tuple[str, ...] = ()
    steps: Count
    device: str
    precision: str
    versions: dict[str, str]
    sets: tuple[ComparedSet, ...]
    left: tuple[str, ...] = ()
