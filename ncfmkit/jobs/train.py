"""`ncfmkit train`: one student to keep."""

import os
from pathlib import Path
from typing import Any

from ncfmkit import networks
from ncfmkit._version import __version__
from ncfmkit.config import Settings, to_dict
from ncfmkit.files import check_free
from ncfmkit.images import labeled
from ncfmkit.jobs.evaluate import settings_for
from ncfmkit.jobs.setup import check_fits
from ncfmkit.progress import notice
from ncfmkit.real.arguments import split_optional
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.scoring import student_file, students
from ncfmkit.sets.loading import load
from ncfmkit.sets.manifest import DIGEST_KEY
from ncfmkit.sets.synthetic import SyntheticSet


def train(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] = "student.safetensors",
    data: Any = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Trains one student on a set and keeps it as safetensors, with what is needed to use it in its metadata.

    Args:
        path: a set's file, its run directory or a package.
        out: the file to write.
        data: real data to test the student on, as in :func:`ncfmkit.distill`; none: its accuracy stays unknown.
        overrides: settings by name that replace the set's own, such as `**{"network.name": "alexnet"}`; and
            `data_root`, `download`, `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        The metadata: `network`, `channels`, `size`, `mean`, `std`, `classes`, `test_accuracy` in [0, 1] or None, ...

    Raises:
        UserError: no set there, the data do not fit it, or `out` exists.

    Example:
        >>> ncfmkit.train("runs/digits-ipc1", data="digits", out="student.safetensors")["test_accuracy"]
        0.951
    """
    result, out = load(path), Path(out)
    source, changes = split_optional(data, overrides)
    check_free(out)
    settings = settings_for(result, changes)
    runtime = choose_runtime(settings.runtime)
    return train_real(result, source.open(settings) if source else None, settings, runtime, out=out)


def train_real(
    result: SyntheticSet, real: RealData | None, settings: Settings, runtime: Runtime, *, out: Path
) -> dict[str, Any]:
    """As :func:`train`, on a set and real data that are open.

    Args:
        real: real data whose test split tells the accuracy; none: it stays unknown.
        out: the file to write.

    Raises:
        UserError: `out` exists, or the data do not fit the set.
    """
    check_free(out)
    if real is not None:
        check_fits(result, real)
    test = labeled(real, real.test_split()) if real is not None else None
    channels, size = result.images.shape[1], result.images.shape[-1]
    network = networks.resolve_network(settings.network, size)
    notice(f"device: {runtime.describe()}")
    state, accuracy = students.train_student(
        result.labeled(),
        networks.builder(network, channels=channels, classes=len(result.classes), size=size),
        settings.student,
        test=test,
        seed=settings.seed,
        runtime=runtime,
    )
    metadata = {
        "kind": "student",
        "tool": f"ncfmkit {__version__}",
        "network": to_dict(network),
        "channels": channels,
        "size": size,
        "mean": result.manifest["mean"],
        "std": result.manifest["std"],
        "classes": list(result.classes),
        "test_accuracy": accuracy,
        "trained_on": {k: result.manifest[k] for k in ("name", "sha256", DIGEST_KEY)},
        "training": {"seed": settings.seed, **to_dict(settings.student)},
    }
    student_file.save(state, metadata, out)
    return metadata
