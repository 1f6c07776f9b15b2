"""`export`: a student leaves in another format, once it was shown to answer as the student does."""

import dataclasses
import hashlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit._version import __version__
from ncfmkit.config import Settings
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import onnx_export, parity, quantise
from ncfmkit.exporters.accuracy import score, tally
from ncfmkit.exporters.contract import INPUT_NAME, LAYOUTS, OUTPUTS, Layout
from ncfmkit.exporters.deployed import Deployed
from ncfmkit.exporters.fitting import Taker, open_fitting, test_split
from ncfmkit.exporters.providers import open_session
from ncfmkit.exporters.table import EXPORTERS, Exporter
from ncfmkit.formats import one_file, student_file
from ncfmkit.jobs import DataArguments
from ncfmkit.progress import notice
from ncfmkit.real import RealData, Split

REAL_IMAGES = 512  # at most, for parity
CALIBRATION_IMAGES = 1000  # at most, of real data


@dataclass(frozen=True, kw_only=True)
class Student:
    path: Path
    network: torch.nn.Module  # in eval mode, on the CPU
    metadata: dict[str, Any]
    sha256: str  # of the file

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.metadata["channels"], self.metadata["size"], self.metadata["size"]


def export(
    student: Path,
    *,
    out: Path,
    to: str = "onnx",
    precision: str = "fp32",
    layout: str = "uint8-nchw",
    output: str = "logits",
    opset: int | None = None,
    data: DataArguments | None = None,
    settings: Settings | None = None,
    calibration: str | None = None,
    int8_skip: Sequence[str] = (),
    max_accuracy_drop: float | None = None,
) -> dict[str, Any]:
    """Exports a student with its preprocessing inside, and compares what was written with the student.

    Args:
        student: a file that `ncfmkit train` wrote.
        out: the file to write; not overwritten.
        to: a row of `EXPORTERS`.
        precision: fp32, fp16 (norms, pixels and probabilities stay float32) or int8 (static, QDQ).
        layout: how the model takes images, a row of `LAYOUTS`.
        output: logits or probabilities.
        opset: of the ONNX file; none: the newest that torch writes and the installed ONNX Runtime runs.
        data: real data; their test split is part of the comparison, and what accuracies are measured on.
        settings: how the real data are read.
        calibration: int8's: a synthetic set's file or run directory, or real data; none: the set that the student was
            trained on, if it lies beside it.
        int8_skip: layers that stay float32.
        max_accuracy_drop: percentage points that int8 may lose on the test split; layers stay float until it holds.

    Returns:
        What was written and how it compares, for JSON.

    Raises:
        UserError: anything that the user can mend; nothing is written.
        CheckFailed: out of tolerance; the file is there under a name that ends in `.failed-parity` and its suffix.
    """
    row = _check_request(to, out, precision, layout, output)
    _check_int8_options(precision, calibration, int8_skip, max_accuracy_drop, data)
    onnx_export.require_packages()
    row.function("require")()
    opset = onnx_export.choose_opset(opset)
    source = _load(student)
    settings = settings or Settings()
    real = open_fitting(data, settings, _taker(source)) if data else None
    calibrate = _calibration(calibration, source, settings) if precision == "int8" else None
    name = source.metadata["network"]["name"]
    notice(f"exporting {student}: {name}, {precision}, opset {opset}, {LAYOUTS[layout].summary}")
    with _work_folder(out) as folder:
        onnx_file, about = _write_onnx(folder, source, precision, layout, output, opset)
        if calibrate is not None:
            int8 = _Int8(onnx_file, calibrate, LAYOUTS[layout])
            onnx_file = int8.write(int8.layers_to_keep(int8_skip, real, max_accuracy_drop), about)
        written = folder / f"written{row.suffix}"
        row.function("convert")(onnx_file, written)
        reference, runner = _reference(source, layout, output), row.function("open")(written)
        rows = parity.compare(reference, runner, _parity_images(source, real, calibrate), output=output)
        failed = parity.failures(rows, parity.TOLERANCES[precision])
        measured = _accuracies(reference, runner, real) if real else None
        target = _failed_name(out) if failed else out
        row.function("publish")(written, target)
    result = {
        "file": str(target),
        "bytes": _bytes(target),
        "to": to,
        **about,
        "parity": parity.plain(rows),
        "tolerance": dataclasses.asdict(parity.TOLERANCES[precision]),
        "accuracy": measured,
        "failures": failed,
    }
    if failed:
        raise CheckFailed(_failed_message(target, failed), result=result)
    return result


def default_name(student: Path, to: str, precision: str) -> Path:
    """Where an export goes if nothing is said: beside the student, `student.onnx` or `student-int8.onnx`."""
    suffix = EXPORTERS[to].suffix if to in EXPORTERS else ""
    return student.with_name(student.stem + ("" if precision == "fp32" else f"-{precision}") + suffix)


