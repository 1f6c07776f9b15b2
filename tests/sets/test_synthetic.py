"""The synthetic set: decoding, initialization and its file, against naive references."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_set
from safetensors.torch import save_file

from ncfmkit.distillation.initial import from_images, initialize
from ncfmkit.errors import UserError
from ncfmkit.mosaic import decode, decode_factors, decode_mask
from ncfmkit.real.store import RealData
from ncfmkit.sets import set_file
from ncfmkit.sets.synthetic import SyntheticSet


def naive_enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear with half-pixel centers, edges repeated."""
    cell, out = image.shape[-1], np.zeros((image.shape[0], side, side))
    places = [max(0.0, (i + 0.5) * cell / side - 0.5) for i in range(side)]
    for r, row in enumerate(places):
        for c, column in enumerate(places):
            r0, c0 = int(row), int(column)
            r1, c1 = min(r0 + 1, cell - 1), min(c0 + 1, cell - 1)
            top = (1 - (column - c0)) * image[:, r0, c0] + (column - c0) * image[:, r0, c1]
            bottom = (1 - (column - c0)) * image[:, r1, c0] + (column - c0) * image[:, r1, c1]
            out[:, r, c] = (1 - (row - r0)) * top + (row - r0) * bottom
    return out


def naive_shrink(image: np.ndarray, cell: int) -> np.ndarray:
    """Bilinear with antialiasing: a triangle as wide as the scale, cut off at the edges."""
    side = image.shape[-1]
    scale = side / cell
    weights = np.zeros((cell, side))
    for o in range(cell):
        for i in range(side):
            weights[o, i] = max(0.0, 1 - abs((i + 0.5) - (o + 0.5) * scale) / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("or,crs,ps->cop", weights, image, weights)


def naive_decode(image: np.ndarray, factor: int) -> list[np.ndarray]:
    side = image.shape[-1]
    if factor == 1:
        return [image]
    cell = math.ceil(side / factor)
    padded = np.full((image.shape[0], cell * factor, cell * factor), 0.5)
    padded[:, :side, :side] = image
    return [
        naive_enlarge(padded[:, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell], side)
        for r in range(factor)
        for c in range(factor)
    ]


def images(count: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([count, side]).random((count, channels, side, side)))


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_decode_equals_the_naive_reference(factor: int, side: int) -> None:
    x = images(2, side)
    got = decode(x, (factor,))
    assert got.shape == (2, factor**2, 3, side, side)
    for n in range(2):
        np.testing.assert_allclose(got[n], naive_decode(x[n].numpy(), factor), atol=1e-6)


def test_decode_of_several_factors_follows_their_order() -> None:
    x = images(2, 8)
    for factors in ((1, 2, 3), (3, 2, 1)):
        expected = [[part for f in factors for part in naive_decode(image, f)] for image in x.numpy()]
        np.testing.assert_allclose(decode(x, factors), expected, atol=1e-6)


def test_cells_come_row_by_row() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, :4, 4:] = 0.1  # top right
    x[0, 0, 4:, :4] = 0.2  # bottom left
    np.testing.assert_allclose(decode(x, (2,))[0].mean((1, 2, 3)), [0, 0.1, 0.2, 0], atol=1e-7)


@pytest.mark.parametrize("side", [5, 6])
def test_decode_gradient(side: int) -> None:
    x = images(1, side, 1).requires_grad_()
    torch.autograd.gradcheck(lambda x: decode(x, (1, 2, 3)), (x,))


def test_decode_factors() -> None:
    assert decode_factors("single", 3) == (3,)
    assert decode_factors("multi", 3) == (1, 2, 3)
    assert decode_factors("bound", 3) == (3, 2, 1)
    assert decode_factors("single", 1) == decode_factors("multi", 1) == decode_factors("bound", 1) == (1,)


@pytest.mark.parametrize(("kind", "columns"), [("single", 9), ("multi", 14)])
def test_single_and_multi_count_every_decoded_image(kind: str, columns: int) -> None:
    mask = decode_mask(kind, 3, 5, None)
    assert mask.shape == (5, columns)
    assert mask.dtype == bool
    assert mask.all()


