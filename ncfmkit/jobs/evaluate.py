"""`ncfmkit evaluate`: students trained on a set and scored on real data."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ncfmkit.config import NetworkSettings, PoolSettings, Settings, check, full_key, override
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.pool import Pool, estimate_pool, open_pool
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage, announce
from ncfmkit.images import LabeledImages
from ncfmkit.in_use import hold
from ncfmkit.jobs.relabel import open_teachers, softened, teaching_pool
from ncfmkit.jobs.setup import cached_of_set, check_fits, notice_other_data, open_data, resolve
from ncfmkit.kept import Kept
from ncfmkit.networks import NETWORKS, network_builder
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments, read_class_list, split_arguments
from ncfmkit.real.store import RealData
from ncfmkit.reports.scores import percent
from ncfmkit.rng import keyed_rng
from ncfmkit.run_records import Scores
from ncfmkit.runtime import Runtime, choose_runtime
from ncfmkit.scoring import students
from ncfmkit.scoring.baselines import (
    BASELINES,
    SetSize,
    are_selected,
    check_baselines,
    parse_baselines,
    read_snapshots,
    selected_subset,
)
from ncfmkit.scoring.coreset import SNAPSHOTS, Extractor
from ncfmkit.scoring.soft_labels import Teachers
from ncfmkit.sets import pixels
from ncfmkit.sets.manifest import to_bytes
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet


def evaluate(
    path: str | os.PathLike[str], *, data: Any, baselines: str | Sequence[str] = (), **overrides: Any
) -> Scores:
    """Trains fresh students on a set and tests them on the real test split.

    What each student gets right is kept in the cache. A later call with this set, settings and data, on the same device
    with the same versions, does not train it again: remove it there (`ncfmkit cache --clean --kind students`) to do so.

    Args:
        path: a set's file, its run directory or a package, or `hf://OWNER/NAME` of a package on the Hub.
        data: the real data that the set was made from, as in :func:`ncfmkit.distill`.
        baselines: rows of the table of baselines to score beside the set, such as `("random", "herding")`.
        overrides: settings by name that replace the set's own, such as `repeats=3` or `**{"network.name": "alexnet"}`,
            of which there may be several (`"convnet,alexnet"`) or `"all"`; and `data_root`, `download`, `skip_bad` as
            in :func:`ncfmkit.distill`.

    Returns:
        What `scores.json` holds: `rows`, of the set and each baseline (`last`, `best`: accuracies in [0, 1], mean and
        standard deviation over `n` students, of the last and the best epoch; `classes`: of each class; `curve`: in the
        course of training), `device`, `precision`, `versions`; `to_dict()` gives it as JSON has it.

    Raises:
        UserError: no set there, or the set and the data have other classes or image shapes.

    Example:
        >>> scores = ncfmkit.evaluate("runs/digits-ipc1", data="digits", repeats=3)
        >>> scores.rows[0].last.mean
        0.951
    """
    result, real, each, runtime, names = _opened(path, data, baselines, overrides)
    scores = []
    for settings in each:
        network = f"{settings.network.name}: " if len(each) > 1 else ""
        kept = cached_of_set(result.manifest, real, settings, runtime)
        with closing(hold(kept.folder)):
            scores.append(evaluate_real(result, real, settings, runtime, baselines=names, kept=kept, prefix=network))
        if network:  # what is measured is said, should a later network fail
            for row in scores[-1].rows:
                notice(f"{row.network}: {row.label}: {percent(row.last, row.n)}%".replace("\u00a0", " "))
    return scores[0].model_copy(update={"rows": tuple(row for of_network in scores for row in of_network.rows)})


def dry_run(
    path: str | os.PathLike[str], *, data: Any, baselines: str | Sequence[str] = (), **overrides: Any
) -> Iterator[Stage]:
    """What :func:`evaluate` would train, measured; arguments and errors as there."""
    result, real, each, runtime, names = _opened(path, data, baselines, overrides)
    notice(f"device: {runtime.describe()}")
    return (
        stage if len(each) == 1 else dataclasses.replace(stage, name=f"{settings.network.name}: {stage.name}")
        for settings in each
        for stage in estimate(
            result,
            real,
            settings,
            runtime,
            baselines=names,
            kept=cached_of_set(result.manifest, real, settings, runtime),
        )
    )


def _opened(
    path: str | os.PathLike[str], data: Any, baselines: str | Sequence[str], overrides: dict[str, Any]
) -> tuple[SyntheticSet, RealData, list[Settings], Runtime, tuple[str, ...]]:
    """The real data are opened last, after all that can be checked without them; settings, for each network."""
    result = load(path)
    source, changes = split_arguments(data, overrides)
    changes = {full_key(key): value for key, value in changes.items()}
    each = [settings_for(result, changes | name) for name in _networks(result, changes.pop("network.name", None))]
    names = parse_baselines(baselines if isinstance(baselines, str) else ",".join(baselines))
    runtime = choose_runtime(each[0].runtime)
    real = open_data(source, each[0])
    for settings in each:
        checked = _checked(result, real, settings, names)
        network_builder(checked.network, real)()  # raises where the images are too small for it
    return result, real, each, runtime, names


def _networks(result: SyntheticSet, asked: Any) -> list[dict[str, str]]:
    """The changes that choose each network of a list such as `convnet,alexnet`, or of `all`; none: the set's own."""
    if asked is None:
        return [{}]
    names = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    if names == ["all"]:
        side = result.images.shape[-1]
        names = [name for name, row in NETWORKS.items() if row.smallest <= side]
        small = [name for name in NETWORKS if name not in names]
        if small:
            notice(f"--network all: images of {side} pixels are too small for {', '.join(small)}")
    return [{"network.name": name} for name in dict.fromkeys(names)]


