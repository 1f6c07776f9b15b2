"""What several jobs begin with: settings from recipe and flags, what the data decide, whether a set fits them."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncfmkit import chroma, distributed, networks
from ncfmkit.augment import parse_strategy
from ncfmkit.config import (
    SETTINGS,
    DistillSettings,
    NetworkSettings,
    RuntimeSettings,
    Settings,
    by_name,
    check,
    full_key,
    load_recipe,
    override,
    to_dict,
)
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir, check_free_folder, from_anywhere, parse_bytes
from ncfmkit.jobs.growing import settings_of
from ncfmkit.kept import CACHED, Kept
from ncfmkit.mosaic import check_budget, compose, decoded_count
from ncfmkit.progress import notice, shortened_list
from ncfmkit.real.arguments import DEFAULT_RECIPES, DataArguments, read_class_list
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime, choose_device, device_name, versions
from ncfmkit.sets import budget, label_codes
from ncfmkit.sets.manifest import Manifest, to_bytes, unscored_digest
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet

_RECIPE = ("seed", "data", "network", "student")  # what students are trained by, as sections of the settings
SAMPLED_VALUES = 1 << 18  # of the images that say how well a set compresses


def make_settings(data: str, recipe: str | None, overrides: dict[str, Any]) -> Settings:
    """Default < recipe < overrides, checked; without a recipe, that of `--add-to`, the data's own or the device's.

    Raises:
        UserError: an unknown recipe or setting, a value out of range, or a device that is not there.
    """
    overrides = {full_key(key): value for key, value in read_class_list(overrides).items()}
    own = DEFAULT_RECIPES.get(data) if isinstance(data, str) else None
    if recipe is None and (earlier := overrides.get("distill.add_to")):
        base = settings_of(load(earlier))
    else:
        base = load_recipe(recipe or own or _recipe_for_device(overrides))
    if "distill.ipc" in overrides and overrides.setdefault("distill.bytes", None) is not None:  # a recipe's goes
        raise UserError("--bytes chooses how many images are stored: leave --ipc out")
    if overrides.get("network.name", base.network.name) != base.network.name:  # the width is of the recipe's own
        width = base.pool.extractor_width if base.pool.networks else None
        pool = dataclasses.replace(base.pool, extractor_width=width)
        base = dataclasses.replace(base, network=NetworkSettings(), pool=pool)
    settings = check(override(base, overrides))
    idle = sorted(key for key in overrides if key.startswith("labels.") and key != "labels.soft")
    if idle and not settings.labels.soft:
        raise UserError(f"{SETTINGS[idle[0]].name} applies only to soft labels: add --soft-labels, or leave it out")
    for strategy in (settings.pool.augment, settings.distill.augment, settings.student.augment):
        parse_strategy(strategy)
    d = settings.distill
    if d.bytes is None:
        check_budget(d.decode, d.factor, d.ipc, d.decoded_per_class)
    else:
        budget.parse_budget(d.bytes, 1)
    if settings.runtime.memory_budget:
        parse_bytes(settings.runtime.memory_budget)
    if recipe is None and own is None and settings.distill.add_to is None:
        notice(_describe_choice(settings))
    return settings


def open_data(source: DataArguments, settings: Settings) -> RealData:
    """The real data; several ranks find the same, and their store is built once on each machine.

    Raises:
        UserError: as :meth:`DataArguments.open`, or a rank finds other data than the first.
    """
    real = distributed.once_per_machine(lambda: source.open(settings))
    first = distributed.sent(real.fingerprint, source=0)
    with distributed.agreed():
        if real.fingerprint != first:
            raise UserError(f"rank {distributed.rank()} finds other data than rank 0 at {source.data}")
    return real


def _recipe_for_device(overrides: dict[str, Any]) -> str:
    """The recipe where neither the user nor the data choose one."""
    device = choose_device(str(overrides.get("runtime.device") or RuntimeSettings.device))
    return "cpu" if device.type == "cpu" else "gpu"


def _describe_choice(settings: Settings) -> str:
    """What the device's recipe means, and how to ask for the paper's settings."""
    return (
        f"no recipe given, the device is a {settings.recipe.upper()}: recipe {settings.recipe} ({work(settings)}); "
        f"--recipe paper selects {work(load_recipe('paper'))}"
    )


def work(settings: Settings) -> str:
    """How much is trained, in one line."""
    pool, student = settings.pool, settings.student
    return (
        f"pool of {pool.members} x {pool.epochs} epochs, {settings.distill.steps:,} steps, "
        f"{student.repeats} x {student.epochs:,} epochs per score"
    )


def resolve(settings: Settings, real: RealData) -> Settings:
    """The settings with what the data decided, but `data` as the user said it: it is part of the data's fingerprint."""
    top, classes = settings.labels.top, len(real.classes)
    if settings.labels.soft and top >= classes:
        raise UserError(f"--top {top}: expected fewer than the {classes} classes of {real.name}")
    network = networks.resolve_network(settings.network, real.size)
    load = settings.distill.load
    distill = dataclasses.replace(settings.distill, load=None if load is None else from_anywhere(load))
    if distill.is_subsampled:
        chroma.check(real.channels, real.size)
    if distill.bytes is not None:
        fit = budget.fitted(settings.distill, room(settings, real, coded=True))
        distill = dataclasses.replace(distill, ipc=fit.ipc, bits=fit.bits, chroma=fit.chroma)
        check_budget(distill.decode, distill.factor, distill.ipc, distill.decoded_per_class)
    resolved = dataclasses.replace(settings, network=network, distill=distill)
    if settings.labels.soft and settings.labels.bits < 16:
        _check_restored_labels(resolved, real)
    return resolved


