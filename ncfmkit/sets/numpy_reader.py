"""Reads a distilled set without ncfmkit: this file needs only Python 3.11, its standard library and numpy.

Copy it into your own project: SPDX-License-Identifier: Apache-2.0. The format is specified in ncfmkit's
docs/formats.md; all checks listed there are made, and nothing in a file is ever executed.

    stored = read("synthetic.safetensors")
    images, labels = decoded(stored)  # float32 in [0, 1], int64; or normalized(stored)

Axes: N stored images, M of them per class, K classes, P cells of a stored image, D decoded images, C channels, H = W.
Memory: `read` takes at most 12 times the bytes of the tensors, 64 times those of the JSON header and 1 MiB; without
quantized pixels, once those of the tensors; with coded ones, 16 times as much and 16 MiB; with soft labels in fewer
bits, 64 times those of the tensors more.
"""

import hashlib
import json
import lzma
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np

LARGEST_HEADER = 16 * 2**20  # bytes
DEEPEST = 32  # lists and objects inside each other
MOST_AXES = 4
LARGEST_SIDE = 16384  # pixels
LARGEST_FACTOR = 64
PART = 1 << 15  # codes unpacked at once; a multiple of 8, so that parts begin with whole bytes
SMALLEST_STREAM = 16  # coded pixels are at least this part of their codes' bits
MOST_MEMORY = 16 << 20  # bytes that decoding a stream may take
LOWEST_LOGIT = 16  # below the largest one of an image, of soft labels in fewer bits
MOST_NAMED = 2**16  # classes
MOST_RESTORED = 64  # soft labels in fewer bits, as float16, are at most so many times the tensors' bytes
WIDTHS = {"U8": 1, "F16": 2, "I64": 8}  # bytes
NUMPY_TYPES = {"U8": "u1", "F16": "<f2", "I64": "<i8"}
LARGEST_NUMBER = float(np.finfo(np.float32).max)
LONGEST_TEXT = 100_000  # characters


class SetError(ValueError):
    """The file is not a distilled set, is damaged, or has a format that is not known here."""


