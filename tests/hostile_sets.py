"""Valid sets of every format to be spoiled, and what a forger needs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import build_set
from mutations import Link, Tree

from ncfmkit.sets import loading, package, set_file
from ncfmkit.sets.package import MANIFEST, SUMS, Packing
from ncfmkit.sets.synthetic import SyntheticSet

LICENSED: dict[str, Any] = {"source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": "mit"}}
OUTSIDE = "outside.txt"  # beside the set, in no package


@dataclass(frozen=True)
class Subject:
    """A valid set of 2 classes with 2 images of 4 x 4 pixels each."""

    layout: str | None  # none: the one file
    set: dict[str, Any]
    packing: dict[str, Any]

    def build(self) -> SyntheticSet:
        few = {"recipe": None, "seed": 0, "distill": {"steps": 1}}  # so that other keys are changed as often
        return build_set(classes=("cat", "dog"), size=4, settings=few, **self.set)


SUBJECTS = {
    "file": Subject(None, {}, {}),
    "file-soft": Subject(None, {"soft": True, "kind": "bound", "budget": 7}, {}),
    "file-bits": Subject(None, {"soft": True, "bits": 3, "channels": 1}, {}),
    "safetensors": Subject("safetensors", {"soft": True}, {}),
    "webdataset": Subject("webdataset", {"soft": True}, {}),
    "webdataset-decoded": Subject("webdataset", {"bits": 5}, {"images": "decoded", "encoding": "webp"}),
    "parquet": Subject("parquet", {"soft": True, **LICENSED}, {}),
    "png": Subject("png", {"soft": True, "channels": 1}, {}),
}


def sums(tree: Tree) -> bytes:
    """SHA256SUMS that fits."""
    lines = [
        f"{hashlib.sha256(content if isinstance(content, bytes) else b'').hexdigest()}  {name}\n"
        for name, content in sorted(tree.items())
        if content is not None and name != SUMS and not name.startswith(".")
    ]
    return "".join(lines).encode()


def manifest_of(tree: Tree) -> dict[str, Any]:
    """What a package or a file says about itself."""
    if isinstance(told := tree.get(MANIFEST), bytes):
        return json.loads(told)
    content = tree[set_file.FILE_NAME]  # a folder with this file alone is as good as the file
    assert isinstance(content, bytes)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["ncfmkit"])


def with_metadata(content: bytes | Link | None, text: str) -> bytes:
    """The safetensors file with another manifest."""
    assert isinstance(content, bytes)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"ncfmkit": text}}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def load(path: Path) -> SyntheticSet:
    """As `loading.load`, with the rule that a set comes without problems and problems without a set."""
    result, problems = loading.read(path)
    assert (result is None) == bool(problems)
    return set_file.require_intact(path, result, problems)


def prepared(parent: Path, subject: Subject) -> tuple[Path, Path, SyntheticSet]:
    """The folder of a set, what is read in it, and what that gives; all libraries are loaded then."""
    root, result = parent / "set", subject.build()
    (parent / OUTSIDE).write_text("not to be read")
    if subject.layout is None:
        root.mkdir()
        set_file.save(result, root / set_file.FILE_NAME)
    else:
        package.write(result, root, Packing(layout=subject.layout, **subject.packing))
    path = root / set_file.FILE_NAME if subject.layout is None else root
    return root, path, load(path)
