"""The layouts `webdataset` and `png`: what is written comes back, others read it, and nothing else is taken."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from other_libraries import import_torchvision

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real
from ncfmkit.sets.views import image_folder, npy, webdataset
from ncfmkit.sets.views.image_folder import folder_names
from ncfmkit.sets.views.records import Contents, Record
from ncfmkit.sets.views.webdataset import shard_name

CLASSES = ("cat", "dog", "frog")
PER_CLASS = 2
LAYOUTS = [webdataset, image_folder]
SHARD = "tiny-ipc2-000000.tar"
SAMPLE_BYTES = 4096  # of a sample with four small members


def make(channels=3, soft=True, encoding="png", images="stored", classes=CLASSES, shard_bytes=1 << 20):
    count = len(classes) * PER_CLASS
    rows = np.array([1, 3, 2, 1, 0, 2])[:count] if images == "stored" else np.ones(count, np.int64)
    contents = Contents(
        name="Tiny/IPC2",
        classes=classes,
        shape=(channels, 5, 6),
        per_class=PER_CLASS,
        soft_rows=rows if soft else None,
        encoding=encoding,
        images=images,
        shard_bytes=shard_bytes,
    )
    rng = np.random.default_rng(0)
    records = [
        Record(
            image=rng.integers(0, 256, contents.shape, np.uint8),
            label=i // PER_CLASS,
            soft=rng.normal(0, 4, (rows[i], len(classes))).astype(np.float16) if soft else None,
        )
        for i in range(count)
    ]
    return contents, records


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal(read, written):
    assert len(read) == len(written) > 0
    for a, b in zip(read, written, strict=True):
        assert (a.label, a.image.dtype, a.image.shape) == (b.label, np.uint8, b.image.shape)
        assert np.array_equal(a.image, b.image)
        assert (a.soft is None) == (b.soft is None)
        if b.soft is not None:
            assert (a.soft.dtype, a.soft.shape) == (np.float16, b.soft.shape)
            assert np.array_equal(a.soft, b.soft)


@pytest.fixture
def package(tmp_path):
    """A layout's files with soft labels, and what they hold."""

    def build(layout, **settings):
        contents, records = make(**settings)
        folder = tmp_path / "package"
        folder.mkdir()
        layout.write(folder, contents, iter(records))
        return folder, contents

    return build


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("images", ["stored", "decoded"])
@pytest.mark.parametrize("soft", [False, True])
def test_round_trip(tmp_path, layout, encoding, channels, images, soft):
    contents, records = make(channels, soft, encoding, images)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        layout.write(tmp_path / name, contents, iter(records))
    before = files(tmp_path / "a")
    assert_equal(list(layout.read(tmp_path / "a", contents)), records)
    assert files(tmp_path / "a") == before == files(tmp_path / "b")  # reading writes nothing; equal sets, equal bytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_and_reading_stream(tmp_path, layout):
    contents, records = make(shard_bytes=1)
    at_work = []

    def given():
        for record in records:
            at_work.append(sum(f.stat().st_size for f in tmp_path.rglob("*.*") if f.is_file()))
            yield record

    layout.write(tmp_path, contents, given())
    assert at_work[0] <= at_work[2] < at_work[4]  # records are on disk before the next are asked for
    reader = layout.read(tmp_path, contents)
    assert next(reader).label == 0
    reader.close()  # without warnings of open files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_that_cannot_be_used(tmp_path, layout):
    contents, records = make()
    with pytest.raises(UserError, match=r"cannot write .*gone: No such file"):
        layout.write(tmp_path / "gone", contents, iter(records))
    with pytest.raises(UserError, match=r"gone"):
        list(layout.read(tmp_path / "gone", contents))


def test_no_torch_at_import():
    code = (
        "import sys, ncfmkit.sets.views.image_folder, ncfmkit.sets.views.webdataset;"
        "sys.exit(bool({'torch', 'webdataset'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10-ipc10", "cifar10-ipc10-000003.tar"),
        ("../../etc/Pass wd{0..9}", "etc-pass-wd-0-9-000003.tar"),
        ("\u732b", "set-000003.tar"),
        ("my test set", "train-my-test-set-000003.tar"),
        ("val-train", "train-val-train-000003.tar"),
        ("train-val", "train-val-000003.tar"),
        ("x" * 300, "x" * 80 + "-000003.tar"),
    ],
)
def test_shard_names(name, file):
    assert shard_name(name, 3) == file


