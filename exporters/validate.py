"""`validate`: measures whether exported models are as accurate as the trained student, and how fast they are here.

Shapes: N images, C channels, H = W side, K classes.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ncfmkit import interrupts
from ncfmkit.errors import UserError
from ncfmkit.exporters import timing
from ncfmkit.exporters.accuracy import BATCH, Outcome, agreement, by_class, score, tally
from ncfmkit.exporters.comparison import better, check_alike, compared, pairs, run_names
from ncfmkit.exporters.comparison_report import write_comparison
from ncfmkit.exporters.contract import Contract, NoMetadata, as_declared, assumed_text, check_declared
from ncfmkit.exporters.matching_data import check_classes, open_fitting
from ncfmkit.exporters.onnx import graph_facts
from ncfmkit.exporters.providers import PROVIDERS, Device, device_text, missing, onnxruntime
from ncfmkit.exporters.report import write_report
from ncfmkit.exporters.results import (
    Conditions,
    DataFacts,
    ModelComparison,
    ModelFacts,
    Pair,
    ProviderRun,
    Reference,
    Run,
    StudentRun,
    Validation,
)
from ncfmkit.exporters.sessions import engine_folder
from ncfmkit.exporters.student import Student, load_student
from ncfmkit.exporters.timing import ENGINE_SUFFIX, Runner, SpeedRow, SpeedSection, TimingConfig, open_model
from ncfmkit.files import check_free_folder, make_folder, sha256_of, short_names
from ncfmkit.progress import notice
from ncfmkit.real.arguments import read_settings, split_arguments
from ncfmkit.real.store import RealData, Split
from ncfmkit.runtime import cpu_threads, device_name, versions
from ncfmkit.scoring.students import describe_network

RESULT_FILE, REPORT_FILE = "validation.json", "report.html"
COMPARISON_FOLDER = "validation-comparison"
STUDENT = "torch student, float32"


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


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to validate, on all its providers."""

    name: str  # unique among the models
    config: ValidationConfig
    models: list[Opened]
    left_out: dict[str, str]  # providers, and why

    @property
    def contract(self) -> Contract:
        return self.models[0].runner.contract


@overload
def validate(model: str | os.PathLike[str], *, data: Any, **how: Any) -> Validation: ...


@overload
def validate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too: it is one path
    model: Sequence[str | os.PathLike[str]], *, data: Any, **how: Any
) -> ModelComparison: ...