@pytest.mark.parametrize("budget", [None, *range(1, 45)])
def test_bound_meets_its_budget_with_the_largest_factors_first(budget: int | None) -> None:
    ipc, factor = 3, 3
    mask = decode_mask("bound", factor, ipc, budget)
    assert mask.shape == (ipc, 14)
    expected = np.zeros((ipc, 14), bool)
    # the order in which decoded images are taken: by factor from the largest, then by image, then by cell
    order = [(m, column) for block in (range(9), range(9, 13), range(13, 14)) for m in range(ipc) for column in block]
    for m, column in order[: 27 if budget is None else budget]:
        expected[m, column] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_mix_holds_down_scaled_real_images_of_the_class(make_real, factor: int, size: int) -> None:
    real, ipc = make_real((9, 4, 13), size=size), 2
    stored = initialize("mix", real, ipc=ipc, factor=factor, seed=3)
    assert stored.shape == (3 * ipc, 3, size, size)
    assert stored.dtype == torch.float32
    assert stored.min() >= 0
    assert stored.max() <= 1
    cell = math.ceil(size / factor)
    for c, count in enumerate(real.train.counts()):
        start = real.train.offsets[c]
        own = [naive_shrink(image / 255, cell) for image in real.train.images[start : start + count].astype(float)]
        used = []
        for image in stored[c * ipc : (c + 1) * ipc].numpy():
            for r in range(factor):
                for s in range(factor):
                    got = image[:, r * cell : (r + 1) * cell, s * cell : (s + 1) * cell]
                    distances = [np.abs(o[:, : got.shape[1], : got.shape[2]] - got).max() for o in own]
                    assert min(distances) < 1e-5
                    used.append(int(np.argmin(distances)))
        # every image once before any is used again
        uses = np.bincount(used, minlength=count)
        assert uses.max() - uses.min() <= 1
        assert uses.sum() == ipc * factor**2


def test_mosaic_then_decode_gives_images_of_the_full_side(make_real) -> None:
    real = make_real((9, 9), size=7)
    stored = initialize("mix", real, ipc=2, factor=3, seed=0)
    assert decode(stored, (3,)).shape == (4, 9, 3, 7, 7)


def test_random_gives_real_images(make_real) -> None:
    real = make_real((5, 4))
    stored = initialize("random", real, ipc=4, factor=2, seed=1)
    for c in range(2):
        own = torch.from_numpy(real.train.images[real.train.offsets[c] : real.train.offsets[c + 1]])
        matches = [
            [bool(torch.equal(torch.round(image * 255).to(torch.uint8), o)) for o in own]
            for image in stored[4 * c : 4 * c + 4]
        ]
        assert np.sum(matches, axis=1).tolist() == [1] * 4
        assert np.sum(matches, axis=0).max() == 1  # distinct


def test_noise_is_gray_and_clamped(make_real) -> None:
    real = make_real((1, 1), size=32)  # fewer real images than ipc: noise needs none
    stored = initialize("noise", real, ipc=8, factor=2, seed=0)
    assert stored.shape == (16, 3, 32, 32)
    assert stored.dtype == torch.float32
    assert stored.min() == 0
    assert stored.max() == 1
    inside = stored[(stored > 0) & (stored < 1)]
    assert stored.mean().item() == pytest.approx(0.5, abs=0.01)
    # a normal of deviation 1/4 cut at 2 deviations: 4.55 % at the ends, deviation 0.8796 / 4 inside
    assert 1 - inside.numel() / stored.numel() == pytest.approx(0.0455, abs=0.005)
    assert inside.std().item() == pytest.approx(0.8796 / 4, abs=0.003)


@pytest.mark.parametrize("kind", ["mix", "random", "noise"])
def test_a_class_is_drawn_by_seed_and_class_alone(make_real, kind: str) -> None:
    first, other = make_real((9, 6, 8)), make_real((11, 6, 5))
    a, again = (initialize(kind, first, ipc=2, factor=2, seed=4) for _ in range(2))
    b = initialize(kind, other, ipc=2, factor=2, seed=4)
    assert torch.equal(a, again)
    assert torch.equal(a[2:4], b[2:4])
    c = initialize(kind, first, ipc=2, factor=2, seed=5)
    assert not torch.equal(a, c)
    assert not torch.equal(a[:2], a[2:4])


def test_classes_draw_different_images(make_real) -> None:
    """Two classes of the same images."""
    real = make_real((30, 30))
    real.train.images[30:] = real.train.images[:30]
    for kind in ("mix", "random", "noise"):
        stored = initialize(kind, real, ipc=3, factor=2, seed=4)
        assert not torch.equal(stored[:3], stored[3:])


def test_global_random_numbers_are_neither_read_nor_drawn(make_real) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    a = initialize("mix", make_real(), ipc=2, factor=2, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(a, initialize("mix", make_real(), ipc=2, factor=2, seed=4))


@pytest.mark.parametrize("kind", ["mix", "random"])
def test_too_few_images_is_an_error(make_real, kind: str) -> None:
    with pytest.raises(UserError) as error:
        initialize(kind, make_real((7, 3, 4)), ipc=4, factor=2, seed=0)
    assert str(error.value) == (
        "--ipc 4 is above the 3 training images of class 'class 1' in tiny: "
        f"--init {kind} needs at least as many; lower --ipc, or use --init noise"
    )


def test_from_images_gives_its_images(real) -> None:
    start = build_set()
    got = from_images(start.images, start.classes, real, ipc=2)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, start.images.numpy() / 255, atol=1e-7)


