"""Real data in files as the sources read it: class folders, Parquet files, shards; and what a split must hold."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from ncfmkit.config import DataSettings

SIDE = 6
PLAIN = DataSettings()


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def encoded(image, kind="png"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    return file.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def class_folders(root, classes, each=3, kind="png", seed=0):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels(each, seed + c)):
            (root / name / f"{i}.{kind}").write_bytes(encoded(image, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind)))


def parquet(path, contents, labels, names=None, image="image", label="label", metadata=None, group=4):
    column = pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


def shard(path, contents, labels, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), encoder=False) as tar:
        for i, (content, label) in enumerate(zip(contents, labels, strict=True)):
            tar.write({"__key__": f"{path.stem}/{i:04d}", kind: content, "cls": str(label).encode()})


def assert_sorted_copy(split, images, labels):
    """The split holds the images [N, 3, H, W] sorted by class, in source order within each."""
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(split.labels, np.asarray(labels)[order])
    np.testing.assert_array_equal(split.images, np.asarray(images)[order])
