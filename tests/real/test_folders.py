"""Class folders, from small generated data, against a naive decode."""

import os
import shutil

import numpy as np
import pytest
from source_files import PLAIN, SIDE, assert_sorted_copy, class_folders, decoded

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real import folders
from ncfmkit.real.opening import open_real

SPLITS = [
    *(("train", "test"), ("train", "val"), ("Train", "Test"), ("training", "testing"), ("TRAINING", "Evaluation")),
    *(("train", "eval"), ("train", "valid"), ("Train", "VALIDATION"), ("train", "dev")),
]


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "bmp", "tif", "gif"])
@pytest.mark.parametrize(("train", "test"), SPLITS)
def test_folder_with_splits(tmp_path, kind, train, test):
    class_folders(tmp_path / "pets" / train, ["dog", "cat"], 3, kind)
    class_folders(tmp_path / "pets" / test, ["dog", "cat"], 2, kind, seed=9)
    data = open_real(str(tmp_path / "pets"), PLAIN)
    assert (data.name, data.classes, data.size, data.channels) == ("pets", ("cat", "dog"), SIDE, 3)
    for split, folder, each in ((data.train, train, 3), (data.test, test, 2)):
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
    assert "pets: testing on test/, not using val/\n" in capsys.readouterr().err
    np.testing.assert_array_equal(data.test.images[0], decoded((tmp_path / "pets/test/a/0.png").read_bytes()))


def same_as_without(tmp_path, name, classes=("cat", "dog")):
    """The set is read as if the class folders were alone in it."""
    data = open_real(str(tmp_path / name), PLAIN)
    assert (data.classes, data.train.counts().tolist()) == (classes, [3] * len(classes))
    return data


def test_splits_that_were_classes_have_a_fingerprint_of_their_own(tmp_path, monkeypatch):
    for split in ("training", "validation"):
        class_folders(tmp_path / "pets" / split, ["cat"], 1)
    splits = open_real(str(tmp_path / "pets"), PLAIN)
    monkeypatch.setattr(folders, "TRAIN_NAMES", ("train",))  # as earlier versions
    monkeypatch.setattr(folders, "TEST_NAMES", ())
    classes = open_real(str(tmp_path / "pets"), PLAIN)
    assert (splits.classes, classes.classes) == (("cat",), ("training", "validation"))
    assert splits.fingerprint != classes.fingerprint


def test_a_name_of_a_split_in_two_cases(tmp_path):
    for split in ("train", "Train"):
        class_folders(tmp_path / "pets" / split, ["a"], 1)
    with pytest.raises(UserError, match="pets: expected one train split, got Train/ and train/: rename one"):
        open_real(str(tmp_path / "pets"), PLAIN)


def test_two_names_of_the_train_split(tmp_path):
    for split in ("Train", "training"):
        class_folders(tmp_path / "pets" / split, ["a"], 1)
    with pytest.raises(UserError, match="pets: expected one train split, got Train/ and training/: rename one"):
        open_real(str(tmp_path / "pets"), PLAIN)


def test_folders_beside_the_splits_are_named(tmp_path, capsys):
    class_folders(tmp_path / "pets" / "train", ["cat", "dog"], 3)
    class_folders(tmp_path / "pets", ["extra", "more"], 1)
    same_as_without(tmp_path, "pets")
    assert "pets: reading train/, not using extra/, more/\n" in capsys.readouterr().err


