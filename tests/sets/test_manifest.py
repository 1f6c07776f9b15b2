"""The manifest: what later and earlier versions may say in it, what is refused, and that of a new set."""

import copy
import dataclasses
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_NETWORK, build_real, build_set
from golden_sets import DATA, set_bytes

from ncfmkit.config import DistillSettings, Settings, StudentSettings, to_dict
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.verify import verify
from ncfmkit.sets import numpy_reader, set_file
from ncfmkit.sets.manifest import Training, finished_set, tensors_of

FIGURE = {"mean": 0.5, "std": 0.1}
SCORE: dict[str, Any] = {"network": "convnet", "epochs": 1, "n": 2, "last": FIGURE, "best": FIGURE}
CONVERTED: dict[str, Any] = {"file": "a.pt", "sha256": "00", "kind": "dm", "values": "zca"}
CONVERTED |= {"clipped": {"share": 0.1, "largest": 0.2}, "experiment": 3}
SOURCE: dict[str, Any] = {"name": "tiny", "fingerprint": "t", "train_images": 21, "license": "mit"}
PIXELS: dict[str, Any] = {"bits": 3, "scale": "image", "dither": False, "shape": [3, 8, 8]}


def file_of(folder: Path, changes: dict[str, Any], drop: tuple[str, ...] = (), **how: Any) -> Path:
    """The file of a small set whose manifest says something else; its digests fit."""
    small = build_set(**how)
    content = {key: value for key, value in small.manifest.to_dict().items() if key not in drop}
    tensors = {name: tensor.numpy() for name, tensor in tensors_of(small).items()}
    path = folder / "set.safetensors"
    path.write_bytes(set_bytes(tensors, content | changes))
    return path


