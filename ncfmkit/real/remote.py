"""Files at an address that fsspec reads, such as `s3://`, `gs://` or `https://`: copied to the cache, then read there.

They are copied rather than read in place because a source is read several times: for its fingerprint, its labels, its
pictures. A copy that was cut short goes on where it stopped.
"""

import dataclasses
import glob
import hashlib
import json
import lzma
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from ncfmkit import interrupts
from ncfmkit.errors import UserError, cause
from ncfmkit.extras import import_optional
from ncfmkit.files import HUB, MOVE, cache_dir, check_name, format_bytes, is_address, locked, safe_name, writable
from ncfmkit.in_use import hold_until_exit
from ncfmkit.progress import Tracker, notice, plural, shortened_list, track
from ncfmkit.real.folders import is_noise, open_folder
from ncfmkit.real.listing import Request, Source
from ncfmkit.real.parquet import open_parquet
from ncfmkit.real.paths import expanded
from ncfmkit.real.shards import open_shards
from ncfmkit.real.store import check_space
from ncfmkit.records import Record

PART = 8 << 20  # bytes that are asked for at once
TRIES = 6  # for a part, before its file is given up
FIRST_PAUSE = 1.0  # seconds before a part is asked for again; doubled with each try
LISTING = "files.json"  # what was copied
READERS: dict[str, Callable[[Request], Source]] = {".parquet": open_parquet, ".tar": open_shards, ".zip": open_folder}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file: its place for fsspec, its name below the folder of copies, its bytes (None: not said).

    Its version changes when the file does, as far as the file system says.
    """

    path: str
    name: str
    size: int | None
    version: str


class Copies(Record):
    """What `files.json` says of copies.

    Attributes:
        address: where they are from.
        suffix: of their names, which says how they are read.
        content: the folder or glob to read, below the folder of the copies; None: not all of them are there.
        versions: of each whole copy, by name.
    """

    address: str
    suffix: str
    content: str | None
    versions: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Copies":
        """Those in a folder; none where nothing is, or a damaged file."""
        try:
            return cls.read(folder / LISTING)
        except UserError:
            return cls(address="", suffix="", content=None, versions={})


def is_remote(data: str) -> bool:
    """Whether a text is an address, but not one of the Hugging Face Hub."""
    return is_address(data) and not data.startswith(HUB)


def open_remote(request: Request) -> Source:
    """Parquet files, WebDataset shards or a zip of class folders; a file, folder, glob or braces.

    Raises:
        UserError: nothing there, no permission, a library is missing, the connection failed for good, or the files are
            not in the cache and `download` is not set.
    """
    folder = cache_dir() / "remote" / hashlib.sha256(request.data.encode()).hexdigest()[:32]
    hold_until_exit(folder)
    if request.download:
        _fetch(request.data, folder)
    about = Copies.of(folder)
    place = "" if about.content is None else os.path.join(glob.escape(str(folder)), about.content)
    found = glob.glob(place)
    if not found:
        raise UserError(f"{request.data} is not in the cache: pass --download to copy it there")
    return READERS[about.suffix](dataclasses.replace(request, data=found[0] if os.path.isdir(found[0]) else place))


def _fetch(data: str, folder: Path) -> None:
    """Copies what the cache lacks, or what is of another version there than at the address."""
    suffix, files, system = _listed(data)
    name = safe_name(PurePosixPath(data.split("*")[0].split("{")[0].rstrip("/")).name.removesuffix(suffix))
    content = writable(folder) / "content" / name
    with locked(folder / "lock"), _said_where(data, folder):
        before = Copies.of(folder).versions
        whole = {f.name: f.version for f in files if before.get(f.name) == f.version and _is_whole(content / f.name, f)}
        left = [file for file in files if file.name not in whole]
        if left:
            total = sum(file.size or 0 for file in left)
            notice(f"{data}: copying {plural(len(left), 'file')} ({format_bytes(total)}) to {content}")
            check_space(folder, total, "the copy")
        with track(f"copying {name}, MiB", max(1, sum(file.size or 0 for file in left) // MIB)) as bar:
            for file in left:
                _copy(system, data, file, content / file.name, bar)
                whole[file.name] = file.version
                Copies(address=data, suffix=suffix, content=None, versions=whole).write(folder / LISTING)
        for path in content.rglob("*"):  # what is no longer at the address
            if path.is_file() and path.relative_to(content).as_posix() not in {file.name for file in files}:
                path.unlink()
        place = content.relative_to(folder).as_posix()
        if suffix == ".zip":
            unpacked = _unpacked(content / files[0].name, folder / "unpacked" / files[0].version / name)
            place = glob.escape(unpacked.relative_to(folder).as_posix())
        elif (depth := len(PurePosixPath(files[0].name).parts)) > 1:
            place = "/".join([place, *["*"] * (depth - 1), f"*{suffix}"])
        Copies(address=data, suffix=suffix, content=place, versions=whole).write(folder / LISTING)


def _listed(data: str) -> tuple[str, list[RemoteFile], Any]:
    """The suffix, the files at an address, and the file system that has them."""
    fsspec = import_optional("fsspec", "remote", f"{data} is read by the library")
    try:
        system, _ = fsspec.core.url_to_fs(data.split("*")[0].split("{")[0])
        places: list[str] = []
        missing: list[str] = []
        for pattern in expanded(data):
            path = system._strip_protocol(pattern)
            if "*" in path:
                places += system.glob(path)
            elif not _suffix(path) and system.isdir(path):  # over HTTP it would read a file
                below = [path, f"{path.rstrip('/')}/data"]  # as in a folder on the disk
                inside = [system.find(folder, maxdepth=1) for folder in below if system.isdir(folder)]
                places += next((found for found in inside if any(map(_suffix, found))), inside[0])
            elif system.exists(path):
                places.append(path)
            else:
                missing.append(path)
        if places and missing:
            raise UserError(f"{data}: {missing[0]} is not there: leave it out of the braces, or put it there")
        by_suffix = {s: sorted({p for p in places if _suffix(p) == s}) for s in READERS}
        suffix = next((s for s, found in by_suffix.items() if found), None)
        if suffix is None:
            there = plural(len(places), "other file") if places else "nothing"
            raise UserError(f"{data}: expected .parquet, .tar or .zip files there, found {there}")
        if suffix == ".zip" and len(by_suffix[suffix]) > 1:
            raise UserError(f"{data}: expected one .zip of class folders, found {len(by_suffix[suffix])}")
        found = {path: _size_and_version(system, path) for path in by_suffix[suffix]}
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{data}: {error}") from None
    except Exception as error:  # each file system has its own, of HTTP clients too
        raise UserError(f"{data}: cannot list the files there: {type(error).__name__}: {cause(error)}") from error
    files, root = [], os.path.commonpath([os.path.dirname(path) for path in found])
    for path, (size, version) in found.items():
        check_name(path)
        name = PurePosixPath(os.path.relpath(path.split("?")[0], root))
        if name.is_absolute() or ".." in name.parts or "\\" in str(name):
            raise UserError(f"{data}: refusing the file name {str(name)!r}, which leads out of its folder")
        files.append(RemoteFile(path, str(name), size, version))
    names = [file.name for file in files]
    if len(set(names)) < len(names) or len({name.count("/") for name in names}) > 1:
        raise UserError(f"{data}: expected files of different names, in folders of one depth: {shortened_list(names)}")
    return suffix, files, system


def _suffix(path: str) -> str | None:
    """Of a file that is read; what follows a question mark in an address is no part of its name."""
    return next((suffix for suffix in READERS if path.split("?")[0].lower().endswith(suffix)), None)


@contextmanager
def _said_where(data: str, folder: Path) -> Iterator[None]:
    """A block that writes copies."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{data}: cannot write its copy in {folder}: {error.strerror or error}; free some space, {MOVE}"
        ) from None


