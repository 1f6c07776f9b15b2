"""`ncfmkit cache`: what the cache folder holds, and removing of it what nobody uses."""

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from safetensors import SafetensorError, safe_open

from ncfmkit import in_use
from ncfmkit.config import DataSettings, NetworkSettings, PoolSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.exporters import web_runtime
from ncfmkit.files import UNFINISHED, bytes_in, cache_dir, format_bytes
from ncfmkit.kept import CACHED
from ncfmkit.progress import plural, shortened_list
from ncfmkit.real.remote import Copies
from ncfmkit.records import Record

HOURS = {"h": 1, "d": 24, "w": 24 * 7}
BYTES_OF = {"BF16": 2, "F32": 4}  # types of a member's weights


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something in the cache."""

    kind: str
    path: Path
    belongs_to: str  # data, network and settings, for people
    bytes: int
    last_use: float  # seconds since 1970
    used_as: Path  # what processes that use it hold, see in_use.py


class StoreFacts(Record):
    """What `store.json` says that people want to know."""

    source: str
    classes: tuple[str, ...]
    offsets: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]]  # of the classes, the last is the count
    size: int
    channels: int
    settings: dict[str, object] = Field(default_factory=dict)


class PoolFacts(Record):
    """The same of `pool.json`."""

    data_name: str
    network: dict[str, object]
    pool: dict[str, object]
    seed: int
    runtime: tuple[str, str, bool]  # device, precision, compiled


@dataclass(frozen=True)
class Kind:
    name: str
    summary: str  # one line for help
    find: Callable[[Path], Iterator[tuple[Path, str]]]  # its entries in the cache folder, each with what it belongs to
    removable: bool = True


def entries(kind: str | None = None, older_than: str | None = None) -> list[Entry]:
    """What is in the cache, the kinds in the order of their table, of each the last used first.

    Args:
        kind: the name of a row of `KINDS`; none: all.
        older_than: such as `30d`: only entries that were not used for this long.

    Raises:
        UserError: no such kind, or not a time.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind!r}: expected one of {', '.join(KINDS)}")
    latest = math.inf if older_than is None else time.time() - parse_age(older_than)
    found = []
    for row in KINDS.values() if kind is None else (KINDS[kind],):
        there = []
        for path, belongs_to in row.find(cache_dir()):
            entry = Entry(
                kind=row.name,
                path=path,
                belongs_to=belongs_to,
                bytes=bytes_in(path),
                last_use=in_use.last_use(path),
                used_as=path.with_name(path.name.removeprefix(UNFINISHED)),
            )
            there.append(entry)
        found += sorted(there, key=lambda entry: -entry.last_use)
    return [entry for entry in found if entry.last_use <= latest]


def clean(found: list[Entry], *, dry_run: bool = False) -> Iterator[tuple[Entry, str]]:
    """Removes entries one by one, and gives each with what became of it: `removed`, `in use` or `kept`.

    Args:
        dry_run: remove nothing, and give what would become of each.

    Raises:
        UserError: an entry cannot be removed.
    """
    for entry in found:
        if not KINDS[entry.kind].removable:
            yield entry, "kept"
            continue
        try:
            with in_use.alone(entry.used_as) as free:
                if free and not dry_run:
                    _remove(entry)
        except OSError as error:
            raise UserError(f"cannot remove {entry.path}: {error.strerror}") from None
        yield entry, "removed" if free else "in use"


def _remove(entry: Entry) -> None:
    if entry.kind == "store":
        _forget(entry.path)
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink(missing_ok=True)


def _forget(store: Path) -> None:
    """Removes the files of the index that lead to a store, which begin with its name."""
    for file in (store.parent / "index").glob("*"):
        if file.read_bytes().startswith(store.name.encode()):
            file.unlink(missing_ok=True)


def parse_age(text: str) -> float:
    """Seconds of an age such as `12h`, `30d` or `2w`.

    Raises:
        UserError: not an age.
    """
    found = re.fullmatch(r"(\d{1,9})([hdw])", text.strip().lower())
    if not found:
        raise UserError(f"--older-than {text!r}: expected a number of hours, days or weeks, such as 12h, 30d or 2w")
    return int(found[1]) * HOURS[found[2]] * 3600


