"""The synthetic set once it exists: decoded images, labels, a dataset."""

import numpy as np
import pytest
import torch
from conftest import build_set
from naive_mosaic import naive_decode

from ncfmkit.mosaic import decode_factors, decode_mask


@pytest.mark.parametrize(
    ("kind", "factor", "budget"), [("single", 2, None), ("single", 1, None), ("multi", 2, None), ("bound", 2, 7)]
)
def test_decoded_images_and_labels(kind: str, factor: int, budget: int | None) -> None:
    synthetic = build_set(kind, factor, budget)
    x, labels = synthetic.decoded()
    factors, expected, expected_labels = decode_factors(kind, factor), [], []
    mask = decode_mask(kind, factor, 2, budget)
    for n, image in enumerate(synthetic.images.numpy() / 255):
        parts = [part for f in factors for part in naive_decode(image, f)]
        kept = [part for p, part in enumerate(parts) if mask[n % 2, p]]
        expected += kept
        expected_labels += [n // 2] * len(kept)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    np.testing.assert_allclose(x, expected, atol=1e-6)
    assert labels.tolist() == expected_labels
    if budget is not None:
        assert np.bincount(labels).tolist() == [budget] * 3


def test_as_dataset_normalizes() -> None:
    synthetic = build_set()
    x, labels = synthetic.decoded()
    dataset = synthetic.as_dataset()
    assert len(dataset) == len(x) == 24
    for n in (0, 11, 23):
        image, label = dataset[n]
        for channel, (mean, std) in enumerate(zip([0.5, 0.4, 0.3], [0.2, 0.25, 0.3], strict=True)):
            torch.testing.assert_close(image[channel], (x[n, channel] - mean) / std)
        assert label == labels[n]


def test_classes_and_ipc() -> None:
    assert build_set(ipc=3).ipc == 3
    assert build_set().classes == ("class 0", "class 1", "class 2")
