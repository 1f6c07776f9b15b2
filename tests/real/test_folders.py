"""Class folders, from small generated data, against a naive decode."""

import os
import shutil

import numpy as np
import pytest
from source_files import PLAIN, SIDE, assert_sorted_copy, class_folders, decoded

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "bmp"])
@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_folder_with_splits(tmp_path, kind, test):
    class_folders(tmp_path / "pets" / "train", ["dog", "cat"], 3, kind)
    class_folders(tmp_path / "pets" / test, ["dog", "cat"], 2, kind, seed=9)
    data = open_real(str(tmp_path / "pets"), PLAIN)
    assert (data.name, data.classes, data.size, data.channels) == ("pets", ("cat", "dog"), SIDE, 3)
    for split, folder, each in ((data.train, "train", 3), (data.test, test, 2)):
        files = [tmp_path / "pets" / folder / c / f"{i}.{kind}" for c in data.classes for i in range(each)]
        assert_sorted_copy(split, [decoded(f.read_bytes()) for f in files], np.repeat([0, 1], each))


def test_one_tree_nested_class_folders_and_hidden_ones(tmp_path):
    class_folders(tmp_path / "tree", ["a/images", "b", ".cache"], 2)
    (tmp_path / "tree" / "b" / "notes.txt").write_text("no picture")
    data = open_real(str(tmp_path / "tree"), PLAIN)
    assert (data.classes, data.test, data.train.counts().tolist()) == (("a", "b"), None, [2, 2])


def test_folder_with_two_test_splits_says_which(tmp_path, capsys):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "pets" / split, ["a"], 1, seed=len(split))
    data = open_real(str(tmp_path / "pets"), PLAIN)
    assert "testing on 'test', leaving 'val' alone" in capsys.readouterr().err
    np.testing.assert_array_equal(data.test.images[0], decoded((tmp_path / "pets/test/a/0.png").read_bytes()))


def test_other_classes_are_not_read(tmp_path):
    class_folders(tmp_path / "wordnet" / "train", ["n01", "n02", "n03"], 2)
    (tmp_path / "wordnet" / "train" / "n02" / "0.png").write_bytes(b"broken")
    data = open_real(str(tmp_path / "wordnet"), DataSettings(classes=("n03", "n01")))
    assert (data.classes, data.train.counts().tolist()) == (("n01", "n03"), [2, 2])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "b"], ["a", "c"], "test/ has class 'c', which train/ has not"),
        (["a", "b"], ["a"], "test/ lacks class 'b', which train/ has"),
    ],
)
def test_test_folder_must_have_the_same_classes(tmp_path, train, test, message):
    class_folders(tmp_path / "pets" / "train", train, 1)
    class_folders(tmp_path / "pets" / "test", test, 1)
    with pytest.raises(UserError, match=message):
        open_real(str(tmp_path / "pets"), PLAIN)


@pytest.mark.parametrize("odd", [b"pets/a/caf\xe9.png", b"pets/caf\xe9/0.png", b"caf\xe9/a/0.png"])
def test_names_that_are_not_utf8_are_shown(tmp_path, odd):
    class_folders(tmp_path / "pets", ["a", "b"], 1)
    path = os.fsencode(tmp_path) + b"/" + odd
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(os.fsencode(next((tmp_path / "pets" / "a").iterdir())), path)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/" + odd.split(b"/")[0])
    with pytest.raises(UserError, match=r"caf\\xe9.*: .*not valid UTF-8: rename") as caught:
        open_real(folder, PLAIN)
    assert str(caught.value).isascii()


def test_folders_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: .*folder per class .*got none"):
        open_real(str(tmp_path / "empty"), PLAIN)
    (tmp_path / "hollow" / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"hollow: no pictures in train/: expected \.png"):
        open_real(str(tmp_path / "hollow"), PLAIN)
    (tmp_path / "lonely" / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected a folder train/ beside val/"):
        open_real(str(tmp_path / "lonely"), PLAIN)


def test_class_without_images(tmp_path):
    class_folders(tmp_path / "pets", ["a", "b"], 1)
    (tmp_path / "pets" / "b" / "0.png").unlink()
    with pytest.raises(UserError, match=r"class 'b' .*no images .*pets train"):
        open_real(str(tmp_path / "pets"), PLAIN)
