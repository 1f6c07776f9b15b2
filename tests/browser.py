"""A browser without a window, driven by its own protocol (DevTools) through a pipe; and a server of a folder."""

import base64
import fcntl
import functools
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WITHOUT_GPU = ("--disable-gpu",)
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
PATIENCE = 120  # seconds for an answer


def program() -> str | None:
    """The browser that there is here."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which this machine alone sees a folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Tab:
    """One page of a browser."""

    def __init__(self, *flags: str):
        found = program()
        assert found is not None
        self.errors: list[str] = []  # that the page logged, refusals of its security policy among them
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for fd in pair]
        theirs, self._write, self._read, answers = ends
        command = [found, *FLAGS, f"--user-data-dir={self._folder.name}", *flags, "about:blank"]

        def place() -> None:  # it reads and writes at these descriptors
            os.dup2(theirs, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(command, close_fds=False, preexec_fn=place, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(answers)
        self._buffer, self._count, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        limit = time.monotonic() + PATIENCE
        while (answer := self._next(limit)).get("id") != self._count:
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, limit - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, code: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"].get("description")
        return found["result"].get("value")

    def wait(self, code: str) -> None:
        """Returns once an expression is true in the page."""
        limit = time.monotonic() + PATIENCE
        while not self.run(code):
            assert time.monotonic() < limit, f"never true: {code}"
            time.sleep(0.05)

    def choose(self, selector: str, files: list[Path]) -> None:
        """Chooses files in a field of the page, as a user does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve()) for file in files])

    def screenshot(self, path: Path, *, width: int, dark: bool) -> None:
        """The whole page in a window of that width."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
