"""Sets made to do harm, case by case: each is refused with its message, and costs little."""

import errno
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import build_set
from golden_sets import with_digests
from hostile_sets import OUTSIDE, SUBJECTS, load, manifest_of, prepared, sums, with_metadata
from mutations import Link, Tree
from watch import Watch, tree_of, write

from ncfmkit.errors import UserError
from ncfmkit.sets import loading, package, set_file
from ncfmkit.sets.package import MANIFEST, SUMS, Packing
from ncfmkit.sets.synthetic import SyntheticSet

FILE = set_file.FILE_NAME
Change = Callable[[Tree], Tree]


def edited(name: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(tree: Tree) -> Tree:
        content = tree[name]
        assert isinstance(content, bytes)
        return tree | {name: edit(content)}

    return change


def flipped(content: bytes, place: int = -1) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(change: Callable[[dict[str, Any]], None]) -> Change:
    """The one file with a changed header of safetensors."""

    def edit(content: bytes) -> bytes:
        header = header_of(content)
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]

    return edited(FILE, edit)


def with_text(edit: Callable[[str], str]) -> Change:
    """The one file with another text of its manifest."""
    return edited(FILE, lambda c: with_metadata(c, edit(header_of(c)["__metadata__"]["ncfmkit"])))


def with_key(key: str, value: Any) -> Change:
    """Another value in the manifest, wherever that is; digests fit."""

    def change(tree: Tree) -> Tree:
        told = manifest_of(tree)
        facts = {"package": told.pop("package")} if "package" in told else {}
        text = with_digests(told | {key: value})["ncfmkit"]
        new = dict(tree)
        if MANIFEST in tree:
            new[MANIFEST] = json.dumps(json.loads(text) | facts).encode()
        if FILE in tree:
            new[FILE] = with_metadata(tree[FILE], text)
        return new

    return change


def not_finite(content: bytes) -> bytes:
    """The last soft label is not a number; the digest is that of the new ones."""
    header, start = header_of(content), 8 + int.from_bytes(content[:8], "little")
    begin, end = header["soft_labels"]["data_offsets"]
    content = content[: start + end - 2] + b"\x00\x7e" + content[start + end :]
    told = json.loads(header["__metadata__"]["ncfmkit"])
    told["sha256"]["soft_labels"] = hashlib.sha256(content[start + begin : start + end]).hexdigest()
    return with_metadata(content, with_digests(told)["ncfmkit"])


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(content: bytes) -> bytes:
    return content[:8] + chunk(b"IHDR", struct.pack(">II5B", 60000, 60000, 8, 0, 0, 0, 0)) + content[33:]


def inflated_png(content: bytes) -> bytes:
    """4 x 4 pixels in a stream of 256 MiB."""
    return content[:33] + chunk(b"IDAT", zlib.compress(bytes(1 << 28), 9)) + content[-12:]


