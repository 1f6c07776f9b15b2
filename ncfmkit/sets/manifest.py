"""The manifest of a set: its required content, and the tensors that it implies (docs/formats.md)."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from ncfmkit._version import __version__
from ncfmkit.config import LARGEST_FACTOR, Settings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import digest
from ncfmkit.mosaic import decoded_count
from ncfmkit.sets import quantize
from ncfmkit.sets.synthetic import SyntheticSet

if TYPE_CHECKING:
    from ncfmkit.real.store import RealData

DIGEST_KEY = "manifest_sha256"
PACKAGE_FILE = "ncfmkit.json"  # the manifest beside the files of a package
KIND = "synthetic set"
FORMATS = (1, 2)  # 2: quantized pixels or soft labels
LARGEST_SIDE = 16384  # pixels
DEEPEST = 32  # lists and objects in one another
LARGEST_NUMBER = float(np.finfo(np.float32).max)
LARGEST_JSON = 16 << 20  # bytes of a manifest, or of the header that holds it
SIZES_SHOWN = 8  # of a wrong shape in a message
LONGEST_SHOWN = 100  # characters of a wrong value in a message
LONGEST = 100_000  # characters of a text


def tensors_of(synthetic: SyntheticSet) -> dict[str, torch.Tensor]:
    """The tensors that a set is stored as, by name."""
    tensors = {"labels": synthetic.labels.contiguous()}
    if synthetic.levels is None:
        tensors["images"] = synthetic.images.contiguous()
    else:
        bits, levels_GC2 = synthetic.manifest["pixels"]["bits"], synthetic.levels.numpy()
        tensors["pixels"] = torch.from_numpy(quantize.packed(synthetic.images.numpy(), levels_GC2, bits))
        tensors["levels"] = synthetic.levels.contiguous()
    if synthetic.soft_labels is not None:
        tensors["soft_labels"] = synthetic.soft_labels.contiguous()
    return tensors


def set_of(tensors: dict[str, torch.Tensor], manifest: dict[str, Any]) -> SyntheticSet:
    """The set that these tensors store, which were checked against the manifest."""
    how = manifest.get("pixels")
    if how is None:
        images, levels = tensors["images"], None
    else:
        levels = tensors["levels"]
        images = torch.from_numpy(
            quantize.restored(tensors["pixels"].numpy(), levels.numpy(), tuple(how["shape"]), how["bits"])
        )
    return SyntheticSet(
        images=images,
        labels=tensors["labels"],
        manifest=manifest,
        soft_labels=tensors.get("soft_labels"),
        levels=levels,
    )


def with_digests(manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The manifest with format, sizes and digests as they are for these tensors."""
    manifest = {
        **manifest,
        "format": 2 if {"pixels", "soft_labels"} & set(tensors) else 1,
        "bytes": {name: tensor.nbytes for name, tensor in tensors.items()},
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
    }
    return manifest | {DIGEST_KEY: manifest_digest(manifest)}


def manifest_digest(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without this digest: JSON with sorted keys, ", " and ": " between, ASCII."""
    return hashlib.sha256(written({k: v for k, v in manifest.items() if k != DIGEST_KEY}).encode()).hexdigest()


def written(manifest: dict[str, Any]) -> str:
    """The manifest as the file holds it.

    Raises:
        ValueError: it holds NaN or infinity, which JSON has not.
    """
    return json.dumps(manifest, sort_keys=True, allow_nan=False)


def parsed(text: str | bytes) -> dict[str, Any]:
    """A manifest's JSON.

    Raises:
        ValueError: not an object in strict JSON (UTF-8, no NaN, no key twice), or nested too deeply.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        manifest = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_once)
        if not isinstance(manifest, dict):
            raise ValueError(f"expected a JSON object, got {type(manifest).__name__}")
        if _depth(manifest) > DEEPEST:
            raise RecursionError
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    return manifest


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name[:LONGEST_SHOWN]} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_constant(text)
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _is_count(value: Any, least: int = 1, most: int = 2**53) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return type(value) in (int, float) and low <= value <= high and abs(value) <= LARGEST_NUMBER


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and not re.search("[\ud800-\udfff]", value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_statistics(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(_is_number(v) for v in value)


def _is_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) for v in value.values()
    )


