"""`validate`: measures whether an exported model is as accurate as the trained student, and how fast it is here.

Shapes: N images, C channels, H = W side, K classes.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.exporters import timing
from ncfmkit.exporters.accuracy import BATCH, Outcome, agreement, by_class, score, tally
from ncfmkit.exporters.contract import LAYOUTS, OUTPUTS, Contract, NoMetadata, format_shape
from ncfmkit.exporters.matching_data import check_classes, open_fitting
from ncfmkit.exporters.onnx import graph_facts
from ncfmkit.exporters.report import write_report
from ncfmkit.exporters.results import (
    Conditions,
    DataFacts,
    ModelFacts,
    ProviderRun,
    Reference,
    Run,
    StudentRun,
    Validation,
)
from ncfmkit.exporters.sessions import PROVIDERS, Device, engine_folder, missing, onnxruntime
from ncfmkit.exporters.student import Student, load_student
from ncfmkit.exporters.timing import ENGINE_SUFFIX, Runner, SpeedRow, SpeedSection, TimingConfig, open_model
from ncfmkit.files import check_free_folder, sha256_of
from ncfmkit.progress import notice
from ncfmkit.real.arguments import read_settings, split_arguments
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import cpu_threads, device_name, versions
from ncfmkit.scoring.students import describe_network

RESULT_FILE, REPORT_FILE = "validation.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What to validate, and how."""

    model: Path  # an ONNX file, or a TensorRT engine
    out: Path  # the folder to make for the results
    provider: str | None = None  # rows of PROVIDERS joined by commas, or all; None: cpu, or what the engine needs
    against: Path | None = None  # the student
    max_accuracy_drop: float | None = None  # percentage points
    declared: dict[str, str] = field(
        default_factory=dict
    )  # `layout`, `output` of a model that does not say them itself
    threads: int | None = None  # of the CPU, ONNX Runtime's and torch's alike; None: torch's choice
    timing: TimingConfig | None = None  # none: no timing
    force: bool = False  # overwrite the results of an earlier validation


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model on one provider."""

    provider: str
    runner: Runner
    built: bool | None  # whether opening it built its engine; None: this provider builds none

    @property
    def device(self) -> Device:
        return PROVIDERS[self.provider].device


def validate(
    model: str | os.PathLike[str],
    *,
    data: Any,
    provider: str | None = None,
    against: str | os.PathLike[str] | None = None,
    max_accuracy_drop: float | None = None,
    out: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    output: str | None = None,
    speed: bool = True,
    batches: str | Sequence[int] = (1, 8, 64, 256),
    threads: int | None = None,
    force: bool = False,
    **overrides: Any,
) -> Validation:
    """Runs a model on the whole test split and times it; writes the results and a report to a folder.

    Args:
        model: an ONNX classifier, or a TensorRT engine (.engine).
        data: real data with a test split, of the model's classes and sizes, as in :func:`ncfmkit.distill`.
        provider: what runs the model: `cpu`, `cuda`, `tensorrt`, several by comma, or `all`; None: cpu, or what an
            engine needs.
        against: the student that the model was exported from.
        max_accuracy_drop: percentage points; a larger drop is among the `failures` of the result.
        out: the folder to make for the results; None: `validation-MODEL`.
        layout: how a model without our metadata takes images, as in :func:`ncfmkit.export`.
        output: what a model without our metadata gives: `logits` or `probabilities`.
        speed: time the model, too.
        batches: images per call to time, at most 65,536; 1 is always among them.
        threads: of the CPU; None: torch's.
        force: overwrite the results of an earlier validation.
        overrides: settings of the real data by name, such as `size=32`; and `data_root`, `download`, `skip_bad` as in
            :func:`ncfmkit.distill`.

    Returns:
        What `validation.json` holds, as a record: `providers` (a row each with `accuracy` in [0, 1]), `speed`,
        `failures` (empty if all holds), ...; `to_dict()` gives plain JSON values.

    Raises:
        UserError: anything that the user can mend; nothing is left behind.

    Example:
        >>> result = ncfmkit.validate("student.onnx", data="digits", against="student.safetensors", speed=False)
        >>> result.providers[0].accuracy, result.failures
        (0.951, ())
    """
    model = Path(model)
    source, changes = split_arguments(data, overrides)
    settings = read_settings(source, changes)
    config = ValidationConfig(
        model=model,
        out=Path(f"validation-{model.stem}" if out is None else out),
        provider=provider,
        against=None if against is None else Path(against),
        max_accuracy_drop=max_accuracy_drop,
        declared={key: value for key, value in (("layout", layout), ("output", output)) if value is not None},
        threads=threads,
        force=force,
        timing=timing.TimingConfig(batches=timing.parse_batches(batches)) if speed else None,
    )
    check_request(config)
    with cpu_threads(config.threads or torch.get_num_threads()):
        models, left_out = open_models(config)
        contract = models[0].runner.contract
        _say_assumptions(config, contract)
        student = load_own_student(config.against, contract) if config.against else None
        known = None if student else _recorded_accuracy(config, contract)
        source.check(settings)
        check_free_folder(config.out, force=config.force, foreign=_foreign_entries, made_by="validate")
        replaces = config.out.exists()
        real = open_fitting(str(config.model), contract, source, settings)
        test = real.test_split()
        if student is not None:
            check_classes(f"--against {student.path}", student.manifest.classes, real.name, real.classes)
        beside, outcomes = _score(student, test, models)
        ran = None
        if student is not None and beside is not None:
            ran = _student_run(student, beside, test, models)
            known = Reference(accuracy=ran.accuracy, what="the student's in this run")
        rows = tuple(
            _model_run(config.model, model, outcome, beside, test, known, real.classes)
            for model, outcome in zip(models, outcomes, strict=True)
        )
        result = Validation(
            model=_about_model(config.model, contract),
            data=_about_data(real, test),
            student=ran,
            reference=known,
            providers=rows,
            left_out=left_out,
            max_accuracy_drop=config.max_accuracy_drop,
            conditions=_conditions(),
            speed=None,
            complete=config.timing is None,
            failures=tuple(accuracy_failures(ran, rows, known, config.max_accuracy_drop)),
        )
        if config.timing is not None:
            if not replaces:  # timing takes minutes: what is known is written, and outlives a Ctrl-C
                _write(config.out, result)
            with interrupts.keeping(lambda: None if replaces else f"interrupted: {config.out} has no speeds yet"):
                sections = _speed(config, config.timing, models, student, test)
            result = result.model_copy(update={"speed": sections, "complete": True})
        _write(config.out, result)
    return result


def _write(folder: Path, result: Validation) -> None:
    with interrupts.held():
        folder.mkdir(exist_ok=True)
        result.write(folder / RESULT_FILE)
        write_report(folder / REPORT_FILE, result)


def _foreign_entries(folder: Path) -> list[str]:
    """All that lies in a folder without results; others are not touched."""
    return [] if (folder / RESULT_FILE).is_file() else sorted(entry.name for entry in folder.iterdir())


def check_request(config: ValidationConfig) -> None:
    """Raises UserError for values that no model and data could make sense of."""
    limit = config.max_accuracy_drop
    if limit is not None and not 0 <= limit <= 100:
        raise UserError(f"--max-accuracy-drop: expected 0 to 100 percentage points, got {limit:g}")
    if config.threads is not None and config.threads < 1:
        raise UserError(f"--threads: expected 1 or more, got {config.threads}")
    for flag, key, known in (("--input", "layout", tuple(LAYOUTS)), ("--output", "output", OUTPUTS)):
        if config.declared.get(key, known[0]) not in known:
            raise UserError(f"{flag}: expected one of {', '.join(known)}, got {config.declared[key]!r}")


def open_models(config: ValidationConfig) -> tuple[list[Opened], dict[str, str]]:
    """The model on every provider of `config`, and by name why others were left out, which only `all` allows.

    Raises:
        UserError: not a model, or a provider asked for by name does not load.
    """
    names, lenient = _provider_names(config)
    models, left_out = [], {}
    for name in names:
        excusable = lenient and name != "cpu"
        lacking = missing(name) if excusable else ""
        if not lacking:
            try:
                models.append(_open(config, name))
                continue
            except UserError as error:
                if not excusable:
                    raise
                lacking = str(error)
        left_out[name] = lacking
        notice(f"provider {name} is left out: {lacking}")
    return models, left_out


def _provider_names(config: ValidationConfig) -> tuple[list[str], bool]:
    """The providers, and whether those that do not load may be left out."""
    if config.model.suffix == ENGINE_SUFFIX:
        if config.provider not in (None, "all", "tensorrt"):
            raise UserError(
                f"--provider {config.provider}: {config.model} is a TensorRT engine, which only tensorrt runs"
            )
        return ["tensorrt"], False
    if config.provider == "all":
        return list(PROVIDERS), True
    given = "cpu" if config.provider is None else config.provider
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        known = ", ".join(PROVIDERS)
        raise UserError(f"unknown provider {unknown[0]!r}: expected one or more of {known}, comma-separated, or all")
    return names, False


def _open(config: ValidationConfig, provider: str) -> Opened:
    builds = PROVIDERS[provider].caches and config.model.suffix != ENGINE_SUFFIX
    cached = builds and any(engine_folder(config.model).glob("*.engine"))
    runner = open_model(
        config.model, provider, threads=config.threads or torch.get_num_threads(), declared=config.declared
    )
    return Opened(provider=provider, runner=runner, built=not cached if builds else None)


def _say_assumptions(config: ValidationConfig, contract: Contract) -> None:
    if contract.metadata:
        return
    layout, output = ("as declared" if key in config.declared else "assumed" for key in ("layout", "output"))
    notice(
        f"{config.model} has no ncfmkit metadata: input {LAYOUTS[contract.layout].summary} ({layout}, --input), output "
        f"{contract.output} ({output}, --output), classes in the order of the data"
    )


def load_own_student(path: Path, contract: Contract) -> Student:
    """The student that the model was exported from; a notice if the model knows it to be another one.

    Raises:
        UserError: not a student, or not one of the model's size and number of classes.
    """
    student = load_student(path)
    ours = student.contract(layout=contract.layout, output=contract.output)
    model_takes, student_takes = (
        f"{format_shape(c.image_shape)} images and has {c.class_count} classes" for c in (contract, ours)
    )
    if student_takes != model_takes:
        raise UserError(
            f"--against {path}: the student takes {student_takes}, the model {model_takes}: pass the student that the "
            "model was exported from"
        )
    made_from = contract.metadata.student.sha256 if contract.metadata else None
    if made_from is not None and made_from != student.sha256():
        notice(f"{path} is not the student that the model was exported from: its sha256 differs from the recorded one")
    return student


def _score(student: Student | None, test: Split, models: Sequence[Opened]) -> tuple[Outcome | None, list[Outcome]]:
    """What became of the student, where there is one, and of the model on every provider, on the test images.

    The student is in float32 (no TensorFloat-32), on a GPU if the model is run on one.
    """
    runners: list[Callable[[np.ndarray], np.ndarray]] = [model.runner for model in models]
    title = f"accuracy on {', '.join(model.provider for model in models)}"
    if student is None:
        return None, score(runners, test.images, title=title)
    device, contract = _student_device(models), models[0].runner.contract
    deployed = student.deployed(layout=contract.layout, output=contract.output).to(device)

    @torch.inference_mode()
    def answer(images_NCHW: np.ndarray) -> np.ndarray:
        with timing.exact_float32(device.type):
            return deployed(torch.from_numpy(contract.feed(images_NCHW)).to(device)).cpu().numpy()

    beside, *outcomes = score([answer, *runners], test.images, title=f"{title}, and of the student on {device.type}")
    return beside, outcomes


def _student_device(models: Sequence[Opened]) -> torch.device:
    return torch.device("cuda" if any(m.device == "cuda" for m in models) else "cpu")


def _student_run(student: Student, outcome: Outcome, test: Split, models: Sequence[Opened]) -> StudentRun:
    return StudentRun(
        name="torch student, float32",
        path=str(student.path),
        device=device_name(_student_device(models)),
        network=describe_network(student.manifest.network.settings()),
        recorded_accuracy=student.manifest.test_accuracy,
        **dict(tally(outcome, test.labels)),
    )


def _model_run(
    path: Path,
    model: Opened,
    outcome: Outcome,
    beside: Outcome | None,
    test: Split,
    known: Reference | None,
    classes: Sequence[str],
) -> ProviderRun:
    counted = tally(outcome, test.labels)
    return ProviderRun(
        name=timing.runner_name(path, model.provider),
        provider=model.provider,
        device=device_name(torch.device(model.device)),
        placement={where: dict(operators) for where, operators in model.runner.placement.items()},
        classes=by_class(counted.confusion, test.counts().tolist(), classes),
        accuracy_drop=None if known is None else 100 * (known.accuracy - counted.accuracy),
        **dict(counted),
        **({} if beside is None else dict(agreement(outcome, beside))),
    )


def _recorded_accuracy(config: ValidationConfig, contract: Contract) -> Reference | None:
    """What the accuracy is compared with where no student is given.

    Raises:
        UserError: a gate is asked for and nothing is recorded.
    """
    recorded = contract.metadata.student.test_accuracy if contract.metadata else None
    if recorded is not None:
        what = "the student's as recorded in the model, which does not say on which images"
        notice(f"without --against, accuracy is compared with {recorded:.2%}: {what}")
        return Reference(accuracy=recorded, what=what)
    if config.max_accuracy_drop is not None:
        raise UserError(
            f"--max-accuracy-drop: {config.model} does not record its student's accuracy: pass --against STUDENT"
        )
    return None


def accuracy_failures(
    student: StudentRun | None, rows: Sequence[ProviderRun], reference: Reference | None, limit: float | None
) -> list[str]:
    """What did not hold, one line each: scores that are not finite, and accuracy that dropped by more than `limit`."""
    failures = []
    if student is not None and student.non_finite:
        failures.append(_not_finite("the student", student))
    for row in rows:
        if row.non_finite:
            failures.append(_not_finite(row.provider, row))
        if limit is None or reference is None or row.accuracy_drop is None:
            continue
        if row.accuracy_drop > limit + 1e-9:
            failures.append(
                f"{row.provider}: accuracy {row.accuracy:.2%} is {row.accuracy_drop:.2f} points below "
                f"{reference.accuracy:.2%}, {reference.what}: allowed are {limit:g}"
            )
    return failures


def _not_finite(who: str, run: Run) -> str:
    return f"{who}: the scores of {run.non_finite:,} of {run.images:,} images are not finite"


def _speed(
    config: ValidationConfig, how: TimingConfig, models: list[Opened], student: Student | None, test: Split
) -> tuple[SpeedSection, ...]:
    """Timings, cold starts and memory, per device."""
    contract = models[0].runner.contract
    sections = []
    for device in dict.fromkeys(m.device for m in models):
        here = {timing.runner_name(config.model, m.provider): m for m in models if m.device == device}
        section = timing.time_device(
            device,
            {name: m.runner for name, m in here.items()},
            student.deployed(layout=contract.layout, output=contract.output) if student else None,
            test.images,
            how,
        )
        common = timing.Job(path="", device=device, batch=how.batches[-1], threads=torch.get_num_threads())
        rows: list[SpeedRow] = []
        for row in section.rows:
            model = here.get(row.name)
            if model is not None:
                what = {"path": str(config.model), "provider": model.provider, "declared": config.declared}
            elif student is not None and row.name == timing.EAGER:
                what = {"path": str(student.path), "layout": contract.layout, "output": contract.output}
            else:  # compiled torch
                rows.append(row)
                continue
            notice(f"cold start and memory of {row.name}, in a separate process")
            found = dict(timing.footprint(common.model_copy(update=what)))
            if model is not None:
                found["engine_build_seconds"] = _build_seconds(config.model, model, found["cold_start_seconds"])
            rows.append(row.model_copy(update=found))
        sections.append(section.model_copy(update={"rows": tuple(rows)}))
    return tuple(sections)


def _build_seconds(path: Path, model: Opened, cold_start: float | None) -> float | None:
    """Of an engine, as recorded when it was built; of ONNX Runtime's TensorRT, the first opening, which built the
    engine, less a later one that found it in the cache; None: nothing was built now."""
    if path.suffix == ENGINE_SUFFIX:
        from ncfmkit.exporters.tensorrt import Sidecar, sidecar_path

        return Sidecar.read(sidecar_path(path)).seconds
    if not model.built or cold_start is None:
        return None
    return max(0.0, model.runner.seconds - cold_start)


def _about_model(path: Path, contract: Contract) -> ModelFacts:
    opset, size = None, path.stat().st_size
    if path.suffix != ENGINE_SUFFIX and find_spec("onnx") is not None:
        facts = graph_facts(path)
        opset, size = facts.opset, facts.bytes
    return ModelFacts(
        path=str(path),
        bytes=size,
        sha256=sha256_of(path),
        opset=opset,
        layout=contract.layout,
        channels=contract.channels,
        size=contract.size,
        output=contract.output,
        classes=contract.class_count,
        metadata=contract.metadata or NoMetadata(),
    )


def _about_data(real: RealData, test: Split) -> DataFacts:
    return DataFacts(
        name=real.name,
        fingerprint=real.fingerprint,
        images=len(test.images),
        classes=tuple(real.classes),
        size=real.size,
        channels=real.channels,
        skipped=real.skipped,
    )


def _conditions() -> Conditions:
    found = versions()
    with contextlib.suppress(UserError):
        found["onnxruntime"] = onnxruntime().__version__
    return Conditions(threads=torch.get_num_threads(), versions=found, batch=BATCH)
