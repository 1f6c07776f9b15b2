"""Soft labels in NumPy's .npy format: float16, little-endian, row-major.

A header is compared with the expected one and never evaluated, so it cannot request memory or Python objects.
"""

import io
from typing import BinaryIO

import numpy as np

from ncfmkit.errors import UserError

START = b"\x93NUMPY\x01\x00"  # and the header's length as uint16


def header(shape: tuple[int, ...]) -> bytes:
    """What a file of float16 values of this shape begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return file.getvalue()


def to_bytes(values: np.ndarray) -> bytes:
    """The values of float16 `values`, without a header."""
    return values.astype("<f2").tobytes()


def read_header(file: BinaryIO, shape: tuple[int, ...], where: str) -> None:
    """Passes over the header.

    Raises:
        UserError: it is not that of float16 values of this shape.
    """
    start = file.read(len(START) + 2)
    text = file.read(int.from_bytes(start[len(START) :], "little"))
    expected = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}"
    if not start.startswith(START) or text.rstrip() != expected.encode():
        got = repr(text[:100].decode("ascii", "replace").rstrip()) if start.startswith(START) else "no .npy header"
        raise UserError(f"{where}: expected a .npy header {expected!r}, got {got}: fetch the package again")


def read_values(file: BinaryIO, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The next values, float16 of this shape.

    Raises:
        UserError: there are fewer, or some are not finite.
    """
    count = int(np.prod(shape, dtype=np.int64))
    content = file.read(2 * count)
    if len(content) != 2 * count:
        raise UserError(f"{where} is cut off: expected {count} more values, got {len(content) // 2}")
    values = np.frombuffer(content, "<f2").reshape(shape).astype(np.float16)
    if not np.isfinite(values).all():
        raise UserError(f"{where} is damaged: soft labels are not all finite: fetch the package again")
    return values


def read_end(file: BinaryIO, where: str) -> None:
    """Raises a UserError unless the file ends here."""
    if file.read(1):
        raise UserError(f"{where} is damaged: it has data after its last value: fetch the package again")
