"""`export`: converts a student to another format and keeps the file if its outputs match the student's."""

import errno
import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit import interrupts
from ncfmkit._version import __version__
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import onnx as onnx_export
from ncfmkit.exporters import parity, quantize
from ncfmkit.exporters.accuracy import Share, score, tally
from ncfmkit.exporters.calibration import Calibration, calibration_images, is_set, search_images, spread
from ncfmkit.exporters.contract import (
    LAYOUTS,
    OUTPUTS,
    Contract,
    Int8,
    LayerSearch,
    Layout,
    ModelInput,
    ModelMetadata,
    ModelOutput,
    ModelSet,
    ModelStudent,
)
from ncfmkit.exporters.matching_data import open_fitting
from ncfmkit.exporters.parity import ParityRow, Tolerance
from ncfmkit.exporters.plain_metadata import description, plain_metadata
from ncfmkit.exporters.sessions import open_session
from ncfmkit.exporters.student import Student, load_student
from ncfmkit.exporters.table import EXPORTERS, Exporter
from ncfmkit.files import check_free, check_free_folder, note_written
from ncfmkit.images import channel_tensors, normalize
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments, read_settings, split_arguments, split_optional
from ncfmkit.real.store import RealData
from ncfmkit.records import SparseRecord

REAL_IMAGES = 512  # at most, for parity
LAST_INT8_OPSET = 20  # ONNX Runtime 1.31 rewrites int8 ConvNeXt and ViT of later ones into what it does not open


class ExportAccuracy(SparseRecord):
    """Accuracies on the test split of `--data`."""

    data: str
    images: int
    student: Share
    exported: Share


class Exported(ModelMetadata):
    """What was written, what it says of itself, and how it compares with the student."""

    file: str
    bytes: int  # of all files
    to: str  # a row of EXPORTERS
    parity: tuple[ParityRow, ...]  # a row for each kind of images
    tolerance: Tolerance
    accuracy: ExportAccuracy | None  # None: no data
    failures: tuple[str, ...]  # what is out of tolerance


