"""Reads many spoiled files, and reports what that costs and whether any reader fails in another way than it says.

    python -m benchmarks.hunts file --cases 50000                # random changes
    python -m benchmarks.hunts numpy --cases 50000 --atheris     # guided by coverage; needs `pip install atheris`

A case is a valid file with a few changes: of bytes anywhere, or of what lies within, put together again with right
lengths and checksums as a forger would do. Expected is a refusal with the reader's own error, or the content that was
there before; of a forged file, content that holds together. Case N of a seed is always the same, so
`--seed S --first N --cases 1` runs it again. Everything else, a message of
10,000 characters, 64 MiB or 5 seconds for a file is a fault: the file is
kept, and the exit code is 1.
"""

import argparse
import hashlib
import importlib
import io
import json
import math
import os
import pickletools
import random
import re
import resource
import string
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ncfmkit.errors import UserError

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
METADATA_KEY = "ncfmkit"
MOST_MEMORY = 64 << 20  # bytes that reading one file may allocate
MOST_SECONDS = 5.0  # of processor time for one file
TRACED = 50  # one case in so many is read under tracemalloc, which is slow
LONGEST_MESSAGE = 10_000  # characters
MOST_FAULTS = 10  # after which a hunt ends
REPORT_EVERY = 5000  # cases
INSTRUMENTED = [
    *("ncfmkit.records", "ncfmkit.sets.manifest", "ncfmkit.sets.numpy_reader", "ncfmkit.sets.set_file"),
    *("ncfmkit.sets.released.torch_file", "ncfmkit.sets.released.read"),
]
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "images", "\ud800", "\0", [], {}, [[]], [0, 255], [None], "x" * 200_000),
    *(0, -1, 1, 2, 3, 8, 255, 256, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 16384),
    *(0.0, -0.0, 0.5, 1.0, 1e39, 1e308, 5e-324, math.nan, math.inf, -math.inf),
)
ODD_OPCODES = (
    *(b"R", b"b", b"\x81", b"0", b"2", b"(", b"t", b")", b"]", b"}", b"N", b"a", b"s", b"u", b"Q", b"."),
    *(b"\x85", b"h\x00", b"K\x00", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"I9999\n"),
    *(b"\x8a\x05\x00\x10\xa5\xd4\xe8", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"X\x03\x00\x00\x00cpu", b"\x80\x05"),
    *(b"cos\nsystem\n", b"c__builtin__\neval\n", b"c__builtin__\nbytearray\n", b"\x93", b"\x8e" + b"\xff" * 8),
    *(b"ctorch.storage\nUntypedStorage\n", b"ctorch\nDoubleStorage\n", b"ccollections\nOrderedDict\n"),
)

Tree = dict[str, bytes]  # files of a case, by name