@dataclass(frozen=True, kw_only=True)
class NumpySet:
    """A distilled set as it is stored.

    Attributes:
        images: uint8 `[N, C, H, W]`, sorted by class; restored where their pixels are kept in fewer bits.
        labels: int64 `[N]`.
        soft_labels: float16 `[D, K]`, logits of every decoded image, or none; restored where kept in fewer bits.
        manifest: what the file says about itself.
    """

    images: np.ndarray
    labels: np.ndarray
    soft_labels: np.ndarray | None
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a tensor's bytes are, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read(path: str | os.PathLike[str]) -> NumpySet:
    """The set in a file, with every digest, shape and count checked.

    Raises:
        OSError: no such file, or it cannot be read.
        SetError: anything is wrong with what it holds.
    """
    # read and not mapped: a mapped file that another process shortens would end this one
    with open(path, "rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except SetError as error:
            raise SetError(f"{os.fspath(path)} is no distilled set, or a damaged one: {error}") from None


def _read(file: BufferedReader, size: int) -> NumpySet:
    begin, header = _header(file, size)
    spans = _spans(header, size - begin)
    manifest = _manifest(header.get("__metadata__"))
    _check_manifest(manifest)
    _check_tensors(manifest, spans)
    tensors = {name: _tensor(file, begin, name, span, manifest) for name, span in spans.items()}
    labels, soft_labels = tensors["labels"], tensors.get("soft_labels")
    _need(np.array_equal(labels, _expected_labels(manifest)), "its labels are not M of each class, sorted")
    if soft_labels is not None and "labels" in manifest:
        soft_labels = _restored_labels(soft_labels, len(manifest["classes"]), manifest["labels"])
    _need(soft_labels is None or bool(np.isfinite(soft_labels).all()), "its soft labels are not all finite")
    images = tensors["images"] if "images" in tensors else _restored(tensors, manifest["pixels"])
    return NumpySet(images=images, labels=labels, soft_labels=soft_labels, manifest=manifest)


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SetError(otherwise)


def _is_count(value: Any, least: int = 1, most: int = 2**53) -> bool:
    return type(value) is int and least <= value <= most


def _header(file: BufferedReader, size: int) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes begin, and the header."""
    length = int.from_bytes(file.read(8), "little")
    _need(size >= 8 and length <= size - 8, f"a header of {length} bytes does not fit into a file of {size}")
    _need(length <= LARGEST_HEADER, f"a header of {length} bytes, expected {LARGEST_HEADER} at most")
    content = file.read(length)
    _need(content[:1] == b"{", "no safetensors header")
    try:
        return 8 + length, _json(content.decode(), "its header")
    except UnicodeDecodeError as error:
        raise SetError(f"its header is not UTF-8 ({error})") from None


def _json(text: str, what: str) -> dict[str, Any]:
    """A JSON object: no key twice, every number finite, not nested too deeply."""
    try:
        value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise SetError(f"{what} is not JSON as it should be ({error})") from None
    _need(isinstance(value, dict), f"{what} is not a JSON object")
    layer: list[Any] = [value]
    for _ in range(DEEPEST):
        layer = [child for parent in layer for child in _children(parent)]
    _need(not layer, f"{what} is nested more than {DEEPEST} deep")
    return value


def _children(value: Any) -> Iterable[Any]:
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in found if isinstance(child, dict | list))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    _need(len(table) == len(pairs), "a key comes twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    _need(math.isfinite(number), f"{text[:20]} is not a finite number")
    return number


def _spans(header: dict[str, Any], size: int) -> dict[str, _Span]:
    """Every tensor's place; together they cover the `size` bytes after the header, once."""
    spans = {name: _span(name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 0
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)):
        _need(span.start == end, f"tensor {reprlib.repr(name)} begins at byte {span.start}, expected {end}")
        end = span.stop
    _need(end == size, f"its tensors end at byte {end} of {size} (truncated, or something was added)")
    return spans


def _span(name: str, entry: Any) -> _Span:
    fault = f"tensor {reprlib.repr(name)} is described by {reprlib.repr(entry)}"
    _need(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}, fault)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _need(isinstance(dtype, str) and dtype in WIDTHS, f"{fault}: expected a dtype of {', '.join(WIDTHS)}")
    # few sizes, and none of thousands of digits: their product is a moment's work
    sizes = isinstance(shape, list) and len(shape) <= MOST_AXES and all(_is_count(s, 0) for s in shape)
    _need(sizes, f"{fault}: expected a shape of at most {MOST_AXES} sizes")
    _need(isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(o, 0) for o in offsets), fault)
    _need(offsets[1] - offsets[0] == math.prod(shape) * WIDTHS[dtype], f"{fault}: as many bytes as its shape has")
    return _Span(dtype, tuple(shape), offsets[0], offsets[1])


def _tensor(file: BufferedReader, begin: int, name: str, span: _Span, manifest: dict[str, Any]) -> np.ndarray:
    file.seek(begin + span.start)
    content = np.empty(span.stop - span.start, np.uint8)
    _need(file.readinto(content.data) == len(content), "it became shorter while it was read")
    _need(hashlib.sha256(content.data).hexdigest() == manifest["sha256"][name], f"the sha256 of {name!r} is another")
    tensor = content.view(NUMPY_TYPES[span.dtype]).reshape(span.shape)
    return tensor.astype(tensor.dtype.newbyteorder("="), copy=False)


