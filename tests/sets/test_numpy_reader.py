"""The reader that needs only numpy: against ncfmkit's own, against loops, against golden files and against damage."""

import dataclasses
import hashlib
import json
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import build_set
from golden_sets import (
    DATA,
    GOLDENS,
    Golden,
    container,
    naive_decoded,
    restore,
    restored_labels,
    set_bytes,
    with_digests,
)
from hypothesis import assume, given, settings
from mutations import mutated, mutated_json
from watch import FEW, HUNT, MANY

from ncfmkit.errors import UserError
from ncfmkit.sets import coding, label_codes, numpy_reader, set_file
from ncfmkit.sets.numpy_reader import NumpySet, SetError, decoded, normalized, read
from ncfmkit.sets.synthetic import SyntheticSet

KINDS: list[tuple[str, int, int | None]] = [
    ("single", 1, None),
    ("single", 2, None),
    ("single", 3, None),
    ("multi", 3, None),
    ("bound", 3, None),
]
KINDS += [("bound", 2, budget) for budget in (1, 7, 9, 100)]


def check_equal(ours: NumpySet, theirs: SyntheticSet) -> None:
    """Content, decoded and normalized images."""
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (ours.images.dtype, ours.labels.dtype) == (np.uint8, np.int64)
    expected_manifest = theirs.manifest.to_dict()
    if "training" not in ours.manifest:  # an earlier version's, to which the library adds it
        del expected_manifest["training"], expected_manifest["decode"]["version"]
    assert ours.manifest == expected_manifest
    assert (ours.soft_labels is None) == (theirs.soft_labels is None)
    if ours.soft_labels is not None:
        np.testing.assert_array_equal(ours.soft_labels, theirs.soft_labels)
        assert ours.soft_labels.dtype == np.float16
        assert len(ours.soft_labels) == len(decoded(ours)[0])
    for (x, labels), (expected, expected_labels), tolerance in (
        (decoded(ours), theirs.decoded(), 1e-6),
        (normalized(ours), theirs.as_dataset().tensors[:2], 1e-5),
    ):
        assert (x.dtype, labels.dtype) == (np.float32, np.int64)
        np.testing.assert_allclose(x, expected, atol=tolerance)
        np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (5, 1), (7, 3)])
@pytest.mark.parametrize(("kind", "factor", "budget"), KINDS)
def test_reads_what_ncfmkit_writes(
    tmp_path: Path, kind: str, factor: int, budget: int | None, size: int, channels: int, soft: bool
) -> None:
    file = tmp_path / "set.safetensors"
    set_file.save(build_set(kind, factor, budget, size=size, channels=channels, soft=soft), file)
    check_equal(read(file), set_file.load(file))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scale", ["channel", "image"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_reads_quantized_pixels_that_ncfmkit_writes(
    tmp_path: Path, bits: int, scale: Any, soft: bool, smooth: bool
) -> None:
    file = tmp_path / "set.safetensors"
    set_file.save(build_set(size=5 + 8 * smooth, bits=bits, scale=scale, soft=soft, smooth=smooth), file)
    assert safetensors.numpy.load_file(file)["pixels"].ndim == (1 if smooth else 2)
    check_equal(read(str(file)), set_file.load(file))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("classes", "top"), [(3, 0), (3, 2), (10, 3), (256, 2), (257, 2), (300, 0)])
def test_reads_soft_labels_in_fewer_bits_that_ncfmkit_writes(tmp_path: Path, classes: int, top: int, bits: int) -> None:
    file, names = tmp_path / "set.safetensors", [str(label) for label in range(classes)]
    set_file.save(build_set("single", 2, classes=names, size=4, soft=True, label_bits=bits, top=top), file)
    check_equal(read(file), set_file.load(file))
    rows = safetensors.numpy.load_file(file)["soft_labels"]
    np.testing.assert_array_equal(read(file).soft_labels, restored_labels(rows, classes, bits, top))


def test_a_channel_that_never_changes_is_normalized_to_0(tmp_path: Path) -> None:
    synthetic = build_set(mean=[0.0, 0.0, 0.0], std=[0.0, 1.0, 1.0])
    synthetic.images[:, 0] = 0
    file = tmp_path / "set.safetensors"
    set_file.save(synthetic, file)
    check_equal(read(file), set_file.load(file))
    assert (normalized(read(file))[0][:, 0] == 0).all()


@pytest.mark.parametrize(("kind", "factor", "budget"), KINDS)
def test_decodes_as_plain_loops_do(tmp_path: Path, kind: str, factor: int, budget: int | None) -> None:
    file = tmp_path / "set.safetensors"
    set_file.save(build_set(kind, factor, budget, size=5), file)
    stored = read(file)
    expected, labels = naive_decoded(stored.images, stored.labels, stored.manifest)
    x, got = decoded(stored)
    np.testing.assert_allclose(x, expected, atol=1e-6)
    assert got.tolist() == labels


def quantized(bits: int, scale: str = "image", side: int = 5, channels: int = 3) -> Golden:
    rng, count = np.random.default_rng(bits), 4
    codes = rng.integers(0, 2**bits, (count, channels, side, side), dtype=np.uint8)
    low = rng.integers(0, 256 - (2**bits - 1), (1 if scale == "channel" else count, channels, 1))
    high = rng.integers(low + 2**bits - 1, 256)
    levels = np.concatenate([low, high], axis=2).astype(np.uint8)
    shape = [channels, side, side]
    manifest = GOLDENS["quantised-soft"]().manifest | {
        "pixels": {"bits": bits, "scale": scale, "dither": False, "shape": shape},
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }
    images = restore(codes, levels, bits)
    return Golden(images=images, labels=np.repeat([0, 1], 2), manifest=manifest, codes=codes, levels=levels)


