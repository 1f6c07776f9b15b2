"""What `assess.json` holds: what a set was found to be good for, by the rows of `EVALUATIONS` that were run."""

from typing import Annotated, Literal

from pydantic import Field

from ncfmkit.comparison import ComparedOn, Points
from ncfmkit.records import Record
from ncfmkit.run_records import Count, Score, Seconds, Share

Images = Literal["set", "random", "whole"]
Labels = Literal["hard", "soft"]


class Architectures(Record):
    """Students of several networks: for each network a row of the set, and of each kind of real images beside it."""

    rows: tuple[Score, ...]


class RankingCell(Record):
    """Students of the grid of DD-Ranking.

    Attributes:
        images: the set, as many random real images as it stores, or the whole training split.
        labels: what the students are trained on.
        augmented: by the recipe's augmentation and CutMix; without them otherwise.
        score: of these students; `score.last.values[r]` is of repeat r.
    """

    images: Images
    labels: Labels
    augmented: bool
    score: Score


class Gap(Record):
    """A difference of test accuracies, as fractions: mean, standard deviation (of the sample, 0 for one), by repeat."""

    mean: Points
    std: Annotated[float, Field(ge=0)]
    values: tuple[Points, ...]


class RobustScore(Record):
    """A score from 0 to 1: mean, standard deviation (of the sample, 0 for one), by repeat."""

    mean: Share
    std: Annotated[float, Field(ge=0)]
    values: tuple[Share, ...]


class Ranking(Record):
    """DD-Ranking scores (docs/method.md, section 8). Each is computed for the students of one repeat.

    Attributes:
        cells: the grid of students.
        labels: of the students in `ior` and `ars`: soft where the set has soft labels.
        hlr: accuracy of the whole split minus that of the set, both with hard labels.
        ior: accuracy of the set minus that of random real images, both with `labels`.
        ior_unaugmented: the same without augmentation; None: the recipe augments nothing.
        lrs: the label-robust score, of `ior / 2 - hlr / 2`.
        ars: the augmentation-robust score, of `ior / 2 + ior_unaugmented / 2`; None: the recipe augments nothing.
    """

    cells: tuple[RankingCell, ...]
    labels: Labels
    hlr: Gap
    ior: Gap
    ior_unaugmented: Gap | None
    lrs: RobustScore
    ars: RobustScore | None


class AssessedSet(Record):
    """The set that was assessed.

    Attributes:
        name: the last part of `path`.
        path: as it was given.
        manifest_sha256: which set it is.
        per_class: stored images of a class.
        bytes_per_class: of its pixels, the levels that they lie between and the soft labels.
        soft_labels: students are trained on its soft labels.
    """

    name: str
    path: str
    manifest_sha256: str
    per_class: Count
    bytes_per_class: Annotated[float, Field(ge=0)]
    soft_labels: bool


class Assessment(Record):
    """What `assess.json` holds.

    Attributes:
        set: what was assessed.
        data: the real data.
        recipe: of the students: sections of the settings by name, as `config.from_dict` reads them.
        changed: the settings in it that the user set; the others are recorded in the set.
        device, precision, versions: where it was measured.
        seconds: what each evaluation took, by name, whenever its parts were measured.
        architectures, ...: the results, by the names of the rows; None: not measured.
    """

    set: AssessedSet
    data: ComparedOn
    recipe: dict[str, object]
    changed: tuple[str, ...] = ()
    device: str
    precision: str
    versions: dict[str, str]
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    architectures: Architectures | None = None
    ranking: Ranking | None = None
