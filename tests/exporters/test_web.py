"""A page of an exported model: what the folder holds, hostile class names, what is overwritten, what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, refused, succeeds
from conftest import build_real, write_student
from pages import Page

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import parity, web, web_runtime
from ncfmkit.exporters.sessions import open_session

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("traced_once", "own_folder")

HOSTILE = ("</script><script>alert(1)</script>", "<!--<script>", "&lt;b&gt; \u2028 \"quoted\" 'too' {{ 7 * 7 }}")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A package with the names that a page needs; what runs models in a browser is tested in test_in_browser.py."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": web_runtime.VERSION}))
    for name in (*web_runtime.NEEDED, "ort.min.js"):
        (folder / "dist" / name).write_text(f"this is {name}")
    return folder


def about_of(site: Path) -> dict[str, Any]:
    """What the page hands to its scripts, as a browser takes it out of the page."""
    text = (site / "index.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="about">(.*?)</script>', text, re.DOTALL)
    return json.loads(content)


def test_the_folder_is_whole(student_path: Path, runtime: Path) -> None:
    result = exporting.export(student_path, to="web", out="site", runtime=runtime)
    site = Path("site")
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*") if path.is_file()}
    assert found.keys() == web.FILES
    assert result.file == "site"
    assert result.bytes == sum(path.stat().st_size for path in found.values())
    assert [row.images for row in result.parity] == ["random"]
    for name in web_runtime.NEEDED:
        assert found[f"runtime/{name}"].read_text() == f"this is {name}"
    assert "Permission is hereby granted" in found["runtime/LICENSE.txt"].read_text()
    exporting.export(student_path, out="same.onnx")
    assert found["model.onnx"].read_bytes() == Path("same.onnx").read_bytes()


def test_the_page_says_what_the_model_is(student_path: Path, runtime: Path) -> None:
    exporting.export(student_path, to="web", out="site", runtime=runtime)
    page = Page(Path("site/index.html"))
    for text in ("convnet classifier", "8 x 8, RGB", "fp32", "75.0%", "tiny-ipc1", "class 0, class 1, class 2"):
        assert text in page.text
    assert f"onnxruntime-web {web_runtime.VERSION}" in page.text
    assert "python -m http.server" in page.text
    sources = {value for name in ("src", "href") for value in page.attributes(name)}
    assert sources == {"data:,", "style.css", "page.mjs"}  # nothing of another host
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';" in policy
    assert "unsafe-inline" not in policy
    about = about_of(Path("site"))
    assert {key: about[key] for key in ("channels", "size", "input", "output", "kind", "precision")} == {
        "channels": 3,
        "size": 8,
        "input": "images",
        "output": "logits",
        "kind": "logits",
        "precision": "fp32",
    }


def test_scores_to_check_a_browser_by(student_path: Path, runtime: Path) -> None:
    exporting.export(student_path, to="web", out="site", runtime=runtime)
    check = about_of(Path("site"))["check"]
    noise = [(k * 2654435761 & 0xFFFFFFFF) >> 24 for k in range(3 * 8 * 8)]
    scores = open_session(Path("site/model.onnx"))(np.array(noise, np.uint8).reshape(1, 3, 8, 8))[0]
    assert check["scores"] == [float(score) for score in scores]
    assert check["allowed"] == pytest.approx(0.01 * np.abs(scores).max())
    assert len(set(noise)) > 100


def test_hostile_class_names_are_data(tmp_path: Path, runtime: Path) -> None:
    real = dataclasses.replace(build_real((9, 9, 9)), classes=HOSTILE)
    student = write_student(tmp_path / "hostile.safetensors", real, epochs=1)
    exporting.export(student, to="web", out="site", runtime=runtime)
    page = Page(Path("site/index.html"))
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs["type"] for attrs in scripts] == ["application/json", "module"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "49" not in page.text
    assert tuple(about_of(Path("site"))["classes"]) == HOSTILE
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text


def test_what_does_not_answer_as_the_student_gets_another_name(
    student_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of the folder is compared, not the one that it was made from."""
    write_atomic = web.write_atomic

    def other(path: Path, content: Any) -> None:
        write_atomic(path, Path("other.onnx").read_bytes() if path.name == "model.onnx" else content)

    other_student = write_student(Path("other.safetensors"), build_real((9, 9, 9), seed=5), epochs=1)
    exporting.export(other_student, out="other.onnx")
    monkeypatch.setattr(web, "write_atomic", other)
    with pytest.raises(CheckFailed, match=r"kept as site\.failed-parity"):
        exporting.export(student_path, to="web", out="site", runtime=runtime)
    assert not Path("site").exists()
    assert web.is_site(Path("site.failed-parity"))


