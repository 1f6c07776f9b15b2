"""The synthetic set once it exists: decoded images, labels, a dataset."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set
from naive_mosaic import naive_decode
from PIL import Image

from ncfmkit.mosaic import decode_factors, decode_mask
from ncfmkit.reports.contact_sheet import contact_sheet


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


def test_as_dataset_has_what_torchvision_has() -> None:
    dataset = build_set("bound", 2, 7).as_dataset()
    assert dataset.classes == ["class 0", "class 1", "class 2"]
    assert dataset.targets.dtype == torch.int64
    assert dataset.targets.tolist() == [int(dataset[n][1]) for n in range(len(dataset))]
    assert len(build_set(soft=True).as_dataset()[0]) == 3


SCORE: dict[str, Any] = {"network": "convnet", "epochs": 2, "n": 3, "last": {"mean": 0.6191, "std": 0.0068}}
SCORE |= {"best": {"mean": 0.63, "std": 0.01}}


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ({}, "3 classes x 2 images of 3x8x8, factor 2"),
        ({"factor": 1, "ipc": 1, "channels": 1}, "3 classes x 1 image of 1x8x8"),
        ({"bits": 4}, "3 classes x 2 images of 3x8x8, factor 2, 4 bits"),
        ({"score": SCORE}, "3 classes x 2 images of 3x8x8, factor 2, score 61.9 ± 0.7"),
        ({"score": SCORE | {"n": 1}}, "3 classes x 2 images of 3x8x8, factor 2, score 61.9"),
    ],
)
def test_a_set_in_one_line(how: dict[str, Any], shown: str) -> None:
    assert repr(build_set(**how)) == f"SyntheticSet({shown})"


def test_the_length_counts_stored_images() -> None:
    assert len(build_set(ipc=3)) == 9


def test_a_set_in_a_notebook() -> None:
    """Its name as text, and the contact sheet of the stored images."""
    small = build_set(name="<b>tiny", score=SCORE)
    shown = small._repr_html_()
    assert "&lt;b&gt;tiny" in shown
    assert "<b>tiny" not in shown
    assert "score 61.9 ± 0.7" in shown
    content = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', shown)[0])
    expected = contact_sheet(small.images.numpy(), small.labels.numpy(), small.classes)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(content))), np.array(expected))


def test_classes_and_ipc() -> None:
    assert build_set(ipc=3).ipc == 3
    assert build_set().classes == ("class 0", "class 1", "class 2")
