"""What `ncfmkit inspect` says of a path: a run directory, a synthetic set or a student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ncfmkit.errors import UserError
from ncfmkit.formats import one_file, student_file
from ncfmkit.jobs import load_run
from ncfmkit.sizes import format_bytes
from ncfmkit.synthetic import SyntheticSet

LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


@dataclass(frozen=True, kw_only=True)
class Description:
    title: str
    summary: dict[str, Any]  # for people
    content: dict[str, Any]  # for machines, whole
    scores: list[dict[str, Any]] | None = None
    images: SyntheticSet | None = None


def describe(path: Path) -> Description:
    """What is at `path`.

    Raises:
        UserError: nothing, or nothing of ours.
    """
    if not path.exists():
        raise UserError(f"nothing at {path}")
    if path.is_dir():
        return _describe_run(path)
    if path.suffix != ".safetensors" and not _starts_as_safetensors(path):
        raise UserError(
            f"{path} is not a run directory, a synthetic set or a student: sets and students are safetensors files"
        )
    return _describe_student(path) if _kind(path) == "student" else _describe_set(path)


def _starts_as_safetensors(path: Path) -> bool:
    """Whether the file begins with the size of a JSON header and its opening brace, be the rest damaged or not."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return int.from_bytes(start[:8], "little") < LARGEST_HEADER and start[8:] == b"{"


def _kind(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as stored:
            manifest = (stored.metadata() or {}).get(one_file.METADATA_KEY, "")
    except (SafetensorError, OSError):
        return None
    return "student" if '"kind": "student"' in manifest else None


def _describe_run(path: Path) -> Description:
    run = load_run(path)
    summary = {
        "status": run["status"],
        "data": f"{run['data']['name']}, {run['data']['train']:,} training images",
        "recipe": run["settings"]["recipe"],
        "seed": run["seed"],
        "device": run["device"],
        "pool": run.get("pool", {}).get("key"),
        "distilled in": f"{run['timings']['distill_seconds']} s" if "timings" in run else None,
    }
    done = (path / one_file.FILE_NAME).is_file()
    held = _describe_set(path) if done else None
    return Description(
        title=f"run {path}",
        summary=summary | (held.summary if held else {}),
        content=run | ({"manifest": held.content} if held else {}),
        scores=run["scores"]["rows"] if "scores" in run else None,
        images=held.images if held else None,
    )


def _describe_set(path: Path) -> Description:
    result = one_file.load(path)
    m = result.manifest
    score = (
        m["score"] and f"{m['score']['last']['mean']:.1%} +- {m['score']['last']['std']:.1%} (n = {m['score']['n']})"
    )
    summary = {
        "set": m["name"],
        "classes": list(result.classes),
        "images per class": f"{m['ipc']['stored']} stored, {m['ipc']['decoded']} decoded",
        "decoding": f"{m['decode']['kind']}, factor {m['decode']['factor']}",
        "images": f"uint8 {list(result.images.shape)}, {format_bytes(result.images.nbytes)}",
        "source": f"{m['source']['name']}, {m['source']['train_images']:,} training images",
        "last-epoch accuracy": score and f"{score} with {m['score']['network']}, {m['score']['epochs']} epochs",
        "made by": m["tool"],
        "sha256 of the images": m["sha256"]["images"],
    }
    return Description(title=f"synthetic set {path}", summary=summary, content=m, images=result)


def _describe_student(path: Path) -> Description:
    network, metadata = student_file.load(path)
    accuracy = metadata["test_accuracy"]
    summary = {
        "network": ", ".join(f"{k} {v}" for k, v in metadata["network"].items() if v is not None),
        "input": f"{metadata['channels']} x {metadata['size']} x {metadata['size']}",
        "classes": metadata["classes"],
        "mean": metadata["mean"],
        "std": metadata["std"],
        "test accuracy": None if accuracy is None else f"{accuracy:.1%}",
        "trained on": metadata["trained_on"]["name"],
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "made by": metadata["tool"],
    }
    return Description(title=f"student {path}", summary=summary, content=metadata)
