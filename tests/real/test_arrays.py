"""Sources of whole arrays: digits, and torchvision's sets from small files in their formats."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from other_libraries import import_torchvision
from sklearn.datasets import load_digits
from source_files import PLAIN, assert_sorted_copy, pixels

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real import arrays as array_sources
from ncfmkit.real.opening import open_real


def test_digits_has_450_test_images_and_full_range():
    data = open_real("digits", PLAIN)
    assert (data.name, data.size, data.channels, len(data.train.images), len(data.test.images)) == (
        "digits",
        8,
        1,
        1347,
        450,
    )
    assert data.train.images.max() == 255
    assert data.classes == tuple("0123456789")
    assert data.test.counts().min() >= 43
    assert data.train.images.sum() + data.test.images.sum() == np.round(load_digits().images * 255 / 16).sum()


@pytest.mark.parametrize(
    ("name", "place"),
    [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("mnist", "MNIST"), ("svhn", "32x32.mat")],
)
def test_absent_torchvision_set_says_where_it_looked(tmp_path, monkeypatch, name, place):
    monkeypatch.setattr(array_sources, "torchvision_datasets", lambda: pytest.fail("torchvision is not needed yet"))
    with pytest.raises(UserError, match=rf"{place}.*--download.*--data-root") as error:
        open_real(name, PLAIN, data_root=tmp_path / "sets")
    assert str(tmp_path / "sets") in str(error.value)


def test_download_is_asked_of_torchvision_only_when_the_user_asks(tmp_path, monkeypatch):
    def reader(root, train, download):
        assert download
        raise OSError("no route to host")

    monkeypatch.setattr(array_sources, "torchvision_datasets", lambda: SimpleNamespace(MNIST=reader))
    with pytest.raises(UserError, match=r"mnist: download failed .*sets.*: no route to host"):
        open_real("mnist", PLAIN, data_root=tmp_path / "sets", download=True)


@pytest.mark.parametrize(
    "failure", [ImportError("no module"), RuntimeError("operator torchvision::nms does not exist")]
)
def test_broken_torchvision_says_what_to_install(tmp_path, monkeypatch, failure):
    def fail(_):
        raise failure

    write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(array_sources.importlib, "import_module", fail)
    install = r'pip install torchvision "torch==\d+\.\d+\.\d+"$'
    with pytest.raises(UserError, match=rf"does not import .*\((no module|operator).*{install}"):
        open_real("mnist", PLAIN, data_root=tmp_path)


def write_idx(folder):
    """Small files in MNIST's format: 20 training and 10 test images of 28x28."""
    folder.mkdir(parents=True)
    written = {}
    for split, count in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
        written[split] = images, labels
    return written


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_reader(tmp_path, name, folder):
    import_torchvision()
    written = write_idx(tmp_path / folder / "raw")
    data = open_real(name, PLAIN, data_root=tmp_path)
    assert (data.name, data.size, data.channels, len(data.classes)) == (name, 28, 1, 10)
    assert_sorted_copy(data.train, written["train"][0][:, None], written["train"][1])
    assert_sorted_copy(data.test, written["t10k"][0][:, None], written["t10k"][1])


def test_svhn_and_cifar_layouts(tmp_path, monkeypatch):
    images, labels = pixels(4), [1, 0, 1, 0]

    def svhn(root, split, download):
        return SimpleNamespace(data=images.transpose(0, 3, 1, 2), labels=np.array(labels))

    def cifar(root, train, download):
        return SimpleNamespace(data=images, targets=labels, classes=["plane", "car"])

    readers = SimpleNamespace(SVHN=svhn, CIFAR100=cifar)
    monkeypatch.setattr(array_sources, "torchvision_datasets", lambda: readers)
    (tmp_path / "cifar-100-python").mkdir()
    for file in ("train_32x32.mat", "test_32x32.mat", *(f"cifar-100-python/{f}" for f in ("meta", "train", "test"))):
        (tmp_path / file).write_bytes(b"")
    for name, classes in (("svhn", ("0", "1")), ("cifar100", ("plane", "car"))):
        data = open_real(name, DataSettings(classes=("0", "1")), data_root=tmp_path)
        assert data.classes == classes
        assert_sorted_copy(data.train, images.transpose(0, 3, 1, 2), labels)


def test_damaged_cifar_is_a_user_error(tmp_path):
    import_torchvision()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(gzip.compress(b"not it"))
    with pytest.raises(UserError, match=r"cifar10: reading failed in .*corrupted"):
        open_real("cifar10", PLAIN, data_root=tmp_path)
