"""What is installed is what the folders hold, and the command line goes by one name only."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

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


def test_recipes_are_package_data(setuptools_table: dict) -> None:
    assert setuptools_table["package-data"]["ncfmkit.recipes"] == ["*.toml"]
    assert list((ROOT / "ncfmkit" / "recipes").glob("*.toml"))


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


def test_constraints_pin_exact_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line.split("#")[0].strip() for line in lines]
    loose = [r for r in requirements if r and not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+( *;.*)?", r)]
    assert not loose


def test_pre_commit_hooks_are_local() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: *(\S+)", text) == ["local"]
    assert set(re.findall(r"language: *(\S+)", text)) == {"system"}
    assert "://" not in text
    for command in ("ruff check", "ruff format --check", "mypy"):
        assert f"entry: {command}" in text
