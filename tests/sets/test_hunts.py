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
from hostile_sets import OUTSIDE, SUBJECTS, load, manifest_of, prepared, sums, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from mutations import Tree, mutated, mutated_header, mutated_json, mutated_tree
from watch import FEW, HUNT, MANY, Watch, tree_of, write

from ncfmkit.sets import set_file
from ncfmkit.sets.manifest import manifest_digest, tensors_of
from ncfmkit.sets.package import FACTS, SUMS
from ncfmkit.sets.synthetic import SyntheticSet


@st.composite
def mutated_set(draw: DrawFn, tree: Tree) -> Tree:
    """A package or the one file with one thing changed; in half of the cases the checksums fit, as of a forger."""
    how = draw(st.sampled_from(("bytes", "inside", "inside", "manifest", "manifest", "tree", "tensors")))
    if how == "tree" and SUMS in tree:
        new = draw(mutated_tree(tree, f"../{OUTSIDE}"))
    elif how == "manifest":
        new = draw(with_other_manifest(tree))
    elif how == "tensors":
        new = draw(with_other_tensors(tree))
    else:
        weights = {set_file.FILE_NAME: 6, SUMS: 3, FACTS: 3}
        name = draw(st.sampled_from([name for name in sorted(tree) for _ in range(weights.get(name, 1))]))
        content = tree[name]
        assert isinstance(content, bytes)
        inside = mutated_header if how == "inside" and name == set_file.FILE_NAME else mutated
        new = tree | {name: draw(inside(content))}
    if SUMS in new and (how in ("manifest", "tensors") or draw(st.booleans())):
        new[SUMS] = sums(new)
    return new


@st.composite
def with_other_manifest(draw: DrawFn, tree: Tree) -> Tree:
    """Changed values in the manifest; its digest is that of what it says now."""
    told = draw(mutated_json(manifest_of(tree)))
    if not isinstance(told, dict):
        return tree
    return tree | {set_file.FILE_NAME: with_metadata(tree[set_file.FILE_NAME], with_digests(told)["ncfmkit"])}


@st.composite
def with_other_tensors(draw: DrawFn, tree: Tree) -> Tree:
    """Other bytes of the tensors, the manifest has their digests."""
    content, told = tree[set_file.FILE_NAME], manifest_of(tree)
    assert isinstance(content, bytes)
    start = 8 + int.from_bytes(content[:8], "little")
    data = draw(mutated(content[start:], most=2))[: len(content) - start].ljust(len(content) - start, b"\0")
    header = json.loads(content[8:start])
    for name in told["sha256"]:
        told["sha256"][name] = hashlib.sha256(data[slice(*header[name]["data_offsets"])]).hexdigest()
    text = with_digests(told)["ncfmkit"]
    return tree | {set_file.FILE_NAME: with_metadata(content[:start] + data, text)}


def assert_is_what_it_says(got: SyntheticSet, original: SyntheticSet, tree: Tree) -> None:
    """The content is the original's where its digests are, the manifest the one that is there, both fit each other."""
    for name in ("images", "labels", "soft_labels", "levels"):
        a, b = getattr(got, name), getattr(original, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and a.shape == b.shape), name
        same = a is None or torch.equal(a, b)
        assert same or got.manifest.sha256 != original.manifest.sha256, name
    assert torch.equal(got.labels, original.labels)
    assert got.soft_labels is None or got.soft_labels.isfinite().all()
    said, read = manifest_of(tree), got.manifest.to_dict()
    assert said == {key: value for key, value in read.items() if key in said} | {
        key: said[key]
        for key in ("training", "decode")
        if key in said  # their defaults are added
    }
    assert said["manifest_sha256"] == manifest_digest(said)
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


@pytest.mark.parametrize("name", ["file-bits", "package"])
def test_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_random_changes_of_sets(watch: Watch, name: str) -> None:
    hunt_sets(watch, name, MANY)
