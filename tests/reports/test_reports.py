"""The contact sheet's pixels, the curves as files, the score table's figures and the HTML page's safety."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ncfmkit.config import Settings, override, to_dict
from ncfmkit.errors import UserError
from ncfmkit.reports.contact_sheet import contact_sheet
from ncfmkit.reports.curves import curves
from ncfmkit.reports.page import write_report
from ncfmkit.reports.scores import score_table
from ncfmkit.run import read_metrics


def box_of(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of one color, which must fill that box."""
    found = (np.asarray(sheet.convert("RGB")) == color).all(axis=-1)
    ys, xs = np.nonzero(found)
    assert len(ys), f"no pixel of color {color}"
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    assert found[box[1] : box[3], box[0] : box[2]].all()
    return box


def solid(*colors: tuple[int, int, int], size: int = 8) -> np.ndarray:
    return np.stack([np.full((size, size, 3), c, np.uint8).transpose(2, 0, 1) for c in colors])


RED, GREEN, BLUE, TEAL = (250, 1, 2), (3, 240, 4), (5, 6, 230), (7, 128, 129)


def test_contact_sheet_has_a_row_per_class_in_class_order_whatever_the_order_of_images():
    sheet = contact_sheet(solid(BLUE, RED, GREEN, TEAL), np.array([1, 0, 1, 0]), ["zero", "one"])
    red, teal, blue, green = (box_of(sheet, c) for c in (RED, TEAL, BLUE, GREEN))
    assert red[1] == teal[1] < blue[1] == green[1]
    assert red[0] == blue[0] < teal[0] == green[0]
    assert teal[0] >= red[2]
    assert blue[1] >= red[3]


@pytest.mark.parametrize(("size", "shown"), [(8, 64), (28, 84), (32, 64), (64, 64), (128, 128), (224, 112)])
def test_contact_sheet_enlarges_by_a_whole_factor_and_averages_large_images_down(size, shown):
    left, top, right, bottom = box_of(contact_sheet(solid(RED, size=size), np.array([0]), ["a"]), RED)
    assert (right - left, bottom - top) == (shown, shown)


def test_contact_sheet_keeps_each_pixel_as_one_block():
    image = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8) + 100
    sheet = np.asarray(contact_sheet(image, np.array([0]), [""]))
    assert sheet.ndim == 2
    ys, xs = np.nonzero(sheet != 255)
    cell = sheet[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    np.testing.assert_array_equal(cell, image[0, 0].repeat(8, 0).repeat(8, 1))


def test_contact_sheet_shows_per_class_images_at_most_and_says_so():
    images, labels = solid(RED, GREEN, BLUE), np.zeros(3, np.int64)
    two = contact_sheet(images, labels, ["a"], per_class=2)
    colors = {color for _, color in two.getcolors(1 << 16)}
    assert {RED, GREEN} <= colors
    assert BLUE not in colors
    assert two.height > contact_sheet(images, labels, ["a"], per_class=3).height  # the line below


def test_contact_sheet_names_the_classes_at_the_left():
    images, labels = solid(RED), np.array([0])
    named, unnamed = contact_sheet(images, labels, ["ship"]), contact_sheet(images, labels, [""])
    left = box_of(named, RED)[0]
    assert left > box_of(unnamed, RED)[0]
    assert (np.asarray(named)[:, :left] < 128).any()
    assert not (np.asarray(unnamed)[:, : box_of(unnamed, RED)[0]] < 128).any()


def test_contact_sheet_copes_with_long_names_empty_classes_and_no_images():
    sheet = contact_sheet(solid(RED), np.array([1]), ["", "x\n" * 5000, "птица"])
    assert sheet.width < 400
    empty = contact_sheet(np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64), ["a", "b"])
    assert empty.height > 64


def test_contact_sheet_stops_after_a_hundred_classes():
    names = [""] * 130
    sheet = contact_sheet(np.full((130, 1, 64, 64), 7, np.uint8), np.arange(130), names)
    rows = (np.asarray(sheet) == 7).sum(axis=1) >= 64
    assert rows.sum() == 100 * 64


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), np.array([0]), "expects uint8 images"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.array([0]), "expects uint8 images"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.array([0]), "one label per image"),
        (np.zeros((1, 3, 8, 8), np.uint8), np.array([1]), "do not fit 1 class names"),
    ],
)
def test_contact_sheet_refuses_what_it_cannot_show(images, labels, match):
    with pytest.raises(ValueError, match=match):
        contact_sheet(images, labels, ["a"])


def metrics(steps: int, calibration: bool = True) -> list[dict]:
    return [
        {
            "step": i,
            "matching": 300.0 / (i + 1),
            "calibration": 2.0 if calibration else None,
            "lr": 1e-3 if i < 5 else 5e-4,
            "seconds": 0.1 * i,
        }
        for i in range(steps)
    ]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def bluish(pixels: np.ndarray) -> int:
    """Pixels of the loss lines."""
    values = pixels.astype(int)
    return int((values[..., 2] - values[..., 0] > 40).sum())


