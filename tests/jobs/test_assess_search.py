"""`ncfmkit assess --only search`, from the command's function to its files."""

from pathlib import Path
from typing import Any

import pytest
from conftest import build_set
from pages import Page

from ncfmkit.assessment import Assessment
from ncfmkit.jobs.assess import assess, dry_run
from ncfmkit.scoring import search
from ncfmkit.sets import set_file

pytestmark = pytest.mark.usefixtures("one_cache", "own_folder")
QUICK: dict[str, Any] = {
    "data": "digits",
    "size": 8,
    "color": "gray",
    "only": "search",
    "network.width": 8,
    "student.epochs": 2,
    "student.whole_epochs": 2,
    "runtime.compile": "off",
    "runtime.device": "cpu",
}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(search, "SAMPLE", 3)
    path = Path("set.safetensors")
    set_file.save(build_set("single", 1, classes=tuple(map(str, range(10))), channels=1, ipc=1), path)
    return path


def test_from_a_set_to_a_page(path: Path) -> None:
    found = assess(path, **QUICK)
    assert found.search is not None
    assert [row.set for row in found.search.proxies] == ["distilled", "random", "early"]
    assert found.search.space == 240
    assert Assessment.read(Path("assessment/assess.json")) == found
    page = Page(Path("assessment/assess.html"))
    page.check_safe()
    for words in (
        "Architecture search",
        "Spearman",
        "regret, points",
        "chosen by the set",
        str(found.search.networks[2]),
    ):
        assert words in page.text
    assert not list(dry_run(path, **QUICK))


def test_the_pool_says_how_long_the_whole_split_is_trained(path: Path) -> None:
    """Where no epochs of its own are set: another number of them is another result."""
    by_pool = {key: value for key, value in QUICK.items() if key != "student.whole_epochs"}
    found = assess(path, **by_pool | {"pool.epochs": 2})
    again = assess(path, **by_pool | {"pool.epochs": 3})
    assert found.search is not None
    assert again.search is not None
    assert (found.search.whole.epochs, again.search.whole.epochs) == (2, 3)
    assert found.search.proxies[0].accuracies == again.search.proxies[0].accuracies
