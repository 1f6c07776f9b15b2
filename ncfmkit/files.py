"""Files: written whole or not at all, names, digests, sizes, and the cache folder for what can be made again."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout

from ncfmkit import interrupts
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    import torch

HUB = "hf://"  # begins the address of a data set on the Hugging Face Hub, where a path may stand, too
UNFINISHED = ".tmp-"  # begins the name of what is being written into the cache
METADATA_KEY = "ncfmkit"  # the one key of ours in the metadata of a safetensors or ONNX file
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MOVE = "or move the cache with the environment variable NCFMKIT_CACHE"
MODEL = "`ncfmkit validate` and `ncfmkit predict` take exported models"
REAL = "real images are named with --data"
FOREIGN = {  # what a file is by its name, and what takes it
    ".onnx": ("an ONNX model", MODEL),
    ".engine": ("a TensorRT engine", MODEL),
    ".pt": ("a torch file", "`ncfmkit convert` reads sets that other projects released"),
    ".pth": ("a torch file", "`ncfmkit convert` reads sets that other projects released"),
    ".parquet": ("a Parquet file", REAL),
    ".tar": ("a tar file", REAL),
}
LARGEST_HEADER = 100_000_000  # bytes of a safetensors file, as its library has it
MOST_NAME_BYTES = 240  # file systems take 255, and a file has a longer name until it is whole
LONGEST_NAME = 100  # characters of a name that is made of a text


def write_atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes to a temporary name, syncs, renames, syncs the folder.

    Args:
        content: whole, or in parts that are made while it is written.

    Raises:
        UserError: the disk is full, or the file cannot be written there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # process numbers repeat among machines
    with interrupts.cleaning_up():
        try:
            with open(partial, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            with interrupts.held():
                os.replace(partial, path)
                sync_folder(path.parent)
                note_written(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk is full: {path} was not written; free {_amount(content)} and try again"
                ) from None
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there yet.

    Raises:
        UserError: the disk is full, or refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk: after a power cut, a rename that was not synced may not have been."""
    with suppress(OSError):  # of file systems that sync no folders, of folders that may be written but not listed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """A block in which no other process holds this lock; the system lifts that of a process that is killed.

    Args:
        timeout: seconds to wait for another process; negative: for as long as it takes.

    Raises:
        filelock.Timeout: another process holds it.
        UserError: nothing can be written there, or the file system has no locks.
    """
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be locked ({reason}): the folder must be writable, and its file system must have locks "
            f"(flock); choose another --out, {MOVE}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def note_written(path: Path) -> None:
    """A file or folder is finished under its name, which an interruption then says."""
    cached = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(cache_dir()))
    interrupts.note_cached() if cached else interrupts.note_written(path)


def _amount(content: bytes | Iterable[bytes | memoryview]) -> str:
    return f"{len(content)} bytes" if isinstance(content, bytes) else "some space"


def check_free(path: Path, *, force: bool = False) -> None:
    """Tries whether a file can be written at `path`, before the work for it begins. Leaves nothing behind.

    Raises:
        UserError: it exists and `force` is not set, it is a folder, or nothing can be written in its folder.
    """
    _try_folder(path)
    if os.path.isdir(path) and not os.path.islink(path):
        raise UserError(f"--out {path} is a folder: expected the name of a file")
    if os.path.lexists(path) and not force:
        raise UserError(f"{path} already exists: pass --force to overwrite it")


def check_free_folder(
    path: Path,
    *,
    force: bool,
    foreign: Callable[[Path], list[str]],
    made_by: str,
    parents: bool = False,
    replaced: bool = False,
) -> None:
    """As :func:`check_free`, for a folder.

    Args:
        foreign: names in an existing folder that the command did not write; such a folder is never overwritten.
        made_by: the command, for the message.
        parents: folders above that do not exist will be made.
        replaced: the folder will be replaced as a whole (:func:`replace_folder`), which one named `.` cannot be.

    Raises:
        UserError: as :func:`check_free`, or the folder holds something else.
    """
    if replaced and path.name in ("", ".."):
        raise UserError(f"--out {path}: expected the name of a folder to make, such as {path / 'NAME'}")
    _try_folder(path, parents=parents)
    if not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isdir(path):
        raise UserError(f"--out {path} is not a folder: expected the name of a folder")
    if not force:
        raise UserError(f"{path} already exists: pass --force to overwrite it")
    others = foreign(path)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UserError(
            f"--force overwrites only a folder that `ncfmkit {made_by}` wrote, and {path} holds something else "
            f"({shown}): move that away, or choose another --out"
        )


def _try_folder(path: Path, *, parents: bool = False) -> None:
    """Writes to a file without a name in the folder of `path`: modes alone do not tell, nor do they see a full disk."""
    check_name(path)
    if len(os.fsencode(path.name)) > MOST_NAME_BYTES:
        raise UserError(f"--out {path}: the name is too long: expected at most {MOST_NAME_BYTES} bytes")
    folder = path.parent
    while parents and not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except FileNotFoundError:
        raise UserError(f"--out {path}: there is no folder {folder}: make it first") from None
    except NotADirectoryError:
        raise UserError(f"--out {path}: {folder} is not a folder") from None
    except OSError as error:
        raise UserError(f"--out {path}: cannot write in the folder {folder}: {error.strerror}") from None


def replace_folder(new: Path, target: Path) -> None:
    """Gives a finished folder its final name; a folder that has that name is deleted once the new one is in place."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    with interrupts.held():
        existed = os.path.lexists(target)
        if existed:
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if existed:
                os.rename(old, target)
            raise
        note_written(target)
        shutil.rmtree(old, ignore_errors=True)