def _is_decode(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("kind") in ("single", "multi", "bound")
        and _is_count(value.get("factor"), most=LARGEST_FACTOR)
        and "budget" in value
        and (value["budget"] is None or _is_count(value["budget"]))
    )


def _is_pixels(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("bits"), least=2, most=8)
        and value.get("scale") in ("channel", "image")
        and type(value.get("dither")) is bool
        and ("original" not in value or _is_original(value["original"]))
        and isinstance(value.get("shape"), list)
        and len(value["shape"]) == 3
        and all(_is_count(side, most=LARGEST_SIDE) for side in value["shape"])
    )


def _is_original(value: Any) -> bool:
    return isinstance(value, dict) and _is_score(value.get("score"))


def _is_source(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("name"))
        and _is_text(value.get("fingerprint"))
        and _is_count(value.get("train_images"), least=0)
        and "license" in value
        and (value["license"] is None or _is_text(value["license"]))
        and ("converted" not in value or _is_converted(value["converted"]))
    )


def _is_converted(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_text(value.get(key)) for key in ("file", "sha256", "kind", "values"))
        and isinstance(value.get("clipped"), dict)
        and all(_is_number(value["clipped"].get(key), 0) for key in ("share", "largest"))
    )


def _is_score(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_text(value.get("network"))
        and _is_count(value.get("epochs"))
        and _is_count(value.get("n"))
        and all(
            isinstance(value.get(epoch), dict) and all(_is_number(value[epoch].get(k), 0, 1) for k in ("mean", "std"))
            for epoch in ("last", "best")
        )
    )


def _is_ipc(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("stored")) and _is_count(value.get("decoded"))


# key -> (check, what is expected)
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tool": (_is_text, "a text"),
    "name": (_is_text, "a text"),
    "classes": (_is_names, "two or more different names"),
    "ipc": (_is_ipc, "the counts 'stored' and 'decoded', 1 or more"),
    "decode": (_is_decode, f"'kind' single, multi or bound, 'factor' 1 to {LARGEST_FACTOR}, 'budget' null or a count"),
    "mean": (_is_statistics, "1 or 3 finite numbers"),
    "std": (lambda v: _is_statistics(v) and min(v) >= 0, "1 or 3 finite numbers, 0 or more"),
    "value_range": (lambda v: repr(v) == "[0, 255]", "[0, 255]"),
    "source": (_is_source, "'name', 'fingerprint', 'train_images' and 'license' of the real data"),
    "settings": (lambda v: isinstance(v, dict), "the settings of the run"),
    "score": (_is_score, "null, or 'network', 'epochs', 'n', 'last' and 'best' with mean and std as fractions"),
    "sha256": (_is_digests, "64 hexadecimal digits for each tensor"),
    "bytes": (lambda v: isinstance(v, dict) and all(_is_count(n, 0) for n in v.values()), "a size for each tensor"),
}


def check_kind(manifest: dict[str, Any], where: str) -> None:
    """Raises UserError unless it is the manifest of a set, of a format that is known here."""
    if manifest.get("kind") != KIND:
        kind = str(manifest.get("kind", "file of an unknown kind"))
        raise UserError(f"{where} holds a {kind[:LONGEST_SHOWN]}, not a synthetic set")
    if type(manifest.get("format")) is not int or manifest["format"] not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        got = _shortened(manifest.get("format"))
        raise UserError(f"{where} has format {got}, this ncfmkit reads {known}: update ncfmkit")


