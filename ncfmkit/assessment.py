"""What `assess.json` holds: what a set was found to be good for, by the rows of `EVALUATIONS` that were run."""

from typing import Annotated

from pydantic import Field

from ncfmkit.comparison import ComparedOn
from ncfmkit.records import Record
from ncfmkit.run_records import Accuracy, Count, Score


class Architectures(Record):
    """Students of several networks: for each network a row of the set, and of each kind of real images beside it."""

    rows: tuple[Score, ...]


class ContinualStage(Record):
    """A stage of class-incremental learning: fresh students, trained on the buffer's images of the classes seen.

    Attributes:
        seen: classes.
        steps: gradient steps of each student.
        bytes_per_class: of the buffer, with all classes.
        accuracy: on all test images of the classes seen, of each repeat.
    """

    seen: Annotated[int, Field(ge=1)]
    steps: Count
    bytes_per_class: Annotated[float, Field(ge=0)]
    accuracy: Accuracy


class ContinualBuffer(Record):
    """Class-incremental learning with one replay buffer.

    Attributes:
        set, label: as in a `Score`.
        per_class: images of a class, as they are stored.
        average: the average incremental accuracy of each repeat, the mean over its stages.
    """

    set: str
    label: str
    per_class: Count
    stages: tuple[ContinualStage, ...]
    average: Accuracy


class Continual(Record):
    """Class-incremental learning with the set and with real images as replay buffers.

    Attributes:
        network: of the students.
        n: repeats, each with a class order of its own.
        orders: of the classes, by their places in `data.classes`, in each repeat: all buffers share them.
    """

    network: str
    n: Annotated[int, Field(ge=1)]
    orders: tuple[tuple[Count, ...], ...]
    buffers: tuple[ContinualBuffer, ...]


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
        architectures, ...: the results, by the names of the rows; None: not measured.
    """

    set: AssessedSet
    data: ComparedOn
    recipe: dict[str, object]
    changed: tuple[str, ...] = ()
    device: str
    precision: str
    versions: dict[str, str]
    architectures: Architectures | None = None
    continual: Continual | None = None
