"""The jobs that the commands do, each one function: distill, resume, pretrain, evaluate, train."""

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ncfmkit import extractors, networks, report, students
from ncfmkit import synthetic as synthetic_sets
from ncfmkit._version import __version__
from ncfmkit.augment import parse_strategy
from ncfmkit.config import NetworkSettings, Settings, check, from_dict, load_recipe, override, to_dict
from ncfmkit.distillation import Plan, Problem, State, StepLosses, distill_step, make_plan, make_problem, make_state
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.files import check_free, write_atomic
from ncfmkit.formats import one_file, student_file
from ncfmkit.formats.loading import load
from ncfmkit.formats.manifest import DIGEST_KEY
from ncfmkit.progress import notice, track
from ncfmkit.real import SOURCES, RealData, open_real
from ncfmkit.run import RunDirectory, deferred_interrupts, next_free, write_json
from ncfmkit.runtime import Runtime, choose_runtime, cpu_threads, versions
from ncfmkit.sizes import format_bytes, parse_bytes
from ncfmkit.synthetic import SyntheticSet, decode_mask
from ncfmkit.training import LabelledImages

DEFAULT_RECIPES = {"digits": "digits"}  # of data that has one recipe of its own
LOGGED_STEPS = 1000  # lines of metrics.jsonl, at most about
ARTEFACTS = {
    one_file.FILE_NAME: "the set",
    "preview.png": "what it looks like",
    "curves.png": "the losses",
    "scores.json": "the scores",
    "report.html": "all of it on one page",
}


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Where the real data are, as the user said it."""

    data: str
    data_root: str | None = None
    download: bool = False
    skip_bad: bool = False

    def open(self, settings: Settings) -> RealData:
        """The real data.

        Raises:
            UserError: they cannot be opened, or have one class alone.
        """
        root = Path(self.data_root) if self.data_root else None
        real = open_real(self.data, settings.data, data_root=root, download=self.download, skip_bad=self.skip_bad)
        if len(real.classes) < 2:
            raise UserError(f"{real.name} has one class, {real.classes[0]!r}: a classifier needs two or more")
        return real

    def absolute(self) -> "DataArguments":
        """The same from any working directory."""
        named = self.data in {kind.name for kind in SOURCES}
        return dataclasses.replace(
            self,
            data=self.data if named else os.path.abspath(self.data),
            data_root=self.data_root and os.path.abspath(self.data_root),
        )


def make_settings(data: str, recipe: str | None, overrides: dict[str, Any]) -> Settings:
    """Default < recipe < overrides, checked; without a recipe, the data's own or the defaults."""
    recipe = recipe or DEFAULT_RECIPES.get(data)
    settings = check(override(load_recipe(recipe) if recipe else Settings(), _read_class_list(overrides)))
    for strategy in (settings.pool.augment, settings.distill.augment, settings.student.augment):
        parse_strategy(strategy)
    if settings.runtime.memory_budget:
        parse_bytes(settings.runtime.memory_budget)
    return settings


