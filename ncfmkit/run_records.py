"""What the JSON files of a run hold: `run.json`, `metrics.jsonl` and `scores.json`.

Fields with a default came later than the others: runs of earlier versions lack them.
"""

from typing import Annotated

from pydantic import Field

from ncfmkit.records import Record

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class DataInfo(Record):
    """The real data of a run.

    Attributes:
        train, test: images of the splits; 0 without a test split.
        counts: images of each class, in class order, by split.
        size: side in pixels.
        fingerprint: sha256 in hex of content and preprocessing.
        skipped, skipped_images: how many images could not be read, and which.
        changed: pictures that were changed as they were read, by what was done.
        left_out: files that are no pictures, by kind.
    """

    name: str
    classes: tuple[str, ...]
    train: Count
    test: Count
    counts: dict[str, tuple[Count, ...]] = Field(default_factory=dict)
    size: Annotated[int, Field(ge=1)]
    channels: Annotated[int, Field(ge=1)]
    fingerprint: str
    skipped: Count = 0
    skipped_images: tuple[str, ...] = ()
    changed: dict[str, object] = Field(default_factory=dict)
    left_out: dict[str, Count] = Field(default_factory=dict)


class PoolInfo(Record):
    """The extractors of a run: their key in the cache, their test accuracies (None: not tested), what they took."""

    key: str
    accuracies: tuple[Share | None, ...]
    seconds: Seconds


class Timings(Record):
    """What the steps of a run took."""

    distill_seconds: Seconds
    steps: Count


class RunInfo(Record):
    """What `run.json` holds.

    Attributes:
        ncfmkit, command: the version that started the run, and the command line; None: started in Python.
        arguments: where the data were, as `DataArguments.recorded` gives it.
        baselines: rows of the table of baselines that are scored beside the set.
        settings: all of them, as `config.from_dict` reads them.
        threads: of torch on the CPU, of each rank.
        ranks: processes that started the run.
        added_to: the digest of the set that classes are added to; None: all are distilled.
        loaded: the digest of the set that `--init load` starts from; None: another start, or an earlier version.
        status: `started`, `distilling`, `scoring`, `done`; `joining`, while shards are merged.
        pool, timings: None until the pool is open, and the last step done.
        replaces: names of the runs that stay beside this one until it is done.
    """

    ncfmkit: str | None = None
    command: str | None = None
    arguments: dict[str, object]
    baselines: tuple[str, ...]
    data: DataInfo
    settings: dict[str, object]
    seed: int
    device: str
    precision: str
    compile: bool
    threads: Annotated[int, Field(ge=1)] | None = None
    ranks: Annotated[int, Field(ge=1)] = 1
    added_to: str | None = None
    loaded: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    status: str
    pool: PoolInfo | None = None
    timings: Timings | None = None
    replaces: tuple[str, ...] = ()


class MetricsRow(Record):
    """A line of `metrics.jsonl`.

    Attributes:
        step: steps done.
        matching, calibration: the losses; the latter is None where it is left out.
        lr: the learning rate of the images.
        seconds: since the first step, without interruptions.
    """

    step: Count
    matching: float
    calibration: float | None
    lr: float
    seconds: Seconds


class Accuracy(Record):
    """Test accuracy of the students of a row: mean, standard deviation (of the sample, 0 for one), of each student."""

    mean: Share
    std: Annotated[float, Field(ge=0)]
    values: tuple[Share, ...]


class Curve(Record):
    """Test accuracy in the course of training: mean and standard deviation over the students after each of `epochs`."""

    epochs: tuple[Count, ...]
    mean: tuple[Share, ...]
    std: tuple[Annotated[float, Field(ge=0)], ...]


class Score(Record):
    """A row of `scores.json`: students trained on one set of images.

    Attributes:
        set: `distilled`, or the name of a baseline.
        label: the same for people, with the images per class.
        images: stored images.
        network: of the students.
        decoded: images that each student is trained on.
        bytes_per_class: of what is stored: the set's pixels, levels and soft labels; a baseline's raw pixels, or the
            coded bytes of its pictures (docs/method.md, section 8).
        epochs, steps: how long each is trained, in epochs and gradient steps.
        evaluations: how often each is tested.
        n: how many students.
        last, best: accuracy after the last epoch, which is the result; in the best epoch, which peeks at the test set.
        classes: accuracy after the last epoch on the test images of each class, mean over the students, in class order;
            None for a class without test images.
        balanced: mean over those classes of the accuracy after the last epoch, of a test split that is unbalanced
            (docs/method.md, section 8); None for others, where it hardly differs from `last`.
        curve: accuracy in the course of training.
        seconds: of training and testing all of them, those of all ranks added up.
    """

    set: str
    label: str
    images: Count
    network: str
    decoded: Count
    bytes_per_class: Annotated[float, Field(ge=0)] | None = None
    epochs: Count
    steps: Count | None = None
    evaluations: Count
    n: Annotated[int, Field(ge=1)]
    last: Accuracy
    best: Accuracy
    classes: tuple[Share | None, ...] | None = None
    balanced: Accuracy | None = None
    curve: Curve | None = None
    seconds: Seconds


class Scores(Record):
    """What `scores.json` holds: where the students were trained and tested, and a row for the set and each baseline."""

    device: str
    precision: str
    versions: dict[str, str]
    rows: tuple[Score, ...]