def _manifest(metadata: Any) -> dict[str, Any]:
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    _need(texts and "ncfmkit" in metadata, "a safetensors file without the manifest 'ncfmkit'")
    manifest = _json(metadata["ncfmkit"], "its manifest")
    kind, number = manifest.get("kind"), manifest.get("format")
    _need(kind == "synthetic set", f"its kind is {reprlib.repr(kind)}, not 'synthetic set'")
    _need(_is_count(number, most=4), f"its format is {reprlib.repr(number)}, this reader knows 1, 2, 3 and 4")
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    _need(manifest.get("manifest_sha256") == digest, "the sha256 of its manifest is not the one stored in it")
    return manifest


def _check_manifest(m: dict[str, Any]) -> None:
    """What a reader relies on; who made the set, of what and how is not looked at."""
    _need(_is_names(m.get("classes")), "'classes' are not two or more different names")
    _need(_is_value_range(m.get("value_range")), "'value_range' is not [0, 255]")
    _need(_is_statistics(m.get("mean")) and _is_statistics(m.get("std")), "'mean' or 'std' are not 1 or 3 numbers")
    _need(len(m["mean"]) == len(m["std"]) and min(m["std"]) >= 0, "'std' does not fit 'mean', or is negative")
    _need(_is_decode(m.get("decode")), "'decode' is not a version, kind, factor and budget that are known")
    ipc = m.get("ipc")
    counts = isinstance(ipc, dict) and all(_is_count(ipc.get(key)) for key in ("stored", "decoded"))
    _need(counts, "'ipc' are not two counts, 'stored' and 'decoded'")
    told, given = m["ipc"]["decoded"], decoded_per_class(m)
    _need(told == given, f"'ipc' tells {told} decoded images per class, its decoding gives {given}")
    known = "pixels" not in m or _is_pixels(m["pixels"])
    _need(known, "'pixels' are not bits, scale, dither, shape, chroma and coding that are known")
    known = "labels" not in m or _is_labels(m["labels"], len(m["classes"]))
    _need(known, "'labels' are not bits and a top below the number of classes that are known")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and not re.search("[\ud800-\udfff]", value)


def _is_value_range(value: Any) -> bool:
    return value == [0, 255] and all(type(end) is int for end in value)