def _read_class_list(overrides: dict[str, Any]) -> dict[str, Any]:
    """`data.classes` may name a file with one class a line."""
    key = next((k for k in ("data.classes", "classes") if k in overrides), None)
    if key is None or not isinstance(overrides[key], str) or not os.path.isfile(overrides[key]):
        return overrides
    try:
        lines = Path(overrides[key]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {overrides[key]}: expected a text file with one class a line: {error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--classes {overrides[key]}: expected one class a line, got an empty file")
    return overrides | {key: names}


# ---- distill ----------------------------------------------------------------------------------------------------


def distill(
    data: str,
    *,
    recipe: str | None = None,
    out: str | Path | None = None,
    baselines: Sequence[str] = ("random",),
    data_root: str | None = None,
    download: bool = False,
    skip_bad: bool = False,
    **overrides: Any,
) -> SyntheticSet:
    """Distills a labelled image set and scores the result; everything is kept in a run directory.

    Args:
        data: a known name or a path, see `ncfmkit.real.SOURCES`.
        recipe: a recipe's name or a path ending in .toml; none: the data's own, or the defaults.
        out: the run directory; none: a fresh one under `runs/`.
        baselines: rows of `ncfmkit.students.BASELINES` to score beside the set.
        data_root, download: where torchvision's data sets are, and whether they may be downloaded.
        skip_bad: pass over images that cannot be read, and count them.
        overrides: settings by name, such as `ipc=1` or `**{"distill.lr": 3e-3}`.

    Raises:
        UserError, NonFiniteLossError, Interrupted: as the command's exit codes 2, 3 and 130.
    """
    arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    folder = distill_run(arguments, recipe=recipe, out=out, baselines=baselines, overrides=overrides)
    return load(folder)


def distill_run(
    arguments: DataArguments,
    *,
    recipe: str | None,
    out: str | Path | None,
    baselines: Sequence[str],
    overrides: dict[str, Any],
) -> Path:
    """As :func:`distill`; returns the run directory."""
    data = arguments.data
    settings = make_settings(data, recipe, overrides)
    baselines = students.parse_baselines(baselines if isinstance(baselines, str) else ",".join(baselines))
    folder = Path(out) if out else next_free(Path("runs"), f"{_slug(data)}-ipc{settings.distill.ipc}")
    RunDirectory.free(folder)
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    settings = _resolved(settings, real)
    images = _initial_images(settings, real)
    if settings.student.repeats:
        students.test_split(real)
        students.check_baselines(real, baselines, stored=settings.distill.ipc, decoded=_decoded_per_class(settings))
    _rehearse(settings, real, runtime, images)
    run = RunDirectory.create(folder, _run_info(settings, real, runtime, arguments, baselines))
    with run.alone():
        _go_on(run, settings, real, runtime, images, baselines)
    return folder


def resume(path: str | Path) -> SyntheticSet:
    """Goes on with an interrupted run, and ends with the same bytes as one that was not interrupted.

    Raises:
        UserError: no run there, another process works in it, other data than it started with, or a device that is
            not there.
    """
    run = RunDirectory.open(Path(path))
    info = run.info()
    settings = from_dict(info["settings"])
    asked = dataclasses.replace(
        settings.runtime, precision=info["precision"], compile="on" if info["compile"] else "off"
    )
    runtime = choose_runtime(asked)
    if info["status"] == "done":
        if not (run.path / "report.html").exists():
            report.write_report(run.path)
        notice(f"{path} is finished: nothing is left to do")
        return load(run.path)
    with run.alone():
        real = DataArguments(**info["arguments"]).open(settings)
        if real.fingerprint != info["data"]["fingerprint"]:
            raise UserError(f"the data at {info['arguments']['data']} have changed since {path} was started")
        with cpu_threads(info["threads"]):  # sums in another order would end with other bytes
            _go_on(run, settings, real, runtime, _initial_images(settings, real), info["baselines"])
    return load(run.path)


def _slug(data: str) -> str:
    return Path(data).name.split("*")[0].split("{")[0].removesuffix(".parquet").strip("-._") or "data"


def _resolved(settings: Settings, real: RealData) -> Settings:
    """The settings with what the data decided, but `data` as asked: it is part of the data's fingerprint."""
    network = extractors.resolve_network(settings.network, real.size)
    load = settings.distill.load and os.path.abspath(settings.distill.load)  # a run is resumed from anywhere
    distill = dataclasses.replace(settings.distill, load=load)
    return dataclasses.replace(settings, network=network, distill=distill)


def _initial_images(settings: Settings, real: RealData) -> torch.Tensor:
    d = settings.distill
    if d.init == "load":
        return synthetic_sets.from_set(load(str(d.load)), real, ipc=d.ipc)
    return synthetic_sets.initialise(d.init, real, ipc=d.ipc, factor=d.factor, seed=settings.seed)


def _decoded_per_class(settings: Settings) -> int:
    d = settings.distill
    return int(decode_mask(d.decode, d.factor, d.ipc, d.decoded_budget).sum())


def _rehearse(settings: Settings, real: RealData, runtime: Runtime, images: torch.Tensor) -> None:
    """Finds what would fail after the pool is trained, before anything is written: network, factor, memory budget."""
    pool = extractors.Pool(key="", initial=[], final=[], accuracies=[], seconds=0.0)
    problem = _problem(settings, real, runtime, pool)
    _plan(settings, problem, make_state(problem, images))


def _problem(settings: Settings, real: RealData, runtime: Runtime, pool: extractors.Pool) -> Problem:
    return make_problem(
        real,
        settings.distill,
        seed=settings.seed,
        pool=pool,
        build=extractors.network_builder(settings.network, real),
        runtime=runtime,
        budget=_budget(settings),
        gradient_checkpointing=settings.runtime.gradient_checkpointing,
    )


def _budget(settings: Settings) -> int | None:
    return parse_bytes(settings.runtime.memory_budget) if settings.runtime.memory_budget else None


def _plan(settings: Settings, problem: Problem, state: State) -> Plan:
    return make_plan(problem, state, budget=_budget(settings), stack=settings.runtime.stack)


def _run_info(
    settings: Settings, real: RealData, runtime: Runtime, arguments: DataArguments, baselines: Sequence[str]
) -> dict[str, Any]:
    return {
        "ncfmkit": __version__,
        "command": shlex.join(["ncfmkit", *sys.argv[1:]]) if "ncfmkit" in Path(sys.argv[0]).name else None,
        "arguments": dataclasses.asdict(arguments.absolute()),
        "baselines": list(baselines),
        "data": {
            "name": real.name,
            "classes": list(real.classes),
            "train": len(real.train.images),
            "test": len(real.test.images) if real.test else 0,
            "size": real.size,
            "channels": real.channels,
            "fingerprint": real.fingerprint,
            "skipped": real.skipped,
        },
        "settings": to_dict(settings),
        "seed": settings.seed,
        "device": runtime.describe(),
        "precision": runtime.precision,
        "compile": runtime.compile,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "status": "started",
    }


def _go_on(
    run: RunDirectory,
    settings: Settings,
    real: RealData,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
) -> None:
    """Everything after the data are open, told how to go on with if it is interrupted."""
    notice(f"run directory: {run.path}")
    try:
        _all_stages(run, settings, real, runtime, images, baselines)
    except KeyboardInterrupt:
        raise Interrupted(f"what was finished is kept: go on with --resume {run.path}") from None


def _all_stages(
    run: RunDirectory,
    settings: Settings,
    real: RealData,
    runtime: Runtime,
    images: torch.Tensor,
    baselines: Sequence[str],
) -> None:
    """Pool, steps, the set's file, pictures, scores, report."""
    notice(_headline(settings, real))
    notice(f"device: {runtime.describe()}")
    pool = extractors.open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)
    notice(pool_line(pool))
    run.update(pool={"key": pool.key, "accuracies": pool.accuracies, "seconds": round(pool.seconds, 1)})
    problem = _problem(settings, real, runtime, pool)
    state = make_state(problem, images)
    _run_steps(run, settings, problem, state)
    result = finished_set(settings, real, state.images)
    one_file.save(result, run.path / one_file.FILE_NAME)
    _draw(run, result)
    if settings.student.repeats:
        run.update(status="scoring")
        herding = lambda count: students.herded_subset(real, count, pool.final[0], settings.network, runtime)  # noqa: E731
        scores = _scores(result, real, settings, baselines, herding, runtime)
        write_json(run.path / "scores.json", scores)
        result = dataclasses.replace(result, manifest=result.manifest | {"score": manifest_score(scores["rows"][0])})
        one_file.save(result, run.path / one_file.FILE_NAME)
    run.update(status="done")
    report.write_report(run.path)


def _headline(settings: Settings, real: RealData) -> str:
    d = settings.distill
    stored = len(real.classes) * d.ipc
    return (
        f"{real.name}: {len(real.train.images):,} images of {len(real.classes)} classes, {real.size}x{real.size} "
        f"{'gray' if real.channels == 1 else 'rgb'} -> {stored:,} images ({d.ipc} per class, factor {d.factor}, "
        f"{d.decode}); recipe {settings.recipe}, seed {settings.seed}"
        + (f"; {real.skipped} unreadable images passed over" if real.skipped else "")
    )


def pool_line(pool: extractors.Pool) -> str:
    """One line that says where the pool came from and how good its members are."""
    made = f"trained in {pool.seconds:.0f} s" if pool.seconds else "from the cache"
    known = [a for a in pool.accuracies if a is not None]
    accuracy = f", test accuracy {min(known):.1%} to {max(known):.1%}" if known else ", no test split"
    return f"extractor pool: {len(pool)} members, {made}{accuracy}"


def _run_steps(run: RunDirectory, settings: Settings, problem: Problem, state: State) -> None:
    """All steps that are left, with checkpoints; an interruption saves the state first."""
    steps, every = settings.distill.steps, settings.runtime.checkpoint_every
    stored = run.load_checkpoint(problem.runtime.device)
    if stored is not None:
        state.load_state_dict(stored)
        del stored
        notice(f"resuming after step {state.step} of {steps}")
    logged = run.cut_metrics(state.step)
    seconds = logged[-1]["seconds"] if logged else 0.0
    plan = _plan(settings, problem, state)
    if state.step < steps:
        notice(_plan_line(plan, problem, _budget(settings)))
    run.update(status="distilling")
    log_every = max(1, math.ceil(steps / LOGGED_STEPS))
    start = time.monotonic() - seconds
    with deferred_interrupts() as interrupted, track("distilling", steps) as bar:
        bar.advance(state.step)
        while state.step < steps:
            losses = distill_step(problem, state, plan)
            stop = interrupted()
            if state.step % log_every == 0 or state.step == steps:
                row = {"step": state.step, **dataclasses.asdict(losses), "seconds": time.monotonic() - start}
                run.append_metrics(row)
            if state.step % every == 0 or state.step == steps or stop:
                run.save_checkpoint(state.state_dict())
            bar.advance(note=_loss_note(losses))
            if stop:
                raise Interrupted(f"saved after step {state.step} of {steps}: go on with --resume {run.path}")
    logged = run.metrics()
    spent = logged[-1]["seconds"] if logged else 0.0
    run.update(timings={"distill_seconds": round(spent, 2), "steps": steps})


def _plan_line(plan: Plan, problem: Problem, budget: int | None) -> str:
    said = f"budget {format_bytes(budget)}" if budget else "default budget"
    return (
        f"memory: {said}; {plan.chunk} images at once, up to {plan.slots} such graphs, "
        f"{plan.stack} of {problem.classes} classes stacked"
    )


def _loss_note(losses: StepLosses) -> str:
    calibration = "" if losses.calibration is None else f", calibration {losses.calibration:.3f}"
    return f"matching {losses.matching:.2f}{calibration}"


def finished_set(settings: Settings, real: RealData, images: torch.Tensor) -> SyntheticSet:
    """The set as it is stored: uint8, with everything but the score in its manifest.

    Args:
        images: in [0, 1], which are rounded, or uint8, which are not.
    """
    d = settings.distill
    stored = images.detach().cpu()
    if stored.dtype != torch.uint8:
        stored = stored.mul(255).round().to(torch.uint8)
    labels = torch.arange(len(real.classes)).repeat_interleave(d.ipc)
    kept = to_dict(settings)
    kept["runtime"] = {k: kept["runtime"][k] for k in ("precision", "compile")}  # the rest is local to a machine
    kept["distill"]["load"] = Path(d.load).name if d.load else None
    manifest = {
        "kind": "synthetic set",
        "tool": f"ncfmkit {__version__}",
        "name": f"{real.name}-ipc{d.ipc}",
        "classes": list(real.classes),
        "ipc": {"stored": d.ipc, "decoded": _decoded_per_class(settings)},
        "decode": {"kind": d.decode, "factor": d.factor, "budget": d.decoded_budget},
        "mean": list(real.mean),
        "std": list(real.std),
        "value_range": [0, 255],
        "source": {
            "name": real.name,
            "fingerprint": real.fingerprint,
            "train_images": len(real.train.images),
            "license": None,
        },
        "settings": kept,
        "score": None,
    }
    return SyntheticSet(images=stored, labels=labels, manifest=manifest)


def manifest_score(row: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a score: nothing that changes from one run of the same to the next."""
    figures = {k: {s: row[k][s] for s in ("mean", "std")} for k in ("last", "best")}
    return {"network": row["network"], "epochs": row["epochs"], "n": row["n"], **figures}


def _draw(run: RunDirectory, result: SyntheticSet) -> None:
    sheet = report.contact_sheet(result.images.numpy(), result.labels.numpy(), result.classes)
    write_atomic(run.path / "preview.png", report.png_bytes(sheet))
    report.curves(run.metrics(), run.path / "curves.png")


def _scores(
    result: SyntheticSet,
    real: RealData,
    settings: Settings,
    baselines: Sequence[str],
    herding: Callable[[int], LabelledImages],
    runtime: Runtime,
) -> dict[str, Any]:
    return students.score_all(
        result,
        real,
        network=settings.network,
        settings=settings.student,
        whole_epochs=settings.pool.epochs,
        baselines=baselines,
        herding=herding,
        seed=settings.seed,
        runtime=runtime,
    )


# ---- pretrain, evaluate, train ----------------------------------------------------------------------------------


def pretrain(arguments: DataArguments, settings: Settings) -> extractors.Pool:
    """Only the extractor pool: trains what the cache lacks."""
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    settings = _resolved(settings, real)
    notice(f"device: {runtime.describe()}")
    return extractors.open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)


def settings_for(result: SyntheticSet, overrides: dict[str, Any]) -> Settings:
    """The settings in a set's manifest (data, training recipe, ...), overridden; another network has its own width."""
    settings = from_dict(result.manifest["settings"])
    if "network.name" in overrides:
        settings = dataclasses.replace(settings, network=NetworkSettings())
    return check(override(settings, _read_class_list(overrides)))


def evaluate(
    result: SyntheticSet, arguments: DataArguments, settings: Settings, *, baselines: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains students on a set and scores them on real data, as `scores.json` holds it.

    Args:
        settings: as :func:`settings_for` gives them; `network` is the students'.

    Raises:
        UserError: the set and the data have other classes or image shapes, or no student is asked for.
    """
    if not settings.student.repeats:
        raise UserError("--repeats 0: expected 1 or more students to score a set with")
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    _check_same(result, real)
    if real.fingerprint != result.manifest["source"]["fingerprint"]:
        notice(f"{real.name} is not byte for byte what the set was made from: other data, or read in another way")
    notice(f"device: {runtime.describe()}")
    settings = _resolved(settings, real)

    def herding(count: int) -> LabelledImages:
        one = dataclasses.replace(settings.pool, members=1)
        pool = extractors.open_pool(real, settings.network, one, seed=settings.seed, runtime=runtime)
        return students.herded_subset(real, count, pool.final[0], settings.network, runtime)

    return _scores(result, real, settings, baselines, herding, runtime)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a set is scored: on what real data, by its own recipe with these settings changed."""

    arguments: DataArguments
    overrides: dict[str, Any]

    def settings(self, result: SyntheticSet) -> Settings:
        return settings_for(result, self.overrides)

    def __call__(self, result: SyntheticSet) -> dict[str, Any]:
        """As :func:`evaluate`."""
        return evaluate(result, self.arguments, self.settings(result))


def _check_same(result: SyntheticSet, real: RealData) -> None:
    if result.classes != real.classes:
        raise UserError(
            f"the set has the classes {few(result.classes)}, {real.name} has {few(real.classes)}: "
            "pass the data that it was made from"
        )
    expected = (real.channels, real.size, real.size)
    if tuple(result.images.shape[1:]) != expected:
        raise UserError(
            f"the set has images of shape {tuple(result.images.shape[1:])}, {real.name} has {expected}: "
            "pass --size, --resize and --color as the set was made with"
        )


def few(names: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def train(
    result: SyntheticSet,
    settings: Settings,
    *,
    out: Path,
    arguments: DataArguments | None = None,
) -> dict[str, Any]:
    """Trains one student on a set and keeps it as safetensors with what is needed to use it in its metadata.

    Args:
        out: the file to write; not overwritten.
        arguments: real data whose test split tells the accuracy; none: it stays unknown.

    Returns:
        The metadata.

    Raises:
        UserError: `out` is there already, or the data do not fit the set.
    """
    check_free(out)
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings) if arguments else None
    if real is not None:
        _check_same(result, real)
    channels, size = result.images.shape[1], result.images.shape[-1]
    network = extractors.resolve_network(settings.network, size)
    notice(f"device: {runtime.describe()}")
    state, accuracy = students.train_student(
        students.decoded_images(result),
        lambda: networks.build(
            network.name,
            channels=channels,
            classes=len(result.classes),
            size=size,
            width=network.width,
            depth=network.depth,
        ),
        settings.student,
        test=extractors.labelled(real, students.test_split(real)) if real else None,
        seed=settings.seed,
        runtime=runtime,
    )
    metadata = {
        "kind": "student",
        "tool": f"ncfmkit {__version__}",
        "network": to_dict(network),
        "channels": channels,
        "size": size,
        "mean": result.manifest["mean"],
        "std": result.manifest["std"],
        "classes": list(result.classes),
        "test_accuracy": accuracy,
        "trained_on": {k: result.manifest[k] for k in ("name", "sha256", DIGEST_KEY)},
        "training": {"seed": settings.seed, **to_dict(settings.student)},
    }
    student_file.save(state, metadata, out)
    return metadata


def load_run(path: Path) -> dict[str, Any]:
    """`run.json` and, where there is one, `scores.json` of a run directory."""
    run = RunDirectory.open(path)
    scores = path / "scores.json"
    return run.info() | ({"scores": json.loads(scores.read_text(encoding="utf-8"))} if scores.exists() else {})
