"""The real sets that lie beside the checkout, where they do."""

import io
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ncfmkit.config import DataSettings
from ncfmkit.real.opening import open_real

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NCFMKIT_CACHE", str(tmp_path / "cache"))


def shared(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}: the shared sets are not in this place")
    return SHARED / name


def naive(file, count):
    """The first images and labels, decoded one by one."""
    table = pq.read_table(file).slice(0, count)
    contents = table.column("image").combine_chunks().field("bytes").to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(c))) for c in contents]), table.column("label").to_numpy()


def assert_holds(split, file, count):
    images, labels = naive(file, count)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    for c in range(10):
        start, own = split.offsets[c], images[labels == c]
        np.testing.assert_array_equal(split.images[start : start + len(own)], own)


def test_fashion_mnist_test_split(tmp_path):
    source = shared("fashion-mnist") / "test-00000-of-00001.parquet"
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "all.parquet").write_bytes(source.read_bytes())
    data = open_real(str(tmp_path / "fashion"), DataSettings())
    assert (data.size, data.channels, data.train.counts().tolist(), data.classes[1]) == (28, 1, [1000] * 10, "Trouser")
    assert_holds(data.train, source, 1500)


@pytest.mark.parametrize(
    ("name", "counts", "mean", "std"),
    [
        ("fashion-mnist", (6000, 1000), [0.28604], [0.35302]),
        ("cifar10", (5000, 1000), [0.49140, 0.48216, 0.44653], [0.24703, 0.24349, 0.26159]),
    ],
)
def test_whole_set_has_the_published_statistics(name, counts, mean, std):
    folder = shared(name)
    data = open_real(str(folder), DataSettings())
    assert (data.name, data.train.counts().tolist(), data.test.counts().tolist()) == (
        name,
        [counts[0]] * 10,
        [counts[1]] * 10,
    )
    np.testing.assert_allclose(data.mean, mean, atol=5e-6)
    np.testing.assert_allclose(data.std, std, atol=5e-6)
    assert_holds(data.train, min(folder.glob("train-*")), 1000)
    start = time.process_time()
    open_real(str(folder), DataSettings())
    assert time.process_time() - start < 0.5