def settings_for(result: SyntheticSet, overrides: dict[str, Any]) -> Settings:
    """The training record of a set as settings, overridden; another network than the set's has its own width."""
    settings = result.manifest.training.settings()
    if overrides.get("network.name", settings.network.name) != settings.network.name:
        # the extractors stay the set's own: `extractors_of`
        pool = dataclasses.replace(settings.pool, networks=(), extractor_width=None)
        settings = dataclasses.replace(settings, network=NetworkSettings(), pool=pool)
    return check(override(settings, read_class_list(overrides)))


def no_students(recorded: Settings) -> UserError:
    """What is wrong where `student.repeats` is 0; `recorded`: the settings of the set, which may say so themselves."""
    whose = "" if recorded.student.repeats else ", as this set was made"
    return UserError(f"--repeats 0{whose}: expected 1 or more students to train on the set, such as --repeats 5")


def evaluate_real(
    result: SyntheticSet,
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    *,
    baselines: Sequence[str] = (),
    kept: Kept | None = None,
    prefix: str = "",
) -> Scores:
    """As :func:`evaluate`, on a set and real data that are open.

    Args:
        settings: as :func:`settings_for` gives them; `network` is the students'.
        baselines: names of rows of `BASELINES` to score beside it.
        kept: where students are kept; None: nowhere, and all are trained.
        prefix: of the names of stages, as people see them: which network it is, if there are several.

    Raises:
        UserError: the set and the data have other classes or image shapes, no student is asked for, there is no test
            split, or a class has too few images for a baseline.
    """
    settings = _checked(result, real, settings, baselines)
    notice_other_data(result, real)
    notice(f"device: {runtime.describe()}")
    announce(
        dataclasses.replace(stage, name=prefix + stage.name)
        for stage in estimate(result, real, settings, runtime, baselines=baselines, kept=kept)
    )

    extractors, own = extractors_of(result, real), settings_of_pool(result, settings)

    def pool() -> Pool:
        how = selecting_pool(settings, baselines)
        return open_pool(real, extractors[:1], how, seed=own.seed, runtime=runtime)

    @functools.cache
    def teachers() -> Teachers:
        return open_teachers(real, own, extractors, runtime)

    return students.score_set(
        result.labeled(),
        real,
        settings,
        size=set_size(result),
        baselines=baselines,
        mosaic=lambda repeat: real_mosaics(result, real, settings.seed, repeat),
        select=selecting(real, extractors[0], pool, runtime),
        soften=lambda data: softened(data, own, teachers()),
        runtime=runtime,
        kept=kept,
        prefix=prefix,
    )


def real_mosaics(result: SyntheticSet, real: RealData, seed: int, repeat: int) -> tuple[LabeledImages, int]:
    """What a distillation of that set could start from: mosaics of random real images in place of its own, decoded.

    Drawn by `(seed, repeat, class)`; as many images are stored as the set has, in the same way, and they are decoded as
    its own are. Their bytes, as stored, come with them.
    """
    drawn = int(keyed_rng(seed, "mosaic baseline", repeat).integers(2**62))
    factor = result.manifest.decode.factor
    images = to_bytes(initialize("mix", real, ipc=result.ipc, factor=factor, seed=drawn))
    tensors = {"images": images}
    if result.manifest.pixels is not None:
        images, tensors, _ = pixels.stored(images, result.manifest.pixels)
    stored = sum(tensor.nbytes for tensor in tensors.values())
    return dataclasses.replace(result, images=images, soft_labels=None, pixel_tensors=None).labeled(), stored


