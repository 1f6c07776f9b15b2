"""File names made of the names of classes and sets, valid on every file system."""

import re
import unicodedata

from ncfmkit.progress import JOINERS, is_shown

MOST_BYTES = 255  # of a name in UTF-8, on the file systems in use
UNSAFE = '<>:"/\\|?*'  # separators, and what Windows does not take
# what Windows takes for devices, with any ending
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)


def safe_name(name: str, most_bytes: int = MOST_BYTES) -> str:
    """`name` as a file can have it everywhere, as it is where that is so: it keeps letters of all scripts and emoji.

    Separators, control characters and what Windows does not take become hyphens, other spaces plain ones; names of
    Windows devices get a hyphen before them. It is composed (NFC), so that every system spells it in the same bytes,
    and cut to `most_bytes` of UTF-8. Different names may become equal or empty.
    """
    spaced = (" " if unicodedata.category(char) == "Zs" else char for char in unicodedata.normalize("NFC", name))
    text = "".join(char if is_shown(char) and char not in UNSAFE else "-" for char in spaced)
    text = f"-{text}" if DEVICES.fullmatch(text) else text
    return text.encode()[:most_bytes].decode(errors="ignore").rstrip(f". {JOINERS}")  # Windows drops a dot or space
