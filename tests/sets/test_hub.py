"""Sets at `hf://`: addresses, downloads, what is said where there is none, and links in the cache."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_hub
import pytest
from commands import refused, succeeds
from conftest import build_set
from fake_hub import OWNER, WRITES, FakeHub

import ncfmkit
from ncfmkit.errors import UserError
from ncfmkit.sets import package, set_file
from ncfmkit.sets.hub import Address, local, parse_address

SOURCE = {"name": "tiny", "fingerprint": "ab" * 32, "train_images": 21, "license": "mit"}
AT = f"hf://{OWNER}/tiny"

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With a package, in a public repository; the client has no token."""
    package.write(build_set(), tmp_path / "package", package.Packing(layout="safetensors"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "package").iterdir()}
    with fake_hub.running() as hub:
        hub.make("tiny", files, private=False)
        fake_hub.ask(hub, tmp_path / "home", None, monkeypatch)
        yield hub


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://me/tiny", Address("me/tiny")),
        ("hf://datasets/me/tiny", Address("me/tiny")),
        ("hf://me/ti.n-y_1@v1.0", Address("me/ti.n-y_1", "v1.0")),
        ("hf://me/tiny@refs/pr/1", Address("me/tiny", "refs/pr/1")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["hf://", "hf://tiny", "hf://datasets/tiny", "hf://a/b/c", "hf://me/tiny@", "hf://ä/b"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(UserError, match=r"is not the address of a set on the Hub: expected hf://OWNER/NAME"):
        ncfmkit.load(text)


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert local("a/b") == Path("a/b")
    assert local(tmp_path, whole=True) == tmp_path
    Path("hf:/me").mkdir(parents=True)
    assert local("hf:/me") == Path("hf:/me")
    with pytest.raises(UserError, match="hf:/me/tiny: an address of the Hub has two slashes: pass it as text, not as"):
        ncfmkit.load(Path(AT))


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", AT],
        ["unpack", AT, "--out", "tiny.safetensors"],
        ["pack", AT, "--to", "safetensors", "--out", "again"],
        ["verify", AT],
    ],
)
def test_commands_take_addresses(hub: FakeHub, command: list[str]) -> None:
    shown = succeeds(*command).stdout
    assert AT in shown or "--out" in command
    succeeds(*[word.replace(AT, f"{AT}@main") for word in command], *(["--force"] if "--out" in command else []))


def test_jobs_take_addresses(hub: FakeHub) -> None:
    for job in (ncfmkit.evaluate, ncfmkit.train):
        hub.requests.clear()
        with pytest.raises(UserError, match="no data found"):  # which is looked for after the set
            job(AT, data="nothing")
        assert hub.requests


def test_unpacking_gives_the_file_itself(hub: FakeHub, tmp_path: Path) -> None:
    file, _ = ncfmkit.unpack(AT, out=tmp_path / "tiny.safetensors")
    assert not file.is_symlink()
    assert file.read_bytes() == hub.repositories[f"{OWNER}/tiny"].files[set_file.FILE_NAME]


def test_the_newest_state_is_fetched(hub: FakeHub) -> None:
    earlier = ncfmkit.load(AT).manifest
    repository = hub.repositories[f"{OWNER}/tiny"]
    first = repository.commits[-1][0]
    set_file.save(build_set(seed=1), "other.safetensors")
    repository.commit(repository.files | {set_file.FILE_NAME: Path("other.safetensors").read_bytes()})
    assert ncfmkit.load(AT).manifest != earlier
    assert ncfmkit.load(f"{AT}@{first}").manifest == earlier


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("nothing", None, "the Hub has no such data set, or it is private and there is no token: check the name, or"),
        ("nothing", WRITES, "the Hub has no such data set, or it is private and the token may not read it: check the"),
        ("tiny@v9", None, "hf://me/tiny@v9: there is no such revision: expected a branch, a tag or a commit after the"),
        ("photos", None, "hf://me/photos holds no synthetic set: expected a package that `ncfmkit push` uploaded"),
        ("tiny", "hf_wrong", "hf://me/tiny: the Hub does not accept the token"),
    ],
)
def test_nothing_to_load(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, token: str | None, says: str
) -> None:
    hub.make("photos", {"cat.txt": b""}, private=False)
    fake_hub.ask(hub, tmp_path / "home", token, monkeypatch)
    message = refused("unpack", f"hf://{OWNER}/{name}", says=says)
    assert token is None or token not in message


@pytest.mark.parametrize(("command", "code"), [("unpack", 2), ("verify", 1)])
def test_what_was_downloaded_is_checked(hub: FakeHub, command: str, code: int) -> None:
    files = hub.repositories[f"{OWNER}/tiny"].files
    files[set_file.FILE_NAME] = files[set_file.FILE_NAME][:-1] + b"x"
    refused(command, AT, says="is damaged", code=code)


def test_offline_the_cache_is_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ncfmkit.load(AT).manifest
    hub.make("other", {}, private=False)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ncfmkit.load(AT).manifest == small
    for command in ("unpack", "verify"):
        refused(command, "hf://me/other", says="hf://me/other: HF_HUB_OFFLINE is set, so the Hub is not asked, and")
    assert hub.requests == []


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.ask(FakeHub("http://127.0.0.1:9"), tmp_path / "home", WRITES, monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    package.write(build_set(source=SOURCE), tmp_path / "package", package.Packing(layout="safetensors"))
    for command in (["unpack", AT], ["verify", AT], ["push", tmp_path / "package", AT]):
        refused(*command, says=r"the Hub at http://127.0.0.1:9 cannot be reached \(.*\): check the connection")


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[str], Path]:
    """A package in a folder, as links to files in another."""
    package.write(build_set(), tmp_path / "package", package.Packing(layout="safetensors"))

    def linked(blobs: str) -> Path:
        snapshot = tmp_path / "repository" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / blobs).mkdir(parents=True)
        for number, path in enumerate(sorted((tmp_path / "package").iterdir())):
            shutil.copy(path, snapshot / blobs / str(number))
            os.symlink(f"{blobs}/{number}", snapshot / path.name)
        return snapshot

    return linked


def test_links_of_the_cache_are_files(cached: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached("../../blobs")
    assert package.sum_problems(snapshot) == []
    monkeypatch.chdir(snapshot)
    assert package.sum_problems(Path()) == []
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(snapshot.parents[2] / "package" / "README.md")
    assert package.sum_problems(snapshot) == ["README.md is not a file of its own (a link, a device)"]


@pytest.mark.parametrize("blobs", ["../blobs", "../../others", "../../blobs/deeper", "../../../repository/blobs/../bl"])
def test_other_links_are_not(cached: Callable[[str], Path], blobs: str) -> None:
    assert package.sum_problems(cached(blobs)) == ["SHA256SUMS is missing, or not such a file"]
