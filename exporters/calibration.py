"""The images that int8's ranges are taken from: the distilled set itself, another one, or real data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments
from ncfmkit.sets import set_file
from ncfmkit.sets.loading import load
from ncfmkit.sets.manifest import DIGEST_KEY
from ncfmkit.sets.package import is_package

MOST_REAL = 1000  # images of real data; distilled sets are taken whole
FEWEST = 10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    images: np.ndarray  # uint8 [N, C, H, W]
    origin: dict[str, Any]  # name, images, and the digest or fingerprint
    distilled: bool


def is_set(text: str) -> bool:
    """Whether `--calibration` names a synthetic set's file, run directory or package; else it names real data."""
    return Path(text).suffix == ".safetensors" or is_package(Path(text)) or (Path(text) / set_file.FILE_NAME).is_file()


def calibration_images(
    wanted: DataArguments | None, student: Path, metadata: dict[str, Any], settings: Settings
) -> Calibration:
    """The images to calibrate with.

    Args:
        wanted: `data` names a set or real data; none: the set that the student was trained on, found by its digests
            beside the student.
        student, metadata: the student's file, and what `student_file.load` says of it.
        settings: how real data are read.

    Raises:
        UserError: nothing there, images of another shape than the student's, or too few.
    """
    if wanted is None:
        path = _set_beside(student, metadata["trained_on"])
        notice(f"int8 is calibrated with {path}, the set that the student was trained on")
        found = _from_set(path)
    elif is_set(wanted.data):
        found = _from_set(Path(wanted.data))
    else:
        found = _from_real(wanted, settings)
    expected, got = (metadata["channels"], metadata["size"], metadata["size"]), found.images.shape[1:]
    if got != expected:
        advice = "pass another set" if found.distilled else "pass --size, --resize and --color to make them fit"
        raise UserError(
            f"--calibration: {student} takes {_by(expected)} images, {found.origin['name']} has {_by(got)}: {advice}"
        )
    if len(found.images) < FEWEST:
        raise UserError(
            f"--calibration: {len(found.images)} images are too few to calibrate int8 with, expected {FEWEST} or "
            "more: pass a larger set or real data"
        )
    return found


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _set_beside(student: Path, trained_on: dict[str, Any]) -> Path:
    for path in sorted(student.parent.glob("*.safetensors")):
        if path != student and set_file.digests(path) == trained_on["sha256"]:
            return path
    raise UserError(
        "--precision int8 needs images to calibrate with: pass --calibration and the distilled set "
        f"{trained_on['name']} (its file or run directory), or real data"
    )


def _from_set(path: Path) -> Calibration:
    small = load(path)
    images = small.decoded()[0].mul(255).round().to(torch.uint8).numpy()
    origin = {k: small.manifest[k] for k in ("name", DIGEST_KEY)} | {"images": len(images)}
    return Calibration(images=images, origin=origin, distilled=True)


def _from_real(wanted: DataArguments, settings: Settings) -> Calibration:
    real = wanted.open(settings)
    images = spread(real.train.images, MOST_REAL)
    origin = {"name": real.name, "fingerprint": real.fingerprint, "images": len(images)}
    return Calibration(images=images, origin=origin, distilled=False)


def spread(images_NCHW: np.ndarray, most: int) -> np.ndarray:
    """At most that many images, evenly spread over an array that is sorted by class; contiguous."""
    return np.ascontiguousarray(images_NCHW[np.unique(np.linspace(0, len(images_NCHW) - 1, most).round().astype(int))])
