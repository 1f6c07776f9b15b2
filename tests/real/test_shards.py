"""Shards, from small generated data, against a naive decode and the webdataset library."""

import io
import json
import re
import tarfile

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


def write(path, *samples):
    """A shard of samples, which have the keys 0, 1, 2, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), encoder=False) as tar:
        for key, sample in enumerate(samples):
            tar.write({"__key__": str(key)} | sample)


def test_labels_in_json(tmp_path):
    contents = [encoded(i) for i in pixels(4)]
    about = [{"id": i, "label": i % 2, "kind": "ab"[i // 2]} for i in range(4)]
    path = tmp_path / "w.tar"
    write(path, *({"png": c, "json": json.dumps(a).encode()} for c, a in zip(contents, about, strict=True)))
    assert_sorted_copy(open_real(str(path), PLAIN).train, [decoded(c) for c in contents], [0, 1, 0, 1])
    data = open_real(str(path), DataSettings(label_column="kind"))
    assert data.classes == ("a", "b")
    assert_sorted_copy(data.train, [decoded(c) for c in contents], [0, 0, 1, 1])
    with pytest.raises(UserError, match=r"w\.tar member 0\.json: .* under 'sort', got None \(it has id, label, kind\)"):
        open_real(str(path), DataSettings(label_column="sort"))
    for wrong, says in ((b"{", "is not readable JSON"), (b"[1]", r"expected a JSON object .*got \[1\]")):
        write(path, {"png": contents[0], "json": wrong})
        with pytest.raises(UserError, match=rf"w\.tar member 0\.json:? {says}"):
            open_real(str(path), PLAIN)
    write(path, {"png": contents[0], "json": b'{"caption": "a cat"}'})
    with pytest.raises(UserError, match=r"member 0: no label \(\.cls, or in \.json .*--label-column"):
        open_real(str(path), PLAIN)


def test_cls_counts_before_json_in_either_order_and_a_setting_before_both(tmp_path):
    picture, about = encoded(pixels(1)[0]), b'{"label": 1}'
    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        for name in ("a.cls", "a.json", "a.png", "b.json", "b.cls", "b.png"):
            content = {"cls": b"0" if name[0] == "a" else b"2", "json": about, "png": picture}[name[2:]]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    by_cls = open_real(str(tmp_path / "w.tar"), DataSettings(classes=("0", "2")))  # .json says 1
    assert by_cls.train.counts().tolist() == [1, 1]
    write(tmp_path / "w.tar", {"png": picture, "cls": b"junk \xff", "json": b'{"label": 0}'})
    assert open_real(str(tmp_path / "w.tar"), DataSettings(label_column="label")).train.labels.tolist() == [0]
    write(tmp_path / "w.tar", {"png": picture, "cls": b"0", "json": b"no JSON"})
    assert open_real(str(tmp_path / "w.tar"), DataSettings(label_column="cls")).train.labels.tolist() == [0]


def test_labels_that_are_texts(tmp_path):
    contents = [encoded(i) for i in pixels(3)]
    shard(tmp_path / "w/train-0.tar", contents[:2], ["red", "green"])
    shard(tmp_path / "w/test-0.tar", contents[1:], ["green", "red"])
    data = open_real(str(tmp_path / "w"), PLAIN)
    assert (data.classes, data.test.labels.tolist()) == (("green", "red"), [0, 1])
    assert_sorted_copy(data.train, [decoded(c) for c in contents[:2]], [1, 0])
    (tmp_path / "w/classes.txt").write_text("red\ngreen\n")
    assert open_real(str(tmp_path / "w"), PLAIN).classes == ("red", "green")
    shard(tmp_path / "w/test-0.tar", contents[1:], ["gren", "red"])
    with pytest.raises(
        UserError, match=r"test-0\.tar member .*'gren' is not one of the 2 classes; did you mean 'green'"
    ):
        open_real(str(tmp_path / "w"), PLAIN)
    shard(tmp_path / "w/test-0.tar", contents[1:], ["0", "1"])
    with pytest.raises(UserError, match=r"train-0\.tar member .* and test-0\.tar member .*: one has an integer label"):
        open_real(str(tmp_path / "w"), PLAIN)
    shard(tmp_path / "w/train-1.tar", contents[1:], ["0", "1"])
    with pytest.raises(UserError, match=r"train-[01]\.tar .* and train-[01]\.tar .*: one has an integer label"):
        open_real(str(tmp_path / "w"), PLAIN)


def test_pictures_under_another_extension(tmp_path):
    left, right = (encoded(i) for i in pixels(2))
    write(tmp_path / "w.tar", {"left.png": left, "right.png": right, "cls": b"0"})
    for name, content in (("left.png", left), ("right.png", right)):
        data = open_real(str(tmp_path / "w.tar"), DataSettings(image_column=name))
        assert_sorted_copy(data.train, [decoded(content)], [0])


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
    with pytest.raises(
        UserError, match=r"two\.tar member k: has two pictures, k\.jpg and k\.png: .*--image-column png"
    ):
        open_real(str(tmp_path / "two.tar"), PLAIN)


def test_shard_errors(tmp_path):
    good = encoded(pixels(1)[0])
    write(tmp_path / "odd.tar", {"png": good, "cls": b"\xff"})
    with pytest.raises(UserError, match=r"odd\.tar member 0\.cls: expected a label, an integer or a text, got b'.xff'"):
        open_real(str(tmp_path / "odd.tar"), PLAIN)
    write(tmp_path / "empty.tar", {"png": good, "cls": b" \n"})
    with pytest.raises(UserError, match=r"empty\.tar member 0\.cls: expected a label, .* got an empty file"):
        open_real(str(tmp_path / "empty.tar"), PLAIN)
    write(tmp_path / "mixed.tar", {"png": good, "cls": b"1"}, {"png": good, "cls": b"cat"})
    with pytest.raises(UserError, match=r"mixed\.tar member 1\.png: expected an integer as label, .*got 'cat'"):
        open_real(str(tmp_path / "mixed.tar"), PLAIN)
    write(tmp_path / "large.tar", {"png": good, "cls": b"1"}, {"png": good, "cls": b"9" * 20})
    with pytest.raises(
        UserError, match=r"large\.tar member 1\.png: expected the number of a class as label, got 9{20}"
    ):
        open_real(str(tmp_path / "large.tar"), PLAIN)
    write(tmp_path / "twice.tar", {"png": good, "jpg": good, "cls": b"1"})
    with pytest.raises(UserError, match=r"twice\.tar member 0: has two pictures, 0\.jpg and 0\.png: .*--image-column"):
        open_real(str(tmp_path / "twice.tar"), PLAIN)
    with wds.TarWriter(str(tmp_path / "half.tar"), encoder=False) as tar:
        tar.write({"__key__": "k", "png": good})
    with pytest.raises(
        UserError, match=r"half\.tar member k: no label \(\.cls, or in \.json .*--label-column.*\) beside it"
    ):
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


@pytest.mark.parametrize("again", [("a.cls", b"1"), ("a.png", encoded(pixels(1)[0]))])
def test_a_member_that_is_there_twice_is_refused(tmp_path, again):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in (("a.png", encoded(pixels(1)[0])), ("a.cls", b"0"), again):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=rf"train-0\.tar member {re.escape(again[0])}: is there twice: pack the shard"):
        open_real(str(tmp_path), PLAIN)


def test_a_sparse_member_is_refused(tmp_path):
    """Its bytes in the archive are not those of the picture."""
    content = encoded(pixels(1)[0])
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.png", content), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "a.png":
                member.pax_headers = {"GNU.sparse.size": str(2 * len(data)), "GNU.sparse.map": f"0,{len(data)}"}
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match=r"train-0\.tar member a\.png: a sparse file: pack it again without"):
        open_real(str(tmp_path), PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.cls", b"1" * (2**20 + 1), r"member a\.cls: expected a label, got 1,048,577 bytes"),
        ("a.json", b"[" * 100_000, r"member a\.json is not readable JSON"),
    ],
)
def test_a_label_that_is_no_label_is_refused(tmp_path, name, content, says):
    write(tmp_path / "train-0.tar", {"__key__": "a", "png": encoded(pixels(1)[0]), name.split(".")[1]: content})
    with pytest.raises(UserError, match=says):
        open_real(str(tmp_path), PLAIN)


def test_names_in_a_file_of_an_editor_that_marks_its_encoding(tmp_path):
    write(
        tmp_path / "train-0.tar",
        *({"__key__": str(n), "png": encoded(i), "cls": b"%d" % (n % 2)} for n, i in enumerate(pixels(4))),
    )
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert open_real(str(tmp_path), DataSettings(holdout=0.5)).classes == ("cat", "dog")


def test_pictures_with_a_dot_in_the_name_of_their_sample_are_named(tmp_path, capsys):
    """By the format they are another picture of a sample with a shorter name."""
    samples = [{"__key__": str(n), "png": encoded(i), "cls": b"%d" % (n % 2)} for n, i in enumerate(pixels(4))]
    write(tmp_path / "train-0.tar", *samples, {"__key__": "c.v2", "png": encoded(pixels(1)[0]), "cls": b"0"})
    assert len(open_real(str(tmp_path), PLAIN).train.images) == 4
    said = capsys.readouterr().err.replace("\n", " ")
    assert "left out 1 picture of the shards, such as c.v2.png: the name of a sample ends at the first dot" in said
    (tmp_path / "all").mkdir()
    write(tmp_path / "all" / "train-0.tar", {"__key__": "c.v2", "png": encoded(pixels(1)[0]), "cls": b"0"})
    with pytest.raises(UserError, match="all: expected pictures to train on, found none"):
        open_real(str(tmp_path / "all"), PLAIN)