def estimate(
    result: SyntheticSet,
    real: RealData,
    settings: Settings,
    runtime: Runtime,
    *,
    baselines: Sequence[str] = (),
    kept: Kept | None = None,
) -> Iterator[Stage]:
    """What :func:`evaluate_real` would train, measured.

    Raises:
        UserError: as :func:`evaluate_real`.
    """
    settings = _checked(result, real, settings, baselines)
    extractors, own = extractors_of(result, real), settings_of_pool(result, settings)
    works = [students.row_work(name, real, settings, set_size(result)) for name in baselines]
    left = students.students_left(works, settings, kept)
    # a coded picture has its bytes only once it is selected
    drawn = [name for name in baselines if left[name] or BASELINES[name].codec is not None]
    selecting, teach = selecting_pool(settings, baselines), "random-soft" in drawn
    if teach:
        yield from estimate_pool(real, extractors, teaching_pool(own), seed=own.seed, runtime=runtime)
    apart = selecting.snapshots or not teach or settings.pool != own.pool  # else it is one of those that teach
    if are_selected(drawn) and apart:
        yield from estimate_pool(real, extractors[:1], selecting, seed=own.seed, runtime=runtime)
    yield from students.estimate_scores(
        real,
        settings,
        extractor=extractors[0],
        snapshots=selecting.snapshots,
        size=set_size(result),
        baselines=baselines,
        runtime=runtime,
        kept=kept,
    )


def _checked(result: SyntheticSet, real: RealData, settings: Settings, baselines: Sequence[str]) -> Settings:
    if not settings.student.repeats:
        raise no_students(result.manifest.training.settings())
    if "random-soft" in baselines and not result.manifest.training.settings().labels.soft:
        raise UserError(
            "--baselines random-soft needs a set with soft labels of a pool (distill --soft-labels, relabel): this one "
            f"has {'hard labels' if result.soft_labels is None else 'soft labels of unknown teachers'}"
        )
    if (names := read_snapshots(baselines)) and not selecting_pool(settings, baselines).snapshots:
        raise UserError(
            f"--baselines {names[0]} needs an extractor with snapshots between its first and its last epoch, and it is "
            "trained for one: pass --pool-epochs 2 or more"
        )
    check_fits(result, real)
    real.test_split()
    check_baselines(real, baselines, set_size(result))
    return resolve(settings, real)


def set_size(result: SyntheticSet) -> SetSize:
    """How large a set is, per class, as its baselines take it."""
    ipc, classes = result.manifest.ipc, len(result.classes)
    return SetSize(
        stored=ipc.stored,
        decoded=ipc.decoded,
        bytes=result.content_bytes / classes,
        soft_label=result.manifest.bytes.get("soft_labels", 0) // (classes * ipc.decoded),
    )


def extractors_of(result: SyntheticSet, real: RealData) -> tuple[NetworkSettings, ...]:
    """The networks of the extractors that the set was made with, whatever its students are."""
    return resolve(result.manifest.training.settings(), real).extractors


def settings_of_pool(result: SyntheticSet, settings: Settings) -> Settings:
    """The settings with the seed, pool and labels of the set: whoever taught it teaches other images, too."""
    own = result.manifest.training.settings()
    return dataclasses.replace(settings, seed=own.seed, pool=own.pool, labels=own.labels)


def selecting_pool(settings: Settings, baselines: Sequence[str]) -> PoolSettings:
    """The pool's first member, with snapshots of its training only where these baselines read them."""
    snapshots = 0
    if read_snapshots(baselines):
        snapshots = settings.pool.snapshots or min(SNAPSHOTS, settings.pool.epochs - 1)
    return dataclasses.replace(settings.pool, members=1, snapshots=snapshots)


def selecting(
    real: RealData, network: NetworkSettings, pool: Callable[[], Pool], runtime: Runtime
) -> Callable[[str, int], LabeledImages]:
    """A function that selects real images as a row of `SELECTIONS` does, that many per class.

    Args:
        network: of the pool's first member, which selects them.
        pool: called once, when images are first asked for.
    """
    opened = functools.cache(pool)

    def select(how: str, count: int) -> LabeledImages:
        extractor = Extractor(network=network, stages=opened().stages[0])
        return selected_subset(how, real, count, extractor, runtime)

    return select


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How `pack` and `verify` score a set: on what real data, by its own recipe with these settings changed."""

    source: DataArguments
    overrides: dict[str, Any]

    def __call__(self, result: SyntheticSet) -> tuple[Scores, Settings]:
        """What :func:`evaluate` gives, and the settings that it was given."""
        settings = settings_for(result, self.overrides)
        runtime = choose_runtime(settings.runtime)
        return evaluate_real(result, self.source.open(settings), settings, runtime), settings


def requested_scoring(score: bool, data: Any, overrides: dict[str, Any]) -> Scoring | None:
    """How `score` is to be done, if it is asked for; arguments as :func:`ncfmkit.pack` has them.

    Raises:
        UserError: a score without data, or data or settings without a score.
    """
    if score and data is None:
        raise UserError("--score needs --data: the real data that the students are tested on")
    if not score and (data is not None or overrides):
        raise UserError("flags of data, students and machine say how to score the set: pass --score, or leave them out")
    if not score:
        return None
    source, settings = split_arguments(data, overrides)
    return Scoring(source=source, overrides=settings)
