"""Soft labels in fewer than 16 bits, and of the top classes alone (docs/formats.md, "Soft labels in fewer bits").

Students train on the softmax of logits, so a logit matters the less the further it is below the largest of its image:
codes are dense where probabilities are large. Restored logits give the same codes again, so a set keeps soft labels in
memory as float16 and nothing is lost when it is stored.

Shape letters: D decoded images, K classes, N top classes, B bytes of a row.
"""

from collections.abc import Iterator

import numpy as np

from ncfmkit.errors import UserError

LOWEST = 16  # below the largest logit of an image: a probability of 1e-7 beside it
MOST_CLASSES = 1 << 16  # of which the top ones can be named
MOST_RESTORED = 64  # times the bytes of all tensors: what is read takes memory by the size of its file
PART = 1 << 20  # logits at once


def row_bytes(classes: int, bits: int, top: int) -> int:
    """Bytes that the soft label of an image takes; 16 bits are float16.

    Args:
        classes: K.
        bits: 16, 8 or 4.
        top: classes that are named in a row, with 8 or 4 bits; 0: all of them.
    """
    return index_bytes(classes) * top + ((top or classes) * bits + 7) // 8


def index_bytes(classes: int) -> int:
    """Bytes of the number of a class."""
    return 1 if classes <= 256 else 2


def fits(rows: int, classes: int, size: int) -> bool:
    """Whether a file may hold that many soft labels in fewer than 16 bits: readers restore them as float16.

    Args:
        size: bytes of all tensors in the file.
    """
    return 2 * rows * classes <= MOST_RESTORED * size


def rounded(logits_DK: np.ndarray, bits: int, top: int) -> np.ndarray:
    """Logits as they are read again, once they are stored: float16 `[D, K]`."""
    return logits_DK if bits == 16 else restore(encode(logits_DK, bits, top), logits_DK.shape[1], bits, top)


def encode(logits_DK: np.ndarray, bits: int, top: int) -> np.ndarray:
    """Soft labels as they are stored, uint8 `[D, B]`.

    Args:
        logits_DK: float16.
        bits: 8 or 4.
        top: as of :func:`row_bytes`, below K.

    Raises:
        UserError: logits that are not finite.
    """
    if not np.isfinite(logits_DK).all():
        raise UserError("the soft labels are not all finite")
    count, classes = logits_DK.shape
    stored_DB = np.empty((count, row_bytes(classes, bits, top)), np.uint8)
    begin = top * index_bytes(classes)
    for part in _parts(count, classes):
        below_DK = logits_DK[part].astype(np.float64)
        below_DK = below_DK.max(1, keepdims=True) - below_DK
        codes_DK = _codes(below_DK, bits)
        if top:
            # one code for all other classes: that of their mean probability
            others_DK = np.ones(codes_DK.shape, bool)
            np.put_along_axis(others_DK, _order(below_DK)[:, :top], False, axis=1)
            mean_D1 = (np.exp(-below_DK) * others_DK).sum(1, keepdims=True) / (classes - top)
            with np.errstate(divide="ignore"):  # a mean of 0 has the last code
                codes_DK = np.where(others_DK, _codes(-np.log(mean_D1), bits), codes_DK)
            # which of the classes with that very code are named makes no difference: the first ones
            order_DK = _order(codes_DK)
            codes_DK = np.take_along_axis(codes_DK, order_DK[:, 1 : top + 1], axis=1)
            names_DN = np.ascontiguousarray(order_DK[:, :top], f"<u{index_bytes(classes)}")
            stored_DB[part, :begin] = names_DN.view(np.uint8)
        stored_DB[part, begin:] = codes_DK if bits == 8 else _paired(codes_DK)
    return stored_DB


def restore(stored_DB: np.ndarray, classes: int, bits: int, top: int) -> np.ndarray:
    """The soft labels of what :func:`encode` gives, float16 `[D, K]`: 0 for the likeliest class of each image.

    Raises:
        ValueError: it gives no such rows; the message says what is wrong.
    """
    logits_DK, table = np.empty((len(stored_DB), classes), np.float16), _table(bits)
    begin, count = top * index_bytes(classes), top or classes
    for part in _parts(len(stored_DB), classes):
        rows_DB = stored_DB[part]
        codes_DN = rows_DB[:, begin:] if bits == 8 else _single(rows_DB[:, begin:], count)
        if not top:
            if codes_DN.all(axis=1).any():
                raise ValueError("a soft label has no class of code 0")
            logits_DK[part] = table[codes_DN]
            continue
        names_DN = np.ascontiguousarray(rows_DB[:, :begin]).view(f"<u{index_bytes(classes)}").astype(np.int64)
        if names_DN.max() >= classes:
            raise ValueError(f"its soft labels are of a class {names_DN.max()}, expected 0 to {classes - 1}")
        codes_DK = np.repeat(codes_DN[:, -1:], classes, axis=1)
        first_D1 = np.zeros((len(codes_DN), 1), np.uint8)
        np.put_along_axis(codes_DK, names_DN, np.concatenate([first_D1, codes_DN[:, :-1]], axis=1), axis=1)
        if not np.array_equal(_order(codes_DK)[:, :top], names_DN):
            raise ValueError("the classes of a soft label are not its likeliest ones in order")
        logits_DK[part] = table[codes_DK]
    return logits_DK


def _parts(count: int, classes: int) -> Iterator[slice]:
    step = max(1, PART // classes)
    return (slice(start, start + step) for start in range(0, count, step))


def _codes(below: np.ndarray, bits: int) -> np.ndarray:
    """Codes of logits that lie so far below the largest one, uint8."""
    last = (1 << bits) - 1
    return np.round(last * np.sqrt(np.clip(below, 0, LOWEST) / LOWEST)).astype(np.uint8)


def _table(bits: int) -> np.ndarray:
    """The logit of each code, float16."""
    last = (1 << bits) - 1
    return (0 - LOWEST * np.arange(last + 1) ** 2 / last**2).astype(np.float16)


def _order(below_DK: np.ndarray) -> np.ndarray:
    """Classes, the likeliest first, of equal ones the lower number, int64; by logits below the largest, or codes."""
    return np.argsort(below_DK, axis=1, kind="stable")


def _paired(codes_DN: np.ndarray) -> np.ndarray:
    """Two codes of four bits to a byte, the first in the upper half, uint8."""
    codes_DN = np.pad(codes_DN, ((0, 0), (0, codes_DN.shape[1] % 2)))
    return codes_DN[:, ::2] << 4 | codes_DN[:, 1::2]


def _single(paired_DB: np.ndarray, count: int) -> np.ndarray:
    """What :func:`_paired` was given."""
    codes_DN = np.stack([paired_DB >> 4, paired_DB & 15], axis=2).reshape(len(paired_DB), -1)
    if codes_DN[:, count:].any():
        raise ValueError("bits are set in its soft labels after the last code of an image")
    return codes_DN[:, :count]
