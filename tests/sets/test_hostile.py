"""Broken files and files made to do harm: each is refused with one message, or is what it says, and costs little.

Every format is mutated at random: bytes flipped, and files taken apart and put together again with right checksums.
Reading such a file never ends in another exception, a warning or a written file, takes no more memory than
`MOST_MEMORY`, and it is accepted only where it holds the set that it was made from, under the manifest that it has now;
or, where a forger gave other tensors their right digests, where these are what a set may hold.
"""

import errno
import hashlib
import io
import json
import os
import re
import resource
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import build_set
from golden_sets import with_digests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from mutations import (
    Link,
    Tree,
    mutated,
    mutated_header,
    mutated_json,
    mutated_parquet,
    mutated_png,
    mutated_tar,
    mutated_tree,
    mutated_webp,
    mutated_zip,
)

from ncfmkit.errors import UserError
from ncfmkit.sets import loading, package, set_file
from ncfmkit.sets.manifest import manifest_digest, tensors_of
from ncfmkit.sets.package import MANIFEST, SUMS, Packing
from ncfmkit.sets.released import read as read_module
from ncfmkit.sets.released.read import Released
from ncfmkit.sets.synthetic import SyntheticSet

MOST_MEMORY = 32 << 20  # bytes that reading a mutated set of a few kilobytes may allocate
MOST_GROWTH = 100 << 20  # bytes that the process may grow by, all readings of a test together
MOST_SECONDS = 5  # for one file; a loaded machine takes a multiple of the usual milliseconds
TRACED = 20  # one case in so many is read under tracemalloc, which is slow
FEW, MANY = 200, 10_000  # cases of a hunt, without and with -m slow
HUNT = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
LICENSED = {"source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": "mit"}}
OUTSIDE = "outside.txt"  # beside the set, in no package


@dataclass(frozen=True)
class Subject:
    """A valid set of 2 classes with 2 images of 4 x 4 pixels each."""

    layout: str | None  # none: the one file
    set: dict[str, Any]
    packing: dict[str, Any]

    def build(self) -> SyntheticSet:
        few = {"recipe": None, "seed": 0, "distill": {"steps": 1}}  # so that other keys are changed as often
        return build_set(classes=("cat", "dog"), size=4, settings=few, **self.set)


SUBJECTS = {
    "file": Subject(None, {}, {}),
    "file-soft": Subject(None, {"soft": True, "kind": "bound", "budget": 7}, {}),
    "file-bits": Subject(None, {"soft": True, "bits": 3, "channels": 1}, {}),
    "safetensors": Subject("safetensors", {"soft": True}, {}),
    "webdataset": Subject("webdataset", {"soft": True}, {}),
    "webdataset-decoded": Subject("webdataset", {"bits": 5}, {"images": "decoded", "encoding": "webp"}),
    "parquet": Subject("parquet", {"soft": True, **LICENSED}, {}),
    "png": Subject("png", {"soft": True, "channels": 1}, {}),
}


def tree_of(root: Path) -> Tree:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def write(root: Path, old: Tree, new: Tree) -> None:
    """Makes what lies in `root` be `new`, where it is `old`."""
    changed = [name for name in old.keys() | new.keys() if name not in old or name not in new or old[name] != new[name]]
    for path in (root / name for name in changed if name in old):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        with suppress(OSError):  # not the last one in it
            path.parent.rmdir()
    for name in (name for name in changed if name in new):
        path, content = root / name, new[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)


def listing(root: Path) -> list[Any]:
    """Everything below a folder, with sizes and times of change."""
    found = []
    for here, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            facts = os.lstat(os.path.join(here, name))
            found.append((here, name, facts.st_mode, facts.st_size, facts.st_mtime_ns))
    return sorted(found)


INSIDES: dict[str, Callable[[bytes], SearchStrategy[bytes]]] = {
    "safetensors": mutated_header,
    "tar": mutated_tar,
    "png": mutated_png,
    "webp": mutated_webp,
    "parquet": mutated_parquet,
}


@st.composite
def mutated_set(draw: DrawFn, tree: Tree) -> Tree:
    """A package or the one file with one thing changed; in half of the cases the checksums fit, as of a forger."""
    how = draw(st.sampled_from(("bytes", "inside", "inside", "manifest", "manifest", "tree", "tensors")))
    if how == "tree" and MANIFEST in tree:
        new = draw(mutated_tree(tree, f"../{OUTSIDE}"))
    elif how == "manifest":
        new = draw(with_other_manifest(tree))
    elif how == "tensors" and set_file.FILE_NAME in tree:
        new = draw(with_other_tensors(tree))
    else:
        name = draw(st.sampled_from([name for name in sorted(tree) for _ in range(_weight(name))]))
        content = tree[name]
        assert isinstance(content, bytes)
        inside = INSIDES.get(name.rpartition(".")[2], mutated) if how == "inside" else mutated
        new = tree | {name: draw(inside(content))}
    if SUMS in new and (how in ("manifest", "tensors") or draw(st.booleans())):
        new[SUMS] = sums(new)
    return new