def validate(
    model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
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
) -> Validation | ModelComparison:
    """Runs a model on the whole test split and times it; writes the results and a report to a folder.

    Several models are compared: they see the same images, and are timed by turns.

    Args:
        model: an ONNX classifier, or a TensorRT engine (.engine); or a sequence of them, of one image size and the same
            classes.
        data: real data with a test split, of the model's classes and sizes, as in :func:`ncfmkit.distill`.
        provider: what runs the model: `cpu`, `cuda`, `tensorrt`, `openvino`, `webgpu`, `tensorrt-rtx`, several by
            comma, or `all`; None: cpu, or what an engine needs.
        against: the student that the model was exported from. Without it, models are compared with the first.
        max_accuracy_drop: percentage points; a larger drop is among the `failures` of the result.
        out: the folder to make for the results; None: `validation-MODEL`, of a sequence `validation-comparison`.
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
        `failures` (empty if all holds), ...; `to_dict()` gives plain JSON values. Of a sequence: `models` (such a
        record each), `runs` (accuracy, bytes, latency in ms, throughput, and what is on the Pareto fronts), `pairs`
        (each run against the student or the first run: difference in percentage points, and p of McNemar's exact
        test), `failures`.

    Raises:
        UserError: anything that the user can mend; nothing is left behind.

    Example:
        >>> result = ncfmkit.validate("student.onnx", data="digits", against="student.safetensors", speed=False)
        >>> result.providers[0].accuracy, result.failures
        (0.951, ())
        >>> both = ncfmkit.validate(["student.onnx", "student-int8.onnx"], data="digits")
        >>> both.pairs[0].difference, both.pairs[0].p
        (-0.22, 1.0)
    """
    alone = isinstance(model, str | os.PathLike)
    paths = [Path(path) for path in ([model] if isinstance(model, str | os.PathLike) else model)]
    if not paths:
        raise UserError("validate: expected one or more models, got none")
    source, changes = split_arguments(data, overrides)
    settings = read_settings(source, changes)
    config = ValidationConfig(
        model=paths[0],
        out=Path(out or (f"validation-{paths[0].stem}" if alone else COMPARISON_FOLDER)),
        provider=provider,
        against=None if against is None else Path(against),
        max_accuracy_drop=max_accuracy_drop,
        declared=as_declared(layout, output),
        threads=threads,
        force=force,
        timing=timing.TimingConfig(batches=timing.parse_batches(batches)) if speed else None,
    )
    check_request(config)
    names = short_names([str(path) for path in paths])
    with cpu_threads(config.threads or torch.get_num_threads()):
        candidates = [
            open_candidate(replace(config, model=path), name) for path, name in zip(paths, names, strict=True)
        ]
        contracts = {candidate.name: candidate.contract for candidate in candidates}
        check_declared(config.declared, contracts)
        check_alike(contracts)
        _say_doubles(candidates)
        student = load_own_student(config.against, candidates) if config.against else None
        known = [None if student else _recorded_accuracy(c.config, c.contract) for c in candidates]
        source.check(settings)
        check_free_folder(config.out, force=config.force, foreign=_foreign_entries, made_by="validate")
        replaces = config.out.exists()
        named = next((c for c in candidates if c.contract.classes is not None), candidates[0])
        real = open_fitting(str(named.config.model), named.contract, source, settings)
        test = real.test_split()
        if student is not None:
            check_classes(f"--against {student.path}", student.manifest.classes, real.name, real.classes)
        device = _student_device(candidates)
        scored = _score(student, device, test, candidates)
        models = [
            _result(candidate, outcomes, recorded, student, device, real)
            for candidate, outcomes, recorded in zip(candidates, scored, known, strict=True)
        ]
        against_reference = _pairs(candidates, scored, test)

        def whole(models: Sequence[Validation]) -> Validation | ModelComparison:
            return models[0] if alone else compared(names, models, *against_reference)

        if config.timing is not None:
            if not replaces:  # timing takes minutes: what is known is written, and outlives a Ctrl-C
                _write(config.out, whole(models))
            with interrupts.keeping(lambda: None if replaces else f"interrupted: {config.out} has no speeds yet"):
                speeds = _speed(config.timing, candidates, student, test)
            models = [
                result.model_copy(update={"speed": sections, "complete": True})
                for result, sections in zip(models, speeds, strict=True)
            ]
        result = whole(models)
        _write(config.out, result)
    return result


def _write(folder: Path, result: Validation | ModelComparison) -> None:
    with interrupts.held():
        make_folder(folder)
        result.write(folder / RESULT_FILE)
        if isinstance(result, Validation):
            write_report(folder / REPORT_FILE, result)
        else:
            write_comparison(folder / REPORT_FILE, result)


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


def open_candidate(config: ValidationConfig, name: str) -> Candidate:
    """The model of `config`, as :func:`open_models` opens it; a notice of what is assumed of it."""
    models, left_out = open_models(config)
    candidate = Candidate(name=name, config=config, models=models, left_out=left_out)
    _say_assumptions(config, candidate.contract)
    return candidate


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


def _say_doubles(candidates: Sequence[Candidate]) -> None:
    first: dict[str, str] = {}  # the name of the first model, by sha256
    for candidate in candidates:
        same = first.setdefault(sha256_of(candidate.config.model), candidate.name)
        if same != candidate.name:
            notice(f"{candidate.name} and {same} have the same sha256: they may be one model, twice")


def _say_assumptions(config: ValidationConfig, contract: Contract) -> None:
    if contract.metadata:
        return
    assumed = assumed_text(contract, config.declared)
    notice(f"{config.model} has no ncfmkit metadata: {assumed}, classes in the order of the data")


