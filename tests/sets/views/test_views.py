"""Both layouts, `webdataset` and `png`: what is written comes back, and nothing else is taken."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from view_records import CLASSES, LAYOUTS, PER_CLASS, SHARD, assert_equal, files, make

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real
from ncfmkit.sets.views.records import Record


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("images", ["stored", "decoded"])
@pytest.mark.parametrize("soft", [False, True])
def test_round_trip(tmp_path, layout, encoding, channels, images, soft):
    contents, records = make(channels, soft, encoding, images)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        layout.write(tmp_path / name, contents, iter(records))
    before = files(tmp_path / "a")
    assert_equal(list(layout.read(tmp_path / "a", contents)), records)
    assert files(tmp_path / "a") == before == files(tmp_path / "b")  # reading writes nothing; equal sets, equal bytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_and_reading_stream(tmp_path, layout):
    contents, records = make(shard_bytes=1)
    at_work = []

    def given():
        for record in records:
            at_work.append(sum(f.stat().st_size for f in tmp_path.rglob("*.*") if f.is_file()))
            yield record

    layout.write(tmp_path, contents, given())
    assert at_work[0] <= at_work[2] < at_work[4]  # records are on disk before the next are asked for
    reader = layout.read(tmp_path, contents)
    assert next(reader).label == 0
    reader.close()  # without warnings of open files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_that_cannot_be_used(tmp_path, layout):
    contents, records = make()
    with pytest.raises(UserError, match=r"cannot write .*gone: No such file"):
        layout.write(tmp_path / "gone", contents, iter(records))
    with pytest.raises(UserError, match=r"gone"):
        list(layout.read(tmp_path / "gone", contents))


def test_no_torch_at_import():
    code = (
        "import sys, ncfmkit.sets.views.image_folder, ncfmkit.sets.views.webdataset;"
        "sys.exit(bool({'torch', 'webdataset'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tiny", "a test of train"])
def test_ncfmkit_reads_it_as_real_data(tmp_path, layout, name):
    contents, _ = make()
    contents = replace(contents, name=name, shape=(3, 6, 6))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, 3, 6, 6), np.uint8)
    soft = [np.zeros((rows, 3), np.float16) for rows in contents.soft_rows]
    records = [Record(image=images[i], label=i // PER_CLASS, soft=soft[i]) for i in range(6)]
    (tmp_path / "set").mkdir()
    layout.write(tmp_path / "set", contents, iter(records))
    data = open_real(str(tmp_path / "set"), DataSettings())
    assert (data.classes, data.train.counts().tolist(), data.test) == (CLASSES, [2, 2, 2], None)
    assert np.array_equal(data.train.images, images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_names_are_passed_over(package, layout):
    folder, contents = package(layout)
    homes = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    for home in homes:
        (home / ".DS_Store").write_bytes(b"Bud1")
        (home / f"._{SHARD}").write_bytes(b"of a Mac")
        (home / ".more").mkdir()
        (home / ".link").symlink_to("nowhere")
    assert_equal(list(layout.read(folder, contents)), make()[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_labels_that_are_not_due(package, layout):
    folder, contents = package(layout)
    with pytest.raises(UserError, match=r"npy: .*no soft labels|00000000\.png next"):
        list(layout.read(folder, replace(contents, soft_rows=None)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_another_shape(package, layout):
    folder, contents = package(layout)
    with pytest.raises(UserError, match=r"0\.png .*\(expected 3x5x5, got 3x5x6\)"):
        list(layout.read(folder, replace(contents, shape=(3, 5, 5))))
