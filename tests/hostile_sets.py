"""Valid sets of every format to be spoiled, and what a forger needs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import build_set
from mutations import Link, Tree

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.verify import verify
from ncfmkit.sets import package, set_file
from ncfmkit.sets.package import SUMS, Packing
from ncfmkit.sets.synthetic import SyntheticSet

OUTSIDE = "outside.txt"  # beside the set, in no package


@dataclass(frozen=True)
class Subject:
    """A valid set of 2 classes with 2 images of 4 x 4 pixels each: the one file, or a package that is all of that."""

    packed: bool
    set: dict[str, Any]

    def build(self) -> SyntheticSet:
        few = {"recipe": None, "seed": 0, "distill": {"steps": 1}}  # so that other keys are changed as often
        return build_set(classes=("cat", "dog"), size=4, settings=few, **self.set)


SUBJECTS = {
    "file": Subject(False, {}),
    "file-soft": Subject(False, {"soft": True, "kind": "bound", "budget": 7}),
    "file-bits": Subject(False, {"soft": True, "bits": 3, "channels": 1}),
    "file-coded": Subject(False, {"bits": 2, "smooth": True, "ipc": 8}),
    "file-chroma": Subject(False, {"bits": 2, "chroma": "4:2:0"}),
    "file-chroma-coded": Subject(False, {"bits": 2, "chroma": "4:2:0", "smooth": True, "ipc": 16}),
    "file-labels": Subject(False, {"soft": True, "label_bits": 4, "bits": 2}),
    "file-top": Subject(False, {"soft": True, "label_bits": 8, "top": 1}),
    "package": Subject(True, {"soft": True}),
}


def sums(tree: Tree) -> bytes:
    """SHA256SUMS that fits."""
    lines = [
        f"{hashlib.sha256(content if isinstance(content, bytes) else b'').hexdigest()}  {name}\n"
        for name, content in sorted(tree.items())
        if content is not None and name != SUMS and not name.startswith(".")
    ]
    return "".join(lines).encode()


def told_by(content: bytes | Link | None) -> dict[str, Any]:
    """The manifest in a file."""
    assert isinstance(content, bytes)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    told: dict[str, Any] = json.loads(header["__metadata__"]["ncfmkit"])
    return told


def with_metadata(content: bytes | Link | None, text: str) -> bytes:
    """The safetensors file with another manifest."""
    assert isinstance(content, bytes)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"ncfmkit": text}}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def load(path: Path) -> SyntheticSet:
    """Checked as by `ncfmkit verify`, then loaded."""
    if path.is_dir():
        try:
            verify(path)
        except CheckFailed as error:
            raise UserError(str(error)) from None
    return set_file.load(path)


def prepared(parent: Path, subject: Subject) -> tuple[Path, Path, SyntheticSet]:
    """The folder of a set, what is read in it, and what that gives; all libraries are loaded then."""
    root, result = parent / "set", subject.build()
    (parent / OUTSIDE).write_text("not to be read")
    if subject.packed:
        package.write(result, root, Packing(layout="safetensors"))
    else:
        root.mkdir()
        set_file.save(result, root / set_file.FILE_NAME)
    path = root if subject.packed else root / set_file.FILE_NAME
    return root, path, load(path)
