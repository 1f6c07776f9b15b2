"""What `ncfmkit inspect` says of a path: a run directory, a set, a package, a student or an exported model."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ncfmkit.config import from_dict, known_names
from ncfmkit.errors import UserError
from ncfmkit.files import METADATA_KEY, format_bytes, starts_as_safetensors
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import Score
from ncfmkit.scoring import student_file
from ncfmkit.sets import set_file
from ncfmkit.sets.hub import is_address, local
from ncfmkit.sets.manifest import Manifest, format_score
from ncfmkit.sets.package import is_package, packing_of
from ncfmkit.sets.synthetic import SyntheticSet


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is at a path: a title, facts for people, and everything for machines."""

    title: str
    summary: dict[str, Any]  # for people
    content: dict[str, Any]  # for machines, whole
    scores: tuple[Score, ...] = ()
    images: SyntheticSet | None = None


def inspect(path: str | os.PathLike[str]) -> Description:
    """Describes a run directory, a synthetic set, a package, a student or an exported model.

    Args:
        path: the file or folder, or `hf://OWNER/NAME` of a set on the Hub.

    Returns:
        `title`; `summary`, facts by name for people; `content`, all of it for machines, such as the manifest; `scores`,
        the rows of `scores.json` of a run that is scored; `images`, the set where there is one.

    Raises:
        UserError: nothing there, or nothing that ncfmkit wrote.

    Example:
        >>> ncfmkit.inspect("runs/digits-ipc1").summary["status"]
        'done'
    """
    if is_address(path):
        return replace(_describe_set(local(path)), title=f"synthetic set {os.fspath(path)}")
    path = local(path)
    if not path.exists():
        raise UserError(f"no such file or directory: {str(path)!r}")
    if path.is_dir() and is_package(path):
        return _describe_set(path)
    if path.is_dir() and (model := _model_of_site(path)) is not None:
        return replace(_describe_model(model), title=f"web page {path}")
    if path.is_dir():
        return _describe_run(path)
    if path.suffix == ".onnx":
        return _describe_model(path)
    if path.suffix != ".safetensors" and not starts_as_safetensors(path):
        raise UserError(
            f"{path} is not a run directory, a synthetic set, a package, a student or an exported model: sets and "
            "students are safetensors files, models end in .onnx"
        )
    return _describe_student(path) if _kind(path) == "student" else _describe_set(path)


