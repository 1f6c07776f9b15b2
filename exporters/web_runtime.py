"""The files of onnxruntime-web that a page runs its model with: from a folder, from the cache, or by npm."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ncfmkit import in_use, interrupts
from ncfmkit.errors import UserError
from ncfmkit.files import UNFINISHED, cache_dir, locked, note_written, writable
from ncfmkit.progress import notice

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILE = f"{PACKAGE}-{VERSION}.tgz"  # as `npm pack` names it
NEEDED = (  # of its dist/: WebGPU and WebAssembly in one
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
CACHED = "web-runtime"  # folder of the cache
PACK = f"npm pack {PACKAGE}@{VERSION}"
LONGEST_REASON = 300  # characters of npm's message that are shown
PATIENCE = 1800  # seconds for npm: 33 MB at 150 kbit/s
ADDRESS = re.compile(r"(?:[A-Za-z][\w+.-]*:)?//(?:[^\s/@]*@)?([\w.-]*)\S*")  # with its host


@dataclass(frozen=True, kw_only=True)
class WebRuntime:
    name: str  # with its version
    files: dict[str, bytes]  # those of NEEDED


def find_runtime(given: str | os.PathLike[str] | None, *, download: bool) -> WebRuntime:
    """The runtime in a place that the user names, else in the cache, else by npm if `download` is set.

    What npm brings counts only if its digest is the one in this file; in a folder of the user's, any version does.

    Args:
        given: the folder of an unpacked package or its `dist/`, or the file that `npm pack` writes.

    Raises:
        UserError: it is in none of them, or the package is another one.
    """
    if given is not None:
        return _of_folder(Path(given)) if Path(given).is_dir() else _of_package(Path(given), f"--runtime {given}")
    cached = cache_dir() / CACHED / FILE
    if not cached.is_file() and not download:
        raise UserError(
            f"--to web needs {PACKAGE} {VERSION}: pass --download to fetch it by npm (33 MB), or --runtime with the "
            f"folder of an unpacked {PACKAGE} or the file that `{PACK}` writes"
        )
    hold = in_use.hold(cached)
    try:
        if not cached.is_file():
            with locked(writable(cached.parent) / f"{FILE}.lock"):
                if not cached.is_file():  # another process may have fetched it
                    _fetch(cached)
        return _of_package(cached, f"{cached} is damaged, delete it")
    finally:
        hold.close()


def _fetch(target: Path) -> None:
    """Has npm fetch the package into the cache. Under the lock of `target`.

    Raises:
        UserError: there is no npm, it fails or takes too long, or what it brings is not the package that this version
            was tested with.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--download fetches {PACKAGE} by npm, which is not on PATH: install Node.js, or run `{PACK}` on another "
            "machine and pass the file with --runtime"
        )
    notice(f"fetching {PACKAGE} {VERSION} by npm")
    folder = target.with_name(f"{UNFINISHED}{target.name}")
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    with interrupts.cleaning_up():
        try:
            folder.mkdir()
            command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
            if done.returncode != 0:
                said = _without_addresses(" ".join(done.stderr.decode(errors="replace").split()))[:LONGEST_REASON]
                raise UserError(f"`{PACK}` failed, and nothing was exported: {said or f'exit code {done.returncode}'}")
            _of_package(folder / FILE, f"`{PACK}` brought something else, which was not kept")
            os.replace(folder / FILE, target)
            note_written(target)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"`{PACK}` did not end within {PATIENCE} s, and nothing was exported: try again, or pass its file with "
                "--runtime"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _without_addresses(text: str) -> str:
    """What npm says, without addresses and their hosts: a registry may be private, and name a user and a password."""
    hosts = {host for host in ADDRESS.findall(text) if host}
    text = ADDRESS.sub("...", text)
    for host in sorted(hosts, key=len, reverse=True):
        text = text.replace(host, "...")
    return text


def _of_package(path: Path, else_says: str) -> WebRuntime:
    """What is needed of the package's file.

    Raises:
        UserError: it is not the one that this version was tested with.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
            got = f"sha512-{base64.b64encode(digest).decode()}"
            if got != INTEGRITY:
                raise UserError(
                    f"{else_says}: expected {PACKAGE} {VERSION}, {INTEGRITY}, got {got}; a folder of another version "
                    "can be given with --runtime"
                )
            file.seek(0)
            with tarfile.open(fileobj=file) as package:
                wanted = {f"package/dist/{name}": name for name in NEEDED}
                parts = {m.name: package.extractfile(m) for m in package if m.name in wanted}
                files = {wanted[name]: part.read() for name, part in parts.items() if part is not None}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: expected a folder or file of {PACKAGE}") from None
    return WebRuntime(name=f"{PACKAGE} {VERSION}", files=files)


def _of_folder(folder: Path) -> WebRuntime:
    """What is needed of an unpacked package, or of its `dist/`.

    Raises:
        UserError: a file is not there.
    """
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    missing = [name for name in NEEDED if not (dist / name).is_file()]
    if missing:
        raise UserError(
            f"--runtime {folder}: expected an unpacked {PACKAGE} or its dist/, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there"
        )
    version = _version(dist.parent / "package.json")
    if version != VERSION:
        notice(f"--runtime {folder}: {PACKAGE} {version}; ncfmkit was tested with {VERSION}")
    return WebRuntime(name=f"{PACKAGE} {version}", files={name: (dist / name).read_bytes() for name in NEEDED})


def _version(file: Path) -> str:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return str(about["version"]) if about["name"] == PACKAGE else "of unknown version"
    except (OSError, ValueError, KeyError, TypeError):
        return "of unknown version"
