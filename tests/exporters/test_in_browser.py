"""The page of an exported model in a real browser: the same pixels, the same answers, on WebAssembly and on WebGPU.

It needs Chromium, and onnxruntime-web: in the user's cache, where `ncfmkit export --to web --download` puts it, or
where the environment variable ONNXRUNTIME_WEB names it, as `--runtime` does.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import numpy as np
import platformdirs
import pytest
from conftest import write_student
from exports import traced_once
from PIL import Image, features
from PIL import __version__ as pillow
from sklearn.datasets import load_sample_image

from ncfmkit.config import DataSettings
from ncfmkit.exporters import export as exporting
from ncfmkit.exporters import predict, validate, web, web_runtime
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.decode import Frame, fit, open_picture
from ncfmkit.real.opening import open_real
from ncfmkit.real.store import RealData

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CACHED = Path(platformdirs.user_cache_dir("ncfmkit"), web_runtime.CACHED, web_runtime.FILE)
PLACE = Path(os.environ.get("ONNXRUNTIME_WEB", CACHED))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.program() is None, reason=f"no browser: {', '.join(browser.PROGRAMS)}"),
    pytest.mark.skipif(not PLACE.exists(), reason=f"no onnxruntime-web at {PLACE}: set ONNXRUNTIME_WEB"),
]
COUNT = 100  # pictures
# Float32 sums in another order. Of int8, activations near the middle of two steps are rounded either way.
DIFFERENCES = {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05}
HOSTILE = "</script><img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealData]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_real("digits", DataSettings(size=8, color="gray"))


@pytest.fixture(scope="module")
def root(digits: RealData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is served: the first test images of the digits as pictures, and room for pages."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "pictures").mkdir()
    for k, image_CHW in enumerate(digits.test_split().images[:: len(digits.test_split().images) // COUNT][:COUNT]):
        Image.fromarray(image_CHW[0]).save(folder / "pictures" / f"{k:03}.png")
    return folder


@pytest.fixture(scope="module")
def page_of(digits: RealData, root: Path) -> Callable[[str], Path]:
    """The page of a student of the digits, by precision; each is made once."""
    student = write_student(root / "student.safetensors", digits, epochs=30)

    def of(precision: str) -> Path:
        folder = root / precision
        if not folder.exists():
            calibration = DataArguments(data="digits") if precision == "int8" else None
            with traced_once():
                exporting.export(
                    student, to="web", out=folder, precision=precision, calibration=calibration, runtime=PLACE
                )
        return folder

    return of


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with browser.served(root) as address:
        yield address


STARTED = "document.getElementById('runs').innerText.startsWith('Runs on')"
ANSWERS = """(async () => {
  const { load, read } = await import("./classify.mjs");
  const about = JSON.parse(document.getElementById("about").textContent);
  const model = await load("model.onnx", about, [BACKEND]);
  const answers = [];
  for (const name of NAMES) {
    const file = await (await fetch("../pictures/" + name)).blob();
    answers.push(Array.from(await model.classify((await read(file, about)).pixels)));
  }
  return answers;
})()"""


HAS_WEBGPU = "navigator.gpu && navigator.gpu.requestAdapter().then((adapter) => adapter !== null)"


@pytest.mark.parametrize(
    ("precision", "backend"),
    [("fp32", "wasm"), ("fp16", "wasm"), ("int8", "wasm"), ("fp32", "webgpu"), ("int8", "webgpu")],
)
def test_answers_are_those_of_predict_and_validate(
    precision: str, backend: str, page_of: Callable[[str], Path], root: Path, digits: RealData, address: str
) -> None:
    page = page_of(precision)
    pictures = sorted((root / "pictures").iterdir())[: COUNT if backend == "wasm" else 10]  # software is slow
    flags = browser.WITHOUT_GPU if backend == "wasm" else browser.SOFTWARE_WEBGPU
    with browser.Tab(*flags) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        tab.wait(STARTED)  # the runtime starts once
        if backend == "webgpu" and not tab.run(HAS_WEBGPU):
            pytest.skip("this browser has no WebGPU in software")
        names = json.dumps([path.name for path in pictures])
        got_NK = np.array(tab.run(ANSWERS.replace("BACKEND", json.dumps(backend)).replace("NAMES", names)))
        assert tab.errors == []
    expected_NK = np.zeros_like(got_NK)
    for k, answer in enumerate(predict.predict(page / web.MODEL, [str(p) for p in pictures], topk=10)):
        for guess in answer.topk:
            expected_NK[k, guess.label] = guess.probability
    np.testing.assert_allclose(got_NK, expected_NK, atol=DIFFERENCES[precision], rtol=0)
    assert expected_NK.max(axis=1).mean() > 0.3  # it was trained: answers are no even spread


def test_accuracy_is_that_of_validate(
    page_of: Callable[[str], Path], root: Path, digits: RealData, address: str, tmp_path: Path
) -> None:
    """On the whole test split, as pictures."""
    page, test = page_of("fp32"), digits.test_split()
    names = [f"all-{k:03}.png" for k in range(len(test.images))]
    for name, image_CHW in zip(names, test.images, strict=True):
        Image.fromarray(image_CHW[0]).save(root / "pictures" / name)
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        tab.wait(STARTED)
        code = ANSWERS.replace("BACKEND", '"wasm"').replace("NAMES", json.dumps(names))
        got_NK = np.array(tab.run(code))
    for name in names:
        (root / "pictures" / name).unlink()
    data = DataArguments(data="digits")
    result = validate.validate(page / web.MODEL, data=data, speed=False, out=tmp_path / "validation")
    assert (got_NK.argmax(axis=1) == test.labels).mean() == result.providers[0].accuracy
    assert 0.5 < result.providers[0].accuracy < 1


def write_pictures(folder: Path) -> list[Path]:
    """A photo in all ways in which pictures are stored, the first ones without loss."""
    folder.mkdir()
    photo = Image.fromarray(load_sample_image("china.jpg"))
    gray, tall = photo.convert("L"), photo.crop((40, 0, 241, 427))
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 3, (photo.height, photo.width), np.uint8) * 127)
    transparent = Image.merge("RGBA", [*photo.split(), alpha])
    palette = photo.quantize(64)
    turned = {orientation: Image.Exif() for orientation in range(2, 9)}
    for orientation, exif in turned.items():
        exif[0x0112] = orientation
    deep = np.asarray(gray).astype(np.uint16) * 257 + np.arange(photo.width, dtype=np.uint16) % 256
    photo.save(folder / "rgb.png")
    photo.resize((20, 14)).save(folder / "small.png")
    tall.save(folder / "tall.png")
    gray.save(folder / "gray.png")
    gray.convert("1").save(folder / "bilevel.png")
    transparent.save(folder / "transparent.png")
    Image.merge("LA", [gray, alpha]).save(folder / "transparent-gray.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "palette-transparent.png", transparency=5)
    palette.save(folder / "palette.gif")
    photo.save(folder / "rgb.bmp")
    Image.fromarray(deep).save(folder / "16-bit.png")
    photo.save(folder / "lossless.webp", lossless=True)
    photo.save(folder / "420.lossy.jpg", quality=90)
    photo.save(folder / "444-progressive.lossy.jpg", quality=95, subsampling=0, progressive=True)
    gray.save(folder / "gray.lossy.jpg", quality=90)
    photo.convert("CMYK").save(folder / "cmyk.lossy.jpg", quality=90)
    photo.save(folder / "lossy.lossy.webp", quality=80)
    if features.check("avif"):
        photo.save(folder / "lossy.lossy.avif", quality=80)
    for orientation, exif in turned.items():
        photo.save(folder / f"turned-{orientation}.lossy.jpg", quality=90, exif=exif)
    return sorted(folder.iterdir())


PIXELS = """(async () => {
  const { read } = await import("./classify.mjs");
  const file = await (await fetch("../photos/NAME")).blob();
  return Array.from((await read(file, { channels: CHANNELS, size: SIZE })).pixels);
})()"""


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 224)])
def test_pixels_are_those_of_predict(
    channels: int, size: int, page_of: Callable[[str], Path], root: Path, address: str
) -> None:
    """Files without loss in every value; decoders of lossy ones may round differently, in another browser or Pillow."""
    photos = root / "photos"
    pictures = sorted(photos.iterdir()) if photos.exists() else write_pictures(photos)
    frame = Frame(size=size, color="gray" if channels == 1 else "rgb", crop=True)
    page = page_of("fp32")
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        for picture in pictures:
            code = PIXELS.replace("NAME", picture.name).replace("CHANNELS", str(channels)).replace("SIZE", str(size))
            got = np.array(tab.run(code)).reshape(channels, size, size)
            expected, _ = fit(open_picture(picture, picture.name), frame, picture.name)
            off = np.abs(got - expected.astype(int))
            tall_before_13 = picture.name == "tall.png" and int(pillow.split(".")[0]) < 13
            allowed = 3 if ".lossy." in picture.name else 8 if tall_before_13 else 0
            assert off.max() <= allowed, (picture.name, off.max())
            assert expected.std() > 30


def answers_of(tab: browser.Tab) -> list[list[str]]:
    """The name of each picture and what is said of it, from the top of the page."""
    said = "[...document.querySelectorAll('#answers li')].map((li) => [li.querySelector('h3').innerText, "
    return tab.run(f"{said} li.querySelector('p').innerText])")


DROP = """(async () => {
  const files = new DataTransfer();
  for (const name of ["000.png", "001.png"]) {
    files.items.add(new File([await (await fetch("../pictures/" + name)).blob()], name, { type: "image/png" }));
  }
  const event = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("dragover", { ...event, dataTransfer: files }));
  const lit = document.body.className;
  document.body.dispatchEvent(new DragEvent("drop", { ...event, dataTransfer: files }));
  document.dispatchEvent(new ClipboardEvent("paste", { ...event, clipboardData: files }));
  return [lit, document.body.className];
})()"""


REVOKED = """(() => {
  window.revoked = [];
  const revoke = URL.revokeObjectURL.bind(URL);
  URL.revokeObjectURL = (address) => {
    revoked.push(address);
    revoke(address);
  };
})()"""


def test_the_page_takes_pictures_that_are_chosen_dropped_and_pasted(
    page_of: Callable[[str], Path], root: Path, address: str, tmp_path: Path
) -> None:
    page = page_of("fp32")
    unreadable = tmp_path / "<b>text&amp;.png"
    unreadable.write_text("no picture")
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        tab.wait(STARTED)
        tab.run(REVOKED)
        assert re.fullmatch(
            r"Runs on the processor \(WebAssembly\)\. Not on WebGPU: [^.]*\.",
            tab.run("document.getElementById('runs').innerText"),
        )
        assert tab.run("document.getElementById('unstarted')") is None
        tab.choose("#files", [root / "pictures" / "002.png", unreadable])
        tab.wait("document.getElementById('progress').innerText === '1 of 2 pictures are classified.'")
        (first, said), (second, reason) = answers_of(tab)
        assert (first, second) == ("002.png", "<b>text&amp;.png")
        (expected,) = predict.predict(page / web.MODEL, str(root / "pictures" / "002.png"))
        assert expected.probability is not None
        assert said == f"{expected.class_name}, {100 * expected.probability:.1f}%"
        assert reason == "not classified: this browser cannot read it as a picture"
        rows = tab.run("[...document.querySelector('#answers .bars').rows].map((row) => row.innerText.split('\\t'))")
        assert [row[0] for row in rows] == [guess.class_name for guess in expected.topk]
        assert [row[-1] for row in rows] == [f"{100 * guess.probability:.1f}%" for guess in expected.topk]
        assert tab.run(DROP) == ["over", ""]
        tab.wait("document.querySelectorAll('#answers .bars').length === 5")
        assert [name for name, _ in answers_of(tab)] == ["000.png", "001.png"] * 2 + ["002.png", "<b>text&amp;.png"]
        tab.wait("[...document.querySelectorAll('#answers img')].every((picture) => revoked.includes(picture.src))")
        for width in (1000, 390):
            tab.screenshot(tmp_path / "page.png", width=width, dark=width == 390)
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
        assert tab.errors == []


def changed(page: Path, name: str, change: Callable[[dict], None]) -> Path:
    """A page with other facts for its scripts, beside it."""
    other = page.with_name(name)
    other.mkdir()
    for path in page.iterdir():
        if path.name != web.PAGE:
            (other / path.name).symlink_to(path)
    text = (page / web.PAGE).read_text(encoding="utf-8")
    before, start, rest = text.partition('id="about">')
    content, end, after = rest.partition("</script>")
    about = json.loads(content)
    change(about)
    (other / web.PAGE).write_text(f"{before}{start}{json.dumps(about)}{end}{after}", encoding="utf-8")
    return other


OPEN = """(async () => {
  const { load } = await import("./classify.mjs");
  const { InferenceSession } = await import("./runtime/ort.webgpu.min.mjs");
  const about = JSON.parse(document.getElementById("about").textContent);
  const create = InferenceSession.create.bind(InferenceSession);
  const open = [];
  InferenceSession.create = async (...given) => {
    const session = await create(...given);
    const release = session.release.bind(session);
    session.release = async () => {
      await release();
      open[index] = 0;
    };
    const index = open.push(1) - 1;
    return session;
  };
  await load("model.onnx", about, ["wasm", "wasm"]).catch(() => {});
  return open;
})()"""


def test_a_browser_that_answers_wrongly_is_not_used(page_of: Callable[[str], Path], address: str) -> None:
    def spoil(about: dict) -> None:
        about["check"]["scores"][0] += 1

    page = changed(page_of("fp32"), "wrong", spoil)
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        tab.wait("document.getElementById('runs').className === 'notice'")
        said = tab.run("document.getElementById('runs').innerText")
        assert re.search(
            r"does not run in this browser: .*wasm: its scores of the test image differ by 1\.0, allowed", said
        )
        assert tab.run(OPEN) == [0, 0]  # each was opened, and released before the next


FALLBACK = """(async () => {
  const { load } = await import("./classify.mjs");
  const about = JSON.parse(document.getElementById("about").textContent);
  const adapter = { features: new Set(), ...ADAPTER };
  Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => adapter }, configurable: true });
  const { backend, refused } = await load("model.onnx", about);
  return [backend, ...refused.map(({ reason }) => reason)];
})()"""


@pytest.mark.parametrize(
    "adapter",
    ["{ isFallbackAdapter: true }", "{ isFallbackAdapter: true, info: {} }", "{ info: { isFallbackAdapter: true } }"],
)
def test_a_gpu_in_software_is_not_used(adapter: str, page_of: Callable[[str], Path], address: str) -> None:
    """Old versions of Chromium say it of the adapter, later ones in its `info`."""
    page = page_of("fp32")
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/{page.name}/index.html")
        tab.wait(STARTED)
        found = tab.run(FALLBACK.replace("ADAPTER", adapter))
    assert found == ["wasm", "WebGPU finds no GPU, only software that stands in for one"]


def test_hostile_class_names_stay_text(digits: RealData, root: Path, address: str) -> None:
    classes = tuple(f"{HOSTILE} {k}" for k in range(10))
    student = write_student(root / "hostile.safetensors", dataclasses.replace(digits, classes=classes), epochs=0)
    with traced_once():
        exporting.export(student, to="web", out=root / "hostile", runtime=PLACE)
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open(f"{address}/hostile/index.html")
        tab.choose("#files", [root / "pictures" / "000.png"])
        tab.wait("document.querySelectorAll('#answers .bars').length === 1")
        assert answers_of(tab)[0][1].startswith(f"{HOSTILE} ")
        assert tab.run("document.title") == "convnet classifier"
        assert tab.errors == []


def test_opened_as_a_file_the_page_says_what_it_needs(page_of: Callable[[str], Path]) -> None:
    with browser.Tab(*browser.WITHOUT_GPU) as tab:
        tab.open((page_of("fp32") / web.PAGE).as_uri())
        tab.wait("getComputedStyle(document.getElementById('unstarted')).visibility === 'visible'")
        said = tab.run("document.getElementById('unstarted').innerText")
        assert "needs JavaScript and a web server" in said
        assert "python -m http.server" in said
