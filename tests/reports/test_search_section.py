"""The section of an architecture search: its sentences, tables and plot say what was measured."""

from pathlib import Path

import pytest
from pages import Page
from rich.console import Console

from ncfmkit.assessment import Correlation, Proxy, Search, SearchedNetwork, SearchRow
from ncfmkit.reports import layout
from ncfmkit.reports.assessment import Heading
from ncfmkit.reports.search_section import section
from ncfmkit.reports.sections import Section, for_page, for_terminal

WHOLE = (0.9, 0.95, 0.8)


def proxy(name: str, value: float | None, chosen: int, *, seconds: float = 2.0) -> Proxy:
    correlation = None if value is None else Correlation(value=value, low=-0.25, high=1.0)
    return Proxy(
        set=name,
        label=name,
        images=10,
        epochs=60,
        steps=60,
        accuracies=(0.4, 0.5, 0.3),
        seconds=seconds,
        spearman=correlation,
        kendall=correlation,
        chosen=chosen,
        regret=max(WHOLE) - WHOLE[chosen],
    )


def search(*proxies: Proxy, seconds: float = 50.0) -> Search:
    pooled = {"activation": "ReLU", "norm": "none", "pooling": "max"}
    return Search(
        space=480,
        networks=tuple(SearchedNetwork(depth=depth, width=16, **pooled) for depth in (1, 2, 3)),
        proxies=proxies,
        whole=SearchRow(
            set="whole", label="whole", images=900, epochs=60, steps=660, accuracies=WHOLE, seconds=seconds
        ),
    )


def shown(made: Section) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(for_terminal(made))
    return capture.get()


def test_a_search_with_a_regret() -> None:
    made = section(search(proxy("distilled", 0.5, 0), proxy("random", -0.1, 2), proxy("early", 0.75, 1)))
    assert [sentence.replace("\u00a0", " ") for sentence in made.sentences] == [
        "Of 3 networks, the set chooses 1 x 16, ReLU, no norm, max pooling, which reaches 90.0% on the whole split. "
        "The best, 2 x 16, ReLU, no norm, max pooling, reaches 95.0%: a regret of 5.0 points. One that is drawn "
        "blindly has a regret of 6.7 points on average.",
        "It ranks them with Spearman's correlation 0.50 (−0.25 to 1.00) to their ranks on the whole split; as well or "
        "better: early stopping on the whole split (0.75); worse: random real images (−0.10).",
        "Training all of them on the set takes 2.0 s, on the whole split 50 s: 25.0 times as long.",
    ]
    of_proxies, of_networks = made.tables
    assert of_proxies.rows[0] == ["the set", "60", *["0.50\u00a0(−0.25\u00a0to\u00a01.00)"] * 2, "5.0", "2.0"]
    assert [row[4] for row in of_proxies.rows] == ["5.0", "15.0", "0.0", "–"]
    assert [row[-1] for row in of_networks.rows] == ["95.0", "90.0", "80.0"]
    assert [row[0].endswith(" (chosen)") for row in of_networks.rows] == [False, True, False]
    assert of_networks.strong == [1]
    assert all(len(line) <= 80 for line in shown(made).splitlines())


def test_a_search_without_one() -> None:
    made = section(search(proxy("distilled", 1.0, 1), proxy("random", None, 0), seconds=1.0))
    assert "which none surpasses on the whole split: 95.0%, a regret of 0." in made.sentences[0]
    assert made.sentences[1].endswith("; worse: random real images (–).")
    assert made.sentences[2].endswith("on the whole split 1.0\u00a0s: no longer.")
    assert "--student-epochs asks for fewer" in made.sentences[3]  # no early stopping


def test_a_set_that_ranks_nothing() -> None:
    made = section(search(proxy("distilled", None, 0), proxy("random", 0.5, 0), proxy("early", 0.5, 0)))
    assert "it does not rank them" in made.sentences[1]
    assert made.tables[0].rows[0][2:4] == ["–", "–"]


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_plot_marks_the_chosen_and_the_best(tmp_path: Path, chosen: int) -> None:
    made = section(search(proxy("distilled", 0.5, chosen), proxy("random", 0.5, 0)))
    path = layout.write_page(
        tmp_path / "page.html",
        "assess.html",
        title="test",
        sections=[(Heading(title="t", asks="a", source="s"), for_page(made, "search"), "3 s")],
        students="",
        provenance={},
    )
    page = Page(path)
    for words in ("chosen by the set", "best on the whole split", "test accuracy %, trained on the set"):
        assert page.text.count(words) == 2
    assert "1 x 16, ReLU, no norm, max pooling: 40.0% on the set, 90.0% on the whole split" in page.source
