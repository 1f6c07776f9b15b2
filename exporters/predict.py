"""Classes and probabilities of picture files by an exported classifier, batch by batch.

Shapes: N images, C channels, H = W side, K classes.
"""

import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters.contract import Contract, as_declared, assumed_text, check_declared
from ncfmkit.exporters.providers import PROVIDERS
from ncfmkit.exporters.sessions import Session, open_session
from ncfmkit.progress import Tracker, notice, printable, track
from ncfmkit.real.decode import (
    COLORS,
    BadImageError,
    Frame,
    Look,
    changes,
    changes_text,
    fit,
    open_picture,
    readable_formats,
)
from ncfmkit.real.folders import Tops, left_out_text, walk
from ncfmkit.records import SparseRecord

TOPK = 5  # where the user leaves it open and the model has that many classes
THREADS = min(4, os.cpu_count() or 1)  # that decode


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A file as the model takes it, or the reason why it cannot be read."""

    file: str
    image_CHW: np.ndarray | None = None  # uint8; None: unreadable
    error: str | None = None  # why it is unreadable
    look: Look | None = None  # what it was


class Guess(SparseRecord):
    """A class, and how likely it is."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: Annotated[str | None, Field(alias="class")]  # None: the model has no names
    label: int
    probability: float


class Answer(SparseRecord):
    """What is on a picture, the likeliest class and the likeliest ones; or the reason why it cannot be read."""

    model_config = ConfigDict(populate_by_name=True)

    file: str
    class_name: Annotated[str | None, Field(alias="class")] = None
    label: int | None = None
    probability: float | None = None
    topk: tuple[Guess, ...] = ()
    error: str | None = None  # None: the picture was read


