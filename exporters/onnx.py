"""Exports a student as an ONNX file with torch's exporter, and reads such files; static int8 is in quantize.py."""

import importlib
import json
import logging
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit._version import __version__
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract, ModelMetadata, Port, not_onnx, not_text, read_contract, read_metadata
from ncfmkit.exporters.providers import onnxruntime, probe_model
from ncfmkit.exporters.student import Student
from ncfmkit.extras import install
from ncfmkit.files import METADATA_KEY, format_bytes
from ncfmkit.records import Record, shortened

OPSET = OLDEST_OPSET = 17  # the first with LayerNormalization; what reads which opset: docs/formats.md
TRACED_OPSET = 18  # the oldest that torch's exporter writes itself
LARGEST_CONVERTED = 2**31 - 1  # bytes; onnx's converter of opsets takes a model as one message
LARGEST_EMBEDDED = 1_900_000_000  # bytes; an ONNX file ends at 2 GiB, so larger models keep their weights beside it
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TRACED_BATCH = 2  # with 1, the exporter would take the batch for a constant


def require_packages() -> None:
    """Raises UserError naming the extra if a package of the ONNX export is not installed."""
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise UserError(
            f"exporting needs {', '.join(lacking)}: {install('cpu')}, or on Linux with CUDA {install('gpu')}"
        )


def choose_opset(opset: int | None) -> int:
    """The opset to export with: that one, else `OPSET`.

    Raises:
        UserError: it is not between `OLDEST_OPSET` and the newest.
    """
    import onnx
    from torch.onnx._constants import ONNX_MAX_OPSET

    newest = min(ONNX_MAX_OPSET, onnx.defs.onnx_opset_version())
    while newest > OLDEST_OPSET and not _runs(newest):
        newest -= 1
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        import onnxruntime as ort

        raise UserError(
            f"--opset {opset}: expected {OLDEST_OPSET} to {newest}, the newest that torch {torch.__version__} exports "
            f"and onnxruntime {ort.__version__} runs"
        )
    return OPSET if opset is None else opset


