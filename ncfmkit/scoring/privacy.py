"""What a set leaks of the images that it was made from: its nearest real images, and membership inference.

Axes: Q images that are compared, N real images that they are compared with, C channels, H = W side of a cell of a
stored image, V = C*H*W values, G draws, K classes, R students, B batch.
"""

import base64
import dataclasses
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ncfmkit.assessment import (
    QUANTILES,
    Attack,
    Began,
    Distances,
    Nearest,
    NearestPair,
    OverStudents,
    Privacy,
)
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage, seconds_per_call
from ncfmkit.images import LabeledImages
from ncfmkit.mosaic import cells, reduced
from ncfmkit.networks import network_builder
from ncfmkit.progress import track
from ncfmkit.real.store import Split
from ncfmkit.records import Record
from ncfmkit.rng import keyed_rng
from ncfmkit.run_records import Share
from ncfmkit.scoring.kept_students import StudentResult
from ncfmkit.scoring.students import (
    RowWork,
    side_by_side,
    spread,
    stacks,
    student_conditions,
    student_stages,
    train_and_test,
)
from ncfmkit.scoring.subject import Subject
from ncfmkit.training import StackedModels, fresh_state, logits_of

ATTACKED = ("distilled", "random", "whole")  # what the students are trained on that are attacked
MOST_ATTACKED = 3000  # members, and as many others, of all classes together
FALSE_POSITIVE_RATE = 0.01
DRAWS = 20  # of equally many training and held-out images
MOST_REAL = 1000  # held-out images that are compared like those of the set, of all classes together
SHOWN_PAIRS = 10
SHOWN_SIDE = 32  # pixels: larger cells are shown reduced to that
CHANCE_DRAWS = 100  # of which real images are training images
DIGITS = 6  # of a distance: further decimals are noise
CHUNK_BYTES = 2**25  # of float64 images that are compared at once


def check(subject: Subject) -> None:
    counts = subject.real.test_split().counts()
    if not counts.min():
        empty = subject.real.classes[int(counts.argmin())]
        raise UserError(
            f"class {empty!r} of {subject.real.name} has no test image, and training images are told from those: "
            "expected some of every class"
        )
    subject.check_rows("random")


def stages(subject: Subject) -> Iterator[Stage]:
    if not subject.kept.has(**_nearest_conditions(subject)):
        yield Stage(
            name="nearest real images", work=f"{_cell_count(subject):,} images", seconds=_nearest_seconds(subject)
        )
    left = {}
    for name in ATTACKED:
        work = subject.work(name)
        if students := subject.kept.left(subject.settings.student.repeats, partial(_attack_conditions, subject, name)):
            left[work] = len(students)
            subject.plan_students(work)  # the attack keeps what they get right, too
    for stage in student_stages(left, subject.real, subject.settings, subject.runtime):
        yield dataclasses.replace(stage, name=f"attacked {stage.name}")


def measure(subject: Subject) -> Privacy:
    nearest = subject.kept.measured(Nearest, lambda: nearest_real(subject), **_nearest_conditions(subject))
    return Privacy(nearest=nearest, attacks=tuple(attack(subject, name) for name in ATTACKED))


def _nearest_conditions(subject: Subject) -> dict[str, Any]:
    return {
        "measurement": "nearest real images",
        "initial": subject.initial,
        "began": subject.beginnings is not None,
        "draws": [DRAWS, CHANCE_DRAWS],
        "real": MOST_REAL,
    }


def _attack_conditions(subject: Subject, name: str, repeat: int) -> dict[str, Any]:
    conditions = student_conditions(subject.work(name), subject.settings)
    return conditions | {"repeat": repeat, "measurement": "loss threshold attack", "most": MOST_ATTACKED}


