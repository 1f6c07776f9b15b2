"""Every operation of the augmentation against a per-image numpy reference written from docs/method.md, section 6."""

import math

import numpy as np
import pytest
import torch

from ncfmkit import augment as A
from ncfmkit.augment import augment, cutmix, draw_cutmix, parse_strategy
from ncfmkit.errors import UserError

ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))
STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate", "color_crop_cutout", "color_crop_flip_scale_rotate")


def images(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng([seed, count, side])
    return torch.from_numpy(rng.standard_normal((count, channels, side, side)))


def uniforms(count: int, seed: int = 0, **fixed: float) -> torch.Tensor:
    """Random rows in float64 (which keeps the images in float64), with columns set by name."""
    u_NP = np.random.default_rng([seed, count, 77]).random((count, A.DRAWS))
    for name, value in fixed.items():
        u_NP[:, getattr(A, name)] = value
    return torch.from_numpy(u_NP)


def sample(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """Bilinear, with zeros outside."""
    total = np.zeros(image.shape[0])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < image.shape[1] and 0 <= c < image.shape[2]:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return total


def resampled(image: np.ndarray, source) -> np.ndarray:
    """Every output pixel from `source(row, column)`, both measured from the image's center."""
    side, out = image.shape[-1], np.zeros_like(image)
    center = (side - 1) / 2
    for r in range(side):
        for c in range(side):
            row, column = source(r - center, c - center)
            out[:, r, c] = sample(image, row + center, column + center)
    return out


def naive_color(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    image = image + (u[A.BRIGHTNESS] - 0.5)
    gray = image.mean(0, keepdims=True)
    image = (image - gray) * 2 * u[A.SATURATION] + gray
    return (image - image.mean()) * (u[A.CONTRAST] + 0.5) + image.mean()


def naive_crop(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    side = image.shape[-1]
    pad = side // 8
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    top, left = (math.floor(u[k] * (2 * pad + 1)) for k in (A.MOVE_Y, A.MOVE_X))
    return padded[:, top : top + side, left : left + side]


def naive_scale(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    by_y, by_x = (1 / 1.2 + (1.2 - 1 / 1.2) * u[k] for k in (A.MOVE_Y, A.MOVE_X))
    return resampled(image, lambda y, x: (y / by_y, x / by_x))


def naive_rotate(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    angle = math.radians(15) * (2 * u[A.MOVE_X] - 1)
    cos, sin = math.cos(angle), math.sin(angle)
    return resampled(image, lambda y, x: (sin * x + cos * y, cos * x - sin * y))


def naive_flip(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    return image[:, :, ::-1] if u[A.FLIP] < 0.5 else image


def naive_cutout(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    side, out = image.shape[-1], image.copy()
    hole = side // 2
    top, left = (math.floor(u[k] * side) - hole // 2 for k in (A.CUT_Y, A.CUT_X))
    out[:, max(0, top) : max(0, top + hole), max(0, left) : max(0, left + hole)] = 0
    return out


NAIVE = {"crop": naive_crop, "scale": naive_scale, "rotate": naive_rotate}


def naive(image: np.ndarray, strategy: str, u: np.ndarray) -> np.ndarray:
    """Color, the one geometric operation picked, flip, cutout."""
    listed = strategy.split("_")
    geometric = [name for name in ("crop", "scale", "rotate") if name in listed]
    if "color" in listed:
        image = naive_color(image, u)
    if geometric:
        image = NAIVE[geometric[math.floor(u[A.PICK] * len(geometric))]](image, u)
    if "flip" in listed:
        image = naive_flip(image, u)
    return naive_cutout(image, u) if "cutout" in listed else image


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("side", [8, 16])
def test_equals_the_naive_reference(strategy: str, side: int) -> None:
    x, u = images(12, side), uniforms(12)
    got = augment(x, strategy, u).numpy()
    for n in range(12):
        np.testing.assert_allclose(got[n], naive(x[n].numpy(), strategy, u[n].numpy()), atol=1e-9)
    assert np.abs(got - x.numpy()).max() > 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float32_and_one_channel(strategy: str) -> None:
    x, u = images(6, 8, channels=1).float(), uniforms(6, seed=3).float()
    got = augment(x, strategy, u)
    assert got.dtype == torch.float32
    for n in range(6):
        np.testing.assert_allclose(got[n], naive(x[n].double().numpy(), strategy, u[n].numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({"BRIGHTNESS": 0}, lambda x, gray, mean: x - 0.5),
        ({"BRIGHTNESS": ALMOST_ONE}, lambda x, gray, mean: x + 0.5),
        ({"SATURATION": 0}, lambda x, gray, mean: gray.repeat(1, 3, 1, 1)),
        ({"SATURATION": ALMOST_ONE}, lambda x, gray, mean: 2 * x - gray),
        ({"CONTRAST": 0}, lambda x, gray, mean: (x + mean) / 2),
        ({"CONTRAST": ALMOST_ONE}, lambda x, gray, mean: 1.5 * x - 0.5 * mean),
        ({}, lambda x, gray, mean: x),
    ],
)
def test_the_ends_of_the_color_ranges(fixed: dict, expected) -> None:
    x = images(4)
    neutral = {"BRIGHTNESS": 0.5, "SATURATION": 0.5, "CONTRAST": 0.5}
    got = augment(x, "color", uniforms(4, **(neutral | fixed)))
    torch.testing.assert_close(
        got, expected(x, x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (16, 2), (32, 4), (64, 8)])
def test_crop_is_a_whole_shift_of_the_zero_padded_image_exactly(side: int, reach: int) -> None:
    x = images(1, side).float()
    seen = set()
    steps = [*torch.linspace(0, 1, 8 * reach + 5)[:-1].tolist(), float(ALMOST_ONE)]
    for u in steps:
        row = uniforms(1, MOVE_Y=u, MOVE_X=1 - u if 0 < u < 0.99 else 0.5).float()
        got = augment(x, "crop", row)
        assert torch.equal(got, torch.from_numpy(naive_crop(x[0].numpy(), row[0].numpy()))[None])
        seen.add(math.floor(u * (2 * reach + 1)) - reach)
    assert seen == set(range(-reach, reach + 1))
    lowest, highest = (augment(x, "crop", uniforms(1, MOVE_Y=u, MOVE_X=0.5).float())[0] for u in (0, ALMOST_ONE))
    assert torch.equal(lowest[:, reach:], x[0, :, :-reach])
    assert lowest[:, :reach].abs().max() == 0
    assert torch.equal(highest[:, :-reach], x[0, :, reach:])
    assert highest[:, -reach:].abs().max() == 0


def test_every_shift_of_the_crop_is_as_likely() -> None:
    u = np.random.default_rng(0).random((4000, A.DRAWS), dtype=np.float32)
    x = torch.zeros(4000, 1, 16, 16)
    x[:, :, 8, 8] = 1
    flat = augment(x, "crop", torch.from_numpy(u)).flatten(1).argmax(1)
    for place in (flat // 16, flat % 16):
        counts = np.bincount(place - 6, minlength=5)
        assert len(counts) == 5
        np.testing.assert_allclose(counts, 800, atol=150)


def test_flip_is_exact_and_has_probability_one_half() -> None:
    x = images(400).float()
    u = uniforms(400).float()
    got = augment(x, "flip", u)
    flipped = (got == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(got[~flipped], x[~flipped])
    assert 150 < int(flipped.sum()) < 250


@pytest.mark.parametrize("u", [0.0, 0.31, 0.5, 0.77, float(ALMOST_ONE)])
def test_cutout_is_a_square_of_half_the_side(u: float) -> None:
    x = images(1, 16) + 10
    got = augment(x, "cutout", uniforms(1, CUT_Y=u, CUT_X=0.5))
    rows = (got[0] == 0).all(0).any(1)
    columns = (got[0] == 0).all(0).any(0)
    assert int(columns.sum()) == 8
    assert int(rows.sum()) == (
        8 if 4 <= math.floor(16 * u) <= 12 else min(8, 4 + min(math.floor(16 * u), 16 - math.floor(16 * u)))
    )
    outside = ~(rows[:, None] & columns[None])
    assert torch.equal(got[0][:, outside], x[0][:, outside])


@pytest.mark.parametrize(("u", "factor"), [(0.0, 1 / 1.2), (float(ALMOST_ONE), 1.2)])
def test_scale_reaches_its_ends_and_axes_are_independent(u: float, factor: float) -> None:
    middle = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)  # where the factor is 1
    x = images(1)
    got = augment(x, "scale", uniforms(1, MOVE_Y=u, MOVE_X=middle))[0].numpy()
    np.testing.assert_allclose(got, resampled(x[0].numpy(), lambda y, c: (y / factor, c)), atol=1e-6)


def test_rotation_is_bounded_by_fifteen_degrees_and_the_middle_is_the_identity() -> None:
    x = images(1, 16)
    np.testing.assert_allclose(augment(x, "rotate", uniforms(1, MOVE_X=0.5)), x, atol=1e-12)
    for u, degrees in ((0.0, -15), (float(ALMOST_ONE), 15)):
        angle = math.radians(degrees)
        expected = resampled(
            x[0].numpy(),
            lambda r, c, a=angle: (math.sin(a) * c + math.cos(a) * r, math.cos(a) * c - math.sin(a) * r),
        )
        np.testing.assert_allclose(augment(x, "rotate", uniforms(1, MOVE_X=u))[0], expected, atol=1e-6)


@pytest.mark.parametrize("listed", [("crop", "scale", "rotate"), ("crop", "rotate"), ("rotate", "scale"), ("scale",)])
def test_one_geometric_operation_is_picked(listed: tuple[str, ...]) -> None:
    count = 1200
    x = images(1).expand(count, -1, -1, -1)
    u = uniforms(count, MOVE_Y=0.1, MOVE_X=0.9)
    got = augment(x, "_".join(listed), u)
    templates = {name: augment(x[:1], name, u[:1]) for name in listed}
    matches = {name: torch.isclose(got, t, atol=1e-9).flatten(1).all(1) for name, t in templates.items()}
    assert (torch.stack(list(matches.values())).sum(0) == 1).all()
    for match in matches.values():
        assert abs(int(match.sum()) - count / len(listed)) < 0.15 * count / len(listed)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_rows_give_one_transform_for_all_and_rows_are_independent(strategy: str) -> None:
    x = images(5)
    for rows in (uniforms(1, seed=4).expand(5, -1), uniforms(5, seed=5)):
        together = augment(x, strategy, rows)
        alone = torch.cat([augment(x[n : n + 1], strategy, rows[n : n + 1]) for n in range(5)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    same = augment(x[:1].expand(5, -1, -1, -1), strategy, uniforms(1, seed=4).expand(5, -1))
    torch.testing.assert_close(same, same[:1].expand_as(same), rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_flows(strategy: str) -> None:
    x = images(2, 8, channels=2).requires_grad_()
    u = uniforms(2, seed=6)
    torch.autograd.gradcheck(lambda x: augment(x, strategy, u), (x,))


@pytest.mark.parametrize("strategy", ["none", ""])
def test_no_augmentation(strategy: str) -> None:
    x = images(2)
    assert augment(x, strategy, uniforms(2)) is x
    assert parse_strategy(strategy) == ()


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(UserError) as error:
        augment(images(1), "color_warp", uniforms(1))
    assert str(error.value) == (
        "unknown augmentation 'warp' in 'color_warp': known: color, crop, scale, rotate, flip, cutout, none"
    )


def coded(count: int, side: int) -> torch.Tensor:
    """Channel 0 holds the image's number, channel 1 the pixel's place."""
    number = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 1, side, side)
    place = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side).expand(count, 1, side, side)
    return torch.cat([number, place], dim=1)


def mixed_by(
    rng: np.random.Generator, x_NCHW: torch.Tensor, target_NK: torch.Tensor, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    box_6, order_N = draw_cutmix(rng, len(x_NCHW), x_NCHW.shape[-1], probability)
    return cutmix(x_NCHW, target_NK, torch.from_numpy(box_6), torch.from_numpy(order_N))


def test_cutmix_mixes_pixels_and_targets_by_area() -> None:
    count, side, pasted_any = 6, 16, 0
    x, target = coded(count, side), torch.eye(count)
    for seed in range(40):
        mixed, mixed_target = mixed_by(np.random.default_rng(seed), x, target, 1.0)
        assert torch.equal(mixed[:, 1], x[:, 1])  # a pixel stays where it was
        torch.testing.assert_close(mixed_target.sum(1), torch.ones(count))
        boxes = set()
        for n in range(count):
            foreign = mixed[n, 0] != n
            donors = mixed[n, 0][foreign].unique()
            assert len(donors) <= 1
            expected = torch.zeros(count)
            share = foreign.float().mean()
            expected[n] = 1 - share
            if len(donors):
                rows, columns = (torch.nonzero(foreign.any(d)).flatten() for d in (1, 0))
                boxes.add((int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
                assert int(foreign.sum()) == len(rows) * len(columns)  # one box
                expected[int(donors[0])] = share
                pasted_any += 1
            torch.testing.assert_close(mixed_target[n], expected)
        assert len(boxes) <= 1  # the same for the whole batch
    assert pasted_any > 100
    assert torch.equal(x, coded(count, side))


def test_cutmix_probability() -> None:
    x, target = coded(8, 8), torch.eye(8)
    for seed in range(20):
        same, same_target = mixed_by(np.random.default_rng(seed), x, target, 0.0)
        assert torch.equal(same, x)
        assert torch.equal(same_target, target)
    left = sum(not draw_cutmix(np.random.default_rng(seed), 8, 8, 0.3)[0][:4].any() for seed in range(600))
    assert 360 < left < 480


def test_cutmix_lambda_is_uniform() -> None:
    """A box of area a whose center is uniform is unclipped with chance (1 - sqrt a)^2: the areas of unclipped boxes
    then have the density (1 - sqrt a)^2, if a is uniform."""
    side, areas = 128, []
    x, target = coded(8, side)[:, :1], torch.eye(8)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        mixed, _ = mixed_by(rng, x, target, 1.0)
        foreign = (mixed != x).any(0)[0]
        rows, columns = foreign.any(1), foreign.any(0)
        if not (rows[0] or rows[-1] or columns[0] or columns[-1]):
            areas.append(int(foreign.sum()) / side**2)
    assert len(areas) == pytest.approx(3000 / 6, rel=0.2)
    a = np.sort(areas)
    expected = (a - 4 / 3 * a**1.5 + a**2 / 2) * 6
    assert np.abs(expected - (np.arange(len(a)) + 0.5) / len(a)).max() < 0.07