def test_from_images_errors(make_real, real) -> None:
    def from_set(start: SyntheticSet, real: RealData, *, ipc: int) -> torch.Tensor:
        return from_images(start.images, start.classes, real, ipc=ipc)

    with pytest.raises(UserError, match=r"--load: the set has other classes than tiny: 3 instead of 2"):
        from_set(build_set(), make_real((4, 4)), ipc=2)
    other = build_set()
    other.manifest["classes"][1] = "cat"
    with pytest.raises(UserError, match=r"other classes than tiny: 'cat' instead of 'class 1'"):
        from_set(other, real, ipc=2)
    with pytest.raises(UserError, match=r"expected images of shape \(9, 3, 8, 8\), got \(6, 3, 8, 8\): check --ipc"):
        from_set(build_set(), real, ipc=3)
    with pytest.raises(UserError, match=r"expected images of shape \(6, 3, 16, 16\), got \(6, 3, 8, 8\)"):
        from_set(build_set(), make_real(size=16), ipc=2)
    with pytest.raises(UserError, match=r"expected images of shape \(6, 1, 8, 8\)"):
        from_set(build_set(), make_real(channels=1), ipc=2)


@pytest.mark.parametrize(
    ("kind", "factor", "budget"), [("single", 2, None), ("single", 1, None), ("multi", 2, None), ("bound", 2, 7)]
)
def test_decoded_images_and_labels(kind: str, factor: int, budget: int | None) -> None:
    synthetic = build_set(kind, factor, budget)
    x, labels = synthetic.decoded()
    factors, expected, expected_labels = decode_factors(kind, factor), [], []
    mask = decode_mask(kind, factor, 2, budget)
    for n, image in enumerate(synthetic.images.numpy() / 255):
        parts = [part for f in factors for part in naive_decode(image, f)]
        kept = [part for p, part in enumerate(parts) if mask[n % 2, p]]
        expected += kept
        expected_labels += [n // 2] * len(kept)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    np.testing.assert_allclose(x, expected, atol=1e-6)
    assert labels.tolist() == expected_labels
    if budget is not None:
        assert np.bincount(labels).tolist() == [budget] * 3


def test_as_dataset_normalizes() -> None:
    synthetic = build_set()
    x, labels = synthetic.decoded()
    dataset = synthetic.as_dataset()
    assert len(dataset) == len(x) == 24
    for n in (0, 11, 23):
        image, label = dataset[n]
        for channel, (mean, std) in enumerate(zip([0.5, 0.4, 0.3], [0.2, 0.25, 0.3], strict=True)):
            torch.testing.assert_close(image[channel], (x[n, channel] - mean) / std)
        assert label == labels[n]


def test_classes_and_ipc() -> None:
    assert build_set(ipc=3).ipc == 3
    assert build_set().classes == ("class 0", "class 1", "class 2")


def test_round_trip(tmp_path: Path) -> None:
    synthetic, file = build_set("bound", 2, 7), tmp_path / set_file.FILE_NAME
    set_file.save(synthetic, file)
    for path in (file, str(file), tmp_path):
        again = set_file.load(path)
        assert torch.equal(again.images, synthetic.images)
        assert torch.equal(again.labels, synthetic.labels)
        assert {k: again.manifest[k] for k in synthetic.manifest} == synthetic.manifest
        assert again.manifest["bytes"] == {"images": 6 * 3 * 64, "labels": 6 * 8}
    assert [f.name for f in tmp_path.iterdir()] == [set_file.FILE_NAME]


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    set_file.save(build_set(), tmp_path / "a.safetensors")
    second = build_set()
    reordered = SyntheticSet(
        images=second.images.transpose(2, 3).contiguous().transpose(2, 3),  # other strides
        labels=second.labels,
        manifest=dict(reversed(second.manifest.items())),
    )
    set_file.save(reordered, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


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
    with pytest.raises(UserError, match=rf"set\.safetensors is damaged: the sha256 of '{name}' is not the manifest's"):
        set_file.load(stored)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_a_truncated_file_is_noticed(stored: Path, keep: float) -> None:
    data = stored.read_bytes()
    stored.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(
        UserError, match=r"set\.safetensors is damaged: it is not a readable safetensors file \(damaged or truncated\)"
    ):
        set_file.load(stored)


def test_other_files_are_not_sets(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(UserError, match=r"no synthetic set at .*nowhere: expected a \.safetensors file, a run"):
        set_file.load(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"no synthetic set at .*expected .* a run directory with synthetic\.safetensors"
    ):
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
    manifest = set_file.load(file).manifest | changes
    rest = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    metadata = {"ncfmkit": json.dumps(manifest)}
    save_file({"images": synthetic.images, "labels": synthetic.labels}, file, metadata=metadata)


def test_another_format_number_is_an_error(stored: Path) -> None:
    rewrite(stored, format=3)
    with pytest.raises(UserError, match=r"has format 3, this ncfmkit reads 1 and 2: update ncfmkit"):
        set_file.load(stored)


def test_another_kind_is_an_error(stored: Path) -> None:
    rewrite(stored, kind="label file")
    with pytest.raises(UserError, match=r"holds a label file, not a synthetic set"):
        set_file.load(stored)


def test_a_header_of_no_length_is_not_read(stored: Path) -> None:
    stored.write_bytes(bytes(8) + stored.read_bytes()[8:])
    with pytest.raises(UserError, match="a header of 0 bytes, expected 1 to 16777216"):
        set_file.load(stored)