def _weight(name: str) -> int:
    return 4 if name.rpartition(".")[2] in (*INSIDES, "npy") and name != "preview.png" else 1


def sums(tree: Tree) -> bytes:
    """SHA256SUMS that fits."""
    lines = [
        f"{hashlib.sha256(content if isinstance(content, bytes) else b'').hexdigest()}  {name}\n"
        for name, content in sorted(tree.items())
        if content is not None and name != SUMS and not name.startswith(".")
    ]
    return "".join(lines).encode()


@st.composite
def with_other_manifest(draw: DrawFn, tree: Tree) -> Tree:
    """Changed values in the manifest, of a package mostly in both places; its digest is that of what it says now."""
    tree = dict(tree)
    told = draw(mutated_json(manifest_of(tree)))
    if not isinstance(told, dict):
        return tree
    facts = told.pop("package", None)
    text = with_digests(told)["ncfmkit"]
    if MANIFEST in tree:
        told = json.loads(text) | ({} if facts is None else {"package": facts})
        tree[MANIFEST] = json.dumps(told).encode()
    if set_file.FILE_NAME in tree and draw(st.integers(0, 3)):
        tree[set_file.FILE_NAME] = with_metadata(tree[set_file.FILE_NAME], text)
    return tree


@st.composite
def with_other_tensors(draw: DrawFn, tree: Tree) -> Tree:
    """Other bytes of the tensors, the manifest has their digests."""
    content, told = tree[set_file.FILE_NAME], manifest_of(tree)
    assert isinstance(content, bytes)
    start = 8 + int.from_bytes(content[:8], "little")
    data = draw(mutated(content[start:], most=2))[: len(content) - start].ljust(len(content) - start, b"\0")
    facts = {"package": told.pop("package")} if "package" in told else {}
    header = json.loads(content[8:start])
    for name in told["sha256"]:
        told["sha256"][name] = hashlib.sha256(data[slice(*header[name]["data_offsets"])]).hexdigest()
    text = with_digests(told)["ncfmkit"]
    new = tree | {set_file.FILE_NAME: with_metadata(content[:start] + data, text)}
    return new | ({MANIFEST: json.dumps(json.loads(text) | facts).encode()} if MANIFEST in tree else {})


def manifest_of(tree: Tree) -> dict[str, Any]:
    """What a package or a file says about itself."""
    if isinstance(told := tree.get(MANIFEST), bytes):
        return json.loads(told)
    content = tree[set_file.FILE_NAME]  # a folder with this file alone is as good as the file
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["ncfmkit"])