def nearest_real(subject: Subject) -> Nearest:
    """Distances of every cell of the stored images to the real images of its class.

    A cell is compared before it is enlarged, with real images that are reduced to its size.
    """
    real, test = subject.real, subject.real.test_split()
    rows = []
    with track("nearest real images", len(real.classes)) as bar:
        for label in range(len(real.classes)):
            rows.append(_compared(subject, label))
            bar.advance()
    training_Q, held_out_Q, real_H = (
        np.concatenate(parts) for parts in zip(*((r.training_Q, r.held_out_Q, r.real_H) for r in rows), strict=True)
    )
    drawn_training_GQ, drawn_held_out_GQ, drawn_real_GH = (
        np.concatenate(parts, axis=1)
        for parts in zip(*((r.drawn_training_GQ, r.drawn_held_out_GQ, r.drawn_real_GH) for r in rows), strict=True)
    )
    nearer_GQ, nearest_GQ = (
        np.concatenate(parts, axis=1)
        for parts in zip(*((r.chance_nearer_GQ, r.chance_nearest_GQ) for r in rows), strict=True)
    )
    return Nearest(
        images=len(training_Q),
        side=rows[0].cell_QCHW.shape[-1],
        real_images=len(real_H),
        training_images=len(real.train.images),
        held_out_images=len(test.images),
        draws=DRAWS,
        drawn_images=sum(row.drawn for row in rows),
        nearer_to_training=float(nearer(drawn_training_GQ, drawn_held_out_GQ).mean()),
        nearer_deviation=float(nearer_GQ.mean(1).std()),
        drawn_training=_summary(drawn_training_GQ),
        drawn_held_out=_summary(drawn_held_out_GQ),
        drawn_real=_summary(drawn_real_GH),
        nearest_is_training=float(nearer(training_Q, held_out_Q).mean()),
        chance=float(np.mean([row.chance for row in rows])),  # classes have equally many cells
        chance_deviation=float(nearest_GQ.mean(1).std()),
        training=_summary(training_Q),
        real=_summary(real_H),
        nearer_than_real=float(np.mean(training_Q < real_H.min())),
        initial=subject.initial,
        began=_began(rows),
        pairs=tuple(_pairs(subject, rows)),
    )


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """The distances of the cells of one class, Q, and of held-out real images of it, H."""

    cell_QCHW: torch.Tensor
    inside_QCHW: torch.Tensor
    training_Q: np.ndarray  # to the nearest training image
    training_place_Q: np.ndarray  # where it is in its class
    held_out_Q: np.ndarray  # to the nearest held-out image
    held_out_place_Q: np.ndarray
    nearest_N: np.ndarray  # of every training image, to the nearest cell
    began_N: np.ndarray | None  # which training images the cells began as
    drawn_training_GQ: np.ndarray  # to the nearest one of the training images of a draw
    drawn_held_out_GQ: np.ndarray
    chance_nearer_GQ: np.ndarray  # see :func:`by_chance`
    chance_nearest_GQ: np.ndarray
    drawn: int  # images on either side of a draw
    chance: float  # training images among the real images of the class, as a share
    real_H: np.ndarray  # of held-out real images, to the nearest training image
    drawn_real_GH: np.ndarray