def test_train_is_a_class_beside_other_vehicles(tmp_path):
    class_folders(tmp_path / "vehicles", ["bus", "car", "train"], 3)
    same_as_without(tmp_path, "vehicles", ("bus", "car", "train"))
    class_folders(tmp_path / "vehicles", ["test"], 3)
    with pytest.raises(UserError, match="expected one folder per class below train/, got none"):
        open_real(str(tmp_path / "vehicles"), PLAIN)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (["training_set", "test_set"], r"test_set/, training_set/ look like splits.*all of them hold cat/, dog/"),
        (["part1", "part2", "part3"], r"part1/, part2/, part3/ look like splits.*all of them hold cat/, dog/"),
        (["seg_train/seg_train", "seg_test/seg_test"], r"seg_test/, seg_train/ look like splits.*they are named so"),
    ],
)
def test_classes_that_look_like_splits_are_refused(tmp_path, splits, says):
    for split in splits:
        class_folders(tmp_path / "pets" / split, ["cat", "dog"], 1)
    for keep in ((), ("cat",)):
        with pytest.raises(UserError, match=rf"pets: {says}.*rename them train/ and test/, or list .*--classes"):
            open_real(str(tmp_path / "pets"), DataSettings(classes=keep))
    names = tuple(sorted(split.split("/")[0] for split in splits))
    assert open_real(str(tmp_path / "pets"), DataSettings(classes=names)).classes == names


def test_folders_within_classes_are_no_splits(tmp_path):
    """One that all classes have is no sign of splits, as in Tiny ImageNet; nor are several that only some have."""
    for name in ("cat", "dog", "test tube", "train station"):
        class_folders(tmp_path / "same" / name, ["images"], 3)
        class_folders(tmp_path / "some" / name, ["left", "right"] if name == "cat" else [".", "left"], 1)
    with pytest.raises(UserError, match="test tube/, train station/ look like splits"):
        open_real(str(tmp_path / "same"), PLAIN)
    for name in ("test tube", "train station"):
        for tree in ("same", "some"):
            (tmp_path / tree / name).rename(tmp_path / tree / name.split()[1])
    same_as_without(tmp_path, "same", ("cat", "dog", "station", "tube"))
    assert open_real(str(tmp_path / "some"), PLAIN).train.counts().tolist() == [2, 2, 2, 2]


def test_a_folder_around_the_set(tmp_path):
    class_folders(tmp_path / "pets" / "pets", ["cat", "dog"], 3)
    with pytest.raises(UserError, match=r"got pets/ alone, which holds cat, dog: pass pets/pets if these"):
        open_real(str(tmp_path / "pets"), PLAIN)


@pytest.mark.parametrize(
    ("link", "target", "says"),
    [
        ("loop", ".", "loop/ is a link to a folder around it"),
        ("loop", "..", "loop/ is a link to a folder around it"),
        ("kitten", "cat", "cat/ and kitten/ are the same folder"),
        ("kitten", "cat/young", "kitten/ is inside cat/"),
    ],
)
def test_links_that_count_pictures_twice_are_refused(tmp_path, link, target, says):
    class_folders(tmp_path / "pets", ["cat", "dog", "cat/young"], 3)
    (tmp_path / "pets" / link).symlink_to(target)
    with pytest.raises(UserError, match=rf"^pets: {says}, whose pictures would count twice: remove the link, or"):
        open_real(str(tmp_path / "pets"), PLAIN)
    kept = open_real(str(tmp_path / "pets"), DataSettings(classes=("cat", "dog")))
    assert kept.train.counts().tolist() == [6, 3]


def test_a_test_split_that_is_a_link_to_the_train_split(tmp_path):
    class_folders(tmp_path / "pets" / "train", ["cat", "dog"], 3)
    (tmp_path / "pets" / "test").symlink_to("train")
    with pytest.raises(UserError, match="train/cat/ and test/cat/ are the same folder"):
        open_real(str(tmp_path / "pets"), PLAIN)