def export(
    student: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    to: str = "onnx",
    precision: str = "fp32",
    layout: str = "uint8-nchw",
    output: str = "logits",
    opset: int | None = None,
    data: Any = None,
    calibration: Any = None,
    int8_skip: Sequence[str] = (),
    max_accuracy_drop: float | None = None,
    runtime: str | os.PathLike[str] | None = None,
    force: bool = False,
    **overrides: Any,
) -> Exported:
    """Exports a student with its preprocessing inside, and compares what was written with the student.

    Args:
        student: a file that :func:`ncfmkit.train` wrote.
        out: the file or folder to write; None: beside the student, named after it and the precision.
        to: the format, `onnx`, `tensorrt` or `web`, a page that classifies pictures in the browser.
        precision: `fp32`, `fp16` (norms, pixels and probabilities stay float32) or `int8` (static, QDQ).
        layout: how the model takes images: `uint8-nchw`, `uint8-nhwc` (0 to 255) or `float-nchw` (0 to 1).
        output: `logits` or `probabilities`.
        opset: of the ONNX file; None: 17.
        data: real data as in :func:`ncfmkit.distill`; their test split is part of the comparison, and accuracies are
            measured on it.
        calibration: images for int8: a synthetic set's file, run directory or package, or real data; None: the set that
            the student was trained on, if it lies beside it.
        int8_skip: layers that stay float32.
        max_accuracy_drop: percentage points that int8 may lose on training images of `data` that do not calibrate;
            layers stay float until it holds. The test split takes no part in that choice.
        runtime: for `web`: the folder of an unpacked onnxruntime-web, or the file that `npm pack` writes; None: that
            in the cache, else fetched by npm if `download` is set.
        force: overwrite an existing file or folder.
        overrides: settings of the real data by name, such as `size=32`; and `data_root`, `download`, `skip_bad` as in
            :func:`ncfmkit.distill`.

    Returns:
        What was written and how it compares, as a record: `file`, `bytes`, `parity`, `accuracy`, ...; `to_dict()` gives
        plain JSON values.

    Raises:
        UserError: anything that the user can mend; nothing is written.
        CheckFailed: out of tolerance; the file is there under a name that ends in `.failed-parity` and its suffix.

    Example:
        >>> ncfmkit.export("student.safetensors", precision="fp16", data="digits").file
        'student-fp16.onnx'
    """
    student = Path(student)
    out = default_name(student, to, precision) if out is None else Path(out)
    data_source = None if data is None else split_arguments(data, overrides)[0]
    images_source = None if calibration is None else split_arguments(calibration, overrides)[0]
    read_from = data_source or (None if images_source is None or is_set(images_source.data) else images_source)
    row = _check_request(to, out, precision, layout, output)
    fetch = any(source.download for source in (data_source, images_source) if source is not None)
    if row.runtime is None and runtime is not None:
        raise UserError(f"--runtime has no effect with --to {to}: leave it out")
    if row.runtime is not None and read_from is None:
        fetch = overrides.pop("download", fetch)  # not of the real data: there are none
        if fetch and runtime is not None:
            raise UserError(
                "--download has no effect with --runtime, which names what runs the page, and without real data: "
                "leave one of them out"
            )
    settings = read_settings(read_from, split_optional(read_from, overrides)[1])
    _check_int8_options(precision, images_source, int8_skip, max_accuracy_drop, data_source)
    onnx_export.require_packages()
    row.function("require")()
    opset = onnx_export.choose_opset(opset)
    source = load_student(student)
    contract = source.contract(layout=layout, output=output)
    if data_source is not None:
        data_source.check(settings)
    for path in (out, _failed_name(out)):
        _check_free(row, path, f"export --to {to}", force)
    needs = {} if row.runtime is None else {"runtime": row.function("runtime")(runtime, download=fetch)}
    real = open_fitting(str(student), contract, data_source, settings) if data_source else None
    calibrate = calibration_images(source, contract, images_source, settings) if precision == "int8" else None
    images = _parity_images(contract, real, calibrate)
    reference, name = _reference(source, output), source.manifest.network.name
    notice(f"exporting {student}: {name}, {precision}, opset {opset}, {LAYOUTS[layout].summary}")
    with _work_folder(out) as folder:
        model = onnx_export.to_onnx(source, layout=layout, output=output, half=precision == "fp16", opset=opset)
        onnx_file, about = folder / "model.onnx", _about(source, contract, precision, opset)
        _save(model, about, onnx_file)  # float32 where int8 is still to come
        failed = []
        if calibrate is not None:
            found = parity.compare(reference, open_session(onnx_file), images, output=output)
            failed += [f"before int8, {line}" for line in parity.failures(found, parity.TOLERANCES["fp32"])]
            int8 = _Quantized(onnx_file, calibrate.images, LAYOUTS[layout])
            kept, searched = int8.layers_to_keep(int8_skip, real, max_accuracy_drop)
            how = Int8(float_layers=tuple(kept), calibration=calibrate.origin)
            if searched is not None:
                how = how.model_copy(update={"search": searched})
            about = about.model_copy(update={"int8": how})
            onnx_file = int8.write(kept, about)
        written = folder / f"written{row.suffix}"
        row.function("convert")(onnx_file, written, **needs)
        try:
            runner = row.function("open")(written)
        except UserError as error:
            if precision != "int8" or opset <= LAST_INT8_OPSET:
                raise
            raise UserError(
                f"--precision int8 --opset {opset}: the installed ONNX Runtime does not run {name} so: pass --opset "
                f"{LAST_INT8_OPSET} or lower"
            ) from error
        if calibrate is not None:
            del images["random"]  # noise, which the ranges of int8 are not made for
        found = parity.compare(reference, runner, images, output=output)
        failed += parity.failures(found, parity.TOLERANCES[precision])
        measured = _accuracies(reference, runner, real) if real else None
        target = _failed_name(out) if failed else out
        with interrupts.held():
            files = row.function("publish")(written, target)
            for file in files:
                note_written(file)
    result = Exported(
        file=str(target),
        bytes=sum(path.stat().st_size for path in files),
        to=to,
        parity=tuple(compared.row for compared in found),
        tolerance=parity.TOLERANCES[precision],
        accuracy=measured,
        failures=tuple(failed),
        **{key: getattr(about, key) for key in about.model_fields_set},
    )
    if failed:
        listed = "".join(f"\n  {line}" for line in failed)
        says = f"the exported model does not answer as the student does; it was kept as {target}:{listed}"
        raise CheckFailed(says, result=result)
    return result


