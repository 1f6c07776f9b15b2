"""Every kind of source, from small generated data, against a naive decode."""

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from other_libraries import import_torchvision
from PIL import Image
from sklearn.datasets import load_digits

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real import arrays as array_sources
from ncfmkit.real.opening import open_real
from ncfmkit.real.paths import matching
from ncfmkit.real.sources import SOURCES

SIDE = 6
PLAIN = DataSettings()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def encoded(image, kind="png"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    return file.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def class_folders(root, classes, each=3, kind="png", seed=0):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(pixels(each, seed + c)):
            (root / name / f"{i}.{kind}").write_bytes(encoded(image, "jpeg" if kind == "jpg" else kind))


def parquet(path, contents, labels, names=None, image="image", label="label", metadata=None, group=4):
    column = pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


def shard(path, contents, labels, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), encoder=False) as tar:
        for i, (content, label) in enumerate(zip(contents, labels, strict=True)):
            tar.write({"__key__": f"{path.stem}/{i:04d}", kind: content, "cls": str(label).encode()})


def assert_sorted_copy(split, images, labels):
    """The split holds the images [N, 3, H, W] sorted by class, in source order within each."""
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(split.labels, np.asarray(labels)[order])
    np.testing.assert_array_equal(split.images, np.asarray(images)[order])


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


def test_table_names_are_unique_and_described():
    names = [kind.name for kind in SOURCES]
    assert len(set(names)) == len(names)
    assert {
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "svhn",
        "folder",
        "parquet",
        "webdataset",
    } == set(names)
    assert all(kind.summary for kind in SOURCES)


def test_no_torch_at_import():
    code = "import sys, ncfmkit.real; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


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
    with pytest.raises(UserError, match=r"mnist: download failed in .*sets.*: no route to host"):
        open_real("mnist", PLAIN, data_root=tmp_path / "sets", download=True)


@pytest.mark.parametrize(
    "failure", [ImportError("no module"), RuntimeError("operator torchvision::nms does not exist")]
)
def test_broken_torchvision_says_what_to_install(tmp_path, monkeypatch, failure):
    def fail(_):
        raise failure

    write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(array_sources.importlib, "import_module", fail)
    with pytest.raises(
        UserError, match=r"does not import here \((no module|operator).*install the torchvision that matches"
    ):
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
    with pytest.raises(UserError, match=r"caf\\xe9.*: a name that is not valid UTF-8: rename") as caught:
        open_real(folder, PLAIN)
    assert str(caught.value).isascii()


def test_folders_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: expected one folder per class below the folder, got none"):
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
    with pytest.raises(UserError, match="class 'b' has no images in pets train"):
        open_real(str(tmp_path / "pets"), PLAIN)


def test_unknown_data_names_near_matches(tmp_path):
    with pytest.raises(
        UserError, match=r"no data found at 'cifar-10'; did you mean 'cifar10'.*Accepted: digits, cifar10"
    ):
        open_real("cifar-10", PLAIN)
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"did you mean '.*flowers'"):
        open_real(str(tmp_path / "flower"), PLAIN)
    with pytest.raises(UserError, match=r"no data found at .*none-\*\.parquet"):
        open_real(str(tmp_path / "none-*.parquet"), PLAIN)
    with pytest.raises(UserError, match=r"no data found at 'a\{b"):
        open_real("a{b", PLAIN)
    (tmp_path / "set.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected a folder, \.parquet or \.tar files, got a \.zip file"):
        open_real(str(tmp_path / "set.zip"), PLAIN)


@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/{{train,test}}-*.parquet"])
def test_parquet_splits_by_file_name(tmp_path, form):
    root = tmp_path / "hub"
    labels, images = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1]), pixels(12)
    contents = [encoded(image, ("png", "webp", "jpeg")[i % 3]) for i, image in enumerate(images)]
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
        ([0, None, 1], r"train-0\.parquet row 1: expected an integer label, got null"),
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
            pa.table({"picture": [b""], "label": [0]}),
            r"expected a column 'image' or 'img', got picture, label",
        ),
        "struct": (pa.table({"image": [b""], "label": [0]}), r"'image' as a struct of bytes and path, got binary"),
        "label": (
            pa.table({"image": [{"bytes": b"", "path": ""}], "label": ["cat"]}),
            r"expected one integer column named label, got .*label \(string\)",
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
    with pytest.raises(UserError, match=r"cannot tell the split of more\.parquet, where others are named test"):
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


# the library leaves its shards open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("form", ["{}", "{}/*.tar", "{}/{{train-{{000..001}},val-000}}.tar"])
@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_shards_equal_what_the_webdataset_library_reads(tmp_path, form, kind):
    root = tmp_path / "shards"
    labels = np.array([2, 0, 1, 1, 0, 2, 0, 1, 2, 2, 1, 0])
    contents = [encoded(i, "jpeg" if kind == "jpg" else kind) for i in pixels(12)]
    for name, low, high in (("train-000", 0, 5), ("train-001", 5, 9), ("val-000", 9, 12)):
        shard(root / f"{name}.tar", contents[low:high], labels[low:high], kind)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    data = open_real(form.format(root), PLAIN)
    assert (data.name, data.classes) == ("shards", ("red", "green", "blue"))
    read = [
        (sample[kind], int(sample["cls"]))
        for i in range(2)
        for sample in wds.WebDataset(str(root / f"train-00{i}.tar"), shardshuffle=False)
    ]
    assert_sorted_copy(data.train, [decoded(c) for c, _ in read], [label for _, label in read])
    assert_sorted_copy(data.test, [decoded(c) for c in contents[9:]], labels[9:])


def test_shards_without_names_and_with_holdout(tmp_path):
    shard(tmp_path / "w/part-0.tar", [encoded(i) for i in pixels(8)], [0, 1] * 4)
    data = open_real(str(tmp_path / "w"), DataSettings(holdout=0.25))
    assert (data.classes, data.train.counts().tolist(), data.test.counts().tolist()) == (("0", "1"), [3, 3], [1, 1])


def test_only_braces_need_the_library_that_expands_them(tmp_path, monkeypatch):
    (tmp_path / "train-0.tar").touch()
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert matching(str(tmp_path / "train-*.tar"), ".tar") == [tmp_path / "train-0.tar"]
    with pytest.raises(ImportError):
        matching(str(tmp_path / "train-{0..1}.tar"), ".tar")


def test_shard_errors(tmp_path):
    good = encoded(pixels(1)[0])
    shard(tmp_path / "word.tar", [good], ["cat"])
    with pytest.raises(UserError, match=r"word\.tar member word/0000\.cls: expected an integer label, got b'cat'"):
        open_real(str(tmp_path / "word.tar"), PLAIN)
    with wds.TarWriter(str(tmp_path / "half.tar"), encoder=False) as tar:
        tar.write({"__key__": "k", "png": good})
    with pytest.raises(UserError, match=r"half\.tar member k: no label \(\.cls\) beside it"):
        open_real(str(tmp_path / "half.tar"), PLAIN)
    whole = (tmp_path / "half.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:600])
    with pytest.raises(UserError, match=r"cut\.tar is not a whole, uncompressed tar file"):
        open_real(str(tmp_path / "cut.tar"), PLAIN)
    shard(tmp_path / "bad.tar", [good, b"junk"], [0, 0])
    with pytest.raises(UserError, match=r"bad\.tar member bad/0001\.png is not a readable picture"):
        open_real(str(tmp_path / "bad.tar"), PLAIN)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"classes\.txt is not UTF-8 text"):
        open_real(str(tmp_path / "bad.tar"), PLAIN)