def manifest_problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, whatever its tensors; empty: nothing."""
    found = []
    if manifest.get(DIGEST_KEY) != manifest_digest(manifest):
        found.append("the sha256 of its manifest is not the one stored in it")
    found += [
        f"its manifest's {key!r} is {_shortened(manifest.get(key))}, expected {expected}"
        for key, (is_right, expected) in KEYS.items()
        if key not in manifest or not is_right(manifest[key])
    ]
    if "pixels" in manifest and not _is_pixels(manifest["pixels"]):
        found.append("its manifest's 'pixels' is not what quantized pixels have: bits, scale, dither and shape")
    return found or list(_contradictions(manifest))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _contradictions(m: dict[str, Any]) -> Iterator[str]:
    how = m["decode"]
    expected = decoded_count(how["kind"], how["factor"], m["ipc"]["stored"], how["budget"])
    if m["ipc"]["decoded"] != expected:
        yield f"its manifest says {m['ipc']['decoded']} decoded images per class, its decoding gives {expected}"
    if len(m["mean"]) != len(m["std"]):
        yield f"its manifest has a mean of {len(m['mean'])} channels and a std of {len(m['std'])}"
    if m["score"] and m["score"]["best"]["mean"] < m["score"]["last"]["mean"]:
        yield "its manifest's score has a best epoch below the last one"
    if m["decode"]["kind"] != "bound" and m["decode"]["budget"] is not None:
        yield f"its manifest has a budget of decoded images, which decoding {m['decode']['kind']!r} has not"
    quantized = "pixels" in m
    if (m["format"] == 2) != (quantized or "soft_labels" in m["sha256"]):
        yield "its manifest's format does not fit its tensors: 2 is for quantized pixels and soft labels alone"


def expected_shapes(manifest: dict[str, Any], image_shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor that a set with this manifest has.

    Args:
        image_shape: channels and sides, where the manifest does not say them (it does for quantized pixels).
    """
    classes, ipc = len(manifest["classes"]), manifest["ipc"]
    count = classes * ipc["stored"]
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"labels": ("I64", (count,))}
    how = manifest.get("pixels")
    if how is None:
        expected["images"] = ("U8", (count, *image_shape))
    else:
        shape = tuple(how["shape"])
        expected["pixels"] = ("U8", (count, quantize.packed_bytes(shape, how["bits"])))
        expected["levels"] = ("U8", (count if how["scale"] == "image" else 1, shape[0], 2))
    if "soft_labels" in manifest["sha256"]:
        expected["soft_labels"] = ("F16", (classes * ipc["decoded"], classes))
    return expected


