"""DD-Ranking scores as people read them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from recorded import score
from rich.console import Console

from ncfmkit.assessment import AssessedSet, Assessment, Gap, Images, Labels, Ranking, RankingCell, RobustScore
from ncfmkit.comparison import ComparedOn
from ncfmkit.config import Settings, to_dict
from ncfmkit.reports.assessment import Heading, tables, write_page
from ncfmkit.reports.ranking_section import section
from ncfmkit.run_records import Accuracy

HEADINGS = {"ranking": Heading(title="DD-Ranking scores", asks="What are the images worth?", source="a paper")}


def cell(images: Images, labels: Labels, augmented: bool, mean: float, n: int) -> RankingCell:
    values = tuple(mean + 0.01 * k for k in range(n))
    last = Accuracy(mean=mean, std=0.012 if n > 1 else 0.0, values=values)
    row = score(images, mean, n=n, images=30).model_copy(update={"last": last})
    return RankingCell(images=images, labels=labels, augmented=augmented, score=row)


def gap(mean: float, n: int) -> Gap:
    return Gap(mean=mean, std=0.012 if n > 1 else 0.0, values=(mean,) * n)


def robust(mean: float, n: int) -> RobustScore:
    return RobustScore(mean=mean, std=0.034 if n > 1 else 0.0, values=(mean,) * n)


def ranking(*, soft: bool = True, augmented: bool = True, n: int = 3, hlr: float = 0.123) -> Ranking:
    accuracy = {("set", "hard"): 0.5, ("set", "soft"): 0.55, ("random", "hard"): 0.3, ("random", "soft"): 0.41}
    found: list[RankingCell] = []
    for a in (True, False) if augmented else (False,):
        for (images, labels), mean in accuracy.items():
            if soft or labels == "hard":
                found.append(cell(images, labels, a, mean - (0.02 if a else 0.0), n))  # type: ignore[arg-type]
    found.append(cell("whole", "hard", augmented, 0.9, n))
    return Ranking(
        cells=tuple(found),
        labels="soft" if soft else "hard",
        hlr=gap(hlr, n),
        ior=gap(0.2345, n),
        ior_unaugmented=gap(-0.017, n) if augmented else None,
        lrs=robust(0.291, n),
        ars=robust(0.348, n) if augmented else None,
    )


def assessment(found: Ranking) -> Assessment:
    settings = to_dict(Settings())
    return Assessment(
        set=AssessedSet(
            name="a set", path="runs/a", manifest_sha256="ab" * 32, per_class=3, bytes_per_class=84.0, soft_labels=True
        ),
        data=ComparedOn(name="digits", fingerprint="f" * 64, test=450, classes=tuple("0123456789")),
        recipe={name: settings[name] for name in ("seed", "network", "student")},
        device="cpu",
        precision="fp32",
        versions={"torch": "2.13.0"},
        seconds={"ranking": 61.0},
        ranking=found,
    )


def said(found: Ranking) -> str:
    return " ".join(section(found).sentences).replace("\u00a0", " ")


def test_what_is_said_first() -> None:
    assert said(ranking()) == (
        "The label-robust score (LRS) is 29.1 ± 3.4, the augmentation-robust score (ARS) 34.8 ± 3.4, on a scale from 0 "
        "to 100. With hard labels, students of the set are 12.3 points below those of the whole training split (HLR). "
        "With soft labels, they are 23.4 points above those of random real images (IOR), and 1.7 points below them "
        "without augmentation. Soft labels make a difference of +5.0 points on the set and of +11.0 points on random "
        "real images. Augmentation makes a difference of −2.0 points on the set and of −2.0 points on random real "
        "images."
    )


def test_what_is_not_there_is_not_said() -> None:
    text = said(ranking(soft=False, augmented=False, n=1, hlr=-0.004))
    assert "LRS) is 29.1 on a scale" in text
    assert "augments nothing: there is no augmentation-robust score (ARS)" in text
    assert "are 0.4 points above those of the whole training split" in text
    assert "difference" not in text
    assert "±" not in text
    scores, grid = section(ranking(soft=False, augmented=False, n=1)).tables
    assert [row[0] for row in scores.rows] == ["LRS", "HLR", "IOR"]
    assert list(grid.columns) == ["trained on", "accuracy"]
    assert "teachers" not in grid.caption


def test_the_grid_shows_every_kind_of_students() -> None:
    scores, grid = section(ranking()).tables
    rows = [[text.replace("\u00a0", " ") for text in row] for row in grid.rows]
    assert rows == [
        ["the set, hard labels", "48.0 ± 1.2", "50.0 ± 1.2"],
        ["the set, soft labels", "53.0 ± 1.2", "55.0 ± 1.2"],
        ["random real images, hard labels", "28.0 ± 1.2", "30.0 ± 1.2"],
        ["random real images, soft labels", "39.0 ± 1.2", "41.0 ± 1.2"],
        ["whole training split, hard labels", "90.0 ± 1.2", "–"],
    ]
    assert (
        "as many as the set stores, 30, others for each repeat; soft labels are of the set's teachers" in grid.caption
    )
    assert f"ARS of {100 * (1 - np.exp(-1)) / (np.e - np.exp(-1)):.1f}." in scores.caption
    assert (scores.strong, grid.strong) == ([0, 1], [0, 1])


@pytest.mark.parametrize("how", [{}, {"soft": False, "augmented": False, "n": 1}])
def test_the_page_and_the_terminal_show_it(tmp_path: Path, how: dict[str, Any]) -> None:
    found = assessment(ranking(**how))
    page = Page(write_page(tmp_path / "assess.html", found, HEADINGS))
    page.check_safe()
    assert "The label-robust score (LRS) is 29.1" in page.text
    assert "whole training split" in page.text
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(tables(found, HEADINGS))
    lines = shown.get().splitlines()
    assert any(line.startswith("IOR") for line in lines)
    assert max(map(len, lines)) <= 80
