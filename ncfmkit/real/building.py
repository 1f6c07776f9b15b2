"""Builds a store: decodes in parallel in source order, and writes every image to its place in class order."""

import dataclasses
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.config import DataSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.progress import command_line, notice, track
from ncfmkit.real.decode import BadImageError, Frame, Look, changes, fit, kind_of, open_picture
from ncfmkit.real.listing import Payload, Rows, Source
from ncfmkit.real.select import choose
from ncfmkit.real.store import SplitWriter, check_space, new_store, write_facts

CHUNK_IMAGES = 256  # at most in one piece of a thread's work
CHUNK_BYTES = 4 << 20  # at most, encoded and decoded each, beyond the first image of a chunk
AHEAD = 3  # chunks in flight per thread
# below, decoding takes about 0.1 ms, most of it under Python's lock: threads then only slow each other down (measured:
# CIFAR-10 in 7 s with 1 thread, 17 s with 4; from 128x128 on they pay off for PNG, JPEG and WebP alike)
THREADS_FROM = 128 * 128  # pixels of the first picture
USUAL_SIZE = 64  # that messages advise where images are larger

Job = tuple[int, int, Payload]  # row in the source, position in the store, picture
# positions int64 [B], images uint8 [B, ch, H, W], what the pictures were, jobs done
Decoded = tuple[np.ndarray, np.ndarray, Counter[Look], int]


def build_store(
    folder: Path,
    source: Source,
    settings: DataSettings,
    fingerprint: str,
    skip_bad: bool,
    check_unchanged: Callable[[], None],
) -> None:
    """Reads the whole source into the store `folder`. Under `folder`'s lock; memory does not grow with the set.

    Args:
        check_unchanged: raises UserError if the source is another one than that of the fingerprint; the store gets its
            name afterwards.

    Raises:
        UserError: a picture, a label, a class or a setting that does not fit, or too little disk space.
    """
    classes, chosen = choose(source.name, source.load(), settings.classes, settings.holdout, settings.imbalance)
    frame, pixels = _find_frame(source.name, *chosen["train"], settings, skip_bad, has_test="test" in chosen)
    threads = _threads(pixels)
    facts: dict[str, Any] = {"source": source.name, "classes": classes, "fingerprint": fingerprint}
    facts |= {"skipped": 0, "skipped_images": [], "offsets": {}}
    facts["settings"] = to_dict(settings)  # for `ncfmkit cache`, which lists stores
    looks: Counter[Look] = Counter()
    with new_store(folder) as temporary:
        for split, (rows, groups) in chosen.items():
            title = f"reading {source.name} {split}"
            path, order = temporary / f"{split}.npy", np.concatenate(groups)
            writer, found = _write_split(path, title, rows, order, frame, threads, skip_bad)
            color = _color_of_most(found)
            if split == "train" and settings.color is None and color != frame.color:
                notice(f"{source.name}: most images are {color}, the first is {frame.color}: reading them again")
                frame = dataclasses.replace(frame, color=color)
                writer, found = _write_split(path, title, rows, order, frame, threads, skip_bad)
            looks += found
            facts["offsets"][split] = _offsets(source.name, split, classes, groups, writer.filled)
            skipped = np.sort(np.concatenate(groups)[~writer.filled]).tolist()
            facts["skipped"] += len(skipped)
            facts["skipped_images"] += [rows.where(row) for row in skipped]
            if split == "train":
                facts["mean"], facts["std"] = writer.statistics()
        facts |= {"size": frame.size, "channels": frame.channels, "changed": changes(looks, frame.color)}
        write_facts(temporary, facts)
        check_unchanged()


def _find_frame(
    name: str, rows: Rows, groups: list[np.ndarray], settings: DataSettings, skip_bad: bool, has_test: bool
) -> tuple[Frame, int]:
    """What images are made to be, and the pixels of the first picture of the train split that can be decoded.

    What settings leave open is as in that picture; :func:`build_store` mends its color where most others differ.

    Raises:
        UserError: the size is left open and the picture is not square, or no picture can be decoded.
    """
    wanted = np.sort(np.concatenate(groups))
    for row, payload in zip(wanted, rows.read(wanted), strict=True):
        where = rows.where(int(row))
        try:
            opened = open_picture(payload, where)
        except BadImageError:
            if not skip_bad:
                raise
            continue
        width, height = opened.image.size
        more = "--resize crop"
        if not has_test:
            more += " --holdout 0.1"  # else the next message would ask for it
        size = f"--size {settings.size or min(USUAL_SIZE, width, height)} "
        given = "" if settings.size else size
        advice = f"pass {size}{more} to crop and resize all images{_as_command(given + more)}"
        if settings.size is None and width != height:
            raise UserError(f"{where}: expected a square image, got {width}x{height}: {advice}")
        color = settings.color or Look(kind_of(opened.image), opened.turned, resized=False).color
        origin = f", as {where}" if settings.size is None else ""
        crop = settings.resize == "crop"
        frame = Frame(size=settings.size or width, color=color, crop=crop, origin=origin, advice=advice)
        return frame, width * height
    raise UserError(f"{name}: none of the {len(wanted)} images of the train split is a readable picture")


