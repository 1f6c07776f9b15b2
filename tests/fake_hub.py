"""A Hugging Face Hub on the loopback interface, of which the real client asks: data set repositories with commits.

It answers as the Hub does where the client depends on it: status codes and error headers, upload modes, LFS uploads to
another address, redirects of downloads, ndjson commits.
"""

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

OWNER, WRITES, READS = "me", "hf_writes", "hf_reads"  # an account and its tokens
LFS = (".safetensors", ".parquet", ".tar", ".png")
Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, Files]] = field(default_factory=list)  # id and content, the newest last

    def commit(self, files: Files) -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((name, files))
        return name

    @property
    def files(self) -> Files:
        return self.commits[-1][1]


@dataclass
class FakeHub:
    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    requests: list[str] = field(default_factory=list)  # method and path
    tokens: set[str | None] = field(default_factory=set)  # that came with requests to the Hub itself
    bodies: dict[str, Any] = field(default_factory=dict)  # JSON, the last by path
    failing: dict[str, int] = field(default_factory=dict)  # status codes by the beginning of a path

    def make(self, name: str, files: Files, *, private: bool = True) -> Repository:
        repository = self.repositories[f"{OWNER}/{name}"] = Repository(private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"} | files)
        return repository


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            for start, status in self.hub.failing.items():
                if path.startswith(start):
                    raise Refused(status, message=f"refused to {self.headers.get('Authorization')}")
            status, headers, content = self._content(path, parse_qs(parts.query), body)
        except Refused as refused:
            status, headers, content = refused.status, refused.headers, json.dumps({"error": str(refused)}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _content(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
        hub = self.hub
        if path.startswith("/storage/"):  # another host in reality, which gets no token
            oid = path.removeprefix("/storage/")
            assert self.headers.get("Authorization") is None
            if self.command == "PUT":
                assert hashlib.sha256(body).hexdigest() == oid
                hub.objects[oid] = body
            return 200, {}, hub.objects.get(oid, b"")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.tokens.add(token)
        if token not in (None, WRITES, READS):
            raise Refused(401, message="Invalid credentials in Authorization header")
        if path.startswith("/api/") and body:
            hub.bodies[path] = [json.loads(line) for line in body.splitlines()]
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(token, json.loads(body))
        if path.startswith("/api/datasets/"):
            return self._api(token, *path.split("/", 5)[3:], query=query, body=body)
        owner, name, *rest = path.removeprefix("/datasets/").split("/", 4)
        if rest[:2] == ["info", "lfs"]:
            return self._lfs(json.loads(body))
        repository = self._repository(token, f"{owner}/{name}")
        commit, files = self._at(repository, rest[1])
        return self._file(commit, files, "/".join(rest[2:]))

    def _create(self, token: str | None, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        if token is None:
            raise Refused(401, message="Invalid username or password.")
        if token != WRITES or asked["organization"] != OWNER:
            raise Refused(403, message=f"You don't have the rights to create a dataset under {asked['organization']!r}")
        if name in self.hub.repositories:
            raise Refused(409, message="You already created this dataset repo")
        self.hub.make(asked["name"], {}, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return _json({"url": f"{self.hub.url}/datasets/{name}"})

    def _repository(self, token: str | None, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token is None):
            if token is None:
                raise Refused(401, message="Invalid username or password.")
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repository

    def _at(self, repository: Repository, revision: str) -> tuple[str, Files]:
        for commit, files in reversed(repository.commits):
            if revision in ("main", commit):
                return commit, files
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _api(
        self, token: str | None, owner: str, name: str, rest: str = "", *, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        what, _, after = rest.partition("/")
        repository = self._repository(token, f"{owner}/{name}")
        if what in ("", "revision"):
            commit, files = self._at(repository, after or "main")
            siblings = [{"rfilename": path} for path in files]
            about = {"id": f"{owner}/{name}", "sha": commit, "private": repository.private, "siblings": siblings}
            return _json(about)
        if what == "tree":
            revision, _, inside = after.rstrip("/").partition("/")
            return _json(
                _listed(self._at(repository, revision)[1], inside, query.get("recursive") in (["True"], ["true"]))
            )
        if token != WRITES:
            raise Refused(403, message="You don't have the rights to write to this repository")
        if what == "preupload":
            return _json({"files": [_mode(repository, file["path"]) for file in json.loads(body)["files"]]})
        assert what == "commit"
        return self._commit(repository, f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def _commit(
        self, repository: Repository, name: str, lines: list[dict[str, Any]]
    ) -> tuple[int, dict[str, str], bytes]:
        files = dict(repository.files)
        header = lines[0]["value"]
        if header.get("parentCommit", repository.commits[-1][0]) != repository.commits[-1][0]:
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        commit = repository.commit(files)
        return _json({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{commit}", "commitOid": commit})

    def _lfs(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        answers = []
        for wanted in asked["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}
            answers.append(answer)
        return _json({"transfer": "basic", "objects": answers})

    def _file(self, commit: str, files: Files, path: str) -> tuple[int, dict[str, str], bytes]:
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, entry = files[path], _entry(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            return 200, headers, content
        oid = entry["lfs"]["oid"]
        self.hub.objects[oid] = content
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return 302, headers | {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{oid}"}, b""


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _listed(files: Files, inside: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders in a folder, or below it."""
    start, found = f"{inside}/" if inside else "", dict[str, dict[str, Any]]()
    for path, content in files.items():
        names = path.removeprefix(start).split("/")
        if path.startswith(start) and (recursive or len(names) == 1):
            found[path] = _entry(path, content)
        for depth in range(1, len(names) if recursive else min(2, len(names))):
            folder = start + "/".join(names[:depth])
            if path.startswith(start):
                found[folder] = {"type": "directory", "path": folder, "oid": "0"}
    if not found:
        raise Refused(404, "EntryNotFound", f"{inside} does not exist")
    return list(found.values())


def _mode(repository: Repository, path: str) -> dict[str, Any]:
    """How a file is to be uploaded; `.gitignore` stands for one that names Python files."""
    mode = {
        "path": path,
        "uploadMode": "lfs" if path.endswith(LFS) else "regular",
        "shouldIgnore": ".gitignore" in repository.files and path.endswith(".py"),
    }
    if path in repository.files:
        entry = _entry(path, repository.files[path])
        mode["oid"] = entry.get("lfs", entry)["oid"]
    return mode


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as a listing has it; git's digest of its content, or of the pointer to it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if path.endswith(LFS):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
    entry["oid"] = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    return entry


@contextmanager
def running() -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: FakeHub, home: Any, token: str | None) -> dict[str, str]:
    """What a process needs to ask this Hub, in plain HTTP, with a cache of its own."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **({} if token is None else {"HF_TOKEN": token}),
    }


def ask(hub: FakeHub, home: Any, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As :func:`environment`, for the library in this process, whether it is imported already or not."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    # its handler writes to the stderr that was there when it was first imported
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [])
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
