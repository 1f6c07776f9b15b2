"""The layout `parquet`: what is written comes back, `datasets` reads it, and nothing else is taken."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from other_libraries import offline_datasets

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real
from ncfmkit.sets import package
from ncfmkit.sets.manifest import tensors_of, with_digests
from ncfmkit.sets.views import parquet, parquet_headers
from ncfmkit.sets.views.records import Contents, Record

LICENSED: dict[str, Any] = {"source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": "mit"}}
CLASSES = ("cat", "b/../a", "ünï | cödé")
PER_CLASS = 4
COUNT = len(CLASSES) * PER_CLASS
SMALL = 2300  # bytes of a file of three records without soft labels
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}


def make(soft: tuple[int, ...] | None = (4, 0, 3), **changes: Any) -> tuple[Contents, list[Record]]:
    """Random records; `soft` are the decoded images of the first ones, over and over."""
    rows = None if soft is None else np.resize(np.array(soft), COUNT)
    contents = Contents(
        name="tiny",
        classes=CLASSES,
        shape=(3, 5, 5),
        per_class=PER_CLASS,
        soft_rows=rows,
        encoding="png",
        images="stored",
        shard_bytes=1 << 20,
    )
    contents, rng = dataclasses.replace(contents, **changes), np.random.default_rng(0)
    records = [
        Record(
            image=rng.integers(0, 256, contents.shape, np.uint8),
            label=i // PER_CLASS,
            soft=None if rows is None else rng.normal(0, 4, (rows[i], len(CLASSES))).astype(np.float16),
        )
        for i in range(COUNT)
    ]
    return contents, records


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"soft": None},
    "gray": {"soft": None, "shape": (1, 5, 5)},
    "webp": {"soft": None, "encoding": "webp"},
    "gray webp": {"soft": None, "encoding": "webp", "shape": (1, 5, 5)},
    "soft": {"soft": (4,)},
    "soft, uneven": {},
    "decoded": {"soft": (1,), "images": "decoded"},
}


def written(folder: Path, contents: Contents, records: Iterable[Record]) -> Path:
    folder.mkdir(parents=True)
    parquet.write(folder, contents, records)
    return folder


def read(folder: Path, contents: Contents) -> list[Record]:
    return list(parquet.read(folder, contents))


def assert_equal(got: list[Record], expected: list[Record]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a.image, b.image)
        assert a.label == b.label
        assert (a.soft is None) == (b.soft is None)
        if a.soft is not None and b.soft is not None:
            assert a.soft.dtype == np.float16
            assert np.array_equal(a.soft, b.soft)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_comes_back(tmp_path: Path, kind: str) -> None:
    contents, records = make(**KINDS[kind])
    assert_equal(read(written(tmp_path / "a", contents, records), contents), records)


@pytest.mark.parametrize(("shard_bytes", "count"), [(1, 12), (SMALL, 4), (1 << 20, 1)])
def test_a_new_file_begins_where_one_is_full(tmp_path: Path, shard_bytes: int, count: int) -> None:
    contents, records = make(soft=None, shard_bytes=shard_bytes)
    folder = written(tmp_path / "a", contents, iter(records))
    assert list(files(folder)) == [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    reader = dataclasses.replace(contents, shard_bytes=1 << 30)  # the one who reads does not know it
    assert_equal(read(folder, reader), records)


@pytest.mark.parametrize("shard_bytes", [2_000, 2_500, 5_000, 10_000, 20_000, 100_000])
@pytest.mark.parametrize("group_rows", [1, 2, 1000])
@pytest.mark.parametrize("side", [5, 24])
@pytest.mark.parametrize("kind", ["plain", "soft, uneven", "many logits", "decoded", "webp"])
def test_files_stay_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, side: int, group_rows: int, shard_bytes: int
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", group_rows)
    how = {"soft": (200, 0)} if kind == "many logits" else KINDS[kind]
    contents, records = make(**how | {"shape": (3, side, side), "shard_bytes": shard_bytes})
    folder = written(tmp_path / "a", contents, records)
    paths = sorted((folder / "data").iterdir())
    sizes = {path: (path.stat().st_size, pq.read_metadata(path).num_rows) for path in paths}
    assert all(size <= shard_bytes or rows == 1 for size, rows in sizes.values())
    if shard_bytes >= 20_000:  # files are not much smaller than they could be, either
        assert len(sizes) <= 1 + 2 * sum(size for size, _ in sizes.values()) / shard_bytes
    assert_equal(read(folder, contents), records)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    contents, records = make()
    assert files(written(tmp_path / "a", contents, records)) == files(written(tmp_path / "b", contents, iter(records)))


def test_row_groups_are_bounded_in_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, records = make(soft=None)
    for name, value, rows in (
        ("GROUP_ROWS", 5, [5, 5, 2]),
        ("GROUP_BYTES", 4 * 75, [4, 4, 4]),
        ("GROUP_BYTES", 1, [1] * 12),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(parquet, name, value)
            folder = written(tmp_path / f"{name}{value}", contents, records)
            metadata = pq.read_metadata(folder / "data/train-00000-of-00001.parquet")
            assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == rows
            assert_equal(read(folder, contents), records)


def test_columns_are_plain(tmp_path: Path) -> None:
    contents, records = make()
    folder = written(tmp_path / "a", contents, records)
    group = pq.read_metadata(folder / "data/train-00000-of-00001.parquet").row_group(0)
    for column in map(group.column, range(4)):
        assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
        assert set(column.encodings) == {"PLAIN", "RLE"}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    contents, records = make()
    folder = written(tmp_path / "a", contents, records)
    with pytest.raises(UserError, match=r"cannot write .*data: File exists"):
        parquet.write(folder, contents, records)


@pytest.mark.parametrize("images", ["stored", "decoded"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("channels", "encoding"), [(3, "png"), (1, "png"), (3, "webp"), (1, "webp")])
def test_datasets_loads_a_whole_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, encoding: str, soft: bool, images: str
) -> None:
    datasets = offline_datasets(tmp_path / "hub", monkeypatch)
    synthetic = build_set("bound", 2, 3, classes=CLASSES, channels=channels, soft=soft, **LICENSED)
    folder = tmp_path / "packed"
    packing = package.Packing(layout="parquet", encoding=encoding, images=images, shard_bytes=3000)
    package.write(synthetic, folder, packing)
    beside = {"README.md", "preview.png", "ncfmkit.json", "SHA256SUMS", "synthetic.safetensors", "data"}
    assert {path.name for path in folder.iterdir()} == beside
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train"}
    rows = loaded["train"]
    assert rows.features["image"] == datasets.Image()
    assert rows.features["label"] == datasets.ClassLabel(names=list(CLASSES))
    contents = package.contents_of(with_digests(synthetic.manifest, tensors_of(synthetic)), packing)
    expected = read(folder, contents)
    assert len(rows) == len(expected)
    for row, record in zip(rows, expected, strict=True):
        pixels = np.atleast_3d(np.asarray(row["image"])).transpose(2, 0, 1)
        assert (pixels == record.image).all()
        assert pixels.shape[0] == (channels if encoding == "png" else 3)
        assert row["label"] == record.label
        if soft:
            assert record.soft is not None
            wanted = record.soft[0] if images == "decoded" else record.soft
            assert np.array_equal(np.array(row["soft_labels"], np.float16).reshape(wanted.shape), wanted)
    value = datasets.Value("float16")
    lists = datasets.List(value) if images == "decoded" else datasets.List(datasets.List(value))
    assert rows.features.get("soft_labels") == (lists if soft else None)


@pytest.mark.parametrize("kind", ["plain", "gray webp", "soft, uneven"])
def test_it_is_real_data_for_ncfmkit(tmp_path: Path, kind: str) -> None:
    contents, records = make(**KINDS[kind])
    folder = written(tmp_path / "a", contents, records)
    (folder / "README.md").write_text("beside data")
    real = open_real(str(folder), DataSettings(color="gray" if contents.shape[0] == 1 else "rgb"))
    assert real.classes == CLASSES
    assert np.array_equal(real.train.images, [record.image for record in records])
    assert np.diff(real.train.offsets).tolist() == [PER_CLASS] * len(CLASSES)


SECOND = "train-00001-of-00004.parquet"


def _linked(data: Path) -> None:
    (data / SECOND).rename(data.parent / "elsewhere")
    (data / SECOND).symlink_to(data.parent / "elsewhere")


def _folder_linked(data: Path) -> None:
    data.rename(data.parent / "elsewhere")
    data.symlink_to(data.parent / "elsewhere")


def _twice(data: Path) -> None:
    (data / SECOND).write_bytes((data / "train-00000-of-00004.parquet").read_bytes())


FOLDERS = {
    "missing": (lambda data: (data / SECOND).unlink(), r"expected train-00000-of-00003\.parquet as one of 3 files"),
    "one more": (lambda data: (data / "notes.txt").write_text(""), r"expected train-00000-of-00005\.parquet"),
    "another name": (lambda data: (data / SECOND).rename(data / "train-1.parquet"), r"got 'train-1\.parquet'"),
    "a link": (_linked, rf"{SECOND}: expected a file, got a link or a folder"),
    "data is a link": (_folder_linked, r"expected a folder 'data' with Parquet files"),
    "none": (lambda data: [path.unlink() for path in data.iterdir()], r"expected 12 rows, got 0"),
    "twice": (_twice, "row 1: expected label 1, got 0"),
    "empty file": (lambda data: (data / SECOND).write_bytes(b""), rf"{SECOND} is not a Parquet file .*\(0 bytes\)"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_other_folders_are_refused(tmp_path: Path, what: str) -> None:
    contents, records = make(soft=None, shard_bytes=SMALL)
    folder = written(tmp_path / "a", contents, records)
    change, message = FOLDERS[what]
    change(folder / "data")
    with pytest.raises(UserError, match=message):
        read(folder, contents)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    contents, records = make(shard_bytes=SMALL)
    folder = written(tmp_path / "a", contents, records)
    (folder / "data/.DS_Store").write_bytes(b"Bud1")
    (folder / "data/._train-00000-of-00004.parquet").write_bytes(b"of a Mac")
    assert_equal(read(folder, contents), records)


def test_no_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder 'data' with Parquet files"):
        read(tmp_path, make()[0])


def table_of(contents: Contents, records: list[Record], folder: Path) -> pa.Table:
    return pq.read_table(written(folder, contents, records) / "data/train-00000-of-00001.parquet")


def rewrite(folder: Path, table: pa.Table, metadata: Any = None, **options: Any) -> None:
    with pq.ParquetWriter(folder / "data/train-00000-of-00001.parquet", table.schema, **(PLAIN | options)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(table.schema.metadata if metadata is None else metadata)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def edited(table: pa.Table, name: str, row: int, edit: Any) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = edit(values[row])
    return with_column(table, name, values)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "snappy": ({"compression": "snappy"}, "a column that is compressed"),
    "zstd": ({"compression": "zstd"}, "a column that is compressed"),
    "dictionary": ({"use_dictionary": True}, "a dictionary or an encoding that is not plain"),
    "delta": ({"column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}}, "an encoding that is not plain"),
    "other pages": ({"data_page_version": "2.0"}, "not plain"),
    "statistics": ({"write_statistics": True}, "a column with statistics"),
    "Arrow's schema": ({"store_schema": True}, "other columns or features"),
    "no features": ({"metadata": {}}, "other columns or features"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_other_ways_to_write_are_refused(tmp_path: Path, option: str) -> None:
    contents, records = make()
    table = table_of(contents, records, tmp_path / "a")
    rewrite(tmp_path / "a", table)
    assert_equal(read(tmp_path / "a", contents), records)
    options, message = OPTIONS[option]
    rewrite(tmp_path / "a", table, **options)
    with pytest.raises(UserError, match=rf"train-00000-of-00001\.parquet .*Parquet.*{message}"):
        read(tmp_path / "a", contents)


def _logits(change: Any) -> Any:
    return lambda table: edited(table, "soft_labels", 3, change)


ROWS = {
    "another label": (lambda t: edited(t, "label", 5, lambda _: 2), "row 5: expected label 1, got 2"),
    "no label": (lambda t: edited(t, "label", 5, lambda _: None), "row 5: label: expected a value, got null"),
    "no image": (lambda t: edited(t, "image", 2, lambda _: None), "row 2: image: expected a value, got null"),
    "no bytes": (
        lambda t: edited(t, "image", 2, lambda v: v | {"bytes": None}),
        "row 2: image.bytes: expected",
    ),
    "another picture": (lambda t: edited(t, "image", 2, lambda v: v | {"bytes": b"GIF89a"}), "row 2 is not a picture"),
    "another path": (
        lambda t: edited(t, "image", 2, lambda v: v | {"path": "/etc/passwd"}),
        r"row 2: expected image.path b'00000002\.png', got b'/etc/passwd'",
    ),
    "NaN": (_logits(lambda v: [[np.float16("nan")] * 3, *v[1:]]), "row 3: soft_labels: expected finite values"),
    "a null among logits": (
        _logits(lambda v: [[None, *v[0][1:]], *v[1:]]),
        "are not R x 3 values a record",
    ),
    "a list that is null": (
        _logits(lambda v: [None, *v[1:]]),
        "column soft_labels has 86 values, expected 88",
    ),
    "one row of logits less": (_logits(lambda v: v[1:]), "column soft_labels has"),
    "logits moved": (
        lambda t: with_column(t, "soft_labels", t["soft_labels"].to_pylist()[1::-1] + t["soft_labels"].to_pylist()[2:]),
        "rows 0 to 11: soft_labels are not R x 3 values a record",
    ),
    "a row less": (lambda t: t.slice(0, 11), "expected 12 rows, got 11"),
    "a row more": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "expected 12 rows, got 13"),
    "a column less": (lambda t: t.drop(["soft_labels"]), "a row group of 12 rows and 3 columns"),
    "a column more": (lambda t: t.append_column("more", pa.array(range(12))), "12 rows and 5 columns"),
    "other labels": (
        lambda t: t.set_column(1, pa.field("label", pa.int32()), t.column("label").cast(pa.int32())),
        "other columns or features",
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_other_rows_are_refused(tmp_path: Path, what: str) -> None:
    contents, records = make()
    table = table_of(contents, records, tmp_path / "a")
    change, message = ROWS[what]
    rewrite(tmp_path / "a", change(table))
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a", contents)


def test_a_row_group_may_not_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, records = make(soft=None)
    folder = written(tmp_path / "a", contents, records)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 11)
    with pytest.raises(UserError, match="a row group of 12 rows and 3 columns"):
        read(folder, contents)
    monkeypatch.undo()
    padded = table_of(contents, records, tmp_path / "b")
    padded = edited(padded, "image", 0, lambda value: value | {"bytes": value["bytes"] + bytes(2 << 20)})
    rewrite(tmp_path / "b", padded)
    with pytest.raises(UserError, match=r"a row group of \d+ bytes, expected at most"):
        read(tmp_path / "b", contents)


def test_endless_empty_lists_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow alone would make room for all of them, whatever the size of a batch."""
    contents, records = make()
    table = table_of(contents, records, tmp_path / "a")
    rewrite(tmp_path / "a", edited(table, "soft_labels", 3, lambda _: [[]] * 300_000))
    path = tmp_path / "a/data/train-00000-of-00001.parquet"
    assert path.stat().st_size < 10_000
    assert next(pq.ParquetFile(path).iter_batches(1, row_groups=[0])).num_rows == 1
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(UserError, match="column soft_labels has 300076 values, expected 88"):
        read(tmp_path / "a", contents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1" + b"\0" * 20, "start or its end"),
        (b"PAR1" + (100).to_bytes(4, "little") + b"PAR1", "start or its end"),
        (b"PAR1\0" + (1).to_bytes(4, "little") + b"PAR1", "other columns or features"),
        (b"PAR1\x15" + (1).to_bytes(4, "little") + b"PAR1", "metadata that cannot be read"),
        (b"PAR1" + b"\x19\xfc\xff\xff\xff\xff\x0f" + (7).to_bytes(4, "little") + b"PAR1", "longer than its bytes"),
        (b"PAR1" + b"\x1c" * 60 + (60).to_bytes(4, "little") + b"PAR1", "nested too deeply"),
        (
            b"PAR1" + b"\0" * 100_000 + (100_000).to_bytes(4, "little") + b"PAR1",
            "100000 bytes of metadata",
        ),
    ],
)
def test_hostile_metadata_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    contents, records = make()
    folder = written(tmp_path / "a", contents, records)
    (folder / "data/train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(folder, contents)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents, bytes]:
    contents, records = make()
    folder = written(tmp_path_factory.mktemp("damaged") / "a", contents, records)
    return folder, contents, (folder / "data/train-00000-of-00001.parquet").read_bytes()


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_is_refused_or_harmless(small: tuple[Path, Contents, bytes], data: st.DataObject) -> None:
    folder, contents, content = small
    footer = int.from_bytes(content[-8:-4], "little")
    if data.draw(st.booleans()):  # the metadata alone, with their length made to fit
        changed = data.draw(mutated(content[-8 - footer : -8]))
        content = content[: -8 - footer] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
    else:
        content = data.draw(mutated(content))
    (folder / "data/train-00000-of-00001.parquet").write_bytes(content)
    try:
        got = read(folder, contents)
    except UserError:
        return
    assert [record.label for record in got] == [i // PER_CLASS for i in range(COUNT)]
    assert all(record.image.shape == contents.shape for record in got)
    assert all(record.soft is not None and np.isfinite(record.soft).all() for record in got)


def test_headers_alone_need_no_pyarrow_metadata(tmp_path: Path) -> None:
    """What is read here of a file's row groups is what pyarrow says of them."""
    contents, records = make()
    path = written(tmp_path / "a", contents, records) / "data/train-00000-of-00001.parquet"
    features = pq.read_schema(path).metadata
    with pa.OSFile(str(path), "rb") as file:
        groups = parquet_headers.row_groups(file, key_values=features, most=1 << 16)
        counts = [parquet_headers.count_values(file, chunk) for chunk in groups[0].chunks]
    expected = pq.read_metadata(path).row_group(0)
    columns = [expected.column(i) for i in range(4)]
    assert [group.rows for group in groups] == [expected.num_rows]
    assert [chunk.start for chunk in groups[0].chunks] == [column.data_page_offset for column in columns]
    assert [chunk.size for chunk in groups[0].chunks] == [column.total_compressed_size for column in columns]
    assert counts == [chunk.values for chunk in groups[0].chunks] == [column.num_values for column in columns]