def _check_restored_labels(settings: Settings, real: RealData) -> None:
    """Raises UserError if no reader takes the soft labels, since they become so much larger there."""
    d, classes = settings.distill, len(real.classes)
    decoded = decoded_count(d.decode, d.factor, d.ipc, d.decoded_per_class)
    stored = budget.bytes_of_class(d, d.stored_bits, d.ipc, room(settings, real, coded=False))
    if not label_codes.fits(classes * decoded, classes, int(classes * stored)):
        raise UserError(
            f"--label-bits {settings.labels.bits} --top {settings.labels.top}: soft labels of {classes:,} classes are "
            f"{2 * classes * decoded:,} bytes per class as float16, expected at most {label_codes.MOST_RESTORED} times "
            f"the {int(stored):,} bytes that are stored: raise --top, leave it out, or store fewer decoded images"
        )


def room(settings: Settings, real: RealData, *, coded: bool) -> budget.Room:
    """What decides, beside the settings, which sets fit `--bytes`.

    Args:
        coded: with what coding is expected to save, which takes a second.
    """
    d, shape = settings.distill, (real.channels, real.size, real.size)
    subsampled = budget.with_chroma(d, shape).is_subsampled
    return budget.Room(
        classes=len(real.classes),
        shape=shape,
        soft_label=label_bytes(settings, len(real.classes)),
        most=int(real.train.counts().min()) if d.init in ("mix", "random") else sys.maxsize,
        coded=budget.expected_shares(_mosaics(real, d), settings.seed, subsampled=subsampled) if coded else {},
    )


def label_bytes(settings: Settings, classes: int) -> int:
    """Bytes of the soft label of a decoded image; 0: labels are hard."""
    how = settings.labels
    return label_codes.row_bytes(classes, how.bits, how.top) if how.soft else 0


