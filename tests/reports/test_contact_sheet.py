"""The contact sheet's pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from ncfmkit.reports.contact_sheet import contact_sheet, png_bytes


def box_of(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of one color, which must fill that box."""
    found = (np.asarray(sheet.convert("RGB")) == color).all(axis=-1)
    ys, xs = np.nonzero(found)
    assert len(ys), f"no pixel of color {color}"
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    assert found[box[1] : box[3], box[0] : box[2]].all()
    return box


def solid(*colors: tuple[int, int, int], size: int = 8) -> np.ndarray:
    return np.stack([np.full((size, size, 3), c, np.uint8).transpose(2, 0, 1) for c in colors])


RED, GREEN, BLUE, TEAL = (250, 1, 2), (3, 240, 4), (5, 6, 230), (7, 128, 129)


def test_contact_sheet_has_a_row_per_class_in_class_order_whatever_the_order_of_images():
    sheet = contact_sheet(solid(BLUE, RED, GREEN, TEAL), np.array([1, 0, 1, 0]), ["zero", "one"])
    red, teal, blue, green = (box_of(sheet, c) for c in (RED, TEAL, BLUE, GREEN))
    assert red[1] == teal[1] < blue[1] == green[1]
    assert red[0] == blue[0] < teal[0] == green[0]
    assert teal[0] >= red[2]
    assert blue[1] >= red[3]


@pytest.mark.parametrize(("size", "shown"), [(8, 64), (28, 84), (32, 64), (64, 64), (128, 128), (224, 112)])
def test_contact_sheet_enlarges_by_a_whole_factor_and_averages_large_images_down(size, shown):
    left, top, right, bottom = box_of(contact_sheet(solid(RED, size=size), np.array([0]), ["a"]), RED)
    assert (right - left, bottom - top) == (shown, shown)


def test_contact_sheet_of_one_image_per_class_is_a_block():
    colors = [(10 * k, 100, 200) for k in range(10)]
    sheet = contact_sheet(solid(*colors), np.arange(10), [f"class {k}" for k in range(10)])
    assert 1 / 2 < sheet.width / sheet.height < 2
    boxes = [box_of(sheet, color) for color in colors]
    beside = sum(box[1] == boxes[0][1] for box in boxes)
    assert 2 <= beside <= 4
    for k, box in enumerate(boxes):
        assert (box[0], box[1]) == (boxes[k % beside][0], boxes[k // beside * beside][1])
        ink = np.asarray(sheet.convert("L"))[box[1] : box[3], :]
        assert (ink[:, box[0] - 40 : box[0]] < 128).any()  # its name is beside it


def test_contact_sheet_keeps_each_pixel_as_one_block():
    image = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8) + 100
    sheet = np.asarray(contact_sheet(image, np.array([0]), [""]))
    assert sheet.ndim == 2
    ys, xs = np.nonzero(sheet != 255)
    cell = sheet[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    np.testing.assert_array_equal(cell, image[0, 0].repeat(8, 0).repeat(8, 1))


def test_contact_sheet_shows_per_class_images_at_most_and_says_so():
    images, labels = solid(RED, GREEN, BLUE), np.zeros(3, np.int64)
    two = contact_sheet(images, labels, ["a"], per_class=2)
    colors = {color for _, color in two.getcolors(1 << 16)}
    assert {RED, GREEN} <= colors
    assert BLUE not in colors
    assert two.height > contact_sheet(images, labels, ["a"], per_class=3).height  # the line below


def test_contact_sheet_names_the_classes_at_the_left():
    images, labels = solid(RED), np.array([0])
    named, unnamed = contact_sheet(images, labels, ["ship"]), contact_sheet(images, labels, [""])
    left = box_of(named, RED)[0]
    assert left > box_of(unnamed, RED)[0]
    assert (np.asarray(named)[:, :left] < 128).any()
    assert not (np.asarray(unnamed)[:, : box_of(unnamed, RED)[0]] < 128).any()


def test_contact_sheet_copes_with_long_names_empty_classes_and_no_images():
    sheet = contact_sheet(solid(RED), np.array([1]), ["", "x\n" * 5000, "птица"])
    assert sheet.width < 400
    empty = contact_sheet(np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64), ["a", "b"])
    assert empty.height > 64


def test_contact_sheet_stops_after_a_hundred_classes():
    names = [""] * 130
    sheet = contact_sheet(np.full((130, 1, 64, 64), 7, np.uint8), np.arange(130), names)
    assert (np.asarray(sheet) == 7).sum() == 100 * 64 * 64


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), np.array([0]), "expects uint8 images"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.array([0]), "expects uint8 images"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.array([0]), "one label per image"),
        (np.zeros((1, 3, 8, 8), np.uint8), np.array([1]), "do not fit 1 class names"),
    ],
)
def test_contact_sheet_refuses_what_it_cannot_show(images, labels, match):
    with pytest.raises(ValueError, match=match):
        contact_sheet(images, labels, ["a"])


@pytest.mark.parametrize("value", [100, 101])
def test_contact_sheet_rounds_the_averages_of_large_images_to_the_nearest_value(value):
    image = np.full((1, 1, 192, 192), 100, np.uint8)
    image[..., ::2, ::2] += 1
    image[..., 1::2, ::2] += value - 100
    image[..., ::2, 1::2] += value - 100
    (shown,) = {v for v in np.unique(np.asarray(contact_sheet(image, np.array([0]), [""]))) if v != 255}
    assert shown == value  # of averages of 100.25 and 100.75


def test_png_keeps_every_value():
    image = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    sheet = contact_sheet(image, np.array([0]), [""])
    again = np.asarray(Image.open(io.BytesIO(png_bytes(sheet))))
    np.testing.assert_array_equal(again, np.asarray(sheet))
    assert set(np.unique(again)) == set(range(256))
