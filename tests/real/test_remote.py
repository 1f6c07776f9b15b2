"""Data at an address: copied once, whatever the connection does, and read like files on the disk."""

import http.server
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import succeeds
from source_files import class_folders, encoded, parquet, pixels, shard

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.files import cache_dir
from ncfmkit.jobs.cache import clean, entries
from ncfmkit.real import remote
from ncfmkit.real.opening import open_real
from ncfmkit.run import RunDirectory

fsspec = pytest.importorskip("fsspec")
LABELS = [0, 1, 1, 0, 1, 0, 0, 1]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Two train shards and a test shard, a Parquet file of each split, and a zip of class folders."""
    contents = [encoded(image) for image in pixels(8)]
    for name in ("train-000", "train-001", "test-000"):
        shard(tmp_path / "here" / "shards" / f"{name}.tar", contents, LABELS)
    (tmp_path / "here" / "table").mkdir()
    for name in ("train", "test"):
        parquet(tmp_path / "here" / "table" / f"{name}-0.parquet", contents, LABELS)
    class_folders(tmp_path / "birds" / "train", ("owl", "wren"))
    class_folders(tmp_path / "birds" / "test", ("owl", "wren"), seed=9)
    with zipfile.ZipFile(tmp_path / "here" / "birds.zip", "w") as archive:
        for file in sorted((tmp_path / "birds").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    return tmp_path / "here"


@pytest.fixture
def bucket(local: Path) -> Iterator[str]:
    """The same files in a file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/bucket/{p.relative_to(local)}": p.read_bytes() for p in local.rglob("*") if p.is_file()})
    yield "memory://bucket"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("shards/train-{000..001}.tar", "shards/train-{000..001}.tar"),
        ("shards", "shards"),
        ("shards/*.tar", "shards/*.tar"),
        ("table", "table"),
        ("table/train-0.parquet", "table/train-0.parquet"),
        ("birds.zip", "../birds"),
    ],
)
def test_data_at_an_address_are_those_on_the_disk(local: Path, bucket: str, address: str, path: str) -> None:
    here = open_real(str(local / path), DataSettings())
    there = open_real(f"{bucket}/{address}", DataSettings(), download=True)
    assert there.fingerprint == here.fingerprint
    np.testing.assert_array_equal(there.train.images, here.train.images)
    assert there.classes == here.classes
    # from then on the address is not asked
    fsspec.filesystem("memory").store.clear()
    assert open_real(f"{bucket}/{address}", DataSettings()).fingerprint == here.fingerprint


def test_nothing_is_fetched_unless_the_user_asks(bucket: str) -> None:
    with pytest.raises(UserError, match="memory://bucket/shards is not in the cache: pass --download"):
        open_real(f"{bucket}/shards", DataSettings())
    assert not list((cache_dir() / "remote").glob("*/*"))


def test_what_changed_at_the_address_is_fetched_again(local: Path, bucket: str) -> None:
    before = open_real(f"{bucket}/shards", DataSettings(), download=True)
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/shards/train-001.tar")
    contents = [encoded(image) for image in pixels(9, seed=5)]
    shard(local / "train-000.tar", contents, [*LABELS, 1])
    memory.put(str(local / "train-000.tar"), "/bucket/shards/train-000.tar")
    assert open_real(f"{bucket}/shards", DataSettings()).fingerprint == before.fingerprint
    after = open_real(f"{bucket}/shards", DataSettings(), download=True)
    assert len(after.train.images) == 9


def test_the_cache_lists_and_removes_copies(bucket: str) -> None:
    open_real(f"{bucket}/table", DataSettings(), download=True)
    (entry,) = entries("remote")
    assert entry.belongs_to == f"{bucket}/table"
    assert entry.bytes > 1000
    assert [what for _, what in clean([entry])] == ["in use"]  # by this process


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nothing", r"expected \.parquet, \.tar or \.zip files there, found nothing"),
        ("nothing/train-{000..003}.tar", r"expected \.parquet, \.tar or \.zip files there, found nothing"),
        ("notes", r"found 1 other file"),
        ("torn.zip", r"torn\.zip is not a whole zip file that opens without a password"),
        ("torn/train-{0..2}.tar", r"/bucket/torn/train-1\.tar is not there: leave it out of the braces"),
        ("torn/train-0.tar", r"train-0\.tar is not a whole, uncompressed tar file"),
    ],
)
def test_what_cannot_be_read_is_refused(bucket: str, address: str, says: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/notes/a.txt": b"a", "/bucket/torn.zip": b"PK", "/bucket/torn/train-0.tar": b"no tar" * 200})
    with pytest.raises(UserError, match=says):
        open_real(f"{bucket}/{address}", DataSettings(), download=True)


@pytest.mark.parametrize(
    ("address", "says"),
    [("nowhere://a/b.tar", "nowhere"), ("https:///b.tar", "https:///b.tar"), ("s3://a/b.tar", "s3://a/b.tar")],
)
def test_an_address_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, address: str, says: str) -> None:
    import builtins

    real_import = builtins.__import__

    def without_s3fs(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "s3fs":
            raise ImportError("no module s3fs")
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_s3fs)
    with pytest.raises(UserError, match=says):
        open_real(address, DataSettings(), download=True)