PICTURE = "cat/00000.png"
NAMED: dict[str, tuple[str, Change, str]] = {
    "file: a byte less": (
        "file",
        edited(FILE, lambda c: c[:-1]),
        r"not a readable safetensors file \(damaged or tr",
    ),
    "file: half": ("file", edited(FILE, lambda c: c[: len(c) // 2]), "is not a readable safetensors file"),
    "file: empty": ("file", edited(FILE, lambda c: b""), "is not a readable safetensors file"),
    "file: a bit": ("file", edited(FILE, flipped), "is damaged: .*sha256 of 'images'"),
    "file: more": ("file", edited(FILE, lambda c: c + b"x"), "is not a readable safetensors file"),
    "file: a pickle": (
        "file",
        edited(FILE, lambda c: b"\x80\x04cos\nsystem\n" + c),
        "is not a readable safetensors file",
    ),
    "file: huge header": (
        "file",
        edited(FILE, lambda c: b"\xff" * 8 + c[8:]),
        "a header of 18446744073709551615 bytes",
    ),
    "file: large header": (
        "file",
        edited(FILE, lambda c: (1 + (16 << 20)).to_bytes(8, "little") + c[8:].ljust(17 << 20)),
        "a header of 16777217 bytes, expected 1 to 16777216",
    ),
    "file: negative shape": ("file", with_header(lambda h: h["images"].update(shape=[-4, 3, 4, 4])), "not a readable"),
    "file: huge shape": ("file", with_header(lambda h: h["images"].update(shape=[2**62, 3, 4, 4])), "not a readable"),
    "file: negative offset": (
        "file",
        with_header(lambda h: h["images"].update(data_offsets=[-1, 9])),
        "not a readable",
    ),
    "file: other type": (
        "file",
        with_header(lambda h: h["images"].update(dtype="I8")),
        r"is I8 \[4, 3, 4, 4\], expected",
    ),
    "file: NaN": ("file", with_text(lambda t: t.replace("0.5", "NaN", 1)), "not readable: NaN is not JSON"),
    "file: infinity": ("file", with_text(lambda t: t.replace("0.5", "1e999", 1)), "not readable: 1e999 is not JSON"),
    "file: a key twice": ("file", with_text(lambda t: '{"kind": 1, ' + t[1:]), "a key is there twice"),
    "file: nested": ("file", with_text(lambda t: '{"x":' * 2000 + t + "}" * 2000), "nested deeper than 32"),
    "file: long number": ("file", with_text(lambda t: t.replace("255", "9" * 5000)), "manifest is not readable"),
    "file: negative ipc": ("file", with_key("ipc", {"stored": -2, "decoded": 8}), "'ipc' is .* expected the counts"),
    "file: huge ipc": ("file", with_key("ipc", {"stored": 2**50, "decoded": 2**52}), "'images' is U8 .* expected U8"),
    "file: value range": ("file", with_key("value_range", "0 to 1"), r"'value_range' is '0 to 1', expected \[0, 255\]"),
    "file: long kind": ("file", with_key("kind", "x" * 10**6), f"holds a {'x' * 100}, not a synthetic set"),
    "file: long format": (
        "file",
        with_key("format", [0] * 10**5),
        r"has format \[0, 0, .*\.\.\., this ncfmkit reads 1 and",
    ),
    "file: NaN logits": ("file-soft", edited(FILE, not_finite), "is damaged: its soft labels are not all finite"),
    "file: huge pixels": (
        "file-bits",
        with_key("pixels", {"bits": 3, "scale": "image", "dither": False, "shape": [1, 16384, 16384]}),
        r"its tensor 'pixels' is U8 \[4, 6\], expected U8 \[4, 100663296\]",
    ),
    "package: manifest above its limit": (
        "webdataset",
        edited(MANIFEST, lambda c: c.ljust(17 << 20)),
        "ncfmkit.json: 17825792 bytes, expected 16777216 at most",
    ),
    "package: no text": ("webdataset", edited(MANIFEST, lambda c: b"\xff" + c), "ncfmkit.json: .* codec can't decode"),
    "package: huge images": (
        "webdataset",
        with_key("bytes", {"images": 2**50, "labels": 32, "soft_labels": 64}),
        "would unpack to .* rejected as a decompression bomb",
    ),
    "png: huge sides": ("png", edited(PICTURE, huge_png), r"expected 1x4x4, got 1x60000x60000"),
    "png: inflated": ("png", edited(PICTURE, inflated_png), r"cat/00000\.png is not a picture of this package"),
    "png: animation": (
        "png",
        edited(PICTURE, lambda c: c[:33] + chunk(b"acTL", bytes(8)) + c[33:]),
        "a PNG with chunk b'acTL'",
    ),
    "png: text bomb": (
        "png",
        edited(PICTURE, lambda c: c[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25), 9)) + c[33:]),
        "a PNG with chunk b'zTXt'",
    ),
    "png: a link": ("png", lambda tree: tree | {PICTURE: Link(f"../../{OUTSIDE}")}, r"is not a file of its own"),
    "png: a folder linked": ("png", lambda tree: tree | {"more": Link("..")}, "more is not a file of its own"),
    "png: twice": (
        "png",
        lambda tree: tree | {"cat/00002.png": tree[PICTURE]},
        r"file '00002\.png' is not part of the package",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_named_cases(watch: Watch, case: str) -> None:
    name, change, says = NAMED[case]
    root, path, _ = prepared(watch.root, SUBJECTS[name])
    tree = tree_of(root)
    new = change(tree)
    assert new != tree
    if SUMS in tree:
        new = new | {SUMS: sums(new)}
    write(root, tree, new)
    got = watch.read(lambda: load(path), traced=True)
    assert isinstance(got, str)
    assert re.search(says, got), got
    assert "\n" not in got or " problems:\n  " in got


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.layout])
@pytest.mark.parametrize("edit", [flipped, lambda content: content[:-1], lambda content: b""])
def test_damage_to_any_file_of_a_package_is_found(watch: Watch, name: str, edit: Callable[[bytes], bytes]) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS[name])
    tree = tree_of(root)
    for file in tree.keys() - {SUMS}:
        new = edited(file, edit)(tree)
        write(root, tree, new)
        assert f"{file} is damaged: its sha256 is not that in {SUMS}" in watch.read(lambda: load(path))
        write(root, new, tree)


