"""`ncfmkit train`: one student to keep."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from ncfmkit import interrupts, networks
from ncfmkit._version import __version__
from ncfmkit.config import NetworkSettings, Settings, to_dict
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.estimate import Stage, announce
from ncfmkit.files import check_free
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.jobs.evaluate import settings_for
from ncfmkit.jobs.setup import check_fits, notice_other_data
from ncfmkit.progress import notice
from ncfmkit.real.arguments import split_optional
from ncfmkit.real.store import RealData
from ncfmkit.run import deferred_interrupts, read_checkpoint, write_checkpoint
from ncfmkit.runtime import Runtime, choose_runtime, cpu_threads
from ncfmkit.scoring import student_file, students
from ncfmkit.scoring.student_manifest import NetworkRecord, StudentManifest, TrainedOn
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet

CHECKPOINT_SECONDS = 30.0


def train(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] = "student.safetensors",
    data: Any = None,
    force: bool = False,
    **overrides: Any,
) -> StudentManifest:
    """Trains one student on a set and keeps it as safetensors, with what is needed to use it in its manifest.

    Until the file is written, the state is kept beside it as `NAME.checkpoint`: after an interruption the same call
    continues from there, and ends with the same bytes as one that was not interrupted.

    Args:
        path: a set's file, its run directory or a package, or `hf://OWNER/NAME` of a package on the Hub.
        out: the file to write.
        data: real data to test the student on, as in :func:`ncfmkit.distill`; None: its accuracy stays unknown.
        force: overwrite an existing file, and pass over the checkpoint of another training.
        overrides: settings by name that replace the set's own, such as `**{"network.name": "alexnet"}`; and
            `data_root`, `download`, `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        The student's manifest, a record: `network`, `channels`, `size`, `mean`, `std`, `classes`, `test_accuracy` in
        [0, 1] or None, ...; `to_dict()` gives plain JSON values.

    Raises:
        UserError: no set there, the data do not fit it, `out` exists or cannot be written, or another training was
            interrupted.
        Interrupted: Ctrl-C or SIGTERM; the state is saved first.

    Example:
        >>> ncfmkit.train("runs/digits-ipc1", data="digits", out="student.safetensors").test_accuracy
        0.951
    """
    result, real, settings, runtime = _opened(path, out, data, force, overrides)
    return train_real(result, real, settings, runtime, out=Path(out), force=force)


def dry_run(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] = "student.safetensors",
    data: Any = None,
    force: bool = False,
    **overrides: Any,
) -> Iterator[Stage]:
    """What :func:`train` would train, measured; arguments and errors as there."""
    result, real, settings, runtime = _opened(path, out, data, force, overrides)
    checkpoint = _checkpoint(result, real, settings, runtime, Path(out), force)
    notice(f"device: {runtime.describe()}")
    return estimate(result, real, settings, runtime, epochs_done=checkpoint.done)


def _opened(
    path: str | os.PathLike[str], out: str | os.PathLike[str], data: Any, force: bool, overrides: dict[str, Any]
) -> tuple[SyntheticSet, RealData | None, Settings, Runtime]:
    """The real data are opened last, after all that can be checked without them."""
    result = load(path)
    source, changes = split_optional(data, overrides)
    settings = settings_for(result, changes)
    runtime = choose_runtime(settings.runtime)
    if source is not None:
        source.check(settings)
    check_free(Path(out), force=force)
    return result, source.open(settings) if source else None, settings, runtime


def train_real(
    result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime, *, out: Path, force: bool = False
) -> StudentManifest:
    """As :func:`train`, on a set and real data that are open.

    Raises:
        UserError: the data do not fit the set, `out` exists or cannot be written, or another training was interrupted.
        Interrupted: Ctrl-C or SIGTERM; the state is saved first.
    """
    check_free(out, force=force)
    network, build, test = _checked(result, real, settings)
    if real is not None:
        notice_other_data(result, real)
    notice(f"device: {runtime.describe()}")
    checkpoint = _checkpoint(result, real, settings, runtime, out, force)
    with interrupts.keeping(checkpoint.kept), cpu_threads(checkpoint.threads):
        announce(estimate(result, real, settings, runtime, epochs_done=checkpoint.done))
        state, accuracy = students.train_student(
            result.labeled(),
            build,
            settings.student,
            test=test,
            seed=settings.seed,
            runtime=runtime,
            checkpoint=checkpoint,
        )
        manifest = _manifest(result, settings, network, accuracy)
        with interrupts.held():
            student_file.save(state, manifest, out)
            checkpoint.path.unlink(missing_ok=True)
    return manifest


def estimate(
    result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime, *, epochs_done: int = 0
) -> Iterator[Stage]:
    """What :func:`train_real` would train, measured.

    Raises:
        UserError: the data do not fit the set.
    """
    _, build, test = _checked(result, real, settings)
    left = dataclasses.replace(settings.student, epochs=settings.student.epochs - epochs_done)
    return students.estimate_student(result.labeled(), build, left, test=test, runtime=runtime)


def _checked(
    result: SyntheticSet, real: RealData | None, settings: Settings
) -> tuple[NetworkSettings, Callable[[], Module], LabeledImages | None]:
    """The network with what the images decide, its builder, and what it is tested on."""
    if real is not None:
        check_fits(result, real)
    test = labeled(real, real.test_split()) if real is not None else None
    channels, size = result.images.shape[1], result.images.shape[-1]
    network = networks.resolve_network(settings.network, size)
    return network, networks.builder(network, channels=channels, classes=len(result.classes), size=size), test


def _checkpoint(
    result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime, out: Path, force: bool
) -> "Checkpoint":
    decisive = {
        "set": result.manifest.manifest_sha256,
        "network": to_dict(_checked(result, real, settings)[0]),
        "student": to_dict(settings.student),
        "seed": settings.seed,
        "runtime": [runtime.device.type, runtime.precision, runtime.compile],
    }
    return Checkpoint(out.with_name(f"{out.name}.checkpoint"), decisive, settings.student.epochs, force=force)


def _manifest(
    result: SyntheticSet, settings: Settings, network: NetworkSettings, accuracy: float | None
) -> StudentManifest:
    m = result.manifest
    return StudentManifest(
        kind="student",
        tool=f"ncfmkit {__version__}",
        network=NetworkRecord(**to_dict(network)),
        channels=result.images.shape[1],
        size=result.images.shape[-1],
        mean=m.mean,
        std=m.std,
        classes=tuple(result.classes),
        test_accuracy=accuracy,
        trained_on=TrainedOn(
            name=m.name,
            sha256=m.sha256,
            manifest_sha256=m.manifest_sha256,
            source=m.source.name,
            license=m.source.license,
        ),
        training={"seed": settings.seed, **to_dict(settings.student)},
    )


class Checkpoint:
    """The state of a training beside the student's file, as :class:`ncfmkit.training.Checkpoint`.

    Args:
        path: the file.
        decisive: what decides the student's bytes.
        epochs: of the whole training.
        force: pass over a checkpoint of another training.

    Raises:
        UserError: of another training.
    """

    def __init__(self, path: Path, decisive: dict[str, Any], epochs: int, *, force: bool):
        self.path, self.epochs = path, epochs
        self._key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        self._interrupted: Callable[[], bool] = lambda: False
        self._stored = read_checkpoint(path) if path.is_file() else None
        if self._stored is None and path.is_file():
            notice(f"{path} is damaged (its checksum is wrong): training from the start")
        if self._stored is not None and self._stored["key"] != self._key:
            if not force:
                raise UserError(
                    f"{path} is of another training, which was interrupted (another set, other settings or another "
                    "device): finish that one, delete the file, or pass --force to train from the start"
                )
            self._stored = None
        self.done = 0 if self._stored is None else self._stored["epoch"]
        # sums in another order would end with other bytes
        self.threads = torch.get_num_threads() if self._stored is None else self._stored["threads"]
        self._saved_at = time.monotonic()

    @contextmanager
    def training(self) -> Iterator[None]:
        with deferred_interrupts("epoch") as self._interrupted:
            yield

    def load(self) -> dict[str, Any] | None:
        if self._stored is not None:
            notice(f"continuing after epoch {self.done} of {self.epochs}, from {self.path}")
        return self._stored

    def after_epoch(self, epoch: int, state: Callable[[], dict[str, Any]]) -> None:
        stop = self._interrupted()
        if stop or epoch == self.epochs or time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            about = {"key": self._key, "epoch": epoch, "threads": self.threads}
            write_checkpoint(self.path, about | state())
            self.done, self._saved_at = epoch, time.monotonic()
        if stop:
            raise Interrupted(interrupts.message())

    def kept(self) -> str | None:
        """What an interruption leaves behind."""
        if not self.done or not self.path.is_file():
            return None
        return f"interrupted: {self.path} holds {self.done} of {self.epochs} epochs: run the same command to continue"
