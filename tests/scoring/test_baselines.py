"""Baselines: real images that a set is compared with."""

from collections.abc import Callable

import pytest

from ncfmkit.errors import UserError
from ncfmkit.real.store import RealData
from ncfmkit.scoring import baselines, students


def rows_of(subset: students.LabeledImages, real: RealData) -> list[list[int]]:
    """Positions in the train split of the subset's images, by class; every image of `real` is another."""
    where = {image.tobytes(): row for row, image in enumerate(real.train.images)}
    rows = [where[image.tobytes()] for image in subset.images]
    return [[r for r, label in zip(rows, subset.labels, strict=True) if label == c] for c in range(len(real.classes))]


def test_random_subset_has_that_many_of_each_class(real: RealData) -> None:
    rows = rows_of(baselines.random_subset(real, 4, 0, 0), real)
    for label, mine in enumerate(rows):
        assert len(set(mine)) == 4
        low, high = real.train.offsets[label : label + 2]
        assert all(low <= r < high for r in mine)


def test_random_subset_is_drawn_by_seed_repeat_and_class(real: RealData, make_real: Callable[..., RealData]) -> None:
    draw = lambda seed, repeat: rows_of(baselines.random_subset(real, 4, seed, repeat), real)  # noqa: E731
    assert draw(0, 0) == draw(0, 0)
    draws = [draw(seed, repeat) for seed in range(3) for repeat in range(3)]
    assert len({str(d) for d in draws}) == len(draws)
    # class 0 is the same whatever the other classes hold
    more = make_real((7, 9, 9))
    assert rows_of(baselines.random_subset(more, 4, 1, 2), more)[0] == draw(1, 2)[0]


def test_a_subset_of_everything_is_everything(make_real: Callable[..., RealData]) -> None:
    real = make_real((5, 5))
    assert rows_of(baselines.random_subset(real, 5, 0, 0), real) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_class_that_is_too_small_is_named(real: RealData) -> None:
    says = r"6 real images per class .*5 of class 'class 1' in tiny"
    with pytest.raises(UserError, match=says):
        baselines.random_subset(real, 6, 0, 0)
    with pytest.raises(UserError, match=f"{says}: leave it out of --baselines"):
        baselines.check_baselines(real, ("whole", "random-decoded"), size(stored=1, decoded=6))
    baselines.check_baselines(
        real, ("random", "herding", "whole", "webp", "herding-webp", "k-center"), size(stored=5, decoded=6)
    )
    baselines.check_baselines(real, (), size(stored=100, decoded=100))


def size(stored: int = 1, decoded: int = 4, bytes: float = 1e9) -> baselines.SetSize:
    return baselines.SetSize(stored=stored, decoded=decoded, bytes=bytes)


@pytest.mark.parametrize("name", ["webp", "jpeg", "herding-webp"])
def test_lossy_images_are_as_many_as_fit(make_real: Callable[..., RealData], name: str) -> None:
    real, baseline = make_real((400, 300), size=16), baselines.BASELINES[name]
    assert baseline.codec is not None
    count = baseline.per_class(size(bytes=6_000), real)
    _, taken = baseline.codec.coded(baselines.random_subset(real, count, 1, 2))
    assert taken == pytest.approx(2 * 6_000, rel=0.05)
    assert baseline.per_class(size(bytes=1), real) == 1
    assert baseline.per_class(size(bytes=1e9), real) == 300  # a class has no more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("none", ()),
        ("random", ("random",)),
        (" random , whole,", ("random", "whole")),
        ("none,herding", ("herding",)),
        ("random,random", ("random",)),
        (",".join(baselines.BASELINES), tuple(baselines.BASELINES)),
    ],
)
def test_parse_baselines(text: str, expected: tuple[str, ...]) -> None:
    assert baselines.parse_baselines(text) == expected


@pytest.mark.parametrize("text", ["best", "random;whole", "Random", "random,wholes"])
def test_unknown_baselines(text: str) -> None:
    with pytest.raises(
        UserError,
        match=r"unknown baseline .*known: random, random-soft, random-decoded, webp, jpeg, mosaic, herding, "
        "herding-webp, k-center, el2n, forgetting, whole, ",
    ):
        baselines.parse_baselines(text)
