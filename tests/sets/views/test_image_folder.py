"""Class folders: their names, and that torchvision reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_set
from other_libraries import import_torchvision

from ncfmkit.sets import package
from ncfmkit.sets.views.image_folder import folder_names


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        tuple("0123456789"),
        ("English springer", "tench, Tinca (fish)"),
        ("A", "b"),
        ("n01440764", "n02"),
        ("caf\u00e9", "\u4e2d\u6587", "\U0001f431 cat"),
        ("a", "\U0001f469\u200d\U0001f52c"),
        ("a" * 255, "b"),
        ("README.md", "train"),
    ],
)
def test_folders_have_the_names_of_their_classes(classes: tuple[str, ...]) -> None:
    assert folder_names(classes) == classes


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("T-shirt/top", "Trouser"), ("00_T-shirt-top", "01_Trouser")),
        (("dog", "cat"), ("00_dog", "01_cat")),
        (("..", "a"), ("00", "01_a")),
        (("", "a"), ("00", "01_a")),
        (("CON", "a"), ("00_CON", "01_a")),
        (("aux.png", "b"), ("00_aux.png", "01_b")),
        (("COM\u00b9", "a"), ("00_COM\u00b9", "01_a")),
        (("Cat", "cat"), ("00_Cat", "01_cat")),
        (("cat", "cat"), ("00_cat", "01_cat")),
        (("strasse", "stra\u00dfe"), ("00_strasse", "01_stra\u00dfe")),
        (("a.", "b"), ("00_a", "01_b")),
        (("a ", "b"), ("00_a", "01_b")),
        ((" a", "b"), ("00_ a", "01_b")),
        ((".git", "b"), ("00_.git", "01_b")),
        (("-rf", "b"), ("00_-rf", "01_b")),
        (("a\n", "b"), ("00_a-", "01_b")),
        (("a\x00b", "c"), ("00_a-b", "01_c")),
        (("a\u2028b", "c"), ("00_a-b", "01_c")),
        (("a\u3000b", "c"), ("00_a b", "01_c")),
        (("C:", "D"), ("00_C-", "01_D")),
        (("\u732b", "a"), ("00_\u732b", "01_a")),
        (("cafe\u0301", "d"), ("00_caf\u00e9", "01_d")),  # decomposed: not the bytes that every system has
        (("metadata.parquet", "z"), ("00_metadata.parquet", "01_z")),
        (("a", "b" * 256), ("00_a", "01_" + "b" * 252)),
        (("a", "\u732b" * 100), ("00_a", "01_" + "\u732b" * 84)),
    ],
)
def test_folders_are_numbered_where_names_will_not_do(classes: tuple[str, ...], folders: tuple[str, ...]) -> None:
    assert folder_names(classes) == folders


def test_numbered_folders_sort_in_label_order() -> None:
    folders = folder_names(tuple(f"z{i}" for i in range(1001)))
    assert (folders[0], folders[-1]) == ("0000_z0", "1000_z1000")
    assert list(folders) == sorted(folders)


@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize(
    "how",
    [
        {"classes": ("cat", "dog")},
        {"classes": ("shirt", "T-shirt/top"), "channels": 1},
        {"classes": ("\u732b/\u72ac", "\U0001f431"), "kind": "bound", "budget": 7},
    ],
)
def test_torchvision_reads_it(tmp_path: Path, encoding: str, how: dict[str, Any]) -> None:
    image_folders = import_torchvision().datasets.ImageFolder
    small = build_set(**how)
    package.write(small, tmp_path / "packed", package.Packing(layout="png", encoding=encoding))
    data = image_folders(tmp_path / "packed" / "train")
    assert tuple(data.classes) == folder_names(small.classes)
    expected = list(package.rows_of(small))
    assert [label for _, label in data.samples] == [row.label for row in expected]
    for (image, label), row in zip(data, expected, strict=True):
        assert label == row.label
        assert (np.asarray(image).transpose(2, 0, 1) == row.image).all()  # a gray picture has three equal channels
