"""The report of a run: what it says, and its safety."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from PIL import Image
from recorded import metrics, run_info, score

from ncfmkit.config import Settings, override, to_dict
from ncfmkit.errors import UserError
from ncfmkit.reports.run_page import write_report
from ncfmkit.reports.strips import SetImages
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import PoolInfo, RunInfo, Score, Scores, Timings


def done_run(folder: Path, rows: Sequence[Score] = (), *, steps: int = 0, **changes: Any) -> Path:
    """A finished run of one image per class, without pictures."""
    settings = override(Settings(recipe="digits"), {"ipc": 1, "distill.steps": 400})
    done = {
        "settings": to_dict(settings),
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "command": "ncfmkit distill digits",
        "pool": PoolInfo(key="k3y", accuracies=(0.97, None, 0.951), seconds=12.3),
        "timings": Timings(distill_seconds=22.1, steps=400),
        "status": "done",
    }
    run = RunDirectory.create(folder / "run", run_info(**done | changes))
    for row in metrics(steps):
        run.append_metrics(row)
    if rows:
        Scores(device="cpu (EPYC)", precision="fp32", versions={}, rows=tuple(rows)).write(run.scores_file)
    return run.path


def set_images(classes: Sequence[str], ipc: int, *, decoded: int = 0, size: int = 8, channels: int = 1) -> SetImages:
    """Noise; the first `decoded` images of each class decode to four."""
    rng = np.random.default_rng(0)

    def noise(count: int) -> np.ndarray:
        return rng.integers(0, 256, (count, channels, size, size), np.uint8)

    places = [k * ipc + i for k in range(len(classes)) for i in range(decoded)]
    return SetImages(
        stored=noise(ipc * len(classes)),
        labels=np.repeat(np.arange(len(classes)), ipc),
        classes=classes,
        decoded={place: noise(4) for place in places},
    )


def test_report_leads_with_what_stands_for_what_and_the_score(tmp_path: Path) -> None:
    folder = done_run(tmp_path, [score("distilled", 0.893), score("whole", 0.9705, images=1347)])
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    assert "digits: 10 images stand for 1,347" in page.text
    assert "89.3 ± 0.4% test accuracy, 92.0% of the accuracy with the whole set (97.0 ± 0.4%)" in page.text
    order = [page.text.index(part) for part in ("Scores", "Accuracy of each class", "Settings", "Provenance")]
    assert order == sorted(order)
    for expected in (
        "convnet-2 width 64, 5 students, after the last of 300 epochs; 450 test images of 10 classes; guessing gives "
        "10%",
        "best epoch (peeks at the test set)",
        "90.3 ± 0.2",
        "Accuracy on 450 test images",
        "Measured on cpu (EPYC)",
        "settings at their defaults",
        "3 extractors, test accuracy 96.0% on average, from 95.1% to 97.0%",
        "97.0 · – · 95.1",
        "sha256:abc123",
        "ncfmkit distill digits",
        "22.1 s for 400 steps, 55.2 ms each",
        "torch 2.13.0",
        "bf16",
    ):
        assert expected in page.text


def test_report_of_an_unbalanced_test_split_says_the_balanced_accuracy(tmp_path: Path) -> None:
    rows = [score("distilled", 0.893, balanced=0.6123), score("whole", 0.97, balanced=0.8)]
    page = Page(write_report(done_run(tmp_path, rows)))
    says = "unbalanced: balanced accuracy 61.2 ± 1.2%, worst class 9 with 73.2%"
    for expected in (says, "balanced accuracy %", "worst class %", "80.0 ± 1.2", "79.5", "best epoch (peeks"):
        assert expected in page.text
    other = Page(write_report(done_run(tmp_path / "other", [score("distilled", 0.893)])))
    assert "alanced" not in other.text


def test_report_says_that_students_learn_from_soft_labels(tmp_path: Path) -> None:
    settings = to_dict(override(Settings(recipe="digits"), {"labels.soft": True, "labels.temperature": 1.5}))
    page = Page(write_report(done_run(tmp_path, [score("distilled", 0.893)], settings=settings)))
    assert "5 students with soft labels of the extractors, temperature 1.5, after the last of 300 epochs" in page.text


@pytest.mark.parametrize(("test", "says"), [(99, "only 99 test images: one image is 1 points"), (100, "")])
def test_a_score_on_few_test_images_is_said_to_be_coarse(tmp_path: Path, test: int, says: str) -> None:
    data = run_info().data.model_copy(update={"test": test})
    text = Page(write_report(done_run(tmp_path, [score("distilled", 0.893)], data=data))).text
    assert ("Differences of a few points mean nothing" in text) == bool(says)
    assert says in text


def test_report_lists_changed_settings_before_the_folded_rest(tmp_path: Path) -> None:
    source = Page(write_report(done_run(tmp_path))).source
    shown, folded = source.split("<details>")
    assert "<td>distill.ipc</td><td>1</td><td>10</td>" in shown
    assert "<td>distill.steps</td><td>400</td><td>20,000</td>" in shown
    assert "distill.alpha" not in shown
    assert "<td>distill.alpha</td>" in folded
    assert "<td>distill.ipc</td>" not in folded


def test_report_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    folder = done_run(tmp_path, [score("distilled", 0.893), score("random", 0.5)], steps=50)
    page = Page(write_report(folder, set_images(run_info().data.classes, 2, decoded=2)))
    page.check_safe()
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")


HOSTILE = "</title><script>alert(\"1\")</script><img src=x onerror='f()'>&amp; {{ title }} ${title} url(#x) $x_1$"


def test_report_shows_hostile_text_as_text(tmp_path: Path) -> None:
    classes = (HOSTILE, *"bcdefghij")
    rows = [score(name, 0.5).model_copy(update={"label": HOSTILE}) for name in ("distilled", "random")]
    folder = done_run(
        tmp_path,
        [row.model_copy(update={"network": HOSTILE}) for row in rows],
        steps=5,
        command=HOSTILE,
        device=HOSTILE,
        status=HOSTILE,
        versions={HOSTILE: HOSTILE},
        data=run_info().data.model_copy(update={"name": HOSTILE, "fingerprint": HOSTILE, "classes": classes}),
        settings={HOSTILE: HOSTILE, "distill": {"load": HOSTILE}},
    )
    (folder / "synthetic.safetensors").touch()
    page = Page(write_report(folder, set_images(classes, 1, decoded=1)))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not page.attributes("onerror")
    assert {address.partition(",")[0] for address in page.sources()} == {"data:image/png;base64"}
    assert page.text.count(HOSTILE) >= 16
    assert HOSTILE in page.attributes("alt")


@pytest.mark.parametrize("ipc", [1, 10])
def test_report_shows_the_images_of_every_class(tmp_path: Path, ipc: int) -> None:
    classes = run_info().data.classes
    images = set_images(classes, ipc, decoded=min(2, ipc))
    page = Page(write_report(done_run(tmp_path), images))
    assert "What students train on" in page.text
    # one image per class wraps into a block, ten are a row beside the name
    assert ('class="strips"' in page.source) == (ipc == 10)
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in page.pictures()]
    assert [p.shape for p in pictures[:10]] == [(8, 9 * ipc - 1, 2)] * 10
    for k in range(10):
        cells = [pictures[k][:, 9 * i : 9 * i + 8, 0] for i in range(ipc)]
        np.testing.assert_array_equal(cells, images.stored[k * ipc : (k + 1) * ipc, 0])
    pairs = pictures[10:]
    assert len(pairs) == 2 * len(images.decoded)
    for n, (place, cells_PCHW) in enumerate(images.decoded.items()):
        np.testing.assert_array_equal(pairs[2 * n][..., 0], images.stored[place, 0])
        np.testing.assert_array_equal(pairs[2 * n + 1][:, 27:35, 0], cells_PCHW[3, 0])


def test_images_that_are_no_mosaics_have_no_decoded_ones(tmp_path: Path) -> None:
    page = Page(write_report(done_run(tmp_path), set_images(run_info().data.classes, 3)))
    assert "What students train on" not in page.text
    assert len(page.pictures()) == 10


def test_the_images_of_many_classes_stay_few(tmp_path: Path) -> None:
    data = run_info().data.model_copy(update={"classes": tuple(map(str, range(150))), "counts": {}})
    page = Page(write_report(done_run(tmp_path, data=data), set_images(data.classes, 10)))
    assert len(page.pictures()) == 100
    assert "50 more classes are not shown" in page.text
    shown, folded = page.source.split("80 more classes</summary>")
    assert shown.count("<img") == 20
    assert folded.partition("</details>")[0].count("<img") == 80
    assert Image.open(io.BytesIO(page.pictures()[0])).width == 17  # two images of each class


def test_bars_show_every_class_or_the_lowest_first(tmp_path: Path) -> None:
    few = Page(write_report(done_run(tmp_path / "few", [score("distilled", 0.9)])))
    shares = [style for style in few.attributes("style") if "--share" in style]
    assert len(shares) == 10
    assert shares[5].startswith("--share: 81.0%; --mark: 10.0%")
    assert "all 10 classes" not in few.text
    names = tuple(f"name {k}" for k in range(30))
    accuracies = (*(0.9 - k / 100 for k in range(29)), None)  # the last class has no test images
    row = score("distilled", 0.9).model_copy(update={"classes": accuracies})
    data = run_info().data.model_copy(update={"classes": names, "counts": {}})
    many = Page(write_report(done_run(tmp_path / "many", [row], data=data)))
    listed, folded = many.source.split("all 29 classes")
    assert [f">name {k}<" in listed for k in range(30)] == [19 <= k < 29 for k in range(30)]
    assert [f">name {k}<" in folded for k in range(30)] == [k < 29 for k in range(30)]
    assert "The lowest 10 of 29 classes" in many.text


def test_plots_have_a_narrow_version_in_the_page_s_colors(tmp_path: Path) -> None:
    page = Page(write_report(done_run(tmp_path, [score("distilled", 0.9), score("random", 0.5)], steps=50)))
    widths = [float((attrs["width"] or "").removesuffix("pt")) for tag, attrs in page.tags if tag == "svg"]
    assert widths == [666, 270, 666, 270]
    assert "Matching loss 300 at step 1, 6 at step 50; calibration loss 2 at step 1, 2 at step 50." in page.text
    assert page.text.count("gradient steps") >= 2
    assert "epochs of distilled, 1 image per class" in page.text
    drawn = page.source[page.source.index("<svg") :]
    assert drawn.count("var(--series-1)") >= 4
    assert "#1f5a99" not in drawn


def test_bytes_are_plotted_where_they_differ(tmp_path: Path) -> None:
    """The label says every point, for people who cannot see it."""
    rows = [score(name, 0.9, bytes_per_class=size) for name, size in (("distilled", 60.0), ("webp", 2058.5))]
    page = Page(write_report(done_run(tmp_path / "two", [*rows, score("old", 0.5)])))
    page.check_safe()
    says = [label for label in page.attributes("aria-label") if "bytes per class" in label]
    assert says[0].replace("\xa0", " ") == (
        "Test accuracy against bytes per class. distilled, 1 image per class: 60 bytes, 90.0 ± 0.4%; webp, 1 image per "
        "class: 2,058 bytes, 90.0 ± 0.4%"
    )
    assert len(says) == 2  # wide and narrow
    assert page.text.index("Accuracy by bytes per class") < page.text.index("Accuracy in training")
    for few in ([rows[0]], [rows[0], rows[0]], [score("old", 0.5), score("older", 0.5)]):
        text = Page(write_report(done_run(tmp_path / "equal", few))).text
        assert "Accuracy by bytes per class" not in text
        shutil.rmtree(tmp_path / "equal")


@pytest.mark.parametrize("row", [score("distilled", 0.893), None])
def test_report_of_an_earlier_version(tmp_path: Path, row: Score | None) -> None:
    old: dict[str, Any] = run_info(settings={"recipe": "digits"}).to_dict()
    for later in ("threads", "pool", "timings", "replaces", "command"):
        del old[later]
    for later in ("counts", "skipped_images", "changed", "left_out"):
        del old["data"][later]
    (tmp_path / "run.json").write_text(json.dumps(old))
    if row is not None:
        rows = [{k: v for k, v in row.to_dict().items() if k not in ("classes", "curve", "steps", "bytes_per_class")}]
        scores = {"device": "cpu", "precision": "fp32", "versions": {}, "rows": rows}
        (tmp_path / "scores.json").write_text(json.dumps(scores))
    text = Page(write_report(tmp_path)).text
    assert ("Not scored yet." in text) == (row is None)
    assert ("89.3 ± 0.4% test accuracy" in text) == (row is not None)
    assert "not finished (status: started)" in text
    for missing in ("Load this set", "The set", "Accuracy in training", "Accuracy of each class", "Losses", "pool"):
        assert missing not in text


def test_report_says_how_to_load_the_set_that_is_there(tmp_path: Path) -> None:
    folder = done_run(tmp_path)
    assert "Load this set" not in Page(write_report(folder)).text
    (folder / "synthetic.safetensors").touch()
    page = Page(write_report(folder))
    assert 'ncfmkit.load("synthetic.safetensors")' in page.text
    assert 'decoded(read("synthetic.safetensors"))' in page.text


def test_report_of_no_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: no run\.json in it"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"data": ')
    with pytest.raises(UserError, match=r"run\.json is damaged: all of it: invalid JSON"):
        write_report(tmp_path)


def test_report_imports_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    run: RunInfo = run_info()
    run.write(tmp_path / "run.json")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics(1)[0].to_dict()) + "\n")
    code = (
        "import pathlib, sys; from ncfmkit.reports.run_page import write_report;"
        "write_report(pathlib.Path(sys.argv[1]));"
        "assert 'matplotlib' in sys.modules; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