@pytest.mark.parametrize(("samples", "shards"), [(1, 6), (2, 3), (4, 2), (6, 1)])
def test_shards_are_cut_by_size(tmp_path, samples, shards):
    contents, records = make()
    limit = -(-(samples * SAMPLE_BYTES + 1024) // 10240) * 10240
    contents = replace(contents, shard_bytes=limit if samples > 1 else 1)
    webdataset.write(tmp_path, contents, iter(records))
    written = sorted(tmp_path.glob("*.tar"))
    assert [p.name for p in written] == [f"tiny-ipc2-{i:06d}.tar" for i in range(shards)]
    assert samples == 1 or max(p.stat().st_size for p in written) <= limit
    assert_equal(list(webdataset.read(tmp_path, contents)), records)


def test_members_and_headers(package):
    folder, _ = package(webdataset)
    with tarfile.open(folder / SHARD, "r:") as tar:
        members = tar.getmembers()
        label, text = (tar.extractfile(f"00000003.{kind}").read() for kind in ("cls", "json"))
    assert [m.name for m in members[:5]] == [*(f"00000000.{k}" for k in ("cls", "json", "npy", "png")), "00000001.cls"]
    assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0o644, 0, 0, "", "")}
    assert (label, text) == (b"1", b'{"class": "dog", "label": 1, "index": 3}')
    assert (folder / "classes.txt").read_bytes() == b"cat\ndog\nfrog\n"


# webdataset leaves files for the garbage collector to close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize("images", ["stored", "decoded"])
def test_plain_webdataset_reads_it(tmp_path, encoding, images):
    contents, records = make(encoding=encoding, images=images, shard_bytes=20480)
    webdataset.write(tmp_path, contents, iter(records))
    shards = [str(p) for p in sorted(tmp_path.glob("*.tar"))]
    assert len(shards) > 1
    pil = list(wds.WebDataset(shards, shardshuffle=False).decode("pil"))
    rgb = list(wds.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(pil) == len(rgb) == len(records)
    for i, (sample, array, record) in enumerate(zip(pil, rgb, records, strict=True)):
        assert (sample["__key__"], sample["cls"]) == (f"{i:08d}", record.label)
        assert sample["json"] == {"class": CLASSES[record.label], "label": record.label, "index": i}
        assert np.array_equal(np.asarray(sample[encoding]).transpose(2, 0, 1), record.image)
        assert np.array_equal(np.asarray(array[encoding]).transpose(2, 0, 1), record.image)
        assert sample["npy"].dtype == np.float16
        assert np.array_equal(sample["npy"], record.soft[0] if images == "decoded" else record.soft)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_tar_unpacks_it(package, tmp_path):
    folder, _ = package(webdataset)
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", folder / SHARD, "-C", tmp_path / "out"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert len(files(tmp_path / "out")) == 24
    assert np.load(tmp_path / "out/00000001.npy").shape == (3, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tiny", "a test of train"])
def test_ncfmkit_reads_it_as_real_data(tmp_path, monkeypatch, layout, name):
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))
    contents, _ = make()
    contents = replace(contents, name=name, shape=(3, 6, 6))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, 3, 6, 6), np.uint8)
    soft = [np.zeros((rows, 3), np.float16) for rows in contents.soft_rows]
    records = [Record(image=images[i], label=i // PER_CLASS, soft=soft[i]) for i in range(6)]
    (tmp_path / "set").mkdir()
    layout.write(tmp_path / "set", contents, iter(records))
    data = open_real(str(tmp_path / "set"), DataSettings())
    assert (data.classes, data.train.counts().tolist(), data.test) == (CLASSES, [2, 2, 2], None)
    assert np.array_equal(data.train.images, images)


@pytest.mark.parametrize("odd", ["a\nb", " a", "a ", "", "a\x85b"])
def test_class_names_that_no_line_can_hold(tmp_path, odd):
    contents, records = make(classes=("cat", odd))
    webdataset.write(tmp_path, contents, iter(records))
    assert not (tmp_path / "classes.txt").exists()
    assert_equal(list(webdataset.read(tmp_path, contents)), records)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"classes\.txt: no such file is due"):
        list(webdataset.read(tmp_path, contents))


def members_of(path):
    with tarfile.open(path, "r:") as tar:
        return [(m, tar.extractfile(m).read()) for m in tar]


def rewrite(path, members, form=tarfile.USTAR_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=form) as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))


def test_the_rewriter_of_these_tests_is_faithful(package):
    folder, _ = package(webdataset)
    before = files(folder)
    rewrite(folder / SHARD, members_of(folder / SHARD))
    assert files(folder) == before