def _check_request(to: str, out: Path, precision: str, layout: str, output: str) -> Exporter:
    if to not in EXPORTERS:
        raise UserError(f"--to {to!r}: expected {' or '.join(EXPORTERS)}")
    row = EXPORTERS[to]
    for flag, value, known in (
        ("--precision", precision, row.precisions),
        ("--input", layout, tuple(LAYOUTS)),
        ("--output", output, OUTPUTS),
    ):
        if value not in known:
            raise UserError(f"{flag} {value!r} with --to {to}: expected {', '.join(known)}")
    if out.suffix != row.suffix:
        raise UserError(f"--out {out}: expected a name that ends in {row.suffix}, as --to {to} writes it")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}: make it first")
    return row


def _check_int8_options(
    precision: str,
    calibration: str | None,
    int8_skip: Sequence[str],
    max_accuracy_drop: float | None,
    data: DataArguments | None,
) -> None:
    given = {
        "--calibration": calibration is not None,
        "--int8-skip": bool(int8_skip),
        "--max-accuracy-drop": max_accuracy_drop is not None,
    }
    for flag, used in given.items():
        if used and precision != "int8":
            raise UserError(f"{flag} goes with --precision int8, got --precision {precision}")
    if max_accuracy_drop is not None and data is None:
        raise UserError("--max-accuracy-drop needs --data: accuracy is measured on its test split")
    if max_accuracy_drop is not None and max_accuracy_drop < 0:
        raise UserError(f"--max-accuracy-drop {max_accuracy_drop}: expected percentage points, 0 or more")


def _failed_name(out: Path) -> Path:
    return out.with_name(f"{out.stem}.failed-parity{out.suffix}")


def _failed_message(target: Path, failed: Sequence[str]) -> str:
    listed = "".join(f"\n  {line}" for line in failed)
    return f"the exported model does not answer as the student does; it was kept as {target}:{listed}"


