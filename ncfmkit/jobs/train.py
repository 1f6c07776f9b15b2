"""`ncfmkit train`: one student to keep."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.nn import Module

from ncfmkit import networks
from ncfmkit._version import __version__
from ncfmkit.config import NetworkSettings, Settings, to_dict
from ncfmkit.estimate import Stage, announce
from ncfmkit.files import check_free
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.jobs.setup import check_fits
from ncfmkit.progress import notice
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.scoring import student_file, students
from ncfmkit.sets.manifest import DIGEST_KEY
from ncfmkit.sets.synthetic import SyntheticSet


def train(
    result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime, *, out: Path
) -> dict[str, Any]:
    """Trains one student on a set and keeps it as safetensors with what is needed to use it in its metadata.

    Args:
        real: real data whose test split tells the accuracy; none: it stays unknown.
        out: the file to write; not overwritten.

    Returns:
        The metadata.

    Raises:
        UserError: `out` is there already, or the data do not fit the set.
    """
    check_free(out)
    network, build, test = _checked(result, real, settings)
    notice(f"device: {runtime.describe()}")
    announce(estimate(result, real, settings, runtime))
    state, accuracy = students.train_student(
        result.labeled(), build, settings.student, test=test, seed=settings.seed, runtime=runtime
    )
    metadata = {
        "kind": "student",
        "tool": f"ncfmkit {__version__}",
        "network": to_dict(network),
        "channels": result.images.shape[1],
        "size": result.images.shape[-1],
        "mean": result.manifest["mean"],
        "std": result.manifest["std"],
        "classes": list(result.classes),
        "test_accuracy": accuracy,
        "trained_on": {k: result.manifest[k] for k in ("name", "sha256", DIGEST_KEY)},
        "training": {"seed": settings.seed, **to_dict(settings.student)},
    }
    student_file.save(state, metadata, out)
    return metadata


def estimate(result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime) -> Iterator[Stage]:
    """What :func:`train` would train, measured.

    Raises:
        UserError: the data do not fit the set.
    """
    _, build, test = _checked(result, real, settings)
    return students.estimate_student(result.labeled(), build, settings.student, test=test, runtime=runtime)


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