def shape_problems(manifest: dict[str, Any], stored: dict[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """What is wrong with the tensors' names, dtypes and shapes; their content is not looked at.

    Args:
        stored: dtype as safetensors writes it (`U8`, `I64`, `F16`) and shape of every tensor that is there.
    """
    image_shape = tuple(manifest["pixels"]["shape"]) if "pixels" in manifest else stored.get("images", ("", ()))[1][1:]
    found = _image_shape_problems(manifest, image_shape)
    expected = expected_shapes(manifest, image_shape)
    unknown = sorted(stored.keys() - expected.keys())
    found += [f"it has a tensor {_shortened(name)} that its manifest does not list" for name in unknown]
    for name, want in expected.items():
        if name not in stored:
            found.append(f"its tensor {name!r} is missing")
        elif stored[name] != want:
            found.append(f"its tensor {name!r} is {_said(stored[name])}, expected {_said(want)}")
    for key in ("sha256", "bytes"):
        if manifest[key].keys() != expected.keys():
            got = _shortened(sorted(manifest[key]))
            found.append(f"its manifest's {key!r} lists {got}, expected {sorted(expected)}")
    return found


def _said(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {list(tensor[1][:SIZES_SHOWN])}"


def _image_shape_problems(manifest: dict[str, Any], shape: tuple[int, ...]) -> list[str]:
    if (
        len(shape) != 3
        or shape[0] != len(manifest["mean"])
        or shape[1] != shape[2]
        or not 1 <= shape[1] <= LARGEST_SIDE
    ):
        channels = len(manifest["mean"])
        got = _shortened(list(shape))
        return [f"its images are {got}, expected [{channels}, side, side], as many channels as its mean"]
    if manifest["decode"]["factor"] > shape[1]:
        return [f"its manifest's decoding factor {manifest['decode']['factor']} is above the side {shape[1]}"]
    return []


def content_problems(manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with the tensors' content; names, dtypes and shapes are right."""
    found = []
    for name, tensor in tensors.items():
        said = manifest["bytes"][name]
        if said != tensor.nbytes:
            found.append(f"its manifest says {said} bytes of {name!r}, it holds {tensor.nbytes}")
        if manifest["sha256"][name] != digest(tensor):
            found.append(f"the sha256 of {name!r} is not the manifest's")
    return found or value_problems(manifest, tensors)


def value_problems(manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with the tensors' values; their digests are not looked at."""
    found = []
    expected = np.repeat(np.arange(len(manifest["classes"])), manifest["ipc"]["stored"])
    if not np.array_equal(tensors["labels"].numpy(), expected):
        found.append(_label_problem(tensors["labels"].numpy(), manifest))
    if "soft_labels" in tensors and not bool(tensors["soft_labels"].isfinite().all()):
        found.append("its soft labels are not all finite")
    if "pixels" in tensors:
        found += _pixel_problems(manifest["pixels"], tensors)
    return found


def _label_problem(labels: np.ndarray, manifest: dict[str, Any]) -> str:
    classes, stored = manifest["classes"], manifest["ipc"]["stored"]
    if labels.min() < 0 or labels.max() >= len(classes):
        return f"its labels are {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}"
    count = np.bincount(labels, minlength=len(classes))
    if (count == stored).all():
        return "its labels are not sorted"
    wrong = int(np.flatnonzero(count != stored)[0])
    return f"it holds {count[wrong]} images of class {_shortened(classes[wrong])}, its manifest says {stored}"


def _pixel_problems(how: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[str]:
    levels, found = tensors["levels"].numpy().astype(int), []
    if (levels[..., 1] - levels[..., 0] < (1 << how["bits"]) - 1).any():
        found.append(f"its levels lie too close for {how['bits']} bits")
    if quantize.has_stray_bits(tensors["pixels"].numpy(), tuple(how["shape"]), how["bits"]):
        found.append("bits are set in its pixels after the last code of an image")
    return found


def finished_set(settings: Settings, real: "RealData", images: torch.Tensor) -> SyntheticSet:
    """The set as it is stored: uint8, with everything but the score in its manifest.

    Args:
        images: in [0, 1], which are rounded, or uint8, which are not.
    """
    d = settings.distill
    stored = images.detach().cpu()
    if stored.dtype != torch.uint8:
        stored = to_bytes(stored)
    labels = torch.arange(len(real.classes)).repeat_interleave(d.ipc)
    kept = to_dict(settings)
    kept["runtime"] = {k: kept["runtime"][k] for k in ("precision", "compile")}  # the rest is local to a machine
    kept["distill"]["load"] = Path(d.load).name if d.load else None
    manifest = {
        "kind": "synthetic set",
        "tool": f"ncfmkit {__version__}",
        "name": f"{real.name}-ipc{d.ipc}",
        "classes": list(real.classes),
        "ipc": {"stored": d.ipc, "decoded": decoded_count(d.decode, d.factor, d.ipc, d.decoded_per_class)},
        "decode": {"kind": d.decode, "factor": d.factor, "budget": d.decoded_per_class},
        "mean": list(real.mean),
        "std": list(real.std),
        "value_range": [0, 255],
        "source": {
            "name": real.name,
            "fingerprint": real.fingerprint,
            "train_images": len(real.train.images),
            "license": None,
        },
        "settings": kept,
        "score": None,
    }
    return SyntheticSet(images=stored, labels=labels, manifest=manifest)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as they are stored: uint8, rounded to the nearest level."""
    return images.mul(255).round().to(torch.uint8)


def manifest_score(row: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a score: nothing that changes from one run of the same to the next."""
    figures = {k: {s: row[k][s] for s in ("mean", "std")} for k in ("last", "best")}
    return {"network": row["network"], "epochs": row["epochs"], "n": row["n"], **figures}


def format_score(score: dict[str, Any]) -> str:
    """`61.9% ± 0.7% (n = 3)`; one student has no deviation."""
    deviation = f" ± {score['last']['std']:.1%}" if score["n"] > 1 else ""
    return f"{score['last']['mean']:.1%}{deviation} (n = {score['n']})"