def load_own_student(path: Path, candidates: Sequence[Candidate]) -> Student:
    """The student that the models were exported from; a notice for each that knows it to be another one.

    Raises:
        UserError: not a student, or not one of the model's size and number of classes.
    """
    student, contract = load_student(path), candidates[0].contract
    ours = student.contract(layout=contract.layout, output=contract.output)
    model_takes, student_takes = contract.takes(), ours.takes()
    if student_takes != model_takes:
        raise UserError(
            f"--against {path}: the student takes {student_takes}, the model {model_takes}: pass the student that the "
            "model was exported from"
        )
    for candidate in candidates:
        about = candidate.contract.metadata
        if about is not None and about.student.sha256 not in (None, student.sha256()):
            which = "the model" if len(candidates) == 1 else candidate.name
            notice(
                f"{path} is not the student that {which} was exported from: its sha256 differs from the recorded one"
            )
    return student


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of the test images."""

    student: Outcome | None
    providers: list[Outcome]  # of the model on each


def _score(student: Student | None, device: torch.device, test: Split, candidates: Sequence[Candidate]) -> list[Scored]:
    """What became of the student, where there is one, and of the models on every provider, on the test images.

    The student is in float32 (no TensorFloat-32). It runs once with each kind of output that the models have, so that
    differences are of like scores.
    """
    found: dict[str, Scored] = {}
    for output in dict.fromkeys(c.contract.output for c in candidates):
        alike = [c for c in candidates if c.contract.output == output]
        beside, outcomes = _score_alike(student, device, test, [model for c in alike for model in c.models])
        rest = iter(outcomes)
        for c in alike:
            found[c.name] = Scored(student=beside, providers=list(islice(rest, len(c.models))))
    return [found[c.name] for c in candidates]


def _score_alike(
    student: Student | None, device: torch.device, test: Split, models: Sequence[Opened]
) -> tuple[Outcome | None, list[Outcome]]:
    runners: list[Callable[[np.ndarray], np.ndarray]] = [model.runner for model in models]
    title = f"accuracy on {', '.join(dict.fromkeys(model.provider for model in models))}"
    if student is None:
        return None, score(runners, test.images, title=title)
    contract = models[0].runner.contract
    deployed = student.deployed(layout=contract.layout, output=contract.output).to(device)

    @torch.inference_mode()
    def answer(images_NCHW: np.ndarray) -> np.ndarray:
        with timing.exact_float32(device.type):
            return deployed(torch.from_numpy(contract.feed(images_NCHW)).to(device)).cpu().numpy()

    beside, *outcomes = score([answer, *runners], test.images, title=f"{title}, and of the student on {device.type}")
    return beside, outcomes


def _pairs(
    candidates: Sequence[Candidate], scored: Sequence[Scored], test: Split
) -> tuple[str, tuple[Pair, ...], np.ndarray]:
    """What runs are compared with, the student or else the first of them, by name; how they compare; and which are
    better than which."""
    names = run_names([(c.name, model.provider) for c in candidates for model in c.models])
    outcomes = dict(zip(names, (outcome for each in scored for outcome in each.providers), strict=True))
    better_MM = better(list(outcomes.values()), test.labels)
    name, reference = STUDENT, scored[0].student
    if reference is None:
        name = names[0]
        reference = outcomes.pop(name)
    return name, pairs(outcomes, reference, test.labels), better_MM


def _result(
    candidate: Candidate,
    scored: Scored,
    recorded: Reference | None,
    student: Student | None,
    device: torch.device,
    real: RealData,
) -> Validation:
    """All but the speeds."""
    config, test, ran, known = candidate.config, real.test_split(), None, recorded
    if student is not None and scored.student is not None:
        ran = _student_run(student, scored.student, test, device)
        known = Reference(accuracy=ran.accuracy, what="the student's in this run")
    rows = tuple(
        _model_run(config.model, model, outcome, scored.student, test, known, real.classes)
        for model, outcome in zip(candidate.models, scored.providers, strict=True)
    )
    return Validation(
        model=_about_model(config.model, candidate.contract),
        data=_about_data(real, test),
        student=ran,
        reference=known,
        providers=rows,
        left_out=candidate.left_out,
        max_accuracy_drop=config.max_accuracy_drop,
        conditions=_conditions(),
        speed=None,
        complete=config.timing is None,
        failures=tuple(accuracy_failures(ran, rows, known, config.max_accuracy_drop)),
    )


def _student_device(candidates: Sequence[Candidate]) -> torch.device:
    """A GPU if a model is run on one."""
    return torch.device("cuda" if any(m.device == "cuda" for c in candidates for m in c.models) else "cpu")


def _student_run(student: Student, outcome: Outcome, test: Split, device: torch.device) -> StudentRun:
    return StudentRun(
        name=STUDENT,
        path=str(student.path),
        device=device_name(device),
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
        device=device_text(model.device),
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
        notice(f"without --against, the accuracy of {config.model} is compared with {recorded:.2%}: {what}")
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
    how: TimingConfig, candidates: Sequence[Candidate], student: Student | None, test: Split
) -> list[tuple[SpeedSection, ...]]:
    """Timings, cold starts and memory of each model, per device; all on a device take turns, the student by torch where
    torch has that device, too."""
    found: list[list[SpeedSection]] = [[] for _ in candidates]
    models = [(k, model) for k, candidate in enumerate(candidates) for model in candidate.models]
    names = run_names([(candidates[k].name, model.provider) for k, model in models])
    for device in dict.fromkeys(model.device for _, model in models):
        here = {name: place for name, place in zip(names, models, strict=True) if place[1].device == device}
        contract = next(iter(here.values()))[1].runner.contract
        section = timing.time_device(
            device,
            {name: model.runner for name, (_, model) in here.items()},
            student.deployed(layout=contract.layout, output=contract.output)
            if student and all(PROVIDERS[model.provider].in_torch for _, model in here.values())
            else None,
            test.images,
            how,
        )
        common = timing.Job(path="", device=device, batch=how.batches[-1], threads=torch.get_num_threads())
        rows: list[list[SpeedRow]] = [[] for _ in candidates]
        of_student: list[SpeedRow] = []
        for row in section.rows:
            if row.name in here:
                k, model = here[row.name]
                config = candidates[k].config
                what = {"path": str(config.model), "provider": model.provider, "declared": config.declared}
                own_name = timing.runner_name(config.model, model.provider)
                found_out = _footprint(own_name if len(candidates) == 1 else row.name, common, what)
                build = _build_seconds(config.model, model, found_out["cold_start_seconds"])
                more = {"name": own_name, "engine_build_seconds": build}
                rows[k].append(row.model_copy(update=found_out | more))
            elif student is not None and row.name == timing.EAGER:
                what = {"path": str(student.path), "layout": contract.layout, "output": contract.output}
                of_student.append(row.model_copy(update=_footprint(row.name, common, what)))
            else:  # compiled torch
                of_student.append(row)
        copied = any(not PROVIDERS[model.provider].waits for _, model in here.values())
        for k in dict.fromkeys(k for k, _ in here.values()):
            update = {"rows": (*rows[k], *of_student), "outputs_copied": copied}
            found[k].append(section.model_copy(update=update))
    return [tuple(sections) for sections in found]


def _footprint(name: str, common: timing.Job, what: dict[str, Any]) -> dict[str, Any]:
    notice(f"cold start and memory of {name}, in a separate process")
    return dict(timing.footprint(common.model_copy(update=what)))


def _build_seconds(path: Path, model: Opened, cold_start: float | None) -> float | None:
    """Of an engine, as recorded when it was built; of ONNX Runtime's TensorRT, the first opening, which built the
    engine, less a later one that found it in the cache; None: nothing was built now."""
    if path.suffix == ENGINE_SUFFIX:
        from ncfmkit.exporters.engine_file import Sidecar, sidecar_path

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