def objects(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object in a value, with the path to it."""
    if isinstance(value, dict):
        yield where, value
        for key, inner in value.items():
            yield from objects(inner, f"{where}.{key}" if where else key)


def test_keys_of_later_versions_are_kept_at_every_level(tmp_path: Path) -> None:
    original = {"manifest_sha256": "0" * 64, "score": SCORE}
    how: dict[str, Any] = {"score": SCORE, "source": SOURCE | {"converted": CONVERTED}, "bits": 3, "soft": True}
    how["pixels"] = PIXELS | {"original": original}
    changed = copy.deepcopy(build_set(**how).manifest.to_dict())
    named = {where: table for where, table in objects(changed) if where not in ("bytes", "sha256")}
    assert {"", "ipc", "decode", "training", "training.student", "source.converted.clipped", "score.last"} < set(named)
    assert "pixels.original.score.best" in named
    for table in named.values():
        table["later"] = {"radius": [1, None, "x"]}
    path = file_of(tmp_path, changed, **how)
    loaded = set_file.load(path)
    set_file.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    got = numpy_reader.read(tmp_path / "again.safetensors").manifest
    assert {where for where, table in objects(got) if "later" in table} == set(named)
    assert got == loaded.manifest.to_dict()


@pytest.mark.parametrize("name", ["single-gray", "bound-colour", "quantised-soft"])
def test_files_of_earlier_versions_get_a_training_record(name: str) -> None:
    """They have none; what their settings lack is the default."""
    manifest = set_file.load(DATA / f"{name}.safetensors").manifest
    assert manifest.format == (2 if name == "quantised-soft" else 1)
    assert manifest.decode.version == manifest.training.version == 1
    assert manifest.training.settings() == Settings()
    assert manifest.settings == {"recipe": "none", "seed": 0}


def test_the_training_record_of_an_earlier_set_is_that_of_its_settings(tmp_path: Path) -> None:
    student = StudentSettings(epochs=7, lr=0.5)
    settings = to_dict(Settings(seed=5, network=TINY_NETWORK, student=student, distill=DistillSettings(ipc=2)))
    settings["runtime"] |= {"device": "cuda:3", "precision": "fp32"}
    settings["student"]["orbit"] = 4  # of another version
    manifest = set_file.load(file_of(tmp_path, {"settings": settings}, drop=("training",))).manifest
    assert manifest.training.runtime == {"precision": "fp32", "compile": settings["runtime"]["compile"]}
    assert manifest.settings == settings
    got = manifest.training.settings()
    assert (got.seed, got.network, got.student) == (5, TINY_NETWORK, student)
    assert (got.runtime.precision, got.runtime.device) == ("fp32", Settings().runtime.device)
    assert got.distill == Settings().distill


def test_settings_of_later_versions_are_ignored_in_training(tmp_path: Path) -> None:
    training = Training.of(to_dict(Settings(seed=3))).to_dict()
    training["student"] |= {"epochs": 9, "orbit": 4}
    loaded = set_file.load(file_of(tmp_path, {"training": training | {"moons": {"orbit": 1}}}))
    assert loaded.manifest.training.settings() == Settings(seed=3, student=StudentSettings(epochs=9))


def test_a_newer_training_record_can_be_loaded_but_not_followed(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"training": {"version": 2, "student": {"epochs": 1}}})
    loaded = set_file.load(path)
    says = "training record has version 2, this ncfmkit knows 1: update ncfmkit"
    with pytest.raises(UserError, match=says):
        loaded.manifest.training.settings()
    with pytest.raises(CheckFailed, match=says):
        verify(path)
    assert numpy_reader.read(path).manifest["training"]["version"] == 2


@pytest.mark.parametrize("version", [2, 0, 1.0, True, "1", None])
def test_another_version_of_decoding_is_refused_by_both_readers(tmp_path: Path, version: Any) -> None:
    path = file_of(tmp_path, {"decode": {"version": version, "kind": "single", "factor": 2, "budget": None}})
    newer = r"decoded by version 2, this ncfmkit knows 1: update ncfmkit"
    with pytest.raises(UserError, match=newer if version == 2 else r"decode\.version: input should be .*, got"):
        set_file.load(path)
    with pytest.raises(
        numpy_reader.SetError, match="'decode' is not a version, kind, factor and budget that are known"
    ):
        numpy_reader.read(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tool": 3}, "tool: input should be a valid string, got 3"),
        ({"name": None}, "name: input should be a valid string, got None"),
        ({"classes": ["a"]}, "classes: tuple should have at least 2 items"),
        ({"classes": ["a", "b", "a"]}, "all of it: value error, a class is there twice"),
        ({"ipc": {"stored": 0, "decoded": 8}}, "ipc.stored: input should be greater than or equal to 1, got 0"),
        ({"ipc": {"stored": 2, "decoded": 7}}, "7 decoded images per class, its decoding gives 8"),
        ({"decode": {"kind": "double", "factor": 2, "budget": None}}, "decode.kind: input should be 'single', 'multi'"),
        ({"decode": {"kind": "single", "factor": 65, "budget": None}}, "decode.factor: input should be less than or"),
        ({"decode": {"kind": "single", "factor": 2, "budget": 8}}, "a budget of decoded images, which decoding 'singl"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "a mean of 2 channels and a std of 2, expected 1 or 3 of both"),
        ({"std": [0.5]}, "a mean of 3 channels and a std of 1, expected 1 or 3 of both"),
        ({"std": [0.5, -0.5, 0.5]}, "std.1: input should be greater than or equal to 0, got -0.5"),
        ({"value_range": [0, 1]}, "value_range.1: input should be greater than or equal to 255, got 1"),
        ({"source": SOURCE | {"train_images": "many"}}, "source.train_images: input should be a valid integer"),
        ({"source": SOURCE | {"license": 3}}, "source.license: input should be a valid string, got 3"),
        ({"training": {"version": 0}}, "training.version: input should be greater than or equal to 1, got 0"),
        ({"training": {"student": []}}, "training.student: input should be an object"),
        ({"settings": []}, "settings: input should be an object"),
        ({"score": SCORE | {"last": {"mean": 61.9, "std": 0}}}, "score.last.mean: input should be less than or equal"),
        ({"score": SCORE | {"best": {"mean": 0.4, "std": 0}}}, "score: value error, the best epoch is below the last"),
        ({"pixels": None}, "'pixels' is null: a set whose pixels are not quantized has no such key"),
        ({"format": 2}, "its format does not fit its tensors: 2 is for packed pixels or soft labels, 3 for coded"),
        ({"sha256": {"images": "AB" * 32, "labels": "0" * 64}}, "sha256.images: string should match pattern"),
        ({"bytes": {"images": -1, "labels": 48}}, "bytes.images: input should be greater than or equal to 0"),
    ],
)
def test_each_check_has_its_message(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        set_file.load(file_of(tmp_path, changes))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'set.safetensors'} is damaged: its manifest's ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "key",
    ["tool", "name", "classes", "ipc", "decode", "mean", "std", "value_range", "source", "settings", "score"],
)
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"is damaged: its manifest's {key}: field required"):
        set_file.load(file_of(tmp_path, {}, drop=(key,)))


def test_a_set_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    small = build_set()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mean": (0.5,)}, "a mean of 1 channels and a std of 3"),
        ({"settings": {"lr": float("nan")}}, "not JSON compliant"),
    ]
    for changes, says in wrong:
        other = dataclasses.replace(small, manifest=small.manifest.changed(**changes))
        with pytest.raises(UserError, match=f"was not written, the set is incomplete or invalid:\n.*{says}"):
            set_file.save(other, tmp_path / "set.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", [-0.49, -0.2, 0.0, 0.2, 0.49])
def test_pixels_are_stored_as_the_nearest_byte(off: float) -> None:
    real = build_real()
    levels = np.random.default_rng(0).integers(1, 255, (6, 3, 8, 8))
    levels[0, 0, 0, :2] = 0, 255
    images = torch.from_numpy(((levels + off) / 255).clip(0, 1).astype(np.float32))
    result = finished_set(Settings(distill=DistillSettings(ipc=2)), real, images)
    assert result.images.dtype == torch.uint8
    np.testing.assert_array_equal(result.images, levels)


def test_bytes_are_stored_as_they_are() -> None:
    images = torch.arange(6 * 3 * 64, dtype=torch.int32).remainder(256).to(torch.uint8).view(6, 3, 8, 8)
    assert torch.equal(finished_set(Settings(distill=DistillSettings(ipc=2)), build_real(), images).images, images)


@pytest.mark.parametrize(
    ("kind", "coding"),
    [("smooth", "lzma"), ("noise", None), ("flat", None)],  # of flat ones a stream would be below the smallest
)
def test_codes_are_one_stream_where_that_is_smaller_and_readers_take_it(
    tmp_path: Path, kind: str, coding: str | None
) -> None:
    real, noise = build_real(size=32), np.random.default_rng(0).integers(0, 256, (90, 3, 32, 32), np.uint8)
    slope = np.linspace(0, 200, 32).astype(np.uint8)
    images = {"smooth": slope + noise // 5, "noise": noise, "flat": np.full_like(noise, 7)}[kind]
    result = finished_set(Settings(distill=DistillSettings(ipc=30, bits=2)), real, torch.from_numpy(images))
    assert result.manifest.pixels is not None
    assert result.manifest.pixels.coding == coding
    assert result.manifest.format == (2 if coding is None else 3)
    assert (result.manifest.bytes["pixels"] < 90 * 768) == (coding is not None)
    set_file.save(result, tmp_path / "set.safetensors")
    assert torch.equal(set_file.load(tmp_path / "set.safetensors").images, result.images)


def test_a_set_is_stored_again_with_the_stream_that_was_read(tmp_path: Path) -> None:
    """That of another liblzma: the digest of the set stays."""
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    result = build_set(bits=2, smooth=True, size=16)
    assert result.pixel_tensors is not None
    stream = result.pixel_tensors["pixels"].numpy().tobytes()
    other = lzma.compress(lzma.decompress(stream), format=lzma.FORMAT_ALONE, preset=0)
    assert other != stream
    stored = result.pixel_tensors | {"pixels": torch.from_numpy(np.frombuffer(other, np.uint8).copy())}
    set_file.save(dataclasses.replace(result, pixel_tensors=stored), first)
    set_file.save(set_file.load(first), again)
    assert again.read_bytes() == first.read_bytes()
