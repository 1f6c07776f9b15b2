"""Pictures in, pixels out: sizes, color modes, orientation, broken files."""

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real import decode
from ncfmkit.real.decode import BadImageError, Frame, Look, Opened, fit, open_picture, readable_formats
from ncfmkit.real.opening import open_real

RGB = Frame(size=4, color="rgb", crop=False)
GRAY = Frame(size=4, color="gray", crop=False)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def folder(tmp_path, *pictures, kind="png"):
    """A set of one class with these pictures, in this order."""
    root = tmp_path / "set"
    (root / "a").mkdir(parents=True)
    for i, picture in enumerate(pictures):
        content = picture if isinstance(picture, bytes) else file_of(picture, kind)
        (root / "a" / f"{i}.png").write_bytes(content)
    return str(root)


def file_of(picture, kind="png", **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_side_is_that_of_the_first_image_and_others_must_equal_it(tmp_path):
    data = folder(tmp_path, noise(6, 6, 3), noise(6, 8, 3))
    with pytest.raises(UserError, match=r"a/1\.png: expected 6x6, as .*a/0\.png, got 8x6: .*--size 6 --resize crop"):
        open_real(data, DataSettings())


def test_first_image_must_be_square(tmp_path):
    with pytest.raises(UserError, match=r"a/0\.png: .*square.* got 8x6: .*--size 6 --resize crop"):
        open_real(folder(tmp_path, noise(6, 8, 3)), DataSettings())


def test_given_size_without_resize(tmp_path):
    with pytest.raises(UserError, match=r"a/0\.png: expected 4x4, got 6x6: .*--size 4 --resize crop"):
        open_real(folder(tmp_path, noise(6, 6, 3)), DataSettings(size=4))


@pytest.mark.parametrize("settings", [DataSettings(), DataSettings(size=5), DataSettings(holdout=0.5)])
@pytest.mark.parametrize("program", ["/usr/bin/ncfmkit", "/x/ncfmkit/__main__.py", "/x/train.py"])
def test_mixed_sizes_get_one_message_with_the_command_that_works(tmp_path, monkeypatch, settings, program):
    modes = ("RGB", "RGB", "L", "CMYK", "RGBA", "RGB")
    data = folder(tmp_path, *(Image.new(mode, (70 + i, 90)) for i, mode in enumerate(modes)), kind="tiff")
    given = f"--size {settings.size} " if settings.size else ""
    monkeypatch.setattr(sys, "argv", [program, "distill", "my photos", *given.split()])
    more = f"--resize crop{'' if settings.holdout else ' --holdout 0.1'}"
    flags = f"{given or '--size 64 '}{more}"
    with pytest.raises(UserError) as caught:
        open_real(data, settings)
    message, _, command = str(caught.value).partition("; the whole command:\n")
    assert message.endswith(f": pass {flags} to crop and resize all images")
    assert command == ("" if program == "/x/train.py" else f"ncfmkit distill 'my photos' {flags}")
    opened = open_real(data, DataSettings(size=settings.size or 64, resize="crop", holdout=settings.holdout or 0.1))
    assert (opened.channels, len(opened.train.images) + len(opened.test.images)) == (3, 6)


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
    crop, look = fit(Opened(Image.fromarray(ramp), False), Frame(size=10, color="rgb", crop=True), "x")
    assert look == Look("rgb", turned=False, resized=True)
    other = np.asarray(Image.fromarray(ramp).resize((20, 10), 3))[:, 5:15].transpose(2, 0, 1)
    assert np.abs(crop.astype(int) - other)[:, :, 2:-2].max() <= 1
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    flat, _ = fit(Opened(Image.fromarray(checks), False), Frame(size=4, color="gray", crop=True), "x")
    assert np.abs(flat - 127.5).max() < 3


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_color_is_that_of_most_images_whichever_is_first(tmp_path, color, order, capsys):
    rgb, gray = noise(4, 4, 3), noise(4, 4)
    data = open_real(folder(tmp_path, *[gray, rgb, gray if color == "gray" else rgb][::order]), DataSettings())
    assert data.channels == (1 if color == "gray" else 3)
    other = "gray" if color == "rgb" else "rgb"
    assert data.changed == {"resized": 0, "turned": 0, "converted": {other: 1}}
    assert f"set: of 3 pictures, 1 converted to {color} (1 {other})\n" in capsys.readouterr().err
    expected = [gray, np.asarray(Image.fromarray(rgb).convert("L")), gray] if color == "gray" else [gray, rgb, rgb]
    for image, pixels in zip(data.train.images, expected[::order], strict=True):
        full = np.broadcast_to(np.atleast_3d(pixels), (4, 4, data.channels)).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, full)
    assert data.mean == pytest.approx(data.train.images.mean((0, 2, 3)) / 255)


