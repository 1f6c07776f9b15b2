"""Images for int8: those that ranges are taken from (the distilled set itself, another set, or real data), and those
that the search for layers is measured on.

Both are training images. Real ones are divided by their place: even places calibrate, odd ones are for the search. The
test split takes part in no choice, so that the accuracy on it says what the finished model is worth.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import CalibrationOrigin, Contract, format_shape
from ncfmkit.exporters.matching_data import open_images
from ncfmkit.exporters.student import Student
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import Split
from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import to_bytes
from ncfmkit.sets.package import is_package

MOST_REAL = 1000  # images of real data; of a distilled set all are taken
MOST_SEARCHED = 10_000  # images that the accuracy of the search is measured on
FEWEST = 10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    images: np.ndarray  # uint8 [N, C, H, W]
    origin: CalibrationOrigin
    distilled: bool


def is_set(text: str) -> bool:
    """Whether `--calibration` names a synthetic set's file, run directory or package; else it names real data."""
    return Path(text).suffix == ".safetensors" or is_package(Path(text)) or (Path(text) / set_file.FILE_NAME).is_file()


def calibration_images(
    student: Student, contract: Contract, data: DataArguments | None, settings: Settings
) -> Calibration:
    """The images to calibrate with.

    Args:
        student: what is to be exported.
        contract: what it takes.
        data: a set's file, run directory or package, or real data; none: the set that the student was trained on, found
            by its digests beside the student.
        settings: how real data are read.

    Raises:
        UserError: nothing there, images of another shape than the student's, or too few.
    """
    if data is not None and not is_set(data.data):
        real = open_images(str(student.path), contract, data, settings)
        images = spread(real.train.images[::2], MOST_REAL)
        found = Calibration(
            images=images,
            origin=CalibrationOrigin(name=real.name, fingerprint=real.fingerprint, images=len(images)),
            distilled=False,
        )
    else:
        path = Path(data.data) if data else _set_beside(student)
        small = set_file.load(path)
        images = to_bytes(small.decoded()[0]).numpy()
        if images.shape[1:] != contract.image_shape:
            raise UserError(
                f"--calibration: {student.path} takes {format_shape(contract.image_shape)} images, "
                f"{small.manifest.name} has {format_shape(images.shape[1:])}: pass another set"
            )
        origin = CalibrationOrigin(
            name=small.manifest.name, manifest_sha256=small.manifest.manifest_sha256, images=len(images)
        )
        found = Calibration(images=images, origin=origin, distilled=True)
    if len(found.images) < FEWEST:
        raise UserError(
            f"--calibration: {len(found.images)} images{'' if found.distilled else ', every second training image,'} "
            f"are too few to calibrate int8 with, expected {FEWEST} or more: pass a larger set or real data"
        )
    return found


def _set_beside(student: Student) -> Path:
    trained_on = student.manifest.trained_on
    for path in sorted(student.path.parent.glob("*.safetensors")):
        if path != student.path and set_file.digests(path) == trained_on.sha256:
            notice(f"int8 is calibrated with {path}, the set that the student was trained on")
            return path
    raise UserError(
        "--precision int8 needs images to calibrate with: pass --calibration with the distilled set "
        f"{trained_on.name} (its file or run directory), or real data"
    )


def spread(images_NCHW: np.ndarray, most: int) -> np.ndarray:
    """At most that many images, evenly spread over an array that is sorted by class; contiguous."""
    return np.ascontiguousarray(images_NCHW[np.unique(np.linspace(0, len(images_NCHW) - 1, most).round().astype(int))])


def search_images(train: Split) -> tuple[np.ndarray, np.ndarray]:
    """Training images for the search, spread over the classes, at most `MOST_SEARCHED`; none of them calibrates.

    Returns:
        images uint8 `[N, C, H, W]`, a view of the split's; labels int64 `[N]`.
    """
    step = 2 * -(-len(train.images) // (2 * MOST_SEARCHED))  # even, so that all places are odd
    return train.images[1::step], train.labels[1::step]
