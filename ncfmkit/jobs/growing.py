"""`ncfmkit distill DATA --add-to SET`: only classes that the set lacks are distilled, the others stay as they are."""

import dataclasses
import os
from pathlib import Path

import torch

from ncfmkit.config import Settings, from_dict
from ncfmkit.errors import UserError
from ncfmkit.files import from_anywhere, is_address
from ncfmkit.progress import notice, shortened_list
from ncfmkit.real.store import RealData
from ncfmkit.sets.set_file import load
from ncfmkit.sets.synthetic import SyntheticSet


def settings_of(earlier: SyntheticSet) -> Settings:
    """How a set was distilled, to distill more classes alike.

    Raises:
        UserError: it is a set of another project, which does not say.
    """
    if earlier.manifest.source.converted is not None:
        raise UserError("--add-to: this set was converted and does not say how it was distilled: pass --recipe")
    base = from_dict(earlier.manifest.settings)
    d = base.distill
    start = "mix" if d.init == "load" else d.init
    alone = dataclasses.replace(
        d,
        ipc=earlier.ipc,  # fewer than were distilled, in a part of a set
        decoded_per_class=earlier.manifest.decode.budget,
        bytes=None,
        shard=None,
        add_to=None,
        drop_classes=(),
        new_classes=(),
        init=start,
        load=None,
    )
    return dataclasses.replace(base, distill=alone, data=dataclasses.replace(base.data, classes=()))


def with_new_classes(settings: Settings, real: RealData) -> Settings:
    """The settings with the classes of the data that the set of `--add-to` lacks.

    Raises:
        UserError: there are none, the data lack classes of the set, or its images are of another kind.
    """
    d = settings.distill
    if d.add_to is None:
        return settings
    earlier, where = load(d.add_to), f"--add-to {d.add_to}"
    new = tuple(name for name in real.classes if name not in earlier.classes)
    gone = [name for name in earlier.classes if name not in real.classes]
    if not new:
        raise UserError(f"{where}: it has all classes of {real.name}, so that none is new")
    if unknown := [name for name in d.drop_classes if name not in gone]:
        raise UserError(
            f"--drop-classes {','.join(unknown)}: expected classes of the set that {real.name} does not have "
            f"({shortened_list(gone) if gone else 'it has all of them'}); --classes leaves classes of the data out"
        )
    if left := [name for name in gone if name not in d.drop_classes]:
        raise UserError(
            f"{where}: {real.name} has no images of {shortened_list(left)}: pass data of all classes, or leave these "
            f"out of the set with --drop-classes {','.join(left)}"
        )
    stored = earlier.manifest.pixels
    if d.is_quantized or (stored is not None and None in (d.bits, d.chroma)):
        now = d.stored_as if stored is None or d.is_quantized else stored.describe()
        raise UserError(
            f"{where}: sets in {now} cannot grow, because they would be rounded again: pass --bits 8 --chroma 4:4:4"
        )
    how = earlier.manifest.decode
    decoded = "--set distill.decoded_per_class"
    asked = {"--ipc": d.ipc, "--decode": d.decode, "--factor": d.factor, decoded: d.decoded_per_class}
    there = {"--ipc": earlier.ipc, "--decode": how.kind, "--factor": how.factor, decoded: how.budget}
    for flag, value in there.items():
        if asked[flag] != value:
            raise UserError(
                f"{where}: its images have {flag} {value}, not {asked[flag]}: leave {flag} and --recipe out"
            )
    shapes = [tuple(earlier.images.shape[1:]), (real.channels, real.size, real.size)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{where}: its images are of shape {shapes[0]}, those of {real.name} of {shapes[1]}")
    if earlier.soft_labels is not None and not settings.labels.soft:
        notice("the soft labels of the earlier set are left out, because they know nothing of the new classes")
    distill = dataclasses.replace(d, add_to=from_anywhere(d.add_to), new_classes=new)
    return dataclasses.replace(settings, distill=distill)


def earlier_set(settings: Settings) -> SyntheticSet | None:
    """The set of `--add-to`; None: all classes are distilled."""
    path = settings.distill.add_to
    return None if path is None else load(path)


def check_place(folder: Path, settings: Settings) -> None:
    """Raises UserError where the run would replace the set that it adds to, or starts from."""
    d, place = settings.distill, Path(os.path.realpath(folder))
    for flag, path in (("--add-to", d.add_to), ("--load", d.load)):
        if path is not None and not is_address(path) and Path(os.path.realpath(path)).is_relative_to(place):
            raise UserError(f"--out {folder} holds the set of {flag}, {path}: choose another --out")


def grown(distilled: torch.Tensor, earlier: SyntheticSet, settings: Settings, real: RealData) -> torch.Tensor:
    """The images of all classes, uint8 `[C*M, ch, H, W]`: the new ones, and the earlier set's as they are.

    Args:
        distilled: images of the new classes, uint8.
    """
    d = settings.distill
    of_class = dict(zip(earlier.classes, earlier.images.split(d.ipc), strict=True))
    of_class |= dict(zip(d.new_classes, distilled.split(d.ipc), strict=True))
    return torch.cat([of_class[name] for name in real.classes])
