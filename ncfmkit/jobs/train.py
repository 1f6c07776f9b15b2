"""`ncfmkit train`: one student to keep."""

from pathlib import Path
from typing import Any

from ncfmkit import images, networks
from ncfmkit._version import __version__
from ncfmkit.config import Settings, to_dict
from ncfmkit.files import check_free
from ncfmkit.jobs.evaluate import check_same
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments
from ncfmkit.runtime import choose_runtime
from ncfmkit.scoring import student_file, students
from ncfmkit.sets import synthetic
from ncfmkit.sets.manifest import DIGEST_KEY
from ncfmkit.sets.synthetic import SyntheticSet


def train(
    result: SyntheticSet,
    settings: Settings,
    *,
    out: Path,
    arguments: DataArguments | None = None,
) -> dict[str, Any]:
    """Trains one student on a set and keeps it as safetensors with what is needed to use it in its metadata.

    Args:
        out: the file to write; not overwritten.
        arguments: real data whose test split tells the accuracy; none: it stays unknown.

    Returns:
        The metadata.

    Raises:
        UserError: `out` is there already, or the data do not fit the set.
    """
    check_free(out)
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings) if arguments else None
    if real is not None:
        check_same(result, real)
    channels, size = result.images.shape[1], result.images.shape[-1]
    network = networks.resolve_network(settings.network, size)
    notice(f"device: {runtime.describe()}")
    state, accuracy = students.train_student(
        synthetic.decoded_images(result),
        lambda: networks.build(
            network.name,
            channels=channels,
            classes=len(result.classes),
            size=size,
            width=network.width,
            depth=network.depth,
        ),
        settings.student,
        test=images.labeled(real, students.test_split(real)) if real else None,
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
