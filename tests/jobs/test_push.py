"""`ncfmkit push`, and sets at `hf://`, with the real client and a Hub on this machine."""

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import torch
from commands import refused, succeeds
from conftest import build_set
from fake_hub import OWNER, READS, WRITES, FakeHub

import ncfmkit
from ncfmkit.errors import UserError
from ncfmkit.sets import package
from ncfmkit.sets.set_file import FILE_NAME
from ncfmkit.sets.synthetic import SyntheticSet

SOURCE = {"name": "tiny", "fingerprint": "ab" * 32, "train_images": 21, "license": "mit"}
ROOT = Path(__file__).resolve().parents[2]
TO = f"hf://{OWNER}/tiny"

pytestmark = [
    pytest.mark.usefixtures("own_folder"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of huggingface_hub's HTTP client
]


def packed(folder: Path, layout: str, **changes: Any) -> SyntheticSet:
    kept: dict[str, Any] = {"source": SOURCE, "soft": True}
    return package.write(build_set(**(kept | changes)), folder, package.Packing(layout=layout))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    packed(tmp_path / "package", "safetensors")
    return tmp_path / "package"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.running() as hub:
        yield hub


@pytest.fixture
def ask(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    """The library asks the Hub, with a token, and caches in a folder."""

    def with_token(token: str | None = WRITES, home: str = "home") -> FakeHub:
        fake_hub.ask(hub, tmp_path / home, token, monkeypatch)
        return hub

    return with_token


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in {*package.files_in(folder), package.SUMS}}


def assert_equal(one: SyntheticSet, other: SyntheticSet) -> None:
    assert one.manifest == other.manifest
    assert torch.equal(one.images, other.images)
    assert one.soft_labels is not None
    assert other.soft_labels is not None
    assert torch.equal(one.soft_labels, other.soft_labels)


@pytest.mark.parametrize(("layout", "private"), [("safetensors", True), ("png", False)])
def test_what_is_pushed_is_loaded(ask: Callable[..., FakeHub], tmp_path: Path, layout: str, private: bool) -> None:
    small = packed(tmp_path / "package", layout)
    hub = ask()
    done = ncfmkit.push(tmp_path / "package", TO, private=private)
    (repository,) = hub.repositories.values()
    there = content(tmp_path / "package")
    assert repository.files.keys() - {".gitattributes"} == there.keys()
    assert {name: repository.files[name] for name in there} == there
    assert len(repository.commits) == 2  # the Hub's own, and the one
    assert repository.private is private
    assert done.commit == repository.commits[-1][0]
    assert done.url == f"{hub.url}/datasets/{OWNER}/tiny"
    assert done.files == {name: len(file) for name, file in there.items()}
    ask(READS if private else None, home="elsewhere")
    assert_equal(ncfmkit.load(TO), small)
    assert_equal(ncfmkit.load(f"{TO}@{done.commit}"), small)
    assert ncfmkit.verify(TO).package


def test_loading_fetches_the_one_file(ask: Callable[..., FakeHub], folder: Path) -> None:
    hub = ask()
    ncfmkit.push(folder, TO)
    hub.requests.clear()
    ncfmkit.load(TO)
    assert {request.rsplit("/", 1)[1] for request in hub.requests if "/resolve/" in request} == {FILE_NAME}
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]


