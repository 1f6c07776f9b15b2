"""Parquet files, from small generated data, against a naive decode."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import PLAIN, assert_sorted_copy, decoded, encoded, parquet, pixels

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real


@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/{{train,test}}-*.parquet"])
def test_parquet_splits_by_file_name(tmp_path, form):
    root = tmp_path / "hub"
    labels, images = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1]), pixels(12)
    contents = [encoded(image, ("png", "webp", "gif", "tiff")[i % 4]) for i, image in enumerate(images)]
    parquet(root / "train-00000-of-00002.parquet", contents[:5], labels[:5], ["no", "yes"])
    parquet(root / "train-00001-of-00002.parquet", contents[5:9], labels[5:9], ["no", "yes"])
    parquet(root / "test-00000-of-00001.parquet", contents[9:], labels[9:], ["no", "yes"])
    data = open_real(form.format(root), PLAIN)
    assert (data.name, data.classes) == ("hub", ("no", "yes"))
    naive = [decoded(c) for c in contents]
    assert_sorted_copy(data.train, naive[:9], labels[:9])
    assert_sorted_copy(data.test, naive[9:], labels[9:])


def test_parquet_in_a_hugging_face_cache_of_links(tmp_path):
    for split, blob in (("train", "0ab1"), ("test", "9cd2")):
        parquet(tmp_path / "blobs" / blob, [encoded(i) for i in pixels(2)], [0, 1])
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        (tmp_path / "snapshot" / f"{split}-0.parquet").symlink_to(tmp_path / "blobs" / blob)
    data = open_real(str(tmp_path / "snapshot"), PLAIN)
    assert (data.name, len(data.train.images), len(data.test.images)) == ("snapshot", 2, 2)


def test_parquet_other_columns_metadata_and_data_folder(tmp_path):
    contents = [encoded(i) for i in pixels(4)]
    parquet(
        tmp_path / "c100/data/train-0.parquet",
        contents,
        [0, 1, 0, 1],
        image="img",
        label="fine_label",
        metadata={"classes": '["x", "y"]'},
    )
    parquet(tmp_path / "c100/data/validation-0.parquet", contents, [1, 0, 1, 0], image="img", label="fine_label")
    data = open_real(str(tmp_path / "c100"), PLAIN)
    assert (data.name, data.classes, len(data.test.images)) == ("c100", ("x", "y"), 4)


def test_one_parquet_file_without_names(tmp_path):
    parquet(tmp_path / "animals.parquet", [encoded(i) for i in pixels(6)], [0, 1, 2, 0, 1, 2])
    data = open_real(str(tmp_path / "animals.parquet"), DataSettings(holdout=0.5))
    assert (data.name, data.classes, data.test.counts().tolist()) == ("animals", ("0", "1", "2"), [1, 1, 1])


def test_parquet_subset_over_row_groups(tmp_path):
    labels, images = np.arange(23) % 5, pixels(23)
    parquet(tmp_path / "p/train-0.parquet", [encoded(i) for i in images], labels)
    data = open_real(str(tmp_path / "p"), DataSettings(classes=("3", "1")))
    chosen = np.isin(labels, (1, 3))
    assert data.classes == ("1", "3")
    assert_sorted_copy(data.train, images[chosen].transpose(0, 3, 1, 2), (labels[chosen] == 3).astype(int))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], r"train-0\.parquet row 2: expected a label in 0\.\.1, got -1"),
        ([0, 2, 1], r"train-0\.parquet row 1: expected a label in 0\.\.1, got 2"),
        ([0, None, 1], r"train-0\.parquet row 1: expected a label in column 'label', got null"),
        ([1, 1, 1], "class 'a' has no images in p train"),
    ],
)
def test_parquet_labels(tmp_path, labels, message):
    parquet(tmp_path / "p/train-0.parquet", [encoded(i) for i in pixels(3)], labels, ["a", "b"])
    with pytest.raises(UserError, match=message):
        open_real(str(tmp_path / "p"), PLAIN)


def test_parquet_layout_errors(tmp_path):
    one = [encoded(pixels(1)[0])]
    cases = {
        "image": (
            pa.table({"pixels": ["x"], "label": [0]}),
            r"column of pictures named image or img, got pixels \(string\), label \(int64\): .*--image-column",
        ),
        "text": (pa.table({"image": ["x"], "label": [0]}), r"picture files in column 'image' .*, got string: choose"),
        "label": (
            pa.table({"image": [b""], "what": [0], "which": [1]}),
            r"column of labels named label, got .*what \(int64\), which \(int64\): .*--label-column",
        ),
        "float": (
            pa.table({"image": [b""], "label": [0.5]}),
            r"expected integers or texts in column 'label', got double: .*--label-column",
        ),
    }
    for name, (table, message) in cases.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=message):
            open_real(str(tmp_path / f"{name}.parquet"), PLAIN)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cut\.parquet is not a whole Parquet file"):
        open_real(str(tmp_path / "cut.parquet"), PLAIN)
    parquet(tmp_path / "p/test-0.parquet", one, [0])
    with pytest.raises(UserError, match=r"expected files named train-\*, got only test-\*"):
        open_real(str(tmp_path / "p"), PLAIN)
    parquet(tmp_path / "p/more.parquet", one, [0])
    with pytest.raises(UserError, match=r"split of more\.parquet, .*test"):
        open_real(str(tmp_path / "p"), PLAIN)


def test_parquet_files_must_agree(tmp_path):
    one = [encoded(pixels(1)[0])]
    parquet(tmp_path / "p/train-0.parquet", one, [0], ["a"])
    parquet(tmp_path / "p/test-0.parquet", one, [0], ["b"])
    with pytest.raises(UserError, match=r"test-0\.parquet: its 1 class names differ"):
        open_real(str(tmp_path / "p"), PLAIN)
    parquet(tmp_path / "p/test-0.parquet", one, [0], image="img")
    with pytest.raises(UserError, match=r"test-0\.parquet: expected column 'image'"):
        open_real(str(tmp_path / "p"), PLAIN)


def table_of(contents, **columns):
    return pa.table({"image": pa.array(contents, pa.binary())} | columns)


def test_columns_by_setting(tmp_path):
    """Two columns of pictures and two of labels: the settings choose, in each direction."""
    first, second = ([encoded(i) for i in pixels(4, seed)] for seed in (0, 1))
    table = pa.table({"front": first, "back": second, "kind": [0, 1, 0, 1], "place": ["b", "a", "a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    data = open_real(str(tmp_path / "t.parquet"), DataSettings(image_column="back", label_column="place"))
    assert data.classes == ("a", "b")
    assert_sorted_copy(data.train, [decoded(c) for c in second], [1, 0, 0, 1])
    other = open_real(str(tmp_path / "t.parquet"), DataSettings(image_column="front", label_column="kind"))
    assert other.classes == ("0", "1")
    assert_sorted_copy(other.train, [decoded(c) for c in first], [0, 1, 0, 1])
    assert data.fingerprint != other.fingerprint
    with pytest.raises(UserError, match=r"expected a column 'side', got front .*--image-column"):
        open_real(str(tmp_path / "t.parquet"), DataSettings(image_column="side", label_column="kind"))
    with pytest.raises(UserError, match=r"expected a column 'what', got front .*--label-column"):
        open_real(str(tmp_path / "t.parquet"), DataSettings(image_column="back", label_column="what"))


@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "pandas category"])
def test_labels_that_are_texts(tmp_path, dictionary):
    contents, names = [encoded(i) for i in pixels(6)], ["owl", "cat", "dog", "cat", "owl", "dog"]
    column = pa.array(names).dictionary_encode() if dictionary else pa.array(names)
    (tmp_path / "p").mkdir()
    pq.write_table(table_of(contents[:4], label=column[:4]), tmp_path / "p/train-0.parquet")
    pq.write_table(table_of(contents[4:], label=column[4:]), tmp_path / "p/test-0.parquet")
    data = open_real(str(tmp_path / "p"), DataSettings(classes=("owl", "dog")))
    assert data.classes == ("dog", "owl")
    assert_sorted_copy(data.train, [decoded(contents[i]) for i in (0, 2)], [1, 0])
    assert_sorted_copy(data.test, [decoded(c) for c in contents[4:]], [1, 0])
    pq.write_table(table_of(contents[4:], label=pa.array(["owl", "dig"])), tmp_path / "p/test-0.parquet")
    says = r"test-0\.parquet: expected column 'label' of type dict" if dictionary else "test-0.*'dig' is not one of"
    with pytest.raises(UserError, match=says):
        open_real(str(tmp_path / "p"), PLAIN)


def test_a_class_label_is_found_by_its_feature(tmp_path):
    parquet(tmp_path / "p.parquet", [encoded(i) for i in pixels(2)], [0, 1], ["x", "y"], label="species")
    assert open_real(str(tmp_path / "p.parquet"), PLAIN).classes == ("x", "y")


@pytest.mark.parametrize("skip_bad", [False, True])
def test_paths_without_bytes(tmp_path, skip_bad):
    """As `Dataset.to_parquet` writes pictures that are files; a picture at that path is not read."""
    (tmp_path / "cat.png").write_bytes(encoded(pixels(1)[0]))
    rows = [{"bytes": None, "path": str(tmp_path / "cat.png")}]
    pq.write_table(pa.table({"image": rows, "label": [0]}), tmp_path / "p.parquet")
    with pytest.raises(
        UserError, match=r"p\.parquet row 0: has the path .*cat\.png', but not its bytes: .*save_to_disk"
    ):
        open_real(str(tmp_path / "p.parquet"), PLAIN, skip_bad=skip_bad)


def test_rows_with_neither_path_nor_bytes_are_unreadable_pictures(tmp_path, capsys):
    good = [encoded(i) for i in pixels(9)]
    rows = [{"bytes": c, "path": None} for c in good] + [None, *[{"bytes": None, "path": None}] * 6]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 8}), tmp_path / "p.parquet", row_group_size=5)
    with pytest.raises(UserError, match=r"p\.parquet row \d+ is not a readable picture"):
        open_real(str(tmp_path / "p.parquet"), PLAIN)
    data = open_real(str(tmp_path / "p.parquet"), PLAIN, skip_bad=True)
    assert data.skipped_images == tuple(f"p.parquet row {r}" for r in range(9, 16))
    assert_sorted_copy(data.train, [decoded(c) for c in good], [0, 1, 0, 1, 0, 1, 0, 1, 0])
    said = capsys.readouterr().err
    assert "skipped 7 unreadable images" in said
    assert [line.strip() for line in said.splitlines()[1:]] == [*data.skipped_images[:5], "... and 2 more"]
    again = open_real(str(tmp_path / "p.parquet"), PLAIN, skip_bad=True)
    assert again.skipped_images == data.skipped_images
    assert "p.parquet row 9" in capsys.readouterr().err
