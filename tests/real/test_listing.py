"""Names of splits: which are known, in which case, in files and in folders."""

import pytest
from source_files import PLAIN, assert_sorted_copy, decoded, encoded, parquet, pixels, shard

from ncfmkit.errors import UserError
from ncfmkit.real.listing import by_split, pick_splits, split_token
from ncfmkit.real.opening import open_real


@pytest.mark.parametrize(
    ("file", "token"),
    [
        *(("train-00000-of-00003.parquet", "train"), ("Test.parquet", "test"), ("my_TRAINING_set-1.tar", "training")),
        *(("eval0.tar", "eval"), ("dev-2.tar", "dev"), ("a.validation.tar", "validation"), ("x/valid-1.tar", "valid")),
        *(
            ("Test/000.tar", "test"),
            ("test/train-0.tar", "train"),
            ("Train/deep/0.tar", "train"),
            ("test/Train/0.tar", "train"),
        ),
        *(("trainer.tar", None), ("testament/0.tar", None), ("train set/0.tar", None), ("latest.tar", None)),
    ],
)
def test_split_token(file, token):
    assert split_token(file) == token


def test_pick_splits_takes_tests_before_validation(capsys):
    found = {"dev": "dev/", "evaluation": "Evaluation/", "train": "Train/"}
    assert pick_splits("pets", found) == ("train", "evaluation")
    assert capsys.readouterr().err == "pets: testing on Evaluation/, not using dev/\n"


def test_files_of_two_train_splits():
    with pytest.raises(UserError, match="pets: expected one train split, got 'train' and 'training': rename one"):
        by_split("pets", ["train-0.tar", "training-0.tar"])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_folders_tell_the_splits_where_files_do_not(tmp_path, kind):
    images, labels = pixels(6), [0, 1, 1, 0, 0, 1]
    contents = [encoded(image) for image in images]
    write = parquet if kind == "parquet" else shard
    for split, low, high in (("Train", 0, 4), ("val", 4, 6), ("Train 2", 0, 4), ("vax", 4, 6)):
        write(tmp_path / "set" / split / f"000.{kind}", contents[low:high], labels[low:high])
    data = open_real(f"{tmp_path}/set/{{Train,val}}/*.{kind}", PLAIN)
    naive = [decoded(content) for content in contents]
    assert_sorted_copy(data.train, naive[:4], labels[:4])
    assert_sorted_copy(data.test, naive[4:], labels[4:])
    # the same files as one split, as earlier versions read them: other data
    (tmp_path / "set" / "Train").rename(tmp_path / "set" / "Tr")
    assert open_real(f"{tmp_path}/set/{{Tr,vax}}/*.{kind}", PLAIN).test is None


@pytest.mark.parametrize(("kind", "write"), [("parquet", parquet), ("tar", shard)])
def test_splits_told_by_folders_have_a_fingerprint_of_their_own(tmp_path, monkeypatch, kind, write):
    for split in ("train", "val"):
        write(tmp_path / "set" / split / f"000.{kind}", [encoded(image) for image in pixels(2)], [0, 1])
    pattern = f"{tmp_path}/set/*/*.{kind}"
    split = open_real(pattern, PLAIN)
    monkeypatch.setattr("ncfmkit.real.listing.split_token", lambda file: None)  # as earlier versions
    whole = open_real(pattern, PLAIN)
    assert (len(split.train.images), len(whole.train.images)) == (2, 4)
    assert split.fingerprint != whole.fingerprint
