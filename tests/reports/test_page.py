"""The HTML page: what it says, and its safety."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from score_rows import score

from ncfmkit.config import Settings, override, to_dict
from ncfmkit.errors import UserError
from ncfmkit.reports.contact_sheet import contact_sheet
from ncfmkit.reports.curves import curves
from ncfmkit.reports.page import write_report


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
    assert "89.3 ± 0.4% test accuracy, 92.0% of the accuracy with the whole set (97.0 ± 0.4%)" in page.text
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
    contact_sheet(np.zeros((1, 3, 8, 8), np.uint8), np.array([0]), ["a"]).save(tmp_path / "preview.png")
    curves([{"step": 0, "matching": 1.0, "lr": 1e-3}], tmp_path / "curves.png")
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


def test_report_imports_neither_torch_nor_pyplot(tmp_path):
    code = (
        "import sys, pathlib, ncfmkit.reports.page; "
        "from ncfmkit.reports.curves import curves; curves([], pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")], check=True)
