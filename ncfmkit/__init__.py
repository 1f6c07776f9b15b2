"""ncfmkit makes big labeled image sets small: dataset distillation by neural characteristic function matching.

import ncfmkit
result = ncfmkit.distill("digits", ipc=1)
images, labels = result.set.decoded()
small = ncfmkit.load("runs/digits-ipc1")
"""

from importlib import import_module

from ncfmkit._version import __version__

TYPE_CHECKING = False  # type checkers know the name; `typing` takes longer to import than all before Ctrl-C is answered
if TYPE_CHECKING:
    from ncfmkit.errors import CheckFailed, Interrupted, NonFiniteLossError, UserError
    from ncfmkit.exporters.export import export
    from ncfmkit.exporters.predict import predict
    from ncfmkit.exporters.validate import validate
    from ncfmkit.jobs.assess import assess
    from ncfmkit.jobs.compare import compare
    from ncfmkit.jobs.convert import convert
    from ncfmkit.jobs.distill import Result, distill, resume
    from ncfmkit.jobs.evaluate import evaluate
    from ncfmkit.jobs.inspect import inspect
    from ncfmkit.jobs.merge import merge
    from ncfmkit.jobs.pack import pack
    from ncfmkit.jobs.push import push
    from ncfmkit.jobs.relabel import relabel
    from ncfmkit.jobs.train import train
    from ncfmkit.jobs.unpack import unpack
    from ncfmkit.jobs.verify import verify
    from ncfmkit.sets.set_file import load, save
    from ncfmkit.sets.synthetic import SyntheticSet

_HOMES = {
    "CheckFailed": "ncfmkit.errors",
    "Interrupted": "ncfmkit.errors",
    "NonFiniteLossError": "ncfmkit.errors",
    "Result": "ncfmkit.jobs.distill",
    "SyntheticSet": "ncfmkit.sets.synthetic",
    "UserError": "ncfmkit.errors",
    "assess": "ncfmkit.jobs.assess",
    "compare": "ncfmkit.jobs.compare",
    "convert": "ncfmkit.jobs.convert",
    "distill": "ncfmkit.jobs.distill",
    "evaluate": "ncfmkit.jobs.evaluate",
    "export": "ncfmkit.exporters.export",
    "inspect": "ncfmkit.jobs.inspect",
    "load": "ncfmkit.sets.set_file",
    "merge": "ncfmkit.jobs.merge",
    "pack": "ncfmkit.jobs.pack",
    "predict": "ncfmkit.exporters.predict",
    "push": "ncfmkit.jobs.push",
    "relabel": "ncfmkit.jobs.relabel",
    "resume": "ncfmkit.jobs.distill",
    "save": "ncfmkit.sets.set_file",
    "train": "ncfmkit.jobs.train",
    "unpack": "ncfmkit.jobs.unpack",
    "validate": "ncfmkit.exporters.validate",
    "verify": "ncfmkit.jobs.verify",
}

__all__ = [
    "CheckFailed",
    "Interrupted",
    "NonFiniteLossError",
    "Result",
    "SyntheticSet",
    "UserError",
    "__version__",
    "assess",
    "compare",
    "convert",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load",
    "merge",
    "pack",
    "predict",
    "push",
    "relabel",
    "resume",
    "save",
    "train",
    "unpack",
    "validate",
    "verify",
]


def __getattr__(name: str) -> object:
    """Public names are imported when they are first used, so that `ncfmkit --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ncfmkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, those not imported yet among them, for completion in an editor or notebook."""
    return sorted({*globals(), *_HOMES})