def test_as_many_gray_as_color_images_are_color(tmp_path):
    assert open_real(folder(tmp_path, noise(4, 4), noise(4, 4, 3)), DataSettings()).channels == 3


def test_the_test_split_does_not_decide_the_color(tmp_path):
    root = Path(folder(tmp_path, noise(4, 4, 3)))
    (root / "train").mkdir()
    (root / "a").rename(root / "train" / "a")
    (root / "test" / "a").mkdir(parents=True)
    for i in range(3):
        (root / "test" / "a" / f"{i}.png").write_bytes(file_of(noise(4, 4)))
    data = open_real(str(root), DataSettings())
    assert (data.channels, data.test.images.shape) == (3, (3, 3, 4, 4))
    assert data.changed["converted"] == {"gray": 3}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(
            ("L", "gray"),
            ("RGBA", "transparent"),
            ("LA", "transparent gray"),
            ("CMYK", "CMYK"),
            ("I;16", "16-bit gray"),
        ),
        *(("Pt", "transparent"), ("P", "palette"), ("1", "1-bit"), ("I", "16-bit gray"), ("I;16B", "16-bit gray")),
    ],
)
def test_other_modes_are_converted_and_counted(tmp_path, mode, kind):
    files = {"CMYK": "jpeg", "I": "ppm", "I;16B": "tiff"}
    data = folder(tmp_path, noise(4, 4, 3), noise(4, 4, 3), file_of(mode_of(mode), files.get(mode, "png")))
    opened = open_real(data, DataSettings())
    assert opened.changed["converted"] == {kind: 1}
    assert opened.train.images.shape == (3, 3, 4, 4)
    if kind == "16-bit gray":
        np.testing.assert_array_equal(opened.train.images[2], np.broadcast_to(noise(4, 4), (3, 4, 4)))
    else:
        content = file_of(mode_of(mode), files.get(mode, "png"))
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA" if mode == "Pt" else "RGB"))[:, :, :3]
        np.testing.assert_array_equal(opened.train.images[2], expected.transpose(2, 0, 1))


def mode_of(mode):
    if mode in ("I;16", "I;16B"):
        return Image.fromarray((noise(4, 4).astype(np.uint16) << 8).astype("<u2" if mode == "I;16" else ">u2"))
    if mode == "I":
        return Image.fromarray(noise(4, 4).astype(np.int32) << 8)
    if mode in ("P", "Pt"):
        return Image.fromarray(noise(4, 4, 3 if mode == "P" else 4)).quantize(8)
    return Image.fromarray(noise(4, 4, 3)).convert("RGB" if mode in ("LA", "CMYK") else mode).convert(mode)


def test_a_color_that_was_asked_for(tmp_path):
    data = open_real(folder(tmp_path, noise(4, 4, 3)), DataSettings(color="gray"))
    np.testing.assert_array_equal(data.train.images[0, 0], np.asarray(Image.fromarray(noise(4, 4, 3)).convert("L")))
    assert data.changed["converted"] == {"rgb": 1}


def test_lab_in_a_gray_set(tmp_path):
    lab = Image.new("LAB", (4, 4), (118, 187, 166))
    data = open_real(folder(tmp_path, lab, kind="tiff"), DataSettings(color="gray"))
    expected = np.full((1, 4, 4), np.asarray(lab.convert("RGB").convert("L"))[0, 0])
    np.testing.assert_array_equal(data.train.images[0], expected)


def test_arrays_go_through_the_same_conversions():
    with pytest.raises(
        UserError, match=r"digits train row 0: expected 16x16, got 8x8: pass --size 16 --resize crop to"
    ):
        open_real("digits", DataSettings(size=16))
    data = open_real("digits", DataSettings(size=16, resize="crop", color="rgb"))
    assert (data.channels, data.changed) == (3, {"resized": 1797, "turned": 0, "converted": {"gray": 1797}})