def from_anywhere(path: str) -> str:
    """A path as an absolute one, for a run that is resumed from another folder; an address as it is."""
    return path if is_address(path) else os.path.abspath(path)


def is_address(data: str) -> bool:
    """Whether a text is an address such as `hf://me/birds` or `s3://bucket/train.tar`, not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", data) is not None


def check_name(path: str | Path) -> None:
    """Raises UserError unless a path is valid UTF-8: libraries take no other, and neither do manifests."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UserError(f"{shown}: a name that is not valid UTF-8: rename that file or folder") from None


def read_names(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text that are not empty, stripped; the mark that some editors put in front is no part of it.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is no such text.
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def bytes_in(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, while others may write there: what is gone meanwhile counts 0."""
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names) if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def safe_name(text: str) -> str:
    """A plain file name made of any text: ASCII letters, digits, dots, hyphens and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:LONGEST_NAME].strip("-._") or "set"


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """The last parts of the paths, where they tell the paths apart; else the whole path.

    Raises:
        UserError: a path is there twice.
    """
    twice = [path for path, count in Counter(map(os.path.normpath, paths)).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: name each one once")
    last = [Path(path).name or path for path in paths]
    return tuple(path if last.count(name) > 1 else name for path, name in zip(paths, last, strict=True))


def starts_as_safetensors(path: Path) -> bool:
    """Whether a file begins with the size of a JSON header and its opening brace, be the rest damaged or not."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return int.from_bytes(start[:8], "little") < LARGEST_HEADER and start[8:] == b"{"


def check_safetensors(path: Path, what: str) -> None:
    """Raises UserError if a file is something else by its name and its first bytes. It may still be damaged.

    Args:
        what: what it should be, for the message.
    """
    if path.suffix != ".safetensors" and not starts_as_safetensors(path):
        kind, advice = FOREIGN.get(path.suffix.lower(), (f"a {path.suffix or 'nameless'} file", ""))
        raise UserError(f"{path} is {kind}, not {what}: expected a .safetensors file{advice and f'; {advice}'}")


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal; read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def cache_dir() -> Path:
    """The folder named by the environment variable NCFMKIT_CACHE, else the user's cache folder. May not exist yet."""
    return Path(os.environ.get("NCFMKIT_CACHE") or platformdirs.user_cache_dir("ncfmkit"))


def writable(folder: Path) -> Path:
    """A folder of the cache, made where it is not there yet.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # modes alone do not tell: the file system may be read-only or full
            return folder
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be used ({error.strerror}): make it writable, {MOVE}"
        ) from None


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """A tensor's bytes (little-endian, row-major), not copied where they lie in order."""
    import torch

    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def digest(tensor: "torch.Tensor") -> str:
    """sha256 of a tensor's bytes (little-endian, row-major)."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def parse_bytes(text: str, what: str = "memory budget") -> int:
    """Bytes of a size such as `2GiB`, `512 MiB` or `800MB`; `what` it is the size of, for the message.

    Raises:
        UserError: not a size.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    if not found or found.group(2).upper() not in UNITS:
        raise UserError(f"{what} {text!r} is not a size: expected a number and a unit, such as 2GiB or 512MiB")
    return int(float(found.group(1)) * UNITS[found.group(2).upper()])


def format_bytes(count: float) -> str:
    """`1.5 GiB`, `312 MiB` or `20 KiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:{'.0f' if count / size >= 100 else '.3g'}} {unit}"
    return f"{count:.0f} B"