def test_curves_draw_one_panel_or_two(tmp_path):
    curves(metrics(50), tmp_path / "two.png")
    curves(metrics(50, calibration=False), tmp_path / "one.png")
    two, one = picture(tmp_path / "two.png"), picture(tmp_path / "one.png")
    assert two.shape[0] > one.shape[0]
    assert bluish(two) > bluish(one) > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_curves_without_steps_say_so(tmp_path):
    curves([], tmp_path / "curves.png")
    pixels = picture(tmp_path / "curves.png")
    assert bluish(pixels) == 0
    assert (pixels < 100).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_curves_leave_out_values_that_are_not_finite(tmp_path, value):
    rows = metrics(50)
    rows[20]["matching"] = value
    curves(rows, tmp_path / "some.png")
    curves([row | {"matching": value, "calibration": None} for row in rows], tmp_path / "all.png")
    assert bluish(picture(tmp_path / "some.png")) > 500
    assert bluish(picture(tmp_path / "all.png")) == 0


def test_curves_mark_a_change_of_lr(tmp_path):
    rows = metrics(50)
    curves(rows, tmp_path / "marked.png")
    curves([row | {"lr": 1e-3} for row in rows], tmp_path / "plain.png")

    def upright_gray_lines(name: str) -> int:
        pixels = picture(tmp_path / name).astype(int)
        gray = (np.ptp(pixels, axis=-1) < 8) & (pixels[..., 0] > 0x60) & (pixels[..., 0] < 0xD8)
        return int((gray.sum(axis=0) > 150).sum())

    assert upright_gray_lines("marked.png") > upright_gray_lines("plain.png")


def test_curves_draw_a_single_step_and_a_very_long_run(tmp_path):
    curves(metrics(1), tmp_path / "single.png")
    noise = np.random.default_rng(0).random(100_000)
    curves([{"step": i, "matching": v, "lr": 1e-3} for i, v in enumerate(noise.tolist())], tmp_path / "long.png")
    assert bluish(picture(tmp_path / "single.png")) > 20
    assert bluish(picture(tmp_path / "long.png")) > 500


def test_read_metrics_passes_over_a_last_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    whole = "".join(json.dumps(row) + "\n" for row in metrics(3))
    path.write_text(whole)
    assert read_metrics(path) == metrics(3)
    for cut in range(1, 60):
        path.write_text(whole[:-cut])
        assert read_metrics(path) == metrics(3 if cut == 1 else 2), f"cut by {cut}"


def test_read_metrics_refuses_damage_before_the_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2: expected a JSON object"):
        read_metrics(path)


def score(name: str, mean: float, *, n: int = 5, images: int = 10, network: str = "convnet-2 width 64") -> dict:
    return {
        "set": name,
        "label": f"{name}, 1 image per class",
        "images": images,
        "decoded": 4 * images,
        "network": network,
        "epochs": 300,
        "n": n,
        "last": {"mean": mean, "std": 0.00449, "values": [mean] * n},
        "best": {"mean": mean + 0.01, "std": 0.002, "values": [mean + 0.01] * n},
        "evaluations": 20,
        "seconds": 12.0,
    }


def make_run(folder: Path, *, classes: list[str] | None = None, rows: list[dict] | None = None, **changes) -> None:
    settings = override(Settings(recipe="digits"), {"ipc": 1, "distill.steps": 400})
    run = {
        "ncfmkit": "0.1.0",
        "data": {
            "name": "digits",
            "classes": classes or [str(i) for i in range(10)],
            "train": 1347,
            "test": 450,
            "size": 8,
            "channels": 1,
            "fingerprint": "sha256:abc123",
        },
        "settings": to_dict(settings),
        "seed": 0,
        "device": "cpu (AMD EPYC, 4 threads)",
        "precision": "bf16",
        "compile": True,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "command": "ncfmkit distill digits",
        "pool": {"key": "k3y", "accuracies": [0.97, None, 0.951], "seconds": 12.3},
        "timings": {"distill_seconds": 22.1, "steps": 400},
        "status": "done",
    }
    (folder / "run.json").write_text(json.dumps(run | changes))
    if rows is not None:
        (folder / "scores.json").write_text(json.dumps({"device": "cpu (EPYC)", "rows": rows}))


