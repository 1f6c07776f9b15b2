"""`croissant.json`, read by `mlcroissant`: valid, with the records of every view and the names as they are."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_set

from ncfmkit.files import sha256_of
from ncfmkit.sets import package
from ncfmkit.sets.croissant import NAME
from ncfmkit.sets.manifest import to_bytes
from ncfmkit.sets.synthetic import SyntheticSet

HOSTILE = ('http://evil.example/#a "b"', '{"@id": "classes", "@type": "cr:FileObject"}', "Ä </script> \u202e@context")
SOURCE = {"name": "tiny", "fingerprint": "ab" * 32, "train_images": 21, "license": "mit"}


@pytest.fixture
def mlcroissant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("mlcroissant")
    home = importlib.import_module("mlcroissant._src.operation_graph.operations.extract")
    monkeypatch.setattr(home, "EXTRACT_PATH", type(home.EXTRACT_PATH)(tmp_path / "extracted"))  # else the user's cache
    return library


def make(**changes: Any) -> SyntheticSet:
    kept: dict[str, Any] = {"source": SOURCE, "soft": True}
    return build_set(**(kept | changes))


def described(folder: Path, result: SyntheticSet, layout: str, **packing: Any) -> dict[str, Any]:
    """The content of `croissant.json` in a package."""
    package.write(result, folder, package.Packing(layout=layout, **packing))
    found: dict[str, Any] = json.loads((folder / NAME).read_bytes())
    return found


# rdflib, which mlcroissant uses, is behind; mlcroissant leaves files open
reads = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def opened(library: Any, folder: Path, result: SyntheticSet, layout: str, **packing: Any) -> Any:
    described(folder, result, layout, **packing)
    return library.Dataset(folder / NAME)


@reads
@pytest.mark.parametrize("layout", ["parquet", "webdataset", "png"])
@pytest.mark.parametrize("classes", [("class 0", "class 1", "class 2"), HOSTILE], ids=["plain", "hostile"])
def test_it_is_valid(mlcroissant: Any, tmp_path: Path, layout: str, classes: tuple[str, ...]) -> None:
    source = SOURCE | ({"name": HOSTILE[0], "license": HOSTILE[1]} if classes == HOSTILE else {})
    result = make(classes=classes, source=source, name=classes[1])
    dataset = opened(mlcroissant, tmp_path / "package", result, layout)
    metadata = dataset.metadata
    assert not metadata.ctx.issues.errors
    (warning,) = metadata.ctx.issues.warnings  # a package holds no times
    assert "datePublished" in warning
    assert metadata.name == classes[1]
    assert metadata.license == [source["license"]]
    names = [row["classes/name"] for row in dataset.records("classes")]
    assert names == list(classes)


SHARDS = {"parquet": {"shard_bytes": 3000}, "webdataset": {"shard_bytes": 20000}, "png": {}}


@reads
@pytest.mark.parametrize("layout", ["parquet", "png"])
def test_records(mlcroissant: Any, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    result = make(classes=HOSTILE, name="tïny")
    dataset = opened(mlcroissant, tmp_path / "package", result, layout, **SHARDS[layout])
    records = list(dataset.records("images"))
    images, labels = result.decoded()
    assert [record["images/label"] for record in records] == labels.tolist()
    np.testing.assert_array_equal([pixels(record) for record in records], to_bytes(images).numpy())
    assert result.soft_labels is not None
    np.testing.assert_array_equal([record["images/soft_labels"] for record in records], result.soft_labels.numpy())
    (record_set,) = (found for found in dataset.metadata.record_sets if found.id == "images")
    assert [field.id for field in record_set.fields if field.repeated] == ["images/soft_labels"]
    assert ["datePublished" in message for message in caplog.messages] == [True]  # and no other warning


@reads
def test_records_of_shards(mlcroissant: Any, tmp_path: Path) -> None:
    result = make(name="tïny")
    dataset = opened(mlcroissant, tmp_path / "package", result, "webdataset", **SHARDS["webdataset"])
    images, labels = result.decoded()
    found = {int(record["images/key"]): pixels(record) for record in dataset.records("images")}
    np.testing.assert_array_equal([found[i] for i in range(len(images))], to_bytes(images).numpy())
    classes = {int(record["labels/key"]): record["labels/label"] for record in dataset.records("labels")}
    assert [classes[i] for i in range(len(images))] == labels.tolist()


def pixels(record: dict[str, Any]) -> np.ndarray:
    return np.asarray(record["images/image"]).transpose(2, 0, 1)


@pytest.mark.parametrize("layout", SHARDS)
def test_every_file_but_the_pictures_of_a_class_is_listed(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "package"
    distribution = described(folder, make(name="tïny"), layout, **SHARDS[layout])["distribution"]
    listed = {entry["contentUrl"]: entry for entry in distribution if entry["@type"] == "cr:FileObject"}
    there = package.files_in(folder) - {NAME}
    assert listed.keys() == {name for name in there if not (name.startswith("train/") and name.endswith(".png"))}
    assert sum(name.endswith((".tar", ".parquet")) for name in there) > (layout != "png")
    for name, entry in listed.items():
        assert entry["sha256"] == sha256_of(folder / name)
        assert entry["contentSize"] == f"{(folder / name).stat().st_size} B"
        assert entry["@id"].isascii()


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    origin = {"file": "a", "sha256": "", "kind": "", "values": "", "clipped": {"share": 0.0, "largest": 0.0}}
    converted = make(source=SOURCE | {"license": None, "converted": origin})
    found = described(tmp_path / "converted", converted, "safetensors")
    assert not {"license", "citeAs", "recordSet", "datePublished"} & found.keys()
    plain = described(tmp_path / "plain", make(soft=False), "parquet")
    assert [field["@id"] for field in plain["recordSet"][1]["field"]] == ["images/image", "images/label"]