@pytest.mark.parametrize("part", [8, 1 << 15])
@pytest.mark.parametrize("scale", ["channel", "image"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_restores_codes_as_plain_loops_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, scale: str, part: int
) -> None:
    monkeypatch.setattr(numpy_reader, "PART", part)
    golden = quantized(bits, scale)
    np.testing.assert_array_equal(read(written(tmp_path, golden.content())).images, golden.images)


def written(folder: Path, content: bytes) -> Path:
    file = folder / "set.safetensors"
    file.write_bytes(content)
    return file


SHA256 = {
    "bound-colour.npz": "709fd8edb860b4adf8e1192c6a2c0ec0453b6d8d63119d075692fe5f9b81d0bd",
    "bound-colour.safetensors": "cae52de09d5d906e820342cb6514b1c320e27bcf0507fdc644cf2b01d1aeb980",
    "coded-color.npz": "c282c1d169065dbcea19ba4480b0d6afa1ad19bdd3bbcd316fd0624e134c03b2",
    "coded-color.safetensors": "09068f390673ffd9abcc3a8a29bbf257cdde9ee4717ce968e4a6176cab91f37a",
    "half-color.npz": "5f6ee153971840477ee1a7a2a936d8352c95afe75fc6a064c045b68273ab890d",
    "half-color.safetensors": "2cf9bb32206456d8bbbe3cd0efb6bc747aa27a8084279c6abe27f1c86d8208f9",
    "quantised-soft.npz": "9a52f609745b023215a7bfb346b28aaa40ce24313623ee6e61b6b824af9dac3d",
    "quantised-soft.safetensors": "78df27ef4d4c3f02a0368df8e8886a5d04ae09318ff12bd921abec6aeeaad5f9",
    "single-gray.npz": "9d32f2fe0de2e02b32c4fe1deed8873d1f10e10b1c0e1b9cb155d957fe36de41",
    "single-gray.safetensors": "4c6b5232ab228d3a97f68a493af521904ff821515621f282f301c2df21026977",
    "top-labels.npz": "b74d33ee4e9f857f97a62cfebc924577ec60d4dcba27ea7b915d596a097bd2f3",
    "top-labels.safetensors": "ff7c102aa747b454e8b25cde4258075403d5a606ee18ee1d5fd853320831fbc0",
}


def test_golden_files_are_as_they_were() -> None:
    files = [file for file in DATA.iterdir() if file.suffix in (".npz", ".safetensors")]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found == SHA256


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_content_gives_the_golden_bytes(tmp_path: Path, name: str) -> None:
    """Written by the plain reference, and by ncfmkit from the same content."""
    golden, pinned = GOLDENS[name](), (DATA / f"{name}.safetensors").read_bytes()
    assert golden.content() == pinned
    manifest = set_file.load(DATA / f"{name}.safetensors").manifest
    synthetic = SyntheticSet(
        images=torch.tensor(golden.images),
        labels=torch.tensor(golden.labels),
        manifest=manifest,
        soft_labels=None if golden.soft_labels is None else torch.tensor(golden.soft_labels),
        pixel_tensors={name: torch.tensor(value) for name, value in golden.packed_pixels().items()} or None,
    )
    set_file.save(synthetic, tmp_path / "again.safetensors")
    # the pinned file is older than the training record and the version of the decoding
    added = {"training": manifest.training.to_dict(), "decode": golden.manifest["decode"] | {"version": 1}}
    today = dataclasses.replace(golden, manifest=golden.manifest | added)
    assert (tmp_path / "again.safetensors").read_bytes() == today.content()


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_files_are_read_by_all_three_readers(name: str) -> None:
    """Ours, ncfmkit's and that of safetensors; what they decode to was computed without either."""
    file, expected = DATA / f"{name}.safetensors", np.load(DATA / f"{name}.npz")
    stored = read(file)
    check_equal(stored, set_file.load(file))
    np.testing.assert_array_equal(stored.images, expected["images"])
    x, labels = decoded(stored)
    np.testing.assert_allclose(x, expected["decoded"], atol=1e-6)
    np.testing.assert_array_equal(labels, expected["labels"])
    as_they_are = {"images", "labels"} | (set() if "labels" in stored.manifest else {"soft_labels"})
    for key, tensor in safetensors.numpy.load_file(file).items():
        if key in as_they_are:
            np.testing.assert_array_equal(tensor, getattr(stored, key))
    if GOLDENS[name]().soft_labels is not None:
        np.testing.assert_array_equal(stored.soft_labels, GOLDENS[name]().soft_labels)


def test_the_example_of_quantized_pixels() -> None:
    packed, levels = np.array([[0x17, 0xA0]], np.uint8), np.array([[[10, 250]]], np.uint8)
    assert numpy_reader._codes(packed[0], 4, 3).tolist() == [0, 5, 7, 2]
    how = {"bits": 3, "shape": [1, 2, 2]}
    values = numpy_reader._restored({"pixels": packed, "levels": levels, "labels": np.zeros(1)}, how)
    assert values.tolist() == [[[[10, 181], [250, 79]]]]


def test_the_example_of_decoding(tmp_path: Path) -> None:
    images = np.zeros((6, 1, 4, 4), np.uint8)
    images[:, :, 0, 1] = images[:, :, 1, 0] = 255
    x, _ = decoded(read(written(tmp_path, rebuilt("single-gray", images=images))))
    rows = [[0, 0.25, 0.75, 1], [0.25, 0.375, 0.625, 0.75], [0.75, 0.625, 0.375, 0.25], [1, 0.75, 0.25, 0]]
    np.testing.assert_allclose(x[0, 0], rows, atol=1e-7)
    places = numpy_reader._weights(3, 5) @ np.arange(3)
    np.testing.assert_allclose(places, [0, 0.4, 1, 1.6, 2], atol=1e-6)


def test_the_example_of_the_order_of_bound(tmp_path: Path) -> None:
    images = np.zeros((6, 1, 4, 4), np.uint8)
    for cell, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        images[:, 0, row : row + 2, column : column + 2] = np.array([0, 100] * 3)[:, None, None] + 10 * cell
    keys = {"decode": {"kind": "bound", "factor": 2, "budget": 9}, "ipc": {"stored": 2, "decoded": 9}}
    x, labels = decoded(read(written(tmp_path, rebuilt("single-gray", keys, images=images))))
    assert labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    first = [round(float(value) * 255) for value in x[:9, 0, 0, 0]]  # the corner of each
    assert first == [0, 10, 20, 30, 0, 100, 110, 120, 130]
    assert [float(np.ptp(image)) > 0 for image in x[:9]] == [False] * 4 + [True] + [False] * 4  # factor 1 is whole


ALONE = """
import importlib.util, sys

for name in ("ncfmkit", "torch", "safetensors", "PIL", "pyarrow"):
    sys.modules[name] = None  # importing it fails
spec = importlib.util.spec_from_file_location("reader", sys.argv[1])
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)
stored = reader.read(sys.argv[2])
print(reader.decoded(stored)[0].shape, reader.normalized(stored)[1].sum(), stored.manifest["name"])
foreign = {name.split(".")[0] for name, module in sys.modules.items() if module} - sys.stdlib_module_names
print(sorted(name for name in foreign if not name.startswith("_")))
"""


def test_the_file_alone_suffices(tmp_path: Path) -> None:
    """Copied elsewhere and loaded by path, where nothing of ncfmkit, torch or safetensors can be imported."""
    copied = tmp_path / "copied.py"
    copied.write_bytes(Path(numpy_reader.__file__).read_bytes())
    command = [sys.executable, "-I", "-c", ALONE, str(copied), str(DATA / "quantised-soft.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown, foreign = done.stdout.splitlines()
    assert shown == "(20, 1, 5, 5) 10 quantised-soft"
    assert {name for name in eval(foreign) if name not in ("reader", "sitecustomize")} == {"numpy"}


GOOD = GOLDENS["single-gray"]().content()
LENGTH = int.from_bytes(GOOD[:8], "little")


def refused(folder: Path, content: bytes) -> str:
    """What the reader says of a damaged file, which ncfmkit does not take either."""
    file = written(folder, content)
    with pytest.raises(UserError):
        set_file.load(file)
    with pytest.raises(SetError) as error:
        read(file)
    start = f"{file} is no distilled set, or a damaged one: "
    assert str(error.value).startswith(start)
    assert len(str(error.value)) < 700
    return str(error.value).removeprefix(start)


def with_header(change: Callable[[str], str], data: bytes = GOOD[8 + LENGTH :]) -> bytes:
    header = change(GOOD[8 : 8 + LENGTH].decode()).encode(errors="surrogateescape")
    return struct.pack("<Q", len(header)) + header + data


def entry(shape: str, offsets: str, dtype: str = '"I64"') -> bytes:
    """The golden file with another description of its labels."""
    new = f'"labels":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'
    return with_header(lambda header: re.sub(r'"labels":\{"dtype.*?\}', new, header))


def test_missing_files_are_the_systems_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.safetensors")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"header of 0 bytes .*file of 0"),
        (GOOD[:5], r"does not fit into a file of 5"),
        (bytes(8), r"no safetensors header"),
        (b"\xff" * 8 + GOOD[8:], r"a header of 18446744073709551615 bytes does not fit"),
        (struct.pack("<Q", len(GOOD) - 7) + GOOD[8:], r"does not fit"),
        (struct.pack("<Q", len(GOOD) - 8) + GOOD[8:], r"not JSON as it should be|not UTF-8"),
        (struct.pack("<Q", 1) + GOOD[8:], r"not JSON as it should be"),
        (GOOD[:-1], r"its tensors end at byte 264 of 263"),
        (GOOD + b"\0", r"its tensors end at byte 264 of 265"),
        (GOOD[: 8 + LENGTH], r"its tensors end at byte 264 of 0"),
        (with_header(lambda header: " " + header), r"no safetensors header"),
        (with_header(lambda header: "[]"), r"no safetensors header"),
        (with_header(lambda header: header.replace("labels", "\udcff")), r"its header is not UTF-8"),
        (with_header(lambda header: '{"a":' * 100 + "1" + "}" * 100), r"nested more than 32 deep"),
        (with_header(lambda header: '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), r"recursion"),
        (with_header(lambda header: '{"a":' + "1" * 5000 + "}"), r"not JSON as it should be"),
        (with_header(lambda header: header.replace("[6]", "[NaN]")), r"\(NaN is not a finite number\)"),
        (with_header(lambda header: header.replace("[6]", "[-Infinity]")), r"\(-Infinity is not a finite"),
        (with_header(lambda header: header.replace("[6]", "[1e999]")), r"\(1e999 is not a finite number\)"),
        (with_header(lambda header: header.replace('"images":', '"labels":')), r"\(a key comes twice\)"),
        (with_header(lambda header: header.replace('"shape":[6]', '"shape":[6],"shape":[6]')), r"a key comes twice"),
        (with_header(lambda header: header.replace('"shape":[6],', "")), r"tensor 'labels' is described by \{"),
        (with_header(lambda header: header.replace('"shape":[6]', '"more":0,"shape":[6]')), r"is described by"),
        (with_header(lambda header: '{"__metadata__":{}}', b""), r"without the manifest 'ncfmkit'"),
        (with_header(lambda header: '{"__metadata__":["ncfmkit"]}', b""), r"without the manifest 'ncfmkit'"),
        (with_header(lambda header: '{"__metadata__":{"ncfmkit":{}}}', b""), r"without the manifest 'ncfmkit'"),
        (with_header(lambda header: "{}", b""), r"without the manifest 'ncfmkit'"),
        (entry("[6]", "[0,48]", '"F64"'), r"expected a dtype of U8, F16, I64"),
        (entry("[6]", "[0,48]", "[]"), r"expected a dtype of U8, F16, I64"),
        (entry("[6]", "[0,48]", '"I8"'), r"expected a dtype of U8, F16, I64"),
        (entry("[48]", "[0,48]", '"U8"'), r"tensor 'labels' is U8 \[48\], expected I64 \[6\]"),
        (entry("[-6]", "[0,48]"), r"expected a shape of at most 4 sizes"),
        (entry("[true]", "[0,8]"), r"expected a shape of at most 4 sizes"),
        (entry("[6.0]", "[0,48]"), r"expected a shape of at most 4 sizes"),
        (entry("6", "[0,48]"), r"expected a shape of at most 4 sizes"),
        (entry(f"[{10**30}]", "[0,48]"), r"expected a shape of at most 4 sizes"),
        (entry("[2,1,1,1,3]", "[0,48]"), r"expected a shape of at most 4 sizes"),
        (entry(f"[{2**32},{2**32}]", "[0,48]"), r"as many bytes as its shape has"),
        (entry("[7]", "[0,48]"), r"as many bytes as its shape has"),
        (entry("[5]", "[0,48]"), r"as many bytes as its shape has"),
        (entry("[6]", "[48,0]"), r"as many bytes as its shape has"),
        (entry("[6]", "[-48,0]"), r"is described by"),
        (entry("[6]", "[0]"), r"is described by"),
        (entry("[6]", '["0","48"]'), r"is described by"),
        (entry("[5]", "[0,40]"), r"tensor 'images' begins at byte 48, expected 40"),
        (entry("[7]", "[0,56]"), r"tensor 'images' begins at byte 48, expected 56"),
        (entry("[6]", "[8,56]"), r"tensor 'labels' begins at byte 8, expected 0"),
        (entry("[6]", "[216,264]"), r"begins at byte"),
    ],
)  # fmt: skip
def test_hostile_containers_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    assert re.search(said, refused(tmp_path, content))


def test_a_header_above_16_mib_is_refused(tmp_path: Path) -> None:
    text = b"{" + b" " * 2**24
    assert "expected 16777216 at most" in refused(tmp_path, struct.pack("<Q", len(text)) + text)


def test_a_header_of_16_mib_is_read(tmp_path: Path) -> None:
    """Spaces after the JSON are part of the format."""
    content = with_header(lambda header: header.ljust(2**24))
    assert read(written(tmp_path, content)).manifest["name"] == "single-gray"


def test_offsets_count_and_not_the_order_of_names(tmp_path: Path) -> None:
    header = json.loads(GOOD[8 : 8 + LENGTH])
    text = json.dumps(dict(reversed(header.items()))).encode()  # an odd length: nothing is aligned
    stored = read(written(tmp_path, struct.pack("<Q", len(text)) + text + GOOD[8 + LENGTH :]))
    np.testing.assert_array_equal(stored.images, GOLDENS["single-gray"]().images)
    assert stored.labels.tolist() == [0, 0, 1, 1, 2, 2]


TENSORS: dict[str, dict[str, np.ndarray]] = {}
for _name, _make in GOLDENS.items():
    TENSORS[_name] = safetensors.numpy.load(_make().content())


def rebuilt(name: str, manifest: dict[str, Any] | None = None, **tensors: np.ndarray | None) -> bytes:
    """A golden set with other keys in its manifest and other tensors; none: without it."""
    merged = {k: v for k, v in (TENSORS[name] | tensors).items() if v is not None}
    keys = GOLDENS[name]().manifest | (manifest or {})
    return set_bytes(merged, {k: v for k, v in keys.items() if v is not ...})


PIXELS: dict[str, Any] = {"bits": 3, "scale": "image", "dither": True, "shape": [1, 5, 5]}
PIXEL_CHANGES: list[tuple[dict[str, Any], str]] = [
    *(({"bits": bits}, "'pixels'") for bits in (1, 9, True, 3.0, None)),
    *(({"bits": bits}, r"tensor 'pixels' is U8 \[4, 10\], expected") for bits in (2, 4)),
    *(({"scale": scale}, "'pixels'") for scale in ("class", None, ["image"])),
    ({"scale": "channel"}, r"tensor 'levels' is U8 \[4, 1, 2\], expected U8 \[1, 1, 2\]"),
    *(({"dither": dither}, "'pixels'") for dither in (0, None)),
    *(({"shape": shape}, "'pixels'") for shape in ([5, 5], [1, 5, 0], [1, 5, 5.0], None, [1, 5, 16385])),
    *(({"shape": shape}, "do not fit the mean") for shape in ([3, 5, 5], [1, 25, 1], [2, 5, 5])),
    ({"shape": [1, 6, 6]}, "tensor 'pixels' is"),
    *(({"coding": coding}, "'pixels'") for coding in ("zstd", 1, True, ["lzma"])),
    ({"coding": "lzma"}, "its format does not fit its tensors"),
]
NO_RECORD: tuple[Any, ...] = (None, [], 4, {"bits": 4}, {"top": 3}, {})
TOP_LABELS: list[tuple[Any, str]] = [
    *(({"bits": bits, "top": 3}, "'labels'") for bits in (0, 2, 5, 6, 16, True, 4.0, "4", None)),
    *(({"bits": 4, "top": top}, "'labels'") for top in (-1, 5, 6, True, 3.0, None, 2**53 + 1)),
    *((record, "'labels'") for record in NO_RECORD),
    ({"bits": 8, "top": 3}, r"tensor 'soft_labels' is U8 \[20, 5\], expected U8 \[20, 6\]"),
    ({"bits": 4, "top": 0}, r"tensor 'soft_labels' is U8 \[20, 5\], expected U8 \[20, 3\]"),
    ({"bits": 8, "top": 0}, "no class of code 0"),
    (..., r"its format does not fit its tensors"),
]
HALF = GOLDENS["half-color"]().manifest["pixels"]
NO_CHROMA: tuple[Any, ...] = ("4:1:1", "4:4:4", 2, True, [])
NO_DECODING: tuple[Any, ...] = (None, {}, [], ...)
MANIFESTS: list[tuple[str, dict[str, Any], str]] = [
    *(("single-gray", {"kind": kind}, "its kind is") for kind in ("student", None, ["synthetic set"], ...)),
    *(("single-gray", {"format": number}, "this reader knows 1, 2, 3 and 4") for number in (0, 5, True, 1.0, "1", ...)),
    *(
        (name, {"format": number}, "its format does not fit its tensors")
        for name, own in (("single-gray", 1), ("quantised-soft", 2), ("coded-color", 3), ("half-color", 4))
        for number in {1, 2, 3, 4} - {own}
    ),
    *(("half-color", {"pixels": HALF | {"chroma": what}}, "'pixels' are not") for what in NO_CHROMA),
    *(("half-color", {"pixels": HALF | {"shape": shape}}, "'pixels' are not") for shape in ([1, 12, 12], [3, 10, 10])),
    ("half-color", {"pixels": HALF | {"shape": [3, 16, 16]}}, "end early"),
    ("half-color", {"pixels": HALF | {"shape": [3, 8, 8]}}, "go on after the last image"),
    ("half-color", {"pixels": {k: v for k, v in HALF.items() if k != "coding"}}, r"expected U8 \[4, 81\]"),
    ("half-color", {"pixels": {k: v for k, v in HALF.items() if k != "chroma"}, "format": 3}, "belong to no value"),
    ("coded-color", {"pixels": GOLDENS["coded-color"]().manifest["pixels"] | {"chroma": "4:2:0"}}, "'pixels' are not"),
    *(
        ("single-gray", {"classes": names}, "'classes'")
        for names in ([], ["a"], "abc", ["a", "b", "a"], ["a", "b", 3], ["a", "b", "\ud800"], ...)
    ),
    ("single-gray", {"classes": ["a", "b"]}, "tensor 'images' is"),
    ("single-gray", {"value_range": [0, 1]}, "'value_range'"),
    *(("single-gray", {"mean": mean}, "'mean'") for mean in ([], [0, 0], [None], [True], [10**400], 0.5, ...)),
    *(("single-gray", {"std": std}, "'std'") for std in ([-0.1], [0.1] * 3, [1e39], ["1"])),
    ("single-gray", {"mean": [0.5] * 3, "std": [0.5] * 3}, "do not fit the mean"),
    *(("single-gray", {"decode": how}, "'decode'") for how in NO_DECODING),
    *(
        ("single-gray", {"decode": {"kind": kind, "factor": factor, "budget": budget}}, "'decode'")
        for kind, factor, budget in (
            *(("double", 2, None), (["single"], 2, None), ("single", 0, None), ("single", 65, None)),
            *(("single", 2.0, None), ("single", True, None), ("single", 2, 8), ("multi", 2, 8)),
            *(("bound", 2, 0), ("bound", 2, -1), ("bound", 2, True), ("bound", 2, "8"), ("bound", 2, 10**400)),
        )
    ),
    ("single-gray", {"decode": {"kind": "single", "factor": 2}}, "'decode'"),
    (
        "single-gray",
        {"decode": {"kind": "single", "factor": 7, "budget": None}, "ipc": {"stored": 2, "decoded": 98}},
        "and the factor",
    ),
    *(("single-gray", {"ipc": ipc}, "'ipc'") for ipc in (None, 2, {}, {"stored": 2}, {"stored": 2, "decoded": 8.0})),
    *(("single-gray", {"ipc": {"stored": s, "decoded": d}}, f"tells {d} decoded") for s, d in ((2, 7), (2, 9), (1, 8))),
    ("single-gray", {"ipc": {"stored": 1, "decoded": 4}}, r"tensor 'images' is U8 \[6, 1, 6, 6\], expected U8 \[3,"),
    ("bound-colour", {"ipc": {"stored": 2, "decoded": 18}}, "its decoding gives 20"),
    *(("single-gray", {key: ...}, f"'{key}'") for key in ("value_range", "mean", "std", "ipc")),
    *(("single-gray", {key: {}}, f"'{key}' lists other tensors") for key in ("bytes", "sha256")),
    ("single-gray", {"bytes": {"labels": 48, "images": 215}}, "'bytes' tells another size of 'images'"),
    ("single-gray", {"bytes": {"labels": 48.0, "images": 216}}, "'bytes' tells another size of 'labels'"),
    ("single-gray", {"sha256": {"labels": "0" * 64, "images": None}}, "the sha256 of 'labels' is another"),
    ("single-gray", {"pixels": {"bits": 3, "scale": "image", "dither": True, "shape": [1, 6, 6]}}, "its tensors are"),
    ("quantised-soft", {"pixels": ...}, "its tensors are"),
    *(("quantised-soft", {"pixels": PIXELS | change}, said) for change, said in PIXEL_CHANGES),
    *(("top-labels", {"labels": how}, said) for how, said in TOP_LABELS),
    ("single-gray", {"labels": {"bits": 4, "top": 0}, "format": 3}, "without soft labels"),
    ("quantised-soft", {"labels": {"bits": 4, "top": 0}, "format": 3}, r"expected U8 \[20, 1\]"),
    ("quantised-soft", {"labels": {"bits": 4, "top": 0}}, "its format does not fit its tensors"),
    *(("top-labels", {"format": number}, "its format does not fit its tensors") for number in (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "manifest", "said"), MANIFESTS)
def test_false_manifests_are_refused(tmp_path: Path, name: str, manifest: dict[str, Any], said: str) -> None:
    assert re.search(said, refused(tmp_path, rebuilt(name, manifest)))


def _with(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


GRAY, SOFT, TOP = TENSORS["single-gray"], TENSORS["quantised-soft"], TENSORS["top-labels"]["soft_labels"]


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("single-gray", {"labels": np.array([0, 0, 1, 1, 2, 1])}, "its labels are not M of each class, sorted"),
        ("single-gray", {"labels": np.array([0, 1, 0, 1, 2, 2])}, "its labels are not M of each class, sorted"),
        ("single-gray", {"labels": np.array([1, 1, 2, 2, 3, 3])}, "its labels are not M of each class, sorted"),
        ("single-gray", {"labels": GRAY["labels"][:, None]}, r"expected I64 \[6\]"),
        ("single-gray", {"labels": GRAY["labels"].astype(np.uint8)}, r"is U8 \[6\], expected I64 \[6\]"),
        ("single-gray", {"images": GRAY["images"].reshape(6, 1, 4, 9)}, "do not fit the mean and the factor"),
        ("single-gray", {"images": GRAY["images"].reshape(6, 36)}, "do not fit the mean"),
        ("single-gray", {"images": GRAY["images"].astype(np.float16)}, "expected U8"),
        ("single-gray", {"images": None}, "its tensors are"),
        ("single-gray", {"more": GRAY["labels"]}, "its tensors are"),
        ("quantised-soft", {"images": np.zeros((4, 1, 5, 5), np.uint8)}, "its tensors are"),
        ("quantised-soft", {"levels": None}, "its tensors are"),
        ("quantised-soft", {"pixels": _with(SOFT["pixels"], (2, -1), SOFT["pixels"][2, -1] | 1)}, "bits after its"),
        ("quantised-soft", {"pixels": SOFT["pixels"][:, :-1]}, r"tensor 'pixels' is U8 \[4, 9\], expected"),
        ("quantised-soft", {"levels": _with(SOFT["levels"], (1, 0, 1), 16)}, "its levels are nearer to each other"),
        ("quantised-soft", {"levels": SOFT["levels"][..., ::-1].copy()}, "its levels are nearer to each other"),
        ("quantised-soft", {"levels": SOFT["levels"][:1]}, r"expected U8 \[4, 1, 2\]"),
        ("quantised-soft", {"soft_labels": _with(SOFT["soft_labels"], (3, 1), np.nan)}, "soft labels are not"),
        ("quantised-soft", {"soft_labels": _with(SOFT["soft_labels"], (3, 1), np.inf)}, "soft labels are not"),
        ("quantised-soft", {"soft_labels": SOFT["soft_labels"][1:]}, r"F16 \[19, 2\], expected F16 \[20, 2\]"),
        ("quantised-soft", {"soft_labels": SOFT["soft_labels"].T.copy()}, r"F16 \[2, 20\], expected F16 \[20, 2\]"),
        ("top-labels", {"soft_labels": _with(TOP, (4, 4), TOP[4, 4] | 1)}, "bits after its last soft label are not 0"),
        ("top-labels", {"soft_labels": _with(TOP, (4, 0), 5)}, "names a class that there is not"),
        ("top-labels", {"soft_labels": _with(TOP, (4, 0), TOP[4, 1])}, "not its likeliest ones in order"),
        ("top-labels", {"soft_labels": _with(TOP, (1, slice(0, 3)), [1, 0, 2])}, "not its likeliest ones"),
        ("top-labels", {"soft_labels": _with(TOP, (4, slice(3, 5)), [0x55, 0x40])}, "not its likeliest ones in order"),
        ("top-labels", {"soft_labels": _with(TOP, (0, 2), 3)}, "not its likeliest ones in order"),  # 2 is as likely
        ("top-labels", {"soft_labels": TOP[1:]}, r"U8 \[19, 5\], expected U8 \[20, 5\]"),
        ("top-labels", {"soft_labels": np.zeros((20, 5), np.float16)}, r"F16 \[20, 5\], expected U8 \[20, 5\]"),
        ("top-labels", {"soft_labels": None}, "'labels' of a set without soft labels"),
    ],
)  # fmt: skip
def test_false_tensors_are_refused(tmp_path: Path, name: str, tensors: dict[str, Any], said: str) -> None:
    assert re.search(said, refused(tmp_path, rebuilt(name, **tensors)))


def test_not_all_classes_are_the_top_ones(tmp_path: Path) -> None:
    rows = np.tile(np.array([0, 1, 2, 3, 4, 0, 0, 0], np.uint8), (20, 1))
    content = rebuilt("top-labels", {"labels": {"bits": 4, "top": 5}}, soft_labels=rows)
    assert "'labels' are not bits and a top below the number of classes" in refused(tmp_path, content)


def test_the_digest_of_the_manifest_is_checked(tmp_path: Path) -> None:
    manifest = json.loads(with_digests(GOLDENS["single-gray"]().manifest)["ncfmkit"]) | {"name": "other"}
    content = container(GRAY, {"ncfmkit": json.dumps(manifest)})
    assert refused(tmp_path, content) == "the sha256 of its manifest is not the one stored in it"


def test_the_digest_of_the_manifest_is_that_of_its_text() -> None:
    """As docs/formats.md has it for readers in other languages: cut one member out of the text."""
    for make in GOLDENS.values():
        content = make().content()
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["ncfmkit"]
        rest, count = re.subn(r'"manifest_sha256": "[0-9a-f]{64}", ', "", text)
        assert count == 1
        assert hashlib.sha256(rest.encode()).hexdigest() == json.loads(text)["manifest_sha256"]


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1, "a": 1}', "[]", '"synthetic set"', "{", '{"a":' * 99])
def test_manifests_are_strict_json(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, container(GRAY, {"ncfmkit": text})).startswith("its manifest is not")


def with_keys(**keys: Any) -> bytes:
    """The golden file with other values in its manifest, every digest right."""
    return rebuilt("single-gray", keys)


def with_text(old: str, new: str) -> bytes:
    """The golden file with another text of its manifest, whose digest does not matter: it is refused before."""
    text = with_digests(GOLDENS["single-gray"]().manifest)["ncfmkit"]
    assert old in text
    return container(GRAY, {"ncfmkit": text.replace(old, new, 1)})


def nested(depth: int) -> Any:
    """Lists and objects inside each other."""
    value: Any = 0
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def in_header(old: str, new: str) -> bytes:
    assert old in GOOD[8 : 8 + LENGTH].decode()
    return with_header(lambda header: header.replace(old, new, 1))


LABELS = '"labels":{"dtype":"I64","shape":[6],"data_offsets":[0,48]}'
LARGEST = float(np.finfo(np.float32).max)
BAD = {
    "header: a tensor twice": in_header(LABELS, f"{LABELS},{LABELS}"),
    "header: metadata twice": in_header('"__metadata__":', '"__metadata__":{},"__metadata__":'),
    "header: a key of a tensor twice": in_header('"shape":[6]', '"shape":[6],"shape":[6]'),
    "header: a key of a tensor more": in_header('"shape":[6]', '"shape":[6],"strides":[8]'),
    "header: a key of a tensor less": in_header('"shape":[6],', ""),
    "header: a tensor without any": in_header(LABELS, f'{LABELS},"more":{{}}'),
    "header: a tensor that is null": in_header(LABELS, f'{LABELS},"more":null'),
    "header: an empty tensor more": in_header(
        LABELS, f'{LABELS},"more":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "header: five axes": in_header('"shape":[6]', '"shape":[6,1,1,1,1]'),
    "header: a size that is true": in_header('"shape":[6]', '"shape":[true]'),
    "header: a size with a point": in_header('"shape":[6]', '"shape":[6.0]'),
    "header: an offset with a point": in_header('"data_offsets":[0,48]', '"data_offsets":[0,48.0]'),
    "header: NaN": in_header('"shape":[6]', '"shape":[NaN]'),
    "header: other metadata that are no text": in_header('"__metadata__":{', '"__metadata__":{"more":1,'),
    "header: metadata that are a list": in_header('"__metadata__":{', '"more":{'),
    "header: a space before it": with_header(lambda header: " " + header),
    "header: a byte order mark": with_header(lambda header: "\ufeff" + header),
    "header: a zero after it": with_header(lambda header: header + "\0"),
    "header: UTF-16": struct.pack("<Q", 2 * LENGTH) + GOOD[8 : 8 + LENGTH].decode().encode("utf-16-le"),
    "header: not UTF-8": with_header(lambda header: header.replace("ncfmkit", "\udcff")),
    "manifest: NaN": with_text("0.5", "NaN"),
    "manifest: infinity": with_text("0.5", "-Infinity"),
    "manifest: 1e999": with_text("0.5", "1e999"),
    "manifest: a key twice": with_text('"kind": ', '"kind": "synthetic set", "kind": '),
    "manifest: a key twice, deeper": with_text('"factor": ', '"factor": 2, "factor": '),
    "manifest: more after it": container(
        GRAY, {"ncfmkit": with_digests(GOLDENS["single-gray"]().manifest)["ncfmkit"] + " x"}
    ),
    "manifest: a long number": with_text("255", "9" * 5000),
    "manifest: nested 33 deep": with_keys(more=nested(32)),
    "manifest: mean above float32": with_keys(mean=[1e39]),
    "manifest: mean just above float32": with_keys(mean=[float(np.nextafter(LARGEST, 1e39))]),
    "manifest: mean below float32": with_keys(mean=[-1e39]),
    "manifest: mean of an integer": with_keys(mean=[10**39]),
    "manifest: std above float32": with_keys(std=[1e39]),
    "manifest: mean of text": with_keys(mean=["0.5"]),
    "manifest: value range of other types": with_keys(value_range=[False, 255.0]),
    "manifest: value range with a point": with_keys(value_range=[0, 255.0]),
    "manifest: value range that is true": with_keys(value_range=True),
    "manifest: format that is true": with_keys(format=True),
    "manifest: format with a point": with_keys(format=1.0),
    "manifest: a lone surrogate": with_keys(classes=["a", "b", "\ud800"]),
    "manifest: surrogates in wrong order": with_keys(classes=["a", "b", "\udc00\ud800"]),
    "manifest: a long name": with_keys(classes=["a", "b", "c" * 100_001]),
    "manifest: counts with a point": with_keys(ipc={"stored": 2.0, "decoded": 8}),
    "manifest: factor that is true": with_keys(
        decode={"kind": "single", "factor": True, "budget": None}, ipc={"stored": 2, "decoded": 2}
    ),
    "manifest: a huge budget": with_keys(decode={"kind": "bound", "factor": 2, "budget": 2**53 + 1}),
    "manifest: bytes with a point": with_keys(bytes={"labels": 48.0, "images": 216}),
    "manifest: digests in capitals": with_keys(
        sha256={name: hashlib.sha256(tensor.tobytes()).hexdigest().upper() for name, tensor in GRAY.items()}
    ),
    "manifest: null pixels": with_keys(pixels=None),
    "manifest: null labels": with_keys(labels=None),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_neither_reader_takes_a_bad_file(tmp_path: Path, case: str) -> None:
    assert BAD[case] != GOOD
    refused(tmp_path, BAD[case])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"more": nested(31)},
        {"mean": [LARGEST], "std": [LARGEST]},
        {"mean": [-LARGEST], "std": [0]},
        {"classes": ["", "\U0001f63a", "c" * 100_000]},
        {"decode": {"kind": "bound", "factor": 2, "budget": 2**53}, "ipc": {"stored": 2, "decoded": 10}},
    ],
)
def test_both_readers_take_what_is_just_right(tmp_path: Path, keys: dict[str, Any]) -> None:
    file = written(tmp_path, with_keys(**keys))
    ours, theirs = read(file), set_file.load(file)
    expected_manifest = theirs.manifest.to_dict()
    if "training" not in ours.manifest:  # an earlier version's, to which the library adds it
        del expected_manifest["training"], expected_manifest["decode"]["version"]
    assert ours.manifest == expected_manifest
    np.testing.assert_allclose(decoded(ours)[0], theirs.decoded()[0], atol=1e-6)


def peak_of_reading(file: Path) -> int:
    tracemalloc.start()
    try:
        read(file)
    except SetError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("coded", [False, True])
def test_memory_of_reading_half_the_color_is_bounded_by_the_file(tmp_path: Path, bits: int, coded: bool) -> None:
    """So large that what is added to the bound hides little."""
    file, side = tmp_path / "set.safetensors", 1024
    keys = {"ipc": {"stored": 1, "decoded": 1}, "decode": {"kind": "single", "factor": 1, "budget": None}}
    how = {"bits": bits, "scale": "channel", "dither": False, "shape": [3, side, side], "chroma": "4:2:0"}
    manifest = GOLDENS["half-color"]().manifest | keys | {"pixels": how | ({"coding": "lzma"} if coded else {})}
    packed = side * side * 3 // 2 * bits // 8
    planes, levels = np.zeros((2, 6, side // 2, side // 2), np.uint8), np.array([[[0, 255]] * 6], np.uint8)
    pixels = np.zeros((2, packed), np.uint8)
    if coded:
        stream = coding.coded(planes, levels, bits)
        pixels = np.resize(stream, max(len(stream), -(-2 * packed // numpy_reader.SMALLEST_STREAM)))
    file.write_bytes(set_bytes({"labels": np.arange(2), "pixels": pixels, "levels": levels[:, :3]}, manifest))
    bound = 12 * file.stat().st_size + 2**20
    assert peak_of_reading(file) < (16 * bound if coded else bound)


@pytest.mark.parametrize("part", [8, 64, 512])
def test_parts_of_half_the_color_are_restored_alike(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(numpy_reader, "PART", part)
    np.testing.assert_array_equal(read(DATA / "half-color.safetensors").images, GOLDENS["half-color"]().images)


@pytest.mark.parametrize("bits", [None, 2, 3, 8])
def test_memory_of_reading_is_bounded_by_the_file(tmp_path: Path, bits: int | None) -> None:
    file, side = tmp_path / "set.safetensors", 512
    keys = {"ipc": {"stored": 1, "decoded": 1}, "decode": {"kind": "single", "factor": 1, "budget": None}}
    manifest = GOLDENS["quantised-soft"]().manifest | keys
    tensors: dict[str, np.ndarray] = {"labels": np.arange(2)}
    if bits is None:
        manifest = {k: v for k, v in manifest.items() if k != "pixels"} | {"format": 1}
        tensors["images"] = np.zeros((2, 1, side, side), np.uint8)
    else:
        manifest["pixels"] = {"bits": bits, "scale": "channel", "dither": False, "shape": [1, side, side]}
        tensors["pixels"] = np.zeros((2, side * side * bits // 8), np.uint8)
        tensors["levels"] = np.array([[[0, 255]]], np.uint8)
    file.write_bytes(set_bytes(tensors, manifest))
    assert peak_of_reading(file) < (1 if bits is None else 12) * file.stat().st_size + 2**20


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_memory_of_reading_a_stream_is_bounded_by_the_file(tmp_path: Path, bits: int) -> None:
    """Zeros, coded as small as any reader takes them; more of them are refused before they are read."""
    side, ipc = 512, 1
    keys = {"ipc": {"stored": ipc, "decoded": ipc}, "decode": {"kind": "single", "factor": 1, "budget": None}}
    manifest = GOLDENS["coded-color"]().manifest | keys
    manifest["pixels"] = {"bits": bits, "scale": "channel", "dither": False, "shape": [3, side, side], "coding": "lzma"}
    levels = np.array([[[0, 255]] * 3], np.uint8)
    stream = coding.coded(np.zeros((2, 3, side, side), np.uint8), levels, bits)
    tensors = {"labels": np.arange(2), "pixels": stream, "levels": levels}
    file = written(tmp_path, set_bytes(tensors, manifest))
    with pytest.raises(SetError, match="too few for their codes"):
        read(file)
    with pytest.raises(UserError, match="its coded pixels are"):
        set_file.load(file)
    least = 2 * 3 * side * side * bits // 8 // numpy_reader.SMALLEST_STREAM
    tensors["pixels"] = np.resize(stream, least)
    file = written(tmp_path, set_bytes(tensors, manifest))
    assert peak_of_reading(file) < 16 * (12 * file.stat().st_size + 2**20)


@pytest.mark.parametrize("top", [0, 1])
def test_memory_of_reading_labels_is_bounded_by_the_file(tmp_path: Path, top: int) -> None:
    """Of as many classes as any reader takes beside images that small; more of them are refused before."""

    def file_of(classes: int) -> Path:
        manifest = GOLDENS["top-labels"]().manifest | {
            "classes": [str(label) for label in range(classes)],
            "ipc": {"stored": 1, "decoded": 1},
            "decode": {"kind": "single", "factor": 1, "budget": None},
            "labels": {"bits": 4, "top": top},
        }
        rows = label_codes.encode(np.zeros((classes, classes), np.float16), 4, top)
        images = np.zeros((classes, 1, 2, 2), np.uint8)
        tensors: dict[str, np.ndarray] = {"labels": np.arange(classes), "images": images, "soft_labels": rows}
        return written(tmp_path, set_bytes(tensors, manifest))

    most = 480 if top else 1000  # 8 + 4 + 2 + 1 bytes of an image, 64 times; without a top there is no limit
    file = file_of(most)
    assert read(file).soft_labels.shape == (most, most)  # type: ignore[union-attr]
    assert set_file.load(file).soft_labels.shape == (most, most)  # type: ignore[union-attr]
    assert peak_of_reading(file) < (12 + numpy_reader.MOST_RESTORED) * file.stat().st_size + 2**20
    if top:
        with pytest.raises(SetError, match="too few for its soft labels"):
            read(file_of(most + 1))
        with pytest.raises(UserError, match=r"its soft labels are .* too many for tensors of"):
            set_file.load(file)


@pytest.mark.parametrize(
    "text",
    ['{"a":[' + "{}," * 2**15 + "0]}", '{"a":[' + '{"":{}},' * 2**14 + "0]}", '{"a":' + "[" * 2**17,
     "{" + ",".join(f'"{i:x}":[]' for i in range(2**14)) + "}"],
)  # fmt: skip
def test_memory_of_a_hostile_header_is_bounded(tmp_path: Path, text: str) -> None:
    for content in (text, json.dumps({"__metadata__": {"ncfmkit": text}})):
        file = written(tmp_path, struct.pack("<Q", len(content)) + content.encode())
        assert peak_of_reading(file) < 64 * len(content) + 2**20


def test_a_huge_shape_takes_no_memory(tmp_path: Path) -> None:
    assert peak_of_reading(written(tmp_path, entry(f"[{2**40}]", f"[0,{2**43}]"))) < 2**20


UNTOUCHED = {name: read(DATA / f"{name}.safetensors") for name in GOLDENS}


def check_same(got: NumpySet, expected: NumpySet) -> None:
    np.testing.assert_array_equal(got.images, expected.images)
    np.testing.assert_array_equal(got.labels, expected.labels)
    np.testing.assert_array_equal(got.soft_labels, expected.soft_labels)
    assert got.manifest == expected.manifest


def random_bytes_change(folder: Path, name: str, examples: int) -> None:
    expected = UNTOUCHED[name]

    @settings(max_examples=examples, **HUNT)
    @given(mutated((DATA / f"{name}.safetensors").read_bytes()))
    def hunt(content: bytes) -> None:
        try:
            got = read(written(folder, content))
        except SetError:
            return
        check_same(got, expected)

    hunt()


def random_manifest_change(folder: Path, name: str, examples: int) -> None:
    """The digest is right again: what is read has the new manifest, the same tensors, and decodes."""
    expected = UNTOUCHED[name]
    reached = set()

    @settings(max_examples=examples, **HUNT)
    @given(mutated_json(expected.manifest))
    def hunt(manifest: dict[str, Any]) -> None:
        assume(all(isinstance(key, str) for key in manifest))
        metadata = with_digests(manifest)
        try:
            got = read(written(folder, container(TENSORS[name], metadata)))
        except SetError as error:
            reached.add(str(error).split(": ", 1)[1][:20])
            with pytest.raises(UserError):
                set_file.load(folder / "set.safetensors")
            return
        check_same(got, NumpySet(**(vars(expected) | {"manifest": json.loads(metadata["ncfmkit"])})))
        images, labels = decoded(got)
        assert len(images) == len(labels) == got.manifest["ipc"]["decoded"] * len(got.manifest["classes"])

    hunt()
    assert len(reached) > 15  # the inner checks, not one outer one


@pytest.mark.parametrize("hunt", [random_bytes_change, random_manifest_change])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, hunt: Callable[[Path, str, int], None]) -> None:
    hunt(tmp_path, "quantised-soft", FEW)


def test_random_streams_are_refused_or_harmless(tmp_path: Path) -> None:
    """The digest of the damaged stream is right: both readers refuse it, or read the same codes."""
    golden, refused = GOLDENS["coded-color"](), 0
    assert golden.stream is not None

    @settings(max_examples=FEW, **HUNT)
    @given(mutated(golden.stream.tobytes()))
    def hunt(stream: bytes) -> None:
        nonlocal refused
        damaged = dataclasses.replace(golden, stream=np.frombuffer(stream, np.uint8))
        file = written(tmp_path, damaged.content())
        try:
            got = read(file)
        except SetError:
            refused += 1
            with pytest.raises(UserError):
                set_file.load(file)
            return
        check_equal(got, set_file.load(file))

    hunt()
    assert refused > FEW / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("hunt", [random_bytes_change, random_manifest_change])
def test_much_random_damage(tmp_path: Path, hunt: Callable[[Path, str, int], None], name: str) -> None:
    hunt(tmp_path, name, MANY)