def changed(rng: random.Random, content: bytes) -> bytes:
    """After one to four changes of bytes at random places."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted((rng.randint(0, len(content)), rng.randint(0, len(content))))
        b = min(b, a + 64) if rng.random() < 0.5 else b
        new = rng.randbytes(rng.randint(1, 16))
        digits = [i for i, byte in enumerate(content) if byte in string.digits.encode()] if rng.random() < 0.2 else []
        if digits:
            a = rng.choice(digits)
            content = content[:a] + rng.choice(string.digits).encode() + content[a + 1 :]
            continue
        flipped = bytes([content[a] ^ (1 << rng.randrange(8))]) if a < len(content) else b""
        others = (flipped + content[a + 1 :], new + content[a + len(new) :], new + content[a:])
        ranges = (content[b:], content[:b][a:] + content[a:], bytes(b - a) + content[b:], b"")
        content = content[:a] + rng.choice(others + ranges)
    return content


def changed_json(rng: random.Random, value: Any) -> Any:
    """A JSON object after one to three changes inside it: values, keys, entries that go or come twice."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                container[key] = json.loads(json.dumps(rng.choice(ODD_VALUES)))
            case 1 if type(container[key]) in (int, float) and abs(container[key]) < 2**64:
                container[key] += rng.choice((-1, 1, 0.0))
            case 2:
                del container[key]
            case 3 if isinstance(container, dict):
                container[rng.choice(("", f"{key} ", "format", "pixels", "version"))] = container.pop(key)
            case _:
                other, there = rng.choice(places)
                if there in other if isinstance(other, dict) else there < len(other):
                    container[key] = json.loads(json.dumps(other[there]))
    return value


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def with_manifest(content: bytes, edit: Callable[[dict[str, Any], bytes], Any], digest_key: str | None) -> bytes:
    """A safetensors file whose manifest was edited; its digest, if it has one, fits again.

    Args:
        edit: gets the manifest and the bytes of the tensors.
    """
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    told = edit(json.loads(header["__metadata__"][METADATA_KEY]), data)
    if digest_key is not None and isinstance(told, dict):
        rest = {key: value for key, value in told.items() if key != digest_key}
        told[digest_key] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    header["__metadata__"][METADATA_KEY] = json.dumps(told, sort_keys=True)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_tensors(rng: random.Random, content: bytes, digest_key: str | None) -> bytes:
    """Other bytes of the tensors, of which the manifest has the digests."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    new = changed(rng, data)[: len(data)].ljust(len(data), b"\0")

    def edit(told: dict[str, Any], _: bytes) -> dict[str, Any]:
        for name in told["sha256"]:
            told["sha256"][name] = hashlib.sha256(new[slice(*header[name]["data_offsets"])]).hexdigest()
        return told

    return with_manifest(content[: 8 + length] + new, edit, digest_key)


def with_header(rng: random.Random, content: bytes) -> bytes:
    """Another header around the same tensors."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(changed_json(rng, json.loads(content[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def changed_safetensors(rng: random.Random, content: bytes, digest_key: str | None) -> tuple[bytes, bool]:
    """A changed file, and whether it was forged: put together again with what makes it look right."""
    match rng.randrange(6):
        case 0 | 1:
            return changed(rng, content), False
        case 2:
            return with_header(rng, content), True
        case 3:
            return with_tensors(rng, content, digest_key), True
        case _:
            return with_manifest(content, lambda told, _: changed_json(rng, told), digest_key), True


def changed_zip(rng: random.Random, content: bytes) -> bytes:
    """An archive of torch.save with other members or another pickle; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(members))
        name, data = members[place]
        match rng.randrange(8):
            case 0:
                members = rng.choice(([*members, (name, data)], members[:place] + members[place + 1 :] or members))
            case 1:
                members[place] = rng.choice(("../up", "/etc/passwd", "data/data.pkl", "a/0", "x")), data
            case 2 | 3:
                members[place] = name, changed(rng, data)
            case _:
                members = [(n, _changed_pickle(rng, c) if n.endswith(".pkl") else c) for n, c in members]
    file, how = io.BytesIO(), rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(file, "w", how) as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data, how)
    return file.getvalue()


def _changed_pickle(rng: random.Random, content: bytes) -> bytes:
    try:
        starts = [at or 0 for _, _, at in pickletools.genops(content)]
    except ValueError:
        return changed(rng, content)
    codes = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    place = rng.randrange(len(codes))
    match rng.randrange(4):
        case 0:
            codes.pop(place)
        case 1:
            codes.insert(place, rng.choice(codes))
        case 2:
            codes[place] = rng.choice(ODD_OPCODES)
        case _:
            codes.insert(place, rng.choice(ODD_OPCODES))
    return b"".join(codes)


class Target(ABC):
    """A reader, valid files for it, and how they are changed."""

    refuses: tuple[type[Exception], ...] = (UserError,)
    file = "case.bin"  # of targets with one

    @abstractmethod
    def seeds(self, folder: Path) -> Sequence[Tree]:
        """Valid files; `folder` is empty and may be written to."""

    @abstractmethod
    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        """A case, and whether it was forged."""

    @abstractmethod
    def read(self, folder: Path) -> Any:
        """What the files hold, in a form that can be compared, checked as far as a forger's content can be.

        Raises:
            one of `refuses`.
        """


class SetFile(Target):
    """The one file, by the library's own reader."""

    file = "set.safetensors"

    def seeds(self, folder: Path) -> Sequence[Tree]:
        return [{self.file: path.read_bytes()} for path in sorted(DATA.glob("*.safetensors"))]

    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        content, forged = changed_safetensors(rng, tree[self.file], "manifest_sha256")
        return {self.file: content}, forged

    def read(self, folder: Path) -> Any:
        set_file = importlib.import_module("ncfmkit.sets.set_file")
        found = set_file.load(folder / self.file)
        json.dumps(found.manifest.to_dict(), allow_nan=False)
        images, labels = found.decoded()
        assert len(images) == len(labels) == len(found.classes) * found.manifest.ipc.decoded
        parts = (found.images, found.labels, found.soft_labels)
        found_parts = [None if part is None else part.numpy().tobytes() for part in parts]
        with suppress(UserError):  # a record that nothing can be trained by: the set is whole
            found.manifest.training.settings()
        return found_parts


