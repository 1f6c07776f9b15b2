"""`ncfmkit convert`: released sets into ordinary ones. Which image is of which class, and what its values are.

Axes: N stored images, C channels, H = W side, K classes, D decoded images.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ncfmkit.config import LabelSettings, Settings
from ncfmkit.errors import UserError
from ncfmkit.files import check_free, parse_bytes, safe_name, sha256_of
from ncfmkit.jobs.setup import make_settings
from ncfmkit.networks import resolve_network
from ncfmkit.progress import notice, shortened_list
from ncfmkit.real.arguments import split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import Clipped, Converted, finished_set
from ncfmkit.sets.released.pixel_values import Normalization, Values, to_bytes
from ncfmkit.sets.released.read import Released, check_exists, read
from ncfmkit.sets.synthetic import SyntheticSet

FACTORS = {"list": 2, "pair": 1, "experiments": 1, "folder": 1}  # of each kind of release, where nobody says
LEAST_STD = 1e-6  # of a normalization
LARGEST_LOGIT = 65504.0  # of float16


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a released set is to be read, as the user said it."""

    labels: Path | None = None  # file of the labels; None: in FILE, or beside it
    labels_by_position: bool = False  # hard labels from the order of the rows; false: from the labels
    experiment: int | None = None  # number of the one to take, from 0; None: the first, if there are several
    values: Values | None = None  # what the pixel values are; None: bytes where they are 8-bit, else unit
    mean: str | None = None  # comma-separated, per channel
    std: str | None = None
    factor: int | None = None  # that each stored image is cut by; None: as its kind of release
    decode: Literal["single", "multi", "bound"] = "single"
    max_bytes: int = 2**31  # of a file, or of all pictures of a folder


def convert(
    path: str | os.PathLike[str],
    *,
    data: Any,
    values: Values | None = None,
    mean: str | Sequence[float] | None = None,
    std: str | Sequence[float] | None = None,
    labels: str | os.PathLike[str] | None = None,
    labels_by_position: bool = False,
    experiment: int | None = None,
    factor: int | None = None,
    decode: Literal["single", "multi", "bound"] | None = None,
    max_size: str = "2GiB",
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    force: bool = False,
    **overrides: Any,
) -> tuple[Path, SyntheticSet]:
    """Reads a set that another project released (DM, MTT, DATM, ...) and writes it as an ordinary one.

    Args:
        path: a file of `torch.save` with images and labels, or a folder of class folders of pictures.
        data: the real data that the set was made from, as in :func:`ncfmkit.distill`: class names, normalization, ZCA.
        values: what the pixel values are: `unit` (in [0, 1]), `bytes` (0 to 255), `normalized` or `zca`; None: `bytes`
            where they are 8-bit, else `unit`.
        mean, std: per channel, what normalized values were normalized with; None: the data's own, with `zca` nothing.
        labels: file of the labels; None: in the file, or beside `images_*.pt` as `labels_*.pt`.
        labels_by_position: with soft labels: the rows are sorted by class, equally many of each.
        experiment: of a file with several sets: which one, from 0; None: the first.
        factor: a stored image is a factor x factor mosaic; None: 2 for a list of images and targets, else 1.
        decode: how stored images are cut up; None: `single`.
        max_size: the largest file that is read.
        out: the file to write; None: NAME.safetensors in the working directory, after the set.
        recipe: of the students that train on the set, by name or as a path ending in .toml.
        force: overwrite an existing file.
        overrides: settings by name, such as `**{"student.epochs": 300}`; and `data_root`, `download`, `skip_bad` as in
            :func:`ncfmkit.distill`.

    Returns:
        The file, and the set in it. Its score is unknown: :func:`ncfmkit.evaluate` measures it.

    Raises:
        UserError: the file is not a set, does not fit the data, its values are not what `values` says, or `out` exists
            or cannot be written.

    Example:
        >>> file, small = ncfmkit.convert("res_DM_CIFAR10_ConvNet_10ipc.pt", data="cifar10", factor=1)
    """
    path, out = Path(path), None if out is None else Path(out)
    source, changes = split_arguments(data, overrides)
    changes |= {k: v for k, v in {"distill.factor": factor, "distill.decode": decode}.items() if v is not None}
    settings = make_settings(source.data, None if recipe is None else os.fspath(recipe), changes)
    d = settings.distill
    reading = Reading(
        labels=None if labels is None else Path(labels),
        labels_by_position=labels_by_position,
        experiment=experiment,
        values=values,
        mean=_joined(mean),
        std=_joined(std),
        factor=d.factor if "distill.factor" in changes else None,
        decode=d.decode if "distill.decode" in changes else "single",
        max_bytes=parse_bytes(max_size, "--max-size"),
    )
    check_exists(path)
    source.check(settings)
    if out is not None:
        check_free(out, force=force)
    return write_released(path, source.open(settings), settings, reading, out=out, force=force)