def _runs(opset: int) -> bool:
    """Whether the installed ONNX Runtime opens a model of that opset."""
    try:
        onnxruntime().InferenceSession(probe_model(opset), providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's have no common class
        return False
    return True


def to_onnx(student: Student, *, layout: str, output: str, half: bool, opset: int) -> Any:
    """The student as an ONNX model (a ModelProto): pixels in, scores out, dynamic batch, no trace of this machine.

    Nodes are named after the layers that they come from (`blocks.0/Conv`).

    Args:
        layout: a row of `LAYOUTS`.
        output: logits or probabilities.
        half: float16 except for the norms, see :class:`ncfmkit.exporters.preprocessing.Deployed`.
        opset: as :func:`choose_opset` gives it.
    """
    deployed = student.deployed(layout=layout, output=output, half=half, lowered=True)
    contract = student.contract(layout=layout, output=output)
    images = torch.from_numpy(contract.feed(np.zeros((TRACED_BATCH, *contract.image_shape), np.uint8)))
    importlib.import_module("torch._dynamo")  # an interruption of the exporter's own late import loses its name
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (images,),
            dynamo=True,
            opset_version=max(opset, TRACED_OPSET),
            dynamic_shapes=({0: "batch"},),
            input_names=[contract.input_name],
            output_names=[contract.output_name],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_nodes(model)
    _forget_machine(model)
    return _with_opset(model, opset)


def _with_opset(model: Any, opset: int) -> Any:
    """The model converted down to that opset, if it is newer, and marked with the oldest format that has this opset.

    torch marks every file with the format of onnx 1.16, which readers older than that refuse whatever the opset.
    """
    import onnx

    if (_opset(model) or 0) > opset:
        if _larger(model, LARGEST_CONVERTED):
            raise UserError(
                f"a model of more than {format_bytes(LARGEST_CONVERTED)} cannot be written with opset {opset}: pass "
                f"--opset {TRACED_OPSET} or a newer one"
            )
        _drop_noop(model.graph, opset)
        model = onnx.version_converter.convert_version(model, opset)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return model


def _opset(model: Any) -> int | None:
    """Of the operators of ONNX itself; None: the model names only other domains."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def _larger(model: Any, most: int) -> bool:
    """Whether a model has more bytes than that; of one above 2 GiB, protobuf does not say how many."""
    from google.protobuf.message import EncodeError

    try:
        return model.ByteSize() > most
    except EncodeError:
        return True


def _drop_noop(graph: Any, opset: int) -> None:
    """Drops an attribute that onnx's converter leaves, and that only ReduceSum has before opset 18.

    Raises:
        UserError: without it, a node would reduce all axes instead of none.
    """
    lengths = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        noop = next((a for a in node.attribute if a.name == "noop_with_empty_axes"), None)
        if noop is None or not node.op_type.startswith("Reduce") or (noop.i and node.op_type == "ReduceSum"):
            continue
        if noop.i and not any(lengths.get(axes) for axes in node.input[1:]):
            raise UserError(
                f"{node.name} ({node.op_type}) reduces no axes where none are given (noop_with_empty_axes), which "
                f"opset {opset} has no way to say: pass --opset {TRACED_OPSET} or a newer one"
            )
        node.attribute.remove(noop)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes to developers: deprecations inside torch, and what it logs of its stages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(model: Any) -> None:
    """Names each node by its layer and operator; what lies outside the network's layers has the operator alone."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        path = json.loads(
            scopes.replace("'", '"')
        )  # a Python list of names: '', 'network', 'network.blocks.0', 'conv2d'
        layer = path[-2].removeprefix("network").strip(".") if len(path) > 1 else ""
        name = f"{layer}/{node.op_type}" if layer else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _forget_machine(model: Any) -> None:
    """Removes stack traces with local paths and other notes of the exporter."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        for field in ("metadata_props", "doc_string"):
            part.ClearField(field)


def save(
    model: Any, metadata: Mapping[str, object], path: Path, *, plain: Mapping[str, str] | None = None, about: str = ""
) -> None:
    """Writes a model with our metadata in it; from `LARGEST_EMBEDDED` on, its weights go to `path` + `.data`.

    Args:
        model: a ModelProto, which is changed.
        metadata: ours, as JSON values.
        path: the file.
        plain: texts for other programs, by key.
        about: a description for people.
    """
    import onnx

    model.producer_name, model.producer_version, model.doc_string = "ncfmkit", __version__, about
    del model.metadata_props[:]
    ours = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    onnx.helper.set_model_props(model, {**(plain or {}), **ours})  # ours are last: without them the file is truncated
    _write(model, path, large=_larger(model, LARGEST_EMBEDDED))


def load(path: Path) -> Any:
    """The whole model, weights that lie beside it too."""
    import onnx

    return onnx.load_model(path)


class GraphFacts(Record):
    """What the file of a model says of itself."""

    opset: int | None
    nodes: dict[str, int]  # by operator
    producer: str
    bytes: int  # with the weights that lie beside it


def read_graph(path: Path) -> tuple[Contract, GraphFacts]:
    """What a model takes and gives, and what its file says of itself, with the package onnx alone: nothing runs.

    Raises:
        UserError: onnx is not installed; the file cannot be read, is no ONNX model, or no image classifier that this
            toolkit can feed; or it names files for its weights that are not in its folder.
    """
    if find_spec("onnx") is None:
        raise UserError(f"reading {path} needs onnx: {install('cpu')}, or on Linux with CUDA {install('gpu')}")
    model = _parsed(path)
    inputs, outputs, ours = read_ports(path, model)
    return read_contract(str(path), inputs, outputs, ours, declared={}), _facts(path, model)


def read_ports(path: Path, model: Any) -> tuple[list[Port], list[Port], ModelMetadata | None]:
    """Inputs, outputs, and what ncfmkit wrote into a model; its weights are not needed.

    Args:
        path: its file, for messages.
        model: a ModelProto.

    Raises:
        UserError: names or metadata are damaged.
    """
    metadata = {_text(path, entry.key): _text(path, entry.value) for entry in model.metadata_props}
    ours = read_metadata(str(path), metadata, _text(path, model.producer_name))
    weights = {tensor.name for tensor in model.graph.initializer}  # older models list them among the inputs, too
    inputs = [_port(path, value) for value in model.graph.input if value.name not in weights]
    return inputs, _outputs(path, model), ours


def graph_facts(path: Path) -> GraphFacts:
    """Reads an ONNX file without its weights.

    Raises:
        UserError: it is no ONNX file, or names files for its weights that are not in its folder.
    """
    return _facts(path, _parsed(path))


def _parsed(path: Path) -> Any:
    """A file as a ModelProto, without the weights that lie beside it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise UserError(f"no model at {path} ({error.strerror}): expected an ONNX file") from None
    except DecodeError:
        raise not_onnx(path) from None
    if not model.HasField("graph") or not model.opset_import:  # other files may happen to parse
        raise not_onnx(path)
    return model


