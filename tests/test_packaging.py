"""What is installed is what the folders hold, and the command line goes by one name only."""

import email
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ncfmkit.exporters.providers import PACKAGES
from ncfmkit.extras import EXTRAS, install

ROOT = Path(__file__).resolve().parent.parent
# top-level folder -> the package that it installs as
HOMES = {"ncfmkit": "ncfmkit", "cli": "ncfmkit.cli", "exporters": "ncfmkit.exporters"}


@pytest.fixture(scope="module")
def setuptools_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def package_folders() -> dict[str, Path]:
    """Every package that the top-level folders hold, by the name under which it is imported."""
    found: dict[str, Path] = {}
    for home, package in HOMES.items():
        for file in (ROOT / home).rglob("*.py"):
            inside = file.parent.relative_to(ROOT / home).parts
            if not any((ROOT / home).joinpath(*inside[: i + 1]).is_symlink() for i in range(len(inside))):
                found[".".join([package, *inside])] = file.parent
    return found


def test_listed_packages_are_the_folders(setuptools_table: dict) -> None:
    packages = setuptools_table["packages"]
    assert len(packages) == len(set(packages))
    assert set(packages) == set(package_folders())


def test_every_package_has_an_init_file() -> None:
    missing = [name for name, folder in package_folders().items() if not (folder / "__init__.py").is_file()]
    assert not missing


def test_package_dir_maps_the_folders_that_exist(setuptools_table: dict) -> None:
    expected = {package: home for home, package in HOMES.items() if (ROOT / home).is_dir()}
    mapped = setuptools_table["package-dir"]
    assert {package: mapped.get(package) for package in expected} == expected
    assert set(mapped) <= set(setuptools_table["packages"])


def test_every_other_file_is_package_data(setuptools_table: dict) -> None:
    """What is no module, such as recipes, is installed as well."""
    data = setuptools_table["package-data"]
    packages = {folder: name for name, folder in package_folders().items()}
    found = {
        (packages[package], file.relative_to(package).as_posix())
        for folder in HOMES
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
        for package in [next(parent for parent in file.parents if parent in packages)]
    }
    assert found >= {("ncfmkit.recipes", "digits.toml"), ("ncfmkit.reports", "templates/layout.html")}
    missing = [(name, file) for name, file in found if not any(fnmatch(file, p) for p in data.get(name, []))]
    assert not missing


@pytest.mark.parametrize("home", [home for home in HOMES if home != "ncfmkit" and (ROOT / home).is_dir()])
def test_link_inside_the_library(home: str) -> None:
    link = ROOT / "ncfmkit" / home
    assert link.is_symlink()
    assert link.readlink() == Path("..") / home


@pytest.mark.parametrize("home", [home for home in HOMES if home != "ncfmkit" and (ROOT / home).is_dir()])
def test_short_name_is_refused(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=rf"import {HOMES[home]}"):
        importlib.import_module(home)
    assert home not in sys.modules