def _compared(subject: Subject, label: int) -> _Compared:
    real, seed, own_N = subject.real, subject.settings.seed, subject.stored_labels == label
    train, test = _of_class(real.train, label), _of_class(real.test_split(), label)
    cell_QCHW, inside_QCHW = _cells(torch.from_numpy(subject.stored[own_N]).float() / 255, subject.factor)
    side, count = cell_QCHW.shape[-1], len(cell_QCHW)

    few_H = np.sort(keyed_rng(seed, "nearest images", "real", label).permutation(len(test))[: _compared_real(subject)])
    real_HCHW = _at_side(test[few_H], side)
    all_HCHW = torch.ones_like(real_HCHW, dtype=torch.bool)
    to_training = distances(torch.cat([cell_QCHW, real_HCHW]), torch.cat([inside_QCHW, all_HCHW]), train)
    to_training_QN, real_HN = to_training[:count], to_training[count:]
    to_held_out_QN = distances(cell_QCHW, inside_QCHW, test)
    began_N = None
    if subject.beginnings is not None:
        began_N = np.isin(np.arange(len(train)) + real.train.offsets[label], subject.beginnings[label])

    # equally many on both sides, because the nearest of more images is nearer
    drawn = min(len(train), len(test))
    training, held_out, of_real = [], [], []
    for draw in range(DRAWS):
        training_N, held_out_N = (
            keyed_rng(seed, "nearest images", split, draw, label).choice(len(images), drawn, replace=False)
            for split, images in (("train", train), ("test", test))
        )
        training.append(to_training_QN[:, training_N].min(1))
        held_out.append(to_held_out_QN[:, held_out_N].min(1))
        of_real.append(real_HN[:, training_N].min(1))
    chance_nearer_GQ, chance_nearest_GQ = by_chance(
        to_training_QN, to_held_out_QN, keyed_rng(seed, "nearest images", "by chance", label)
    )
    return _Compared(
        cell_QCHW=cell_QCHW,
        inside_QCHW=inside_QCHW,
        training_Q=to_training_QN.min(1),
        training_place_Q=to_training_QN.argmin(1),
        held_out_Q=to_held_out_QN.min(1),
        held_out_place_Q=to_held_out_QN.argmin(1),
        nearest_N=to_training_QN.min(0),
        began_N=began_N,
        chance_nearer_GQ=chance_nearer_GQ,
        chance_nearest_GQ=chance_nearest_GQ,
        drawn_training_GQ=np.stack(training),
        drawn_held_out_GQ=np.stack(held_out),
        drawn=drawn,
        chance=len(train) / (len(train) + len(test)),
        real_H=real_HN.min(1),
        drawn_real_GH=np.stack(of_real),
    )


