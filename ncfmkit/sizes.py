"""Sizes in bytes as people write them."""

import re

from ncfmkit.errors import UserError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str, what: str = "memory budget") -> int:
    """Bytes of a size such as `2GiB`, `512 MiB` or `800MB`; `what` it is the size of, for the message.

    Raises:
        UserError: not a size.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", text)
    if not found or found.group(2).upper() not in UNITS:
        raise UserError(f"{what} {text!r} is not a size: expected a number and a unit, such as 2GiB or 512MiB")
    return int(float(found.group(1)) * UNITS[found.group(2).upper()])


def format_bytes(count: float) -> str:
    """`1.5 GiB`, `312 MiB` or `20 KiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:{'.0f' if count / size >= 100 else '.3g'}} {unit}"
    return f"{count:.0f} B"
