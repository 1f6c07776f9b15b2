"""Builds a store: decodes in parallel in source order, and writes every image to its place in class order."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ncfmkit.config import DataSettings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.progress import track
from ncfmkit.real.decode import BadImageError, Frame, fit, frame_of, open_picture
from ncfmkit.real.listing import Payload, Rows, Source
from ncfmkit.real.select import choose
from ncfmkit.real.store import SplitWriter, check_space, new_store, write_facts

CHUNK_IMAGES = 256  # at most in one piece of a thread's work
CHUNK_BYTES = 4 << 20  # at most, encoded and decoded each, beyond the first image of a chunk
AHEAD = 3  # chunks in flight per thread
# below, decoding takes about 0.1 ms, most of it under Python's lock: threads then only slow each other down (measured:
# CIFAR-10 in 7 s with 1 thread, 17 s with 4; from 128x128 on they pay off for PNG, JPEG and WebP alike)
THREADS_FROM = 128 * 128  # pixels of the first picture

Job = tuple[int, int, Payload]  # row in the source, position in the store, picture
Decoded = tuple[np.ndarray, np.ndarray, int]  # positions int64 [B], images uint8 [B, ch, H, W], jobs done


def build_store(folder: Path, source: Source, settings: DataSettings, fingerprint: str, skip_bad: bool) -> None:
    """Reads the whole source once into the store `folder`. Under `folder`'s lock; memory does not grow with the set.

    Raises:
        UserError: a picture, a label, a class or a setting that does not fit, or too little disk space.
    """
    classes, chosen = choose(source.name, source.load(), settings.classes, settings.holdout, settings.imbalance)
    frame = _find_frame(source.name, *chosen["train"], settings, skip_bad)
    count = sum(len(group) for _, groups in chosen.values() for group in groups)
    check_space(folder.parent, count * frame.channels * frame.size**2)
    facts: dict[str, Any] = {"source": source.name, "classes": classes, "size": frame.size, "channels": frame.channels}
    facts |= {"fingerprint": fingerprint, "skipped": 0, "skipped_images": [], "offsets": {}}
    facts["settings"] = to_dict(settings)  # for `ncfmkit cache`, which lists stores
    with new_store(folder) as temporary:
        for split, (rows, groups) in chosen.items():
            with SplitWriter(temporary / f"{split}.npy", sum(map(len, groups)), frame.channels, frame.size) as writer:
                _fill(writer, f"reading {source.name} {split}", rows, np.concatenate(groups), frame, skip_bad)
                writer.finish()
            facts["offsets"][split] = _offsets(source.name, split, classes, groups, writer.filled)
            skipped = np.sort(np.concatenate(groups)[~writer.filled]).tolist()
            facts["skipped"] += len(skipped)
            facts["skipped_images"] += [rows.where(row) for row in skipped]
            if split == "train":
                facts["mean"], facts["std"] = writer.statistics()
        write_facts(temporary, facts)


def _find_frame(name: str, rows: Rows, groups: list[np.ndarray], settings: DataSettings, skip_bad: bool) -> Frame:
    """The frame, from the first picture of the train split that can be decoded."""
    wanted = np.sort(np.concatenate(groups))
    for row, payload in zip(wanted, rows.read(wanted), strict=True):
        where = rows.where(int(row))
        try:
            picture = open_picture(payload, where)
        except BadImageError:
            if not skip_bad:
                raise
            continue
        return frame_of(picture, where, settings.size, settings.color, settings.resize, settings.convert_color)
    raise UserError(f"{name}: none of the {len(wanted)} images of the train split is a readable picture")


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
    writer: SplitWriter, title: str, rows: Rows, in_class_order: np.ndarray, frame: Frame, skip_bad: bool
) -> None:
    positions = np.argsort(in_class_order)
    wanted = in_class_order[positions]

    def decode(chunk: list[Job]) -> Decoded:
        return _decode(chunk, rows, frame, skip_bad)

    jobs = zip(wanted.tolist(), positions.tolist(), rows.read(wanted), strict=True)
    with track(title, len(wanted)) as bar:
        for places, images, done in _in_parallel(decode, _chunks(jobs, frame), _threads(frame)):
            writer.put(places, images)
            bar.advance(done)


def _decode(chunk: list[Job], rows: Rows, frame: Frame, skip_bad: bool) -> Decoded:
    """The chunk's readable pictures in the order of their positions."""
    places: list[int] = []
    images = np.empty((len(chunk), frame.channels, frame.size, frame.size), np.uint8)
    for row, position, payload in sorted(chunk, key=lambda job: job[1]):
        try:
            where = rows.where(row)
            images[len(places)] = fit(open_picture(payload, where), frame, where)
            places.append(position)
        except BadImageError:
            if not skip_bad:
                raise
    return np.array(places, np.int64), images[: len(places)], len(chunk)


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


def _threads(frame: Frame) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if frame.first_pixels >= THREADS_FROM else 1


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
