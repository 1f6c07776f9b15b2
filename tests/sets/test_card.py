"""The dataset card: what it says is so, tools can read it, and no name in a manifest can do anything in it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import build_set
from other_libraries import import_torchvision

from ncfmkit.config import Settings, load_recipe, to_dict
from ncfmkit.progress import printable
from ncfmkit.reports.sections import Section, SectionTable
from ncfmkit.sets import package
from ncfmkit.sets.card import card
from ncfmkit.sets.manifest import ManifestScore, Original
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.table import LAYOUTS

SOURCE = {"name": "tiny", "fingerprint": "ab" * 32, "train_images": 21, "license": "mit"}
SCORE = {
    "network": "convnet-2 width 8",
    "epochs": 1200,
    "n": 3,
    "last": {"mean": 0.6187, "std": 0.0067},
    "best": {"mean": 0.6213, "std": 0.0053},
}
CONVERTED: dict[str, Any] = {"file": "images_best.pt", "sha256": "cd" * 32, "kind": "dm", "values": "zca"}
CONVERTED |= {"clipped": {"share": 0.0123, "largest": 0.4}}
HOSTILE = (
    "# head\n\n<script>alert(1)</script> [x](javascript:alert) ![y](http://evil.example/z) `code` *b* _u_ | a | b |",
    "---\n```\n</td> &lt; $x$ www.evil.example https://evil.example ~~s~~ \x1b[31m \u202e {{ x }} <http://evil.example>",
    "\\\\` \\| \\\n- a\n1. b\n\n    code\n\n[preview]: http://evil.example\n<!-- <b> &#60;b&#62; -->\n===\n'\"",
)


def make(source: Any = None, **changes: Any) -> SyntheticSet:
    """A small set from `SOURCE`, with changes."""
    return build_set(**({"source": SOURCE | (source or {})} | changes))


def text_of(result: SyntheticSet, layout: str = "parquet", **sizes: int) -> str:
    packing = package.Packing(layout=layout)
    return card(result, package.view_of(result, packing), packing.row, {"ncfmkit.json": 10} | sizes)


def parts(text: str) -> tuple[dict[str, Any], str]:
    """The front matter and the Markdown."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def rows(text: str) -> list[list[str]]:
    """Cells of all tables."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


class Page(HTMLParser):
    """What a browser would find in rendered Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(text: str) -> Page:
    """As the most permissive of renderers has it: raw HTML and tables are on."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    return Page(markdown.enable(["table", "strikethrough"]).render(parts(text)[1]))


def test_the_hub_parses_the_front_matter() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.DatasetCard(text_of(make())).data.to_dict()
    assert data == {
        "pretty_name": "tiny-ipc2",
        "license": "mit",
        "task_categories": ["image-classification"],
        "size_categories": ["n<1K"],
        "tags": ["dataset-distillation", "synthetic", "ncfmkit"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }


@pytest.mark.parametrize(
    ("layout", "path"),
    [("safetensors", None), ("webdataset", "*.tar"), ("parquet", "data/train-*.parquet"), ("png", "train/**")],
)
def test_the_view_alone_is_data(layout: str, path: str | None) -> None:
    files = [{"split": "train", "path": path}]
    expected = None if path is None else [{"config_name": "default", "data_files": files}]
    assert parts(text_of(make(), layout))[0].get("configs") == expected


def test_the_columns_of_shards_are_declared() -> None:
    front = parts(text_of(make(soft=True), "webdataset"))[0]["dataset_info"]
    label, facts, soft, image = front["features"]
    assert label == {
        "name": "cls",
        "dtype": {"class_label": {"names": {"0": "class 0", "1": "class 1", "2": "class 2"}}},
    }
    assert [column["name"] for column in (facts, soft, image)] == ["json", "npy", "png"]


@pytest.mark.parametrize(
    ("stated", "front"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("Made by me, ask", {"license": "other", "license_name": "made-by-me-ask"}),
        ("§", {"license": "other", "license_name": "other"}),
    ],
)
def test_licenses_that_the_hub_does_not_know_are_others(stated: str, front: dict[str, str]) -> None:
    text = text_of(make({"license": stated}))
    assert {key: value for key, value in parts(text)[0].items() if key.startswith("license")} == front
    assert f"\n{stated}: the license of the source, tiny" in text


def test_one_student_has_no_deviation() -> None:
    text = text_of(make(score=SCORE | {"n": 1}))
    assert "One student, trained only on this set" in text
    assert "±" not in text


def test_the_score_of_the_original_is_told_of_fewer_bits() -> None:
    result = make(bits=3)
    assert result.manifest.pixels is not None
    original = Original(manifest_sha256="0" * 64, score=ManifestScore.model_validate(SCORE))
    pixels = result.manifest.pixels.model_copy(update={"original": original})
    result = dataclasses.replace(result, manifest=result.manifest.changed(pixels=pixels))
    assert "Not scored with its pixels as stored. The 8-bit set that it was made from reached 61.9% ± 0.7." in text_of(
        result
    )


def test_a_license_that_is_not_known_is_not_made_up() -> None:
    text = text_of(make({"license": None}))
    assert parts(text)[0]["license"] == "unknown"
    assert "Not stated. The set is derived from the images of tiny, whose license applies" in text


@pytest.mark.parametrize(("layout", "expected"), [("safetensors", "n<1K"), ("parquet", "1K<n<10K")])
def test_the_size_is_that_of_what_is_loaded(layout: str, expected: str) -> None:
    assert parts(text_of(make(ipc=100, factor=2), layout))[0]["size_categories"] == [expected]


def test_it_says_what_the_set_is() -> None:
    text = text_of(make(kind="multi", factor=2, soft=True, score=SCORE))
    assert "\n# tiny-ipc2\n" in text
    assert (
        "6 synthetic images of 3 classes, 8 x 8 pixels, color, which stand for the 21 training images of tiny" in text
    )
    assert "mosaics: 2 per class are cut 1 x 1 and 2 x 2 and enlarged to 10 per class" in text
    assert "logits to train on instead of its label" in text
    assert "![preview](preview.png)" in text
    assert "Classes, in label order: class 0, class 1, class 2." in text


def test_it_says_who_taught_the_soft_labels() -> None:
    result = make(soft=True)
    assert "logits to train on instead of its label. " in f"{text_of(result)} ".replace("\n", " ")
    made_by = {"labels": {"soft": True, "temperature": 2.5, "stages": 1}, "pool": {"members": 4}}
    training = result.manifest.training.model_copy(update=made_by)
    taught = dataclasses.replace(result, manifest=result.manifest.changed(training=training))
    says = "the mean log-probability of 4 networks that were trained on the real images, at temperature 2.5."
    assert says in text_of(taught)
    (stored,) = {"They are stored in" in text_of(one) for one in (result, taught)}
    assert not stored
    few = text_of(make(soft=True, label_bits=8))
    assert "logits to train on instead of its label. They are stored in 8 bits." in few
    few = text_of(make(soft=True, label_bits=4, top=2))
    assert "They are stored in 4 bits, those of the top 2 classes and the mean of the others." in few
    odd = training.model_copy(update={"labels": {"soft": True, "temperature": ["<b>"]}, "pool": {}})
    text_of(dataclasses.replace(result, manifest=result.manifest.changed(training=odd)))


@pytest.mark.parametrize("extractor", ["blend", "stages"])
def test_it_says_what_the_extractors_of_a_step_are(extractor: str) -> None:
    result = make()
    settings = result.manifest.settings
    settings = settings | {
        "distill": settings["distill"] | {"extractor": extractor},
        "pool": settings["pool"] | {"snapshots": 3, "extractor_width": 7},
    }
    text = text_of(dataclasses.replace(result, manifest=result.manifest.changed(settings=settings)))
    assert ("at a stage of its training" in text) == (extractor == "stages")
    assert ("blends it with its own initial weights" in text) == (extractor == "blend")
    assert "width 7)" in text


def test_a_plain_set_has_no_mosaics_and_no_logits() -> None:
    text = text_of(make(factor=1, channels=1))
    assert "gray" in text
    for word in ("mosaic", "logits", "softmax", "quantize", "bits", "cut("):
        assert word not in text.split("## How it was made")[0], word


def test_many_classes_are_cut_short() -> None:
    result = make(classes=[f"c{i}" for i in range(60)], ipc=1)
    assert "c48, c49 and 10 more" in text_of(result)
    assert "c50," not in text_of(result)


def test_the_last_epoch_is_the_figure_and_the_best_is_labeled() -> None:
    found = rows(text_of(make(score=SCORE)))
    assert found[0] == ["test accuracy, last epoch", "best epoch", "students", "network", "epochs"]
    assert found[2] == ["61.9% ± 0.7", "62.1% ± 0.5", "3", "convnet-2 width 8", "1,200"]


def test_without_a_score_it_says_how_to_measure_one() -> None:
    text = text_of(make())
    assert "Not scored.\n\nTo score it, run `ncfmkit evaluate . --data DATA` with the real images" in text
    assert "has not been measured" in text
    assert "best epoch" not in text


@pytest.mark.parametrize("recipe", ["cifar10-ipc10", "cifar10-ipc10-cpu", "digits"])
def test_method_and_training_are_those_of_the_settings(recipe: str) -> None:
    settings = load_recipe(recipe)
    d, s = settings.distill, settings.student
    text = text_of(make(settings=to_dict(settings)))
    assert f"{d.steps:,} steps with {d.optimizer}, lr {d.lr:g}" in text
    assert f"at {d.frequencies:,} frequencies per step" in text
    assert f"{settings.pool.members} networks" in text
    assert f"Recipe {recipe}, seed 0" in text
    assert f"{s.epochs:,} epochs, batches of {s.batch:,}, {s.optimizer}, lr {s.lr:g}" in text
    assert "Neural characteristic function matching" in text


def test_other_methods_have_other_words() -> None:
    other = dataclasses.replace(Settings().distill, metric="mean", init="noise", calibration_weight=0.0)
    text = text_of(make(settings=to_dict(dataclasses.replace(Settings(), distill=other))))
    assert "Distribution matching: for each class, the mean features" in text
    assert "Started from noise" in text
    assert "characteristic function" not in text


def test_a_converted_set_does_not_claim_our_method() -> None:
    text = text_of(make({"converted": CONVERTED}))
    assert f"as images\\_best.pt (sha256 {'cd' * 32})" in text
    assert "1.23% of them" in text
    assert "characteristic function" not in text
    assert "frequencies" not in text
    assert "ncfmkit's training recipe for it: 2,000 epochs" in text
    assert "| converted by |" in text


def test_where_it_comes_from_and_how_large_it_is() -> None:
    result = make(bits=3, scale="image", soft=True)
    text = text_of(result)
    cells = rows(text)
    assert ["fingerprint of the source", "ab" * 32] in cells
    assert ["sha256 of the manifest", result.manifest.manifest_sha256] in cells
    assert ["made by", "ncfmkit tests"] in cells
    assert ["pixels, packed", "432"] in cells
    assert ["soft labels", "144"] in cells
    assert ["together", f"{sum(result.manifest.bytes.values()):,}"] in cells
    assert f"Pixels and soft labels take {result.content_bytes / 3:,.0f} bytes per class." in text
    assert "Pixels are stored in 3 bits instead of 8, between the levels of each image and channel." in text
    raw = 21 * 3 * 8 * 8
    assert f"3.94 KiB as raw pixels of the same size, {raw / sum(result.manifest.bytes.values()):.1f}x as much" in text


def test_the_folder_is_listed() -> None:
    text = text_of(make(), "webdataset", **{"tiny-000000.tar": 1024, "tiny-000001.tar": 1024, "classes.txt": 5})
    assert ["`*.tar`", "images to train on as png", "2 KiB, 2 files"] in rows(text)
    assert ["`classes.txt`", "class names, in label order", "5 B"] in rows(text)
    assert "`sha256sum -c SHA256SUMS`" in text
    assert "`ncfmkit verify .`" in text


def test_its_picture_is_there(tmp_path: Path) -> None:
    package.write(make(), tmp_path / "packed", package.Packing(layout="png"))
    text = (tmp_path / "packed/README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith("https://arxiv.org/")] == ["preview.png"]
    assert (tmp_path / "packed/preview.png").is_file()


def hostile(name: str) -> SyntheticSet:
    assert len(printable(name)) < 200  # none of it is cut off
    return make(
        {"name": name, "fingerprint": name, "license": name, "converted": CONVERTED | {"file": name, "kind": name}},
        name=name,
        classes=[f"{i}{name}" for i in range(3)],
        tool=name,
        score=SCORE | {"network": name},
        settings=to_dict(dataclasses.replace(Settings(), recipe=name)),
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_shown(name: str) -> None:
    plain, page = rendered(text_of(make(score=SCORE))), rendered(text_of(hostile(name)))
    links = [attrs.get("href") or attrs.get("src") for tag, attrs in page.tags if tag in ("a", "img")]
    assert links == ["preview.png"]  # the link to the paper is not in the card of a converted set
    tags, expected = ([tag for tag, _ in found.tags] for found in (page, plain))
    assert set(tags) <= set(expected)
    for tag in ("h1", "h2", "p", "table", "tr", "td", "pre"):
        assert tags.count(tag) == expected.count(tag), tag
    assert page.text.count(printable(name)) >= 9
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_what_was_measured_is_only_shown() -> None:
    section = Section(
        sentences=HOSTILE,
        tables=[SectionTable(columns=["a", HOSTILE[0]], rows=[["1", HOSTILE[1]]], caption=HOSTILE[2])],
    )
    result, packing = make(), package.Packing(layout="png")
    view = package.view_of(result, packing)
    plain, full = (
        rendered(card(result, view, packing.row, {}, assessed)) for assessed in ([], [(HOSTILE[0], section)])
    )
    tags, expected = ([tag for tag, _ in page.tags] for page in (full, plain))
    assert set(tags) - {"h3"} <= set(expected)
    for tag, more in (("h1", 0), ("h2", 1), ("h3", 1), ("table", 1), ("tr", 2), ("p", 2), ("pre", 0)):
        assert tags.count(tag) == expected.count(tag) + more, tag
    for name, count in zip(HOSTILE, (3, 2, 2), strict=True):
        assert full.text.count(printable(name)) == count


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_no_yaml_and_no_bare_addresses(name: str) -> None:
    front, body = parts(text_of(hostile(name)))
    assert front["pretty_name"] == printable(name)
    assert front["license"] == "other"
    assert len(front) == 7
    prose = re.sub(r"```python\n.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\()https?://", prose)
    assert not re.search(r"www\.", prose)
    assert not re.search(r"(?<!\\)\$", prose)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_reach_the_code(name: str) -> None:
    code = re.findall(r"```python\n(.*?)```", text_of(hostile(name)), flags=re.DOTALL)
    assert code == re.findall(r"```python\n(.*?)```", text_of(make()), flags=re.DOTALL)
    assert len(code) == 3


ODD: tuple[Any, ...] = ("x", None, True, [], {"a": [1]}, [[]], 10**400, -(10**20), 1e300, 0, "<b>*x*</b>")


TRAINED: dict[str, Any] = {"training": {"student": {"epochs": "many", "milestones": "late"}}}


@pytest.mark.parametrize("odd", ODD)
def test_settings_of_any_type_are_shown(odd: Any) -> None:
    sections = {key: value for key, value in to_dict(Settings()).items() if isinstance(value, dict)}
    for section, table in sections.items():
        changed: Any = dict.fromkeys(table, odd)
        assert "<b>" not in text_of(make(settings=to_dict(Settings()) | {section: changed}, **TRAINED))
        assert "<b>" not in text_of(make(settings=to_dict(Settings()) | {section: odd}, **TRAINED))
    assert "<b>" not in text_of(make(settings={"recipe": odd, "seed": odd}, **TRAINED))


def test_odd_settings_are_text_where_numbers_are_due() -> None:
    settings = to_dict(Settings())
    settings["distill"] |= {"steps": "many", "init": ["a"], "lr": "1e-3"}
    settings["student"] |= {"milestones": "late", "cutmix": "some"}
    text = text_of(make(settings=settings))
    assert "many steps with adamw, lr 1e-3, up to 1,024 real images" in text
    assert "Started from \\['a'\\]." in text
    assert "(x 0.5 after late of the run)" in text
    assert "CutMix in some of the batches" in text


def test_settings_of_later_versions_are_passed_over() -> None:
    settings = to_dict(Settings())
    settings["distill"] |= {"steps": 123, "spin": 3}
    making = text_of(make(settings=settings | {"orbit": {"radius": 1}, "mode": "fast"})).split("## ")[3]
    assert making.startswith("How it was made")
    plain = text_of(make(settings=to_dict(Settings()))).split("## ")[3]
    assert making == plain.replace("20,000 steps", "123 steps") != plain
    settings["distill"] |= {"metric": "quantum"}
    text = text_of(make(settings=settings))
    assert "Matching by quantum, which this version of ncfmkit does not know." in text
    assert "characteristic function" not in text


def test_long_names_are_cut() -> None:
    text = text_of(make(name="x" * 5000))
    assert "# " + "x" * 200 + "...\n" in text
    assert "x" * 201 not in parts(text)[1]


SETS: dict[str, dict[str, Any]] = {
    "no mosaics": {"factor": 1},
    "factor 3": {"factor": 3},
    "multi, gray": {"kind": "multi", "factor": 3, "channels": 1},
    "bound, a part of two factors, soft": {"kind": "bound", "factor": 3, "budget": 21, "soft": True},
    "top of soft labels": {"factor": 2, "soft": True, "label_bits": 4, "top": 2},
    "2 bits, half the color": {"bits": 2, "chroma": "4:2:0"},
    "3 bits, gray, soft": {"bits": 3, "scale": "channel", "channels": 1, "soft": True, "size": 7},
}
WITHOUT_NCFMKIT = """
import json, os, runpy, sys
import numpy as np

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ncfmkit":
            raise ImportError("ncfmkit is not here")