def with_metadata(content: bytes, text: str) -> bytes:
    """The safetensors file with another manifest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"ncfmkit": text}}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


class Watch:
    """Reads files one by one and sees to what it costs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases = self.accepted = self.grown = 0
        self.refused: set[str] = set()  # the words of messages, without names, numbers and paths
        self.slowest = self.peak = 0.0

    def read(self, reader: Callable[[], Any], *, traced: bool = False) -> Any:
        """What the reader gives; the message where it refuses with a UserError."""
        self.cases += 1
        before, size, traced = listing(self.root), resident(), traced or self.cases % TRACED == 0
        if traced:
            tracemalloc.start()
        start = time.perf_counter()
        try:
            result = self._outcome(reader)
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - start)
            self.grown += resident() - size
            if traced:
                self.peak = max(self.peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert listing(self.root) == before
        return result

    def _outcome(self, reader: Callable[[], Any]) -> Any:
        try:
            result = reader()
        except UserError as error:
            message = str(error)
            assert 0 < len(message) < 10_000
            words = message.replace(str(self.root), "").split()
            self.refused.add(" ".join(word for word in words[:12] if word.isalpha()))
            return message
        self.accepted += 1
        return result

    def close(self) -> None:
        print(f"{self.cases} cases, {self.accepted} accepted, {len(self.refused)} kinds of messages,", end=" ")
        print(f"slowest {self.slowest:.3f} s, peak {self.peak / 2**20:.1f} MiB, grown by {self.grown / 2**20:.0f} MiB")
        assert self.slowest < MOST_SECONDS
        assert self.peak < MOST_MEMORY
        assert self.grown < MOST_GROWTH * max(1, self.cases // 10_000)  # Hypothesis keeps what it has tried
        assert pa.default_memory_pool().max_memory() < MOST_MEMORY


def resident() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(tmp_path)
    yield watch
    watch.close()


def load(path: Path) -> SyntheticSet:
    """As `loading.load`, with the rule that a set comes without problems and problems without a set."""
    result, problems = loading.read(path)
    assert (result is None) == bool(problems)
    return set_file.require_intact(path, result, problems)


def assert_is_what_it_says(got: SyntheticSet, original: SyntheticSet, tree: Tree) -> None:
    """The content is the original's where its digests are, the manifest the one that is there, both fit each other."""
    for name in ("images", "labels", "soft_labels", "levels"):
        a, b = getattr(got, name), getattr(original, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and a.shape == b.shape), name
        same = a is None or torch.equal(a, b)
        assert same or got.manifest["sha256"] != original.manifest["sha256"], name
    assert torch.equal(got.labels, original.labels)
    assert got.soft_labels is None or got.soft_labels.isfinite().all()
    told = manifest_of(tree)
    told.pop("package", None)
    assert got.manifest == told
    assert got.manifest["manifest_sha256"] == manifest_digest(got.manifest)
    raws = {name: tensor.numpy().tobytes() for name, tensor in tensors_of(got).items()}
    assert got.manifest["sha256"] == {name: hashlib.sha256(raw).hexdigest() for name, raw in raws.items()}
    assert got.manifest["bytes"] == {name: len(raw) for name, raw in raws.items()}
    images, labels = got.decoded()
    assert len(images) == len(labels) == got.manifest["ipc"]["decoded"] * len(got.classes)
    assert got.soft_labels is None or got.soft_labels.shape == (len(images), len(got.classes))


def prepared(parent: Path, subject: Subject) -> tuple[Path, Path, SyntheticSet]:
    """The folder of a set, what is read in it, and what that gives; all libraries are loaded then."""
    root, result = parent / "set", subject.build()
    (parent / OUTSIDE).write_text("not to be read")
    if subject.layout is None:
        root.mkdir()
        set_file.save(result, root / set_file.FILE_NAME)
    else:
        package.write(result, root, Packing(layout=subject.layout, **subject.packing))
    path = root / set_file.FILE_NAME if subject.layout is None else root
    return root, path, load(path)


def hunt_sets(watch: Watch, name: str, examples: int) -> None:
    root, path, original = prepared(watch.root, SUBJECTS[name])
    tree = tree_of(root)

    @settings(max_examples=examples, **HUNT)
    @given(mutated_set(tree))
    def hunt(new: Tree) -> None:
        write(root, tree, new)
        got = watch.read(lambda: load(path))
        if not isinstance(got, str):
            assert_is_what_it_says(got, original, new)
        write(root, new, tree)

    hunt()
    assert watch.accepted > 0
    assert len(watch.refused) > 15  # the inner checks, not one outer one


@pytest.mark.parametrize("name", ["file-bits", "safetensors", "webdataset", "parquet", "png"])
def test_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, MANY)


RELEASED = {
    "list": {"data.pt": [torch.arange(96.0).view(2, 3, 4, 4), torch.tensor([0, 1])]},
    "pair": {
        "images.pt": torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4),
        "labels.pt": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float16),
    },
}


@st.composite
def mutated_release(draw: DrawFn, tree: Tree) -> tuple[Tree, bool]:
    """The files of a release with one changed, and whether its checksums were made to fit."""
    name, forged = draw(st.sampled_from(sorted(tree))), draw(st.integers(0, 3)) > 0
    content = tree[name]
    assert isinstance(content, bytes)
    return tree | {name: draw(mutated_zip(content) if forged else mutated(content))}, forged


def assert_is_a_release(got: Released, size: int) -> None:
    """Arrays as the rest of ncfmkit expects them, of what a file of so many bytes can hold."""
    count, channels, height, width = got.images.shape
    assert count > 0
    assert channels in (1, 3)
    assert height == width > 0
    assert got.images.dtype in (np.uint8, np.float32)
    assert (got.labels is None) != (got.soft_logits is None)
    for labels, dtype, shape in ((got.labels, np.int64, (count,)), (got.soft_logits, np.float32, (count, -1))):
        if labels is not None:
            assert labels.dtype == dtype
            assert labels.shape[0] == count
            assert labels.ndim == len(shape)
    arrays = [a for a in (got.images, got.labels, got.soft_logits) if a is not None]
    assert all(np.isfinite(a).all() for a in arrays)
    assert sum(a.nbytes for a in arrays) <= 8 * size  # from 8 bits to 64


