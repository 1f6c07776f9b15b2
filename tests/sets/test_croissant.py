"""`croissant.json`, read by `mlcroissant`: valid, with the records of every view and the names as they are."""

import dataclasses
import importlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_set
from PIL import Image

from ncfmkit.files import sha256_of
from ncfmkit.sets.croissant import NAME, croissant
from ncfmkit.sets.manifest import tensors_of, to_bytes, with_digests
from ncfmkit.sets.synthetic import SyntheticSet

HOSTILE = ('http://evil.example/#a "b"', '{"@id": "classes", "@type": "cr:FileObject"}', "Ä </script> \u202e@context")
LICENSE = {"name": "tiny", "fingerprint": "ab" * 32, "train_images": 21, "license": "mit"}


@pytest.fixture
def mlcroissant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("mlcroissant")
    home = importlib.import_module("mlcroissant._src.operation_graph.operations.extract")
    monkeypatch.setattr(home, "EXTRACT_PATH", type(home.EXTRACT_PATH)(tmp_path / "extracted"))  # else the user's cache
    return library


def make(**changes: Any) -> SyntheticSet:
    kept: dict[str, Any] = {"source": LICENSE, "soft": True}
    result = build_set(**(kept | changes))
    return dataclasses.replace(result, manifest=with_digests(result.manifest, tensors_of(result)))


def records_of(result: SyntheticSet) -> Iterator[tuple[bytes, int, np.ndarray]]:
    """PNG, label and soft labels of every decoded image."""
    assert result.soft_labels is not None
    images, labels = result.decoded()
    for image, label, soft in zip(to_bytes(images).numpy(), labels.tolist(), result.soft_labels.numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        yield file.getvalue(), label, soft


def write_parquet(folder: Path, result: SyntheticSet) -> None:
    (folder / "data").mkdir()
    images, labels, soft = zip(*records_of(result), strict=True)
    half = len(images) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        columns = {
            "image": [{"bytes": image, "path": "a.png"} for image in images[part]],
            "label": pa.array(labels[part], pa.int64()),
            "soft_labels": pa.array([row.tolist() for row in soft[part]], pa.list_(pa.float16())),
        }
        pq.write_table(pa.table(columns), folder / f"data/train-{number:05d}-of-00002.parquet")


def write_shards(folder: Path, result: SyntheticSet) -> None:
    records = list(enumerate(records_of(result)))
    for number, part in enumerate((records[:7], records[7:])):
        with tarfile.open(folder / f"tïny-{number:06d}.tar", "w") as tar:
            for index, (image, label, _) in part:
                for ending, content in (("cls", str(label).encode()), ("json", b"{}"), ("png", image)):
                    member = tarfile.TarInfo(f"{index:08d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_class_folders(folder: Path, result: SyntheticSet) -> None:
    for index, (image, label, _) in enumerate(records_of(result)):
        home = folder / "train" / f"{label:02d}_a b%ü"
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{index:05d}.png").write_bytes(image)


def described(folder: Path, result: SyntheticSet, layout: str) -> dict[str, Any]:
    for name in ("README.md", "synthetic.safetensors", "preview.png"):
        (folder / name).write_bytes(name.encode())
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): (path.stat().st_size, sha256_of(path)) for path in paths}
    found = croissant(result.manifest, layout=layout, encoding="png", files=files)
    (folder / NAME).write_text(json.dumps(found))
    return found


Write = Callable[[Path, SyntheticSet], None]
WRITERS: dict[str, Write] = {"parquet": write_parquet, "webdataset": write_shards, "png": write_class_folders}
# rdflib, which mlcroissant uses, is behind; mlcroissant leaves files open
reads = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def opened(library: Any, folder: Path, result: SyntheticSet, layout: str) -> Any:
    WRITERS[layout](folder, result)
    described(folder, result, layout)
    return library.Dataset(folder / NAME)


@reads
@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("classes", [("class 0", "class 1", "class 2"), HOSTILE], ids=["plain", "hostile"])
def test_it_is_valid(mlcroissant: Any, tmp_path: Path, layout: str, classes: tuple[str, ...]) -> None:
    source = LICENSE | ({"name": HOSTILE[0], "license": HOSTILE[1]} if classes == HOSTILE else {})
    result = make(classes=classes, source=source, name=classes[1])
    dataset = opened(mlcroissant, tmp_path, result, layout)
    metadata = dataset.metadata
    assert not metadata.ctx.issues.errors
    (warning,) = metadata.ctx.issues.warnings  # a package holds no times
    assert "datePublished" in warning
    assert metadata.name == classes[1]
    assert metadata.license == [source["license"]]
    names = [row["classes/name"] for row in dataset.records("classes")]
    assert names == list(classes)


@reads
def test_records_of_parquet(mlcroissant: Any, tmp_path: Path) -> None:
    result = make()
    records = list(opened(mlcroissant, tmp_path, result, "parquet").records("images"))
    images, labels = result.decoded()
    assert [record["images/label"] for record in records] == labels.tolist()
    np.testing.assert_array_equal([pixels(record) for record in records], to_bytes(images).numpy())
    assert result.soft_labels is not None
    np.testing.assert_array_equal([record["images/soft_labels"] for record in records], result.soft_labels.numpy())


@reads
def test_records_of_shards(mlcroissant: Any, tmp_path: Path) -> None:
    result = make()
    dataset = opened(mlcroissant, tmp_path, result, "webdataset")
    images, labels = result.decoded()
    found = {int(record["images/key"]): pixels(record) for record in dataset.records("images")}
    np.testing.assert_array_equal([found[i] for i in range(len(images))], to_bytes(images).numpy())
    classes = {int(record["labels/key"]): record["labels/label"] for record in dataset.records("labels")}
    assert [classes[i] for i in range(len(images))] == labels.tolist()


@reads
def test_records_of_class_folders(mlcroissant: Any, tmp_path: Path) -> None:
    result = make()
    dataset = opened(mlcroissant, tmp_path, result, "png")
    label_of = {row["classes/folder"].encode(): row["classes/label"] for row in dataset.records("classes")}
    records = list(dataset.records("images"))
    images, labels = result.decoded()
    assert [label_of[record["images/folder"]] for record in records] == labels.tolist()
    np.testing.assert_array_equal([pixels(record) for record in records], to_bytes(images).numpy())


def pixels(record: dict[str, Any]) -> np.ndarray:
    return np.asarray(record["images/image"]).transpose(2, 0, 1)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_file_but_the_pictures_of_a_class_is_listed(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path, make())
    listed = {
        entry["contentUrl"]: entry
        for entry in described(tmp_path, make(), layout)["distribution"]
        if entry["@type"] == "cr:FileObject"
    }
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert listed.keys() == {name for name in there - {NAME} if not name.startswith("train/")}
    for name, entry in listed.items():
        assert entry["sha256"] == sha256_of(tmp_path / name)
        assert entry["contentSize"] == f"{(tmp_path / name).stat().st_size} B"
        assert entry["@id"].isascii()


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    converted = LICENSE | {"license": None, "converted": {"file": "a.pt"}}
    found = described(tmp_path, make(source=converted), "safetensors")
    assert not {"license", "citeAs", "recordSet", "datePublished"} & found.keys()
    write_parquet(tmp_path, make())
    plain = described(tmp_path, make(soft=False), "parquet")
    assert [field["@id"] for field in plain["recordSet"][1]["field"]] == ["images/image", "images/label"]
