"""What a set leaks, as people read it."""

import base64
import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from ncfmkit.assessment import QUANTILES, Attack, Began, Distances, Nearest, NearestPair, OverStudents, Privacy
from ncfmkit.reports import privacy_section
from ncfmkit.reports.layout import plot
from ncfmkit.reports.sections import for_terminal


def distances(mean: float) -> Distances:
    return Distances(mean=mean, quantiles=tuple(np.linspace(mean / 2, 1.5 * mean, QUANTILES).tolist()))


def over(mean: float) -> OverStudents:
    return OverStudents(mean=mean, std=0.01, values=(mean - 0.01, mean + 0.01))


def attack(name: str, auc: float, *, images: int = 500, n: int = 2) -> Attack:
    return Attack(
        set=name,
        label=name,
        epochs=10,
        n=n,
        images=images,
        auc=over(auc),
        true_positive_rate=over(0.02) if images >= 100 else None,
        advantage=over(0.1),
        member_accuracy=0.99,
        other_accuracy=0.9,
    )


def picture(value: int, channels: int) -> str:
    pixels = np.full((4, 4) if channels == 1 else (4, 4, 3), value, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def leak(*, auc: float = 0.51, began: float | None = None, channels: int = 3, n: int = 2) -> Privacy:
    pair = NearestPair(
        label="<cat>", training=0.05, held_out=0.07, pictures=tuple(picture(v, channels) for v in (0, 100, 200))
    )
    start = Began(
        images=40,
        auc=began or 0,
        deviation=0.03,
        nearest=0.25,
        chance=0.08,
        distances=distances(0.1),
        others=distances(0.12),
    )
    nearest = Nearest(
        images=100,
        side=16,
        training_images=5000,
        held_out_images=1000,
        real_images=300,
        draws=20,
        drawn_images=1000,
        nearer_to_training=0.56,
        nearer_deviation=0.07,
        drawn_training=distances(0.11),
        drawn_held_out=distances(0.12),
        drawn_real=distances(0.15),
        nearest_is_training=0.9,
        chance=5 / 6,
        chance_deviation=0.04,
        training=distances(0.1),
        real=distances(0.13),
        nearer_than_real=0.03,
        initial="mix",
        began=None if began is None else start,
        pairs=(pair,),
    )
    attacks = (attack("distilled", auc, n=n), attack("random", 0.9, images=20, n=n), attack("whole", 0.6, n=n))
    return Privacy(nearest=nearest, attacks=attacks)


def words(found: Privacy) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(for_terminal(privacy_section.section(found)))
    return " ".join(console.export_text().replace("\u00a0", " ").split())


def test_what_was_found_stands_beside_what_chance_gives() -> None:
    text = words(leak(auc=0.51))
    assert "an AUC of 0.510 ± 0.010, no more than guessing gives for 500 images of each kind (0.5 ± 0.018)" in text
    assert "on students of the whole training split it has 0.600 ± 0.010" in text
    assert "56% of the set's images are nearer to a training image" in text
    assert "no more than chance gives for these 100 images (50 ± 7%)" in text
    assert "nearest of all real images is a training image 90 83 ± 4" in text
    assert "The set began as" not in text
    assert "0.550 ± 0.010, more than guessing gives" in words(leak(auc=0.55))
    assert "± 0.010" not in words(leak(n=1))


@pytest.mark.parametrize(("auc", "verdict"), [(0.55, "no more than"), (0.57, "more than")])
def test_what_the_set_began_as(auc: float, verdict: str) -> None:
    text = words(leak(began=auc))
    assert "began as 40 real training images. The distance to the nearest image of the set tells those from" in text
    assert f"an AUC of {auc:.3f}, {verdict} guessing gives (0.5 ± 0.030)" in text
    assert "nearest training image is one that the set began as 25 8" in text


def test_a_trace_that_was_found_is_said_first() -> None:
    def first(found: Privacy) -> str:
        return privacy_section.section(found).sentences[0]

    assert first(leak(auc=0.51, began=0.55)).startswith("The loss-threshold attack")
    assert first(leak(auc=0.51, began=0.9)).startswith("The set began as 40 real training images")
    assert first(leak(auc=0.55, began=0.9)).startswith("The loss-threshold attack")


def test_nothing_is_promised() -> None:
    text = words(leak(began=0.5)).lower()
    assert "this is no guarantee" in text
    assert "lira" in text
    assert "shadow models" in text
    assert "private" not in text
    assert "safe" not in text


def test_what_meaningless_scores_give() -> None:
    """Against many draws of such scores, by plain counting."""
    rng, count = np.random.default_rng(0), 200
    aucs, advantages = [], []
    for _ in range(300):
        ranks = rng.permutation(2 * count)  # members are those of the first half
        member_N, other_N = np.sort(ranks[:count]), np.sort(ranks[count:])
        aucs.append(np.searchsorted(other_N, member_N).sum() / count**2)
        thresholds = np.arange(2 * count)
        above = [count - np.searchsorted(side, thresholds) for side in (member_N, other_N)]
        advantages.append(max(0, (above[0] - above[1]).max() / count))
    assert privacy_section._auc_deviation(count) == pytest.approx(np.std(aucs), rel=0.1)
    assert privacy_section._chance_advantage(count) == pytest.approx(np.mean(advantages), rel=0.1)
    assert privacy_section._auc_deviation(count) == pytest.approx(math.sqrt(401 / (12 * 200 * 200)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stand_side_by_side(channels: int) -> None:
    (pictures,) = privacy_section.section(leak(channels=channels)).pictures
    ((name, strip),) = pictures.strips
    assert name == "<cat>: 0.050, 0.070"
    assert strip.count == 3
    pixels = np.asarray(Image.open(io.BytesIO(strip.png)))
    assert [int(pixels[0, x, 0]) for x in (0, 5, 10)] == [0, 100, 200]


def test_curves_are_shares_within_a_distance() -> None:
    (shown,) = privacy_section.section(leak()).plots
    for narrow in (False, True):
        figure = Figure()
        shown.draw(figure, narrow)
        (axes,) = figure.axes
        assert [line.get_label() for line in axes.lines] == [
            "set to training images",
            "set to held-out images",
            "held-out images to training images",
        ]
        for line, mean in zip(axes.lines, (0.11, 0.12, 0.15), strict=True):
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            assert np.interp(mean, x, y) == pytest.approx(0.5)
            assert (y[0], y[-1]) == (0, 1)
    assert "role" in plot(shown.draw, name="p", label=shown.label).wide