def assert_equal_releases(got: Released, expected: Released) -> None:
    for name in ("images", "labels", "soft_logits"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(a, b, strict=True)


def hunt_released(watch: Watch, name: str, examples: int) -> None:
    root = watch.root / "release"
    root.mkdir()
    for file, content in RELEASED[name].items():
        torch.save(content, root / file)
    tree, path = tree_of(root), root / next(iter(RELEASED[name]))

    def read() -> Released:
        return read_module.read(path, labels=None, max_bytes=1 << 20)

    expected = read()

    @settings(max_examples=examples, **HUNT)
    @given(mutated_release(tree))
    def hunt(case: tuple[Tree, bool]) -> None:
        new, forged = case
        write(root, tree, new)
        got = watch.read(read)
        if isinstance(got, Released):
            assert_is_a_release(got, sum(map(len, new.values())))
        if isinstance(got, Released) and not forged:
            assert_equal_releases(got, expected)
        write(root, new, tree)

    hunt()
    assert watch.accepted > 0
    assert len(watch.refused) > 15


def test_random_changes_of_released_sets(watch: Watch) -> None:
    hunt_released(watch, "list", FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RELEASED)
def test_many_random_changes_of_released_sets(watch: Watch, name: str) -> None:
    hunt_released(watch, name, MANY)


FILE = set_file.FILE_NAME
Change = Callable[[Tree], Tree]


def edited(name: str, edit: Callable[[bytes], bytes]) -> Change:
    return lambda tree: tree | {name: edit(tree[name])}


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
        r"is not a readable safetensors file \(damaged or tr",
    ),
    "file: half": ("file", edited(FILE, lambda c: c[: len(c) // 2]), "is not a readable safetensors file"),
    "file: empty": ("file", edited(FILE, lambda c: b""), "is not a readable safetensors file"),
    "file: a bit": ("file", edited(FILE, flipped), "is damaged: the sha256 of 'images' is not the manifest's"),
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
        "would unpack to .* refused as a decompression bomb",
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
        r"file '00002\.png' is not of the package",
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
    assert "\n" not in got or " ways:\n  " in got


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
    with pytest.raises(
        UserError, match="each image decodes to 366346240 values, decoded packages have 67108864 at most"
    ):
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


@pytest.mark.parametrize("name", ["UntypedStorage", "TypedStorage"])
def test_storages_of_any_size_are_not_made(watch: Watch, name: str) -> None:
    """torch.load itself would allocate them."""
    path = watch.root / "data.pt"
    code = b"\x80\x02ctorch.storage\n" + name.encode() + b"\n\x8a\x05" + (10**9).to_bytes(5, "little") + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/data.pkl", code)
        archive.writestr("data/version", "3\n")
    got = watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20), traced=True)
    assert f"holds code or objects that are not tensors (torch.storage.{name})" in got


def test_archives_that_look_different_to_torch(watch: Watch) -> None:
    """Right before the archive's end is a directory of tensors, where the end says is one of code.

    Python goes to the first, torch to the second, and would make three hundred million bytes there.
    """
    path = watch.root / "data.pt"
    torch.save([torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])], path)
    with zipfile.ZipFile(path) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    code = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (3 * 10**8).to_bytes(5, "little") + b"\x85R."
    evil = {name: code if name.endswith("/data.pkl") else content for name, content in good.items()}
    (files, directory, end), (evil_files, evil_directory, _) = parts(good), parts(evil)
    evil_files += bytes(len(files))
    moved = len(evil_files) - len(files)  # Python adds how far the directory is from where the end says
    path.write_bytes(evil_files + evil_directory + files + shifted(directory, moved) + at(end, len(evil_files)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert b"bytearray" not in archive.read(next(name for name in good if name.endswith("/data.pkl")))
    assert isinstance(torch.load(path, weights_only=True, mmap=True), bytearray)
    got = watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20), traced=True)
    assert "is not an archive as torch.save writes it (a second directory): not loaded" in got


def parts(members: dict[str, bytes]) -> tuple[bytes, bytes, bytes]:
    """Files, directory and end of a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = file.getvalue()
    size, start = struct.unpack_from("<II", content, len(content) - 10)
    return content[:start], content[start : start + size], content[-22:]


def shifted(directory: bytes, by: int) -> bytes:
    """A directory whose files lie further on."""
    new, place = bytearray(directory), 0
    while place < len(new):
        (offset,) = struct.unpack_from("<I", new, place + 42)
        struct.pack_into("<I", new, place + 42, offset + by)
        place += 46 + sum(struct.unpack_from("<HHH", new, place + 28))
    return bytes(new)


def at(end: bytes, start: int) -> bytes:
    """An archive's end that speaks of a directory there."""
    return end[:16] + struct.pack("<I", start) + end[20:]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("data/data.pkl", "data/DATA.PKL"), "a name twice, 2 data.pkl"),
        (("data/DATA.PKL", "other/data.pkl"), "2 data.pkl"),
        (("data/version", "data/data.pkl", "data/Data.pkl"), "a name twice, 2 data.pkl"),
    ],
)
def test_names_that_torch_takes_for_others(watch: Watch, names: tuple[str, ...], says: str) -> None:
    path = watch.root / "data.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02N.")
    assert f"({says}): not loaded" in watch.read(lambda: read_module.read(path, labels=None, max_bytes=1 << 20))
