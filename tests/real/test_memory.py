"""Data that a program holds: arrays, torch datasets, datasets of the `datasets` library."""

import itertools

import numpy as np
import pytest
import torch
from other_libraries import offline_datasets
from PIL import Image
from source_files import PLAIN, SIDE, assert_sorted_copy, encoded, pixels
from torch.utils.data import IterableDataset, Subset, TensorDataset, random_split

from ncfmkit.config import DataSettings, Settings
from ncfmkit.errors import UserError
from ncfmkit.real import building
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.memory import pixels as as_pixels
from ncfmkit.real.opening import open_real

LABELS = [1, 0, 2, 1, 0, 2, 2, 1]
IMAGES = pixels(len(LABELS))
STORED = IMAGES.transpose(0, 3, 1, 2)


class Birds(torch.utils.data.Dataset):
    """Map-style, as torchvision's: PIL images, integer labels, `classes`; with `transform` of images."""

    classes = ("jay", "owl", "tit")

    def __init__(self, transform=lambda image: image):
        self.transform = transform

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(IMAGES[index])), LABELS[index]


def to_tensor(image):
    """As torchvision's ToTensor: float32 [C, H, W], 0 to 1."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize(
    "images",
    [IMAGES, STORED, torch.from_numpy(STORED), STORED / np.float32(255), IMAGES.astype(np.int64)],
    ids=["NHWC", "NCHW", "tensor", "float", "int64"],
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_arrays(images, kind):
    data = open_real((images, kind(LABELS)), PLAIN)
    assert (data.name, data.classes, data.size, data.channels) == ("arrays", ("0", "1", "2"), SIDE, 3)
    assert_sorted_copy(data.train, STORED, LABELS)


def test_floats_are_rounded():
    values = np.array([[0, 0.4 / 255, 0.6 / 255], [99.6 / 255, 254.6 / 255, 1]])
    assert as_pixels(values, "x").tolist() == [[0, 0, 1], [100, 255, 255]]


@pytest.mark.parametrize("shape", [(8, 6, 6), (8, 6, 6, 1), (8, 1, 6, 6)])
def test_gray_arrays_and_labels_in_a_column(shape):
    gray = IMAGES[..., 0]
    data = open_real((gray.reshape(shape), np.array(LABELS)[:, None]), PLAIN)
    assert_sorted_copy(data.train, gray[:, None], LABELS)


def test_splits_and_labels_that_are_texts():
    names = np.array(["jay", "owl", "tit"])
    data = open_real({"train": (IMAGES, names[LABELS]), "test": (IMAGES[:3], names[LABELS[:3]])}, PLAIN)
    assert data.classes == ("jay", "owl", "tit")
    assert_sorted_copy(data.train, STORED, LABELS)
    assert_sorted_copy(data.test, STORED[:3], LABELS[:3])


@pytest.mark.parametrize("transform", [lambda image: image, to_tensor, np.asarray], ids=["PIL", "tensor", "array"])
def test_torch_datasets(transform):
    data = open_real(Birds(transform), DataSettings(classes=("tit", "jay")))
    kept = [i for i, label in enumerate(LABELS) if label != 1]
    assert (data.name, data.classes) == ("Birds", ("jay", "tit"))
    assert_sorted_copy(data.train, STORED[kept], [LABELS[i] // 2 for i in kept])


def test_torch_subsets_keep_the_names_of_the_classes():
    first, second = random_split(Birds(), [5, 3], torch.Generator().manual_seed(1))
    data = open_real({"train": Subset(first, range(5)), "validation": second}, DataSettings(classes=("jay", "owl")))
    assert (data.name, data.classes) == ("Birds", ("jay", "owl"))
    assert len(data.train.images) + len(data.test.images) == sum(label < 2 for label in LABELS)


def test_tensors_in_a_tensor_dataset_and_a_list_of_pairs():
    one = open_real(TensorDataset(torch.from_numpy(STORED), torch.tensor(LABELS)), PLAIN)
    two = open_real(list(zip(IMAGES, LABELS, strict=True)), PLAIN)
    for data in (one, two):
        assert_sorted_copy(data.train, STORED, LABELS)
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_is_that_of_the_content():
    def print_of(images=IMAGES, labels=LABELS, settings=PLAIN):
        return open_real((images, labels), settings).fingerprint

    other, moved = IMAGES.copy(), IMAGES[::-1]
    other[3, 0, 0, 0] ^= 1
    prints = [print_of(), print_of(other), print_of(moved), print_of(labels=[*LABELS[:-1], 2])]
    prints += [print_of(settings=DataSettings(holdout=0.5)), open_real(Birds(), PLAIN).fingerprint]
    prints.append(open_real({"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)}, PLAIN).fingerprint)
    assert len(set(prints)) == len(prints)
    assert print_of() == prints[0]


def test_known_data_are_not_decoded_again(monkeypatch):
    open_real(Birds(), PLAIN)
    monkeypatch.setattr(building, "open_picture", lambda *_: pytest.fail("decoded again"))
    open_real(Birds(), PLAIN)


def test_random_transforms_are_refused():
    counter = itertools.count()
    random = Birds(lambda image: np.asarray(image) // (1 + next(counter)))
    with pytest.raises(
        UserError, match=r"train row \d+: read twice, it gave two different images: .*random transforms"
    ):
        open_real(random, PLAIN)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"expected a name or a path, \(images, labels\) .*; got a int"),
        (None, r"expected a name or a path, .*; got a NoneType"),
        ((IMAGES, LABELS[:3]), "train: expected 8 labels for as many images, got shape \\[3\\]"),
        ((IMAGES, np.eye(8)), r"train: expected 8 labels for as many images, got shape \[8, 8\]"),
        ((IMAGES, np.linspace(0, 1, 8)), r"train row 0: expected an integer or a text as label, got a float"),
        ((IMAGES[0, 0], LABELS), r"train: expected images \[N, H, W\].*, got \[6, 3\]"),
        ((IMAGES[:0], []), "train: expected images, got none"),
        ((STORED / 255 - 0.5, LABELS), r"train row 0: expected pixels .*float64 from -0\.\d+ to 0\.\d+: .*normalized"),
        ((IMAGES * 2.0, LABELS), "train row 0: expected pixels .*, got float64 from .* not normalized"),
        ((IMAGES.astype(int) + 1, LABELS), "train row .: expected pixels 0 to 255 as integers .* to 256"),
        ((STORED * np.nan, LABELS), "train row 0: expected pixels .*nan"),
        ((np.zeros((8, 6, 6, 5)), LABELS), r"train row 0: expected an image .*got shape \[6, 6, 5\]"),
        ((IMAGES > 3, LABELS), "train row 0: expected pixels as numbers, got bool"),
        (list(IMAGES), r"train row 0: expected \(image, label\), got a numpy.ndarray"),
        ([(IMAGES[0], 0, 1)], r"train row 0: expected \(image, label\), got a tuple of 3"),
        ([(IMAGES[0], True)], "train row 0: expected an integer or a text as label, got a bool"),
        ([(IMAGES[0], 0), (IMAGES[0], "a")], "train row 1: expected an integer as label, .*got 'a'"),
        (Endless(), "got a .*Endless, which can only be iterated: load it without streaming"),
        ((Birds(), Birds()), r"expected a name or a path, .*a dict of such by split.*; got a tuple of 2"),
        ({}, "expected a dict with one split 'train', got an empty one"),
        ({"a": Birds(), "b": Birds()}, "expected a dict with one split 'train', got 'a', 'b'"),
        ({"train": Birds(), "test": ([], [])}, "got a tuple of 2"),
        ({"train": Birds(), "test": [(IMAGES[0], "owl")]}, "train row 0 and test row 0: one has an integer label"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        DataArguments(data=data).open(Settings())


def test_splits_with_other_classes_are_refused():
    other = Birds()
    other.classes = ("jay", "tit", "owl")
    with pytest.raises(UserError, match="the splits have other classes: jay, owl, tit; jay, tit, owl"):
        open_real({"train": Birds(), "test": other}, PLAIN)


def test_other_splits_are_left_alone(capsys):
    given = {"Train": Birds(), "validation": (IMAGES, LABELS), "test": (IMAGES[:3], LABELS[:3]), "extra": Birds()}
    assert len(DataArguments(data=given).open(Settings()).test.images) == 3
    assert capsys.readouterr().err.count("testing on 'test', not using 'validation'") == 1


@pytest.mark.parametrize(
    ("mode", "wanted"), [("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("LA", "LA"), ("RGBA", "RGBA")]
)
def test_modes_of_pil_images(mode, wanted):
    picture = Image.fromarray(IMAGES[0]).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)
    np.testing.assert_array_equal(as_pixels(picture, "x"), np.asarray(picture.convert(wanted)))
    if mode == "P":
        picture.info["transparency"] = 0
        np.testing.assert_array_equal(as_pixels(picture, "x"), np.asarray(picture.convert("RGBA")))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    return offline_datasets(tmp_path / "hub", monkeypatch)


def of_library(library, rows, names=("jay", "owl", "tit")):
    features = library.Features(image=library.Image(), label=library.ClassLabel(names=list(names)))
    content = {"image": [encoded(IMAGES[r]) for r in rows], "label": [LABELS[r] for r in rows]}
    content["image"] = [{"bytes": c, "path": None} for c in content["image"]]
    return library.Dataset.from_dict(content, features)


def test_datasets_of_the_datasets_library(datasets):
    whole = of_library(datasets, range(8))
    data = open_real(whole, PLAIN)
    assert (data.name, data.classes) == ("dataset", ("jay", "owl", "tit"))
    assert_sorted_copy(data.train, STORED, LABELS)
    rows = [6, 1, 3, 4, 0]
    chosen = whole.select(rows).with_transform(lambda batch: {"image": ["what a transform gives"]})
    splits = open_real(datasets.DatasetDict(train=whole, test=chosen), PLAIN)
    assert_sorted_copy(splits.test, STORED[rows], [LABELS[r] for r in rows])


def test_datasets_that_name_files_read_them(datasets, tmp_path):
    for row in range(8):
        Image.fromarray(IMAGES[row]).save(tmp_path / f"{row}.png")
    files = {"image": [str(tmp_path / f"{row}.png") for row in range(8)], "label": LABELS}
    dataset = datasets.Dataset.from_dict(files).cast_column("image", datasets.Image())
    first = open_real(dataset, PLAIN)
    assert_sorted_copy(first.train, STORED, LABELS)
    Image.fromarray(IMAGES[0] // 2).save(tmp_path / "0.png")
    assert open_real(dataset, PLAIN).fingerprint != first.fingerprint
    (tmp_path / "5.png").unlink()
    with pytest.raises(UserError, match=r"train row 5: no such file: '.*5\.png'"):
        open_real(dataset, PLAIN)


def test_columns_of_datasets_by_setting(datasets):
    dataset = of_library(datasets, range(8)).rename_column("image", "photo 1").add_column("kind", list("abababab"))
    data = open_real(dataset, DataSettings(image_column="photo 1", label_column="kind"))
    assert_sorted_copy(data.train, STORED, [0, 1] * 4)
    with pytest.raises(UserError, match=r"train: expected a column 'size', got .*--label-column"):
        open_real(dataset, DataSettings(label_column="size"))
    with pytest.raises(UserError, match="can only be iterated: load it without streaming"):
        open_real(dataset.to_iterable_dataset(), PLAIN)


def test_what_a_run_records_of_data_in_memory():
    arguments = DataArguments(data=(IMAGES, LABELS))
    assert arguments.recorded() == {"data": None, "data_root": None, "download": False, "skip_bad": False}
    assert arguments.data == "memory-arrays"
    assert DataArguments(data={"test": Birds(), "train": Birds()}).data == "memory-Birds"


def test_a_dataset_is_read_once_for_its_labels_and_once_for_the_store():
    reads = []
    data = Birds(lambda image: reads.append(image) or image)
    arguments = DataArguments(data=data)
    arguments.check(Settings())
    arguments.open(Settings())
    assert len(reads) == 2 * len(LABELS) + 1  # one more for the size and the color
