"""`--bytes`: what fits, what is taken, and that the file keeps to it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ncfmkit.config import DistillSettings, Settings
from ncfmkit.errors import UserError
from ncfmkit.sets import budget, coding, label_codes, quantize, set_file
from ncfmkit.sets.manifest import SoftLabels, finished_set

CIFAR = budget.Room(classes=10, shape=(3, 32, 32), soft_label=0, most=5000)


def of(text: str, chroma: Any = "4:4:4", **settings: Any) -> DistillSettings:
    return DistillSettings(bytes=text, chroma=chroma, **settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12288/class", (2, 15)),  # 774 bytes an image
        ("122880 / class", (6, 53)),  # more than 60 in all fewer bits
        ("3KiB/class", (2, 3)),
        ("1500/class", (3, 1)),  # 2 bits would hold no more images
        ("800/class", (2, 1)),
        ("30720/class", (2, 39)),
        ("46440/class", (2, 60)),
        ("47300/class", (3, 40)),
        ("120KiB", (2, 15)),  # in all
    ],
)
def test_what_is_taken(text: str, expected: tuple[int, int]) -> None:
    fit = budget.fitted(of(text), CIFAR)
    assert (fit.bits, fit.ipc) == expected
    assert fit.bytes <= budget.parse_budget(text, 10)


def test_what_coding_saves_is_spent_on_images() -> None:
    room = dataclasses.replace(CIFAR, coded={2: 0.5, 3: 1.0})
    assert budget.fitted(of("12288/class"), room) == budget.Fit(bits=2, chroma="4:4:4", ipc=31, bytes=31 * (384 + 6))
    assert budget.fitted(of("774/class"), room).ipc == 1  # 390 expected, but 774 are sure
    with pytest.raises(UserError, match="takes 774 bytes"):
        budget.fitted(of("773/class"), room)


def test_what_coding_is_expected_to_save_is_what_it_saves_of_rough_mosaics() -> None:
    slope = np.linspace(40, 200, 1024).reshape(1, 1, 32, 32)
    images = np.clip(slope + np.arange(-60, 60, 10).reshape(4, 3, 1, 1), 0, 255).astype(np.uint8)
    shares = budget.expected_shares(images, seed=0, subsampled=False)
    rng = np.random.default_rng(0)
    rough = np.clip(images + rng.normal(0, budget.ROUGHNESS, images.shape), 0, 255).round().astype(np.uint8)
    for bits, share in shares.items():
        values, levels = quantize.quantize(rough, bits=bits, scale="image", dither=False)
        packed = quantize.packed(values, levels, bits).nbytes
        stream = coding.coded(values, levels, bits)
        assert len(stream) / packed == pytest.approx(share, rel=0.03)
    assert shares[2] < shares[3] < shares[4]
    noise = rng.integers(0, 256, images.shape, dtype=np.uint8)
    assert set(budget.expected_shares(noise, seed=0, subsampled=False).values()) == {1.0}


def test_bits_that_are_given_are_kept() -> None:
    assert budget.fitted(of("12288/class", bits=4), CIFAR) == budget.Fit(
        bits=4, chroma="4:4:4", ipc=7, bytes=7 * (1536 + 6)
    )
    assert [fit.bits for fit in budget.fits(of("12288/class", bits=4), CIFAR)] == [4]


def test_there_are_no_more_images_than_real_ones() -> None:
    fit = budget.fitted(of("12288/class"), dataclasses.replace(CIFAR, most=4))
    assert (fit.bits, fit.ipc) == (8, 4)  # with room for all of their bits


@pytest.mark.parametrize(
    ("text", "chroma", "expected"),
    [
        ("12288/class", None, ("4:2:0", 2, 31)),  # 390 bytes an image
        ("12288/class", "4:4:4", ("4:4:4", 2, 15)),
        ("3072/class", None, ("4:2:0", 2, 7)),
        ("46440/class", None, ("4:2:0", 4, 60)),  # 774 bytes
        ("122880/class", None, ("4:2:0", 8, 79)),  # more than 60 in all bits
    ],
)
def test_color_has_half_the_resolution_unless_asked_for(text: str, chroma: Any, expected: tuple[str, int, int]) -> None:
    fit = budget.fitted(of(text, chroma), CIFAR)
    assert (fit.chroma, fit.bits, fit.ipc) == expected


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 30)])
def test_images_that_cannot_have_half_the_color_keep_theirs(shape: tuple[int, int, int]) -> None:
    room = dataclasses.replace(CIFAR, shape=shape)
    assert budget.fitted(of("3072/class", None), room) == budget.fitted(of("3072/class"), room)
    with pytest.raises(UserError, match="one image per class in 2 bits takes"):
        budget.fitted(of("99/class", None), room)


def test_what_half_the_color_is_expected_to_save() -> None:
    """Smooth images compress, noise does not: its luma takes all of its bits."""
    slope = np.linspace(40, 200, 1024).reshape(1, 1, 32, 32)
    images = np.clip(slope + np.arange(-60, 60, 10).reshape(4, 3, 1, 1), 0, 255).astype(np.uint8)
    shares = budget.expected_shares(images, seed=0, subsampled=True)
    assert 0.1 < shares[2] < shares[3] < shares[4] < 1
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert min(budget.expected_shares(noise, seed=0, subsampled=True).values()) > 0.9


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("labels", [None, (16, 0), (4, 0), (8, 1)])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("text", ["1000/class", "4KB"])
def test_the_file_has_what_was_reckoned(
    make_real, tmp_path: Path, text: str, bits: int, labels: Any, chroma: str
) -> None:
    real = make_real((400, 300, 200))
    how = of(text, chroma, bits=bits)
    soft_label = 0 if labels is None else label_codes.row_bytes(3, *labels)
    room = budget.Room(classes=3, shape=(real.channels, real.size, real.size), soft_label=soft_label, most=200)
    (fit,) = budget.fits(how, room)
    settings = Settings(distill=dataclasses.replace(how, ipc=fit.ipc))
    images = torch.rand(3 * fit.ipc, *room.shape)
    result = finished_set(settings, real, images)
    if labels is not None:
        stored_in = None if labels[0] == 16 else SoftLabels(bits=labels[0], top=labels[1])
        logits = torch.zeros(3 * fit.ipc * 4, 3, dtype=torch.float16)
        result = dataclasses.replace(result, soft_labels=logits, manifest=result.manifest.changed(labels=stored_in))
    manifest = set_file.save(result, tmp_path / "set.safetensors")
    content = sum(count for name, count in manifest.bytes.items() if name != "labels")
    coded = manifest.pixels is not None and manifest.pixels.coding is not None
    assert content < 3 * fit.bytes if coded else content == 3 * fit.bytes
    assert fit.bytes <= budget.parse_budget(text, 3) < budget.bytes_of_class(how, bits, fit.ipc + 1, room)
    again = set_file.load(tmp_path / "set.safetensors")
    assert torch.equal(again.images, result.images)


def test_a_budget_below_the_smallest_set_is_refused_with_its_size() -> None:
    with pytest.raises(UserError, match="one image per class in 2 bits takes 774 bytes: pass 774/class or more"):
        budget.fitted(of("700/class"), CIFAR)
    with pytest.raises(UserError, match="one image per class in 2 bits takes 390 bytes: pass 390/class or more"):
        budget.fitted(of("300/class", None), CIFAR)
    with pytest.raises(UserError, match="in 4 bits takes 1,542 bytes: pass 1542/class"):
        budget.fitted(of("1KB/class", bits=4), CIFAR)


@pytest.mark.parametrize("text", ["", "/class", "many", "12x/class", "-3/class", "12/classes"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--bytes .* is not a size"):
        budget.fitted(of(text), CIFAR)
