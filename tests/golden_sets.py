"""Golden files of the set's format, and the plain reference that they are made with: loops, float64, no ncfmkit.

`python tests/golden_sets.py` writes them to tests/data; their bytes are pinned in tests/sets/test_numpy_reader.py.
"""

import base64
import hashlib
import json
import lzma
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
DTYPES = {"uint8": "U8", "float16": "F16", "int64": "I64"}


def container(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A safetensors file: the widest numbers first, then by name."""
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        content = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def with_digests(manifest: dict[str, Any]) -> dict[str, str]:
    """The metadata of a manifest, its digest computed anew."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"ncfmkit": json.dumps(rest | {"manifest_sha256": digest}, sort_keys=True)}


def set_bytes(tensors: dict[str, np.ndarray], manifest: dict[str, Any]) -> bytes:
    """The file of a set with these tensors; the manifest gets their sizes and digests."""
    facts = {
        "bytes": {name: tensor.nbytes for name, tensor in tensors.items()},
        "sha256": {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()},
    }
    return container(tensors, with_digests(facts | manifest))


def pack(codes_NCHW: np.ndarray, bits: int) -> np.ndarray:
    """Codes as bits, uint8 `[N, bytes]`, by way of text."""
    rows = []
    for image in codes_NCHW:
        text = "".join(f"{int(code):0{bits}b}" for code in image.flat)
        text += "0" * (-len(text) % 8)
        rows.append([int(text[i : i + 8], 2) for i in range(0, len(text), 8)])
    return np.array(rows, np.uint8)


def stream_bytes(codes_NCHW: np.ndarray, bits: int) -> bytes:
    """What the LZMA stream of codes holds, value by value; six channels are those of :func:`half_color_planes`."""
    (n, channels, height, width), content = codes_NCHW.shape, bytearray()
    pixels = [(y, x) for y in range(height) for x in range(width)]
    blocks = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    layers = [[(c, y, x) for y, x in pixels for c in range(channels)]]
    if channels == 6:
        layers = [[(c, y, x) for y, x in pixels for c in range(4)]]
        layers += [[(c, y + dy, x + dx) for y, x in blocks for dy in (0, 1) for dx in (0, 1)] for c in (4, 5)]
    for upper in range(bits, 0, -2):
        used = min(2, upper)
        in_a_byte = {1: 4, 3: 6, 6: 8}[channels] // used
        for places in layers:
            for image in range(n):
                values = [int(codes_NCHW[image][place]) >> (upper - used) & (2**used - 1) for place in places]
                values += [0] * (-len(values) % in_a_byte)
                for start in range(0, len(values), in_a_byte):
                    content.append(int("".join(f"{value:0{used}b}" for value in values[start : start + in_a_byte]), 2))
    return bytes(content)


def rounded_part(number: int, of: int) -> int:
    """number / of, rounded to nearest, halves up."""
    return math.floor(Fraction(number, of) + Fraction(1, 2))


def half_color_planes(images_NCHW: np.ndarray) -> np.ndarray:
    """Luma of each 2 x 2 pixels, Cb and Cr, uint8 `[N, 6, H / 2, W / 2]`, value by value in exact fractions."""
    n, _, height, width = images_NCHW.shape
    planes = np.zeros((n, 6, height // 2, width // 2), np.uint8)
    for i, y, x in np.ndindex(n, height, width):
        red, green, blue = (int(value) for value in images_NCHW[i, :, y, x])
        planes[i, 2 * (y % 2) + x % 2, y // 2, x // 2] = rounded_part(19595 * red + 38470 * green + 7471 * blue, 65536)
    for i, y, x in np.ndindex(n, height // 2, width // 2):
        block = images_NCHW[i, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(3, 4).astype(int)
        red, green, blue = (int(values.sum()) for values in block)
        differences = -11059 * red - 21709 * green + 32768 * blue, 32768 * red - 27439 * green - 5329 * blue
        for c, difference in enumerate(differences):
            planes[i, 4 + c, y, x] = min(255, max(0, 128 + rounded_part(difference, 4 * 65536)))
    return planes


def half_color_images(planes_N6hw: np.ndarray) -> np.ndarray:
    """Red, green and blue of such planes, uint8 `[N, 3, H, W]`, pixel by pixel in exact fractions."""
    n, _, height, width = planes_N6hw.shape
    images = np.zeros((n, 3, 2 * height, 2 * width), np.uint8)
    for i, y, x in np.ndindex(n, 2 * height, 2 * width):
        luma = int(planes_N6hw[i, 2 * (y % 2) + x % 2, y // 2, x // 2])
        blue, red = (int(value) - 128 for value in planes_N6hw[i, 4:, y // 2, x // 2])
        added = 91881 * red, -22554 * blue - 46802 * red, 116130 * blue
        images[i, :, y, x] = [min(255, max(0, luma + rounded_part(value, 65536))) for value in added]
    return images


def restore(codes_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """The values of codes, value by value in floating point (there are no ties: 2**bits - 1 is odd)."""
    values = np.zeros(codes_NCHW.shape, np.uint8)
    for n, c, y, x in np.ndindex(codes_NCHW.shape):
        low, high = (int(level) for level in levels_GC2[n % len(levels_GC2), c])
        values[n, c, y, x] = math.floor(low + int(codes_NCHW[n, c, y, x]) * (high - low) / (2**bits - 1) + 0.5)
    return values


def label_rows(logits_DK: np.ndarray, bits: int, top: int) -> np.ndarray:
    """Soft labels in fewer bits, uint8 `[D, bytes]`, logit by logit, by way of text."""
    rows, last = [], 2**bits - 1
    for row in logits_DK.astype(np.float64).tolist():
        below = [max(row) - logit for logit in row]
        codes = [_label_code(value, last) for value in below]
        names: list[int] = []
        if top:
            named = sorted(range(len(row)), key=lambda k: (below[k], k))[:top]
            mean = sum(math.exp(-below[k]) for k in range(len(row)) if k not in named) / (len(row) - top)
            others = _label_code(-math.log(mean), last) if mean else last
            codes = [codes[k] if k in named else others for k in range(len(row))]
            names = sorted(range(len(row)), key=lambda k: (codes[k], k))[:top]
            codes = [codes[k] for k in names[1:]] + [others]
        text = "".join(f"{code:0{bits}b}" for code in codes)
        text += "0" * (-len(text) % 8)
        width = 1 if len(row) <= 256 else 2
        named_bytes = b"".join(name.to_bytes(width, "little") for name in names)
        rows.append(list(named_bytes) + [int(text[i : i + 8], 2) for i in range(0, len(text), 8)])
    return np.array(rows, np.uint8)


def _label_code(below: float, last: int) -> int:
    """There are no ties: none of the middles is a multiple of a power of two."""
    return math.floor(last * math.sqrt(min(below, 16) / 16) + 0.5)


def restored_labels(rows_DB: np.ndarray, classes: int, bits: int, top: int) -> np.ndarray:
    """What such rows stand for, float16 `[D, K]`."""
    logits = []
    for row in rows_DB:
        width = 1 if classes <= 256 else 2
        names = [int.from_bytes(row[i : i + width].tobytes(), "little") for i in range(0, top * width, width)]
        text = "".join(f"{int(byte):08b}" for byte in row[top * width :])
        codes = [int(text[i * bits : (i + 1) * bits], 2) for i in range(top or classes)]
        if top:
            code_of = dict(zip(names, [0, *codes[:-1]], strict=True))
            codes = [code_of.get(k, codes[-1]) for k in range(classes)]
        logits.append([0.0 - 16 * code**2 / (2**bits - 1) ** 2 for code in codes])
    return np.array(logits).astype(np.float16)


def cell_pixel(image_CHW: np.ndarray, c: int, row: int, column: int) -> float:
    side = image_CHW.shape[1]
    return float(image_CHW[c, row, column]) / 255 if row < side and column < side else 0.5


def cut_out(image_CHW: np.ndarray, factor: int, row: int, column: int) -> np.ndarray:
    """One cell of a stored image, enlarged, float64 `[C, H, W]`, pixel by pixel."""
    channels, side, _ = image_CHW.shape
    cell = math.ceil(side / factor)
    image = np.zeros((channels, side, side))
    for c, y, x in np.ndindex(image.shape):
        total = 0.0
        for dy, weight_y in neighbors(y, cell, side):
            for dx, weight_x in neighbors(x, cell, side):
                total += weight_y * weight_x * cell_pixel(image_CHW, c, row * cell + dy, column * cell + dx)
        image[c, y, x] = total
    return image


def neighbors(place: int, cell: int, side: int) -> list[tuple[int, float]]:
    """The two pixels of a cell that a pixel of the enlarged one lies between, each with its weight."""
    exact = min(max((place + 0.5) * cell / side - 0.5, 0.0), cell - 1.0)
    low = math.floor(exact)
    return [(low, 1 - (exact - low)), (min(low + 1, cell - 1), exact - low)]


def naive_decoded(images_NCHW: np.ndarray, labels_N: np.ndarray, manifest: dict[str, Any]) -> tuple[np.ndarray, list]:
    """Decoded images, float64, and labels, in the order of the format."""
    how, stored = manifest["decode"], manifest["ipc"]["stored"]
    rho = how["factor"]
    factors = {"single": [rho], "multi": list(range(1, rho + 1)), "bound": list(range(rho, 0, -1))}[how["kind"]]
    cells = [(f, row, column) for f in factors for row in range(f) for column in range(f)]
    taken = {(m, cell) for m in range(stored) for cell in cells}
    if how["kind"] == "bound":
        order = [(m, cell) for f in factors for m in range(stored) for cell in cells if cell[0] == f]
        taken = set(order[: how["budget"] or stored * rho**2])
    kept = [(n, cell) for n in range(len(images_NCHW)) for cell in cells if (n % stored, cell) in taken]
    return np.array([cut_out(images_NCHW[n], *cell) for n, cell in kept]), [int(labels_N[n]) for n, _ in kept]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a golden file holds."""

    images: np.ndarray
    labels: np.ndarray
    manifest: dict[str, Any]
    levels: np.ndarray | None = None
    codes: np.ndarray | None = None
    soft_labels: np.ndarray | None = None
    stream: np.ndarray | None = None
    label_rows: np.ndarray | None = None

    def packed_pixels(self) -> dict[str, Any]:
        """The tensors that store quantized pixels; none for others."""
        if self.codes is None:
            return {}
        packed = pack(self.codes, self.manifest["pixels"]["bits"])
        return {"pixels": packed if self.stream is None else self.stream, "levels": self.levels}

    def content(self) -> bytes:
        tensors: dict[str, Any] = {"labels": self.labels} | (self.packed_pixels() or {"images": self.images})
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels if self.label_rows is None else self.label_rows
        return set_bytes(tensors, self.manifest)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 values that are the same everywhere and always."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(math.prod(shape)), np.uint8).reshape(shape)


def golden_manifest(name: str, classes: list[str], channels: int, **keys: Any) -> dict[str, Any]:
    return {
        "kind": "synthetic set",
        "format": 1,
        "tool": "ncfmkit golden",
        "name": name,
        "classes": classes,
        "mean": [0.5, 0.25, 0.125][:channels],
        "std": [0.25, 0.5, 0.125][:channels],
        "value_range": [0, 255],
        "source": {"name": "noise", "fingerprint": "00", "train_images": 0, "license": "Apache-2.0"},
        "settings": {"recipe": "none", "seed": 0},
        "score": None,
        **keys,
    }


def single_gray() -> Golden:
    manifest = golden_manifest(
        *("single-gray", ["zero", "one", "two"], 1),
        ipc={"stored": 2, "decoded": 8},
        decode={"kind": "single", "factor": 2, "budget": None},
    )
    return Golden(images=noise("single-gray", (6, 1, 6, 6)), labels=np.repeat(np.arange(3), 2), manifest=manifest)


def bound_color() -> Golden:
    """Side 5 is no multiple of 3 or 2; per class 18 cells of factor 3 and 2 of factor 2."""
    manifest = golden_manifest(
        *("bound-colour", ['"quoted"', "zwei \u00fc"], 3),
        ipc={"stored": 2, "decoded": 20},
        decode={"kind": "bound", "factor": 3, "budget": 20},
    )
    images = noise("bound-colour", (4, 3, 5, 5)) % 4 * 85  # few values, so that the expected ones compress
    return Golden(images=images, labels=np.repeat(np.arange(2), 2), manifest=manifest)


def quantized_soft() -> Golden:
    manifest = golden_manifest(
        *("quantised-soft", ["no", "yes"], 1),
        format=2,
        ipc={"stored": 2, "decoded": 10},
        decode={"kind": "multi", "factor": 2, "budget": None},
        pixels={"bits": 3, "scale": "image", "dither": True, "shape": [1, 5, 5]},
    )
    codes = noise("quantised-soft", (4, 1, 5, 5)) % 8
    levels = np.array([[[0, 255]], [[10, 17]], [[200, 255]], [[3, 40]]], np.uint8)
    soft = ((noise("soft", (20, 2)).astype(np.float64) - 128) / 16).astype(np.float16)
    return Golden(
        images=restore(codes, levels, 3),
        labels=np.repeat(np.arange(2), 2),
        manifest=manifest,
        levels=levels,
        codes=codes,
        soft_labels=soft,
    )


# another liblzma may give other bytes, which hold the same
CODED = """
BAAAEAD//////////wAGaT4u+9IG/hiAc58Mc2S7ebogY/Em/r+2TvBZIgKhLkUrXX0IZA/2mY5T//8KtAAA
"""


HALF_COLOR = """
BAAAEAD//////////wAAaL+c213BOdokTTnPRE8PM4QPpGYbyzmILzqRV2LgG/0gu78ObMGDlYY/vsXiTiz+hS10
zXr634ZdFACmldLHmO64RrfWtjY/pflV4Xle8TskQTMLYf18RsFQkRf9sFSe8vtlwSk74CeV2e5o/Li5wA==
"""


def half_color() -> Golden:
    """Color at half the resolution, three bits in two planes: a chroma plane of 2 x 2 blocks, and half-full bytes."""
    manifest = golden_manifest(
        *("half-color", ["left", "right"], 3),
        format=4,
        ipc={"stored": 2, "decoded": 2},
        decode={"kind": "single", "factor": 1, "budget": None},
        pixels={
            **{"bits": 3, "scale": "image", "dither": False, "shape": [3, 12, 12]},
            **{"chroma": "4:2:0", "coding": "lzma"},
        },
    )
    n, c, y, x = np.indices((4, 6, 6, 6))
    codes = ((n + y + x + c // 2) // 2 % 8).astype(np.uint8)
    codes[:, 5] = 7 - codes[:, 5]
    levels = np.array([[[0, 255], [10, 200], [100, 107]]] * 4, np.uint8)
    levels[:, 0, 1] -= np.arange(0, 40, 10, dtype=np.uint8)
    stream = np.frombuffer(base64.b64decode(HALF_COLOR), np.uint8)
    assert lzma.decompress(stream.tobytes()) == stream_bytes(codes, 3)
    return Golden(
        images=half_color_images(restore(codes, levels[:, [0, 0, 0, 0, 1, 2]], 3)),
        labels=np.repeat(np.arange(2), 2),
        manifest=manifest,
        levels=levels,
        codes=codes,
        stream=stream,
    )


def coded_color() -> Golden:
    """Three bits, in two planes; side 5, so that the last byte of an image is not full in the lower one."""
    manifest = golden_manifest(
        *("coded-color", ["left", "right"], 3),
        format=3,
        ipc={"stored": 2, "decoded": 8},
        decode={"kind": "single", "factor": 2, "budget": None},
        pixels={"bits": 3, "scale": "channel", "dither": False, "shape": [3, 5, 5], "coding": "lzma"},
    )
    n, _, y, x = np.indices((4, 3, 5, 5))
    codes = ((n + y + x) // 2 % 8).astype(np.uint8)
    codes[:, 1] = 7 - codes[:, 1]
    levels = np.array([[[0, 255], [10, 200], [100, 107]]], np.uint8)
    stream = np.frombuffer(base64.b64decode(CODED), np.uint8)
    assert lzma.decompress(stream.tobytes()) == stream_bytes(codes, 3)
    return Golden(
        images=restore(codes, levels, 3),
        labels=np.repeat(np.arange(2), 2),
        manifest=manifest,
        levels=levels,
        codes=codes,
        stream=stream,
    )


def top_labels() -> Golden:
    """The three likeliest of five classes in four bits: three names, three codes, four bits of padding."""
    manifest = golden_manifest(
        *("top-labels", ["a", "b", "c", "d", "e"], 1),
        format=3,
        ipc={"stored": 1, "decoded": 4},
        decode={"kind": "single", "factor": 2, "budget": None},
        labels={"bits": 4, "top": 3},
    )
    logits = (noise("top-labels", (20, 5)).astype(np.float64) / 16 - 8).astype(np.float16)
    logits[:2] = [[0, -30, -30, -30, -30], [0, 0, 0, 0, 0]]  # a hard label, and one that knows nothing
    rows = label_rows(logits, 4, 3)
    return Golden(
        images=noise("top-labels", (5, 1, 4, 4)),
        labels=np.arange(5),
        manifest=manifest,
        soft_labels=restored_labels(rows, 5, 4, 3),
        label_rows=rows,
    )


# the British names stand in the pinned bytes, and draw the noise
GOLDENS = {
    "single-gray": single_gray,
    "bound-colour": bound_color,
    "quantised-soft": quantized_soft,
    "coded-color": coded_color,
    "half-color": half_color,
    "top-labels": top_labels,
}


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name, make in GOLDENS.items():
        golden = make()
        (DATA / f"{name}.safetensors").write_bytes(golden.content())
        decoded, labels = naive_decoded(golden.images, golden.labels, golden.manifest)
        expected: dict[str, Any] = {
            "images": golden.images,
            "decoded": decoded.astype(np.float32),
            "labels": np.array(labels),
        }
        np.savez_compressed(DATA / f"{name}.npz", **expected)


if __name__ == "__main__":
    main()