def predict(
    model: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    provider: str = "cpu",
    topk: int | None = None,
    batch: int = 64,
    layout: str | None = None,
    output: str | None = None,
    live: bool = True,
) -> Generator[Answer]:
    """Says what is on pictures: a record of each, in their order, as they come; a few batches are in memory at most.

    Pictures of another size or color are brought to the model's, as `--resize crop` does for a store. Notices say what
    runs, which files of folders were left out, which pictures cannot be read and how many were changed.

    Args:
        model: an ONNX classifier, such as :func:`ncfmkit.export` writes.
        paths: a picture file or a folder to be searched for them, or several.
        provider: what runs the model: `cpu`, `cuda`, `tensorrt`, `openvino`, `webgpu` or `tensorrt-rtx`.
        topk: classes in an answer; None: 5, or all where there are fewer.
        batch: pictures that the model is given at once.
        layout: how a model without our metadata takes images, as in :func:`ncfmkit.export`.
        output: what a model without our metadata gives: `logits` or `probabilities`.
        live: a bar may be drawn; not where the answers go to the same terminal.

    Returns:
        An iterator of one record per picture: `file`; `class_name` (None in a model without names), `label` and
        `probability` of the likeliest class; `topk`, the same three of the likeliest classes; `error`, None. In JSON,
        which `to_dict()` gives, the name stands under `class`, and there is no `error`. Of a picture that cannot be
        read, the record has `file` and `error`, the reason, alone: the others are None, `topk` is empty.

    Raises:
        UserError: at once: a wrong path, model, provider or number.
        CheckFailed: after the last answer: pictures that cannot be read; or in between: scores that are not finite.

    Example:
        >>> for answer in ncfmkit.predict("student.onnx", "photos/", topk=3):
        ...     print(answer.file, answer.error or answer.class_name, answer.probability)
    """
    if batch < 1:
        raise UserError(f"--batch: expected 1 or more pictures, got {batch}")
    if provider not in PROVIDERS:
        raise UserError(f"unknown provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
    declared = as_declared(layout, output)
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    files, left_out = find_pictures([os.fspath(path) for path in several])
    session = open_session(Path(model), provider, declared=declared)
    check_declared(declared, {str(model): session.contract})
    count = _checked_topk(topk, session.contract.class_count)
    notice(_headline(session, len(files), declared))
    if left_out:
        notice(f"left out {left_out_text(left_out)}")
    return _predict(session, files, count, batch, live)


def _predict(session: Session, files: list[str], topk: int, batch: int, live: bool) -> Generator[Answer]:
    contract = session.contract
    looks: Counter[Look] = Counter()
    with track("predicting", len(files)) if live else nullcontext(Tracker("predicting", len(files), None)) as bar:
        for pictures in read_batches(files, contract, batch):
            answers = iter(_answers(session, [p for p in pictures if p.error is None], topk))
            for picture in pictures:
                if picture.look is None:
                    notice(f"ncfmkit: {printable(picture.file)}: {picture.error}")
                    yield Answer(file=picture.file, error=picture.error)
                else:
                    looks[picture.look] += 1
                    yield next(answers)
            bar.advance(len(pictures))
    color = _color(contract)
    changed = changes_text(changes(looks, color), looks.total(), contract.size, color)
    if changed:
        notice(changed)
    if looks.total() < len(files):
        raise CheckFailed(f"{len(files) - looks.total()} of {len(files)} pictures could not be read")


def find_pictures(paths: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """The files in the order given, and how many files of folders are no pictures, by kind.

    A folder's files are in sorted order, its own before those of its subfolders.

    Raises:
        UserError: a path that does not exist, or a folder that cannot be listed or has no pictures.
    """
    lacking = [p for p in paths if not os.path.exists(p)]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(f"no such file or folder: {printable(lacking[0]) or repr('')}{more}")
    found: list[str] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        left = Counter[str]()
        top = Tops([os.path.realpath(path)])
        inside = [os.path.join(folder, f) for folder, files in walk(path, top, set(), left) for f in files]
        if not inside:
            got = f", got {left_out_text(left)}" if left else ""
            raise UserError(
                f"{printable(path)}: no pictures in the folder: expected {', '.join(readable_formats())} files{got}"
            )
        found += inside
        left_out += left
    return found, left_out


def _checked_topk(topk: int | None, classes: int) -> int:
    if topk is None:
        return min(TOPK, classes)
    if not 1 <= topk <= classes:
        raise UserError(f"--topk: expected 1 to {classes}, the model's classes, got {topk}")
    return topk


def _headline(session: Session, total: int, declared: dict[str, str]) -> str:
    contract = session.contract
    shape = f"{contract.channels}x{contract.size}x{contract.size}"
    text = f"{session.path}: {shape} images, {contract.class_count} classes, on {session.provider}; {total} pictures"
    if contract.metadata:
        return text
    return f"{text}\nit has no ncfmkit metadata: {assumed_text(contract, declared)}"


def _color(contract: Contract) -> str:
    return next(name for name, channels in COLORS.items() if channels == contract.channels)


def read_batches(files: Sequence[str], contract: Contract, batch: int) -> Iterator[list[Picture]]:
    """The files' pictures in order, `batch` at a time; threads read ahead by as many."""
    frame = Frame(size=contract.size, color=_color(contract), crop=True)
    pool = ThreadPoolExecutor(THREADS)
    try:
        ahead = [pool.submit(_read, file, frame) for file in files[:batch]]
        for start in range(0, len(files), batch):
            coming = files[start + batch : start + 2 * batch]
            now, ahead = ahead, [pool.submit(_read, file, frame) for file in coming]
            yield [future.result() for future in now]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(file: str, frame: Frame) -> Picture:
    where = printable(file)
    try:
        image, look = fit(open_picture(Path(file), where), frame, where)
    except BadImageError as error:
        return Picture(file=file, error=error.reason)
    return Picture(file=file, image_CHW=image, look=look)


def _answers(session: Session, pictures: Sequence[Picture], topk: int) -> list[Answer]:
    if not pictures:
        return []
    scores_NK = session(np.stack([p.image_CHW for p in pictures if p.image_CHW is not None]))
    for picture, finite in zip(pictures, np.isfinite(scores_NK).all(axis=1), strict=True):
        if not finite:
            raise CheckFailed(f"{session.path} returns non-finite scores for {printable(picture.file)}")
    probabilities_NK = session.contract.probabilities(scores_NK)
    order_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :topk]
    names = session.contract.classes
    answers = []
    for picture, probabilities, order in zip(pictures, probabilities_NK, order_NK.tolist(), strict=True):
        top = tuple(
            Guess(class_name=names[k] if names else None, label=k, probability=round(float(probabilities[k]), 6))
            for k in order
        )
        answers.append(Answer(file=picture.file, topk=top, **dict(top[0])))
    return answers