def _mosaics(real: RealData, d: DistillSettings) -> np.ndarray:
    """Mosaics of evenly spaced training images, uint8 `[N, C, H, W]`.

    As many as fit `--bytes` without coding, since fewer images compress less; or `SAMPLED_VALUES`.
    """
    images_NCHW, cells = real.train.images, d.factor**2
    values, classes = math.prod(images_NCHW.shape[1:]), len(real.classes)
    fit = int(budget.parse_budget(str(d.bytes), classes) * classes * 8 / (values * min(budget.PREFERRED)))
    count = max(1, min(fit, SAMPLED_VALUES // values, len(images_NCHW) // cells))
    index = np.linspace(0, len(images_NCHW) - 1, count * cells).astype(int)
    return to_bytes(compose(torch.from_numpy(images_NCHW[index]).float() / 255, d.factor)).numpy()


def check_fits(result: SyntheticSet, real: RealData) -> None:
    """Raises UserError if a set and real data have other classes or image shapes."""
    if result.classes != real.classes:
        raise UserError(
            f"the set has the classes {shortened_list(result.classes)}, {real.name} has "
            f"{shortened_list(real.classes)}: pass the data that it was made from"
        )
    expected = (real.channels, real.size, real.size)
    if tuple(result.images.shape[1:]) != expected:
        raise UserError(
            f"the set has images of shape {tuple(result.images.shape[1:])}, {real.name} has {expected}: "
            "pass --size, --resize and --color as the set was made with"
        )


def notice_other_data(result: SyntheticSet, real: RealData) -> None:
    """Says so if a set was made from other data than these, or from the same, read in another way."""
    if real.fingerprint != result.manifest.source.fingerprint:
        notice(f"{real.name} differs from the data that the set was made from: other data, or read in another way")


def recipe_of(settings: Settings) -> dict[str, object]:
    """How students are trained: sections of the settings by name, as `config.from_dict` reads them."""
    table = to_dict(settings)
    runtime = {name: table["runtime"][name] for name in ("precision", "compile")}
    return {name: table[name] for name in _RECIPE} | {"runtime": runtime}


def changed_recipe(recorded: Settings, used: Settings) -> tuple[str, ...]:
    """The settings that students are trained by in another way than the set records."""
    before, after = (by_name({name: to_dict(of)[name] for name in _RECIPE}) for of in (recorded, used))
    return tuple(key for key, value in after.items() if value != before[key])


def measured_on(real: RealData, settings: Settings, runtime: Runtime) -> dict[str, Any]:
    """What every measurement of students depends on: data, seed, machine and versions."""
    return {
        "data": real.fingerprint,
        "seed": settings.seed,
        "device": device_name(runtime.device),
        "precision": runtime.precision,
        "compile": runtime.compile,
        "versions": versions(),
    }


def kept_of_set(
    folder: Path, manifest: Manifest, real: RealData, settings: Settings, runtime: Runtime, *, optional: bool = False
) -> Kept:
    """Where results of students of a set are kept: they are of this very set, whose manifest says how it was made."""
    conditions = measured_on(real, settings, runtime) | {"manifest_sha256": unscored_digest(manifest)}
    if settings.seed != manifest.training.seed:  # earlier versions: of extractors of that seed
        conditions["extractors"] = manifest.training.seed
    if (manifest.mean, manifest.std) != (real.mean, real.std):  # earlier versions tested with that of the data
        conditions["normalized"] = "as the images that a student is trained on"
    return Kept(folder=folder, conditions=conditions, optional=optional)


def cached_of_set(manifest: Manifest, real: RealData, settings: Settings, runtime: Runtime) -> Kept:
    """Where in the cache students of a set are kept, if it can be written."""
    folder = cache_dir() / CACHED / unscored_digest(manifest)[:24]
    return kept_of_set(folder, manifest, real, settings, runtime, optional=True)


def check_results_folder(folder: Path, result_file: str, part: str, *, made_by: str, what: str) -> None:
    """Raises UserError unless results can be written there, and it holds `result_file`, `part` of one, or nothing.

    Args:
        part: the name of what is there before the first result is.
        made_by, what: the command and what it makes, such as `a comparison`, for messages.
    """
    check_free_folder(folder, force=True, foreign=lambda _: [], made_by=made_by)
    if folder.is_dir() and not (folder / result_file).is_file():
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != part)
        if others:
            raise UserError(
                f"--out {folder} holds something else than {what} ({shortened_list(others)}): choose another folder"
            )
