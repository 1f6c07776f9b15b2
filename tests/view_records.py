"""Records of a tiny set, and what the layouts `webdataset` and `png` make of them."""

import io

import numpy as np

from ncfmkit.sets.views import image_folder, webdataset
from ncfmkit.sets.views.records import Contents, Record

CLASSES = ("cat", "dog", "frog")
PER_CLASS = 2
LAYOUTS = [webdataset, image_folder]
SHARD = "tiny-ipc2-000000.tar"


def make(channels=3, soft=True, encoding="png", images="stored", classes=CLASSES, shard_bytes=1 << 20):
    count = len(classes) * PER_CLASS
    rows = np.array([1, 3, 2, 1, 0, 2])[:count] if images == "stored" else np.ones(count, np.int64)
    contents = Contents(
        name="Tiny/IPC2",
        classes=classes,
        shape=(channels, 5, 6),
        per_class=PER_CLASS,
        soft_rows=rows if soft else None,
        encoding=encoding,
        images=images,
        shard_bytes=shard_bytes,
    )
    rng = np.random.default_rng(0)
    records = [
        Record(
            image=rng.integers(0, 256, contents.shape, np.uint8),
            label=i // PER_CLASS,
            soft=rng.normal(0, 4, (rows[i], len(classes))).astype(np.float16) if soft else None,
        )
        for i in range(count)
    ]
    return contents, records


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal(read, written):
    assert len(read) == len(written) > 0
    for a, b in zip(read, written, strict=True):
        assert (a.label, a.image.dtype, a.image.shape) == (b.label, np.uint8, b.image.shape)
        assert np.array_equal(a.image, b.image)
        assert (a.soft is None) == (b.soft is None)
        if b.soft is not None:
            assert (a.soft.dtype, a.soft.shape) == (np.float16, b.soft.shape)
            assert np.array_equal(a.soft, b.soft)


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
