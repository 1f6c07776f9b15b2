"""What `validate` finds, as `validation.json` holds it: typed records. Nothing here needs torch.

Shapes: K classes.
"""

from typing import Annotated

from pydantic import Field

from ncfmkit.exporters.accuracy import ClassRow, Count, Share, Tally
from ncfmkit.exporters.contract import ModelMetadata, NoMetadata
from ncfmkit.exporters.timing import SpeedSection
from ncfmkit.records import SparseRecord


class ModelFacts(SparseRecord):
    """The model that was validated."""

    path: str
    bytes: int  # with weights that lie beside it
    sha256: str
    opset: int | None  # None: an engine, or the onnx package is not there to read it
    layout: str  # a row of LAYOUTS
    channels: int
    size: int  # side of the images in pixels
    output: str  # logits or probabilities
    classes: int  # how many
    metadata: ModelMetadata | NoMetadata


class DataFacts(SparseRecord):
    """The real data, of whose test split the results are."""

    name: str
    fingerprint: str
    images: Annotated[int, Field(ge=1)]  # of the test split
    classes: tuple[str, ...]  # K names
    size: int
    channels: int
    skipped: Count  # images that could not be read


class Run(Tally):
    """A classifier on all test images."""

    name: str
    device: str


class StudentRun(Run):
    """The student in float32 torch."""

    path: str
    network: str
    recorded_accuracy: Share | None  # in the student's file


class ProviderRun(Run):
    """The model on one provider."""

    provider: str
    placement: dict[str, dict[str, int]]  # nodes by the provider that ran them, and per provider by operator
    classes: tuple[ClassRow, ...]
    accuracy_drop: float | None  # percentage points below the reference; None: there is none
    agreement: Share | None = None  # this and the next two: with the student, where it was run
    disagreements: Count | None = None
    max_abs_difference: float | None = None


class Reference(SparseRecord):
    """What accuracies are compared with."""

    accuracy: Share
    what: str  # in words


class Conditions(SparseRecord):
    """What the results depend on beside model and data."""

    threads: int
    versions: dict[str, str]
    batch: int  # images at a time, for accuracies


class Validation(SparseRecord):
    """All that a validation found."""

    model: ModelFacts
    data: DataFacts
    student: StudentRun | None
    reference: Reference | None
    providers: Annotated[tuple[ProviderRun, ...], Field(min_length=1)]
    left_out: dict[str, str]  # providers, and why
    max_accuracy_drop: float | None  # percentage points: the gate
    conditions: Conditions
    speed: tuple[SpeedSection, ...] | None  # by device; None: not timed
    complete: bool  # False: timing was interrupted
    failures: tuple[str, ...]  # what did not hold, one line each

    @property
    def runs(self) -> tuple[Run, ...]:
        """Whatever was run on the test images: the student, if there is one, and the model on each provider."""
        return (*([self.student] if self.student else []), *self.providers)
