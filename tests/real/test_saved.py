"""Folders of `save_to_disk`, written by the `datasets` library, against what the library reads."""

import json

import numpy as np
import pytest
from other_libraries import offline_datasets
from PIL import Image
from source_files import PLAIN, assert_sorted_copy, encoded, pixels

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real

NAMES = ["no", "yes"]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    return offline_datasets(tmp_path / "hub", monkeypatch)


def dataset(library, count, seed=0, **columns):
    """`count` pictures and labels, as bytes."""
    features = {"image": library.Image(), "label": library.ClassLabel(names=NAMES)}
    labels = np.random.default_rng(seed).permutation(np.arange(count) % 2).tolist()
    content = {"image": [{"bytes": encoded(i), "path": None} for i in pixels(count, seed)], "label": labels}
    return library.Dataset.from_dict(content | columns, library.Features(features) if not columns else None)


def assert_as_library(split, stored):
    images = [np.asarray(row["image"]).transpose(2, 0, 1) for row in stored]
    assert_sorted_copy(split, images, stored["label"])


def test_a_saved_dict_of_splits(tmp_path, datasets):
    splits = datasets.DatasetDict(train=dataset(datasets, 300), test=dataset(datasets, 6, seed=1))
    splits.save_to_disk(tmp_path / "birds", num_shards={"train": 3, "test": 1})
    data = open_real(str(tmp_path / "birds"), PLAIN)
    assert (data.name, data.classes) == ("birds", ("no", "yes"))
    assert_as_library(data.train, datasets.load_from_disk(tmp_path / "birds")["train"])
    assert_as_library(data.test, splits["test"])


def test_one_saved_dataset(tmp_path, datasets):
    whole = dataset(datasets, 10)
    whole.select([7, 2, 9, 4, 0]).save_to_disk(tmp_path / "few")
    assert_as_library(open_real(str(tmp_path / "few"), PLAIN).train, whole.select([7, 2, 9, 4, 0]))
    held_out = open_real(str(tmp_path / "few"), DataSettings(holdout=0.4))
    assert len(held_out.train.images) + len(held_out.test.images) == 5


def test_pictures_that_are_files_are_kept_by_save_to_disk(tmp_path, datasets):
    """The way that the message about Parquet without bytes names."""
    Image.fromarray(pixels(1)[0]).save(tmp_path / "0.png")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    files = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.png")], "label": ["owl"]}, features)
    files.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet row 0: has the path .*save_to_disk"):
        open_real(str(tmp_path / "p.parquet"), PLAIN)
    files.save_to_disk(tmp_path / "saved")
    (tmp_path / "0.png").unlink()
    data = open_real(str(tmp_path / "saved"), PLAIN)
    assert data.classes == ("owl",)
    assert_sorted_copy(data.train, pixels(1).transpose(0, 3, 1, 2), [0])


def test_columns_by_setting(tmp_path, datasets):
    dataset(datasets, 4, kind=["b", "a", "b", "b"]).save_to_disk(tmp_path / "s")
    data = open_real(str(tmp_path / "s"), DataSettings(label_column="kind"))
    assert (data.classes, data.train.counts().tolist()) == (("a", "b"), [1, 3])
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: expected a column 'sort', got image .*, label"):
        open_real(str(tmp_path / "s"), DataSettings(label_column="sort"))


def test_damaged_folders(tmp_path, datasets):
    datasets.DatasetDict(train=dataset(datasets, 4)).save_to_disk(tmp_path / "s")
    arrow, state = tmp_path / "s/train/data-00000-of-00001.arrow", tmp_path / "s/train/state.json"
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train/data-00000-of-00001\.arrow is not a whole Arrow file"):
        open_real(str(tmp_path / "s"), PLAIN)
    arrow.unlink()
    with pytest.raises(UserError, match=r"train/state\.json names the file 'data-.*', which is not there"):
        open_real(str(tmp_path / "s"), PLAIN)
    for content in ({}, {"_data_files": [{"filename": "../../x.arrow"}]}, {"_data_files": 3}):
        state.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"train/state\.json is not what `save_to_disk` .* writes"):
            open_real(str(tmp_path / "s"), PLAIN)
    state.write_text(json.dumps({"_data_files": []}))
    with pytest.raises(UserError, match=r"s: expected Arrow files in its state\.json, got none"):
        open_real(str(tmp_path / "s"), PLAIN)


def test_a_dict_without_a_train_split(tmp_path, datasets):
    datasets.DatasetDict(test=dataset(datasets, 4)).save_to_disk(tmp_path / "s")
    with pytest.raises(UserError, match=r"s: expected .*train.*, got only test"):
        open_real(str(tmp_path / "s"), PLAIN)


def test_offsets_beyond_the_file_are_refused(tmp_path, datasets):
    """Reading there would end the process."""
    dataset(datasets, 6).save_to_disk(tmp_path / "birds")
    (file,) = (tmp_path / "birds").glob("*.arrow")
    sizes = [len(encoded(i)) for i in pixels(6)]
    offsets = np.cumsum([0, *sizes]).astype(np.int32)
    content = file.read_bytes()
    assert content.count(offsets.tobytes()) == 1
    offsets[3:] = 2_000_000_000
    file.write_bytes(content.replace(np.cumsum([0, *sizes]).astype(np.int32).tobytes(), offsets.tobytes()))
    with pytest.raises(UserError, match=r"\.arrow is damaged \(.*\): copy it again"):
        open_real(str(tmp_path / "birds"), DataSettings(holdout=0.5))
