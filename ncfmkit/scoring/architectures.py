"""Cross-architecture accuracy: every network of the table trained on a set, and on real images beside it."""

import dataclasses
from collections.abc import Iterator
from functools import partial

from ncfmkit.assessment import Architectures
from ncfmkit.config import NetworkSettings, override
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.networks import NETWORKS, resolve_network
from ncfmkit.scoring.subject import Subject

BESIDE = ("mosaic", "random", "whole")  # rows of `BASELINES` that stand beside the set, for each network


def networks(subject: Subject) -> tuple[NetworkSettings, ...]:
    """The set's own network, and all others of the table that take images of its size."""
    own, side = subject.settings.network, subject.real.size
    others = [name for name, row in NETWORKS.items() if name != own.name and row.smallest <= side]
    fresh = dataclasses.replace(subject.settings, network=NetworkSettings())
    return own, *(resolve_network(override(fresh, {"network.name": name}).network, side) for name in others)


def check(subject: Subject) -> None:
    if len(networks(subject)) == 1:
        raise UserError(
            f"images of {subject.real.size} pixels are too small for every network but {subject.settings.network.name}"
        )
    subject.check_rows(*BESIDE)


def stages(subject: Subject) -> Iterator[Stage]:
    for network in networks(subject):
        works = [subject.work(name, network) for name in ("distilled", *BESIDE)]
        for stage in subject.student_stages(works, network):
            yield Stage(name=f"{network.name}: {stage.name}", work=stage.work, seconds=stage.seconds)


def measure(subject: Subject) -> Architectures:
    rows = []
    for network in networks(subject):
        for name in ("distilled", *BESIDE):
            images = partial(subject.images, name)
            rows.append(subject.students(subject.work(name, network), images, network=network))
    return Architectures(rows=tuple(rows))