def test_a_dry_run_asks_nobody(hub: FakeHub, ask: Callable[..., FakeHub], folder: Path, monkeypatch: Any) -> None:
    ask(token=None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = succeeds("push", folder, TO, "--dry-run").stdout
    assert "private" in said
    assert all(name in said for name in content(folder))
    found = json.loads(succeeds("push", folder, TO, "--dry-run", "--public", "--json").stdout)
    assert found["files"] == {name: len(file) for name, file in content(folder).items()}
    assert (found["private"], found["url"], found["commit"]) == (False, None, None)
    assert hub.requests == []


@pytest.mark.parametrize("public", [False, True])
def test_the_command_in_a_process_of_its_own(hub: FakeHub, folder: Path, tmp_path: Path, public: bool) -> None:
    def run(*arguments: str, token: str | None) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = fake_hub.environment(hub, tmp_path / "home", token)
        command = [sys.executable, "-m", "ncfmkit", "-q", *arguments]
        return subprocess.run(command, env=kept | own, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("push", str(folder), TO, "--json", *(["--public"] if public else []), token=WRITES)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["commit"] == hub.repositories[f"{OWNER}/tiny"].commits[-1][0]
    assert hub.repositories[f"{OWNER}/tiny"].private is not public
    checked = run("verify", TO, token=None if public else READS)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"{TO}: tiny-ipc2 is intact; checked: SHA256SUMS" in checked.stdout


READ = """
import datasets, json, sys
for name in sys.argv[1:]:
    (split, rows), = datasets.load_dataset(name).items()
    label = "label" if "label" in rows.column_names else "cls"
    print(json.dumps([split, list(rows[label])]))
"""


@pytest.mark.slow
def test_the_datasets_library_loads_what_is_pushed(hub: FakeHub, ask: Callable[..., FakeHub], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    ask()
    layouts = ("parquet", "webdataset", "png")
    for layout in layouts:
        small = packed(tmp_path / layout, layout)
        ncfmkit.push(tmp_path / layout, f"hf://{OWNER}/{layout}")
    own = fake_hub.environment(hub, tmp_path / "elsewhere", READS)
    command = [sys.executable, "-c", READ, *(f"{OWNER}/{layout}" for layout in layouts)]
    done = subprocess.run(command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = ["train", small.decoded()[1].tolist()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected] * 3


def test_people_read_what_happened(ask: Callable[..., FakeHub], folder: Path) -> None:
    hub = ask()
    done = succeeds("push", folder, TO)
    commit = hub.repositories[f"{OWNER}/tiny"].commits[-1][0]
    assert f"{hub.url}/datasets/{OWNER}/tiny: {len(content(folder))} files, " in done.stdout
    assert f"private, commit {commit}" in done.stdout
    (line,) = done.stderr.splitlines()  # bars are for terminals
    assert re.fullmatch(rf"uploading {len(content(folder))} files, \S+ KiB, to {TO}", line)


def test_an_earlier_package_is_replaced_in_one_commit(ask: Callable[..., FakeHub], tmp_path: Path) -> None:
    hub = ask()
    packed(tmp_path / "earlier", "parquet", seed=1)
    ncfmkit.push(tmp_path / "earlier", TO)
    packed(tmp_path / "later", "webdataset")
    done = ncfmkit.push(tmp_path / "later", TO)
    repository = hub.repositories[f"{OWNER}/tiny"]
    assert done.deleted == ("data/train-00000-of-00001.parquet",)
    assert len(repository.commits) == 3
    there = content(tmp_path / "later")
    assert repository.files == there | {".gitattributes": repository.files[".gitattributes"]}
    assert hub.bodies[f"/api/datasets/{OWNER}/tiny/commit/main"][0]["value"]["parentCommit"] == repository.commits[1][0]
    again = ncfmkit.push(tmp_path / "later", TO)  # nothing to do
    assert (again.commit, len(repository.commits)) == (done.commit, 3)


@pytest.mark.parametrize("others", [{"model.bin": b"weights"}, {"README.md": b"mine"}])
@pytest.mark.parametrize("with_package", [False, True])
def test_what_is_not_of_a_package_is_not_replaced(
    ask: Callable[..., FakeHub], folder: Path, with_package: bool, others: dict[str, bytes]
) -> None:
    repository = ask().make("tiny", (content(folder) if with_package else {}) | others)
    before, (name,) = dict(repository.files), others
    if not (with_package and name == "README.md"):  # which is a file of the package, though changed
        with pytest.raises(UserError, match=rf"hf://me/tiny holds files that are not of a package \({name}\)"):
            ncfmkit.push(folder, TO)
        assert repository.files == before
    assert ncfmkit.push(folder, TO, force=True).deleted == (() if name == "README.md" else (name,))
    assert repository.files == content(folder) | {".gitattributes": before[".gitattributes"]}


@pytest.mark.parametrize(("is_private", "says"), [(True, "private: leave --public out"), (False, "public: pass --pub")])
def test_who_may_see_a_repository_is_not_changed(
    ask: Callable[..., FakeHub], folder: Path, is_private: bool, says: str
) -> None:
    repository = ask().make("tiny", {}, private=is_private)
    with pytest.raises(UserError, match=f"hf://me/tiny exists and is {says}"):
        ncfmkit.push(folder, TO, private=not is_private)
    assert len(repository.commits) == 1


@pytest.mark.parametrize(
    ("token", "to", "says"),
    [
        (None, TO, "hf://me/tiny: writing to the Hub needs a token, and there is none: log in with `hf auth login`"),
        ("hf_unknown", TO, r"the Hub does not accept the token \(.*Invalid credentials.*\): log in"),
        ("hf_with a space", TO, "the token for the Hub has a space or another character"),
        (READS, TO, r"the token does not permit that \(.*You don't have the rights.*\): use one that may write"),
        (WRITES, "hf://others/tiny", r"the token does not permit that .* the data sets of others"),
        (WRITES, "hf://me/a..b", "hf://me/a..b: HFValidationError: "),
    ],
)
def test_no_right_to_push(ask: Callable[..., FakeHub], folder: Path, token: str | None, to: str, says: str) -> None:
    hub = ask(token)
    message = refused("push", folder, to, says=says)
    assert token is None or token not in message
    assert not hub.repositories


@pytest.mark.parametrize(
    "to", ["me/tiny", "hf://tiny", "hf://me/tiny/data", "hf://datasets/tiny", "hf://me/tiny:x", ""]
)
def test_no_address(folder: Path, to: str) -> None:
    refused("push", folder, to, says="is not the address of a set on the Hub: expected hf://OWNER/NAME")


def test_only_the_newest_state_is_written(folder: Path) -> None:
    refused("push", folder, f"{TO}@v1", says="pushed to the newest state: leave @v1 out")


def test_only_whole_packages_with_a_license_are_pushed(ask: Callable[..., FakeHub], tmp_path: Path) -> None:
    hub = ask()
    packed(tmp_path / "unlicensed", "safetensors", source=SOURCE | {"license": None})
    refused("push", tmp_path / "unlicensed", TO, says="does not state the license .* --license mit")
    file = tmp_path / "unlicensed" / FILE_NAME
    for path in (file, tmp_path, tmp_path / "nothing"):
        refused("push", path, TO, says="is not a package: expected a folder that `ncfmkit pack` wrote")
    packed(tmp_path / "damaged", "safetensors")
    (tmp_path / "damaged" / "README.md").write_text("other")
    refused("push", tmp_path / "damaged", TO, says="README.md is damaged", code=1)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/datasets/me/tiny/commit", 412, "was changed by somebody else at the same time: push again"),
        ("/storage/", 403, r"the token does not permit that \(.*\): use one that may write to the data sets of me"),
        ("/api/repos/create", 402, r"hf://me/tiny: HfHubHTTPError: .*402.*\(refused to Bearer \*\*\*\)"),
    ],
)
def test_the_hub_refuses(ask: Callable[..., FakeHub], folder: Path, path: str, status: int, says: str) -> None:
    hub = ask()
    hub.failing[path] = status
    refused("push", folder, TO, says=says)
    with pytest.raises(UserError) as raised:
        ncfmkit.push(folder, TO)
    assert WRITES not in "".join(traceback.format_exception(raised.value))
    assert not [r for r in hub.repositories.values() if len(r.commits) > 1]


def test_files_that_the_hub_leaves_out_are_missed(ask: Callable[..., FakeHub], folder: Path) -> None:
    ask().make("tiny", {".gitignore": b"*.py"})
    with pytest.raises(UserError, match=r"not of a package \(.gitignore\)"):
        ncfmkit.push(folder, TO)
    with pytest.raises(
        UserError, match=r"hf://me/tiny lacks read_set\.py after the upload: does it have a \.gitignore"
    ):
        ncfmkit.push(folder, TO, force=True)


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("push", folder, TO, says=r"the library huggingface_hub, which does not import here .*the extra 'hub'")
    with pytest.raises(UserError, match="the extra 'hub'"):
        ncfmkit.load(TO)
