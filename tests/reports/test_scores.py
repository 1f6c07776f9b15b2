"""The score table's figures."""

import pytest
from recorded import score
from rich.console import Console

from ncfmkit.reports.scores import score_table
from ncfmkit.run_records import Score


def rendered(rows: list[Score], width: int = 140) -> str:
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
    comparable = ["whole"] if network == "convnet-2 width 64" else []  # with the row of the whole set
    assert heading[1].split() == ["set", "steps", "stored", "on", "last", *comparable, "n", "best*"]
    assert "…" not in text
    assert "best epoch (peeks at the test set)" in text
    assert network in text


def test_rows_show_their_bytes_where_they_are_known():
    known = score("distilled", 0.893, bytes_per_class=2304)
    rows = [known, score("webp", 0.5, bytes_per_class=2297.6), score("whole", 0.97, bytes_per_class=15_360_000)]
    text = rendered(rows, width=80)
    lines = [line.split("1,200")[1].split() for line in text.splitlines() if "1,200" in line]
    assert [cells[2] for cells in lines] == ["2,304", "2,298", "15.4M"]
    assert "bytes: what is stored, per class" in text
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in rendered([known, score("random", 0.5)]).splitlines() if "random" in line)
    assert "–" in line
    assert "bytes" not in rendered([score("distilled", 0.893)])


@pytest.mark.parametrize("width", [80, 140])
def test_unbalanced_test_splits_show_the_balanced_accuracy_and_the_worst_class(width):
    rows = [score("distilled", 0.893, images=50_000, bytes_per_class=15_360_000, balanced=0.6123), score("whole", 0.97)]
    text = rendered(rows, width=width)
    lines = text.splitlines()
    (row,) = (line for line in lines if "50,000" in line)
    assert row.split()[-7:] == ["±", "0.4", "61.2", "±", "1.2", "92.1", "5"]
    assert "worst 73.2" in text  # 0.893 * (1 - 9 / 50)
    assert "–" in next(line for line in lines if "97.0" in line)  # of an earlier version
    assert "best" not in text
    assert "balanced: the mean of the accuracies of the classes" in text
    assert "…" not in text
    assert max(map(len, lines)) <= width
    assert "balanced" not in rendered([score("distilled", 0.893)])


def test_no_column_is_empty():
    assert "whole" not in rendered([score("distilled", 0.893), score("random", 0.5)])


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
    assert "[bold]x[/bold]" in rendered([score("distilled", 0.5).model_copy(update={"label": "[bold]x[/bold]"})])


def test_score_of_an_earlier_version_has_no_steps():
    text = rendered([score("distilled", 0.5).model_copy(update={"steps": None})])
    assert "1,200" not in text
    assert "–" in text


def test_share_of_a_whole_set_that_teaches_nothing_is_left_out():
    text = rendered([score("distilled", 0.5), score("whole", 0.0)])
    assert "50.0" in text
