"""What a set leaks of its source, for people: the attack on its students, and its nearest real images."""

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ncfmkit.assessment import Attack, Distances, Nearest, NearestPair, OverStudents, Privacy
from ncfmkit.progress import plural
from ncfmkit.reports.layout import SERIES, Draw
from ncfmkit.reports.scores import ABSENT
from ncfmkit.reports.sections import Section, SectionPictures, SectionPlot, SectionTable
from ncfmkit.reports.strips import Strip, strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDENTS = {"distilled": "the set", "random": "random real", "whole": "whole split"}
WITHIN = "\u00a0±\u00a0"


def section(found: Privacy) -> Section:
    nearest, of = found.nearest, {attack.set: attack for attack in found.attacks}
    own, whole = of["distilled"], of["whole"]
    guessing = _auc_deviation(own.images)
    beyond = own.auc.mean > 0.5 + 2 * guessing
    nearer = nearest.nearer_to_training > 0.5 + 2 * nearest.nearer_deviation
    attack = (
        "The loss-threshold attack on students of the set tells training images from test images with an AUC of "
        f"{_value(own.auc, own.n)}, {'more' if beyond else 'no more'} than guessing gives for {own.images:,} images of "
        f"each kind (0.5{WITHIN}{guessing:.3f}); on students of the whole training split it has "
        f"{_value(whole.auc, whole.n)}."
    )
    share = (
        f"{100 * nearest.nearer_to_training:.0f}% of the set's images are nearer to a training image than to any "
        f"held-out image, out of equally many of both, {'more' if nearer else 'no more'} than chance gives for these "
        f"{plural(nearest.images, 'image')} (50{WITHIN}{100 * nearest.nearer_deviation:.0f}%)."
    )
    findings = [(beyond, attack), (nearer, share), *_beginning(nearest)]
    sentences = [
        *(said for _, said in sorted(findings, key=lambda finding: not finding[0])),  # a trace that was found is first
        "This is no guarantee. Two simple things were measured: distances of pixels, and what losses give away. "
        "Stronger attacks were not run, such as the likelihood-ratio attack LiRA, which trains shadow models with and "
        "without an image. A small AUC here does not rule out that they succeed, or that some images leak where the "
        "mean does not.",
    ]
    return Section(
        sentences=sentences,
        tables=[_attacks(found.attacks), _distances(nearest), _shares(nearest)],
        plots=[
            SectionPlot(
                draw=_curves(nearest),
                label="Shares of images within a distance of the nearest real image",
                caption="The share of images whose nearest real image is within a distance, in draws of equally many "
                "training and held-out images. Where the line of training images is left of that of held-out images, "
                "the set is nearer to what it was made from than to other pictures of the same kind.",
            )
        ],
        pictures=[
            SectionPictures(
                strips=[(_distance_words(pair), _pictures(pair)) for pair in nearest.pairs],
                caption=f"The {len(nearest.pairs)} images of the set that are nearest to a training image. From left "
                "to right, as they were compared: the image, its nearest training image, its nearest held-out image; "
                "above them the distances to the two.",
            )
        ],
    )


def _beginning(nearest: Nearest) -> Sequence[tuple[bool, str]]:
    """Whether a trace was found, and what was found."""
    began = nearest.began
    if began is None:
        return []
    beyond = began.auc > 0.5 + 2 * began.deviation
    said = (
        f"The set began as {began.images:,} real training images. The distance to the nearest image of the set tells "
        f"those from the other training images with an AUC of {began.auc:.3f}, {'more' if beyond else 'no more'} than "
        f"guessing gives (0.5{WITHIN}{began.deviation:.3f})."
    )
    return [(beyond, said)]


def _attacks(attacks: Sequence[Attack]) -> SectionTable:
    rows = [
        [
            STUDENTS[attack.set],
            f"{attack.images:,}",
            _value(attack.auc, attack.n),
            ABSENT if attack.true_positive_rate is None else _percent(attack.true_positive_rate, attack.n),
            _value(attack.advantage, attack.n),
            f"{_chance_advantage(attack.images):.2f}",
            f"{100 * attack.member_accuracy:.0f}\u00a0/\u00a0{100 * attack.other_accuracy:.0f}",
        ]
        for attack in attacks
    ]
    headers = ["images", "AUC", "TPR %", "advantage", "by chance", "accuracy %"]
    n = attacks[0].n
    students = "one student of each" if n == 1 else f"mean ± standard deviation of {n} students of each"
    return SectionTable(
        columns=["students of", *headers],
        rows=rows,
        strong=[0],
        caption=f"Membership inference, {students}. An image with a small loss is called a member; the figures are "
        "over all thresholds. Members are training images, and of random real images those that a student was trained "
        "on, which whoever has that set sees anyway; others are as many test images of each class. TPR is the "
        "true-positive rate at 1% false positives, from 100 images on. The advantage is the largest difference of the "
        "two rates, beside it what meaningless scores give by chance. Accuracy is that on members / on others.",
    )