def _kind(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as stored:
            manifest = (stored.metadata() or {}).get(METADATA_KEY, "")
    except (SafetensorError, OSError):
        return None
    return "student" if '"kind": "student"' in manifest else None


def _describe_run(path: Path) -> Description:
    run = RunDirectory.open(path)
    info, scores = run.info(), run.scores()
    shard = from_dict(known_names(info.settings)).distill.shard
    summary = {
        "status": info.status,
        "data": f"{info.data.name}, {info.data.train:,} training images",
        "recipe": info.settings.get("recipe"),
        "seed": info.seed,
        "device": info.device,
        "pool": info.pool and info.pool.key,
        "distilled in": info.timings and f"{info.timings.distill_seconds} s",
    }
    if shard is not None:
        summary["shard"] = f"{shard} of the classes: ncfmkit merge joins the shards"
    done = (path / set_file.FILE_NAME).is_file()
    held = _describe_set(path) if done else None
    return Description(
        title=f"run {path}",
        summary=summary | (held.summary if held else {}),
        content=run.to_dict() | ({"manifest": held.content} if held else {}),
        scores=scores.rows if scores else (),
        images=held.images if held else None,
    )


def _describe_set(path: Path) -> Description:
    result = set_file.load(path)
    m = result.manifest
    pixels = result.content_bytes - m.bytes.get("soft_labels", 0)
    score = m.score and f"{format_score(m.score)} with {m.score.network}, {m.score.epochs} epochs"
    summary = {
        "set": m.name,
        "classes": list(result.classes),
        "images per class": f"{m.ipc.stored} stored, {m.ipc.decoded} decoded" + _order(m),
        "decoding": f"{m.decode.kind}, factor {m.decode.factor}",
        "images": f"uint8 {list(result.images.shape)}" + _quantizing(m),
        "soft labels": _soft_labels(m),
        "bytes": ", ".join(f"{name} {format_bytes(count)}" for name, count in sorted(m.bytes.items())),
        "bytes per class": format_bytes(result.content_bytes / len(result.classes)) + ", without the labels",
        "bits per pixel value": f"{8 * pixels / result.images.numel():.3g}",
        "source": f"{m.source.name}, {m.source.train_images:,} training images",
        "license of the source": m.source.license,
        "smaller than its pixels": f"{_ratio(result):,.0f} times",
        "last-epoch accuracy": score,
        "made by": m.tool,
        "sha256 of its manifest": m.manifest_sha256,
    }
    if m.source.converted is not None:
        summary["converted from"] = m.source.converted.file
    if not is_package(path):
        return Description(title=f"synthetic set {path}", summary=summary, content=m.to_dict(), images=result)
    packing = packing_of(path)
    kept = packing.layout + (f", images as {packing.encoding}" if packing.encoding else "")
    content = m.to_dict() | {"package": {k: getattr(packing, k) for k in ("layout", "encoding")}}
    return Description(title=f"package {path}", summary={"package": kept} | summary, content=content, images=result)


def _order(manifest: Manifest) -> str:
    ordered = f", in the order of {manifest.order}" if manifest.order and manifest.ipc.stored > 1 else ""
    whole = manifest.part_of
    return ordered + ("" if whole is None else f"; the first of {whole.ipc} of {whole.manifest_sha256}")


def _quantizing(manifest: Manifest) -> str:
    how = manifest.pixels
    if how is None:
        return ""
    return f", kept in {how.describe()}, a range per {how.scale}{', dithered' if how.dither else ''}"


def _soft_labels(manifest: Manifest) -> str | None:
    how = manifest.labels
    if how is None:
        return "float16" if "soft_labels" in manifest.sha256 else None
    return f"{how.bits} bits" + (f", of the top {how.top:,} classes and the mean of the others" if how.top else "")


def _ratio(result: SyntheticSet) -> float:
    """Bytes of the source's training images, a byte per value and at the set's size, over all bytes of the set."""
    source = result.manifest.source.train_images * result.images[0].numel()
    return source / sum(result.manifest.bytes.values())


def _describe_student(path: Path) -> Description:
    network, manifest = student_file.load(path)
    m = manifest.network
    accuracy = manifest.test_accuracy
    summary = {
        "network": f"name {m.name}, width {m.width}" + ("" if m.depth is None else f", depth {m.depth}"),
        "input": f"{manifest.channels} x {manifest.size} x {manifest.size}",
        "classes": list(manifest.classes),
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "test accuracy": None if accuracy is None else f"{accuracy:.1%}",
        "trained on": manifest.trained_on.name,
        "license of the real images": manifest.trained_on.license,
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "made by": manifest.tool,
    }
    return Description(title=f"student {path}", summary=summary, content=manifest.to_dict())


def _model_of_site(path: Path) -> Path | None:
    """The model of a page that `ncfmkit export --to web` wrote; None: the folder is something else."""
    from ncfmkit.exporters import web

    return path / web.MODEL if web.is_site(path) else None


def _describe_model(path: Path) -> Description:
    from ncfmkit.exporters.onnx import read_graph

    contract, facts = read_graph(path)
    m = contract.metadata
    student, int8, trained_on = (m.student, m.int8, m.trained_on) if m else (None, None, None)
    accuracy = student.test_accuracy if student else None
    summary = {
        "takes": f"{contract.input_name}: {contract.layout}, {contract.channels} x {contract.size} x {contract.size}",
        "gives": f"{contract.output_name}: {contract.output} of {contract.class_count} classes",
        "classes": list(contract.classes) if contract.classes else None,
        "precision": m.precision if m else None,
        "float layers": (list(int8.float_layers) or "none") if int8 else None,
        "calibrated with": int8.calibration.name if int8 and int8.calibration else None,
        "opset": facts.opset,
        "nodes": ", ".join(f"{count} {operator}" for operator, count in facts.nodes.items()),
        "size": format_bytes(facts.bytes),
        "student": student.network.name if student and student.network else None,
        "student's test accuracy": None if accuracy is None else f"{accuracy:.1%}",
        "trained on": trained_on.name if trained_on else None,
        "license of the real images": trained_on.license if trained_on else None,
        "sha256 of its manifest": trained_on.manifest_sha256 if trained_on else None,
        "made by": m.tool if m and m.tool is not None else facts.producer,
        "with": ", ".join(f"{name} {version}" for name, version in m.versions.items()) or None if m else None,
    }
    ports = {field.name: getattr(contract, field.name) for field in fields(contract) if field.name != "metadata"}
    content = {"metadata": m.to_dict() if m else {}, **facts.to_dict(), "contract": ports}
    return Description(title=f"model {path}", summary=summary, content=content)