def test_sums_above_their_limit_are_not_read(watch: Watch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["png"])
    os.truncate(root / SUMS, (1 << 30) + 1)
    assert "SHA256SUMS is missing, or not such a file" in watch.read(lambda: load(path), traced=True)


@pytest.mark.parametrize(
    ("decode", "decoded", "says"),
    [
        ({"kind": "multi", "factor": 64, "budget": None}, 89440, r"cannot hold images of shape \[178880, 1, 64, 64\]"),
        ({"kind": "bound", "factor": 64, "budget": 1}, 1, "each image decodes to 366346240 values"),
    ],
)
def test_small_files_that_decode_to_much(watch: Watch, decode: dict[str, Any], decoded: int, says: str) -> None:
    how = {"decode": decode, "ipc": {"stored": 1, "decoded": decoded}, "settings": {}}
    small = build_set(classes=("cat", "dog"), ipc=1, size=64, channels=1, bits=2)
    root = watch.root / "set"
    package.write(small, root, Packing(layout="webdataset", images="decoded"))
    load(root)
    tree = tree_of(root)
    new = tree
    for key, value in how.items():
        new = with_key(key, value)(new)
    write(root, tree, new | {SUMS: sums(new)})
    assert re.search(says, watch.read(lambda: load(root), traced=True))


def test_what_would_not_be_read_is_not_written(watch: Watch) -> None:
    large = build_set("multi", 64, classes=("cat", "dog"), ipc=1, size=64, channels=1)
    with pytest.raises(UserError, match=r"366346240 values.*67108864 at most"):
        package.write(large, watch.root / "set", Packing(layout="webdataset", images="decoded"))
    assert list(watch.root.iterdir()) == []


def test_links_where_ncfmkit_runs_do_not_matter(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["png"])
    (watch.root / "cat").symlink_to(root / "cat")
    monkeypatch.chdir(watch.root)
    assert isinstance(watch.read(lambda: load(path)), SyntheticSet)


def test_hidden_folders_of_others_do_not_matter(watch: Watch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["png"])
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main")
    assert isinstance(watch.read(lambda: load(path)), SyntheticSet)


def test_a_disk_that_cannot_be_read(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, _ = prepared(watch.root, SUBJECTS["png"])

    def broken(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(loading, "sha256_of", broken)
    assert watch.read(lambda: load(path)).endswith("set cannot be read: Input/output error")
