"""Decoding, against naive references."""

import numpy as np
import pytest
import torch
from naive_mosaic import naive_decode

from ncfmkit.errors import UserError
from ncfmkit.mosaic import check_budget, decode, decode_factors, decode_mask


def images(count: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([count, side]).random((count, channels, side, side)))


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_decode_equals_the_naive_reference(factor: int, side: int) -> None:
    x = images(2, side)
    got = decode(x, (factor,))
    assert got.shape == (2, factor**2, 3, side, side)
    for n in range(2):
        np.testing.assert_allclose(got[n], naive_decode(x[n].numpy(), factor), atol=1e-6)


def test_decode_of_several_factors_follows_their_order() -> None:
    x = images(2, 8)
    for factors in ((1, 2, 3), (3, 2, 1)):
        expected = [[part for f in factors for part in naive_decode(image, f)] for image in x.numpy()]
        np.testing.assert_allclose(decode(x, factors), expected, atol=1e-6)


def test_cells_come_row_by_row() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, :4, 4:] = 0.1  # top right
    x[0, 0, 4:, :4] = 0.2  # bottom left
    np.testing.assert_allclose(decode(x, (2,))[0].mean((1, 2, 3)), [0, 0.1, 0.2, 0], atol=1e-7)


@pytest.mark.parametrize("side", [5, 6])
def test_decode_gradient(side: int) -> None:
    x = images(1, side, 1).requires_grad_()
    torch.autograd.gradcheck(lambda x: decode(x, (1, 2, 3)), (x,))


def test_decode_factors() -> None:
    assert decode_factors("single", 3) == (3,)
    assert decode_factors("multi", 3) == (1, 2, 3)
    assert decode_factors("bound", 3) == (3, 2, 1)
    assert decode_factors("single", 1) == decode_factors("multi", 1) == decode_factors("bound", 1) == (1,)


@pytest.mark.parametrize(("kind", "columns"), [("single", 9), ("multi", 14)])
def test_single_and_multi_count_every_decoded_image(kind: str, columns: int) -> None:
    mask = decode_mask(kind, 3, 5, None)
    assert mask.shape == (5, columns)
    assert mask.dtype == bool
    assert mask.all()


@pytest.mark.parametrize("budget", [None, *range(1, 45)])
def test_bound_meets_its_budget_with_the_largest_factors_first(budget: int | None) -> None:
    ipc, factor = 3, 3
    mask = decode_mask("bound", factor, ipc, budget)
    assert mask.shape == (ipc, 14)
    expected = np.zeros((ipc, 14), bool)
    # the order in which decoded images are taken: by factor from the largest, then by image, then by cell
    order = [(m, column) for block in (range(9), range(9, 13), range(13, 14)) for m in range(ipc) for column in block]
    for m, column in order[: 27 if budget is None else budget]:
        expected[m, column] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_budget_trains_every_part_of_every_stored_image() -> None:
    """What `check_budget` accepts of `bound` decodes every pixel; what it refuses does not, or is not there."""
    for ipc, factor in ((1, 1), (3, 1), (2, 2), (3, 3)):
        most = ipc * sum(f * f for f in range(1, factor + 1))
        for budget in (None, *range(1, most + 3)):
            mask = decode_mask("bound", factor, ipc, budget)
            covers = mask[:, : factor**2].all()  # the cells of the largest factor; before that, some pixels are in none
            assert (budget is None) <= covers
            if covers and (budget is None or budget <= most):
                check_budget("bound", factor, ipc, budget)
                assert mask.sum() == (budget or ipc * factor**2)
                continue
            fault = "that is more than there are" if covers else "parts of the stored images would never be trained"
            expected = rf"decoded_per_class {budget}: {fault}; .* expected {ipc * factor**2} \(.* to {most} \("
            with pytest.raises(UserError, match=expected):
                check_budget("bound", factor, ipc, budget)
    for kind in ("single", "multi"):
        check_budget(kind, 2, 3, None)
