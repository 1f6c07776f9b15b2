"""What `assess.json` holds: what a set was found to be good for, by the rows of `EVALUATIONS` that were run."""

from typing import Annotated

from pydantic import Field

from ncfmkit.comparison import ComparedOn
from ncfmkit.records import Record
from ncfmkit.run_records import Count, Score, Share


class Architectures(Record):
    """Students of several networks: for each network a row of the set, and of each kind of real images beside it."""

    rows: tuple[Score, ...]


QUANTILES = 21  # of distances, evenly spaced from the smallest to the largest
Distance = Annotated[float, Field(ge=0)]


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
    privacy: Privacy | None = None