class NumpyReader(SetFile):
    """The one file, by the reader that needs only numpy."""

    def __init__(self) -> None:
        self.reader = importlib.import_module("ncfmkit.sets.numpy_reader")
        self.refuses = (self.reader.SetError,)

    def read(self, folder: Path) -> Any:
        found = self.reader.read(folder / self.file)
        images, labels = self.reader.decoded(found)
        assert len(images) == len(labels) == len(found.manifest["classes"]) * found.manifest["ipc"]["decoded"]
        parts = (found.images, found.labels, found.soft_labels)
        return [None if part is None else part.tobytes() for part in parts]


class ManifestText(SetFile):
    """The text of a manifest."""

    file = "manifest.json"

    def seeds(self, folder: Path) -> Sequence[Tree]:
        found = []
        for path in sorted(DATA.glob("*.safetensors")):
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            found.append({self.file: header["__metadata__"][METADATA_KEY].encode()})
        return found

    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        content = tree[self.file]
        if rng.random() < 0.3:
            return {self.file: changed(rng, content)}, False
        told = changed_json(rng, json.loads(content))
        told.pop("manifest_sha256", None)
        told["manifest_sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return {self.file: json.dumps(told, sort_keys=True).encode()}, True

    def read(self, folder: Path) -> Any:
        manifest = importlib.import_module("ncfmkit.sets.manifest")
        text = (folder / self.file).read_bytes().decode(errors="surrogateescape")
        found, wrong = manifest.read_manifest(text, "case")
        assert (found is None) == bool(wrong)
        if found is None:
            raise UserError("\n".join(wrong))
        return found.to_dict()


class ReleasedList(Target):
    """A released set: a list of two tensors, written by torch.save."""

    file = "data.pt"

    def seeds(self, folder: Path) -> Sequence[Tree]:
        torch = importlib.import_module("torch")
        images, labels = torch.arange(96.0).view(2, 3, 4, 4), torch.tensor([0, 1])
        soft = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float16)
        for i, content in enumerate(([images, labels], [images, soft], {"data": [[images, labels]] * 2})):
            torch.save(content, folder / f"{i}.pt")
        return [{self.file: path.read_bytes()} for path in sorted(folder.iterdir())]

    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        forged = rng.random() < 0.75
        return {self.file: (changed_zip if forged else changed)(rng, tree[self.file])}, forged

    def read(self, folder: Path) -> Any:
        read = importlib.import_module("ncfmkit.sets.released.read")
        found = read.read(folder / self.file, labels=None, max_bytes=1 << 20)
        parts = [part for part in (found.images, found.labels, found.soft_logits) if part is not None]
        assert len(parts) == 2
        assert len(parts[0]) == len(parts[1]) > 0
        assert sum(part.nbytes for part in parts) <= 8 * (folder / self.file).stat().st_size
        return [part.tobytes() for part in parts]


class Student(Target):
    """The file of a student."""

    file = "student.safetensors"

    def seeds(self, folder: Path) -> Sequence[Tree]:
        networks = importlib.import_module("ncfmkit.networks")
        records = importlib.import_module("ncfmkit.scoring.student_manifest")
        student_file = importlib.import_module("ncfmkit.scoring.student_file")
        network = networks.build("convnet", classes=2, channels=1, size=8, width=4, depth=2)
        manifest = records.StudentManifest.model_validate_json(
            json.dumps(
                {
                    **{"kind": "student", "tool": "ncfmkit", "network": {"name": "convnet", "width": 4, "depth": 2}},
                    **{"channels": 1, "size": 8, "mean": [0.5], "std": [0.25], "classes": ["a", "b"]},
                    **{"test_accuracy": 0.5, "trained_on": {"name": "tiny", "sha256": {}}},
                }
            )
        )
        student_file.save(network.state_dict(), manifest, folder / self.file)
        return [{self.file: (folder / self.file).read_bytes()}]

    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        content, forged = changed_safetensors(rng, tree[self.file], None)
        return {self.file: content}, forged

    def read(self, folder: Path) -> Any:
        torch = importlib.import_module("torch")
        network, manifest = importlib.import_module("ncfmkit.scoring.student_file").load(folder / self.file)
        images = torch.zeros(1, manifest.channels, manifest.size, manifest.size)
        with torch.no_grad():
            assert network(images).shape == (1, len(manifest.classes))
        return [value.numpy().tobytes() for value in network.state_dict().values()]


