"""Random changes of sets of every format: each file is refused with one message, or is what it says, and costs little.

Bytes are flipped, and files taken apart and put together again with right checksums. A changed set is accepted only
where it holds the set that it was made from, under the manifest that it has now; or, where a forger gave other tensors
their right digests, where these are what a set may hold.
"""

import hashlib
import json

import pytest
import torch
from golden_sets import with_digests
from hostile_sets import OUTSIDE, SUBJECTS, load, prepared, sums, told_by, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import Tree, mutated, mutated_header, mutated_json, mutated_tree
from watch import FEW, HUNT, MANY, Watch, tree_of, write

from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import Manifest, manifest_digest, tensors_of
from ncfmkit.sets.package import FACTS, SUMS
from ncfmkit.sets.synthetic import SyntheticSet

FILE = set_file.FILE_NAME


@st.composite
def mutated_set(draw: DrawFn, tree: Tree) -> Tree:
    """A package or the one file with one thing changed; in half of the cases the checksums fit, as of a forger."""
    how = draw(st.sampled_from(("bytes", "inside", "inside", "manifest", "manifest", "tensors", "tree", "facts")))
    content = tree[FILE]
    assert isinstance(content, bytes)
    if how == "tree" and SUMS in tree:
        new = draw(mutated_tree(tree, f"../{OUTSIDE}"))
    elif how == "facts" and SUMS in tree:
        told = tree[FACTS]
        assert isinstance(told, bytes)
        new = tree | {FACTS: json.dumps(draw(mutated_json(json.loads(told)))).encode()}
    elif how == "manifest":
        told = draw(mutated_json(told_by(content)))
        new = tree | {FILE: with_metadata(content, with_digests(told)["ncfmkit"])}
    elif how == "tensors":
        new = tree | {FILE: draw(with_other_tensors(content))}
    elif how == "inside":
        new = tree | {FILE: draw(mutated_header(content))}
    else:
        name = draw(st.sampled_from([FILE, FILE, FILE, *sorted(tree)]))
        old = tree[name]
        assert isinstance(old, bytes)
        new = tree | {name: draw(mutated(old))}
    if SUMS in new and (how in ("manifest", "tensors") or draw(st.booleans())):
        new = new | {SUMS: sums(new)}
    return new


@st.composite
def with_other_tensors(draw: DrawFn, content: bytes) -> bytes:
    """Other bytes of the tensors, the manifest has their digests."""
    told, start = told_by(content), 8 + int.from_bytes(content[:8], "little")
    data = draw(mutated(content[start:], most=2))[: len(content) - start].ljust(len(content) - start, b"\0")
    header = json.loads(content[8:start])
    for name in told["sha256"]:
        told["sha256"][name] = hashlib.sha256(data[slice(*header[name]["data_offsets"])]).hexdigest()
    return with_metadata(content[:start] + data, with_digests(told)["ncfmkit"])


def assert_is_what_it_says(got: SyntheticSet, original: SyntheticSet, tree: Tree) -> None:
    """The content is the original's where its digests are, the manifest the one that is there, both fit each other."""
    parts = [
        {
            "images": one.images,
            "labels": one.labels,
            "soft_labels": one.soft_labels,
            "levels": (one.pixel_tensors or {}).get("levels"),
        }
        for one in (got, original)
    ]
    for name in parts[0]:
        a, b = (of[name] for of in parts)
        if a is None or b is None:
            assert a is b, name
            continue
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        same = torch.equal(a, b)
        assert same or got.manifest.sha256 != original.manifest.sha256, name
    assert torch.equal(got.labels, original.labels)
    assert got.soft_labels is None or got.soft_labels.isfinite().all()
    told = told_by(tree[FILE])
    assert told["manifest_sha256"] == manifest_digest(told)
    kept = got.manifest.to_dict()
    assert {key: kept[key] for key in told.keys() - Manifest.model_fields.keys()} == {
        key: told[key] for key in told.keys() - Manifest.model_fields.keys()
    }
    assert kept["settings"] == told["settings"]
    raws = {name: tensor.numpy().tobytes() for name, tensor in tensors_of(got).items()}
    assert got.manifest.sha256 == {name: hashlib.sha256(raw).hexdigest() for name, raw in raws.items()}
    assert got.manifest.bytes == {name: len(raw) for name, raw in raws.items()}
    images, labels = got.decoded()
    assert len(images) == len(labels) == got.manifest.ipc.decoded * len(got.classes)
    assert got.soft_labels is None or got.soft_labels.shape == (len(images), len(got.classes))


def hunt_sets(watch: Watch, name: str, examples: int) -> None:
    root, path, original = prepared(watch.root, SUBJECTS[name])
    tree = tree_of(root)

    @settings(max_examples=examples, **HUNT)
    @given(mutated_set(tree))
    def hunt(new: Tree) -> None:
        write(root, tree, new)
        got = watch.read(lambda: load(path))
        if not isinstance(got, str):
            assert_is_what_it_says(got, original, new)
        write(root, new, tree)

    hunt()
    assert watch.accepted > 0
    assert len(watch.refused) > 15  # the inner checks, not one outer one


@pytest.mark.parametrize("name", ["file-bits", "file-top", "package"])
def test_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, MANY)