def _as_command(flags: str) -> str:
    command = command_line()
    return f"; the whole command:\n{command} {flags}" if command else ""


def _color_of_most(looks: Counter[Look]) -> str:
    gray = sum(count for look, count in looks.items() if look.color == "gray")
    return "gray" if 2 * gray > looks.total() else "rgb"


def _write_split(
    path: Path, title: str, rows: Rows, order: np.ndarray, frame: Frame, threads: int, skip_bad: bool
) -> tuple[SplitWriter, Counter[Look]]:
    """One split, in class order; and what its pictures were."""
    check_space(path.parent, len(order) * frame.channels * frame.size**2)
    with SplitWriter(path, len(order), frame.channels, frame.size) as writer:
        looks = _fill(writer, title, rows, order, frame, threads, skip_bad)
        writer.finish()
    return writer, looks


def _offsets(
    name: str, split: str, classes: tuple[str, ...], groups: list[np.ndarray], filled: np.ndarray
) -> list[int]:
    ends = np.cumsum([0, *map(len, groups)])
    counts = [int(filled[low:high].sum()) for low, high in pairwise(ends)]
    if 0 in counts:
        empty = counts.index(0)
        raise UserError(
            f"class {classes[empty]!r} has no images in {name} {split}: all {len(groups[empty])} are unreadable"
        )
    return [0, *np.cumsum(counts).tolist()]


def _fill(
    writer: SplitWriter,
    title: str,
    rows: Rows,
    in_class_order: np.ndarray,
    frame: Frame,
    threads: int,
    skip_bad: bool,
) -> Counter[Look]:
    positions = np.argsort(in_class_order)
    wanted = in_class_order[positions]

    def decode(chunk: list[Job]) -> Decoded:
        return _decode(chunk, rows, frame, skip_bad)

    looks: Counter[Look] = Counter()
    jobs = zip(wanted.tolist(), positions.tolist(), rows.read(wanted), strict=True)
    with track(title, len(wanted)) as bar:
        for places, images, found, done in _in_parallel(decode, _chunks(jobs, frame), threads):
            writer.put(places, images)
            looks += found
            bar.advance(done)
    return looks


def _decode(chunk: list[Job], rows: Rows, frame: Frame, skip_bad: bool) -> Decoded:
    """The chunk's readable pictures in the order of their positions."""
    places: list[int] = []
    looks: Counter[Look] = Counter()
    images = np.empty((len(chunk), frame.channels, frame.size, frame.size), np.uint8)
    for row, position, payload in sorted(chunk, key=lambda job: job[1]):
        try:
            where = rows.where(row)
            images[len(places)], look = fit(open_picture(payload, where), frame, where)
            places.append(position)
            looks[look] += 1
        except BadImageError:
            if not skip_bad:
                raise
    return np.array(places, np.int64), images[: len(places)], looks, len(chunk)


def _chunks(jobs: Iterator[Job], frame: Frame) -> Iterator[list[Job]]:
    most = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // (frame.channels * frame.size**2)))
    chunk: list[Job] = []
    encoded = 0
    for job in jobs:
        chunk.append(job)
        encoded += len(job[2]) if isinstance(job[2], bytes) else 0
        if len(chunk) == most or encoded > CHUNK_BYTES:
            yield chunk
            chunk, encoded = [], 0
    if chunk:
        yield chunk


def _threads(pixels: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if pixels >= THREADS_FROM else 1


def _in_parallel(
    decode: Callable[[list[Job]], Decoded], chunks: Iterator[list[Job]], threads: int
) -> Iterator[Decoded]:
    """`decode` over the chunks in threads, in order, with a bounded number of chunks in flight."""
    if threads == 1:
        yield from map(decode, chunks)
        return
    waiting: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for chunk in chunks:
            waiting.append(pool.submit(decode, chunk))
            if len(waiting) >= AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
