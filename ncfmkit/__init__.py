"""ncfmkit makes big labeled image sets small: dataset distillation by neural characteristic function matching.

import ncfmkit
small = ncfmkit.distill("digits", ipc=1)
small = ncfmkit.load("runs/digits-ipc1")
images, labels = small.decoded()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ncfmkit._version import __version__

if TYPE_CHECKING:
    from ncfmkit.errors import Interrupted, NonFiniteLossError, UserError
    from ncfmkit.jobs.distill import distill, resume
    from ncfmkit.sets.loading import load
    from ncfmkit.sets.set_file import save
    from ncfmkit.sets.synthetic import SyntheticSet

_HOMES = {
    "distill": "ncfmkit.jobs.distill",
    "resume": "ncfmkit.jobs.distill",
    "load": "ncfmkit.sets.loading",
    "save": "ncfmkit.sets.set_file",
    "SyntheticSet": "ncfmkit.sets.synthetic",
    "UserError": "ncfmkit.errors",
    "NonFiniteLossError": "ncfmkit.errors",
    "Interrupted": "ncfmkit.errors",
}

__all__ = [
    "Interrupted",
    "NonFiniteLossError",
    "SyntheticSet",
    "UserError",
    "__version__",
    "distill",
    "load",
    "resume",
    "save",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that `ncfmkit --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ncfmkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