class Package(Target):
    """`ncfmkit.json` and `SHA256SUMS` of a package, as `load` and `verify` read them."""

    def seeds(self, folder: Path) -> Sequence[Tree]:
        package = importlib.import_module("ncfmkit.sets.package")
        set_file = importlib.import_module("ncfmkit.sets.set_file")
        package.write(
            set_file.load(DATA / "quantised-soft.safetensors"), folder / "p", package.Packing(layout="safetensors")
        )
        return [{path.name: path.read_bytes() for path in sorted((folder / "p").iterdir())}]

    def change(self, rng: random.Random, tree: Tree) -> tuple[Tree, bool]:
        package = importlib.import_module("ncfmkit.sets.package")
        name, new = rng.choice((package.FACTS, package.SUMS)), dict(tree)
        forged = name == package.FACTS and rng.random() < 0.7
        if forged:
            new[name] = json.dumps(changed_json(rng, json.loads(tree[name]))).encode()
        else:
            new[name] = changed(rng, tree[name])
        if name == package.FACTS and rng.random() < 0.5:
            forged = True
            lines = (
                f"{hashlib.sha256(data).hexdigest()}  {file}\n" for file, data in new.items() if file != package.SUMS
            )
            new[package.SUMS] = "".join(lines).encode()
        return new, forged

    def read(self, folder: Path) -> Any:
        package = importlib.import_module("ncfmkit.sets.package")
        wrong = package.sum_problems(folder)
        packing = package.packing_of(folder)
        if wrong:
            raise UserError("\n".join(wrong))
        found = importlib.import_module("ncfmkit.sets.set_file").load(folder)
        return [packing.layout, found.manifest.manifest_sha256]


TARGETS: dict[str, type[Target]] = {
    "file": SetFile,
    "numpy": NumpyReader,
    "manifest": ManifestText,
    "released": ReleasedList,
    "student": Student,
    "package": Package,
}


class Hunt:
    """Reads cases, and counts."""

    def __init__(self, target: Target, folder: Path, keep: Path) -> None:
        self.target, self.folder, self.keep = target, folder, keep
        self.cases = self.accepted = self.faults = 0
        self.messages: Counter[str] = Counter()
        self.slowest = self.peak = 0.0
        self.there: Tree = {}
        self.resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def case(self, tree: Tree, expected: Any, number: int) -> None:
        """One case; `expected` is what was there before, None where the case was forged."""
        self._write(tree)
        traced = self.cases % TRACED == 0
        self.cases += 1
        if traced:
            tracemalloc.start()
        start = time.process_time()
        problem = self._problem(expected)
        seconds = time.process_time() - start
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.peak = max(self.peak, peak)
            problem = problem or (f"{peak:,} bytes of memory" if peak > MOST_MEMORY else None)
        else:
            self.slowest = max(self.slowest, seconds)
            problem = problem or (f"{seconds:.1f} s of processor time" if seconds > MOST_SECONDS else None)
        if problem:
            self._fault(tree, problem, number)

    def _problem(self, expected: Any) -> str | None:
        try:
            found = self.target.read(self.folder)
        except self.target.refuses as error:
            message = str(error)
            self.messages[kind(message)] += 1
            return None if 0 < len(message) < LONGEST_MESSAGE else f"a message of {len(message):,} characters"
        except BaseException:
            return traceback.format_exc()
        self.accepted += 1
        return None if expected is None or found == expected else "damaged content was accepted"

    def _fault(self, tree: Tree, problem: str, number: int) -> None:
        self.faults += 1
        kept = self.keep / f"fault-{number}"
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in tree.items():
            (kept / name).write_bytes(content)
        print(f"FAULT in case {number}, kept in {kept}: {problem}", flush=True)

    def _write(self, tree: Tree) -> None:
        for name, content in tree.items():
            if self.there.get(name) is not content:
                (self.folder / name).write_bytes(content)
        self.there = tree

    def report(self, seconds: float) -> None:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.resident) / 1024
        print(
            f"{self.cases} cases, {sum(self.messages.values())} refused, {self.accepted} accepted, "
            f"{len(self.messages)} kinds of messages, {self.faults} faults; slowest {self.slowest * 1000:.0f} ms, "
            f"most memory for one file {self.peak / 2**20:.1f} MiB, process grown by {grown:.0f} MiB; {seconds:.0f} s",
            flush=True,
        )


