"""Sets made to do harm, case by case: each is refused with its message, and costs little."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden_sets import with_digests
from hostile_sets import OUTSIDE, SUBJECTS, load, prepared, sums, told_by, with_metadata
from mutations import Link, Tree
from watch import Watch, tree_of, write

from ncfmkit.sets import package, set_file
from ncfmkit.sets.package import CARD, FACTS, SUMS
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
    """Another value in the manifest; its digest fits."""
    return edited(FILE, lambda c: with_metadata(c, with_digests(told_by(c) | {key: value})["ncfmkit"]))


def not_finite(content: bytes) -> bytes:
    """The last soft label is not a number; the digest is that of the new ones."""
    header, start = header_of(content), 8 + int.from_bytes(content[:8], "little")
    begin, end = header["soft_labels"]["data_offsets"]
    content = content[: start + end - 2] + b"\x00\x7e" + content[start + end :]
    told = json.loads(header["__metadata__"]["ncfmkit"])
    told["sha256"]["soft_labels"] = hashlib.sha256(content[start + begin : start + end]).hexdigest()
    return with_metadata(content, with_digests(told)["ncfmkit"])


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
    "file: a long type": (
        "file",
        with_header(lambda h: h["images"].update(dtype="x" * 10**5)),
        r"is not a readable safetensors file .*unknown variant `x{200,300}$",
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
    "file: negative ipc": (
        "file",
        with_key("ipc", {"stored": -2, "decoded": 8}),
        "ipc.stored: input should be",
    ),
    "file: huge ipc": ("file", with_key("ipc", {"stored": 2**50, "decoded": 2**52}), "'images' is U8 .* expected U8"),
    "file: value range": ("file", with_key("value_range", "0 to 1"), "value_range: input should be a valid array"),
    "file: long kind": ("file", with_key("kind", "x" * 10**6), f"holds a {'x' * 100}, not a synthetic set"),
    "file: long format": (
        "file",
        with_key("format", [0] * 10**5),
        r"has format \[0, 0, .*\.\.\., this ncfmkit reads 1 to 4",
    ),
    "file: NaN logits": ("file-soft", edited(FILE, not_finite), "is damaged: its soft labels are not all finite"),
    "file: huge pixels": (
        "file-bits",
        with_key("pixels", {"bits": 3, "scale": "image", "dither": False, "shape": [1, 16384, 16384]}),
        r"its tensor 'pixels' is U8 \[4, 6\], expected U8 \[4, 100663296\]",
    ),
    "file: as many errors as bytes": (
        "file",
        with_key("classes", [0] * 10**5),
        r"is damaged, 2 problems:\n.*classes\.0: input should be a valid string",
    ),
    "file: as many digests as bytes": (
        "file",
        with_key("sha256", {f"{i:x}": 0 for i in range(10**5)}),
        "sha256: value error, 100,000 entries, expected at most 16",
    ),
    "file: a newer training record": ("file", with_key("training", {"version": 0}), "training.version: input should"),
    "package: facts that are large": (
        "package",
        edited(FACTS, lambda c: c + b" " * (1 << 20)),
        r"ncfmkit\.json is damaged: 1,048,\d+ bytes, expected 1,048,576 at most",
    ),
    "package: facts that are nested": (
        "package",
        edited(FACTS, lambda c: b'{"layout":' + b"[" * 10**5),
        r"ncfmkit\.json is damaged: all of it: invalid JSON: recursion",
    ),
    "package: no facts": ("package", lambda t: {k: c for k, c in t.items() if k != FACTS}, "ncfmkit.json cannot be r"),
    "package: a long layout": (
        "package",
        edited(FACTS, lambda c: json.dumps({"layout": "x" * 10**5, "encoding": "png"}).encode()),
        "layout: string should have at most 100 characters",
    ),
    "package: a link": ("package", lambda tree: tree | {FACTS: Link(f"../{OUTSIDE}")}, "is not a file of its own"),
    "package: a device": (
        "package",
        lambda tree: tree | {CARD: Link("/dev/zero")},
        "README.md is not a file of its",
    ),
    "package: a linked folder": ("package", lambda tree: tree | {"more": Link("..")}, "more is not a file of its own"),
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
    assert len(got) < 1000


def test_the_one_file_of_a_package_is_no_link_out_of_it(watch: Watch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["package"])
    (root / FILE).rename(watch.root / "elsewhere")
    (root / FILE).symlink_to(watch.root / "elsewhere")
    assert f"{FILE} is not a file of its own" in watch.read(lambda: load(path), traced=True)


def test_sums_above_their_limit_are_not_read(watch: Watch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["package"])
    os.truncate(root / SUMS, (1 << 30) + 1)
    assert "SHA256SUMS is missing, or not such a file" in watch.read(lambda: load(path), traced=True)


def test_links_where_ncfmkit_runs_do_not_matter(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["package"])
    (watch.root / FILE).symlink_to(root / FILE)
    monkeypatch.chdir(watch.root)
    assert isinstance(watch.read(lambda: load(path)), SyntheticSet)


def test_hidden_folders_of_others_do_not_matter(watch: Watch) -> None:
    root, path, _ = prepared(watch.root, SUBJECTS["package"])
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main")
    assert isinstance(watch.read(lambda: load(path)), SyntheticSet)


def test_a_disk_that_cannot_be_read(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, _ = prepared(watch.root, SUBJECTS["package"])

    def broken(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(package, "sha256_of", broken)
    assert watch.read(lambda: load(path)).endswith("set cannot be read: Input/output error")
