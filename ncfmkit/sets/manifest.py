"""The manifest of a set: typed records of its content, and the tensors that it implies (docs/formats.md).

The manifest is a contract of its own. `decode` and `training` are what loading a set and training on it rely on, and
have version numbers; `settings` are those of the run that made the set, kept as they were, and nothing depends on them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

import numpy as np
import torch
from pydantic import ConfigDict, FailFast, Field, ValidationError, model_validator

from ncfmkit import chroma
from ncfmkit._version import __version__
from ncfmkit.config import LARGEST_FACTOR, Settings, bits_and_color, check, from_dict, known_names, to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import digest
from ncfmkit.mosaic import decoded_count
from ncfmkit.records import LONGEST_SHOWN, Record, at_most, problems, shortened
from ncfmkit.sets import coding, label_codes, pixels, quantize
from ncfmkit.sets.synthetic import SyntheticSet

if TYPE_CHECKING:
    from ncfmkit.real.store import RealData
    from ncfmkit.run_records import Score

DIGEST_KEY = "manifest_sha256"
BY_WORTH = "worth"  # the order of images of which the first match the real ones best
KIND = "synthetic set"
FORMATS = (1, 2, 3, 4)  # 2: quantized pixels or soft labels; 3: coded ones, or in fewer bits; 4: color 4:2:0
DECODE_VERSION = TRAINING_VERSION = 1  # the newest known
LARGEST_SIDE = 16384  # pixels
DEEPEST = 32  # lists and objects in one another
LARGEST_NUMBER = float(np.finfo(np.float32).max)
LARGEST_JSON = 16 << 20  # bytes of a manifest, or of the header that holds it
SIZES_SHOWN = 8  # of a wrong shape in a message
LONGEST = 100_000  # characters of a text

Count = Annotated[int, Field(ge=1, le=2**53)]
CountOrZero = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=LONGEST)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
OPTIONAL = Field(None, exclude_if=lambda value: value is None)  # a key that a set need not have
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
MOST_TENSORS = 16

# what the score of a student depends on, by sections of the settings
TRAINED_BY = ("data", "network", "pool", "labels", "student", "runtime")


class Ipc(Record):
    """Images per class: `stored`, and `decoded` from them."""

    stored: Count
    decoded: Count


class Decode(Record):
    """How stored images become the images to train on (docs/method.md, section 4)."""

    version: Annotated[int, Field(ge=1, le=DECODE_VERSION)] = DECODE_VERSION  # a literal would take 1.0 and true
    kind: Literal["single", "multi", "bound"]
    factor: Annotated[int, Field(ge=1, le=LARGEST_FACTOR)]
    budget: Count | None


class Training(Record):
    """What the score of a student depends on: sections of the settings, by name (docs/settings.md).

    `data` is how the real images are read, `network` and `student` how a student is trained, `pool` how the extractor
    of the herding baseline is, `labels` how extractors of the pool made soft labels, `runtime` the precision.
    """

    version: Count = TRAINING_VERSION
    seed: CountOrZero = 0
    data: dict[str, Any] = Field(default_factory=dict)
    network: dict[str, Any] = Field(default_factory=dict)
    pool: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda value: not value)  # none: hard labels
    student: dict[str, Any] = Field(default_factory=dict)
    runtime: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """From settings as :func:`config.to_dict` writes them; those of a machine are left out."""
        sections = {name: settings[name] for name in TRAINED_BY if name in settings}
        if isinstance(sections.get("runtime"), dict):
            sections["runtime"] = {k: v for k, v in sections["runtime"].items() if k in ("precision", "compile")}
        if isinstance(sections.get("labels"), dict) and not sections["labels"].get("soft"):
            del sections["labels"]
        return cls(seed=settings.get("seed", 0), **sections)

    def settings(self) -> Settings:
        """The settings; keys that are not known here are ignored, those of `distill` are the defaults.

        Raises:
            UserError: a newer version of the record, or values that no setting takes.
        """
        if self.version > TRAINING_VERSION:
            raise UserError(
                f"the set's training record has version {self.version}, this ncfmkit knows {TRAINING_VERSION}: "
                "update ncfmkit"
            )
        sections = {name: getattr(self, name) for name in TRAINED_BY}
        return check(from_dict(known_names({"seed": self.seed} | sections)))


class Figure(Record):
    """Mean and standard deviation of the students' test accuracies, as fractions."""

    mean: Fraction
    std: Fraction


