"""Converting released sets: classes, values and how a mismatch is told, whitening, soft labels, the manifest."""

import dataclasses
import hashlib
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ncfmkit.cli import main
from ncfmkit.config import DataSettings, Settings
from ncfmkit.errors import UserError
from ncfmkit.jobs import convert as convert_job
from ncfmkit.jobs.convert import Reading
from ncfmkit.jobs.evaluate import settings_for
from ncfmkit.real.opening import open_real
from ncfmkit.real.store import RealData
from ncfmkit.sets import set_file
from ncfmkit.sets.released import pixel_values
from ncfmkit.sets.released.pixel_values import Normalization
from ncfmkit.sets.synthetic import SyntheticSet

CLASSES, PER_CLASS = 3, 2
LABELS = torch.tensor([2, 0, 1, 0, 2, 1])


@pytest.fixture
def images(real: RealData) -> torch.Tensor:
    """Two of each class as `LABELS` says, in whole bytes, float32 in [0, 1]."""
    first = [int(real.train.offsets[label]) for label in LABELS]
    rows = [start + (i >= 3) for i, start in enumerate(first)]
    return torch.from_numpy(np.stack([real.train.images[row] for row in rows])).float() / 255


def convert(path: Path, real: RealData, **how: Any) -> SyntheticSet:
    settings = how.pop("settings", Settings())
    return convert_job.read_released(path, real, settings, Reading(**how))


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def test_images_are_sorted_by_class_and_keep_their_order(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    got = convert(saved([images, LABELS], tmp_path / "a.pt"), real)
    assert got.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(got.images, as_bytes(images[[1, 3, 2, 5, 0, 4]]))
    assert (got.ipc, got.classes) == (PER_CLASS, real.classes)


def test_the_result_is_an_ordinary_set(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    path = saved([images, torch.randn(6, 3)], tmp_path / "a.pt")
    out, got = convert_job.write_released(
        path,
        real,
        Settings(),
        Reading(labels_by_position=True),
        out=tmp_path / "a.safetensors",
    )
    again = set_file.load(out)
    assert again.manifest == got.manifest
    assert torch.equal(again.images, got.images)
    assert again.soft_labels is not None
    assert got.soft_labels is not None
    assert torch.equal(again.soft_labels, got.soft_labels)
    assert settings_for(again, {}).network.depth == 2


MISFITS: dict[str, tuple[Any, str]] = {
    "label too large": (torch.tensor([3, 0, 1, 0, 3, 1]), "labels from 0 to 3, tiny has 3 classes, 0 to 2: pass the"),
    "label below 0": (torch.tensor([-1, 0, 1, 0, -1, 1]), "labels from -1 to 1"),
    "uneven": (torch.tensor([0, 0, 0, 1, 2, 2]), "1 images of class 'class 1' and 3 of 'class 0': expected equally"),
    "a class without": (torch.tensor([0, 0, 0, 1, 1, 1]), "0 images of class 'class 2' and 3 of 'class 0'"),
    "soft of 4": (torch.randn(6, 4), "soft labels of 4 classes, tiny has 3"),
    "soft, uneven": (torch.eye(3)[[0, 0, 0, 1, 2, 2]], "by the largest soft label of each.*pass --labels-by-position"),
    "huge logits": (torch.eye(3)[LABELS] * 1e5, r"logits up to 1e\+05: expected 65504 at most"),
}


@pytest.mark.parametrize(("labels", "says"), MISFITS.values(), ids=MISFITS)
def test_labels_that_do_not_fit(
    tmp_path: Path, real: RealData, images: torch.Tensor, labels: torch.Tensor, says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        convert(saved([images, labels], tmp_path / "a.pt"), real)
    if not labels.is_floating_point():
        assert "by-position" not in str(caught.value)


def test_images_that_do_not_fit(tmp_path: Path, real: RealData, make_real: Callable[..., RealData]) -> None:
    for shape in ((6, 1, 8, 8), (6, 3, 4, 4)):
        with pytest.raises(UserError, match=r"images of shape .*, tiny .*\(3, 8, 8\): "):
            convert(saved([torch.rand(shape), LABELS], tmp_path / "a.pt"), real)
    with pytest.raises(UserError, match="labels from 0 to 2, tiny has 2 classes"):
        convert(saved([torch.rand(6, 3, 8, 8), LABELS], tmp_path / "a.pt"), make_real((4, 4)))


def test_labels_by_position(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    soft = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    got = convert(saved([images, soft], tmp_path / "a.pt"), real, labels_by_position=True, factor=1)
    assert got.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(got.images, as_bytes(images))
    assert got.soft_labels is not None
    assert torch.equal(got.soft_labels, soft.half())
    with pytest.raises(UserError, match=r"class of each image: leave .*out"):
        convert(saved([images, LABELS], tmp_path / "a.pt"), real, labels_by_position=True)
    with pytest.raises(UserError, match="expected a multiple of the 3 classes, got 5 images"):
        convert(saved([images[:5], soft[:5]], tmp_path / "a.pt"), real, labels_by_position=True)


def make_folder(root: Path, images: torch.Tensor, names: dict[int, str]) -> Path:
    for i, (image, label) in enumerate(zip(as_bytes(images), LABELS.tolist(), strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / names[label] / f"{i}.png")
    return root


@pytest.mark.parametrize(
    "names",
    [
        {0: "class 0", 1: "class 1", 2: "class 2"},
        {0: "new00000", 1: "new00001", 2: "new00002"},
        {0: "z0", 1: "y01", 2: "x2"},
        {0: "00", 1: "1", 2: "0002"},
    ],
    ids=lambda names: names[2],
)
def test_class_folders(tmp_path: Path, real: RealData, images: torch.Tensor, names: dict[int, str]) -> None:
    got = convert(make_folder(tmp_path / "set", images, names), real)
    assert torch.equal(got.images, as_bytes(images[[1, 3, 2, 5, 0, 4]]))
    assert got.manifest.to_dict()["source"]["converted"] | {"sha256": ""} == {
        "file": "set", "sha256": "", "kind": "folder", "values": "bytes", "clipped": {"share": 0, "largest": 0},
    }  # fmt: skip


def test_the_names_of_the_classes_go_before_their_numbers(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    turned = dataclasses.replace(real, classes=("2", "0", "1"))
    got = convert(make_folder(tmp_path / "set", images, {0: "2", 1: "0", 2: "1"}), turned)
    assert torch.equal(got.images, as_bytes(images[[1, 3, 2, 5, 0, 4]]))


@pytest.mark.parametrize("last", ["class", "new4", "two"])
def test_class_folders_that_do_not_fit(tmp_path: Path, real: RealData, images: torch.Tensor, last: str) -> None:
    root = make_folder(tmp_path / "set", images, {0: "new0", 1: "new1", 2: last})
    says = r"3 class folders \(.*\), tiny .*3 classes \(class 0, .*\): "
    with pytest.raises(UserError, match=says):
        convert(root, real)


def test_a_list_is_a_mosaic_and_others_are_not(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    listed = convert(saved([images, LABELS], tmp_path / "a.pt"), real)
    saved(LABELS, tmp_path / "labels.pt")
    pair = convert(saved(images, tmp_path / "images.pt"), real)
    assert listed.manifest.decode.to_dict() == {"version": 1, "kind": "single", "factor": 2, "budget": None}
    assert listed.manifest.ipc.to_dict() == {"stored": 2, "decoded": 8}
    assert pair.manifest.decode.to_dict() == {"version": 1, "kind": "single", "factor": 1, "budget": None}
    assert pair.manifest.ipc.to_dict() == {"stored": 2, "decoded": 2}
    told = convert(tmp_path / "images.pt", real, factor=3, decode="multi")
    assert told.manifest.decode.to_dict() == {"version": 1, "kind": "multi", "factor": 3, "budget": None}
    assert told.manifest.settings["distill"]["factor"] == 3
    with pytest.raises(UserError, match="--factor 9 is above the image side 8"):
        convert(tmp_path / "images.pt", real, factor=9)


@pytest.mark.parametrize(("factor", "decode"), [(1, "single"), (2, "single"), (2, "multi"), (2, "bound")])
def test_soft_labels_belong_to_decoded_images(
    tmp_path: Path, real: RealData, images: torch.Tensor, factor: int, decode: str
) -> None:
    """Every decoded image has the logits of the stored one that it was cut from, told by a color of its own."""
    flat = torch.arange(1, 7).view(6, 1, 1, 1).expand(6, 3, 8, 8) / 10
    soft = torch.eye(3)[LABELS] * 9 + torch.arange(6)[:, None]
    path = saved([flat.contiguous(), soft], tmp_path / "a.pt")
    settings = Settings(distill=dataclasses.replace(Settings().distill, decode="bound", decoded_per_class=9))
    got = convert(path, real, factor=factor, decode=decode, settings=settings)
    data = got.labeled()
    assert got.soft_labels is not None
    assert got.soft_labels.dtype == torch.float16
    assert len(data) == len(got.soft_labels) == 3 * {"single": 2 * factor**2, "multi": 10, "bound": 9}[decode]
    for image, logits, label in zip(data.images, got.soft_labels, data.labels, strict=True):
        stored = round(float(image[0, 4, 4]) * 10) - 1
        assert torch.equal(logits.float(), soft[stored])
        assert label == LABELS[stored]


def normalized(images: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def test_every_kind_of_values_gives_the_same_set(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    expected = as_bytes(images[[1, 3, 2, 5, 0, 4]])
    other = {"mean": (0.4, 0.5, 0.3), "std": (0.2, 0.3, 0.25)}
    flags = {k: ",".join(map(str, v)) for k, v in other.items()}
    forms: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (images, {}),
        (images, {"values": "unit"}),
        (images * 255, {"values": "bytes"}),
        (as_bytes(images), {}),
        (normalized(images, real.mean, real.std), {"values": "normalized"}),
        (normalized(images, **other), {"values": "normalized", **flags}),
    ]
    for form, how in forms:
        got = convert(saved([form, LABELS], tmp_path / "a.pt"), real, **how)
        assert torch.equal(got.images, expected), how
        assert got.manifest.to_dict()["source"]["converted"]["values"] == how.get(
            "values", "bytes" if form.dtype == torch.uint8 else "unit"
        )


def whitened(images_ND: np.ndarray, train_ND: np.ndarray) -> np.ndarray:
    """ZCA as kornia fits it, written afresh: singular vectors of the unbiased covariance, 0.1 under the root."""
    u, s, _ = np.linalg.svd(np.cov(train_ND, rowvar=False))
    return (images_ND - train_ND.mean(0)) @ (u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T)


@pytest.mark.parametrize("given", [None, Normalization(mean=(0.3,), std=(0.4,))], ids=["plain", "normalized"])
def test_whitening_is_undone(given: Normalization | None) -> None:
    real = open_real("digits", DataSettings())
    train_ND = real.train.images.reshape(len(real.train.images), -1) / 255
    prepared_ND = train_ND if given is None else (train_ND - 0.3) / 0.4
    white = whitened(prepared_ND[:50], prepared_ND).astype(np.float32).reshape(50, 1, 8, 8)
    got = pixel_values.fitted_whitening(real, given).undone(white)
    np.testing.assert_allclose(got.reshape(50, -1), train_ND[:50], atol=1e-5)


def in_order(images: np.ndarray, values: Any, real: RealData) -> np.ndarray:
    return pixel_values.to_bytes(images.astype(np.float32), np.arange(len(images)), values, real, None)[0]


def test_kinds_that_are_taken_for_another_are_refused() -> None:
    """Every kind of digits read as every other; what fits says so."""
    real = open_real("digits", DataSettings())
    unit = real.train.images[::13] / 255
    train_ND = real.train.images.reshape(len(real.train.images), -1) / 255
    forms = {
        "unit": unit,
        "bytes": unit * 255,
        "normalized": (unit - real.mean[0]) / real.std[0],
        "zca": whitened(unit.reshape(len(unit), -1), train_ND).reshape(unit.shape),
    }
    for kind, form in forms.items():
        for values in forms:
            if kind == values:
                np.testing.assert_array_equal(in_order(form, values, real), real.train.images[::13])
            else:
                with pytest.raises(UserError, match=rf"^--values {values}: .*pass --values .*{kind}"):
                    in_order(form, values, real)


RANGES: dict[str, tuple[str, float, float, str | None]] = {
    "unit, a little outside": ("unit", -0.049, 1.049, None),
    "unit, normalized": ("unit", -0.06, 1, r"from -0\.06 to 1, which looks normalized or whitened: pass --values norm"),
    "unit, bytes": ("unit", 0, 255, r"from 0 to 255, which looks like bytes: pass --values bytes"),
    "unit, nothing": ("unit", 0, 16, r"from 0 to 16, which looks like no kind: bring them to \[0, 1\] first"),
    "unit, wild": ("unit", -400, 400, "which looks like no kind"),
    "bytes, a little outside": ("bytes", -12, 267, None),
    "bytes, unit": ("bytes", 0, 1, r"looks like \[0, 1\]: pass --values unit"),
    "bytes, normalized": ("bytes", -2.1, 2.6, "looks normalized or whitened: pass --values normalized or zca"),
    "normalized, unit": ("normalized", 0, 1, "pass --values unit"),
    "zca, unit": ("zca", 0, 1, "pass --values unit"),
    "normalized, bytes": ("normalized", 0, 250, "pass --values bytes"),
    "zca, bytes": ("zca", 0, 250, "pass --values bytes"),
    "normalized, wild": ("normalized", -31, 2, "looks like no kind"),
}


@pytest.mark.parametrize(("values", "low", "high", "says"), RANGES.values(), ids=RANGES)
def test_ranges(real: RealData, values: Any, low: float, high: float, says: str | None) -> None:
    images = np.linspace(low, high, 6 * 3 * 64, dtype=np.float32).reshape(6, 3, 8, 8)
    if says is None:
        assert in_order(images, values, real).shape == images.shape
        return
    with pytest.raises(UserError, match=says):
        in_order(images, values, real)


def test_bytes_are_nothing_else(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    path = saved([as_bytes(images), LABELS], tmp_path / "a.pt")
    for values in ("unit", "normalized", "zca"):
        with pytest.raises(UserError, match=f"--values {values}: .*8-bit, 0 to 255: .*--values bytes"):
            convert(path, real, values=values)


def test_values_outside_are_clipped_and_counted(
    tmp_path: Path, real: RealData, images: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    images[0, 0, 0, :3] = torch.tensor([1.04, -0.03, 1.001])  # the last rounds to 255
    got = convert(saved([images, LABELS], tmp_path / "a.pt"), real)
    row = got.images[4, 0, 0, :3].tolist()
    assert row == [255, 0, 255]
    clipped = got.manifest.to_dict()["source"]["converted"]["clipped"]
    assert clipped == {"share": round(2 / images.numel(), 6), "largest": 0.04}
    assert "clipped to [0, 1]: 0.17% of the values, the farthest 0.04 outside" in capfd.readouterr().err


@pytest.mark.parametrize("values", ["unit", "bytes", "normalized", "zca"])
def test_images_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch, values: Any) -> None:
    """As all at once: the bytes, what is clipped, and the notion of what the values are."""
    real = open_real("digits", DataSettings())
    unit = real.train.images[:25].astype(np.float32) / 255
    unit[[3, 24], 0, 0, :2] = [[1.04, -0.03], [-0.02, 0]]
    mean, std = real.mean[0], real.std[0]
    form = {"unit": unit, "bytes": unit * 255, "normalized": (unit - mean) / std, "zca": (unit - 0.2) * 2}[values]
    order_N = np.random.default_rng(0).permutation(25)
    whole = pixel_values.to_bytes(form, order_N, values, real, None)
    monkeypatch.setattr(pixel_values, "CHUNK_VALUES", 8 * 64 + 63)
    chunked = pixel_values.to_bytes(form, order_N, values, real, None)
    np.testing.assert_array_equal(chunked[0], whole[0])
    assert chunked[1] == whole[1]
    if values != "zca":
        np.testing.assert_array_equal(whole[0], np.rint(unit.clip(0, 1)[order_N] * 255))
        assert whole[1] == {"share": round(3 / unit.size, 6), "largest": 0.04}


def peak_of(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bytes_are_converted_in_twice_their_memory(tmp_path: Path, make_real: Callable[..., RealData]) -> None:
    """Counted where torch counts nothing: an array of the file, and one in the order of the classes."""
    real = make_real((2, 2), test_counts=None, size=32)
    images = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = saved([images, torch.arange(600) % 2], tmp_path / "a.pt")
    convert(path, real, factor=1)  # what is imported late is
    assert peak_of(lambda: convert(path, real, factor=1)) < 2.5 * images.nbytes


@pytest.mark.parametrize("values", ["unit", "bytes", "normalized", "zca"])
def test_floats_are_converted_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch, values: Any) -> None:
    monkeypatch.setattr(pixel_values, "CHUNK_VALUES", 1 << 12)
    real = open_real("digits", DataSettings())
    unit = np.resize(real.train.images, (10_000, 1, 8, 8)).astype(np.float32) / 255
    scale, shift = {"unit": (1, 0), "bytes": (255, 0), "normalized": (3, -0.9), "zca": (2, -0.4)}[values]
    form, order_N = unit * np.float32(scale) + np.float32(shift), np.arange(len(unit))
    fitted = pixel_values.fitted_whitening(real, None)
    monkeypatch.setattr(pixel_values, "fitted_whitening", lambda *_: fitted)  # its matrices are not counted
    peak = peak_of(lambda: pixel_values.to_bytes(form, order_N, values, real, None))
    assert peak < 0.25 * form.nbytes + 10 * 8 * (1 << 12)  # the bytes, and a few arrays of a chunk


def test_large_images_are_not_whitened_back(make_real: Callable[..., RealData]) -> None:
    real = make_real((2, 2), test_counts=None, size=72)
    says = "15552 values .*15552 x 15552, .*12288"
    with pytest.raises(UserError, match=says):
        pixel_values.fitted_whitening(real, None)


WRONG_NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "unit": ({"mean": "1", "std": "1"}, "pass --values normalized or zca with them"),
    "one": ({"mean": "1,1,1", "values": "normalized"}, "belong together: pass both"),
    "count": ({"mean": "1", "std": "1,1,1", "values": "normalized"}, "--mean '1': expected 3 comma-separated numbers"),
    "text": ({"mean": "1,a,1", "std": "1,1,1", "values": "zca"}, "--mean '1,a,1': expected 3"),
    "nan": ({"mean": "1,nan,1", "std": "1,1,1", "values": "zca"}, "--mean '1,nan,1': expected 3"),
    "zero": ({"mean": "1,1,1", "std": "1,0,1", "values": "normalized"}, "--std 1,0,1: expected numbers above 0"),
    "tiny": ({"mean": "1,1,1", "std": "1,1e-300,1", "values": "zca"}, "--std 1,1e-300,1: expected numbers above 0"),
    "of bytes": ({"mean": "124,116,104", "std": "1,1,1", "values": "zca"}, r"--mean '124,116,104': .* in \[0, 1\]"),
}


@pytest.mark.parametrize(("how", "says"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_mean_and_std(tmp_path: Path, real: RealData, how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert(tmp_path / "not reached", real, **how)


def test_the_manifest_says_where_the_set_is_from(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    path = saved([images, LABELS], tmp_path / "a.pt")
    m = convert(path, real).manifest.to_dict()
    assert (m["name"], m["score"], m["classes"]) == ("tiny-ipc2", None, list(real.classes))
    assert (m["mean"], m["std"]) == (list(real.mean), list(real.std))
    assert m["source"] == {
        "name": "tiny",
        "fingerprint": real.fingerprint,
        "train_images": 21,
        "license": None,
        "converted": {
            "file": "a.pt",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "kind": "list",
            "values": "unit",
            "clipped": {"share": 0, "largest": 0},
        },
    }
    assert (m["settings"]["distill"]["ipc"], m["settings"]["network"]["depth"]) == (2, 2)


def test_one_of_several_experiments(
    tmp_path: Path, real: RealData, images: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    content = {"data": [[images.flip(0), LABELS.flip(0)], [images, LABELS]], "accs_all_exps": {"ConvNet": [0.5]}}
    path = saved(content, tmp_path / "res.pt")
    got = convert(path, real, experiment=1)
    assert "res.pt: taking experiment 1 of 2, counted from 0\n" in capfd.readouterr().err
    assert torch.equal(got.images, as_bytes(images[[1, 3, 2, 5, 0, 4]]))
    assert got.manifest.decode.factor == 1
    converted = got.manifest.to_dict()["source"]["converted"]
    assert (converted["kind"], converted["experiment"]) == ("experiments", 1)
    first = convert(path, real)
    assert torch.equal(first.images, as_bytes(images[[3, 1, 5, 2, 4, 0]]))
    assert first.manifest.to_dict()["source"]["converted"]["experiment"] == 0


def test_the_digest_of_several_files_is_that_of_their_sums(
    tmp_path: Path, real: RealData, images: torch.Tensor
) -> None:
    path, labels = saved(images, tmp_path / "images.pt"), saved(LABELS, tmp_path / "classes.pt")
    lines = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in (labels, path))
    converted = convert(path, real, labels=labels).manifest.to_dict()["source"]["converted"]
    assert (converted["file"], converted["kind"]) == ("images.pt", "pair")
    assert converted["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(main.app, [str(a) for a in arguments], prog_name="ncfmkit")


@pytest.fixture
def digits_file(tmp_path: Path, own_folder: None) -> Path:
    real = open_real("digits", DataSettings())
    images = torch.from_numpy(real.train.images[real.train.offsets[:-1]]).float() / 255
    return saved([images, torch.arange(10)], tmp_path / "a.pt")


def test_the_help_is_whole() -> None:
    """What stands in square brackets would be taken for markup."""
    text = " ".join(re.sub(r"[│\s]+", " ", call("convert", "--help").stdout).split())
    assert "list of images and targets, else 1" in text


def test_the_command(digits_file: Path) -> None:
    result = call("convert", digits_file, "--data", "digits")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("digits-ipc1.safetensors: 10 images of 10 classes, ")
    assert result.stdout.endswith("unknown: ncfmkit evaluate digits-ipc1.safetensors --data digits measures it\n")
    assert "10 images, 1 per class; taken as --values unit, --factor 2 --decode single" in result.stderr
    before = Path("digits-ipc1.safetensors").read_bytes()
    for out in ([], ["--out", "digits-ipc1.safetensors"]):
        again = call("convert", digits_file, "--data", "digits", *out)
        assert again.exit_code == 2
        assert "digits-ipc1.safetensors already exists: pass --force to overwrite it" in again.stderr
    assert Path("digits-ipc1.safetensors").read_bytes() == before


def test_links_are_not_followed(digits_file: Path) -> None:
    """One that leads nowhere is something, too."""
    for out in ([], ["--out", "digits-ipc1.safetensors"]):
        Path("digits-ipc1.safetensors").unlink(missing_ok=True)
        Path("digits-ipc1.safetensors").symlink_to("nowhere")
        result = call("convert", digits_file, "--data", "digits", *out)
        assert result.exit_code == 2
        assert "digits-ipc1.safetensors already exists: pass --force to overwrite it" in result.stderr
        assert Path("digits-ipc1.safetensors").is_symlink()


@pytest.mark.usefixtures("own_folder")
def test_the_file_has_a_plain_name(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    """Whatever the data are called."""
    path = saved([images, LABELS], tmp_path / "a.pt")
    given = dataclasses.replace(real, name="../my: data")
    out, result = convert_job.write_released(path, given, Settings(), Reading(), out=None)
    assert (out.name, out.parent) == ("my-data-ipc2.safetensors", Path())
    assert result.manifest.name == "../my: data-ipc2"
    assert set_file.load(out).manifest == result.manifest


def test_the_command_in_json_and_with_settings(digits_file: Path) -> None:
    flags = ["--out", "b.safetensors", "--set", "distill.factor=1", "--student-epochs", "7", "--seed", "3", "--json"]
    result = call("convert", digits_file, "--data", "digits", *flags)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert (value["set"], value["bytes"]) == ("b.safetensors", Path("b.safetensors").stat().st_size)
    assert value["manifest"] == set_file.load("b.safetensors").manifest.to_dict()
    assert value["manifest"]["decode"]["factor"] == 1
    settings = value["manifest"]["settings"]
    assert (settings["recipe"], settings["student"]["epochs"], settings["seed"]) == ("digits", 7, 3)


def test_a_recipe_does_not_change_what_was_released(tmp_path: Path, real: RealData, images: torch.Tensor) -> None:
    """It is of the students."""
    base = Settings()
    distill = dataclasses.replace(base.distill, bytes="500/class", bits=2, chroma="4:2:0")
    labels = dataclasses.replace(base.labels, soft=True, bits=4)
    file = saved([images, LABELS], tmp_path / "a.pt")
    got = convert(file, real, settings=dataclasses.replace(base, distill=distill, labels=labels))
    assert torch.equal(got.images, convert(file, real).images)
    assert got.manifest.pixels is None
    assert got.manifest.training.settings() == convert(file, real).manifest.training.settings()


WRONG_FLAGS: dict[str, tuple[list[str], str]] = {
    "--max-size": (["--max-size", "1KB"], "the limit is 1000 B: raise --max-size"),
    "--max-size text": (["--max-size", "big"], "--max-size 'big' is not a size: expected a number and a unit"),
    "--factor": (["--factor", "0"], "--factor (distill.factor): expected 1 to "),
    "--values": (["--values", "bytes"], "pass --values unit"),
    "--out": (["--out", "no/where.safetensors"], "there is no folder no: make it first"),
    "--labels": (["--labels", "x.pt"], "has its own labels: leave --labels out"),
    "--experiment": (["--experiment", "0"], "a.pt holds one set: leave --experiment out"),
    "--data": (["--data", "digts"], "did you mean 'digits'"),
    "--classes": (["--classes", "0,1"], "labels from 0 to 9, digits has 2 classes, 0 to 1"),
}


@pytest.mark.parametrize(("flags", "says"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_wrong_flags(digits_file: Path, flags: list[str], says: str) -> None:
    result = call("convert", digits_file, "--data", "digits", *flags)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
    assert not list(Path().glob("*.safetensors"))


def test_the_set_is_evaluated_and_trained_on(digits_file: Path) -> None:
    torch.save([torch.load(digits_file)[0], torch.eye(10) * 5], digits_file)
    assert call("convert", digits_file, "--data", "digits", "--out", "a.safetensors").exit_code == 0
    quick = ["--student-epochs", "1", "--repeats", "1", "--compile", "off", "--json"]
    result = call("evaluate", "a.safetensors", "--data", "digits", *quick)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"][0]["decoded"] == 40