class Page(HTMLParser):
    """The text people see, and every tag with its attributes; `balanced` once all that opens has closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())  # also turns no-break spaces into spaces


def test_report_leads_with_what_stands_for_what_and_the_score(tmp_path):
    make_run(tmp_path, rows=[score("distilled", 0.893), score("whole", 0.9705, images=1347)])
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert page.open == []
    assert "digits: 10 images stand for 1,347" in page.text
    assert "89.3 ± 0.4% test accuracy, 92.0% of what the whole set reaches (97.0 ± 0.4%)" in page.text
    assert page.text.index("Scores") < page.text.index("Settings") < page.text.index("Provenance")
    for expected in (
        "best epoch (peeks at the test set)",
        "90.3 ± 0.2",
        "450 test images",
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


def test_report_lists_changed_settings_before_the_folded_rest(tmp_path):
    make_run(tmp_path)
    source = Page(write_report(tmp_path)).source
    shown, folded = source.split("<details>")
    assert "<td>distill.ipc</td><td>1</td><td>10</td>" in shown
    assert "<td>distill.steps</td><td>400</td><td>20,000</td>" in shown
    assert "distill.alpha" not in shown
    assert "<td>distill.alpha</td>" in folded
    assert "<td>distill.ipc</td>" not in folded


def test_report_needs_nothing_from_outside_and_runs_nothing(tmp_path):
    make_run(tmp_path, rows=[score("distilled", 0.893)])
    contact_sheet(solid(RED), np.array([0]), ["a"]).save(tmp_path / "preview.png")
    curves(metrics(3), tmp_path / "curves.png")
    page = Page(write_report(tmp_path))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", page.source))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "base"})
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset")]
    pictures = [base64.b64decode(a.removeprefix("data:image/png;base64,"), validate=True) for a in addresses]
    assert pictures == [(tmp_path / name).read_bytes() for name in ("preview.png", "curves.png")]
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_report_shows_hostile_text_as_text(tmp_path):
    hostile = "</title><script>alert(\"1\")</script><img src=x onerror='f()'>&amp; $body ${title}"
    make_run(
        tmp_path,
        classes=[hostile, "b"],
        rows=[score("distilled", 0.5) | {"label": hostile, "network": hostile}],
        command=hostile,
        device=hostile,
        status=hostile,
        versions={hostile: hostile},
        seed=hostile,
    )
    data = json.loads((tmp_path / "run.json").read_text())
    data["data"] |= {"name": hostile, "fingerprint": hostile}
    data["settings"]["distill"]["load"] = hostile
    (tmp_path / "run.json").write_text(json.dumps(data))
    page = Page(write_report(tmp_path))
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert page.text.count(hostile) >= 8


@pytest.mark.parametrize("run", [{}, {"status": "distilling"}, {"data": {"name": "digits"}}, {"pool": {}, "data": {}}])
def test_report_copes_with_a_run_that_has_hardly_begun(tmp_path, run):
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = Page(write_report(tmp_path))
    assert page.open == []
    assert "Not scored yet." in page.text
    assert ("not finished (status: distilling)" in page.text) == ("status" in run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "run.json"]


def test_report_of_no_run_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"has no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"data": ')
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        write_report(tmp_path)


def rendered(rows: list[dict], width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(score_table(rows))
    return capture.get().replace("\xa0", " ")


def test_score_table_prints_percent_deviation_and_n():
    text = rendered([score("distilled", 0.893), score("whole", 0.9705)])
    assert "89.3 ± 0.4" in text
    assert "90.3 ± 0.2" in text
    assert "92.0" in text
    assert "peeks" in text
    assert "convnet-2 width 64" in text


def test_score_table_never_breaks_a_figure_at_80_columns():
    text = rendered([score("random-decoded", 0.893, images=50_000), score("whole", 0.9705)], width=80)
    assert "89.3 ± 0.4" in text
    assert "90.3 ± 0.2" in text
    assert "200,000" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("network", ["convnet-2 width 64", "another-network"])
def test_score_table_is_readable_at_80_columns(network):
    text = rendered([score("random-decoded", 0.893, network=network, images=50_000), score("whole", 0.9705)], width=80)
    heading, rule = text.splitlines()[:3], [line.startswith("─") for line in text.splitlines()]
    assert rule.index(True) == 2  # headings of two lines
    assert heading[1].split() == ["set", "epochs", "stored", "on", "last", "whole", "n", "best*"]
    assert "…" not in text
    assert "best epoch (peeks at the test set)" in text
    assert network in text


def test_score_of_one_student_has_no_deviation():
    text = rendered([score("distilled", 0.893, n=1)])
    assert "89.3" in text
    assert "89.3 ±" not in text


def test_share_compares_only_the_same_network():
    wide, deep = score("distilled", 0.9, network="wide"), score("distilled", 0.6, network="deep")
    text = rendered([wide, deep, score("whole", 0.95, network="wide")])
    assert "94.7" in text  # 0.9 / 0.95
    assert "63.2" not in text  # 0.6 / 0.95
    assert "deep" in text


def test_score_table_shows_labels_with_brackets_as_they_are():
    assert "[bold]x[/bold]" in rendered([score("distilled", 0.5) | {"label": "[bold]x[/bold]"}])


def test_score_table_copes_with_missing_figures():
    text = rendered([{"set": "distilled"}, {"set": "whole", "last": {"mean": float("nan")}}])
    assert "distilled" in text
    assert "nan" not in text


def test_report_imports_neither_torch_nor_pyplot(tmp_path):
    code = (
        "import sys, pathlib, ncfmkit.reports.page; "
        "from ncfmkit.reports.curves import curves; curves([], pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")], check=True)