def link(info, kind):
    info.type, info.linkname = kind, "/etc/passwd"


def renamed(info, name, kind=tarfile.REGTYPE):
    info.name, info.type = name, kind


def sparse(info):
    info.type = tarfile.GNUTYPE_SPARSE


TAMPERED = {
    "missing member": (lambda m: m.pop(1), r"expected the file 00000000\.json next, got '00000000\.npy'"),
    "missing picture": (lambda m: m.pop(3), r"expected the file 00000000\.png next, got '00000001\.cls'"),
    "missing last": (lambda m: m.pop(), r"expected a plain, uncompressed tar file with 00000005\.png next"),
    "missing sample": (lambda m: m.__delitem__(slice(20, 24)), r"expected 6 samples in its shards, got 5"),
    "missing first sample": (lambda m: m.__delitem__(slice(0, 4)), r"00000000\.cls next, got '00000001\.cls'"),
    "no samples": (lambda m: m.clear(), r"damaged: expected samples"),
    "duplicate": (lambda m: m.insert(1, m[0]), r"00000000\.json next, got '00000000\.cls'"),
    "additional": (lambda m: m.insert(4, (tarfile.TarInfo("00000000.txt"), b"x")), r"got '00000000\.txt'"),
    "additional last": (lambda m: m.append((tarfile.TarInfo("00000006.cls"), b"2")), r"more than the 6 samples"),
    "misordered": (lambda m: m.insert(0, m.pop(1)), r"got '00000000\.json'"),
    "symbolic link": (lambda m: link(m[0][0], tarfile.SYMTYPE), r"00000000\.cls next, got .* of type b'2'"),
    "hard link": (lambda m: link(m[3][0], tarfile.LNKTYPE), r"00000000\.png next, got .* of type b'1'"),
    "link name": (lambda m: link(m[3][0], tarfile.REGTYPE), r"00000000\.png next"),
    "device": (lambda m: renamed(m[0][0], "00000000.cls", tarfile.CHRTYPE), r"of type b'3'"),
    "fifo": (lambda m: renamed(m[0][0], "00000000.cls", tarfile.FIFOTYPE), r"of type b'6'"),
    "folder": (lambda m: renamed(m[0][0], "00000000.cls", tarfile.DIRTYPE), r"of type b'5'"),
    "sparse": (lambda m: sparse(m[0][0]), r"of type b'S'"),
    "parent": (lambda m: renamed(m[0][0], "../00000000.cls"), r"got '\.\./00000000\.cls'"),
    "absolute": (lambda m: renamed(m[0][0], "/00000000.cls"), r"got '/00000000\.cls'"),
    "other label": (lambda m: m.__setitem__(0, (m[0][0], b"1")), r"00000000\.cls: expected '0', got '1'"),
    "no label": (lambda m: m.__setitem__(0, (m[0][0], b"")), r"00000000\.cls: expected at most 1 bytes, got 0"),
    "long label": (lambda m: m.__setitem__(0, (m[0][0], b"00")), r"00000000\.cls: expected at most 1 bytes, got 2"),
    "other json": (lambda m: m.__setitem__(1, (m[1][0], m[1][1].replace(b"cat", b"dog"))), r"json: expected .*cat"),
    "pickle": (lambda m: m.__setitem__(2, (m[2][0], pickled((1, 3)))), r"00000000\.npy: expected a \.npy header"),
    "not npy": (lambda m: m.__setitem__(2, (m[2][0], b"x" * 134)), r"got no \.npy header"),
    "float32": (lambda m: m.__setitem__(2, (m[2][0], saved(np.zeros((1, 1), np.float32)))), r"got .*<f4"),
    "other shape": (lambda m: m.__setitem__(2, (m[2][0], saved(np.zeros((3, 1), np.float16)))), r"got .*\(3, 1\)"),
    "few values": (lambda m: m.__setitem__(2, (m[2][0], m[2][1][:-2])), r"00000000\.npy is cut off"),
    "many values": (lambda m: m.__setitem__(2, (m[2][0], m[2][1] + b"xx")), r"expected at most 134 bytes, got 136"),
    "nan": (lambda m: m.__setitem__(2, (m[2][0], logits_with(np.nan))), r"not all finite"),
    "infinity": (lambda m: m.__setitem__(2, (m[2][0], logits_with(np.inf))), r"not all finite"),
    "bomb": (lambda m: m.__setitem__(3, (m[3][0], bytes(1 << 20))), r"expected at most 65716 bytes, got 1048576"),
    "other picture": (lambda m: m.__setitem__(3, (m[3][0], b"GIF89a")), r"png is not a picture of this package"),
}  # fmt: skip


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def logits_with(value):
    return saved(np.array([[1, value, 2]], np.float16))


