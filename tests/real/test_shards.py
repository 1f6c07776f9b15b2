"""Shards, from small generated data, against a naive decode and the webdataset library."""

import numpy as np
import pytest
import webdataset as wds
from source_files import PLAIN, assert_sorted_copy, decoded, encoded, pixels, shard

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real


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


def test_every_format_is_a_member(tmp_path):
    kinds = ("gif", "tiff", "bmp", "jp2", "ppm")
    contents = [
        encoded(image, {"jp2": "jpeg2000"}.get(kind, kind)) for image, kind in zip(pixels(5), kinds, strict=True)
    ]
    with wds.TarWriter(str(tmp_path / "all.tar"), encoder=False) as tar:
        for i, (kind, content) in enumerate(zip(kinds, contents, strict=True)):
            tar.write({"__key__": f"{i}", kind: content, "cls": str(i % 2).encode(), "txt": b"no picture"})
    data = open_real(str(tmp_path / "all.tar"), PLAIN)
    assert_sorted_copy(data.train, [decoded(content) for content in contents], [0, 1, 0, 1, 0])


def test_two_pictures_in_a_sample(tmp_path):
    with wds.TarWriter(str(tmp_path / "two.tar"), encoder=False) as tar:
        tar.write({"__key__": "k", "jpg": encoded(pixels(1)[0], "jpeg"), "png": encoded(pixels(1)[0]), "cls": b"0"})
    with pytest.raises(UserError, match=r"two\.tar member k: expected one picture, got k\.jpg and k\.png"):
        open_real(str(tmp_path / "two.tar"), PLAIN)


def test_shard_errors(tmp_path):
    good = encoded(pixels(1)[0])
    shard(tmp_path / "word.tar", [good], ["cat"])
    with pytest.raises(UserError, match=r"word\.tar member word/0000\.cls: .*integer.* b'cat'"):
        open_real(str(tmp_path / "word.tar"), PLAIN)
    with wds.TarWriter(str(tmp_path / "half.tar"), encoder=False) as tar:
        tar.write({"__key__": "k", "png": good})
    with pytest.raises(UserError, match=r"half\.tar member k: no label \(\.cls\) beside it"):
        open_real(str(tmp_path / "half.tar"), PLAIN)
    whole = (tmp_path / "half.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:600])
    with pytest.raises(UserError, match=r"cut\.tar .*whole, uncompressed tar"):
        open_real(str(tmp_path / "cut.tar"), PLAIN)
    shard(tmp_path / "bad.tar", [good, b"junk"], [0, 0])
    with pytest.raises(UserError, match=r"bad\.tar member bad/0001\.png .*picture"):
        open_real(str(tmp_path / "bad.tar"), PLAIN)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"classes\.txt is not UTF-8 text"):
        open_real(str(tmp_path / "bad.tar"), PLAIN)