def _size_and_version(system: Any, path: str) -> tuple[int | None, str]:
    """A file's bytes, if they are said, and a digest of what tells its versions apart."""
    info = system.info(path)
    about = [info.get("size"), str(system.ukey(path)), str(info.get("ETag"))]
    return info.get("size"), hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and (file.size is None or path.stat().st_size == file.size)


def _copy(system: Any, data: str, file: RemoteFile, to: Path, bar: Tracker) -> None:
    """Copies one file, from where an earlier copy stopped; it has its name once it is whole."""
    part = to.with_name(f".{to.name}.{file.version}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.is_file() and file.size is not None else 0
    with open(part, "r+b" if done else "wb") as out:
        out.truncate(min(done, file.size or 0))
        out.seek(0, os.SEEK_END)
        bar.advance(Fraction(out.tell(), MIB))
        for content in _parts(system, data, file, out.tell()):
            out.write(content)
            bar.advance(Fraction(len(content), MIB))
        out.flush()
        os.fsync(out.fileno())
    system.invalidate_cache()
    if _size_and_version(system, file.path)[1] != file.version:
        part.unlink()
        raise UserError(f"{data}: {file.name} changed while it was copied: run the command again")
    os.replace(part, to)
    interrupts.note_cached()


def _parts(system: Any, data: str, file: RemoteFile, start: int) -> Iterator[bytes]:
    """The content from byte `start` on, in parts; each is asked for again where the connection fails."""
    if file.size is None:
        yield _persistent(data, file, lambda: system.cat_file(file.path))
        return
    while start < file.size:
        end = min(start + PART, file.size)
        content = _persistent(data, file, lambda start=start, end=end: _part(system, file, start, end))  # type: ignore[misc]
        yield content
        start += len(content)


def _part(system: Any, file: RemoteFile, start: int, end: int) -> bytes:
    content: bytes = system.cat_file(file.path, start=start, end=end)
    if len(content) == file.size:  # a server that gives no parts
        return content[start:]
    if len(content) != end - start:
        raise OSError(f"asked for {end - start} bytes from byte {start} on, got {len(content)}")
    return content


def _persistent(data: str, file: RemoteFile, read: Callable[[], bytes]) -> bytes:
    for number in range(1, TRIES + 1):
        try:
            return read()
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"{data}: {file.name} cannot be read there: {cause(error)}") from error
        except Exception as error:  # each file system has its own, of HTTP clients too
            if number == TRIES:
                raise UserError(
                    f"{data}: copying {file.name} failed {TRIES} times ({type(error).__name__}: {cause(error)}); what "
                    "was copied is kept: run the command again to go on"
                ) from error
            time.sleep(FIRST_PAUSE * 2 ** (number - 1))
    raise AssertionError


# what zipfile raises for an archive that is damaged, encrypted, or of a kind that it does not know
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    NotImplementedError,
    UnicodeDecodeError,
    EOFError,
)


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder of what a zip holds; the only folder in it, where there is one. Those of other versions go."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(folder.parent.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        try:
            with zipfile.ZipFile(archive) as content:
                check_space(folder.parent, sum(info.file_size for info in content.infolist()), "what is in the zip")
                for info in content.infolist():  # the library keeps names inside the folder
                    content.extract(info, partial)
        except UNREADABLE as error:
            archive.unlink()
            raise UserError(
                f"{archive.name} is not a whole zip file that opens without a password ({error})"
            ) from error
        os.replace(partial, folder)
    inside = [path for path in folder.iterdir() if not (is_noise(path.name) or path.name == "__MACOSX")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
