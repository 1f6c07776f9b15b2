"""The one file of a set: the same bytes, and damage that is noticed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import build_set
from safetensors.torch import save_file

from ncfmkit.errors import UserError
from ncfmkit.sets import set_file
from ncfmkit.sets.synthetic import SyntheticSet


def test_round_trip(tmp_path: Path) -> None:
    synthetic, file = build_set("bound", 2, 7), tmp_path / set_file.FILE_NAME
    set_file.save(synthetic, file)
    for path in (file, str(file), tmp_path):
        again = set_file.load(path)
        assert torch.equal(again.images, synthetic.images)
        assert torch.equal(again.labels, synthetic.labels)
        assert again.manifest == synthetic.manifest
        assert again.manifest.bytes == {"images": 6 * 3 * 64, "labels": 6 * 8}
    assert [f.name for f in tmp_path.iterdir()] == [set_file.FILE_NAME]


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    set_file.save(build_set(), tmp_path / "a.safetensors")
    second = build_set()
    reordered = SyntheticSet(
        images=second.images.transpose(2, 3).contiguous().transpose(2, 3),  # other strides
        labels=second.labels,
        manifest=second.manifest,
    )
    set_file.save(reordered, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_loaded_set_does_not_change_with_its_file(tmp_path: Path) -> None:
    """A file that is mapped and gets shorter would end the process."""
    path = tmp_path / "small.safetensors"
    set_file.save(build_set(), path)
    result = set_file.load(path)
    images = result.images.clone()
    with open(path, "r+b") as file:
        file.truncate(100)
    assert torch.equal(result.images, images)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    file = tmp_path / "set.safetensors"
    set_file.save(build_set(), file)
    return file


@pytest.mark.parametrize("place", [-1, -30, -600, -1152, -1153, -1200])
def test_a_damaged_byte_is_noticed(stored: Path, place: int) -> None:
    """Both tensors: 1152 bytes of images at the end, 48 of labels before them."""
    data = bytearray(stored.read_bytes())
    data[place] ^= 1
    stored.write_bytes(data)
    name = "images" if place >= -1152 else "labels"
    with pytest.raises(UserError, match=rf"set\.safetensors is damaged: .*sha256 of '{name}' is not the manifest's"):
        set_file.load(stored)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_a_truncated_file_is_noticed(stored: Path, keep: float) -> None:
    data = stored.read_bytes()
    stored.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(
        UserError, match=r"set\.safetensors is damaged: .*not a readable safetensors file \(damaged or truncated\)"
    ):
        set_file.load(stored)


def test_other_files_are_not_sets(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(UserError, match=r"no synthetic set at .*nowhere: .*\.safetensors"):
        set_file.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no synthetic set at .*run directory .*synthetic\.safetensors"):
        set_file.load(tmp_path)
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(3)}, plain)
    with pytest.raises(UserError, match=r"without a 'ncfmkit' manifest: not a synthetic set"):
        set_file.load(plain)
    text = tmp_path / "text.safetensors"
    text.write_text("images of cats\n" * 40)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        set_file.load(text)


def rewrite(file: Path, **changes: object) -> None:
    synthetic = build_set()
    manifest = set_file.load(file).manifest.to_dict() | changes
    rest = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    metadata = {"ncfmkit": json.dumps(manifest)}
    save_file({"images": synthetic.images, "labels": synthetic.labels}, file, metadata=metadata)


def test_another_format_number_is_an_error(stored: Path) -> None:
    rewrite(stored, format=5)
    with pytest.raises(UserError, match=r"format 5, .*1 to 4: update"):
        set_file.load(stored)


def test_another_kind_is_an_error(stored: Path) -> None:
    rewrite(stored, kind="label file")
    with pytest.raises(UserError, match=r"holds a label file, not a synthetic set"):
        set_file.load(stored)


def test_a_header_of_no_length_is_not_read(stored: Path) -> None:
    stored.write_bytes(bytes(8) + stored.read_bytes()[8:])
    with pytest.raises(UserError, match="a header of 0 bytes, expected 1 to 16777216"):
        set_file.load(stored)