def _joined(numbers: str | Sequence[float] | None) -> str | None:
    return numbers if numbers is None or isinstance(numbers, str) else ",".join(map(str, numbers))


def write_released(
    path: Path, real: RealData, settings: Settings, reading: Reading, *, out: Path | None, force: bool = False
) -> tuple[Path, SyntheticSet]:
    """As :func:`convert`, with real data that are open."""
    result = read_released(path, real, settings, reading)
    out = out or Path(safe_name(result.manifest.name) + ".safetensors")
    check_free(out, force=force)
    return out, dataclasses.replace(result, manifest=set_file.save(result, out, force=force))


def read_released(path: Path, real: RealData, settings: Settings, reading: Reading) -> SyntheticSet:
    """A released set as an ordinary one; its score is unknown.

    Args:
        path: a file of `torch.save` or a folder of pictures, see :mod:`ncfmkit.sets.released.read`.
        real: the data that it was made from: class names, normalization, and the whitening.
        settings: of the data and of the students that train on it; they go into the manifest.

    Raises:
        UserError: the file is no set, does not fit the data, or its values are not what the user says.
    """
    normalization = _normalization(reading, real.channels)
    released = read(path, labels=reading.labels, experiment=reading.experiment, max_bytes=reading.max_bytes)
    _check_shape(path, released, real)
    labels_N = _hard_labels(path, released, real, reading.labels_by_position)
    order_N = np.argsort(labels_N, kind="stable")
    settings = _as_converted(settings, real, reading, released.kind, _ipc(path, labels_N, real, released))
    values = reading.values or ("bytes" if released.images.dtype == np.uint8 else "unit")
    images_NCHW, clipped = to_bytes(released.images, order_N, values, real, normalization)
    _say(path, released, values, settings, clipped)
    result = finished_set(settings, real, torch.from_numpy(images_NCHW))
    converted = Converted(
        **_origin(path, released),
        kind=released.kind,
        values=values,
        clipped=Clipped(**clipped),
        experiment=(reading.experiment or 0) if released.kind == "experiments" else None,
    )
    source = result.manifest.source.model_copy(update={"converted": converted})
    result = dataclasses.replace(result, manifest=result.manifest.changed(source=source))
    return _with_soft_labels(path, result, released.soft_logits, order_N)


def _normalization(reading: Reading, channels: int) -> Normalization | None:
    if reading.mean is None and reading.std is None:
        return None
    if reading.values not in ("normalized", "zca"):
        raise UserError("--mean and --std say how values were normalized: pass --values normalized or zca with them")
    if reading.mean is None or reading.std is None:
        raise UserError("--mean and --std belong together: pass both")
    mean, std = _numbers("--mean", reading.mean, channels), _numbers("--std", reading.std, channels)
    if min(std) < LEAST_STD:
        raise UserError(f"--std {reading.std}: expected numbers above 0, {LEAST_STD:g} or more")
    return Normalization(mean=mean, std=std)


