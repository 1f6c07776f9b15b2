"""The memory-mapped store: uint8 images of each split sorted by class, written once, whole or not at all.

Axes: N images, ch channels, H = W = size, C classes.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import MOVE, UNFINISHED, format_bytes, locked, sync_folder, writable


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split, sorted by class and in source order within a class."""

    images: np.ndarray  # uint8 [N, ch, H, W], memory-mapped, read-only
    offsets: np.ndarray  # int64 [C+1]; class c is images[offsets[c]:offsets[c+1]]

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts())

    def counts(self) -> np.ndarray:
        """Images per class, int64 [C]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class RealData:
    """A real data set, opened from its store."""

    name: str  # never an absolute path
    classes: tuple[str, ...]
    train: Split
    test: Split | None  # none: the source has no test split and nothing was held out
    size: int  # side in pixels
    channels: int
    mean: tuple[float, ...]  # of the train split per channel, over all pixels, in 0..1
    std: tuple[float, ...]  # likewise; population standard deviation
    fingerprint: str  # sha256 in hex of content and preprocessing
    skipped: int  # unreadable images that were skipped
    skipped_images: tuple[str, ...] = ()  # which they are
    changed: dict[str, Any] = field(default_factory=dict)  # pictures that were changed, as `decode.changes` counts them
    left_out: dict[str, int] = field(default_factory=dict)  # files of the source that are no pictures, by kind

    def test_split(self, *, otherwise: str = "") -> Split:
        """The test split, where a command cannot do without.

        Args:
            otherwise: what else the user can do about it, for the message, such as `or --repeats 0`.

        Raises:
            UserError: there is none.
        """
        if self.test is None:
            advice = "pass --holdout with the fraction of each class that is kept from training, such as 0.1"
            raise UserError(f"{self.name} has no test split to measure on: {advice}{otherwise and f', {otherwise}'}")
        return self.test


def read_store(folder: Path, name: str) -> RealData | None:
    """The data in a store, or none where it is missing, damaged or of an earlier version. Reads no image."""
    try:
        facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        splits = {split: _read_split(folder / f"{split}.npy", o) for split, o in facts["offsets"].items()}
        return RealData(
            name=name,
            classes=tuple(facts["classes"]),
            train=splits["train"],
            test=splits.get("test"),
            size=facts["size"],
            channels=facts["channels"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            fingerprint=facts["fingerprint"],
            skipped=facts["skipped"],
            skipped_images=tuple(facts["skipped_images"]),
            changed=facts["changed"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _read_split(path: Path, offsets: list[int]) -> Split:
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    whole = images.dtype == np.uint8 and images.ndim == 4 and len(images) == offsets[-1]
    if not whole or path.stat().st_size != images.offset + images.nbytes:
        raise ValueError(f"{path.name} is damaged")
    return Split(images, np.array(offsets, np.int64))


@contextmanager
def writing(home: Path) -> Iterator[None]:
    """A block that writes a part of a store in that folder of the cache, and reads nothing.

    Raises:
        UserError: the disk is full, or refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {home} is full: free some space, {MOVE}") from error
        raise UserError(
            f"the store of images cannot be written in {home} ({error.strerror}): check the disk, {MOVE}"
        ) from error


@contextmanager
def new_store(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, or vanishes if anything is raised. Under `folder`'s lock.

    Raises:
        UserError: the disk is full, or refuses the folder.
    """
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    clean_stale(folder.parent)
    with interrupts.cleaning_up():
        try:
            with writing(folder.parent):
                temporary.mkdir(parents=True)
            yield temporary
            with writing(folder.parent):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
                sync_folder(folder.parent)
            interrupts.note_cached()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def lock_of(folder: Path, *, timeout: float = -1) -> AbstractContextManager[None]:
    """The lock under which one process at a time writes the store `folder`.

    Raises:
        UserError: the cache folder cannot be used.
    """
    return locked(writable(folder.parent) / f"{folder.name}.lock", timeout=timeout)


def clean_stale(home: Path) -> None:
    """Removes temporary folders whose writers were killed: nobody holds their locks."""
    for temporary in home.glob(f"{UNFINISHED}*"):
        try:
            with lock_of(home / temporary.name.removeprefix(UNFINISHED), timeout=0):
                shutil.rmtree(temporary, ignore_errors=True)
        except Timeout:
            continue


def check_space(home: Path, needed: int, what: str = "the store of images") -> None:
    """Refuses to start what would not fit.

    Raises:
        UserError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{what} needs {format_bytes(needed)} in {home}, where {format_bytes(free)} are free: "
            f"free some space, {MOVE}"
        )


class SplitWriter:
    """Writes the images of one split to their places in a .npy file, and sums them up.

    Plain writes, not a writable memory map: a full disk is then an error rather than a SIGBUS, and written pages do not
    count as this process's memory.

    All methods that write raise UserError if the disk is full, or refuses.
    """

    def __init__(self, path: Path, count: int, channels: int, size: int):
        self.path, self.shape, self.home = path, (count, channels, size, size), path.parents[1]
        self.filled = np.zeros(count, bool)
        self.histogram = np.zeros((channels, 256), np.int64)  # of pixel values
        with writing(self.home):
            self._file: Any = open(path, "wb")  # noqa: SIM115 - closed by __exit__
            try:
                self._start = _write_header(self._file, self.shape)
                self._file.truncate(self._start + math.prod(self.shape))
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self.home):
            self._file.close()

    def put(self, positions: np.ndarray, images: np.ndarray) -> None:
        """Writes uint8 [B, ch, H, W] at ascending positions int64 [B]; neighbors go in one write."""
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        with writing(self.home):
            for low, high in pairwise([0, *breaks.tolist(), len(positions)]):
                if high > low:
                    self._file.seek(self._start + int(positions[low]) * images[0].size)
                    self._file.write(images[low:high].data)
        self.filled[positions] = True
        for channel in range(self.shape[1]):
            self.histogram[channel] += np.bincount(images[:, channel].ravel(), minlength=256)

    def finish(self) -> None:
        """Closes the gaps that skipped images left, and brings the file to the disk."""
        with writing(self.home):
            self._file.flush()
            if not self.filled.all():
                self._close_gaps()
            os.fsync(self._file.fileno())

    def _close_gaps(self) -> None:
        whole = np.load(self.path, mmap_mode="r")
        with open(self.path.with_suffix(".part"), "wb") as part:
            _write_header(part, (int(self.filled.sum()), *self.shape[1:]))
            for position in np.flatnonzero(self.filled):
                part.write(whole[position].tobytes())
            os.fsync(part.fileno())
        self._file.close()
        os.replace(part.name, self.path)
        self._file = open(self.path, "rb+")  # noqa: SIM115 - closed by __exit__

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel in 0..1, from exact integer sums."""
        pixels, values = int(self.histogram[0].sum()), np.arange(256)
        sums = [(int(h @ values), int(h @ values**2)) for h in self.histogram]
        return [s / (255 * pixels) for s, _ in sums], [math.sqrt(pixels * q - s * s) / (255 * pixels) for s, q in sums]


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Writes store.json, brought to the disk. Raises UserError if the disk is full, or refuses."""
    with writing(folder.parent), open(folder / "store.json", "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
