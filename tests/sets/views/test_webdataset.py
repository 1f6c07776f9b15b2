"""Shards: others read them, and those that were tampered with are refused."""

import io
import shutil
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds
from view_records import CLASSES, SHARD, assert_equal, files, make, saved

from ncfmkit.errors import UserError
from ncfmkit.sets.views import npy, webdataset
from ncfmkit.sets.views.webdataset import shard_name

SAMPLE_BYTES = 4096  # of a sample with four small members


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10-ipc10", "cifar10-ipc10-000003.tar"),
        ("../../etc/Pass wd{0..9}", "etc-pass-wd-0-9-000003.tar"),
        ("\u732b-IPC10", "\u732b-ipc10-000003.tar"),
        ("?!", "set-000003.tar"),
        ("CON", "con-000003.tar"),
        ("\u732b" * 99, "\u732b" * 26 + "-000003.tar"),
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


@pytest.mark.parametrize("odd", ["a\nb", " a", "a ", "", "a\x85b"])
def test_class_names_that_no_line_can_hold(tmp_path, odd):
    contents, records = make(classes=("cat", odd))
    webdataset.write(tmp_path, contents, iter(records))
    assert not (tmp_path / "classes.txt").exists()
    assert_equal(list(webdataset.read(tmp_path, contents)), records)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"classes\.txt: unexpected file"):
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
    with pytest.raises(UserError, match=r"00000000\.cls next, got .* b'[xLK]'"):
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
    with pytest.raises(UserError, match=r"zeros .*multiple of 10240"):
        list(webdataset.read(folder, contents))


def test_data_in_the_padding(package):
    folder, contents = package(webdataset)
    content = bytearray((folder / SHARD).read_bytes())
    content[512 + 1] = 1  # after the first label
    (folder / SHARD).write_bytes(content)
    with pytest.raises(UserError, match=r"00000000\.cls .*not padded"):
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
