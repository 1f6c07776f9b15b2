"""A web page of an exported model: a folder with the ONNX file, what runs it in a browser, and a page around it.

What the page does is in `browser/`: `classify.mjs` reads pictures as `ncfmkit predict` does and runs the model,
`page.mjs` shows the answers.
"""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np

from ncfmkit._version import __version__
from ncfmkit.errors import UserError
from ncfmkit.exporters import onnx as onnx_export
from ncfmkit.exporters.contract import ModelMetadata
from ncfmkit.exporters.sessions import Session, open_session
from ncfmkit.exporters.web_runtime import NEEDED, WebRuntime
from ncfmkit.files import format_bytes, make_folder, replace_folder, write_atomic
from ncfmkit.reports.layout import write_page

PAGE, STYLE, MODEL, RUNTIME, LICENSE = "index.html", "style.css", "model.onnx", "runtime", "LICENSE.txt"
SCRIPTS = ("page.mjs", "classify.mjs")
FILES = {PAGE, STYLE, MODEL, *SCRIPTS, *(f"{RUNTIME}/{name}" for name in (*NEEDED, LICENSE))}
MARK = '<meta name="generator" content="ncfmkit '  # in the pages that we wrote
# what the scores of a browser may differ by, in parts of the largest one: kernels and GPUs round differently, and one
# that is wrong is far off
ROUNDING = {"fp32": 0.01, "fp16": 0.01, "int8": 0.1}
LARGEST_MODEL = 1 << 30  # bytes; a browser holds it several times, in 4 GiB at most


def write_site(onnx_path: Path, folder: Path, *, runtime: WebRuntime) -> None:
    """Writes the page of an ONNX file of ours into a new folder.

    Raises:
        UserError: the model is too large for a browser.
    """
    size = onnx_export.graph_facts(onnx_path).bytes
    if size > LARGEST_MODEL:
        raise UserError(
            f"the model has {format_bytes(size)}, a browser takes {format_bytes(LARGEST_MODEL)} at most: pass "
            "--precision fp16 or int8, or --to onnx"
        )
    make_folder(folder / RUNTIME)
    write_atomic(folder / MODEL, onnx_path.read_bytes())
    for name, content in runtime.files.items():
        write_atomic(folder / RUNTIME / name, content)
    ours = files("ncfmkit.exporters") / "browser"
    write_atomic(folder / RUNTIME / LICENSE, (ours / "LICENSE-onnxruntime.txt").read_bytes())
    for name in SCRIPTS:
        write_atomic(folder / name, (ours / name).read_bytes())
    shared = files("ncfmkit.reports") / "templates" / "style.css"
    write_atomic(folder / STYLE, shared.read_bytes() + (ours / "page.css").read_bytes())
    _write_page(folder, runtime.name, size)


def _write_page(folder: Path, runtime: str, size: int) -> None:
    session = open_session(folder / MODEL)
    about = session.contract.metadata
    assert about is not None  # an export always says what it is
    network = about.student.network
    write_page(
        folder / PAGE,
        "web.html",
        generator=f"ncfmkit {__version__}",
        title=f"{network.name if network else 'Image'} classifier",
        about=_for_scripts(session, about),
        classes=about.classes,
        model=_facts(session, about, size),
        runtime=runtime,
    )


def _for_scripts(session: Session, about: ModelMetadata) -> dict[str, object]:
    """What `classify.mjs` needs: how the model is fed, and scores by which a browser checks that it runs it rightly."""
    contract = session.contract
    scores_K = session(check_image(contract.channels, contract.size))[0]
    return {
        "channels": contract.channels,
        "size": contract.size,
        "precision": about.precision,
        "input": contract.input_name,
        "output": contract.output_name,
        "kind": contract.output,
        "classes": about.classes,
        "check": {
            "scores": [float(score) for score in scores_K],
            "allowed": ROUNDING[about.precision or "fp32"] * float(np.abs(scores_K).max()),
        },
    }


def check_image(channels: int, size: int) -> np.ndarray:
    """The image of noise that a browser is tried with, as `checkImage` of classify.mjs makes it; uint8 `[1, C, H, W]`.

    Value k is the upper byte of k times 2654435761 in 32 bits.
    """
    index = np.arange(channels * size * size, dtype=np.uint64)
    return ((index * 2654435761 % 2**32) >> 24).astype(np.uint8).reshape(1, channels, size, size)


def _facts(session: Session, about: ModelMetadata, size: int) -> dict[str, str | None]:
    student, origin, contract = about.student, about.trained_on, session.contract
    color = "gray" if contract.channels == 1 else "RGB"
    accuracy = None if student.test_accuracy is None else f"{student.test_accuracy:.1%}"
    source = "" if origin.source is None else f", distilled from {origin.source}"
    return {
        "Images": f"{contract.size} x {contract.size}, {color}; others are scaled by the short side and cropped",
        "Precision": about.precision,
        "Size": format_bytes(size),
        "Test accuracy": accuracy and f"{accuracy}, of the student before the export",
        "Trained on": None if origin.name is None else f"the synthetic set {origin.name}{source}",
        "License of the real images": origin.license,
    }


def publish(written: Path, target: Path) -> list[Path]:
    """Gives a finished folder the name by which it is found; returns its files."""
    replace_folder(written, target)
    return sorted(path for path in target.rglob("*") if path.is_file())


def open_site(folder: Path) -> Session:
    """The model of a page, on the CPU of this machine."""
    return open_session(folder / MODEL)


def is_site(folder: Path) -> bool:
    """Whether a folder has a page that we wrote, and its model."""
    try:
        with (folder / PAGE).open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(4096) and (folder / MODEL).is_file()
    except OSError:
        return False


def foreign(folder: Path) -> list[str]:
    """Names in a folder that are not those of a page of ours; all of them where the page is somebody else's."""
    names = sorted(_names(folder))
    return [name for name in names if name not in FILES] if is_site(folder) else names


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()