def _load(path: Path) -> Student:
    network, metadata = student_file.load(path)
    return Student(path=path, network=network, metadata=metadata, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, so that finished files only need another name."""
    try:
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from None
    with folder as name:
        yield Path(name)


def _write_onnx(
    folder: Path, source: Student, precision: str, layout: str, output: str, opset: int
) -> tuple[Path, dict[str, Any]]:
    """The ONNX file, float32 where int8 is still to come, and what it says of itself."""
    model = onnx_export.to_onnx(
        source.network, source.metadata, layout=layout, output=output, half=precision == "fp16", opset=opset
    )
    path, about = folder / "model.onnx", _about(source, layout, output, precision, opset)
    onnx_export.save(model, about, path)
    return path, about


def _about(source: Student, layout: str, output: str, precision: str, opset: int) -> dict[str, Any]:
    """What the model says of itself, the same from one export to the next."""
    m = source.metadata
    return {
        "kind": "exported student",
        "tool": f"ncfmkit {__version__}",
        "versions": {name: importlib.import_module(name).__version__ for name in ("torch", *onnx_export.NEEDED)},
        "classes": m["classes"],
        "input": {"name": INPUT_NAME, "layout": layout, "channels": m["channels"], "size": m["size"]},
        "output": {"name": output, "kind": output},
        "precision": precision,
        "opset": opset,
        "student": {
            "sha256": source.sha256,
            "network": m["network"],
            "mean": m["mean"],
            "std": m["std"],
            "test_accuracy": m["test_accuracy"],
        },
        "trained_on": {k: m["trained_on"].get(k) for k in ("name", one_file.DIGEST_KEY)},
    }


# ---- images -----------------------------------------------------------------------------------------------------


def _taker(source: Student) -> Taker:
    channels, size, _ = source.shape
    classes = tuple(source.metadata["classes"])
    return Taker(name=str(source.path), channels=channels, size=size, classes=classes, class_count=len(classes))


def _check_shape(source: Student, shape: tuple[int, ...], name: str) -> None:
    if shape != source.shape:
        expected, got = ("x".join(map(str, s)) for s in (source.shape, shape))
        raise UserError(
            f"{source.path} takes {expected} images, {name} has {got}: pass --size, --resize and --color to fit it"
        )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    images: np.ndarray  # uint8 [N, C, H, W]
    origin: dict[str, Any]  # name, images, and the digest or fingerprint
    distilled: bool


def _calibration(text: str | None, source: Student, settings: Settings) -> Calibration:
    """The images that int8's ranges are taken from."""
    if text is None:
        found = _set_beside(source)
        notice(f"int8 is calibrated with {found}, the set that the student was trained on")
    elif Path(text).suffix == ".safetensors" or (Path(text) / one_file.FILE_NAME).is_file():
        found = Path(text)
    else:
        return _from_real(text, source, settings)
    small = one_file.load(found)
    images = small.decoded()[0].mul(255).round().to(torch.uint8).numpy()
    _check_shape(source, images.shape[1:], str(found))
    origin = {"name": small.manifest["name"], one_file.DIGEST_KEY: small.manifest[one_file.DIGEST_KEY]}
    quantise.check_calibration(images)
    return Calibration(images=images, origin=origin | {"images": len(images)}, distilled=True)


def _set_beside(source: Student) -> Path:
    """The set that the student was trained on, among the files of its folder."""
    wanted = source.metadata["trained_on"]
    for path in sorted(source.path.parent.glob("*.safetensors")):
        if path != source.path and one_file.digests(path) == wanted["sha256"]:
            return path
    raise UserError(
        f"--precision int8 needs images to calibrate with: pass --calibration and the distilled set {wanted['name']} "
        "(its file or run directory), or real data"
    )


def _from_real(text: str, source: Student, settings: Settings) -> Calibration:
    real = DataArguments(data=text).open(settings)
    _check_shape(source, (real.channels, real.size, real.size), real.name)
    images = _spread(real.train.images, CALIBRATION_IMAGES)
    quantise.check_calibration(images)
    origin = {"name": real.name, "fingerprint": real.fingerprint, "images": len(images)}
    return Calibration(images=images, origin=origin, distilled=False)


def _spread(images_NCHW: np.ndarray, most: int) -> np.ndarray:
    """At most that many images, evenly spread over the array, which is sorted by class."""
    return np.ascontiguousarray(images_NCHW[np.unique(np.linspace(0, len(images_NCHW) - 1, most).round().astype(int))])


def _parity_images(source: Student, real: RealData | None, calibrate: Calibration | None) -> dict[str, np.ndarray]:
    images = {"random": parity.random_images(sum(parity.BATCHES), source.shape[0], source.shape[1])}
    if real is not None:
        images["real"] = _spread(test_split(real).images, REAL_IMAGES)
    elif calibrate is not None:
        images["distilled" if calibrate.distilled else "calibration"] = _spread(calibrate.images, REAL_IMAGES)
    else:
        notice("compared on random images only: --data adds real ones, and the accuracy on its test split")
    return images


# ---- int8 -------------------------------------------------------------------------------------------------------


class _Int8:
    """The int8 version of a float32 file, and the choice of the layers that stay float32."""

    def __init__(self, float_file: Path, calibration: Calibration, layout: Layout):
        self.float_file, self.calibration, self.layout = float_file, calibration, layout
        self.layers = quantise.layers(onnx_export.load(float_file))

    def quantised(self, keep: Sequence[str]) -> Path:
        """The file with all but those layers quantised."""
        target = self.float_file.with_name("quantised.onnx")
        nodes = [self.layers[name] for name in keep]
        quantise.quantise(self.float_file, target, self.calibration.images, self.layout, nodes)
        return target

    def layers_to_keep(self, skip: Sequence[str], real: RealData | None, drop: float | None) -> list[str]:
        """The layers that stay float32: those asked for, and those that the search for accuracy finds."""
        asked = quantise.chosen(skip, self.layers)
        if drop is None or real is None:
            return asked
        test, probe = test_split(real), _spread(self.calibration.images, REAL_IMAGES)

        def measured(path: Path) -> float:
            return _accuracy(open_session(path), test, f"accuracy on {real.name}")

        return quantise.search(self.quantised, self.layers, asked, probe, self.float_file, measured, drop / 100)

    def write(self, keep: Sequence[str], about: dict[str, Any]) -> Path:
        """The int8 file with its metadata, which are added to `about`."""
        path = self.quantised(keep)
        about["int8"] = {"float_layers": list(keep), "calibration": self.calibration.origin}
        onnx_export.save(onnx_export.load(path), about, path)
        return path


# ---- what is compared -------------------------------------------------------------------------------------------


def _reference(source: Student, layout: str, output: str) -> parity.Scores:
    """The student in float32 torch on the CPU, on the pixels that the exported model gets."""
    deployed = Deployed(
        source.network, mean=source.metadata["mean"], std=source.metadata["std"], layout=layout, output=output
    )

    @torch.inference_mode()
    def scores(images_NCHW: np.ndarray) -> np.ndarray:
        return deployed(torch.tensor(LAYOUTS[layout].arrange(images_NCHW))).numpy()

    return scores


def _accuracies(reference: parity.Scores, runner: parity.Scores, real: RealData) -> dict[str, Any]:
    test = test_split(real)
    return {
        "data": real.name,
        "images": len(test.images),
        "student": _accuracy(reference, test, "accuracy of the student"),
        "exported": _accuracy(runner, test, "accuracy of the export"),
    }


def _accuracy(scores: parity.Scores, test: Split, title: str) -> float:
    return tally(score(scores, test.images, title=title), test.labels)["accuracy"]


def _bytes(target: Path) -> int:
    """Of the file, and of weights or a sidecar beside it."""
    paths = (target, *(target.with_name(target.name + suffix) for suffix in (".data", ".json")))
    return sum(path.stat().st_size for path in paths if path.exists())
