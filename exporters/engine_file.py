"""The file of a TensorRT engine and its sidecar, the engine's name with `.json`; nothing here needs TensorRT.

An engine contains compiled code for one GPU and one version of TensorRT. The sidecar records both, and the model's
inputs and outputs. It guards against damage and mix-ups, not against forgery: opening an engine can run code that it
contains, so open only engines from sources that you trust.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract, ModelMetadata, NoMetadata, Port, read_contract
from ncfmkit.files import write_atomic
from ncfmkit.records import SparseRecord, problems

MOST_SHOWN = 10  # problems of a sidecar in a message


class Machine(SparseRecord):
    """What an engine is compiled for."""

    tensorrt: str  # its version
    gpu: str
    compute_capability: str

    def in_words(self) -> str:
        return f"TensorRT {self.tensorrt} and {self.gpu} (compute capability {self.compute_capability})"


class Sidecar(SparseRecord):
    """What an engine's sidecar holds."""

    format: Literal[1]
    ncfmkit: ModelMetadata | NoMetadata
    input: Port
    output: Port
    built_for: Machine
    sha256: str  # of the engine
    seconds: float  # that building it took
    versions: dict[str, str]  # of the libraries


def sidecar_path(engine_path: Path) -> Path:
    return engine_path.with_name(f"{engine_path.name}.json")


def write_engine(path: Path, engine: bytes, sidecar: Sidecar) -> None:
    write_atomic(path, engine)
    sidecar.write(sidecar_path(path))


def publish(written: Path, target: Path) -> list[Path]:
    """Gives a finished engine and its sidecar the names by which they are found; returns those."""
    os.replace(sidecar_path(written), sidecar_path(target))
    os.replace(written, target)
    return [target, sidecar_path(target)]


def read_engine(path: Path, here: Machine) -> tuple[bytes, Contract]:
    """An engine that its sidecar knows and that was built for this machine, and what it takes and gives.

    Raises:
        UserError: the engine has to be exported again: its sidecar is missing or damaged, it is not the engine that the
            sidecar describes, or it was built with another TensorRT or for another GPU.
    """
    where = sidecar_path(path)
    if not where.is_file():
        raise unusable(path, f"its sidecar {where.name} is missing")
    try:
        sidecar = Sidecar.model_validate_json(where.read_bytes())
        ours = sidecar.ncfmkit if isinstance(sidecar.ncfmkit, ModelMetadata) else None
        contract = read_contract(str(path), [sidecar.input], [sidecar.output], ours, declared={})
    except (ValidationError, UserError) as error:
        lines = problems(error)[:MOST_SHOWN] if isinstance(error, ValidationError) else [str(error)]
        raise unusable(
            path, f"its sidecar {where.name} is damaged, or of another ncfmkit ({'; '.join(lines)})"
        ) from None
    engine = path.read_bytes()
    if hashlib.sha256(engine).hexdigest() != sidecar.sha256:
        raise unusable(path, f"it is not the engine that {where.name} describes: its sha256 differs")
    if sidecar.built_for != here:
        raise unusable(path, f"it was built for {sidecar.built_for.in_words()}, here is {here.in_words()}")
    return engine, contract


def unusable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} cannot be used: {why}. Engines are not portable: export it again on this machine "
        "(ncfmkit export STUDENT --to tensorrt)"
    )
