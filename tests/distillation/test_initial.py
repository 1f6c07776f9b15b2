"""Where images start."""

import math

import numpy as np
import pytest
import torch
from conftest import build_set

from ncfmkit.distillation.initial import from_images, initialize
from ncfmkit.errors import UserError
from ncfmkit.mosaic import decode
from ncfmkit.real.store import RealData
from ncfmkit.sets.synthetic import SyntheticSet


def naive_shrink(image: np.ndarray, cell: int) -> np.ndarray:
    """Bilinear with antialiasing: a triangle as wide as the scale, cut off at the edges."""
    side = image.shape[-1]
    scale = side / cell
    weights = np.zeros((cell, side))
    for o in range(cell):
        for i in range(side):
            weights[o, i] = max(0.0, 1 - abs((i + 0.5) - (o + 0.5) * scale) / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("or,crs,ps->cop", weights, image, weights)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_mix_holds_down_scaled_real_images_of_the_class(make_real, factor: int, size: int) -> None:
    real, ipc = make_real((9, 4, 13), size=size), 2
    stored = initialize("mix", real, ipc=ipc, factor=factor, seed=3)
    assert stored.shape == (3 * ipc, 3, size, size)
    assert stored.dtype == torch.float32
    assert stored.min() >= 0
    assert stored.max() <= 1
    cell = math.ceil(size / factor)
    for c, count in enumerate(real.train.counts()):
        start = real.train.offsets[c]
        own = [naive_shrink(image / 255, cell) for image in real.train.images[start : start + count].astype(float)]
        used = []
        for image in stored[c * ipc : (c + 1) * ipc].numpy():
            for r in range(factor):
                for s in range(factor):
                    got = image[:, r * cell : (r + 1) * cell, s * cell : (s + 1) * cell]
                    distances = [np.abs(o[:, : got.shape[1], : got.shape[2]] - got).max() for o in own]
                    assert min(distances) < 1e-5
                    used.append(int(np.argmin(distances)))
        # every image once before any is used again
        uses = np.bincount(used, minlength=count)
        assert uses.max() - uses.min() <= 1
        assert uses.sum() == ipc * factor**2


def test_mosaic_then_decode_gives_images_of_the_full_side(make_real) -> None:
    real = make_real((9, 9), size=7)
    stored = initialize("mix", real, ipc=2, factor=3, seed=0)
    assert decode(stored, (3,)).shape == (4, 9, 3, 7, 7)


def test_random_gives_real_images(make_real) -> None:
    real = make_real((5, 4))
    stored = initialize("random", real, ipc=4, factor=2, seed=1)
    for c in range(2):
        own = torch.from_numpy(real.train.images[real.train.offsets[c] : real.train.offsets[c + 1]])
        matches = [
            [bool(torch.equal(torch.round(image * 255).to(torch.uint8), o)) for o in own]
            for image in stored[4 * c : 4 * c + 4]
        ]
        assert np.sum(matches, axis=1).tolist() == [1] * 4
        assert np.sum(matches, axis=0).max() == 1  # distinct


def test_noise_is_gray_and_clamped(make_real) -> None:
    real = make_real((1, 1), size=32)  # fewer real images than ipc: noise needs none
    stored = initialize("noise", real, ipc=8, factor=2, seed=0)
    assert stored.shape == (16, 3, 32, 32)
    assert stored.dtype == torch.float32
    assert stored.min() == 0
    assert stored.max() == 1
    inside = stored[(stored > 0) & (stored < 1)]
    assert stored.mean().item() == pytest.approx(0.5, abs=0.01)
    # a normal of deviation 1/4 cut at 2 deviations: 4.55 % at the ends, deviation 0.8796 / 4 inside
    assert 1 - inside.numel() / stored.numel() == pytest.approx(0.0455, abs=0.005)
    assert inside.std().item() == pytest.approx(0.8796 / 4, abs=0.003)


@pytest.mark.parametrize("kind", ["mix", "random", "noise"])
def test_a_class_is_drawn_by_seed_and_class_alone(make_real, kind: str) -> None:
    first, other = make_real((9, 6, 8)), make_real((11, 6, 5))
    a, again = (initialize(kind, first, ipc=2, factor=2, seed=4) for _ in range(2))
    b = initialize(kind, other, ipc=2, factor=2, seed=4)
    assert torch.equal(a, again)
    assert torch.equal(a[2:4], b[2:4])
    c = initialize(kind, first, ipc=2, factor=2, seed=5)
    assert not torch.equal(a, c)
    assert not torch.equal(a[:2], a[2:4])


def test_classes_draw_different_images(make_real) -> None:
    """Two classes of the same images."""
    real = make_real((30, 30))
    real.train.images[30:] = real.train.images[:30]
    for kind in ("mix", "random", "noise"):
        stored = initialize(kind, real, ipc=3, factor=2, seed=4)
        assert not torch.equal(stored[:3], stored[3:])


def test_global_random_numbers_are_neither_read_nor_drawn(make_real) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    a = initialize("mix", make_real(), ipc=2, factor=2, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(a, initialize("mix", make_real(), ipc=2, factor=2, seed=4))


@pytest.mark.parametrize("kind", ["mix", "random"])
def test_too_few_images_is_an_error(make_real, kind: str) -> None:
    with pytest.raises(UserError) as error:
        initialize(kind, make_real((7, 3, 4)), ipc=4, factor=2, seed=0)
    assert str(error.value) == (
        "--ipc 4 is above the 3 training images of class 'class 1' in tiny: "
        f"--init {kind} needs at least as many; lower --ipc, or use --init noise"
    )


def test_from_images_gives_its_images(real) -> None:
    start = build_set()
    got = from_images(start.images, start.classes, real, ipc=2)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, start.images.numpy() / 255, atol=1e-7)


def test_from_images_errors(make_real, real) -> None:
    def from_set(start: SyntheticSet, real: RealData, *, ipc: int) -> torch.Tensor:
        return from_images(start.images, start.classes, real, ipc=ipc)

    with pytest.raises(UserError, match=r"--load: the set has other classes than tiny: 3 instead of 2"):
        from_set(build_set(), make_real((4, 4)), ipc=2)
    other = build_set(classes=("class 0", "cat", "class 2"))
    with pytest.raises(UserError, match=r"other classes than tiny: 'cat' instead of 'class 1'"):
        from_set(other, real, ipc=2)
    with pytest.raises(UserError, match=r"expected images of shape \(9, 3, 8, 8\), got \(6, 3, 8, 8\): check --ipc"):
        from_set(build_set(), real, ipc=3)
    with pytest.raises(UserError, match=r"expected images of shape \(6, 3, 16, 16\), got \(6, 3, 8, 8\)"):
        from_set(build_set(), make_real(size=16), ipc=2)
    with pytest.raises(UserError, match=r"expected images of shape \(6, 1, 8, 8\)"):
        from_set(build_set(), make_real(channels=1), ipc=2)


@pytest.mark.parametrize("kind", ["mix", "random", "noise"])
def test_some_classes_are_drawn_as_if_all_were(make_real, kind):
    real = make_real((7, 2, 9))
    whole = initialize(kind, make_real((7, 5, 9)), ipc=3, factor=2, seed=4).unflatten(0, (-1, 3))
    some = initialize(kind, real, ipc=3, factor=2, seed=4, labels=[0, 2]).unflatten(0, (-1, 3))
    assert torch.equal(some, whole[[0, 2]])