def kind(message: str) -> str:
    """The words of a message without names, numbers and what is quoted."""
    return " ".join(re.sub(r"'[^']*'|\"[^\"]*\"|\S*\d\S*|\S*/\S*", "", message[:400]).split()[:12])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which the hunt ends")
    parser.add_argument("--keep", type=Path, default=Path("hunts"), help="folder for files that show a fault")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, for targets with one file")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # zipfile's, of names that come twice
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as folder:
        if options.atheris:
            atheris = importlib.import_module("atheris")
            with atheris.instrument_imports(include=INSTRUMENTED):
                target = TARGETS[options.target]()
                return guided(atheris, target, prepared(target, Path(made)), Path(folder), options)
        target = TARGETS[options.target]()
        return unguided(target, prepared(target, Path(made)), Path(folder), options)


def prepared(target: Target, folder: Path) -> list[tuple[Tree, Any]]:
    """The seeds and what they hold; all libraries are imported then."""
    made, read = folder / "made", folder / "read"
    made.mkdir()
    found = []
    for i, tree in enumerate(target.seeds(made)):
        home = read / str(i)
        home.mkdir(parents=True)
        for name, content in tree.items():
            (home / name).write_bytes(content)
        found.append((tree, target.read(home)))
    return found


def unguided(target: Target, seeds: list[tuple[Tree, Any]], folder: Path, options: argparse.Namespace) -> int:
    hunt, start = Hunt(target, folder, options.keep), time.monotonic()
    for number in range(options.first, options.first + options.cases):
        rng = random.Random(f"{options.seed}/{number}")
        tree, expected = rng.choice(seeds)
        new, forged = target.change(rng, tree)
        hunt.case(new, None if forged else expected, number)
        if hunt.cases % REPORT_EVERY == 0:
            hunt.report(time.monotonic() - start)
        if hunt.faults >= MOST_FAULTS or time.monotonic() - start > options.seconds:
            break
    hunt.report(time.monotonic() - start)
    return 1 if hunt.faults else 0


def guided(
    atheris: Any, target: Target, seeds: list[tuple[Tree, Any]], folder: Path, options: argparse.Namespace
) -> int:
    """Does not return: libFuzzer ends the process."""
    assert not isinstance(target, Package), "a package is several files"
    corpus, start = folder / "corpus", time.monotonic()
    case = folder / "case"
    case.mkdir()
    corpus.mkdir()
    for i, (tree, _) in enumerate(seeds):
        (corpus / str(i)).write_bytes(tree[target.file])
    hunt = Hunt(target, case, options.keep)

    def change(content: bytes, longest: int, seed: int) -> bytes:
        """Half of the cases are libFuzzer's own changes, the others ours, where the file can be taken apart."""
        rng = random.Random(seed)
        if rng.random() < 0.5:
            try:
                return target.change(rng, {target.file: bytes(content)})[0][target.file][:longest]
            except Exception:  # earlier changes have made it another kind of file
                pass
        mutated: bytes = atheris.Mutate(content, longest)
        return mutated

    def one(content: bytes) -> None:
        hunt.case({target.file: bytes(content)}, None, hunt.cases)
        seconds = time.monotonic() - start
        if hunt.cases % REPORT_EVERY == 0:
            hunt.report(seconds)
        if hunt.faults >= MOST_FAULTS or hunt.cases >= options.cases or seconds > options.seconds:
            hunt.report(seconds)
            os._exit(1 if hunt.faults else 0)

    flags = [f"-seed={options.seed + 1}", "-max_len=16384", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()
    return 1


if __name__ == "__main__":
    sys.exit(main())
