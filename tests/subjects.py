"""Sets that are assessed, as tests of the evaluations need them."""

from pathlib import Path
from typing import Any

from ncfmkit.images import LabeledImages
from ncfmkit.kept import Kept
from ncfmkit.scoring.baselines import SetSize
from ncfmkit.scoring.subject import Subject
from ncfmkit.sets.synthetic import SyntheticSet


def unused(_: Any) -> LabeledImages:
    raise AssertionError("not asked for")


def make_subject(made: SyntheticSet, folder: Path, **known: Any) -> Subject:
    """A subject of a set, whose results are kept in that folder.

    Args:
        known: `real`, `settings`, `runtime`, and what else is not as below.
    """
    ipc = made.manifest.ipc
    plain: dict[str, Any] = {
        "stored": made.images.numpy(),
        "stored_labels": made.labels.numpy(),
        "distilled": made.labeled(),
        "factor": made.manifest.decode.factor,
        "initial": None,
        "beginnings": None,
        "size": SetSize(stored=ipc.stored, decoded=ipc.decoded, bytes=made.content_bytes / len(made.classes)),
        "mosaics": unused,
        "herding": lambda _: iter(()),
        "herded": unused,
        "soften": None,
        "teachers": lambda: iter(()),
        "kept": Kept(folder=folder, conditions={}),
    }
    return Subject(**plain | known)