class ManifestScore(Record):
    """What a manifest says of a score: nothing that changes from one run of the same to the next."""

    network: Text
    epochs: Count
    n: Count
    last: Figure
    best: Figure

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best.mean < self.last.mean:
            raise ValueError("the best epoch is below the last one")
        return self


class Clipped(Record):
    """Values of a converted set that were outside [0, 1]: their share, and the largest distance."""

    share: NotNegative
    largest: NotNegative


class Converted(Record):
    """The file of another project that a set was converted from."""

    file: Text
    sha256: Text
    kind: Text
    values: Text
    clipped: Clipped
    experiment: CountOrZero | None = OPTIONAL


class Source(Record):
    """The real data that a set was made from."""

    name: Text
    fingerprint: Text
    train_images: CountOrZero
    license: Text | None
    converted: Converted | None = OPTIONAL


class Original(Record):
    """The set in 8 bits that a quantized set was made from."""

    manifest_sha256: Text | None = OPTIONAL
    score: ManifestScore | None = None


class Pixels(Record):
    """How pixels are stored in fewer bytes than one per value; `chroma`: with color at half the resolution."""

    bits: Annotated[int, Field(ge=2, le=8)]
    scale: Literal["channel", "image"]
    dither: bool
    shape: tuple[Side, Side, Side]
    chroma: Literal["4:2:0"] | None = OPTIONAL
    coding: Literal["lzma"] | None = OPTIONAL
    original: Original | None = OPTIONAL

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chroma is not None and not chroma.takes(*self.shape[:2]):
            raise ValueError(f"chroma {self.chroma} of images {list(self.shape)}: {chroma.NEEDS}")
        return self

    @classmethod
    def distilled(cls, shape: tuple[int, ...], bits: int, *, subsampled: bool) -> Self:
        """How a run stores images of that shape, `(C, H, W)`."""
        channels, height, width = shape
        return cls(
            bits=bits,
            scale="image",
            dither=False,
            shape=(channels, height, width),
            chroma=chroma.SUBSAMPLED if subsampled else None,
        )

    @property
    def planes(self) -> tuple[int, int, int]:
        """The shape of what is quantized: the image, or luma and color at half the resolution as six planes."""
        side = self.shape[1] // 2
        return self.shape if self.chroma is None else (6, side, side)

    def describe(self) -> str:
        """Such as `2 bits, color 4:2:0`."""
        return bits_and_color(self.bits, self.chroma)


class SoftLabels(Record):
    """How soft labels are stored in fewer than 16 bits; `top`: how many classes are named, 0 for all of them."""

    bits: Annotated[int, Field(ge=4, le=8, multiple_of=4)]
    top: Annotated[int, Field(ge=0, lt=label_codes.MOST_CLASSES)]


class PartOf(Record):
    """The set of which a set is the first images of each class; `ipc` is how many that one stores of a class."""

    manifest_sha256: Text
    ipc: Count
    score: ManifestScore | None


