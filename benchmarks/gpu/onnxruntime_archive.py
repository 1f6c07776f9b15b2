"""Makes an archive of onnxruntime-gpu that is small enough to upload: with the code of one GPU architecture alone.

    python -m benchmarks.gpu.onnxruntime_archive onnxruntime_gpu-VERSION-....whl onnxruntime.tar.xz --architecture 90

The CUDA provider's library holds the same kernels for many architectures; those of the others are emptied where they
are, which compresses to nothing. TensorRT's provider, tools and headers are left out. The archive is for
`python -m benchmarks.gpu --packages`; CUDA's own libraries must come from the torch that is there.

Such a library keeps its kernels in the section .nv_fatbin: containers (u32 magic, u16 version, u16 header bytes, u64
bytes of what follows) of entries (u16 kind: 1 PTX, 2 machine code; u16 version, u32 header bytes, u64 bytes of code;
at 28 u32 architecture, 90 for compute capability 9.0). The driver picks an entry by its header.
"""

import argparse
import io
import lzma
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ncfmkit.errors import UserError
from ncfmkit.files import format_bytes
from ncfmkit.progress import notice

MAGIC = 0xBA55ED50
PTX, MACHINE_CODE = 1, 2
PRUNED = "libonnxruntime_providers_cuda.so"
LEFT_OUT = ("libonnxruntime.so", "libonnxruntime_providers_tensorrt", "onnxruntime/tools", "ThirdParty", "Privacy")


@dataclass(frozen=True)
class Entry:
    """One entry of a container: where it lies in the file, header included, and what it is for."""

    start: int
    stop: int
    kind: int
    architecture: int


def section(data: bytes | bytearray, name: str) -> tuple[int, int]:
    """Offset and size of a section of a 64-bit little-endian ELF file.

    Raises:
        UserError: it is no such file, or has no such section.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise UserError("expected a 64-bit little-endian ELF library")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    for row in rows:
        start = rows[names][4] + row[0]
        if bytes(data[start : data.index(b"\0", start)]) == name.encode():
            return row[4], row[5]
    raise UserError(f"the library has no section {name}")


def containers(data: bytes | bytearray) -> Iterator[tuple[int, list[Entry]]]:
    """The start of every container, with its entries."""
    at, length = section(data, ".nv_fatbin")
    end = at + length
    while at + 16 <= end:
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            at += 8  # containers are aligned to 8 bytes
            continue
        inner, stop, found = at + header, at + header + size, []
        while inner < stop:
            kind, _, head, code = struct.unpack_from("<HHIQ", data, inner)
            (architecture,) = struct.unpack_from("<I", data, inner + 28)
            found.append(Entry(inner, inner + head + code, kind, architecture))
            inner += head + code
        yield at, found
        at = stop


def prune(data: bytearray, architecture: int) -> int:
    """Empties what a GPU of that architecture does not run, in place; returns how many containers were pruned.

    A container keeps the newest machine code of the same generation that is no newer than the GPU, else the newest PTX
    that is no newer. One that has neither stays as it is.
    """
    pruned = 0
    for at, entries in list(containers(data)):
        code = [e for e in entries if e.kind == MACHINE_CODE and e.architecture // 10 == architecture // 10]
        runs = [e for e in code if e.architecture <= architecture]
        runs = runs or [e for e in entries if e.kind == PTX and e.architecture <= architecture]
        if not runs:
            continue
        newest = max(e.architecture for e in runs)
        kept = b"".join(bytes(data[e.start : e.stop]) for e in runs if e.architecture == newest)
        first, last = entries[0].start, entries[-1].stop
        data[first:last] = kept + bytes(last - first - len(kept))
        struct.pack_into("<Q", data, at + 8, len(kept))
        pruned += 1
    return pruned


def archive(wheel: Path, out: Path, architecture: int) -> int:
    """Writes the archive, whole or not at all; the same wheel gives the same bytes. Returns its size.

    Raises:
        UserError: the wheel has no CUDA provider, or none of its kernels runs on that architecture.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        with zipfile.ZipFile(wheel) as packed, lzma.open(part, "wb") as xz, tarfile.open(fileobj=xz, mode="w") as tar:
            names = sorted(n for n in packed.namelist() if not n.endswith("/") and not any(x in n for x in LEFT_OUT))
            if not any(n.endswith(PRUNED) for n in names):
                raise UserError(f"{wheel.name} has no {PRUNED}: expected a wheel of onnxruntime-gpu for Linux")
            for name in names:
                content = packed.read(name)
                if name.endswith(PRUNED):
                    library = bytearray(content)
                    if not prune(library, architecture):
                        raise UserError(f"{wheel.name} has no kernels for architecture {architecture}")
                    content = bytes(library)
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.onnxruntime_archive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("wheel", type=Path, help="a wheel of onnxruntime-gpu for the Python of the GPU's machine")
    parser.add_argument("out", type=Path, help="the archive to write, .tar.xz")
    parser.add_argument("--architecture", type=int, required=True, help="90 for compute capability 9.0")
    options = parser.parse_args()
    try:
        size = archive(options.wheel, options.out, options.architecture)
    except (UserError, OSError, zipfile.BadZipFile) as error:
        notice(f"error: {error}")
        return 2
    print(f"{options.out}: {format_bytes(size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
