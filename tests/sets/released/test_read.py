"""Released sets: what is read from tensors and folders of pictures, and what holds no set."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from released_files import IMAGES, LABELS, read, saved

from ncfmkit.errors import UserError


@pytest.mark.parametrize("box", [list, tuple])
def test_a_list_of_images_and_targets(tmp_path: Path, box: Callable[..., Any]) -> None:
    got = read(saved(box([IMAGES, LABELS]), tmp_path / "data.pt"))
    assert (got.kind, got.soft_logits, got.folders) == ("list", None, ())
    assert got.images.dtype == np.float32
    np.testing.assert_array_equal(got.images, IMAGES.numpy())
    assert got.labels is not None
    assert got.labels.dtype == np.int64
    assert got.labels.tolist() == LABELS.tolist()
    assert list(got.files) == ["data.pt"]


VARIANTS = {
    "parameter": torch.nn.Parameter(IMAGES),
    "requires grad": IMAGES.clone().requires_grad_(),
    "double": IMAGES.double(),
    "transposed view": IMAGES.transpose(2, 3).contiguous().transpose(2, 3),
    "part of a larger one": torch.cat([torch.zeros(1, 3, 4, 4), IMAGES])[1:],
    "negative of another": torch._neg_view(-IMAGES),
    "imaginary part": torch.complex(IMAGES, -IMAGES).conj().imag,
    "imaginary part, double": torch.complex(IMAGES, -IMAGES).to(torch.complex128).conj().imag,
}


@pytest.mark.parametrize("images", VARIANTS.values(), ids=VARIANTS)
def test_tensors_of_all_makes(tmp_path: Path, images: torch.Tensor) -> None:
    got = read(saved([images, LABELS.to(torch.int32)], tmp_path / "data.pt"))
    np.testing.assert_array_equal(got.images, IMAGES.numpy())
    assert got.images.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_tensors_that_are_the_negative_of_others(tmp_path: Path, dtype: torch.dtype) -> None:
    images, labels = IMAGES.mul(255).byte(), LABELS.to(dtype)
    path = saved([torch._neg_view(-images), torch._neg_view(-labels)], tmp_path / "data.pt")
    assert all(tensor.is_neg() for tensor in torch.load(path))
    got = read(path)
    np.testing.assert_array_equal(got.images, images.numpy())
    assert got.labels is not None
    assert got.labels.tolist() == LABELS.tolist()
    soft = torch.eye(3)[LABELS] * 9
    logits = read(saved([images, torch._neg_view(-soft)], path)).soft_logits
    assert logits is not None
    np.testing.assert_array_equal(logits, soft.numpy())


def test_bytes_stay_bytes(tmp_path: Path) -> None:
    got = read(saved([IMAGES.mul(255).byte(), LABELS], tmp_path / "data.pt"))
    assert got.images.dtype == np.uint8
    np.testing.assert_array_equal(got.images, IMAGES.mul(255).byte().numpy())


@pytest.mark.parametrize("images", [IMAGES, IMAGES.mul(255).byte()], ids=["floats", "bytes"])
def test_what_is_read_does_not_hang_on_the_file(tmp_path: Path, images: torch.Tensor) -> None:
    path = saved([images, LABELS], tmp_path / "data.pt")
    got = read(path)
    path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(got.images, images.numpy())
    assert got.labels is not None
    assert got.labels.tolist() == LABELS.tolist()


def test_a_pair(tmp_path: Path) -> None:
    path = saved(IMAGES, tmp_path / "images_best.pt")
    with pytest.raises(UserError, match=r"only images.*no labels_best\.pt .*--labels"):
        read(path)
    saved(LABELS, tmp_path / "labels_best.pt")
    got = read(path)
    assert (got.kind, list(got.files)) == ("pair", ["images_best.pt", "labels_best.pt"])
    assert got.labels is not None
    assert got.labels.tolist() == LABELS.tolist()
    named = read(path, labels=saved(LABELS.flip(0), tmp_path / "mine.pt"))
    assert named.labels is not None
    assert named.labels.tolist() == LABELS.flip(0).tolist()


def test_labels_that_are_not_asked_for_or_not_there(tmp_path: Path) -> None:
    labels = saved(LABELS, tmp_path / "labels.pt")
    both = saved([IMAGES, LABELS], tmp_path / "data.pt")
    with pytest.raises(UserError, match="has its own labels: leave --labels out"):
        read(both, labels=labels)
    with pytest.raises(UserError, match=r"set\.pt .*only images: .*--labels"):
        read(saved(IMAGES, tmp_path / "set.pt"))
    with pytest.raises(UserError, match=r"data\.pt .*list of 2 \(Tensor, Tensor\): expected a tensor"):
        read(tmp_path / "set.pt", labels=both)


@pytest.mark.parametrize("box", [list, tuple])
def test_one_of_several_experiments(tmp_path: Path, box: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    sets = [box([IMAGES + number, LABELS.roll(number)]) for number in range(3)]
    accuracies = {"ConvNet": [0.5, 0.25], "AlexNet": []}
    path = saved({"data": box(sets), "accs_all_exps": accuracies, "args": None}, tmp_path / "res.pt")
    for experiment, number in ((None, 0), (0, 0), (2, 2)):
        got = read(path, experiment=experiment)
        assert (got.kind, list(got.files)) == ("experiments", ["res.pt"])
        np.testing.assert_array_equal(got.images, (IMAGES + number).numpy())
        assert got.labels is not None
        assert got.labels.tolist() == LABELS.roll(number).tolist()
        assert capfd.readouterr().err == f"res.pt: taking experiment {number} of 3, counted from 0\n"
    for wrong in (3, -1):
        with pytest.raises(UserError, match=rf"^--experiment {wrong}: .*res\.pt .*3: .*0 to 2$"):
            read(path, experiment=wrong)
    with pytest.raises(UserError, match="has its own labels: leave --labels out"):
        read(path, labels=path)


def test_experiments_where_there_is_one_set(tmp_path: Path) -> None:
    saved(LABELS, tmp_path / "labels.pt")
    for path in (
        saved([IMAGES, LABELS], tmp_path / "data.pt"),
        saved(IMAGES, tmp_path / "images.pt"),
        make_folder(tmp_path / "set", {"a": 1, "b": 1}),
    ):
        with pytest.raises(UserError, match=rf"^--experiment 0: .*{path.name} .*one set: leave --experiment out$"):
            read(path, experiment=0)


def test_experiments_with_numbers_of_numpy_are_not_loaded(tmp_path: Path) -> None:
    path = saved({"data": [[IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "res.pt")
    with pytest.raises(UserError, match=r"not tensors \(numpy\..*scalar\) .*torch\.save\("):
        read(path)


def test_logits_stay_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    got = read(saved([IMAGES, logits], tmp_path / "data.pt"))
    assert got.labels is None
    assert got.soft_logits is not None
    assert got.soft_logits.dtype == np.float32
    np.testing.assert_array_equal(got.soft_logits, logits.numpy())
    assert "are logits" in capfd.readouterr().err


def test_probabilities_become_logarithms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shares = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]]).repeat(3, 1)
    got = read(saved([IMAGES, shares], tmp_path / "data.pt")).soft_logits
    assert got is not None
    assert np.isfinite(got).all()
    again = np.exp(got) / np.exp(got).sum(1, keepdims=True)
    np.testing.assert_allclose(again, shares, atol=1e-6)
    assert "probabilities: kept as logarithms, 1e-08 for 0" in capfd.readouterr().err


def with_value(value: float) -> torch.Tensor:
    images = IMAGES.clone()
    images[3, 1, 2, 0] = value
    return images


NO_SETS: dict[str, tuple[Any, str]] = {
    "dictionary": ({"data": [IMAGES, LABELS], "accuracy": 0.5}, r"a dictionary with 'data', 'accuracy': expected a"),
    "no experiments": ({"data": []}, "holds a dictionary with 'data': expected a"),
    "experiments of one": ({"data": [[IMAGES, LABELS], [IMAGES]]}, "holds a dictionary with 'data': expected a"),
    "experiments of three": ({"data": [[IMAGES, LABELS, LABELS]]}, "holds a dictionary with 'data': expected a"),
    "experiments by name": ({"data": {0: [IMAGES, LABELS]}}, "holds a dictionary with 'data': expected a"),
    "empty dictionary": (OrderedDict(), "holds a dictionary with"),
    "number": (3, "holds a int: expected a list"),
    "three": ([IMAGES, LABELS, LABELS], r"a list of 3 \(Tensor, Tensor, Tensor\): expected a list"),
    "nested": ([[IMAGES, LABELS]], r"a list of 1 \(list\)"),
    "swapped": ([LABELS, IMAGES], r"\[N, 1 or 3, side, side\], got .*\[6\]"),
    "three axes": ([IMAGES[0], LABELS], r"got a tensor of shape \[3, 4, 4\]"),
    "not square": ([IMAGES[..., :3], LABELS], r"shape \[6, 3, 4, 3\]"),
    "channels last": ([IMAGES.permute(0, 2, 3, 1), LABELS], r"shape \[6, 4, 4, 3\]"),
    "two channels": ([IMAGES[:, :2], LABELS], r"shape \[6, 2, 4, 4\]"),
    "no images": ([IMAGES[:0], LABELS[:0]], r"shape \[0, 3, 4, 4\]"),
    "no side": ([IMAGES[..., :0, :0], LABELS], r"shape \[6, 3, 0, 0\]"),
    "int images": ([IMAGES.long(), LABELS], "expected images of uint8 or floats, got int64"),
    "bool images": ([IMAGES > 0.5, LABELS], "expected images of uint8 or floats, got bool"),
    "complex images": ([IMAGES.to(torch.complex64), LABELS], "expected images of uint8 or floats, got complex64"),
    "NaN": ([with_value(float("nan")), LABELS], "expected finite images, got NaN or infinity"),
    "infinity": ([with_value(float("-inf")), LABELS], "expected finite images"),
    "NaN labels": ([IMAGES, torch.full((6, 3), torch.nan)], "expected finite labels"),
    "fewer labels": ([IMAGES, LABELS[:5]], "expected as many labels as images, 6, got 5"),
    "float labels": ([IMAGES, LABELS.float()], r"got float32 of shape \[6\]"),
    "bool labels": ([IMAGES, LABELS > 0], r"expected labels as integers .* got bool of shape \[6\]"),
    "complex labels": ([IMAGES, LABELS.to(torch.complex64)], "got complex64 of shape"),
    "one-hot integers": ([IMAGES, torch.eye(6).long()], r"got int64 of shape \[6, 6\]"),
    "one class": ([IMAGES, torch.ones(6, 1)], r"got float32 of shape \[6, 1\]"),
}


@pytest.mark.parametrize(("content", "says"), NO_SETS.values(), ids=NO_SETS)
def test_content_that_is_no_set(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(saved(content, tmp_path / "images.pt"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no released set at .*nothing: expected a list"):
        read(tmp_path / "nothing")


def make_folder(root: Path, counts: dict[str, int], mode: str = "RGB", size: int = 4) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (size, size), 10 * label + i if mode == "L" else (10 * label + i, 0, 255)).save(
                root / name / f"{i}.png"
            )
    return root


def test_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "set", {"b": 2, "a": 1})
    (root / "README.md").write_text("not a picture")
    (root / "b" / "notes.txt").write_text("not a picture")
    (root / "b" / "Thumbs.db").write_text("not a picture")
    (root / ".cache").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "a" / "0.png").rename(root / "a" / "0.tif")
    got = read(root)
    assert capsys.readouterr().err == "set: left out 1 .txt\n"
    assert (got.kind, got.folders) == ("folder", ("a", "b"))
    assert got.images.shape == (3, 3, 4, 4)
    assert got.images.dtype == np.uint8
    assert got.images[:, 0, 0, 0].tolist() == [10, 0, 1]
    assert (got.images[:, 2] == 255).all()
    assert got.labels is not None
    assert got.labels.tolist() == [0, 1, 1]
    assert list(got.files) == ["a/0.tif", "b/0.png", "b/1.png"]


def test_gray_pictures_have_one_channel(tmp_path: Path) -> None:
    got = read(make_folder(tmp_path / "set", {"a": 1, "b": 1}, mode="L"))
    assert got.images.shape == (2, 1, 4, 4)
    assert got.images[:, 0, 0, 0].tolist() == [0, 10]


def test_pictures_of_another_look(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 2})
    Image.new("RGB", (5, 5)).save(root / "a" / "1.png")
    with pytest.raises(UserError, match=r"a/1\.png: .*4x4 RGB as a/0\.png, got 5x5 RGB"):
        read(root)
    Image.new("L", (4, 4)).save(root / "a" / "1.png")
    with pytest.raises(UserError, match=r"expected 4x4 RGB as a/0\.png, got 4x4 L"):
        read(root)
    for mode, size in (("RGBA", (4, 4)), ("RGB", (4, 5))):
        Image.new(mode, size).save(root / "a" / "0.png")
        with pytest.raises(UserError, match=r"a/0\.png: .*square.*\(L\) or RGB, got"):
            read(root)


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"folder per class .*got none"):
        read(tmp_path / "set")
    make_folder(tmp_path / "set", {"a": 1, "b": 0})
    with pytest.raises(UserError, match=r"no pictures in b/: expected PNG, "):
        read(tmp_path / "set")
    (tmp_path / "set" / "b" / "more").mkdir()
    with pytest.raises(UserError, match="b/more is a folder: "):
        read(tmp_path / "set")


def test_damaged_pictures(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 1})
    (root / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a/0\.png .*not a readable picture") as caught:
        read(root)
    assert "--skip-bad" not in str(caught.value)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", {"x": 1})
    root = make_folder(tmp_path / "set", {"a": 1})
    (root / "a" / "1.png").symlink_to(root / "a" / "0.png")
    assert len(read(root).images) == 2  # a link within is
    (root / "a" / "2.png").symlink_to(outside / "x" / "0.png")
    with pytest.raises(UserError, match=r"a/2\.png links outside the folder"):
        read(root)
    (root / "a" / "2.png").unlink()
    (root / "b").symlink_to(outside / "x")
    with pytest.raises(UserError, match=r"b/0\.png links outside the folder"):
        read(root)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 1})
    os.mkfifo(root / "a" / "1.png")
    with pytest.raises(UserError, match=r"a/1\.png is not a file"):
        read(root)


def test_the_size_limit_of_a_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"a": 3})
    read(root, max_bytes=3 * 48)
    with pytest.raises(UserError, match=r"3 pictures .*a/0\.png .*144 B, .*143 B: raise --max-size"):
        read(root, max_bytes=143)
    with pytest.raises(UserError, match="has its own labels: leave --labels out"):
        read(root, labels=tmp_path / "labels.pt")
