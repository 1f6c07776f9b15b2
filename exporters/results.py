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


class ComparedRun(SparseRecord):
    """A model on one provider, in a comparison: its accuracy, and what that costs.

    Attributes:
        name: unique in the comparison: the model's, with the provider where there are several.
        model: place of its `Validation` among the models.
        accuracy: in [0, 1].
        bytes: of the model, with weights that lie beside it.
        latency_ms: median of a call with one image; None: not timed.
        images_per_second: by the median call, at the batch size where it is highest; None: not timed.
        fastest, smallest: no other run is at least as accurate and has a lower latency, or as low a latency and a
            higher accuracy; the same for bytes. `fastest` is None of a run that was not timed.
        fastest_by_chance, smallest_by_chance: that this is so, or is not, hangs on accuracies that differ by no more
            than chance (McNemar's exact test of the two runs, with Holm's correction over all pairs of runs).
    """

    name: str
    model: Count
    provider: str
    device: str
    accuracy: Share
    bytes: Count
    latency_ms: float | None
    images_per_second: float | None
    fastest: bool | None
    smallest: bool
    fastest_by_chance: bool | None
    smallest_by_chance: bool


class Pair(SparseRecord):
    """A run against the reference, image by image.

    Attributes:
        name: of the run.
        difference: its accuracy minus the reference's, in percentage points.
        agreement: share of the images that get the same class.
        only_right: images that only the run gets right.
        only_reference_right: images that only the reference gets right.
        p: McNemar's exact test of the two, with Holm's correction over all pairs.
        p_alone: without it.
    """

    name: str
    difference: float
    agreement: Share
    only_right: Count
    only_reference_right: Count
    p: Share
    p_alone: Share


class ModelComparison(SparseRecord):
    """Several models on the same images and the same machine.

    Attributes:
        models: a validation each, as of one model alone. Speeds are measured by turns over all models.
        runs: a row for each model and provider.
        reference: what `pairs` are against: the name of the first run, or of the student where one is given.
        pairs: one for each run but the reference.
        failures: of all models, one line each.
    """

    models: Annotated[tuple[Validation, ...], Field(min_length=1)]
    runs: Annotated[tuple[ComparedRun, ...], Field(min_length=1)]
    reference: str
    pairs: tuple[Pair, ...]
    failures: tuple[str, ...]
