"""Where the files of onnxruntime-web come from: by npm only if asked, and only the package that is pinned."""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
from commands import succeeds

from ncfmkit import in_use
from ncfmkit.errors import UserError
from ncfmkit.exporters import web_runtime
from ncfmkit.exporters.web_runtime import FILE, NEEDED, VERSION, find_runtime
from ncfmkit.files import cache_dir
from ncfmkit.jobs.cache import clean, entries

NPM = """#!{python}
import os, shutil, sys
print(*sys.argv[1:], file=open({log!r}, "a"))
{does}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as `npm pack` writes it, which the pinned digest is of."""
    path = tmp_path / "there" / FILE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        for name in ("package/package.json", "../evil.txt", *(f"package/dist/{name}" for name in (*NEEDED, "ort.js"))):
            info, content = tarfile.TarInfo(name), f"this is {name}".encode()
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    digest = hashlib.sha512(path.read_bytes()).digest()
    monkeypatch.setattr(web_runtime, "INTEGRITY", f"sha512-{base64.b64encode(digest).decode()}")
    return path


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Path:
    """A program `npm`, alone on PATH; returns the file with the arguments of its calls."""
    log = folder / "calls"
    (folder / "npm").write_text(NPM.format(python=sys.executable, log=str(log), does=does))
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return log


def test_npm_is_called_once_and_only_if_asked(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_npm(tmp_path, monkeypatch, f"shutil.copy({str(package)!r}, '.')")
    with pytest.raises(UserError, match=rf"onnxruntime-web {re.escape(VERSION)}: pass --download .*or --runtime"):
        find_runtime(None, download=False)
    assert not log.exists()
    assert not cache_dir().exists()
    first = find_runtime(None, download=True)
    assert log.read_text() == f"pack onnxruntime-web@{VERSION} --ignore-scripts\n"
    assert first.name == f"onnxruntime-web {VERSION}"
    assert first.files == {name: f"this is package/dist/{name}".encode() for name in NEEDED}
    assert find_runtime(None, download=False) == find_runtime(None, download=True) == first
    assert len(log.read_text().splitlines()) == 1
    assert not (tmp_path / "evil.txt").exists()


def test_another_package_is_not_kept(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, f"open({FILE!r}, 'wb').write(open({str(package)!r}, 'rb').read() + b' ')")
    with pytest.raises(UserError, match=r"brought something else, which was not kept: expected .* got sha512-"):
        find_runtime(None, download=True)
    assert [path.name for path in (cache_dir() / web_runtime.CACHED).iterdir() if path.suffix != ".lock"] == []


def test_a_damaged_cache_is_not_used(package: Path) -> None:
    cached = cache_dir() / web_runtime.CACHED / FILE
    cached.parent.mkdir(parents=True)
    cached.write_bytes(package.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"\.tgz is damaged, delete it"):
        find_runtime(None, download=False)


def test_npm_that_fails_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, "sys.exit('no network\\n here')")
    with pytest.raises(UserError, match=r"`npm pack .*` failed, and nothing was exported: no network here$"):
        find_runtime(None, download=True)
    (tmp_path / "npm").unlink()
    with pytest.raises(UserError, match=r"npm, which is not on PATH: install Node\.js, or run `npm pack .*--runtime"):
        find_runtime(None, download=True)


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        (
            "404 Not Found - GET https://me:secret@registry.example:8443/onnxruntime-web - no",
            "404 Not Found - GET ... - no",
        ),
        ("to http://registry.example/x, getaddrinfo ENOTFOUND registry.example", "to ... getaddrinfo ENOTFOUND ..."),
        ("`_auth` must be renamed to `//registry.example/:_auth`", "`_auth` must be renamed to `..."),
        ("x " * 140 + "https://me:" + "secret" * 9 + "@registry.example", "x " * 140 + "..."),
    ],
)
def test_what_npm_says_is_shown_without_addresses(
    says: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path, monkeypatch, f"sys.exit({says!r})")
    with pytest.raises(UserError) as caught:
        find_runtime(None, download=True)
    assert str(caught.value).endswith(f"nothing was exported: {shown}")


def test_npm_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_runtime, "PATIENCE", 0.5)
    fake_npm(tmp_path, monkeypatch, "import time; time.sleep(20)")
    with pytest.raises(UserError, match=r"`npm pack .*` did not end within 0\.5 s, and nothing was exported"):
        find_runtime(None, download=True)
    assert list((cache_dir() / web_runtime.CACHED).glob(".tmp-*")) == []


def killed_while_fetching() -> Path:
    """What a process leaves that is killed while npm works."""
    folder = cache_dir() / web_runtime.CACHED / f".tmp-{FILE}"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"part")
    return folder


def test_the_next_fetch_removes_what_a_killed_one_left(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = killed_while_fetching()
    fake_npm(tmp_path, monkeypatch, f"assert not os.listdir(); shutil.copy({str(package)!r}, '.')")
    find_runtime(None, download=True)
    assert not folder.exists()


def test_the_cache_command_removes_what_a_killed_fetch_left() -> None:
    folder = killed_while_fetching()
    (listed,) = entries("runtime")
    assert listed.belongs_to == f"onnxruntime-web-{VERSION}, for `ncfmkit export --to web`, not finished"
    held = in_use.hold(folder.with_name(FILE))  # as it is while npm works
    assert [outcome for _, outcome in clean([listed])] == ["in use"]
    held.close()
    assert [outcome for _, outcome in clean([listed])] == ["removed"]
    assert not folder.exists()


def test_a_place_that_the_user_names(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_npm(tmp_path, monkeypatch, "sys.exit(1)")
    expected = find_runtime(package, download=True)
    unpacked = tmp_path / "unpacked"
    with tarfile.open(package) as file:
        for name in NEEDED:
            file.extract(f"package/dist/{name}", unpacked, filter="data")
    root = unpacked / "package"
    (root / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": VERSION}))
    assert find_runtime(root, download=False) == find_runtime(root / "dist", download=False) == expected
    assert capsys.readouterr().err == ""
    (root / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": "1.0.0"}))
    assert find_runtime(root, download=False).name == "onnxruntime-web 1.0.0"
    assert f"onnxruntime-web 1.0.0; ncfmkit was tested with {VERSION}" in capsys.readouterr().err
    (root / "package.json").write_text("[]")
    assert find_runtime(root, download=False).name == "onnxruntime-web of unknown version"
    (root / "dist" / NEEDED[2]).unlink()
    with pytest.raises(UserError, match=rf"--runtime .*package: expected .* but {re.escape(NEEDED[2])} is not there"):
        find_runtime(root, download=False)
    assert not (tmp_path / "calls").exists()


def test_the_cache_command_lists_and_removes_it(package: Path) -> None:
    cached = cache_dir() / web_runtime.CACHED / FILE
    cached.parent.mkdir(parents=True)
    os.replace(package, cached)
    shown = succeeds("cache", "--kind", "runtime").stdout
    assert f"onnxruntime-web-{VERSION}, for `ncfmkit export --to web`" in shown
    succeeds("cache", "--kind", "runtime", "--clean")
    assert not cached.exists()


def test_the_pinned_digest_is_one() -> None:
    kind, _, digest = web_runtime.INTEGRITY.partition("-")
    assert kind == "sha512"
    assert len(base64.b64decode(digest, validate=True)) == 64