def _outputs(path: Path, model: Any) -> list[Port]:
    """The outputs as the graph declares them, or as their shapes follow from it where it leaves the classes open."""
    import onnx

    ports = [_port(path, value) for value in model.graph.output]
    if all(len(port.shape) == 2 and isinstance(port.shape[1], int) for port in ports):
        return ports
    with suppress(onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError):
        model = onnx.shape_inference.infer_shapes(model)
    return [_port(path, value) for value in model.graph.output]


def _port(path: Path, value: Any) -> Port:
    """An input or output, its type named as ONNX Runtime names it."""
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Port(name=_text(path, value.name), type=str(kind), shape=())
    tensor = value.type.tensor_type
    known = onnx.TensorProto.DataType.values()
    type = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type in known else tensor.elem_type
    shape = tuple(
        d.dim_value if d.WhichOneof("value") == "dim_value" else _text(path, d.dim_param) or None
        for d in tensor.shape.dim
    )
    return Port(name=_text(path, value.name), type=f"tensor({type})", shape=shape)


def _text(path: Path, value: str | bytes) -> str:
    """A text of a model: protobuf gives bytes where it is not UTF-8."""
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise not_text(path, error) from None


def _facts(path: Path, model: Any) -> GraphFacts:
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    names = {_text(path, entry.value) for entry in entries if entry.key == "location"}
    return GraphFacts(
        opset=_opset(model),
        nodes=dict(Counter(_text(path, node.op_type) for node in model.graph.node)),
        producer=" ".join(_text(path, text) for text in (model.producer_name, model.producer_version)).strip(),
        bytes=path.stat().st_size + sum(_size_beside(path, name) for name in names),
    )


def _size_beside(path: Path, name: str) -> int:
    """Bytes of a file with weights; its name, which the model says, must not lead out of the model's folder."""
    beside = path.parent / name
    if "\0" in name or not beside.resolve().is_relative_to(path.parent.resolve()) or not beside.is_file():
        raise UserError(f"{path} stores weights in {shortened(name)}, which is not a file in its folder")
    return beside.stat().st_size


def publish(written: Path, target: Path) -> list[Path]:
    """Gives a finished model, and the weights beside it, the names by which they are found; returns those."""
    beside, target_beside = _weights_beside(written), _weights_beside(target)
    if not beside.exists():
        os.replace(written, target)
        target_beside.unlink(missing_ok=True)  # of a larger model that had the name before
        return [target]
    with tempfile.TemporaryDirectory(dir=written.parent) as folder:  # both are rewritten: the model names its weights
        renamed = Path(folder) / target.name
        _write(load(written), renamed, large=True)
        os.replace(_weights_beside(renamed), target_beside)
        os.replace(renamed, target)
    return [target, target_beside]


def _write(model: Any, path: Path, *, large: bool) -> None:
    import onnx

    location = _weights_beside(path).name if large else None
    onnx.save_model(model, path, save_as_external_data=large, location=location, size_threshold=1024)


def _weights_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")
