"""Pictures in, pixels out: sizes, color modes, orientation, broken files."""

import io

import numpy as np
import pytest
from PIL import Image

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.decode import BadImageError, Frame, fit, open_picture
from ncfmkit.real.opening import open_real

RGB = Frame(size=4, color="rgb", crop=False, convert=False)
GRAY = Frame(size=4, color="gray", crop=False, convert=False)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def folder(tmp_path, *pictures):
    """A set of one class with these pictures, in this order."""
    root = tmp_path / "set"
    (root / "a").mkdir(parents=True)
    for i, picture in enumerate(pictures):
        content = picture if isinstance(picture, bytes) else file_of(picture)
        (root / "a" / f"{i}.png").write_bytes(content)
    return str(root)


def file_of(picture, kind="png", **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_side_is_that_of_the_first_image_and_others_must_equal_it(tmp_path):
    data = folder(tmp_path, noise(6, 6, 3), noise(6, 8, 3))
    with pytest.raises(UserError, match=r"a/1\.png: expected 6x6 .*got 8x6: .*--size 6 --resize crop"):
        open_real(data, DataSettings())


def test_first_image_must_be_square(tmp_path):
    with pytest.raises(UserError, match=r"a/0\.png: .*square.* got 8x6: .*--size 6 --resize crop"):
        open_real(folder(tmp_path, noise(6, 8, 3)), DataSettings())


def test_given_size_without_resize(tmp_path):
    with pytest.raises(UserError, match=r"a/0\.png: expected 4x4, got 6x6: .*--size 4 --resize crop.* --size 6 .*6x6"):
        open_real(folder(tmp_path, noise(6, 6, 3)), DataSettings(size=4))


@pytest.mark.parametrize("shape", [(9, 20, 3), (20, 9, 3), (4, 4, 3), (3, 3, 3)])
def test_crop_takes_the_center_of_the_short_side(tmp_path, shape):
    image = noise(*shape)
    data = open_real(folder(tmp_path, image), DataSettings(size=4, resize="crop"))
    short, (h, w) = min(shape[:2]), shape[:2]
    box = ((w - short) / 2, (h - short) / 2, (w + short) / 2, (h + short) / 2)
    expected = Image.fromarray(image) if shape == (4, 4, 3) else Image.fromarray(image).resize((4, 4), 3, box)
    np.testing.assert_array_equal(data.train.images[0], np.asarray(expected).transpose(2, 0, 1))


def test_crop_is_short_side_then_center_crop_and_antialiased():
    ramp = np.repeat(np.linspace(0, 255, 40)[None, :, None], 20, 0).repeat(3, 2).astype(np.uint8)
    crop = fit(Image.fromarray(ramp), Frame(size=10, color="rgb", crop=True, convert=False), "x")
    other = np.asarray(Image.fromarray(ramp).resize((20, 10), 3))[:, 5:15].transpose(2, 0, 1)
    assert np.abs(crop.astype(int) - other)[:, :, 2:-2].max() <= 1
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert (
        np.abs(fit(Image.fromarray(checks), Frame(size=4, color="gray", crop=True, convert=False), "x") - 127.5).max()
        < 3
    )


def test_color_is_that_of_the_first_image(tmp_path):
    assert open_real(folder(tmp_path, noise(4, 4)), DataSettings()).channels == 1
    assert open_real(folder(tmp_path / "x", noise(4, 4, 3)), DataSettings()).channels == 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "CMYK", "I;16", "Pt"])
def test_other_modes_need_a_setting(tmp_path, mode):
    picture = mode_of(mode)
    data = folder(tmp_path, noise(4, 4, 3), file_of(picture, "tiff") if mode == "CMYK" else picture)
    if mode == "CMYK":
        (tmp_path / "set" / "a" / "1.png").write_bytes(file_of(picture, "jpeg"))
    message = (
        rf"a/1\.png: expected rgb images, got mode {'RGBA' if mode == 'Pt' else mode}: pass --convert-color .*--color"
    )
    with pytest.raises(UserError, match=message):
        open_real(data, DataSettings())
    images = open_real(data, DataSettings(convert_color=True)).train.images
    assert images.shape == (2, 3, 4, 4)
    if mode == "I;16":
        np.testing.assert_array_equal(images[1], np.broadcast_to(noise(4, 4), (3, 4, 4)))