def pickled(shape):
    """A .npy file that runs code where pickles are allowed, as long as one of float16."""
    return npy.header(shape).replace(b"<f2", b"|O ")[: len(npy.header(shape))] + bytes(6)


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_shards(package, case):
    folder, contents = package(webdataset)
    tamper, message = TAMPERED[case]
    members = members_of(folder / SHARD)
    tamper(members)
    rewrite(folder / SHARD, members)
    with pytest.raises(UserError, match=rf"{SHARD}.*{message}|^\S*package: {message}"):
        list(webdataset.read(folder, contents))


@pytest.mark.parametrize(
    ("form", "change"),
    [
        (tarfile.PAX_FORMAT, {"pax_headers": {"comment": "x"}}),
        (tarfile.PAX_FORMAT, {"pax_headers": {"path": "elsewhere"}}),
        (tarfile.GNU_FORMAT, {"name": "x" * 150}),
        (tarfile.GNU_FORMAT, {"linkname": "x" * 150}),
    ],
)
def test_extended_headers_are_refused(package, form, change):
    folder, contents = package(webdataset)
    members = members_of(folder / SHARD)
    for name, value in change.items():
        setattr(members[0][0], name, value)
    rewrite(folder / SHARD, members, form)
    with pytest.raises(UserError, match=r"expected the file 00000000\.cls next, got .* of type b'[xLK]'"):
        list(webdataset.read(folder, contents))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_refused(package, mode):
    folder, contents = package(webdataset)
    rewrite(folder / SHARD, members_of(folder / SHARD), mode=mode)
    with pytest.raises(UserError, match="expected a plain, uncompressed tar file"):
        list(webdataset.read(folder, contents))


@pytest.mark.parametrize("tail", [b"x", bytes(512), b"\0" * 10239 + b"x", bytes(10240)])
def test_a_shard_ends_where_it_ends(package, tail):
    folder, contents = package(webdataset)
    with (folder / SHARD).open("ab") as file:
        file.write(tail)
    with pytest.raises(UserError, match="then only zeros up to a multiple of 10240 bytes"):
        list(webdataset.read(folder, contents))


def test_data_in_the_padding(package):
    folder, contents = package(webdataset)
    content = bytearray((folder / SHARD).read_bytes())
    content[512 + 1] = 1  # after the first label
    (folder / SHARD).write_bytes(content)
    with pytest.raises(UserError, match=r"00000000\.cls is cut off or not padded with zeros"):
        list(webdataset.read(folder, contents))


def test_negative_sizes(package):
    folder, contents = package(webdataset)
    content = bytearray((folder / SHARD).read_bytes())
    content[124:136] = b"\xff" * 12  # base 256: -1
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (folder / SHARD).write_bytes(content)
    with pytest.raises(UserError, match=r"00000000\.cls: expected at most 1 bytes, got -1"):
        list(webdataset.read(folder, contents))


def test_cut_off_anywhere(package):
    folder, contents = package(webdataset)
    whole = (folder / SHARD).read_bytes()
    for size in (*range(0, len(whole), 512), 1, 511, 513, len(whole) - 1):
        (folder / SHARD).write_bytes(whole[:size])
        with pytest.raises(UserError, match=SHARD):
            list(webdataset.read(folder, contents))


def test_shards_that_do_not_belong_together(package, tmp_path):
    folder, contents = package(webdataset, shard_bytes=1)
    names = sorted(p.name for p in folder.glob("*.tar"))

    def refused(message):
        with pytest.raises(UserError, match=message):
            list(webdataset.read(folder, contents))

    (folder / "more.TAR").write_bytes(b"")
    refused(r"expected shard tiny-ipc2-000006\.tar, got more\.TAR")
    (folder / "more.TAR").rename(folder / "tiny-ipc2-000006.tar")
    refused(r"000006\.tar is damaged")
    (folder / "tiny-ipc2-000006.tar").unlink()
    (folder / names[5]).rename(tmp_path / "last.tar")
    refused("expected 6 samples in its shards, got 5")
    (folder / names[5]).symlink_to(tmp_path / "last.tar")
    refused("expected a plain file, got a link")
    (folder / names[5]).unlink()
    (folder / names[5]).mkdir()
    refused("got a link or a folder")
    (folder / names[5]).rmdir()
    (tmp_path / "last.tar").rename(folder / names[5])
    (folder / names[2]).rename(folder / "tiny-ipc2-000009.tar")
    refused(r"expected shard tiny-ipc2-000002\.tar, got tiny-ipc2-000009\.tar")
    (folder / names[3]).rename(folder / names[2])
    (folder / "tiny-ipc2-000009.tar").rename(folder / names[3])
    refused(r"000002\.tar: expected the file 00000002\.cls next, got '00000003\.cls'")


