"""The manifest of a student's file: what is needed to use the student, and where it comes from. Needs no torch."""

from typing import Annotated, Literal, Self

from pydantic import FailFast, Field, JsonValue, model_validator

from ncfmkit.config import NetworkSettings
from ncfmkit.records import SparseRecord, at_most

LARGEST_SIDE = 16384  # pixels
WIDEST = 1 << 16  # channels of a block: the weights of one such block take 144 GiB
DEEPEST = 64  # blocks: each halves the side
MOST_PARAMETERS = 10_000  # tensors of a network

Fraction = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], FailFast()]


class NetworkRecord(SparseRecord):
    """An architecture, as :func:`ncfmkit.networks.build` takes it."""

    name: str
    width: Annotated[int, Field(ge=1, le=WIDEST)]
    depth: Annotated[int, Field(ge=1, le=DEEPEST)] | None

    def settings(self) -> NetworkSettings:
        """The same as settings of a run; keys that are not known here are left out."""
        return NetworkSettings(name=self.name, width=self.width, depth=self.depth)  # type: ignore[arg-type]


class TrainedOn(SparseRecord):
    """The set that a student was trained on."""

    name: str
    sha256: Annotated[dict[str, str], at_most(64)]  # of the set's tensors, by name
    manifest_sha256: str | None = None
    source: str | None = None  # the real data that it was made from
    license: str | None = None  # of those; None: not stated


class StudentManifest(SparseRecord):
    """All of a student but its parameters."""

    kind: Literal["student"]
    tool: str  # that wrote the file
    network: NetworkRecord
    channels: int  # 1 or 3
    size: Annotated[int, Field(ge=1, le=LARGEST_SIDE)]  # side of the images, in pixels
    mean: Annotated[tuple[float, ...], FailFast()]  # per channel, of images in [0, 1]
    std: Annotated[tuple[Annotated[float, Field(ge=0)], ...], FailFast()]  # likewise
    classes: Annotated[Names, Field(min_length=2)]
    test_accuracy: Fraction | None  # None: it was not tested
    trained_on: TrainedOn
    training: dict[str, JsonValue] = Field(default_factory=dict)  # the settings of the training, as they were
    # of each parameter's bytes, by name; `save` adds it
    sha256: Annotated[dict[str, str], at_most(MOST_PARAMETERS)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_the_channels(self) -> Self:
        if self.channels not in (1, 3):
            raise ValueError(f"expected 1 or 3 channels, got {self.channels}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected mean and std of {self.channels} channels")
        return self