def mode_of(mode):
    if mode == "I;16":
        return Image.fromarray(noise(4, 4).astype(np.uint16) << 8)
    if mode == "Pt":
        return Image.fromarray(noise(4, 4, 4)).convert("RGBA").quantize(8)
    return Image.fromarray(noise(4, 4, 3)).convert("RGB" if mode in ("LA", "CMYK") else mode).convert(mode)


def test_rgb_in_a_gray_set(tmp_path):
    data = folder(tmp_path, noise(4, 4, 3))
    with pytest.raises(UserError, match=r"expected gray .*got mode RGB: .*--convert-color"):
        open_real(data, DataSettings(color="gray"))
    gray = open_real(data, DataSettings(color="gray", convert_color=True)).train.images[0, 0]
    np.testing.assert_array_equal(gray, np.asarray(Image.fromarray(noise(4, 4, 3)).convert("L")))


def test_arrays_go_through_the_same_checks():
    with pytest.raises(UserError, match=r"digits train row 0: expected rgb images, got mode L"):
        open_real("digits", DataSettings(color="rgb"))
    with pytest.raises(UserError, match=r"digits train row 0: expected 16x16, got 8x8"):
        open_real("digits", DataSettings(size=16))
    assert open_real("digits", DataSettings(size=16, resize="crop", color="rgb", convert_color=True)).channels == 3


def test_plain_palette_and_one_bit_pictures_are_fine():
    palette = Image.fromarray(noise(4, 4, 3)).quantize(8)
    image = fit(open_picture(file_of(palette), "x"), RGB, "x")
    np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    bits = Image.fromarray(noise(4, 4)).convert("1")
    np.testing.assert_array_equal(fit(open_picture(file_of(bits), "x"), GRAY, "x")[0], np.asarray(bits) * 255)


def test_unsupported_depth():
    with pytest.raises(UserError, match="x: expected 8 bits per channel, got Pillow's mode F"):
        fit(Image.new("F", (4, 4)), GRAY, "x")


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(8, 4, 3)
    upright = np.asarray(open_picture(file_of(image, "png", exif=exif), "x"))
    np.testing.assert_array_equal(upright, np.rot90(image, -1))


@pytest.mark.parametrize(
    "content", [b"", b"junk", file_of(noise(40, 40, 3))[:900], file_of(noise(40, 40, 3), "jpeg")[:700]]
)
def test_broken_files_are_named(content):
    with pytest.raises(BadImageError, match=r"train-0\.parquet row 17 .*picture .*--skip-bad"):
        open_picture(content, "train-0.parquet row 17")


def test_other_formats_stay_shut():
    with pytest.raises(BadImageError, match="not a PNG, JPEG, WebP or BMP"):
        open_picture(file_of(noise(4, 4, 3), "tiff"), "x")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [20, 60])
def test_decompression_bombs_are_bad_images(monkeypatch, limit):
    content = file_of(noise(8, 8, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImageError, match="64 pixels"):
        open_picture(content, "x")


def test_skip_bad_counts_and_tells(tmp_path, capsys):
    data = folder(tmp_path, b"junk", noise(4, 4, 3), file_of(noise(90, 90, 3))[:2000], noise(4, 4, 3) // 2)
    with pytest.raises(UserError, match=r"a/0\.png is not a readable picture"):
        open_real(data, DataSettings())
    opened = open_real(data, DataSettings(), skip_bad=True)
    assert (opened.skipped, opened.train.counts().tolist()) == (2, [2])
    np.testing.assert_array_equal(opened.train.images[1], (noise(4, 4, 3) // 2).transpose(2, 0, 1))
    assert opened.mean[0] == pytest.approx(opened.train.images[:, 0].mean() / 255)
    assert "passed over 2 images" in capsys.readouterr().err


def test_class_that_becomes_empty(tmp_path):
    data = folder(tmp_path, noise(4, 4, 3))
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "b" / "0.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"class 'b' .*set train: all 1 are unreadable"):
        open_real(data, DataSettings(), skip_bad=True)
    with pytest.raises(UserError, match=r"none of the 1 images .*train split"):
        open_real(data, DataSettings(classes=("b",)), skip_bad=True)