def _is_statistics(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(_is_number(number) for number in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def _is_decode(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("kind") not in ("single", "multi", "bound"):
        return False
    unbounded = "budget" in value and value["budget"] is None
    if not _is_count(value.get("version", 1), most=1):
        return False
    budget = unbounded or (value["kind"] == "bound" and _is_count(value.get("budget")))
    return budget and _is_count(value.get("factor"), most=LARGEST_FACTOR)


def _is_pixels(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list) or len(value["shape"]) != 3:
        return False
    sides = all(_is_count(side, most=LARGEST_SIDE) for side in value["shape"])
    known = value.get("scale") in ("channel", "image") and type(value.get("dither")) is bool
    known = known and value.get("coding") in (None, "lzma") and value.get("chroma") in (None, "4:2:0")
    if known and sides and value.get("chroma"):
        known = value["shape"][0] == 3 and value["shape"][1] % 4 == 0
    return sides and known and _is_count(value.get("bits"), 2, 8)


def _is_labels(value: Any, classes: int) -> bool:
    if not isinstance(value, dict) or not _is_count(value.get("bits"), 4, 8) or value["bits"] % 4:
        return False
    return _is_count(value.get("top"), 0, classes - 1 if classes <= MOST_NAMED else 0)


def _factors(decode: Mapping[str, Any]) -> tuple[int, ...]:
    """The factors that every stored image is cut by, in order."""
    largest = decode["factor"]
    if decode["kind"] == "single":
        return (largest,)
    return tuple(range(1, largest + 1)) if decode["kind"] == "multi" else tuple(range(largest, 0, -1))


def _budget(m: Mapping[str, Any]) -> int:
    """Decoded images of a class, if there are as many."""
    if m["decode"]["kind"] != "bound":
        return m["ipc"]["stored"] * sum(f * f for f in _factors(m["decode"]))
    return m["decode"]["budget"] or m["ipc"]["stored"] * m["decode"]["factor"] ** 2


def decoded_per_class(m: Mapping[str, Any]) -> int:
    return min(_budget(m), m["ipc"]["stored"] * sum(f * f for f in _factors(m["decode"])))


def _check_tensors(m: dict[str, Any], spans: dict[str, _Span]) -> None:
    """Names, dtypes, shapes and sizes against the manifest."""
    names = {"labels"} | ({"pixels", "levels"} if "pixels" in m else {"images"}) | ({"soft_labels"} & spans.keys())
    _need(spans.keys() == names, f"its tensors are {reprlib.repr(sorted(spans))}, expected {sorted(names)}")
    _need("labels" not in m or "soft_labels" in names, "'labels' of a set without soft labels")
    how = m.get("pixels", {})
    coded = "labels" in m or how.get("coding")
    expected = 4 if how.get("chroma") else 3 if coded else 1 if names == {"labels", "images"} else 2
    _need(m["format"] == expected, "its format does not fit its tensors")
    for key in ("sha256", "bytes"):
        _need(isinstance(m.get(key), dict) and m[key].keys() == names, f"'{key}' lists other tensors")
    for name, (dtype, shape) in _expected_tensors(m, spans).items():
        found = spans[name]
        wrong = f"tensor {name!r} is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}"
        _need((found.dtype, found.shape) == (dtype, shape), wrong)
        size = m["bytes"][name]
        _need(type(size) is int and size == found.stop - found.start, f"'bytes' tells another size of {name!r}")


def _expected_tensors(m: dict[str, Any], spans: dict[str, _Span]) -> dict[str, tuple[str, tuple[int, ...]]]:
    quantized = m.get("pixels")
    image = tuple(quantized["shape"]) if quantized else spans["images"].shape[1:]
    good = len(image) == 3 and image[0] == len(m["mean"]) and m["decode"]["factor"] <= image[1] == image[2]
    _need(good and image[1] <= LARGEST_SIDE, f"images of {list(image)} do not fit the mean and the factor")
    classes, count = len(m["classes"]), len(m["classes"]) * m["ipc"]["stored"]
    if not quantized:
        expected: dict[str, tuple[str, tuple[int, ...]]] = {"images": ("U8", (count, *image))}
    else:
        packed = -(-math.prod(_planes(quantized)) * quantized["bits"] // 8)
        groups = 1 if quantized["scale"] == "channel" else count
        expected = {"pixels": ("U8", (count, packed)), "levels": ("U8", (groups, image[0], 2))}
        if quantized.get("coding"):
            size = spans["pixels"].stop - spans["pixels"].start
            _need(size * SMALLEST_STREAM >= count * packed, f"coded pixels of {size} bytes are too few for their codes")
            expected["pixels"] = ("U8", (size,))
    if "soft_labels" in spans:
        rows = classes * m["ipc"]["decoded"]
        expected["soft_labels"] = ("F16", (rows, classes))
        if "labels" in m:
            size = max(span.stop for span in spans.values())
            fits = 2 * rows * classes <= MOST_RESTORED * size
            _need(fits, f"tensors of {size} bytes are too few for its soft labels")
            expected["soft_labels"] = ("U8", (rows, _label_bytes(classes, m["labels"])))
    return expected | {"labels": ("I64", (count,))}


def _expected_labels(m: dict[str, Any]) -> np.ndarray:
    return np.repeat(np.arange(len(m["classes"])), m["ipc"]["stored"])


def _label_bytes(classes: int, how: Mapping[str, int]) -> int:
    """Bytes of the soft label of an image: numbers of classes, then codes."""
    top = how["top"]
    return _name_bytes(classes) * top + ((top or classes) * how["bits"] + 7) // 8


def _name_bytes(classes: int) -> int:
    return 1 if classes <= 256 else 2


def _restored_labels(stored_DB: np.ndarray, classes: int, how: Mapping[str, int]) -> np.ndarray:
    """Soft labels in fewer bits back to logits, float16 `[D, K]`; the largest one of each image is 0."""
    bits, top = how["bits"], how["top"]
    last, begin, count = 2**bits - 1, _name_bytes(classes) * top, top or classes
    logit_of_code = (0 - LOWEST_LOGIT * np.arange(last + 1) ** 2 / last**2).astype(np.float16)
    _need(count * bits % 8 == 0 or not (stored_DB[:, -1] & 15).any(), "bits after its last soft label are not 0")
    logits_DK = np.empty((len(stored_DB), classes), np.float16)
    for row_B, logits_K in zip(stored_DB, logits_DK, strict=True):
        logits = logit_of_code[_codes(row_B[begin:], count, bits)]
        if not top:
            _need(bool((logits == 0).any()), "a soft label has no class of code 0")
            logits_K[:] = logits
            continue
        # the classes that are named, the first one with code 0; the last code is that of all others
        names = np.frombuffer(row_B[:begin].tobytes(), f"<u{_name_bytes(classes)}")
        _need(int(names.max()) < classes, "a soft label names a class that there is not")
        logits_K[:] = logits[-1]
        logits_K[names[0]], logits_K[names[1:]] = 0, logits[:-1]
        likeliest = np.argsort(-logits_K, kind="stable")[:top]
        _need(np.array_equal(likeliest, names), "the classes of a soft label are not its likeliest ones in order")
    return logits_DK


def _planes(how: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of an image's codes: of it, or of the four lumas of each 2 x 2 pixels, Cb and Cr."""
    channels, side, _ = how["shape"]
    return (6, side // 2, side // 2) if how.get("chroma") else (channels, side, side)


def _restored(tensors: Mapping[str, np.ndarray], how: dict[str, Any]) -> np.ndarray:
    """Codes back to bytes, uint8 `[N, C, H, W]`."""
    levels_GC2, bits, shape = tensors["levels"], how["bits"], (len(tensors["labels"]), *_planes(how))
    low_GC, high_GC = (levels_GC2[..., end].astype(np.int64) for end in (0, 1))
    _need(bool((high_GC - low_GC >= 2**bits - 1).all()), "its levels are nearer to each other than its bits allow")
    of_codes: Iterable[np.ndarray] = (_uncoded if how.get("coding") else _unpacked)(tensors["pixels"], shape, bits)
    images_NCHW = np.empty((shape[0], *how["shape"]), np.uint8)
    for n, codes_CHW in enumerate(of_codes):
        for c, codes_HW in enumerate(codes_CHW):
            g, of = n % len(levels_GC2), max(0, c - 3) if how.get("chroma") else c
            table = _value_of_code(int(low_GC[g, of]), int(high_GC[g, of]), bits)
            codes_HW[:] = np.frombuffer(codes_HW.tobytes().translate(table), np.uint8).reshape(codes_HW.shape)
        if how.get("chroma"):
            _color(codes_CHW, images_NCHW[n])
        else:
            images_NCHW[n] = codes_CHW
    return images_NCHW


def _color(planes_6hw: np.ndarray, image_3HW: np.ndarray) -> None:
    """Writes red, green and blue of luma and color differences (BT.601, full range, in whole numbers)."""
    _, height, width = image_3HW.shape
    rows = max(1, PART // 8 // width)
    for top in range(0, height // 2, rows):
        part_6hw = planes_6hw[:, top : top + rows].astype(np.int32)
        luma_HW = part_6hw[:4].reshape(2, 2, -1, width // 2).transpose(2, 0, 3, 1).reshape(-1, width)
        blue_HW, red_HW = (part_6hw[4:] - 128).repeat(2, axis=1).repeat(2, axis=2)
        added_3HW = np.stack([91881 * red_HW, -22554 * blue_HW - 46802 * red_HW, 116130 * blue_HW])
        image_3HW[:, 2 * top : 2 * (top + rows)] = np.clip(luma_HW + ((added_3HW + 32768) >> 16), 0, 255)


def _unpacked(packed_NB: np.ndarray, shape: tuple[int, ...], bits: int) -> Iterator[np.ndarray]:
    """Packed codes, uint8 `[C, H, W]` of image after image."""
    values = math.prod(shape[1:])
    unused = packed_NB.shape[1] * 8 - values * bits
    _need(not (packed_NB[:, -1] & (2**unused - 1)).any(), "bits after its last pixel are not 0")
    for packed_B in packed_NB:
        yield _codes(packed_B, values, bits).reshape(shape[1:])


def _uncoded(stream: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """The codes in an LZMA stream, uint8 `[N, C, H, W]`: two bits of every code at a time, the upper ones first."""
    codes_NCHW, (count, channels, height, width) = np.zeros(shape, np.uint8), shape
    source = _Stream(stream.tobytes())
    for left in range(bits, 0, -2):
        used = min(2, left)  # bits of every code
        if channels != 6:
            for codes_CHW in codes_NCHW:
                values_CHW = _next_values(source, codes_CHW.shape, used, 6 if channels == 3 else 4)
                codes_CHW[:] = codes_CHW << used | values_CHW
            continue
        for codes_CHW in codes_NCHW:  # the luma of all images, a byte holds 2 x 2 pixels
            codes_CHW[:4] = codes_CHW[:4] << used | _next_values(source, (4, height, width), used, 8)
        for c in (4, 5):  # then Cb, then Cr, likewise
            for n in range(count):
                values_4hw = _next_values(source, (4, height // 2, width // 2), used, 8)
                values_HW = values_4hw.reshape(2, 2, height // 2, -1).transpose(2, 0, 3, 1).reshape(height, width)
                codes_NCHW[n, c] = codes_NCHW[n, c] << used | values_HW
    source.end()
    return codes_NCHW


def _next_values(source: "_Stream", shape: tuple[int, ...], used: int, of_byte: int) -> np.ndarray:
    """The next values of a stream, of `used` bits each in the lowest `of_byte` bits of the bytes, uint8 `[C, H, W]`."""
    (channels, height, width), count, values = shape, math.prod(shape), of_byte // used
    shifts = used * np.arange(values, dtype=np.uint8)[::-1]
    bytes_S = np.frombuffer(source.read(-(-count // values)), np.uint8)
    _need(int(bytes_S.max()) < 2 ** (used * values), "bits are set in its coded pixels that belong to no value")
    value_V = (bytes_S[:, None] >> shifts).ravel() & (2**used - 1)
    _need(not value_V[count:].any(), "bits after its last pixel are not 0")
    return value_V[:count].reshape(height, width, channels).transpose(2, 0, 1)


class _Stream:
    """What an LZMA stream holds, as many bytes as are asked for."""

    def __init__(self, content: bytes):
        self.decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MOST_MEMORY)
        self.content = content

    def read(self, count: int) -> bytes:
        pieces: list[bytes] = []
        while count:
            pieces.append(self._more(count))
            _need(bool(pieces[-1]), "its coded pixels end early")
            count -= len(pieces[-1])
        return b"".join(pieces)

    def end(self) -> None:
        whole = not self._more(1) and self.decoder.eof and not self.decoder.unused_data
        _need(whole, "its coded pixels go on after the last image, or have no end")

    def _more(self, most: int) -> bytes:
        if self.decoder.eof:
            return b""
        content, self.content = self.content, b""
        try:
            return self.decoder.decompress(content, most)
        except lzma.LZMAError as error:
            raise SetError(f"its coded pixels are damaged ({error})") from None


def _codes(packed_B: np.ndarray, count: int, bits: int) -> np.ndarray:
    """`count` codes of `bits` bits, most significant bit first, uint8."""
    codes, weights = np.empty(count, np.uint8), (1 << np.arange(bits)[::-1]).astype(np.uint8)
    for start in range(0, count, PART):
        stop = min(start + PART, count)
        part_B = packed_B[start * bits // 8 : -(-stop * bits // 8)]
        codes[start:stop] = np.unpackbits(part_B, count=(stop - start) * bits).reshape(-1, bits) @ weights
    return codes


def _value_of_code(low: int, high: int, bits: int) -> bytes:
    """256 bytes: at place q the value of code q."""
    steps = 2**bits - 1
    return bytes(low + (2 * q * (high - low) + steps) // (2 * steps) for q in range(steps + 1)).ljust(256, b"\0")


def decoded(stored: NumpySet) -> tuple[np.ndarray, np.ndarray]:
    """The images to train on: float32 in [0, 1] `[D, C, H, W]`, and their labels, int64 `[D]`.

    In the order of the soft labels: stored image by stored image, factor by factor, cell by cell.
    """
    m, (count, channels, side, _) = stored.manifest, stored.images.shape
    factors, keep_MP = _factors(m["decode"]), _kept(m)
    weights = {f: _weights(math.ceil(side / f), side) for f in factors}
    kept_N = np.tile(keep_MP.sum(1), len(m["classes"]))
    ends_N = np.cumsum(kept_N)
    images_DCHW = np.empty((ends_N[-1], channels, side, side), np.float32)
    for n in range(count):
        image_CHW = stored.images[n].astype(np.float32) / 255
        cells_PCHW = np.concatenate([_cut(image_CHW, f, weights[f]) for f in factors])
        images_DCHW[ends_N[n] - kept_N[n] : ends_N[n]] = cells_PCHW[keep_MP[n % len(keep_MP)]]
    return images_DCHW, np.repeat(stored.labels, kept_N)


def normalized(stored: NumpySet) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`decoded`, the images less the manifest's mean and divided by its std, channel by channel."""
    images_DCHW, labels_D = decoded(stored)
    mean_C, std_C = (np.array(stored.manifest[k], np.float32)[:, None, None] for k in ("mean", "std"))
    images_DCHW -= mean_C
    images_DCHW /= np.maximum(std_C, np.float32(1e-6))  # of a channel that never changes
    return images_DCHW, labels_D


def _kept(m: Mapping[str, Any]) -> np.ndarray:
    """Which cells of the M images of a class count, bool `[M, P]`: the first up to the budget, factor by factor."""
    stored, left, columns = m["ipc"]["stored"], _budget(m), []
    for f in _factors(m["decode"]):
        columns.append(np.arange(stored * f * f).reshape(stored, f * f) < left)
        left -= stored * f * f
    return np.concatenate(columns, axis=1)


def _cut(image_CHW: np.ndarray, factor: int, weights: np.ndarray) -> np.ndarray:
    """The factor * factor cells of an image, row by row, enlarged to the full side `[P, C, H, W]`."""
    if factor == 1:
        return image_CHW[None]
    (channels, side, _), cell = image_CHW.shape, weights.shape[1]
    fill = (0, cell * factor - side)
    padded = np.pad(image_CHW, ((0, 0), fill, fill), constant_values=0.5)
    grid = padded.reshape(channels, factor, cell, factor, cell).transpose(1, 3, 0, 2, 4)
    return weights @ grid.reshape(factor * factor, channels, cell, cell) @ weights.T


def _weights(cell: int, side: int) -> np.ndarray:
    """Bilinear interpolation from `cell` to `side` pixels as a matrix, float32 `[side, cell]`."""
    place = np.clip((np.arange(side) + 0.5) * cell / side - 0.5, 0, cell - 1)
    low, rows = place.astype(np.int64), np.arange(side)
    weights = np.zeros((side, cell), np.float32)
    weights[rows, low] = 1 - (place - low)
    weights[rows, np.minimum(low + 1, cell - 1)] += place - low
    return weights