def _compared_real(subject: Subject) -> int:
    """How many held-out images of a class are compared like those of the set."""
    return max(1, MOST_REAL // len(subject.real.classes))


def _of_class(split: Split, label: int) -> np.ndarray:
    return split.images[split.offsets[label] : split.offsets[label + 1]]


def _at_side(images_NCHW: np.ndarray, side: int) -> torch.Tensor:
    """uint8 images as float32 in [0, 1], reduced to that side."""
    real_NCHW = torch.tensor(images_NCHW).float() / 255  # torch.from_numpy would warn of an array that is read-only
    return real_NCHW if real_NCHW.shape[-1] == side else reduced(real_NCHW, side)


def _cells(images_NCHW: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cells of stored images in a row, and which of their values are stored: the last ones may be cut short."""
    inside_NCHW = torch.ones_like(images_NCHW)
    return cells(images_NCHW, factor).flatten(0, 1), cells(inside_NCHW, factor, padding=0).flatten(0, 1) > 0


def distances(query_QCHW: torch.Tensor, inside_QCHW: torch.Tensor, images_NCHW: np.ndarray) -> np.ndarray:
    """Distances of images to each real image or its mirror image, whichever is nearer, float64 `[Q, N]`.

    A distance is the root of the mean squared difference of the values in [0, 1], rounded to six decimals.

    Args:
        query_QCHW: float images in [0, 1]; the real images are reduced to their side.
        inside_QCHW: bool, the values that are compared.
        images_NCHW: uint8, in memory or memory-mapped; a few are read at a time.
    """
    side = query_QCHW.shape[-1]
    few = max(1, CHUNK_BYTES // (8 * images_NCHW[0].size))
    square_QN = np.empty((len(query_QCHW), len(images_NCHW)))
    for start in range(0, len(images_NCHW), few):
        real_NCHW = _at_side(images_NCHW[start : start + few], side)
        both = [images.double().flatten(1) for images in (real_NCHW, real_NCHW.flip(-1))]
        for first in range(0, len(query_QCHW), few):
            inside_QV = inside_QCHW[first : first + few].flatten(1).double()
            query_QV = query_QCHW[first : first + few].flatten(1).double() * inside_QV
            # the sum of inside * (query - real)^2, multiplied out
            own_Q1, size_Q1 = query_QV.square().sum(1, keepdim=True), inside_QV.sum(1, keepdim=True)
            nearer_QN = torch.minimum(
                *(own_Q1 - 2 * query_QV @ real_NV.T + inside_QV @ real_NV.square().T for real_NV in both)
            )
            square_QN[first : first + few, start : start + few] = nearer_QN / size_Q1
    return np.sqrt(np.maximum(square_QN, 0)).round(DIGITS)


def _rms(difference_QCHW: torch.Tensor, inside_QCHW: torch.Tensor) -> np.ndarray:
    inside_QV = inside_QCHW.flatten(1).double()
    mean_Q = (difference_QCHW.flatten(1).double().square() * inside_QV).sum(1) / inside_QV.sum(1)
    return mean_Q.sqrt().numpy().round(DIGITS)


def nearer(training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """1 where the distance to a training image is the smaller one, 0 where it is the larger one, 0.5 where equal."""
    return (training < held_out) + (training == held_out) / 2


def by_chance(
    to_training_QN: np.ndarray, to_held_out_QM: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What is nearer if chance decides which of the real images are training images, `[G, Q]` each.

    First: whether, of as many images on either side as the smaller one has, a training image is nearest. Second:
    whether one is of all images. Many images of a set can be nearest to the same few real ones, so that the mean over
    them deviates by more than if they were independent.
    """
    both_QN = np.concatenate([to_training_QN, to_held_out_QM], axis=1)
    few, held_out = min(to_training_QN.shape[1], to_held_out_QM.shape[1]), to_held_out_QM.shape[1]
    nearest_Q = both_QN.argmin(1)
    of_equally_many, of_all = [], []
    for _ in range(CHANCE_DRAWS):
        order_N = rng.permutation(both_QN.shape[1])
        some_Q, others_Q = (both_QN[:, places].min(1) for places in (order_N[:few], order_N[few : 2 * few]))
        of_equally_many.append(nearer(some_Q, others_Q))
        of_all.append(~np.isin(nearest_Q, order_N[:held_out]))
    return np.stack(of_equally_many), np.stack(of_all)


def _began(rows: list[_Compared]) -> Began | None:
    """How near the training images that the set began as are to it, against the others of their class."""
    aucs, variances, began_N, nearest_N, hits, chances = [], [], [], [], [], []
    for row in rows:
        if row.began_N is None or row.began_N.all():  # there are no others
            return None
        of_began_N, of_others_N = row.nearest_N[row.began_N], row.nearest_N[~row.began_N]
        m, n = len(of_began_N), len(of_others_N)
        aucs.append(attack_success(-of_began_N, -of_others_N).auc)
        variances.append((m + n + 1) / (12 * m * n))  # of the Mann-Whitney statistic
        hits.append(row.began_N[row.training_place_Q])
        chances.append(m / (m + n))
        began_N.append(of_began_N)
        nearest_N.append(of_others_N)
    return Began(
        images=sum(map(len, began_N)),
        auc=float(np.mean(aucs)),
        deviation=math.sqrt(sum(variances)) / len(rows),
        nearest=float(np.mean(np.concatenate(hits))),
        chance=float(np.mean(chances)),
        distances=_summary(np.concatenate(began_N)),
        others=_summary(np.concatenate(nearest_N)),
    )


def _summary(values: np.ndarray) -> Distances:
    quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES))
    return Distances(mean=float(values.mean()), quantiles=tuple(quantiles.round(DIGITS).tolist()))


def _pairs(subject: Subject, rows: list[_Compared]) -> Iterator[NearestPair]:
    """The images of the set that are nearest to a training image, each beside the real images nearest to it."""
    real, test = subject.real, subject.real.test_split()
    found = [(float(d), label, place) for label, row in enumerate(rows) for place, d in enumerate(row.training_Q)]
    for distance, label, place in sorted(found)[:SHOWN_PAIRS]:
        row = rows[label]
        cell_1CHW, inside_1CHW = row.cell_QCHW[[place]], row.inside_QCHW[[place]]
        pictures = [cell_1CHW]
        for split, at in ((real.train, row.training_place_Q[place]), (test, row.held_out_place_Q[place])):
            real_1CHW = _at_side(_of_class(split, label)[[at]], cell_1CHW.shape[-1])
            plain, mirrored = (_rms(cell_1CHW - image, inside_1CHW) for image in (real_1CHW, real_1CHW.flip(-1)))
            pictures.append(real_1CHW if plain <= mirrored else real_1CHW.flip(-1))
        yield NearestPair(
            label=real.classes[label],
            training=distance,
            held_out=float(row.held_out_Q[place]),
            pictures=tuple(map(_png, pictures)),
        )