def _numbers(flag: str, text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(0 <= number <= 1 for number in numbers):
        example = ",".join(["0.5"] * count)
        raise UserError(f"{flag} {text!r}: expected {count} comma-separated numbers in [0, 1], such as {example}")
    return numbers


def _check_shape(path: Path, released: Released, real: RealData) -> None:
    expected = (real.channels, real.size, real.size)
    if released.images.shape[1:] != expected:
        raise UserError(
            f"{path} has images of shape {released.images.shape[1:]}, {real.name} has {expected}: pass the data that "
            "it was made from, with --size, --resize and --color as then, or resize the released images first"
        )


def _hard_labels(path: Path, released: Released, real: RealData, by_position: bool) -> np.ndarray:
    """int64 `[N]`, in the order of the file."""
    classes = len(real.classes)
    if released.soft_logits is not None and released.soft_logits.shape[1] != classes:
        raise UserError(
            f"{path} has soft labels of {released.soft_logits.shape[1]} classes, {real.name} has {classes}: "
            "pass the data that it was made from"
        )
    if by_position:
        return _by_position(path, released, classes)
    if released.kind == "folder":
        return _folder_classes(path, released.folders, real)[released.labels]
    if released.labels is None:
        assert released.soft_logits is not None
        return released.soft_logits.argmax(1)
    low, high = int(released.labels.min()), int(released.labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{path} has labels from {low} to {high}, {real.name} has {classes} classes, 0 to {classes - 1}: "
            "pass the data that it was made from"
        )
    return released.labels


def _by_position(path: Path, released: Released, classes: int) -> np.ndarray:
    count = len(released.images)
    if released.soft_logits is None:
        raise UserError(f"--labels-by-position: {path} says the class of each image: leave the flag out")
    if count % classes:
        raise UserError(
            f"--labels-by-position: expected a multiple of the {classes} classes, got {count} images in {path}"
        )
    return np.repeat(np.arange(classes), count // classes)


def _folder_classes(path: Path, folders: tuple[str, ...], real: RealData) -> np.ndarray:
    """The class of each folder, by its name or by the number at its end."""
    if set(folders) == set(real.classes):
        return np.array([real.classes.index(name) for name in folders])
    ends = [re.search(r"[0-9]{1,9}$", name) for name in folders]
    numbers = [int(end[0]) for end in ends if end]
    if sorted(numbers) == list(range(len(real.classes))):
        return np.array(numbers)
    raise UserError(
        f"{path} has {len(folders)} class folders ({shortened_list(folders)}), {real.name} has {len(real.classes)} "
        f"classes ({shortened_list(real.classes)}): expected a folder of each class's name, or names that end in its "
        f"number, 0 to {len(real.classes) - 1}"
    )


def _ipc(path: Path, labels_N: np.ndarray, real: RealData, released: Released) -> int:
    """Images per class, the same for all."""
    counts = np.bincount(labels_N, minlength=len(real.classes))
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[fewest] == counts[most]:
        return int(counts[fewest])
    largest = released.labels is None
    raise UserError(
        f"{path} has {counts[fewest]} images of class {real.classes[fewest]!r} and {counts[most]} of "
        f"{real.classes[most]!r}{', by the largest soft label of each' if largest else ''}: expected equally many "
        f"of every class{'; if its rows are sorted by class, pass --labels-by-position' if largest else ''}"
    )


def _as_converted(settings: Settings, real: RealData, reading: Reading, kind: str, ipc: int) -> Settings:
    factor = reading.factor or FACTORS[kind]
    if factor > real.size:
        raise UserError(f"--factor {factor} is above the image side {real.size}: lower the factor")
    budget = settings.distill.decoded_per_class if reading.decode == "bound" else None
    distill = dataclasses.replace(
        settings.distill,
        ipc=ipc,
        factor=factor,
        decode=reading.decode,
        decoded_per_class=budget,
        bytes=None,  # images and labels are what was released
        bits=None,
        chroma=None,
    )
    network = resolve_network(settings.network, real.size)
    return dataclasses.replace(settings, network=network, distill=distill, labels=LabelSettings())


def _say(path: Path, released: Released, values: str, settings: Settings, clipped: dict[str, float]) -> None:
    d = settings.distill
    notice(
        f"{path.name}: {len(released.images):,} images, {d.ipc} per class"
        f"{'' if released.soft_logits is None else ' with soft labels'}; taken as --values {values}, "
        f"--factor {d.factor} --decode {d.decode}"
    )
    if clipped["share"]:
        notice(
            f"clipped to [0, 1]: {clipped['share']:.2%} of the values, the farthest {clipped['largest']:.3g} outside"
        )


def _origin(path: Path, released: Released) -> dict[str, str]:
    """Name and sha256 of the file; of several files: of their lines as sha256sum writes them, sorted by name."""
    digests = {name: sha256_of(file) for name, file in sorted(released.files.items())}
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    together = hashlib.sha256(lines.encode()).hexdigest()
    return {
        "file": Path(os.path.abspath(path)).name,
        "sha256": next(iter(digests.values())) if len(digests) == 1 else together,
    }


def _with_soft_labels(
    path: Path, result: SyntheticSet, soft_NK: np.ndarray | None, order_N: np.ndarray
) -> SyntheticSet:
    """The logits of a stored image become those of every image that it decodes to."""
    if soft_NK is None:
        return result
    if np.abs(soft_NK).max() > LARGEST_LOGIT:
        raise UserError(f"{path} has logits up to {np.abs(soft_NK).max():.3g}: expected {LARGEST_LOGIT:.0f} at most")
    mask_NP = result.mask()
    soft_NPK = torch.from_numpy(soft_NK[order_N]).half()[:, None].expand(*mask_NP.shape, -1)
    return dataclasses.replace(result, soft_labels=soft_NPK[mask_NP].contiguous())
