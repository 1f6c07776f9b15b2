"""What `assess.json` holds: what a set was found to be good for, by the rows of `EVALUATIONS` that were run."""

from typing import Annotated, Literal

from pydantic import Field

from ncfmkit.comparison import ComparedOn, Points
from ncfmkit.records import Record
from ncfmkit.run_records import Accuracy, Count, Score, Seconds, Share

Images = Literal["set", "random", "whole"]
Labels = Literal["hard", "soft"]
Natural = Annotated[int, Field(ge=1)]
Correlated = Annotated[float, Field(ge=-1, le=1)]
Distance = Annotated[float, Field(ge=0)]
QUANTILES = 21  # of distances, evenly spaced from the smallest to the largest


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


class SearchedNetwork(Record):
    """A network of the space of an architecture search (ncfmkit/networks/search_space.py)."""

    depth: Natural
    width: Natural
    activation: str
    norm: str
    pooling: str

    def __str__(self) -> str:
        """Such as `2 x 64, ReLU, instance norm, no pooling`."""
        norm, pooling = ("no" if way == "none" else way for way in (self.norm, self.pooling))
        return f"{self.depth} x {self.width}, {self.activation}, {norm} norm, {pooling} pooling"


class Correlation(Record):
    """A rank correlation with the ends of its 95% interval."""

    value: Correlated
    low: Correlated
    high: Correlated


class SearchRow(Record):
    """Networks trained on one set of images, a student of each.

    Attributes:
        set: `distilled`, `random`, `early` (the whole split, for as many steps as the set's students take), `whole`.
        label: the same for people.
        images: stored images.
        epochs, steps: how long each is trained, in epochs and gradient steps.
        accuracies: of each network, on the test images, in the order of `Search.networks`.
        seconds: of training all of them and testing each once.
    """

    set: str
    label: str
    images: Count
    epochs: Count
    steps: Count
    accuracies: tuple[Share, ...]
    seconds: Seconds


class Proxy(SearchRow):
    """Images that stand for the whole split in a search.

    Attributes:
        spearman, kendall: rank correlations of its accuracies with those on the whole split; None: all are equal.
        chosen: the place of the network that it chooses, its most accurate one.
        regret: accuracy on the whole split of the best network of all, minus that of the chosen one.
    """

    spearman: Correlation | None
    kendall: Correlation | None
    chosen: Count
    regret: Share


class Search(Record):
    """An architecture search.

    Attributes:
        space: how many networks there are to draw from.
        networks: those that were drawn.
        proxies: the set and its rivals.
        whole: the whole training split, trained on in full.
    """

    space: Natural
    networks: tuple[SearchedNetwork, ...]
    proxies: tuple[Proxy, ...]
    whole: SearchRow


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


class Distances(Record):
    """Distances of images to the nearest one of others: roots of the mean squared difference of values in [0, 1].

    Attributes:
        quantiles: `QUANTILES` of them; the first one is the smallest distance.
    """

    mean: Distance
    quantiles: Annotated[tuple[Distance, ...], Field(min_length=QUANTILES, max_length=QUANTILES)]


class Began(Record):
    """How well a set shows which training images its images began as: those are nearer to it, if it kept something.

    Attributes:
        images: training images that the images of the set began as.
        auc: how distances to the nearest image of the set tell those from the other training images: area under the
            ROC curve, mean over the classes; 0.5 is guessing.
        deviation: the standard deviation of that by chance.
        nearest: the share of images of the set whose nearest training image is one that the set began as.
        chance: what that share is by chance.
        distances, others: of those training images, and of the others, to the nearest image of the set.
    """

    images: Count
    auc: Share
    deviation: Distance
    nearest: Share
    chance: Share
    distances: Distances
    others: Distances


class NearestPair(Record):
    """An image of a set and the real images of its class that are nearest to it.

    Attributes:
        label: name of the class.
        training, held_out: distances to the nearest training and the nearest held-out image.
        pictures: PNG files in base64: the image, the training image, the held-out image, as they were compared, but
            reduced to at most 32 pixels.
    """

    label: str
    training: Distance
    held_out: Distance
    pictures: Annotated[tuple[str, ...], Field(min_length=3, max_length=3)]


class Nearest(Record):
    """The real images that are nearest to the images of a set, each within its class.

    Attributes:
        images: cells of the stored images, which are compared.
        side: of a cell, in pixels; real images are reduced to it.
        training_images, held_out_images: that they are compared with.
        real_images: held-out images that are compared with training images in the same way.
        draws, drawn_images: of equally many training and held-out images of each class; how many on either side.
        nearer_to_training: the share of images that are nearer to a training image of a draw than to all held-out
            images of it, mean over the draws; 0.5 by chance.
        nearer_deviation: the standard deviation of the share by chance, where it is chance which of the real images
            are training images; less for the mean over several draws.
        drawn_training, drawn_held_out, drawn_real: distances to the training images, and to the held-out images of
            the draws; distances of the held-out images to the training images of the draws.
        nearest_is_training: the share of images to which a training image is nearest among all real images.
        chance, chance_deviation: mean and standard deviation of that share by chance.
        training, real: distances of the images, and of the held-out images, to all training images.
        nearer_than_real: the share of images that are nearer to a training image than every held-out image is.
        initial: what the images began as; None: not known.
        began: None: they did not begin as real images, or it is not known as which.
        pairs: the images that are nearest to a training image.
    """

    images: Count
    side: Count
    training_images: Count
    held_out_images: Count
    real_images: Count
    draws: Count
    drawn_images: Count
    nearer_to_training: Share
    nearer_deviation: Distance
    drawn_training: Distances
    drawn_held_out: Distances
    drawn_real: Distances
    nearest_is_training: Share
    chance: Share
    chance_deviation: Distance
    training: Distances
    real: Distances
    nearer_than_real: Share
    initial: str | None
    began: Began | None
    pairs: tuple[NearestPair, ...]


class OverStudents(Record):
    """A share in [0, 1] of each student: mean, standard deviation (of the sample, 0 for one), of each."""

    mean: Share
    std: Annotated[float, Field(ge=0)]
    values: tuple[Share, ...]


class Attack(Record):
    """The loss-threshold attack on students of one kind: which images were they made from?

    Attributes:
        set: `distilled`, or the name of a baseline.
        label: the same for people.
        epochs: how long each student is trained.
        n: how many students.
        images: members, and as many others.
        auc: area under the ROC curve; 0.5 is guessing.
        true_positive_rate: at a false-positive rate of at most 1%; None: too few images.
        advantage: the largest difference of the true- and the false-positive rate.
        member_accuracy, other_accuracy: of the students on the members and on the others, mean.
    """

    set: str
    label: str
    epochs: Count
    n: Annotated[int, Field(ge=1)]
    images: Count
    auc: OverStudents
    true_positive_rate: OverStudents | None
    advantage: OverStudents
    member_accuracy: Share
    other_accuracy: Share


class Privacy(Record):
    """What a set leaks of its source.

    Attributes:
        attacks: on students of the set, of as many random real images, and of the whole training split.
    """

    nearest: Nearest
    attacks: tuple[Attack, ...]


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
    search: Search | None = None
    continual: Continual | None = None
    privacy: Privacy | None = None
