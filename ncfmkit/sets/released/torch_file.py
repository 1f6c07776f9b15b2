"""Reads tensors from a file of `torch.save` without executing anything in it.

`torch.load(weights_only=True)` is the guard. The checks before it reject files that could exhaust memory or build
objects other than tensors: archives that are not plain zip, expand beyond their own size, or have other names in their
pickle.
"""

import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ncfmkit.errors import UserError, cause
from ncfmkit.files import format_bytes

ZIP_START = b"PK\x03\x04"
MAX_MEMBERS = 100  # of the archive: a set has about ten
END_BYTES = 98  # of an archive's end with 64-bit sizes, without a comment
LONGEST_NAME = 100  # characters of a foreign object's that are shown
MAX_PICKLE = 1 << 20  # bytes: that of two tensors has less than a thousand
# without torch.storage's UntypedStorage and TypedStorage, which a pickle may call to allocate any number of bytes
NAMES = re.compile(r"torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|collections OrderedDict|torch \w+Storage")
BY_NAME = {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # other opcodes that fetch an object; torch writes none


def load(path: Path, max_bytes: int) -> Any:
    """What the file holds: tensors on the CPU, mapped from the file, in lists, tuples and dictionaries.

    A tensor may still be larger than the file (stride 0): :func:`check_tensor` tells.

    Raises:
        UserError: larger than `max_bytes`, not an archive of `torch.save`, damaged, or with more than tensors in it.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise UserError(f"{path} has {format_bytes(size)}, the limit is {format_bytes(max_bytes)}: raise --max-size")
    with warnings.catch_warnings(action="ignore"):  # of what a broken file does with pickletools and torch
        _check_pickle(path, _pickle_of(path, size))
        try:
            # mapped, a storage that claims more than the file has is cut, and nothing is allocated for it
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises all kinds for broken files
            said = (cause(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is not a readable torch.save file ({said}): get it again") from None


def _pickle_of(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        start = file.read(len(ZIP_START))
    if start != ZIP_START:
        raise UserError(
            f"{path} is not a zip archive as torch.save writes since version 1.6: if it is an older file that you "
            "trust, load it where it was made and save it again with a newer torch"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _checked_pickle(path, archive, size)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged or truncated ({cause(error)}): get it again") from None


def _checked_pickle(path: Path, archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle in the archive, whose members are plain, sound and no more than the file."""
    members = archive.infolist()
    names = [member.filename.lower() for member in members]  # torch does not tell cases apart
    places = [i for i, name in enumerate(names) if name.count("/") == 1 and name.endswith("/data.pkl")]
    pickles = [members[place] for place in places]
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1]
    total = sum(member.file_size for member in members)
    oddities = [
        (len(members) > MAX_MEMBERS, f"{len(members)} members"),
        (bool(packed), f"the compressed member {str(packed[:1])[:LONGEST_NAME]}"),
        (total > size, f"members of {format_bytes(total)} in a file of {format_bytes(size)}"),
        (len(set(names)) != len(names), "a name twice"),
        (not _has_one_directory(path, archive, size), "a second directory"),
        (len(pickles) != 1, f"{len(pickles)} data.pkl"),
        (any(p.file_size > MAX_PICKLE for p in pickles), f"a data.pkl above {format_bytes(MAX_PICKLE)}"),
    ]
    found = [what for holds, what in oddities if holds] or _damaged(archive)
    if found:
        raise UserError(f"{path} is not an archive as torch.save writes it ({', '.join(found)}): not loaded")
    return archive.read(pickles[0])


def _has_one_directory(path: Path, archive: zipfile.ZipFile, size: int) -> bool:
    """Whether torch, which goes where the archive's end says, finds the directory that lies right before that end."""
    with open(path, "rb") as file:
        file.seek(max(0, size - END_BYTES))
        tail = file.read()
    directory = (archive.start_dir,)
    if tail[-42:-38] != b"PK\x06\x07":
        return tail[-22:-18] == b"PK\x05\x06" and struct.unpack("<I", tail[-6:-2]) == directory
    if len(tail) < END_BYTES or tail[:4] != b"PK\x06\x06":
        return False
    return struct.unpack_from("<Q", tail, 48) == directory and struct.unpack_from("<Q", tail, 64) == (size - END_BYTES,)


def _damaged(archive: zipfile.ZipFile) -> list[str]:
    member = archive.testzip()
    return [] if member is None else [f"the checksum of {member} is wrong"]


def _check_pickle(path: Path, content: bytes) -> None:
    """Refuses a pickle that names anything but tensors; it is read as text, nothing of it is run."""
    try:
        foreign = next(_foreign(content), None)
    except ValueError as error:
        raise UserError(f"{path} is damaged: its data.pkl is no pickle ({cause(error)}): get it again") from None
    if foreign is not None:
        raise UserError(
            f"{path} holds code or objects that are not tensors ({foreign[:LONGEST_NAME]}) and was not loaded: have it "
            "saved again with torch.save([images, targets], file), two tensors and nothing else (with --factor 1 for "
            "plain images)"
        )


def _foreign(content: bytes) -> Iterator[str]:
    """Objects in a pickle that are not part of a tensor, found while reading: a list of all opcodes is long."""
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL" and not NAMES.fullmatch(str(argument)):
            yield str(argument).replace(" ", ".")
        elif code.name in BY_NAME:
            yield f"by {code.name}"


def check_tensor(tensor: torch.Tensor, path: Path, what: str) -> None:
    """Refuses a tensor that would be larger than the file once its values are touched.

    Raises:
        UserError: it is.
    """
    stored = tensor.untyped_storage().nbytes()
    needed = tensor.numel() * tensor.element_size()
    if stored > path.stat().st_size or needed > stored:
        raise UserError(
            f"{path}: {what} of shape {tuple(tensor.shape)} need {format_bytes(needed)}, but the file stores "
            f"{format_bytes(stored)} for them: not loaded; have them saved as .contiguous()"
        )