@pytest.mark.parametrize("mode", ["F", "I"])
def test_unsupported_depths_can_be_skipped(tmp_path, mode):
    data = folder(tmp_path, noise(4, 4, 3), file_of(Image.new(mode, (4, 4)), "tiff"))
    with pytest.raises(BadImageError, match=rf"a/1\.png is not a readable picture \(.*{mode}.*--skip-bad"):
        open_real(data, DataSettings())
    assert open_real(data, DataSettings(), skip_bad=True).skipped == 1


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(8, 4, 3)
    opened = open_picture(file_of(image, "png", exif=exif), "x")
    np.testing.assert_array_equal(np.asarray(opened.image), np.rot90(image, -1))
    assert opened.turned
    exif[0x0112] = 1
    assert not open_picture(file_of(image, "png", exif=exif), "x").turned


def test_odd_exif_tags_do_not_matter():
    """A text where a number belongs: Pillow reads it, and fails to write it."""
    entries = [struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0"), struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)]
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    image = noise(8, 4, 3)
    opened = open_picture(file_of(image, "jpeg", exif=odd, quality=100, subsampling=0), "x")
    assert opened.turned
    assert np.abs(np.asarray(opened.image).astype(int) - np.rot90(image, -1)).mean() < 4


def test_turned_pictures_are_counted(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = open_real(folder(tmp_path, noise(4, 4, 3), file_of(noise(4, 4, 3), "jpeg", exif=exif)), DataSettings())
    assert data.changed == {"resized": 0, "turned": 1, "converted": {}}
    assert "set: of 2 pictures, 1 turned upright (EXIF)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"junk", file_of(noise(40, 40, 3))[:900], file_of(noise(40, 40, 3), "jpeg")[:700]]
)
def test_broken_files_are_named(content):
    with pytest.raises(BadImageError, match=r"train-0\.parquet row 17 .*picture .*--skip-bad"):
        open_picture(content, "train-0.parquet row 17")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff", "avif", "jpeg2000", "ppm"])
def test_all_formats_are_read(kind):
    if kind.upper() not in readable_formats():
        pytest.skip(f"this Pillow does not read {kind}")
    image = np.kron(noise(2, 2, 3), np.ones((8, 8, 1), np.uint8))
    content = file_of(image, kind, **({"quality": 100} if kind in ("jpeg", "avif", "webp") else {}))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    pixels, look = fit(open_picture(content, "x"), Frame(size=16, color="rgb", crop=False), "x")
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))
    assert look.kind == ("palette" if kind == "gif" else "rgb")


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_the_first_of_several_frames_is_read(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    lossless = {"lossless": True} if kind == "webp" else {}
    content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert fit(open_picture(content, "x"), RGB, "x")[0][:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["eps", "tga", "pdf", "ico"])
def test_other_formats_stay_shut(kind):
    with pytest.raises(BadImageError, match="its format is none of PNG, JPEG"):
        open_picture(file_of(noise(16, 16, 3), kind), "x")


def test_formats_that_this_pillow_cannot_decode_are_not_opened(monkeypatch):
    content = file_of(noise(4, 4, 3), "webp")
    readable_formats.cache_clear()
    monkeypatch.setattr(decode.features, "check", lambda codec: codec != "webp")
    with pytest.raises(BadImageError, match="its format is none of PNG, JPEG, BMP"):
        open_picture(content, "x")
    assert ".webp" not in decode.picture_suffixes()
    monkeypatch.undo()
    readable_formats.cache_clear()
    assert ".webp" in decode.picture_suffixes()


def test_heic_is_read_where_the_plugin_is(monkeypatch):
    registered = []
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    readable_formats.cache_clear()
    assert ".heic" not in decode.picture_suffixes()

    def register_heif_opener():
        registered.append(True)
        monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    readable_formats.cache_clear()
    assert ".heic" in decode.picture_suffixes()
    assert registered == [True]
    monkeypatch.undo()
    readable_formats.cache_clear()


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
    assert "skipped 2 images" in capsys.readouterr().err


def test_class_that_becomes_empty(tmp_path):
    data = folder(tmp_path, noise(4, 4, 3))
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "b" / "0.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"class 'b' .*set train: all 1 are unreadable"):
        open_real(data, DataSettings(), skip_bad=True)
    with pytest.raises(UserError, match=r"none of the 1 images .*train split"):
        open_real(data, DataSettings(classes=("b",)), skip_bad=True)
