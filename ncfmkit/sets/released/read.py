"""Distilled sets as other projects release them: tensors saved with torch, or a folder of pictures.

Axes: N images, C channels, H = W side, K classes. The real data are not known here: values are returned as stored.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes
from ncfmkit.progress import notice, track
from ncfmkit.real.decode import BadImageError, open_picture, picture_suffixes, readable_formats
from ncfmkit.real.folders import is_noise, left_out_text
from ncfmkit.sets.released import torch_file

Kind = Literal["list", "pair", "experiments", "folder"]
MODES = {"L": 1, "RGB": 3}  # Pillow's names of the pictures that are taken, with their channels
LEAST_PROBABILITY = 1e-8  # what 0 counts as where probabilities become logits
EXPECTED = (
    "expected a list [images, targets] of two tensors, or a tensor of images [N, ch, H, W] with the labels in a file "
    "beside it (images_best.pt, labels_best.pt), or a dictionary whose 'data' is a list of lists [images, targets], or "
    "a folder of class folders"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Released:
    """A released set as its files have it, in their order."""

    kind: Kind
    images: np.ndarray  # uint8 or float32 [N, C, H, W]
    labels: np.ndarray | None  # int64 [N]; indexes into `folders` if the source is a folder; None: only soft labels
    soft_logits: np.ndarray | None  # float32 [N, K]
    folders: tuple[str, ...]  # names of the class folders; empty if the source is not a folder
    files: dict[str, Path]  # all that was read, by its name within the release


def read(path: Path, *, labels: Path | None, experiment: int | None = None, max_bytes: int) -> Released:
    """A released set from a file of `torch.save`, or from a folder of class folders.

    Args:
        labels: the file of the labels, if FILE holds only images; None: the file beside it with a matching name.
        experiment: index of the set in a file with several; None: the first.
        max_bytes: what a file, or all pictures of a folder in memory, may have.

    Raises:
        UserError: no such file, too large, damaged, with code in it, or with other things than a set.
    """
    if path.is_dir():
        _refuse("--labels", labels, f"{path} has its own labels")
        _refuse("--experiment", experiment, f"{path} holds one set")
        return _read_folder(path, max_bytes)
    check_exists(path)
    content = torch_file.load(path, max_bytes)
    if isinstance(content, torch.Tensor):
        _refuse("--experiment", experiment, f"{path} holds one set")
        return _read_pair(path, content, labels, max_bytes)
    if _is_set(content):
        _refuse("--experiment", experiment, f"{path} holds one set")
        return _read_list(path, content, labels, "list")
    if isinstance(content, dict) and _are_sets(content.get("data")):
        return _read_list(path, _chosen(path, content["data"], experiment or 0), labels, "experiments")
    raise UserError(f"{path} holds {_described(content)}: {EXPECTED}")


def check_exists(path: Path) -> None:
    """Raises UserError unless there is a file or a folder."""
    if not path.is_file() and not path.is_dir():
        raise UserError(f"no released set at {path}: {EXPECTED}")


def _refuse(flag: str, value: Any, why: str) -> None:
    if value is not None:
        raise UserError(f"{flag} {value}: {why}: leave {flag} out")


def _is_set(content: Any) -> bool:
    return isinstance(content, list | tuple) and [isinstance(c, torch.Tensor) for c in content] == [True, True]


def _are_sets(content: Any) -> bool:
    return isinstance(content, list | tuple) and len(content) > 0 and all(map(_is_set, content))


def _chosen(path: Path, sets: Sequence[Sequence[torch.Tensor]], experiment: int) -> Sequence[torch.Tensor]:
    if not 0 <= experiment < len(sets):
        raise UserError(f"--experiment {experiment}: {path} holds {len(sets)}: pass 0 to {len(sets) - 1}")
    notice(f"{path.name}: taking experiment {experiment} of {len(sets)}, counted from 0")
    return sets[experiment]


def _described(content: Any) -> str:
    if isinstance(content, dict):
        keys = [repr(key)[:40] for key in content]
        return f"a dictionary with {', '.join(keys[:6])}" + (f", ... ({len(keys)} keys)" if len(keys) > 6 else "")
    if isinstance(content, list | tuple):
        kinds = [type(item).__name__ for item in content]
        return f"a {type(content).__name__} of {len(kinds)} ({', '.join(kinds[:6])}{', ...' if len(kinds) > 6 else ''})"
    return f"a {type(content).__name__}"


def _read_list(path: Path, content: Sequence[torch.Tensor], labels: Path | None, kind: Kind) -> Released:
    _refuse("--labels", labels, f"{path} has its own labels")
    images = _images(content[0], path)
    hard, soft = _labels(content[1], path, len(images))
    return Released(kind=kind, images=images, labels=hard, soft_logits=soft, folders=(), files={path.name: path})


def _read_pair(path: Path, content: torch.Tensor, labels: Path | None, max_bytes: int) -> Released:
    images = _images(content, path)
    beside = labels or _labels_beside(path)
    found = torch_file.load(beside, max_bytes)
    if not isinstance(found, torch.Tensor):
        raise UserError(f"{beside} holds {_described(found)}: expected a tensor of the labels of {path.name}")
    hard, soft = _labels(found, beside, len(images))
    files = {path.name: path, beside.name: beside}
    return Released(kind="pair", images=images, labels=hard, soft_logits=soft, folders=(), files=files)


def _labels_beside(path: Path) -> Path:
    beside = path.with_name(path.name.replace("images", "labels"))
    if beside == path or not beside.is_file():
        tried = "" if beside == path else f", and there is no {beside.name} beside it"
        raise UserError(f"{path} holds only images{tried}: pass the file of their labels as --labels FILE")
    return beside


def _images(tensor: torch.Tensor, path: Path) -> np.ndarray:
    """uint8 or float32 `[N, C, H, W]`, copied off the file."""
    torch_file.check_tensor(tensor, path, "images")
    shape = tuple(tensor.shape)
    if len(shape) != 4 or 0 in shape or shape[1] not in (1, 3) or shape[2] != shape[3]:
        raise UserError(
            f"{path}: expected images of shape [N, 1 or 3, side, side], got a tensor of shape {list(shape)}: {EXPECTED}"
        )
    if tensor.dtype == torch.uint8:
        return np.array(tensor.detach().resolve_neg().numpy())
    if not tensor.is_floating_point():
        raise UserError(f"{path}: expected images of uint8 or floats, got {_name(tensor)}: convert them first")
    return _finite(tensor, path, "images")


def _labels(tensor: torch.Tensor, path: Path, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """int64 `[N]`, or else logits, float32 `[N, K]`."""
    torch_file.check_tensor(tensor, path, "labels")
    shape, soft = list(tensor.shape), tensor.is_floating_point()
    whole = not soft and not tensor.is_complex() and tensor.dtype != torch.bool
    if not (whole and len(shape) == 1) and not (soft and len(shape) == 2 and shape[1] >= 2):
        raise UserError(
            f"{path}: expected labels as integers [N] or as probabilities or logits [N, K], "
            f"got {_name(tensor)} of shape {shape}"
        )
    if shape[0] != count:
        raise UserError(f"{path}: expected as many labels as images, {count}, got {shape[0]}")
    if whole:
        return np.array(tensor.resolve_neg().to(torch.int64).numpy()), None
    return None, _logits(_finite(tensor, path, "labels"), path)


def _logits(soft_NK: np.ndarray, path: Path) -> np.ndarray:
    """As they are, or the logarithms where every row is a distribution."""
    if soft_NK.min() >= 0 and np.allclose(soft_NK.sum(1), 1, atol=1e-3):
        notice(f"{path.name}: soft labels are probabilities: kept as logarithms, {LEAST_PROBABILITY:g} for 0")
        return np.log(soft_NK.clip(LEAST_PROBABILITY))
    notice(f"{path.name}: soft labels are logits")
    return soft_NK


def _finite(tensor: torch.Tensor, path: Path, what: str) -> np.ndarray:
    values: np.ndarray = tensor.detach().resolve_neg().to(torch.float32, copy=True).numpy()
    if not np.isfinite([values.min(), values.max()]).all():
        raise UserError(f"{path}: expected finite {what}, got NaN or infinity among them: get the file again")
    return values


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_folder(root: Path, max_bytes: int) -> Released:
    """Pictures of class folders, all of one size and color mode; folders and files in sorted order."""
    folders = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir() and not is_noise(e.name)))
    if not folders:
        raise UserError(f"{root}: expected one folder per class in it, got none")
    left_out: Counter[str] = Counter()
    listed = [_pictures(root, folder, left_out) for folder in folders]
    if left_out:
        notice(f"{root.name}: left out {left_out_text(left_out)}")
    files = {name: root / name for group in listed for name in group}
    images = np.stack(list(_decoded(files, max_bytes)))
    labels = np.repeat(np.arange(len(folders)), [len(group) for group in listed])
    return Released(kind="folder", images=images, labels=labels, soft_logits=None, folders=folders, files=files)


def _pictures(root: Path, folder: str, left_out: Counter[str]) -> list[str]:
    """Pictures right in a class folder, relative to `root`; links must not lead out of it."""
    inside = root.resolve()
    names = []
    for entry in sorted((root / folder).iterdir()):
        where = f"{folder}/{entry.name}"
        if entry.is_dir():
            raise UserError(f"{root}: {where} is a folder: expected pictures directly in the class folders")
        if is_noise(entry.name):
            continue
        if entry.suffix.lower() not in picture_suffixes():
            left_out[entry.suffix.lower() or "files without a suffix"] += 1
            continue
        if not entry.resolve().is_relative_to(inside):
            raise UserError(f"{root}: {where} links outside the folder: replace the link with the picture")
        if not entry.is_file():
            raise UserError(f"{root}: {where} is not a file: remove it")
        names.append(where)
    if not names:
        raise UserError(f"{root}: no pictures in {folder}/: expected {', '.join(readable_formats())} files")
    return names


def _decoded(files: dict[str, Path], max_bytes: int) -> Iterator[np.ndarray]:
    """uint8 `[C, H, W]` of each picture."""
    first: tuple[str, str, tuple[int, int]] | None = None
    with track("reading pictures", len(files)) as bar:
        for name, path in files.items():
            picture = _opened(path, name)
            if first is None:
                first = name, picture.mode, picture.size
                _check_first(*first, len(files), max_bytes)
            if (picture.mode, picture.size) != first[1:]:
                raise UserError(
                    f"{name}: expected {_look(first[1], first[2])} as {first[0]}, got "
                    f"{_look(picture.mode, picture.size)}: bring all pictures to one size and color mode first"
                )
            image_HWC = np.asarray(picture).reshape(*picture.size[::-1], MODES[picture.mode])
            yield image_HWC.transpose(2, 0, 1)
            bar.advance()


def _opened(path: Path, name: str) -> Image.Image:
    try:
        return open_picture(path, name).image
    except BadImageError as error:
        raise UserError(f"{name} is not a readable picture ({error.reason}): get it again") from None


def _check_first(name: str, mode: str, size: tuple[int, int], count: int, max_bytes: int) -> None:
    if mode not in MODES or size[0] != size[1]:
        raise UserError(
            f"{name}: expected a square picture, gray (L) or RGB, got {_look(mode, size)}: convert the pictures first"
        )
    needed = count * MODES[mode] * size[0] * size[1]
    if needed > max_bytes:
        raise UserError(
            f"{count} pictures as {name} need {format_bytes(needed)}, the limit is {format_bytes(max_bytes)}: "
            "raise --max-size"
        )


def _look(mode: str, size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} {mode}"