class Manifest(Record):
    """What a set says of itself; `sha256` and `bytes` are by the names of its tensors."""

    # NaN in the settings is refused when the set is saved, and does not become null
    model_config = ConfigDict(ser_json_inf_nan="constants")

    kind: Literal["synthetic set"]
    format: Literal[1, 2, 3, 4]
    tool: Text
    name: Text
    classes: Annotated[tuple[Text, ...], FailFast(), Field(min_length=2)]
    ipc: Ipc
    decode: Decode
    mean: Annotated[tuple[Number, ...], FailFast(), Field(min_length=1, max_length=3)]
    std: Annotated[tuple[NotNegative, ...], FailFast(), Field(min_length=1, max_length=3)]
    value_range: tuple[Annotated[int, Field(ge=0, le=0)], Annotated[int, Field(ge=255, le=255)]]
    source: Source
    training: Training
    settings: dict[str, Any]
    score: ManifestScore | None
    pixels: Pixels | None = OPTIONAL
    labels: SoftLabels | None = OPTIONAL
    order: Text | None = OPTIONAL  # of the images of a class
    part_of: PartOf | None = OPTIONAL
    sha256: Annotated[dict[str, Sha256], at_most(MOST_TENSORS)]
    bytes: Annotated[dict[str, CountOrZero], at_most(MOST_TENSORS)]
    manifest_sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> Self:
        how, wrong = self.decode, []
        expected = decoded_count(how.kind, how.factor, self.ipc.stored, how.budget)
        if len(set(self.classes)) < len(self.classes):
            wrong.append("a class is there twice")
        if self.ipc.decoded != expected:
            wrong.append(f"{self.ipc.decoded} decoded images per class, its decoding gives {expected}")
        if not len(self.mean) == len(self.std) != 2:
            wrong.append(f"a mean of {len(self.mean)} channels and a std of {len(self.std)}, expected 1 or 3 of both")
        if self.pixels is None and "pixels" in self.model_fields_set:
            wrong.append("'pixels' is null: a set whose pixels are not quantized has no such key")
        if how.kind != "bound" and how.budget is not None:
            wrong.append(f"a budget of decoded images, which decoding {how.kind!r} has not")
        soft = "soft_labels" in self.sha256
        if "labels" in self.model_fields_set:
            wrong += _soft_label_problems(self.labels, len(self.classes), soft=soft)
        how_pixels = None if self.pixels is None else self.pixels.to_dict()
        if self.format != _format(how_pixels, few_labels=self.labels is not None, soft=soft):
            wrong.append(
                "its format does not fit its tensors: 2 is for packed pixels or soft labels, 3 for coded, 4 for chroma"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def changed(self, **values: Any) -> Self:
        """With other values of some keys; :func:`with_digests` makes it whole and checks it."""
        return self.model_copy(update=values)


def _soft_label_problems(how: SoftLabels | None, classes: int, *, soft: bool) -> list[str]:
    """What is wrong with a record of how soft labels are stored."""
    if how is None or not soft:
        return ["'labels' of a set without soft labels in fewer bits, which has no such key"]
    if how.top >= classes or (how.top and classes > label_codes.MOST_CLASSES):
        return [f"the {how.top} top of {classes} classes, of at most {label_codes.MOST_CLASSES}"]
    return []


def _format(pixels: Mapping[str, Any] | None, *, few_labels: bool, soft: bool) -> int:
    """The lowest format that a set has which stores this; `pixels` is that key of its manifest."""
    pixels = {} if pixels is None else pixels
    if pixels.get("chroma"):
        return 4
    if few_labels or pixels.get("coding"):
        return 3
    return 2 if soft or pixels else 1


def _stored_labels(logits: torch.Tensor, how: SoftLabels | None) -> torch.Tensor:
    """What soft labels are stored as."""
    if how is None:
        return logits.contiguous()
    return torch.from_numpy(label_codes.encode(logits.numpy(), how.bits, how.top))


def in_label_bits(logits: torch.Tensor, how: SoftLabels | None) -> torch.Tensor:
    """Soft labels float16 `[D, K]`, as they are read again once they are stored."""
    if how is None:
        return logits
    return torch.from_numpy(label_codes.rounded(logits.numpy(), how.bits, how.top))


def tensors_of(synthetic: SyntheticSet) -> dict[str, torch.Tensor]:
    """The tensors that a set is stored as, by name."""
    tensors = {"labels": synthetic.labels.contiguous()}
    tensors |= {"images": synthetic.images.contiguous()} if synthetic.pixel_tensors is None else synthetic.pixel_tensors
    if synthetic.soft_labels is not None:
        tensors["soft_labels"] = _stored_labels(synthetic.soft_labels, synthetic.manifest.labels)
    return tensors


def set_of(tensors: dict[str, torch.Tensor], manifest: Manifest) -> SyntheticSet:
    """The set that these tensors store, which were checked against the manifest.

    Raises:
        ValueError: its coded pixels or its soft labels are damaged.
    """
    how, soft = manifest.pixels, tensors.get("soft_labels")
    if soft is not None and manifest.labels is not None:
        of = manifest.labels
        soft = torch.from_numpy(label_codes.restore(soft.numpy(), len(manifest.classes), of.bits, of.top))
    stored = None if how is None else {name: tensors[name] for name in ("pixels", "levels")}
    images = tensors["images"] if how is None else pixels.restored(tensors, len(tensors["labels"]), how)
    return SyntheticSet(
        images=images, labels=tensors["labels"], manifest=manifest, soft_labels=soft, pixel_tensors=stored
    )


def with_digests(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Manifest:
    """The manifest of a set with these tensors: its content, with format, sizes and digests as they are for them.

    Raises:
        ValueError: the content is not that of a manifest.
    """
    soft = "soft_labels" in tensors
    content = {
        **content,
        "format": _format(content.get("pixels"), few_labels="labels" in content, soft=soft),
        "bytes": {name: tensor.nbytes for name, tensor in tensors.items()},
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
        DIGEST_KEY: "0" * 64,
    }
    manifest = Manifest.model_validate_json(written(content))
    return manifest.changed(**{DIGEST_KEY: manifest_digest(manifest.to_dict())})


def manifest_digest(content: dict[str, Any]) -> str:
    """sha256 of a manifest without this digest: JSON with sorted keys, ", " and ": " between, ASCII."""
    return hashlib.sha256(written({k: v for k, v in content.items() if k != DIGEST_KEY}).encode()).hexdigest()


def unscored_digest(manifest: Manifest) -> str:
    """sha256 of a manifest without its score: which set it is, before and after students are trained on it."""
    return manifest_digest(manifest.changed(score=None).to_dict())


def written(content: dict[str, Any]) -> str:
    """A manifest as the file holds it.

    Raises:
        ValueError: it holds NaN or infinity, which JSON has not.
    """
    return json.dumps(content, sort_keys=True, allow_nan=False)


def parsed(text: str | bytes) -> dict[str, Any]:
    """The JSON of a manifest, or of the header that holds it.

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


def read_manifest(text: str, where: str) -> tuple[Manifest | None, list[str]]:
    """The manifest in a text, and what is wrong with it; None in place of a manifest with which something is.

    Sets that were made before there was a training record get it from their settings.

    Raises:
        UserError: not the manifest of a set, or one of a format or a decoding that is not known here.
    """
    try:
        content = parsed(text)
    except ValueError as error:
        return None, [f"its manifest is not readable: {error}"]
    _check_kind(content, where)
    if content.get(DIGEST_KEY) != manifest_digest(content):
        return None, ["the sha256 of its manifest is not the one stored in it"]
    try:
        if "training" not in content:
            settings = content.get("settings")
            content["training"] = Training.of(settings if isinstance(settings, dict) else {}).to_dict()
        return Manifest.model_validate_json(written(content)), []
    except ValidationError as error:
        return None, [f"its manifest's {problem}" for problem in problems(error)]


def _check_kind(content: dict[str, Any], where: str) -> None:
    """Raises UserError unless it is the manifest of a set, of a format and a decoding that are known here."""
    if content.get("kind") != KIND:
        kind = str(content.get("kind", "file of an unknown kind"))
        raise UserError(f"{where} holds a {kind[:LONGEST_SHOWN]}, not a synthetic set")
    if type(content.get("format")) is not int or content["format"] not in FORMATS:
        known = f"{FORMATS[0]} to {FORMATS[-1]}"
        got = shortened(content.get("format"))
        raise UserError(f"{where} has format {got}, this ncfmkit reads {known}: update ncfmkit")
    decode = content.get("decode")
    version = decode.get("version") if isinstance(decode, dict) else None
    if type(version) is int and version > DECODE_VERSION:
        raise UserError(f"{where} is decoded by version {version}, this ncfmkit knows {DECODE_VERSION}: update ncfmkit")


def expected_shapes(manifest: Manifest, image_shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor that a set with this manifest has.

    Args:
        image_shape: channels and sides, where the manifest does not say them (it does for quantized pixels).
    """
    classes, count = len(manifest.classes), len(manifest.classes) * manifest.ipc.stored
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"labels": ("I64", (count,))}
    how = manifest.pixels
    if how is None:
        expected["images"] = ("U8", (count, *image_shape))
    else:
        packed = (count, quantize.packed_bytes(how.planes, how.bits))
        expected["pixels"] = ("U8", packed if how.coding is None else (manifest.bytes.get("pixels", 0),))
        expected["levels"] = ("U8", (count if how.scale == "image" else 1, how.shape[0], 2))
    if "soft_labels" in manifest.sha256:
        rows, labels = classes * manifest.ipc.decoded, manifest.labels
        expected["soft_labels"] = ("F16", (rows, classes))
        if labels is not None:
            expected["soft_labels"] = ("U8", (rows, label_codes.row_bytes(classes, labels.bits, labels.top)))
    return expected


def shape_problems(manifest: Manifest, stored: dict[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """What is wrong with the tensors' names, dtypes and shapes; their content is not looked at.

    Args:
        stored: dtype as safetensors writes it (`U8`, `I64`, `F16`) and shape of every tensor that is there.
    """
    image_shape = manifest.pixels.shape if manifest.pixels else stored.get("images", ("", ()))[1][1:]
    found = _image_shape_problems(manifest, image_shape)
    expected = expected_shapes(manifest, image_shape)
    unknown = sorted(stored.keys() - expected.keys())
    found += [f"it has a tensor {shortened(name)} that its manifest does not list" for name in unknown]
    for name, want in expected.items():
        if name not in stored:
            found.append(f"its tensor {name!r} is missing")
        elif stored[name] != want:
            found.append(f"its tensor {name!r} is {_said(stored[name])}, expected {_said(want)}")
    for key, listed in (("sha256", manifest.sha256), ("bytes", manifest.bytes)):
        if listed.keys() != expected.keys():
            got = shortened(sorted(listed))
            found.append(f"its manifest's {key!r} lists {got}, expected {sorted(expected)}")
    if manifest.pixels is not None and manifest.pixels.coding is not None:
        found += _coding_problems(manifest, manifest.pixels)
    if manifest.labels is not None:
        classes, size = len(manifest.classes), sum(manifest.bytes.values())
        rows = classes * manifest.ipc.decoded
        if not label_codes.fits(rows, classes, size):
            restored = 2 * rows * classes
            found.append(f"its soft labels are {restored} bytes as float16, too many for tensors of {size} bytes")
    return found


def _coding_problems(manifest: Manifest, how: Pixels) -> list[str]:
    packed = len(manifest.classes) * manifest.ipc.stored * quantize.packed_bytes(how.planes, how.bits)
    size = manifest.bytes.get("pixels", 0)
    if size * coding.SMALLEST >= packed:
        return []
    least = -(-packed // coding.SMALLEST)
    return [f"its coded pixels are {size} bytes, expected {least} or more for {packed} bytes of codes"]


def _said(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {list(tensor[1][:SIZES_SHOWN])}"


def _image_shape_problems(manifest: Manifest, shape: tuple[int, ...]) -> list[str]:
    if len(shape) != 3 or shape[0] != len(manifest.mean) or shape[1] != shape[2] or not 1 <= shape[1] <= LARGEST_SIDE:
        channels = len(manifest.mean)
        got = shortened(list(shape))
        return [f"its images are {got}, expected [{channels}, side, side], as many channels as its mean"]
    if manifest.decode.factor > shape[1]:
        return [f"its manifest's decoding factor {manifest.decode.factor} is above the side {shape[1]}"]
    return []


def content_problems(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with the tensors' content; names, dtypes and shapes are right."""
    found = []
    for name, tensor in tensors.items():
        said = manifest.bytes[name]
        if said != tensor.nbytes:
            found.append(f"its manifest says {said} bytes of {name!r}, it holds {tensor.nbytes}")
        if manifest.sha256[name] != digest(tensor):
            found.append(f"the sha256 of {name!r} is not the manifest's")
    return found or value_problems(manifest, tensors)


def value_problems(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with the tensors' values; their digests are not looked at."""
    found = []
    expected = np.repeat(np.arange(len(manifest.classes)), manifest.ipc.stored)
    if not np.array_equal(tensors["labels"].numpy(), expected):
        found.append(_label_problem(tensors["labels"].numpy(), manifest))
    if manifest.labels is None and "soft_labels" in tensors and not bool(tensors["soft_labels"].isfinite().all()):
        found.append("its soft labels are not all finite")
    if manifest.pixels is not None:
        found += _pixel_problems(manifest.pixels, tensors)
    return found


def _label_problem(labels: np.ndarray, manifest: Manifest) -> str:
    classes, stored = manifest.classes, manifest.ipc.stored
    if labels.min() < 0 or labels.max() >= len(classes):
        return f"its labels are {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}"
    count = np.bincount(labels, minlength=len(classes))
    if (count == stored).all():
        return "its labels are not sorted"
    wrong = int(np.flatnonzero(count != stored)[0])
    return f"it holds {count[wrong]} images of class {shortened(classes[wrong])}, its manifest says {stored}"


def _pixel_problems(how: Pixels, tensors: dict[str, torch.Tensor]) -> list[str]:
    levels, found = tensors["levels"].numpy().astype(int), []
    if (levels[..., 1] - levels[..., 0] < (1 << how.bits) - 1).any():
        found.append(f"its levels lie too close for {how.bits} bits")
    if how.coding is None and quantize.has_stray_bits(tensors["pixels"].numpy(), how.planes, how.bits):
        found.append("bits are set in its pixels after the last code of an image")
    return found


def finished_set(
    settings: Settings, real: "RealData", images: torch.Tensor, *, order: str | None = None
) -> SyntheticSet:
    """The set as it is stored: in the bits of its settings, with everything but the score in its manifest.

    Args:
        images: in [0, 1], which are rounded to uint8, or uint8.
        order: of the images of a class, where there is one.
    """
    d = settings.distill
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = to_bytes(images)
    labels = torch.arange(len(real.classes)).repeat_interleave(d.ipc)
    how = stored = None
    if d.is_quantized:
        how = Pixels.distilled(images.shape[1:], d.stored_bits, subsampled=d.is_subsampled)
        images, stored, how = pixels.stored(images, how)
    tensors = {"labels": labels} | (stored or {"images": images})
    kept = to_dict(settings)
    kept["runtime"] = {k: kept["runtime"][k] for k in ("precision", "compile")}  # the rest is local to a machine
    for key in ("load", "add_to"):
        kept["distill"][key] = Path(kept["distill"][key]).name if kept["distill"][key] else None
    content = {
        "kind": KIND,
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
        "training": Training.of(kept).to_dict(),
        "settings": kept,
        "score": None,
        **({} if how is None else {"pixels": how.to_dict()}),
        **({} if order is None else {"order": order}),
    }
    manifest = with_digests(content, tensors)
    return SyntheticSet(images=images, labels=labels, manifest=manifest, pixel_tensors=stored)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as they are stored: uint8, rounded to the nearest level."""
    return images.mul(255).round().to(torch.uint8)


def manifest_score(row: "Score") -> ManifestScore:
    """What a manifest says of a row of `scores.json`."""
    last, best = (Figure(mean=accuracy.mean, std=accuracy.std) for accuracy in (row.last, row.best))
    return ManifestScore(network=row.network, epochs=row.epochs, n=row.n, last=last, best=best)


def format_score(score: ManifestScore) -> str:
    """`61.9% ± 0.7% (n = 3)`; one student has no deviation."""
    deviation = f" ± {score.last.std:.1%}" if score.n > 1 else ""
    return f"{score.last.mean:.1%}{deviation} (n = {score.n})"