def test_linked_folders_are_read_once_and_in_their_class_only(tmp_path, capsys):
    pets = tmp_path / "pets"
    class_folders(pets, ["cat", "dog"], 3)
    class_folders(tmp_path / "elsewhere", ["more", "more/deep", "cow"], 3)
    (pets / "cow").symlink_to(tmp_path / "elsewhere" / "cow")  # a class may lie anywhere
    (pets / "cat" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (pets / "cat" / "deep").symlink_to(tmp_path / "elsewhere" / "more" / "deep")
    (pets / "dog" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (pets / "cat" / "loop").symlink_to("..")
    (pets / "cat" / "self").symlink_to(".")
    (pets / "cat" / "dogs").symlink_to("../dog")
    (tmp_path / "elsewhere" / "more" / "up").symlink_to("..")
    data = open_real(str(pets), PLAIN)
    assert (data.classes, data.train.counts().tolist()) == (("cat", "cow", "dog"), [9, 3, 3])
    assert data.left_out == {"linked folders that are read elsewhere": 6}
    assert "pets: left out 6 linked folders that are read elsewhere\n" in capsys.readouterr().err


def test_folders_around_the_classes_are_worked_out_once_per_class(tmp_path, monkeypatch):
    """Once per pair of classes, 400 classes took 20 seconds."""
    calls, parents = [], folders._parents
    monkeypatch.setattr(folders, "_parents", lambda path: calls.append(path) or parents(path))
    counts = []
    for number in (10, 20):
        class_folders(tmp_path / str(number), [f"c{i:02}" for i in range(number)], 1)
        calls.clear()
        open_real(str(tmp_path / str(number)), PLAIN)
        counts.append(len(calls))
    assert counts[1] < 2.5 * counts[0]


def test_what_is_left_out_is_counted_by_kind(tmp_path, capsys):
    pets = tmp_path / "pets"
    class_folders(pets, ["cat", "dog"], 3)
    class_folders(pets / "dog", ["@eaDir", "__MACOSX", ".cache"], 1)
    for name in ("a.HEIC", "b.heic", "notes.txt", "README", "Thumbs.db", "desktop.ini", ".DS_Store", "x.2019 at ten"):
        (pets / "cat" / name).write_bytes(b"x")
    (pets / "dog" / "gone.png").symlink_to("nowhere.png")
    (pets / "beside.png").write_bytes((pets / "cat" / "0.png").read_bytes())
    data = same_as_without(tmp_path, "pets")
    expected = {".heic": 2, ".txt": 1, "files without a suffix": 2, "broken links": 1}
    assert data.left_out == expected | {"pictures outside the class folders": 1}
    said = capsys.readouterr().err
    assert "pets: left out 2 .heic, 2 files without a suffix, 1 .txt, 1 broken links, 1 pictures outside" in said
    assert "(pip install pillow-heif reads HEIC)\n" in said
    (pets / "cat" / "more.txt").write_bytes(b"x")
    assert open_real(str(pets), PLAIN).left_out[".txt"] == 2  # counted anew, though the store is known


def test_a_class_of_files_that_cannot_be_read(tmp_path):
    class_folders(tmp_path / "pets", ["a", "b"], 1)
    (tmp_path / "pets" / "b" / "0.png").rename(tmp_path / "pets" / "b" / "0.xyz")
    with pytest.raises(UserError, match=r"class 'b' has no images in pets train: expected PNG, .* got 1 \.xyz$"):
        open_real(str(tmp_path / "pets"), PLAIN)


def test_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    class_folders(tmp_path / "pets", ["a", "b/locked"], 1)
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"b/locked: the folder cannot be listed: Permission denied"):
        open_real(str(tmp_path / "pets"), PLAIN)


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
        (["caf\u00e9"], ["cafe\u0301"], "train/caf\u00e9/ and test/cafe\u0301/ look alike, but have different"),
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
    with pytest.raises(UserError, match=r"class 'a' has no images in hollow train: expected PNG, JPEG, "):
        open_real(str(tmp_path / "hollow"), PLAIN)
    (tmp_path / "lonely" / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected a folder train/ beside val/"):
        open_real(str(tmp_path / "lonely"), PLAIN)


def test_class_without_images(tmp_path):
    class_folders(tmp_path / "pets", ["a", "b"], 1)
    (tmp_path / "pets" / "b" / "0.png").unlink()
    with pytest.raises(UserError, match=r"class 'b' .*no images .*pets train"):
        open_real(str(tmp_path / "pets"), PLAIN)