def _distances(nearest: Nearest) -> SectionTable:
    def row(name: str, of_set: Distances | None, of_real: Distances | None) -> list[str]:
        texts = [(f"{d.mean:.3f}", f"{d.quantiles[0]:.3f}") if d else (ABSENT, ABSENT) for d in (of_set, of_real)]
        return [name, *texts[0], *texts[1]]

    drawn = f"of {nearest.drawn_images:,}"
    rows = [
        row(f"training image, {drawn}", nearest.drawn_training, nearest.drawn_real),
        row(f"held-out image, {drawn}", nearest.drawn_held_out, None),
        row(f"training image, of all {nearest.training_images:,}", nearest.training, nearest.real),
    ]
    return SectionTable(
        columns=["distance to the nearest", "set, mean", "set, least", "real, mean", "real, least"],
        rows=rows,
        caption="Root of the mean squared difference of pixel values in [0, 1], to an image of the same class or its "
        f"mirror image. {plural(nearest.images, 'image')} of the set, as they are stored, and "
        f"{nearest.real_images:,} held-out real images beside them are compared at {nearest.side} x "
        f"{nearest.side} pixels; {nearest.draws} draws of equally many training and held-out images of each class.",
    )


def _shares(nearest: Nearest) -> SectionTable:
    def by_chance(share: float, deviation: float) -> str:
        return f"{100 * share:.0f}{WITHIN}{100 * deviation:.0f}"

    rows = [
        [
            "nearer to a training image than to every held-out one, of as many",
            f"{100 * nearest.nearer_to_training:.0f}",
            by_chance(0.5, nearest.nearer_deviation),
        ],
        [
            "nearest of all real images is a training image",
            f"{100 * nearest.nearest_is_training:.0f}",
            by_chance(nearest.chance, nearest.chance_deviation),
        ],
        [
            "nearer to a training image than any held-out real image is",
            f"{100 * nearest.nearer_than_real:.0f}",
            ABSENT,
        ],
    ]
    if nearest.began is not None:
        rows.append(
            [
                "nearest training image is one that the set began as",
                f"{100 * nearest.began.nearest:.0f}",
                f"{100 * nearest.began.chance:.0f}",
            ]
        )
    return SectionTable(
        columns=["images of the set", "%", "by chance %"],
        rows=rows,
        caption="By chance: the real images are divided into training and held-out images at random, mean ± standard "
        "deviation. A draw of equally many holds only some of the training images; among all of them a copied one is "
        "found for certain, but more are nearest by chance.",
    )


def _curves(nearest: Nearest) -> Draw:
    rows = [
        ("set to training images", nearest.drawn_training, "-"),
        ("set to held-out images", nearest.drawn_held_out, "--"),
        ("held-out images to training images", nearest.drawn_real, "-."),
    ]

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(3.6 if narrow else 3.0)
        axes = figure.subplots()
        for (name, distances, style), color in zip(rows, SERIES, strict=False):
            axes.plot(distances.quantiles, np.linspace(0, 1, len(distances.quantiles)), style, color=color, label=name)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1)
        axes.set_xlabel("distance (pixel values in [0, 1])")
        axes.set_ylabel("share of images")
        if narrow:
            figure.legend(loc="outside upper left", handlelength=3)
        else:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=3)

    return draw


def _pictures(pair: NearestPair) -> Strip:
    return strip(np.stack([_pixels(picture) for picture in pair.pictures]))


def _pixels(picture: str) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _distance_words(pair: NearestPair) -> str:
    return f"{pair.label}: {pair.training:.3f}, {pair.held_out:.3f}"


def _value(of: OverStudents, n: int) -> str:
    return f"{of.mean:.3f}" + (f"{WITHIN}{of.std:.3f}" if n > 1 else "")


def _percent(of: OverStudents, n: int) -> str:
    return f"{100 * of.mean:.1f}" + (f"{WITHIN}{100 * of.std:.1f}" if n > 1 else "")


def _auc_deviation(count: int) -> float:
    """The standard deviation of the AUC of meaningless scores of `count` members and `count` others (Mann-Whitney)."""
    return math.sqrt((2 * count + 1) / (12 * count * count))


def _chance_advantage(count: int) -> float:
    """The mean advantage of such scores: that of the one-sided Kolmogorov-Smirnov statistic of two samples."""
    return math.sqrt(math.pi / 8 * 2 / count)