def _stores(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / "real").glob("*/"):
        if path.name.startswith(UNFINISHED):
            yield path, "a store that was not finished"
        elif path.name != "index":
            yield path, _store(path / "store.json")


def _store(file: Path) -> str:
    try:
        facts = StoreFacts.read(file)
    except UserError:
        return "a damaged store"
    images = sum(offsets[-1] for offsets in facts.offsets.values())
    color = "gray" if facts.channels == 1 else "rgb"
    text = f"{facts.source}: {images:,} images of {len(facts.classes)} classes, {facts.size}x{facts.size} {color}"
    return ", ".join([text, *_changed(facts.settings, DataSettings())])


def _pools(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / "pools").glob("*/"):
        members = list(path.glob("member-*.safetensors"))
        text = f"{_pool(path / 'pool.json')}, {plural(len(members), 'member')}"
        kept = [_snapshots(member) for member in members]
        if snapshots := sum(count for count, _ in kept):
            text += f", {plural(snapshots, 'snapshot')} ({format_bytes(sum(size for _, size in kept))} of the size)"
        yield path, text


def _snapshots(member: Path) -> tuple[int, int]:
    """How many snapshots a member's file holds, and their bytes; none in a damaged file."""
    epochs, size = set(), 0
    try:
        with safe_open(member, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                if name.startswith("epoch-"):
                    tensor = stored.get_slice(name)
                    epochs.add(name.split("/", 1)[0])
                    size += math.prod(tensor.get_shape()) * BYTES_OF[tensor.get_dtype()]
    except (SafetensorError, OSError, KeyError):
        return 0, 0
    return len(epochs), size


def _pool(file: Path) -> str:
    try:
        facts = PoolFacts.read(file)
    except UserError:
        return "made by an earlier version"
    device, precision, _ = facts.runtime
    network = facts.network | {"name": None}
    changed = [*_changed(network, NetworkSettings()), *_changed(facts.pool, PoolSettings())]
    name = facts.network.get("name")
    return ", ".join([f"{facts.data_name}: {name}", *changed, f"seed {facts.seed}", device, precision])


def _changed(settings: dict[str, object], default: object) -> list[str]:
    """Settings that are not the defaults, as `size 64`."""
    defaults = to_dict(default)
    return [
        f"{key} {shortened_list([str(v) for v in value]) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if value is not None and value != defaults.get(key)
    ]


def _students(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / CACHED).glob("*/"):
        yield path, f"{plural(len(list(path.glob('*.json'))), 'student')} of a set"


def _compiled(cache: Path) -> Iterator[tuple[Path, str]]:
    if (cache / "compiled").is_dir():
        yield cache / "compiled", "all networks that torch.compile compiled"


def _timings(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / "tensorrt").glob("*.timing"):
        yield path, path.stem


def _remote(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / "remote").glob("*/"):
        about = Copies.of(path)
        yield path, (about.address or "unknown") + (", not finished" if about.content is None else "")


def _web_runtimes(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / web_runtime.CACHED).glob("*.tgz"):
        unfinished = ", not finished" if path.name.startswith(UNFINISHED) else ""
        yield path, f"{path.stem.removeprefix(UNFINISHED)}, for `ncfmkit export --to web`{unfinished}"


def _downloads(cache: Path) -> Iterator[tuple[Path, str]]:
    for path in (cache / "downloads").glob("*"):
        yield path, "a data set that torchvision downloaded"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("store", "real images as they were read", _stores),
        Kind("pool", "trained extractors", _pools),
        Kind("students", "what students get right that `evaluate` trained", _students),
        Kind("compiled", "code that torch.compile made", _compiled),
        Kind("timing", "kernels that TensorRT timed", _timings),
        Kind("remote", "copies of data at an address", _remote),
        Kind("runtime", "what web pages run models with", _web_runtimes),
        Kind("download", "data sets as they were downloaded: only listed, remove them yourself", _downloads, False),
    )
}