def default_name(student: Path, to: str, precision: str) -> Path:
    """Where an export goes if nothing is said: beside the student, as `student-int8.onnx` or `student-web`."""
    if not student.is_file():
        raise UserError(f"no student at {student}")
    suffix = (EXPORTERS[to].suffix or f"-{to}") if to in EXPORTERS else ""
    return student.with_name(student.stem + ("" if precision == "fp32" else f"-{precision}") + suffix)


def _check_request(to: str, out: Path, precision: str, layout: str, output: str) -> Exporter:
    if to not in EXPORTERS:
        raise UserError(f"--to {to!r}: expected {' or '.join(EXPORTERS)}")
    row = EXPORTERS[to]
    for flag, value, known in (
        ("--precision", precision, row.precisions),
        ("--input", layout, row.layouts or tuple(LAYOUTS)),
        ("--output", output, OUTPUTS),
    ):
        if value not in known:
            raise UserError(f"{flag} {value!r} with --to {to}: expected {', '.join(known)}")
    if row.suffix and out.suffix != row.suffix:
        raise UserError(f"--out {out}: expected a name that ends in {row.suffix}, as --to {to} writes it")
    return row


def _check_int8_options(
    precision: str,
    calibration: DataArguments | None,
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
            raise UserError(f"{flag} needs --precision int8, got --precision {precision}")
    if max_accuracy_drop is not None and data is None:
        raise UserError("--max-accuracy-drop needs --data: the search measures accuracy on its training images")
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop <= 100:
        raise UserError(f"--max-accuracy-drop {max_accuracy_drop:g}: expected 0 to 100 percentage points")


def _check_free(row: Exporter, path: Path, made_by: str, force: bool) -> None:
    if row.foreign is not None:
        check_free_folder(path, force=force, foreign=row.function("foreign"), made_by=made_by, replaced=True)
        return
    check_free(path, force=force)
    check_free(path.with_name(path.name + row.beside), force=force)


def _failed_name(out: Path) -> Path:
    return out.with_name(f"{out.stem}.failed-parity{out.suffix}")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, so that finished files only need another name; nothing of it stays."""
    from google.protobuf.message import DecodeError  # what onnx says of a file that the disk had no room for

    try:
        with (
            interrupts.cleaning_up(),
            tempfile.TemporaryDirectory(dir=out.parent, prefix=".ncfmkit-export-") as name,
        ):
            yield Path(name)
    except DecodeError as error:
        raise UserError(
            f"{out} was not written: a file in the work folder is truncated; is the disk full? ({error})"
        ) from None
    except OSError as error:
        full = "; the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(f"cannot write {out}: {error.strerror or error}{full}") from None


def _about(source: Student, contract: Contract, precision: str, opset: int) -> ModelMetadata:
    """What the model says of itself, the same from one export to the next."""
    m, c = source.manifest, contract
    return ModelMetadata(
        kind="exported student",
        tool=f"ncfmkit {__version__}",
        versions={name: importlib.import_module(name).__version__ for name in ("torch", *onnx_export.NEEDED)},
        classes=m.classes,
        input=ModelInput(name=c.input_name, layout=c.layout, channels=c.channels, size=c.size),
        output=ModelOutput(name=c.output_name, kind=c.output),
        precision=precision,
        opset=opset,
        student=ModelStudent(
            sha256=source.sha256(), network=m.network, mean=m.mean, std=m.std, test_accuracy=m.test_accuracy
        ),
        trained_on=ModelSet(**m.trained_on.model_dump(include=set(ModelSet.model_fields), exclude_unset=True)),
    )


def _save(model: Any, about: ModelMetadata, path: Path) -> None:
    onnx_export.save(model, about.to_dict(), path, plain=plain_metadata(about), about=description(about))


def _parity_images(contract: Contract, real: RealData | None, calibrate: Calibration | None) -> dict[str, np.ndarray]:
    images = {"random": parity.random_images(sum(parity.BATCHES), contract.channels, contract.size)}
    if real is not None:
        images["real"] = spread(real.test_split().images, REAL_IMAGES)
    elif calibrate is not None:
        images["distilled" if calibrate.distilled else "calibration"] = spread(calibrate.images, REAL_IMAGES)
    else:
        notice("compared on random images only: --data adds real images and the accuracy on their test split")
    return images


class _Quantized:
    """The int8 version of a float32 file, and the choice of the layers that stay float32."""

    def __init__(self, float_file: Path, images_NCHW: np.ndarray, layout: Layout):
        self.float_file, self.images, self.layout = float_file, images_NCHW, layout
        self.layers = quantize.layers(onnx_export.load(float_file))

    def quantized(self, keep: Sequence[str]) -> Path:
        """The file with all but those layers quantized."""
        target = self.float_file.with_name("quantized.onnx")
        nodes = [self.layers[name] for name in keep]
        quantize.quantize(self.float_file, target, self.images, self.layout, nodes)
        return target

    def layers_to_keep(
        self, skip: Sequence[str], real: RealData | None, drop: float | None
    ) -> tuple[list[str], LayerSearch | None]:
        """The layers that stay float32, those asked for and those that the search finds; and what it measured on."""
        skipped = quantize.chosen(skip, self.layers)
        if drop is None or real is None:
            return skipped, None
        images_NCHW, labels_N = search_images(real.train)
        probe_NCHW = spread(self.images, REAL_IMAGES)

        def measured(path: Path) -> float:
            title = f"accuracy on training images of {real.name}"
            (outcome,) = score([open_session(path)], images_NCHW, title=title)
            return tally(outcome, labels_N).accuracy

        kept = quantize.search(self.quantized, self.layers, skipped, probe_NCHW, self.float_file, measured, drop / 100)
        searched = LayerSearch(
            data=real.name,
            fingerprint=real.fingerprint,
            split="train",
            images=len(images_NCHW),
            max_accuracy_drop=drop,
        )
        return kept, searched

    def write(self, keep: Sequence[str], about: ModelMetadata) -> Path:
        """The int8 file with its metadata."""
        path = self.quantized(keep)
        _save(onnx_export.load(path), about, path)
        return path


def _reference(source: Student, output: str) -> parity.Scores:
    """The student in float32 torch on the CPU, fed as in training: nothing here is shared with what is exported."""
    mean, std = channel_tensors(source.manifest.mean, source.manifest.std, torch.device("cpu"))

    @torch.inference_mode()
    def scores(images_NCHW: np.ndarray) -> np.ndarray:
        logits_NK = source.network(normalize(torch.tensor(images_NCHW), mean, std))
        return (logits_NK.softmax(1) if output == "probabilities" else logits_NK).numpy()

    return scores


def _accuracies(reference: parity.Scores, runner: parity.Scores, real: RealData) -> ExportAccuracy:
    test = real.test_split()
    student, exported = score([reference, runner], test.images, title="accuracy of student and export")
    return ExportAccuracy(
        data=real.name,
        images=len(test.images),
        student=tally(student, test.labels).accuracy,
        exported=tally(exported, test.labels).accuracy,
    )
