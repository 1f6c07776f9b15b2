"""Class folders: others read them, and spoilt ones are refused."""

import os
import shutil

import numpy as np
import pytest
from other_libraries import import_torchvision
from view_records import CLASSES, files, make, saved

from ncfmkit.errors import UserError
from ncfmkit.sets.views import image_folder
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
    ],
)
def test_folders_have_the_names_of_their_classes(classes):
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
        (("README.md", "b"), ("00_README.md", "01_b")),
        (("a", "train"), ("00_a", "01_train")),
        (("a", "b" * 256), ("00_a", "01_" + "b" * 252)),
        (("a", "\u732b" * 100), ("00_a", "01_" + "\u732b" * 84)),
    ],
)
def test_folders_are_numbered_where_names_will_not_do(classes, folders):
    assert folder_names(classes) == folders


def test_numbered_folders_sort_in_label_order():
    folders = folder_names(tuple(f"z{i}" for i in range(1001)))
    assert (folders[0], folders[-1]) == ("0000_z0", "1000_z1000")
    assert list(folders) == sorted(folders)


def test_what_the_folder_holds(package):
    folder, contents = package(image_folder)
    written = files(folder)
    assert list(written) == [*(f"{c}/0000{i}.png" for c in CLASSES for i in (0, 1)), "soft_labels.npy"]
    soft = np.load(folder / "soft_labels.npy", allow_pickle=False)
    assert (soft.dtype, soft.shape) == (np.float16, (contents.soft_rows.sum(), 3))
    assert np.array_equal(soft, np.concatenate([r.soft for r in make()[1]]))


@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize(
    "classes", [CLASSES, ("shirt", "T-shirt/top"), ("caf\u00e9", "\u4e2d\u6587"), ("\u732b/\u72ac", "\U0001f431")]
)
def test_imagefolder_reads_it(package, encoding, classes):
    image_folders = import_torchvision().datasets.ImageFolder
    folder, contents = package(image_folder, encoding=encoding, classes=classes)
    records = make(encoding=encoding, classes=classes)[1]
    (folder / "README.md").write_text("beside the classes")
    data = image_folders(folder)
    assert tuple(data.classes) == folder_names(contents.classes)
    assert [label for _, label in data.samples] == [r.label for r in records]
    for (image, label), record in zip(data, records, strict=True):
        assert label == record.label
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), record.image)


def spoil(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def swap(folder):
    """A file in place of a folder."""
    shutil.rmtree(folder / "dog")
    (folder / "dog").write_bytes(b"")


def linked_folder(folder):
    (folder / "dog").rename(folder.parent / "dog")
    (folder / "dog").symlink_to(folder.parent / "dog")


def linked_picture(folder):
    (folder / "dog/00000.png").unlink()
    (folder / "dog/00000.png").symlink_to(folder / "dog/00001.png")


def folder_as_picture(folder):
    (folder / "dog/00000.png").unlink()
    (folder / "dog/00000.png").mkdir()


def pipe(folder):
    (folder / "dog/00000.png").unlink()
    os.mkfifo(folder / "dog/00000.png")


def soft_of(values, dtype=np.float16):
    return saved(np.asarray(values, dtype))


SPOILT = {
    "missing picture": (lambda f: (f / "dog/00001.png").unlink(), r"dog: file '00001\.png' is missing"),
    "additional picture": (spoil("dog/00002.png", b""), r"dog: file '00002\.png' is not part of the package"),
    "additional file": (spoil("dog/Thumbs.db", b""), r"dog: file 'Thumbs\.db' is not part of the package"),
    "folder in a folder": (lambda f: (f / "dog/more").mkdir(), r"dog: file 'more' is not part of the package"),
    "missing folder": (lambda f: shutil.rmtree(f / "dog"), r"folder 'dog' is missing"),
    "additional folder": (lambda f: (f / "dogs").mkdir(), r"folder 'dogs' is not part of the package"),
    "file for a folder": (swap, r"folder 'dog' is missing"),
    "linked folder": (linked_folder, r"dog: expected no links"),
    "dangling link": (lambda f: (f / "x").symlink_to("nowhere"), r"x: expected no links"),
    "linked picture": (linked_picture, r"dog/00000\.png: expected a plain file"),
    "folder as picture": (folder_as_picture, r"dog/00000\.png: expected a plain file"),
    "pipe": (pipe, r"dog/00000\.png: expected a plain file"),
    "no picture": (spoil("dog/00000.png", b""), r"dog/00000\.png is not a picture .*neither PNG nor WebP"),
    "huge picture": (spoil("dog/00000.png", bytes(1 << 20)), r"dog/00000\.png is not a picture .*at most 65716"),
    "no soft labels": (lambda f: (f / "soft_labels.npy").unlink(), r"soft_labels\.npy is missing"),
    "not npy": (spoil("soft_labels.npy", b"PK"), r"soft_labels\.npy: expected .* got no \.npy header"),
    "empty npy": (spoil("soft_labels.npy", b""), r"soft_labels\.npy: expected .* got no \.npy header"),
    "pickle": (spoil("soft_labels.npy", saved(np.array([[None] * 3] * 9, object))), r"got .*\|O"),
    "other soft shape": (spoil("soft_labels.npy", soft_of([[0] * 3] * 8)), r"expected .*\(9, 3\).* got .*\(8, 3\)"),
    "other soft type": (spoil("soft_labels.npy", soft_of([[0] * 3] * 9, ">f2")), r"got .*>f2"),
    "column order": (spoil("soft_labels.npy", saved(np.zeros((9, 3), np.float16, "F"))), r"got .*_order': True"),
    "few values": (spoil("soft_labels.npy", soft_of([[0] * 3] * 9)[:-1]), r"soft_labels\.npy is cut off"),
    "many values": (spoil("soft_labels.npy", soft_of([[0] * 3] * 9) + b"x"), r"has data after its last value"),
    "nan": (spoil("soft_labels.npy", soft_of([[0, 0, np.nan]] * 9)), r"not all finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folders(package, case):
    folder, contents = package(image_folder)
    change, message = SPOILT[case]
    change(folder)
    with pytest.raises(UserError, match=message):
        list(image_folder.read(folder, contents))