@pytest.fixture(scope="module")
def requirements() -> dict[str, list[Requirement]]:
    """By extra; the plain dependencies are those of `""`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"]} | project["optional-dependencies"]
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


@pytest.mark.parametrize("extra", EXTRAS)
def test_messages_name_the_packages_of_an_extra(requirements: dict[str, list[Requirement]], extra: str) -> None:
    machine = {"sys_platform": "linux", "platform_machine": "x86_64"}

    def packages(extra: str) -> set[str]:
        wanted = [r for r in requirements[extra] if r.marker is None or r.marker.evaluate(machine)]
        own = {str(Requirement(f"{r.name}{r.specifier}")) for r in wanted if r.name != "ncfmkit"}
        return own.union(*(packages(other) for r in wanted if r.name == "ncfmkit" for other in r.extras))

    assert {str(Requirement(package)) for package in EXTRAS[extra]} == packages(extra)
    assert "ncfmkit" not in install(extra)
    assert all(f'"{package}"' in install(extra) for package in EXTRAS[extra])


def test_constraints_pin_versions_that_the_ranges_admit(requirements: dict[str, list[Requirement]]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {pin.name: [s.version for s in pin.specifier if s.operator == "=="] for pin in pins}
    assert len(versions) == len(pins)
    untried = ("tensorrt", "tensorrt-rtx")
    ranges = [r for extra, rs in requirements.items() for r in rs if extra not in untried and r.name != "ncfmkit"]
    assert {r.name for r in ranges} == set(versions)
    wrong = [str(r) for r in ranges if not (len(versions[r.name]) == 1 and r.specifier.contains(versions[r.name][0]))]
    assert not wrong


@pytest.mark.parametrize(
    ("machine", "gpu"),
    [
        ({"sys_platform": "linux", "platform_machine": "x86_64"}, "onnxruntime-gpu"),
        ({"sys_platform": "darwin", "platform_machine": "arm64"}, "onnxruntime"),
    ],
)
def test_no_extra_brings_a_second_onnxruntime(
    requirements: dict[str, list[Requirement]], machine: dict[str, str], gpu: str
) -> None:
    """Installed together they overwrite each other."""
    runtimes = {
        extra: [r.name for r in rs if r.name in PACKAGES and (r.marker is None or r.marker.evaluate(machine))]
        for extra, rs in requirements.items()
    }
    expected = {"cpu": ["onnxruntime"], "gpu": [gpu]}
    assert runtimes == {extra: expected.get(extra, []) for extra in requirements}
    uses = {extra: {e for r in rs if r.name == "ncfmkit" for e in r.extras} for extra, rs in requirements.items()}
    assert {extra for extra, others in uses.items() if others & {"cpu", "gpu"}} == {"tensorrt"}


# what git does not track, and what serves the repository alone
NOT_IN_SDIST = ("__pycache__", "*.py[cod]", "*.egg-info", "PKG-INFO", ".*", "build", "dist", "runs", "gpu-results")


def copy_checkout(to: Path) -> None:
    """What git tracks, since the README's commands leave sets and models beside it; in an unpacked sdist, all of it."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        shutil.copytree(ROOT, to, symlinks=True, ignore=shutil.ignore_patterns(*NOT_IN_SDIST))
        return
    # the folder may belong to another user, as in a container
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of this folder, unpacked. Building it here would leave files."""
    folder = tmp_path_factory.mktemp("sdist")
    copy_checkout(folder / "copy")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    built = subprocess.run([sys.executable, "-c", build], cwd=folder / "copy", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def listing(folder: Path) -> set[str]:
    """Files and links below a folder, as a checkout and an sdist have in common."""
    ignored = shutil.ignore_patterns(*NOT_IN_SDIST)
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if not ignored("", list(parts)) and (path.is_symlink() or path.is_file()):
            found.add(path.relative_to(folder).as_posix())
    return found


def test_the_sdist_holds_what_its_tests_need(sdist: Path) -> None:
    assert listing(sdist) - {"setup.cfg"} == listing(sdist.parents[1] / "copy") - {"setup.cfg"}
    for home in HOMES.keys() - {"ncfmkit"}:
        assert (sdist / "ncfmkit" / home).readlink() == Path("..") / home
    environment = {"PYTHONPATH": str(sdist), "PATH": ""}
    command = [sys.executable, "-c", "from ncfmkit.cli import main; print(main.__file__)"]
    found = subprocess.run(command, cwd=sdist.parent, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).resolve() == (sdist / "cli" / "main.py").resolve()


def test_the_metadata_of_a_package_index(sdist: Path) -> None:
    about = email.message_from_string((sdist / "PKG-INFO").read_text(encoding="utf-8"))
    assert about["Name"] == "ncfmkit"
    for field in ("Version", "Summary", "Author", "License-Expression", "Keywords", "Project-URL", "Classifier"):
        assert about[field], field
    assert about["Description-Content-Type"] == "text/markdown"
    text = about.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert not [link for link in links if not link.startswith("https://")], "these lead nowhere on a package index"
    assert len(text) > 0.9 * len((ROOT / "README.md").read_text(encoding="utf-8"))
