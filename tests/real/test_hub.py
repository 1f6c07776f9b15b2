"""`hf://NAME`: what the `datasets` library is asked for; no test connects to anything."""

import sys

import pytest
from other_libraries import offline_datasets
from source_files import PLAIN, assert_sorted_copy, encoded, pixels

from ncfmkit.errors import UserError
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.opening import open_real


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    return offline_datasets(tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ("hf://me/birds", ("me/birds", None)),
        ("hf://datasets/me/birds", ("me/birds", None)),
        ("hf://birds:small", ("birds", "small")),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_the_library_is_asked(datasets, monkeypatch, data, asked, download):
    images, labels = pixels(4), [0, 1, 1, 0]
    rows = {"image": [{"bytes": encoded(i), "path": None} for i in images], "label": labels}
    stored = datasets.Dataset.from_dict(rows)
    seen = []

    def load_dataset(*arguments):
        seen.append((arguments, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=stored, test=stored)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    real = open_real(data, PLAIN, download=download)
    assert seen == [(asked, not download)]
    assert not datasets.config.HF_HUB_OFFLINE
    assert real.name == "birds"
    assert_sorted_copy(real.test, images.transpose(0, 3, 1, 2), labels)


def test_what_is_not_in_the_cache_is_not_fetched_unasked(datasets):
    with pytest.raises(UserError, match=r"hf://me/birds is not in the cache of the datasets library: pass --download"):
        open_real("hf://me/birds", PLAIN)
    with pytest.raises(UserError, match=r"hf://me/birds: fetching failed: .*reach.*\n.*hf://OWNER/NAME:CONFIGURATION"):
        open_real("hf://me/birds", PLAIN, download=True)


def test_without_a_name():
    with pytest.raises(UserError, match="hf://: expected hf://OWNER/NAME"):
        open_real("hf://", PLAIN)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf://me/birds is read by the library datasets, .* \(the extra 'hub'\)"):
        open_real("hf://me/birds", PLAIN)


def test_an_address_is_recorded_as_it_is():
    assert DataArguments(data="hf://me/birds").recorded()["data"] == "hf://me/birds"


@pytest.mark.parametrize("inside", [False, True])
def test_a_path_is_read_only_in_the_caches_of_the_library(tmp_path, datasets, monkeypatch, inside):
    """A published table could name any picture of this machine."""
    cache = tmp_path / "fetched"
    private = (cache if inside else tmp_path / "mine") / "private.png"
    private.parent.mkdir()
    private.write_bytes(encoded(pixels(1)[0]))
    path = str(cache / ".." / private.parent.name / private.name)
    rows = {"image": [{"bytes": None, "path": path}] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    stored = datasets.Dataset.from_dict(rows, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=stored, test=stored))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    cache.mkdir(exist_ok=True)
    if inside:
        assert len(open_real("hf://me/birds", PLAIN).train.images) == 2
    else:
        with pytest.raises(UserError, match=r"has the path of a picture, .*private\.png', but not its bytes"):
            open_real("hf://me/birds", PLAIN)