def test_other_class_names_than_the_package(package):
    folder, contents = package(webdataset)
    (folder / "classes.txt").write_text("cat\ndog\nfrog\nmore\n")
    with pytest.raises(UserError, match=r"classes\.txt is damaged"):
        list(webdataset.read(folder, contents))
    (folder / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt: expected a file of class names"):
        list(webdataset.read(folder, contents))


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        tuple("0123456789"),
        ("English springer", "tench, Tinca (fish)"),
        ("A", "b"),
        ("n01440764", "n02"),
    ],
)
def test_folders_have_the_names_of_their_classes(classes):
    assert folder_names(classes) == classes


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("T-shirt/top", "Trouser"), ("00_t-shirt-top", "01_trouser")),
        (("dog", "cat"), ("00_dog", "01_cat")),
        (("..", "a"), ("00", "01_a")),
        (("", "a"), ("00", "01_a")),
        (("CON", "a"), ("00_con", "01_a")),
        (("aux.png", "b"), ("00_aux-png", "01_b")),
        (("Cat", "cat"), ("00_cat", "01_cat")),
        (("cat", "cat"), ("00_cat", "01_cat")),
        (("a.", "b"), ("00_a", "01_b")),
        (("a ", "b"), ("00_a", "01_b")),
        ((" a", "b"), ("00_a", "01_b")),
        ((".git", "b"), ("00_git", "01_b")),
        (("-rf", "b"), ("00_rf", "01_b")),
        (("a\n", "b"), ("00_a", "01_b")),
        (("a\x00b", "c"), ("00_a-b", "01_c")),
        (("C:", "D"), ("00_c", "01_d")),
        (("a", "\u732b"), ("00_a", "01")),
        (("README.md", "b"), ("00_readme-md", "01_b")),
        (("a", "train"), ("00_a", "01_train")),
        (("a", "b" * 200), ("00_a", "01_" + "b" * 100)),
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
@pytest.mark.parametrize("classes", [CLASSES, ("shirt", "T-shirt/top")])
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
    "additional picture": (spoil("dog/00002.png", b""), r"dog: file '00002\.png' is not of the package"),
    "additional file": (spoil("dog/Thumbs.db", b""), r"dog: file 'Thumbs\.db' is not of the package"),
    "folder in a folder": (lambda f: (f / "dog/more").mkdir(), r"dog: file 'more' is not of the package"),
    "missing folder": (lambda f: shutil.rmtree(f / "dog"), r"folder 'dog' is missing"),
    "additional folder": (lambda f: (f / "dogs").mkdir(), r"folder 'dogs' is not of the package"),
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
    "many values": (spoil("soft_labels.npy", soft_of([[0] * 3] * 9) + b"x"), r"goes on after its last value"),
    "nan": (spoil("soft_labels.npy", soft_of([[0, 0, np.nan]] * 9)), r"not all finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folders(package, case):
    folder, contents = package(image_folder)
    change, message = SPOILT[case]
    change(folder)
    with pytest.raises(UserError, match=message):
        list(image_folder.read(folder, contents))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_names_are_passed_over(package, layout):
    folder, contents = package(layout)
    homes = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    for home in homes:
        (home / ".DS_Store").write_bytes(b"Bud1")
        (home / f"._{SHARD}").write_bytes(b"of a Mac")
        (home / ".more").mkdir()
        (home / ".link").symlink_to("nowhere")
    assert_equal(list(layout.read(folder, contents)), make()[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_labels_that_are_not_due(package, layout):
    folder, contents = package(layout)
    with pytest.raises(UserError, match=r"npy: the package has no soft labels|expected the file 00000000\.png next"):
        list(layout.read(folder, replace(contents, soft_rows=None)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_another_shape(package, layout):
    folder, contents = package(layout)
    with pytest.raises(UserError, match=r"0\.png is not a picture of this package \(expected 3x5x5, got 3x5x6\)"):
        list(layout.read(folder, replace(contents, shape=(3, 5, 5))))
