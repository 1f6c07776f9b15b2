"""The house: which folder may stand on which, and what loading a set imports."""

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import ncfmkit

ROOT = Path(__file__).resolve().parents[1]

BASE = {
    *(
        "_version",
        "errors",
        "extras",
        "interrupts",
        "config",
        "progress",
        "estimate",
        "rng",
        "files",
        "records",
        "in_use",
        "comparison",
        "assessment",
        "kept",
    ),
    *("distributed", "runtime", "recorded", "run", "run_records", "mosaic", "chroma", "augment", "recipes", "measured"),
}
ROOMS: dict[str, set[str]] = {  # what each may import beside itself; `base` are the modules above
    "base": set(),
    "real": {"base"},
    "networks": {"base"},
    "training": {"base"},  # images.py and training.py
    "distillation": {"base", "real", "networks", "training"},
    "scoring": {"base", "real", "networks", "training"},
    "reports": {"base"},
    "sets": {"base", "real", "training", "reports"},
    "exporters": {"base", "real", "networks", "training", "scoring", "reports", "sets"},
    "jobs": {"base", "real", "networks", "training", "distillation", "scoring", "reports", "sets", "exporters"},
    "cli": {"base", "real", "networks", "training", "scoring", "reports", "sets", "exporters", "jobs"},
}


def room_of(module: str) -> str:
    """The room of a module such as `ncfmkit.real.store`; `ncfmkit` itself, which gives out everything, is in none."""
    part = f"{module}.".split(".")[1]
    if part in BASE:
        return "base"
    return {"images": "training", "__main__": "cli"}.get(part, part)


def modules() -> list[tuple[str, Path]]:
    """Every module of the package, under the name that it installs as."""
    found = []
    for folder in ("ncfmkit", "cli", "exporters"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if folder == "ncfmkit" and parts[1] in ("cli", "exporters"):  # links to the folders above
                continue
            name = ".".join(parts if folder == "ncfmkit" else ("ncfmkit", *parts)).removesuffix(".__init__")
            found.append((name, file))
    return found


def imported(module: str, file: Path, names: set[str]) -> set[str]:
    """The modules of ncfmkit that a module imports, or names in a string to import late; types do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            found |= {home(origin, alias.name, names) for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ncfmkit":
            found.add(home("ncfmkit", node.attr, names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value.partition(":")[0]} & names - {"ncfmkit"}
    return {name for name in found if name.split(".")[0] == "ncfmkit"}


def home(origin: str, name: str, names: set[str]) -> str:
    """The module that `from origin import name` imports."""
    if f"{origin}.{name}" in names:
        return f"{origin}.{name}"
    return ncfmkit._HOMES.get(name, origin) if origin == "ncfmkit" else origin


def test_every_folder_stands_on_those_below() -> None:
    listed = modules()
    names = {name for name, _ in listed}
    wrong = [
        f"{name} imports {other}: {room_of(name)} may import {sorted(ROOMS[room_of(name)])}"
        for name, file in listed
        if name != "ncfmkit"
        for other in sorted(imported(name, file, names))
        if room_of(other) not in ROOMS[room_of(name)] | {room_of(name)}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rooms_stand_in_one_order() -> None:
    """A table with a circle in it would allow everything."""
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {room for room, below in ROOMS.items() if below <= done} - done
        assert ready, f"these stand on each other: {sorted(ROOMS.keys() - done)}"
        done |= ready


def test_every_folder_is_in_the_table() -> None:
    assert {room_of(name) for name, _ in modules() if name != "ncfmkit"} == ROOMS.keys()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ncfmkit.distillation.step", "import ncfmkit.sets.manifest"),
        ("ncfmkit.exporters.export", "def f():\n    from ncfmkit.jobs import distill"),
        ("ncfmkit.real.store", "from ncfmkit import training"),
        ("ncfmkit.sets.set_file", "from ncfmkit.distillation.loop import distill"),
        ("ncfmkit.sets.set_file", "from ncfmkit import distill"),
        ("ncfmkit.sets.set_file", "import ncfmkit"),
        ("ncfmkit.sets.set_file", "import ncfmkit.errors\nncfmkit.distill('digits')"),
        ("ncfmkit.sets.set_file", "from ..jobs import pack"),
        ("ncfmkit.sets.set_file", "from .. import jobs"),
        ("ncfmkit.sets.views.table", "from ...jobs.pack import pack"),
        ("ncfmkit.sets.set_file", "import_module('ncfmkit.jobs.pack')"),
        ("ncfmkit.sets.views.table", "MODULE = 'ncfmkit.jobs.pack:pack'"),
        ("ncfmkit.sets.set_file", "if TYPE_CHECKING:\n    pass\nelse:\n    import ncfmkit.jobs"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "wrong.py").write_text(code, encoding="utf-8")
    rooms = {room_of(other) for other in imported(name, tmp_path / "wrong.py", {n for n, _ in modules()})}
    assert rooms - ROOMS[room_of(name)] - {room_of(name)}


def test_loading_a_set_imports_little() -> None:
    """Neither the training loop, nor the real data's readers, nor what writes packages."""
    watched = ("ncfmkit", "pyarrow", "PIL", "matplotlib", "yaml")
    code = (
        "import sys, ncfmkit; ncfmkit.load(sys.argv[1]);"
        f"print(*sorted(m for m in sys.modules if m.split('.')[0] in {watched}))"
    )
    file = ROOT / "tests" / "data" / "single-gray.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True, cwd=ROOT)
    base = (
        "_version",
        "chroma",
        "config",
        "errors",
        "extras",
        "files",
        "images",
        "interrupts",
        "mosaic",
        "progress",
        "records",
    )
    sets = ("coding", "hub", "label_codes", "manifest", "pixels", "quantize", "set_file", "subset", "synthetic")
    assert set(done.stdout.split()) <= {"ncfmkit", "ncfmkit.sets", *(f"ncfmkit.{m}" for m in base)} | {
        f"ncfmkit.sets.{m}" for m in sets
    }
