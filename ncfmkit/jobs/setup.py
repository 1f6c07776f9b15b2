"""What several jobs begin with: settings from recipe and flags, what the data decide, whether a set fits them."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ncfmkit import networks
from ncfmkit.augment import parse_strategy
from ncfmkit.config import Settings, check, load_recipe, override
from ncfmkit.errors import Interrupted, UserError
from ncfmkit.files import parse_bytes
from ncfmkit.progress import shortened_list
from ncfmkit.real.arguments import DEFAULT_RECIPES, read_class_list
from ncfmkit.real.store import RealData
from ncfmkit.sets.synthetic import SyntheticSet


def make_settings(data: str, recipe: str | None, overrides: dict[str, Any]) -> Settings:
    """Default < recipe < overrides, checked; without a recipe, the data's own or the defaults."""
    recipe = recipe or DEFAULT_RECIPES.get(data)
    settings = check(override(load_recipe(recipe) if recipe else Settings(), read_class_list(overrides)))
    for strategy in (settings.pool.augment, settings.distill.augment, settings.student.augment):
        parse_strategy(strategy)
    if settings.runtime.memory_budget:
        parse_bytes(settings.runtime.memory_budget)
    return settings


def resolve(settings: Settings, real: RealData) -> Settings:
    """The settings with what the data decided, but `data` as the user said it: it is part of the data's fingerprint."""
    network = networks.resolve_network(settings.network, real.size)
    load = settings.distill.load and os.path.abspath(settings.distill.load)  # a run is resumed from anywhere
    distill = dataclasses.replace(settings.distill, load=load)
    return dataclasses.replace(settings, network=network, distill=distill)


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


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """For jobs whose files appear whole or not at all: an interruption says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written") from None