def test_only_a_page_of_ours_is_overwritten(student_path: Path, runtime: Path) -> None:
    given = ("export", student_path, "--to", "web", "--runtime", runtime, "--out")
    succeeds(*given, "site")
    refused(*given, "site", says="site already exists: pass --force")
    Path("site/model.onnx").write_bytes(b"old")
    succeeds(*given, "site", "--force")
    open_session(Path("site/model.onnx"))
    Path("site/thesis.txt").write_text("mine")
    says = r"--force overwrites only a folder that `ncfmkit export --to web` wrote.*\(thesis\.txt\)"
    refused(*given, "site", "--force", says=says)
    Path("site/thesis.txt").unlink()
    Path("site/index.html").write_text("<h1>mine</h1>")
    refused(*given, "site", "--force", says="holds something else")
    assert Path("site/index.html").read_text() == "<h1>mine</h1>"
    Path("file").write_text("mine")
    refused(*given, "file", "--force", says="--out file is not a folder")
    Path("new.failed-parity").mkdir()
    refused(*given, "new", says=r"new\.failed-parity already exists")


def test_an_interruption_leaves_the_earlier_page(
    student_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    given = ("export", student_path, "--to", "web", "--runtime", runtime, "--out", "site", "--force")
    succeeds(*given)
    before = {path: path.read_bytes() for path in Path("site").rglob("*") if path.is_file()}
    monkeypatch.setattr(web, "replace_folder", broken)
    assert call(*given).exit_code == 130
    assert {path: path.read_bytes() for path in Path("site").rglob("*") if path.is_file()} == before
    assert not [path.name for path in Path().iterdir() if "export" in path.name]


def test_it_lies_beside_the_student_by_default(student_path: Path, runtime: Path) -> None:
    shutil.copy(student_path, "mine.safetensors")
    result = succeeds("export", "mine.safetensors", "--to", "web", "--runtime", runtime, "--precision", "fp16")
    assert web.is_site(Path("mine-fp16-web"))
    assert "python -m http.server --bind 127.0.0.1 -d mine-fp16-web" in result.stdout.splitlines()


def test_other_commands_name_the_model_in_it(student_path: Path, runtime: Path) -> None:
    succeeds("export", student_path, "--to", "web", "--runtime", runtime, "--out", "site")
    shown = succeeds("inspect", "site").stdout
    assert "web page site" in shown
    assert "class 0, class 1, class 2" in shown
    with pytest.raises(UserError, match=r"^site is a folder: expected an ONNX file, such as site/model\.onnx$"):
        open_session(Path("site"))
    with pytest.raises(UserError, match=r"no model at \. \(Is a directory\)"):
        open_session(Path())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--to", "web", "--input", "uint8-nhwc"], r"--input 'uint8-nhwc' with --to web: expected uint8-nchw"),
        (["--to", "web", "--precision", "bf16"], r"--precision 'bf16' with --to web: expected fp32, fp16, int8"),
        (["--runtime", "package", "--out", "s.onnx"], r"--runtime has no effect with --to onnx"),
        (["--download"], r"options of the real data need --data"),
        (["--to", "web", "--runtime", "package", "--size", "8"], r"options of the real data need --data"),
        (["--to", "web", "--runtime", "package", "--download"], r"--download has no effect with --runtime, .* without"),
        (["--to", "web"], r"--to web needs onnxruntime-web .*--download .*--runtime"),
        (["--to", "web", "--runtime", "none"], r"none: No such file or directory: expected a folder or file"),
        (["--to", "web", "--runtime", "package", "--out", "no/site"], r"no folder no: make it first"),
    ],
)
def test_bad_requests(given: list[str], says: str, student_path: Path, runtime: Path) -> None:
    before = set(Path().iterdir())
    refused("export", student_path, "--out", "site", *given, says=says)
    assert set(Path().iterdir()) - before <= {Path("cache")}


def test_a_model_that_no_browser_holds(student_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LARGEST_MODEL", 1000)
    with pytest.raises(UserError, match=r"the model has .* KiB, a browser takes 1000 B at most: .*--precision fp16"):
        exporting.export(student_path, to="web", out="site", runtime=runtime)
    assert not Path("site").exists()


def test_every_precision_has_its_rounding() -> None:
    assert web.ROUNDING.keys() == parity.TOLERANCES.keys()
