"""Sources that come as whole arrays: scikit-learn's digits and torchvision's readers."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.listing import Listing, Request, Rows, Source


def array_rows(name: str, images: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows over uint8 images [N, H, W] or [N, H, W, 3]."""
    return Rows(np.asarray(labels, np.int64), lambda rows: (images[r] for r in rows), lambda row: f"{name} row {row}")


def open_digits(request: Request) -> Source:
    """scikit-learn's embedded digits: no files, so its fingerprint is that of its name and its split."""
    return Source("digits, split 1", "digits", Path(), (), _load_digits)


def _load_digits() -> Listing:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = np.arange(len(images))
    train, test = map(np.sort, train_test_split(rows, test_size=450, stratify=digits.target, random_state=0))
    return Listing(
        tuple(map(str, digits.target_names)),
        array_rows("digits train", images[train], digits.target[train]),
        array_rows("digits test", images[test], digits.target[test]),
    )


@dataclass(frozen=True)
class Reader:
    """One of torchvision's readers, and the files that it needs below the data root."""

    name: str
    reader: str  # class in torchvision.datasets
    folder: str
    files: tuple[str, ...]
    by_split: bool = False  # the reader takes split="train" rather than train=True


_IDX = tuple(f"{split}-{part}-ubyte" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1"))

READERS = (
    Reader(
        "cifar10",
        "CIFAR10",
        "cifar-10-batches-py",
        ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
    ),
    Reader("cifar100", "CIFAR100", "cifar-100-python", ("meta", "train", "test")),
    Reader("mnist", "MNIST", "MNIST/raw", _IDX),
    Reader("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", _IDX),
    Reader("svhn", "SVHN", "", ("train_32x32.mat", "test_32x32.mat"), by_split=True),
)


def open_torchvision(reader: Reader, request: Request) -> Source:
    """One of torchvision's sets below the data root, downloaded first where the user asked for it.

    Raises:
        UserError: its files are not there, or the download failed.
    """
    root = request.data_root.resolve()
    folder = root / reader.folder
    missing = [f for f in reader.files if not (folder / f).is_file()]
    if missing and not request.download:
        raise UserError(
            f"{reader.name}: {missing[0]} not found in {folder}: pass --download to fetch the set, "
            "or --data-root with the folder that holds it"
        )
    if missing:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {root} ({error.strerror}): choose another --data-root") from None
        _read(reader, root, train=True, download=True)
        _read(reader, root, train=False, download=True)
    files = tuple((Path(reader.folder) / f).as_posix() for f in reader.files)
    return Source(reader.name, reader.name, root, files, partial(_load_torchvision, reader, root))


def torchvision_datasets() -> Any:
    """torchvision.datasets; beside a CPU build of torch the registry's wheel fails at import with a RuntimeError."""
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        torch = version("torch").partition("+")[0]  # named, so that pip does not replace it
        raise UserError(
            f"torchvision reads this set, and it does not import here ({error}): install the one that matches your "
            "torch, from the same index (https://pytorch.org/get-started/locally): "
            f'pip install torchvision "torch=={torch}"'
        ) from error


def _read(reader: Reader, root: Path, *, train: bool, download: bool = False) -> Any:
    dataset = getattr(torchvision_datasets(), reader.reader)
    which = {"split": "train" if train else "test"} if reader.by_split else {"train": train}
    try:
        return dataset(root, **which, download=download)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        doing = "download" if download else "reading"
        raise UserError(f"{reader.name}: {doing} failed in {root / reader.folder}: {error}") from error


def _load_torchvision(reader: Reader, root: Path) -> Listing:
    train, test = (_read(reader, root, train=t) for t in (True, False))
    classes: Sequence[str] = getattr(train, "classes", [str(c) for c in range(10)])
    return Listing(tuple(classes), _dataset_rows(reader, "train", train), _dataset_rows(reader, "test", test))


def _dataset_rows(reader: Reader, split: str, dataset: Any) -> Rows:
    images = np.asarray(dataset.data)
    images = images.transpose(0, 2, 3, 1) if reader.name == "svhn" else images
    labels = dataset.labels if reader.name == "svhn" else dataset.targets
    return array_rows(f"{reader.name} {split}", images, np.asarray(labels))