def _png(image_1CHW: torch.Tensor) -> str:
    """A PNG file in base64 of at most `SHOWN_SIDE` pixels."""
    from PIL import Image  # which only pictures need

    if image_1CHW.shape[-1] > SHOWN_SIDE:
        image_1CHW = reduced(image_1CHW, SHOWN_SIDE)
    pixels_HWC = image_1CHW[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _cell_count(subject: Subject) -> int:
    return len(subject.stored) * subject.factor**2


def _nearest_seconds(subject: Subject) -> float:
    """Seconds that :func:`nearest_real` takes, measured on a few real images and all that the first class compares.

    To read and reduce a real image is most of the work where it is compared with few.
    """
    real, test = subject.real, subject.real.test_split()
    stored_NCHW = torch.from_numpy(subject.stored[subject.stored_labels == 0]).float() / 255
    cell_QCHW, inside_QCHW = _cells(stored_NCHW, subject.factor)
    real_HCHW = _at_side(_of_class(test, 0)[: _compared_real(subject)], cell_QCHW.shape[-1])
    query_QCHW = torch.cat([cell_QCHW, real_HCHW])
    inside_QCHW = torch.cat([inside_QCHW, torch.ones_like(real_HCHW, dtype=torch.bool)])
    few = _of_class(real.train, 0)[:256]
    seconds = seconds_per_call(lambda: distances(query_QCHW, inside_QCHW, few), torch.device("cpu"), compiled=False)
    return seconds / len(few) * (len(real.train.images) + len(test.images))


class Success(Record):
    """How well scores tell members from others.

    Attributes:
        auc: area under the ROC curve: the probability that a member has a larger score than another image, where an
            equal one counts as half.
        true_positive_rate: at a false-positive rate of at most `FALSE_POSITIVE_RATE`; None: there are too few others
            to measure such a rate.
        advantage: the largest difference of the true- and the false-positive rate.
    """

    auc: Share
    true_positive_rate: Share | None
    advantage: Share


class AttackedStudent(Success):
    """What the attack on one student finds.

    Attributes:
        member_accuracy, other_accuracy: of the student on the members and on the others.
    """

    member_accuracy: Share
    other_accuracy: Share


def attack(subject: Subject, name: str) -> Attack:
    """The loss-threshold attack on students of the set, or of a row of `BASELINES`.

    The smaller the loss of its label, the likelier is an image called a member; it is not augmented. Members are
    training images, or what a student of random real images was trained on; the others are test images, as many of
    each class. What is found is kept of each student, and what it gets right, which other evaluations ask for.

    Args:
        name: of `ATTACKED`.
    """
    settings, test, work = subject.settings, subject.test, subject.work(name)
    repeats = settings.student.repeats
    sets = [subject.images(name, repeat) for repeat in range(repeats)]

    # members of each student, and the others
    known = sets if name == "random" else [subject.whole]
    count_K = np.minimum(*(np.bincount(d.labels.numpy(), minlength=test.classes) for d in (known[0], test)))
    count_K = np.minimum(count_K, max(1, MOST_ATTACKED // test.classes))
    members = [_few(d, count_K, settings.seed, "members", repeat) for repeat, d in enumerate(known)]
    members = members if name == "random" else members * repeats
    others = _few(test, count_K, settings.seed, "others")

    found = subject.kept.each(
        AttackedStudent,
        repeats,
        partial(_attacked, subject, work, sets, members, others),
        partial(_attack_conditions, subject, name),
    )
    rates = [student.true_positive_rate for student in found if student.true_positive_rate is not None]
    return Attack(
        set=name,
        label=work.label,
        epochs=work.epochs,
        n=repeats,
        images=int(count_K.sum()),
        auc=_over_students([student.auc for student in found]),
        true_positive_rate=_over_students(rates) if rates else None,
        advantage=_over_students([student.advantage for student in found]),
        member_accuracy=float(np.mean([student.member_accuracy for student in found])),
        other_accuracy=float(np.mean([student.other_accuracy for student in found])),
    )


def _attacked(
    subject: Subject,
    work: RowWork,
    sets: list[LabeledImages],
    members: list[LabeledImages],
    others: LabeledImages,
    left: list[int],
) -> Iterator[tuple[int, AttackedStudent]]:
    """Trains and attacks those students of a row that are left."""
    real, settings, runtime = subject.real, subject.settings, subject.runtime
    build, student = network_builder(settings.network, real), dataclasses.replace(settings.student, epochs=work.epochs)
    together, repeats = side_by_side(len(left), real.size, runtime), len(sets)
    before, total = (count * student.epochs for count in (repeats - len(left), repeats))
    with track(f"attacked students: {work.label}", total, before) as bar:
        for models, keys in stacks(build, left, together, runtime):
            start = time.monotonic()
            models.load([fresh_state(build, settings.seed, "student", key) for key in keys])
            data = [sets[key] for key in keys]
            tested_REK = train_and_test(models, data, subject.test, student, settings.seed, keys, bar)
            seconds = (time.monotonic() - start) / len(keys)
            apart = {id(d): d for d in (others, *(members[key] for key in keys))}  # students may share them
            seen = {place: label_losses(models, d.normalized_as(data[0])) for place, d in apart.items()}
            for row, key in enumerate(keys):
                (member_RN, member_right_RN), (other_RN, other_right_RN) = seen[id(members[key])], seen[id(others)]
                subject.keep_student(work, key, StudentResult.of(tested_REK[row], seconds))
                found = attack_success(-member_RN[row], -other_RN[row])
                yield (
                    key,
                    AttackedStudent(
                        **found.to_dict(),
                        member_accuracy=float(member_right_RN[row].mean()),
                        other_accuracy=float(other_right_RN[row].mean()),
                    ),
                )


def _few(data: LabeledImages, count_K: np.ndarray, seed: int, *key: int | str) -> LabeledImages:
    """That many images of each class, drawn by `key`."""
    rng, labels_N = keyed_rng(seed, "attacked images", *key), data.labels.numpy()
    drawn = [rng.permutation(np.flatnonzero(labels_N == label))[:count] for label, count in enumerate(count_K)]
    places = np.sort(np.concatenate(drawn))
    return dataclasses.replace(data, images=data.images[places], labels=data.labels[places])


def label_losses(models: StackedModels, data: LabeledImages) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy of the label of each image, float64, and which ones are right, bool; both `[R, N]`."""
    losses, right = [], []
    for label_B, logits_RBK in logits_of(models, data):
        logits_RKB, label_RB = logits_RBK.cpu().double().mT, label_B.cpu().expand(models.size, -1)
        # log(1 + sum over other labels of exp(logit - own logit)): log-softmax would make all losses below 1e-16 zero,
        # and images that a student knows by heart equal
        own_R1B = label_RB[:, None]
        others_RKB = (logits_RKB - logits_RKB.gather(1, own_R1B)).scatter(1, own_R1B, -torch.inf)
        losses.append(F.softplus(others_RKB.logsumexp(1)))
        right.append(logits_RKB.argmax(1) == label_RB)
    return torch.cat(losses, 1).numpy(), torch.cat(right, 1).numpy()


def attack_success(member_N: np.ndarray, other_N: np.ndarray) -> Success:
    """The success of an attack that calls images members whose score is above a threshold, over all thresholds."""
    from sklearn.metrics import roc_auc_score, roc_curve  # here: sklearn takes a second to import

    is_member = np.concatenate([np.ones(len(member_N)), np.zeros(len(other_N))])
    scores = np.concatenate([member_N, other_N])
    false_positive, true_positive, _ = roc_curve(is_member, scores, drop_intermediate=False)
    rate = None
    if len(other_N) * FALSE_POSITIVE_RATE >= 1:
        rate = float(true_positive[false_positive <= FALSE_POSITIVE_RATE].max())
    return Success(
        auc=float(roc_auc_score(is_member, scores)),
        true_positive_rate=rate,
        advantage=float((true_positive - false_positive).max()),
    )


def _over_students(values: list[float]) -> OverStudents:
    return OverStudents(**spread(np.array(values)))