sys.meta_path.insert(0, Absent())
for folder, names in json.loads(sys.argv[1]).items():
    os.chdir(folder)
    sys.path.insert(0, folder)
    for name in names:
        found = runpy.run_path(name)
        np.savez(name + ".npz", images=found["images"], labels=found["labels"])
    sys.path.remove(folder)
    del sys.modules["read_set"]
"""


def blocks(card: str) -> list[str]:
    """The fenced Python code of a card."""
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


def test_every_snippet_gives_the_images_to_train_on(tmp_path: Path) -> None:
    """The code of each card is run in its package, in a process that cannot import ncfmkit."""
    jobs: dict[str, list[str]] = {}
    for number, (which, how) in enumerate(SETS.items()):
        for layout, row in LAYOUTS.items():
            folder = tmp_path / f"{which}, {layout}"
            encoding = None if row.module is None else ("png", "webp")[number // 2 % 2]
            package.write(build_set(**how), folder, package.Packing(layout=layout, encoding=encoding))
            code = blocks((folder / "README.md").read_text(encoding="utf-8"))
            assert len(code) == (2 if row.module is None else 3)
            for place, source in enumerate(code):
                if "torchvision" not in source:  # has a test of its own, since it does not import everywhere
                    (folder / f"snippet{place}.py").write_text(source, encoding="utf-8")
                    jobs.setdefault(str(folder), []).append(f"snippet{place}.py")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", WITHOUT_NCFMKIT, json.dumps(jobs)]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for which, how in SETS.items():
        small = build_set(**how)
        images, labels = small.decoded()
        for layout in LAYOUTS:
            folder = tmp_path / f"{which}, {layout}"
            for name in jobs[str(folder)]:
                found = np.load(folder / f"{name}.npz")
                expected = small.as_dataset().tensors[0] if name == "snippet1.py" else images
                rounded = 0.51 / 255 if name == "snippet2.py" else 1e-5
                np.testing.assert_allclose(
                    found["images"], expected, rtol=1e-5, atol=rounded, err_msg=f"{folder} {name}"
                )
                assert found["labels"].tolist() == labels.tolist()


@pytest.mark.parametrize("which", SETS)
def test_the_torchvision_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    import_torchvision()
    small, folder = build_set(**SETS[which]), tmp_path / "packed"
    package.write(small, folder, package.Packing(layout="png", encoding="webp"))
    source = blocks((folder / "README.md").read_text(encoding="utf-8"))[2]
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), found)
    images, labels = small.decoded()
    np.testing.assert_allclose(found["images"], images, rtol=0, atol=0.51 / 255)
    assert found["labels"].tolist() == labels.tolist()


def test_soft_labels_are_where_the_card_says() -> None:
    for layout, place in {
        "safetensors": "with numpy, `stored.soft_labels`.",
        "parquet": 'with numpy, `stored.soft_labels`; with datasets, `rows["soft_labels"]`.',
        "webdataset": "with webdataset, the `npy` of each sample.",
        "png": "with torchvision, the column `soft_labels` of `train/metadata.parquet`.",
    }.items():
        assert place in text_of(make(soft=True), layout)
        assert "Soft labels" not in text_of(make(), layout)
