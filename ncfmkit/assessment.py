"""What `assess.json` holds: what a set was found to be good for, by the rows of `EVALUATIONS` that were run."""

from typing import Annotated

from pydantic import Field

from ncfmkit.comparison import ComparedOn
from ncfmkit.records import Record
from ncfmkit.run_records import Count, Score, Seconds


class Architectures(Record):
    """Students of several networks: for each network a row of the set, and of each kind of real images beside it."""

    rows: tuple[Score, ...]


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