def test_a_zip_stays_in_its_folder(bucket: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, name in enumerate(("owl", "wren")):
            for image in range(2):
                archive.writestr(f"../../../{name}/{image}.png", encoded(pixels(1, seed=10 * number + image)[0]))
    fsspec.filesystem("memory").pipe({"/bucket/evil.zip": content.getvalue()})
    opened = open_real(f"{bucket}/evil.zip", DataSettings(holdout=0.5), download=True)
    assert opened.classes == ("owl", "wren")
    (of_address,) = (cache_dir() / "remote").glob("*/")
    pictures = list(tmp_path.rglob("?.png"))
    assert sum(path.is_relative_to(of_address / "unpacked") for path in pictures) == 4
    assert all(path.is_relative_to(of_address) or "birds" in path.parts for path in pictures)


def test_a_zip_that_unpacks_to_more_than_fits(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = {"the copy": True}
    monkeypatch.setattr(remote, "check_space", lambda home, needed, what: None if what in fits else _full(what))
    with pytest.raises(UserError, match="what is in the zip needs more"):
        open_real(f"{bucket}/birds.zip", DataSettings(), download=True)


def _full(what: str) -> None:
    raise UserError(f"{what} needs more")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, and breaks connections off."""

    daemon_threads = True

    def __init__(self, root: Path, *, most: int | None = None, ranges: bool = True, broken: int = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.most, self.ranges = root, most, ranges
        self.broken = broken  # answers that are broken off after `most` bytes, -1: all
        self.asked: list[tuple[str, int]] = []  # path and first byte
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        file = self.server.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content, start = file.read_bytes(), 0
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            part = content[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        else:
            part = content
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if wanted:
            self.server.asked.append((self.path, start))
        most = self.server.most
        if most is not None and len(part) > most and self.server.broken:
            self.server.broken -= 1
            part = part[:most]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, short pauses."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "PART", 2000)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off(local: Path, ranges: bool) -> None:
    here = open_real(str(local / "shards" / "train-{000..001}.tar"), DataSettings())
    with Server(local / "shards", most=700, ranges=ranges, broken=5) as server:
        there = open_real(f"{server.address}/train-{{000..001}}.tar", DataSettings(), download=True)
        server.shutdown()
    assert there.fingerprint == here.fingerprint


@pytest.mark.usefixtures("quick")
def test_a_copy_that_was_given_up_goes_on_where_it_stopped(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_real(str(local / "shards" / "train-{000..001}.tar"), DataSettings())
    with Server(local / "shards") as server:
        address = f"{server.address}/train-{{000..001}}.tar"
        whole, part = remote._part, 0

        def only_three(*args: object) -> bytes:
            nonlocal part
            part += 1
            if part > 3:
                raise ConnectionError("the cable is cut")
            return whole(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(remote, "_part", only_three)
        with pytest.raises(UserError, match=r"6 times \(ConnectionError: the cable is cut\); what was copied is kept"):
            open_real(address, DataSettings(), download=True)
        assert [path.stat().st_size for path in cache_dir().rglob("*.part")] == [6000]
        monkeypatch.setattr(remote, "_part", whole)
        server.asked.clear()
        there = open_real(address, DataSettings(), download=True)
        server.shutdown()
    assert there.fingerprint == here.fingerprint
    assert min(start for path, start in server.asked if path == "/train-000.tar") == 6000
    assert not list(cache_dir().rglob("*.part"))


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_gone(local: Path) -> None:
    server = Server(local / "shards")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"/train-000\.tar: (cannot list the files there|expected .* found nothing)"):
        open_real(f"{server.address}/train-000.tar", DataSettings(), download=True)


def test_a_run_keeps_the_address(bucket: str) -> None:
    from ncfmkit.real.arguments import DataArguments

    source = DataArguments(data=f"{bucket}/shards", download=True)
    assert source.recorded()["data"] == f"{bucket}/shards"
    source.check(None)  # type: ignore[arg-type]  # looks at no file system


@pytest.mark.slow
def test_an_s3_server(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3_ENDPOINT_URL": endpoint,
            "AWS_ENDPOINT_URL": endpoint,
        }.items():
            monkeypatch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="photos")
        for file in (local / "shards").iterdir():
            client.upload_file(str(file), "photos", f"v1/{file.name}")
        here = open_real(str(local / "shards"), DataSettings())
        for address in ("s3://photos/v1", "s3://photos/v1/*.tar"):
            assert open_real(address, DataSettings(), download=True).fingerprint == here.fingerprint
        with pytest.raises(UserError, match="s3://missing/x"):
            open_real("s3://missing/x", DataSettings(), download=True)
    finally:
        server.stop()
        fsspec.config.conf.pop("s3", None)


def test_a_damaged_listing_is_no_copy(bucket: str) -> None:
    before = open_real(f"{bucket}/table", DataSettings(), download=True)
    (listing,) = (cache_dir() / "remote").glob("*/files.json")
    listing.write_text(listing.read_text()[:50])
    with pytest.raises(UserError, match="is not in the cache"):
        open_real(f"{bucket}/table", DataSettings())
    assert open_real(f"{bucket}/table", DataSettings(), download=True).fingerprint == before.fingerprint


def test_folders_are_listed_as_on_the_disk(bucket: str, local: Path) -> None:
    memory = fsspec.filesystem("memory")
    content = (local / "table" / "train-0.parquet").read_bytes()
    memory.pipe({f"/bucket/nested/data/{name}-0.parquet": content for name in ("train", "test")})
    memory.pipe({f"/bucket/split/{name}/0.parquet": content for name in ("train", "test")})
    memory.pipe({"/bucket/nested/old/train-1.parquet": content, "/bucket/mixed/a/b/0.parquet": content})
    memory.pipe({"/bucket/mixed/0.parquet": content})
    assert len(open_real(f"{bucket}/nested", DataSettings(), download=True).train.images) == 8
    split = open_real(f"{bucket}/split/*/0.parquet", DataSettings(), download=True)
    assert split.test is not None
    assert open_real(f"{bucket}/split/*/0.parquet", DataSettings()).fingerprint == split.fingerprint
    with pytest.raises(UserError, match="found nothing"):
        open_real(f"{bucket}/split", DataSettings(), download=True)
    with pytest.raises(UserError, match="in folders of one depth"):
        open_real(f"{bucket}/mixed/{{0.parquet,a/b/0.parquet}}", DataSettings(), download=True)


@pytest.mark.parametrize("name", ["lock", "unpacked", "content"])
def test_names_that_the_cache_has_itself(bucket: str, local: Path, name: str) -> None:
    fsspec.filesystem("memory").pipe({f"/bucket/{name}.zip": (local / "birds.zip").read_bytes()})
    first, second = (open_real(f"{bucket}/{name}.zip", DataSettings(), download=True) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_a_zip_of_which_the_unpacking_was_cut_off(bucket: str, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, memory = f"{bucket}/birds.zip", fsspec.filesystem("memory")
    open_real(address, DataSettings(), download=True)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("owl", "wren"):
            for number, image in enumerate(pixels(6, seed=len(name))):
                for split in ("train", "test"):
                    archive.writestr(f"birds/{split}/{name}/{number}.png", encoded(image))
    memory.pipe({"/bucket/birds.zip": content.getvalue()})

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_unpacked", killed)
        with pytest.raises(KeyboardInterrupt):
            open_real(address, DataSettings(), download=True)
    with pytest.raises(UserError, match="is not in the cache"):
        open_real(address, DataSettings())
    assert len(open_real(address, DataSettings(), download=True).train.images) == 12


def test_a_file_that_changes_while_it_is_copied(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, whole = fsspec.filesystem("memory"), remote._part

    def changing(system: object, file: remote.RemoteFile, start: int, end: int) -> bytes:
        found = whole(system, file, start, end)
        memory.pipe({file.path: b"other" * 5000})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_part", changing)
        with pytest.raises(UserError, match=r"train-0\.parquet changed while it was copied: run the command again"):
            open_real(f"{bucket}/table/train-0.parquet", DataSettings(), download=True)
    assert not list(cache_dir().rglob("*.part"))


@pytest.mark.usefixtures("quick")
def test_a_server_without_ranges_gives_the_rest_too(local: Path) -> None:
    with Server(local / "shards", ranges=False) as server:
        system = fsspec.filesystem("http")
        path = f"{server.address}/train-000.tar"
        content = (local / "shards" / "train-000.tar").read_bytes()
        file = remote.RemoteFile(path, "train-000.tar", len(content), "")
        assert remote._part(system, file, 3000, 5000) == content[3000:]
        server.shutdown()


def test_a_run_goes_on_with_what_was_copied(bucket: str, tmp_path: Path) -> None:
    how = [
        "--set",
        "network.width=8",
        "--pool",
        "1",
        "--pool-epochs",
        "1",
        "--steps",
        "2",
        "--ipc",
        "1",
        "--repeats",
        "0",
    ]
    how += ["--device", "cpu", "--compile", "off", "--real-batch", "4", "--frequencies", "32"]
    succeeds("distill", f"{bucket}/shards", "--download", *how, "--out", tmp_path / "run")
    fsspec.filesystem("memory").store.clear()
    run = RunDirectory(tmp_path / "run")
    run.update(status="distilling")
    succeeds("distill", "--resume", run.path)
