"""The images that int8 is calibrated with: a set named or found, or real data, and what does not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_real, build_set, write_set
from exports import opened
from naive_mosaic import naive_decode

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.exporters.calibration import Calibration, calibration_images, search_images, spread
from ncfmkit.exporters.student import load_student
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.store import Split
from ncfmkit.scoring import student_file
from ncfmkit.scoring.student_manifest import TrainedOn
from ncfmkit.sets import set_file


def test_real_images_are_spread_over_the_classes() -> None:
    images = np.arange(1000).reshape(-1, 1, 1, 1)
    some = spread(images, 100)[:, 0, 0, 0]
    assert len(some) == 100
    assert (some[0], some[-1]) == (0, 999)
    assert set(np.diff(some)) <= {10, 11}
    np.testing.assert_array_equal(spread(images[:7], 100), images[:7])


def found(student: Path, data: Any) -> Calibration:
    loaded = load_student(student)
    return calibration_images(loaded, loaded.contract(layout="uint8-nchw", output="logits"), data, Settings())


def test_a_set_is_taken_whole(student_path: Path, set_path: Path) -> None:
    calibration = found(student_path, DataArguments(data=str(set_path)))
    small = set_file.load(set_path)
    assert calibration.distilled
    assert calibration.origin.to_dict() == {
        "name": small.manifest.name,
        "manifest_sha256": small.manifest.manifest_sha256,
        "images": 12,
    }
    np.testing.assert_array_equal(calibration.images, small.images.numpy())


def test_the_set_beside_the_student_calibrates(
    student_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = set_file.load(write_set(tmp_path / "mine.safetensors"))
    write_set(tmp_path / "another.safetensors", count=15)
    student = Path(shutil.copy(student_path, tmp_path / "s.safetensors"))
    with pytest.raises(UserError, match=r"--calibration .*tiny-ipc1"):
        found(student, None)
    network, manifest = student_file.load(student)
    trained_on = TrainedOn(**{k: getattr(small.manifest, k) for k in ("name", "sha256", "manifest_sha256")})
    student_file.save(network.state_dict(), manifest.model_copy(update={"trained_on": trained_on}), student)
    assert found(student, None).origin.manifest_sha256 == small.manifest.manifest_sha256
    assert "mine.safetensors" in capsys.readouterr().err


def test_real_data_calibrate_by_a_sample_of_their_training_images(student_path: Path) -> None:
    real = build_real((900, 900, 900), test_counts=None)  # neither a test split nor the student's classes are needed
    calibration = found(student_path, opened(real))
    assert calibration.origin.to_dict() == {"name": "tiny", "fingerprint": "tiny-0", "images": 1000}
    assert not calibration.distilled
    np.testing.assert_array_equal(calibration.images[[0, -1]], real.train.images[[0, -2]])


@pytest.mark.parametrize("counts", [(8, 7, 8), (900, 1, 900), (4000, 4001, 4003)])
def test_the_search_is_measured_on_training_images_that_do_not_calibrate(
    counts: tuple[int, ...], student_path: Path
) -> None:
    real = build_real(counts)
    images, labels = search_images(real.train)
    calibrates = {image.tobytes() for image in found(student_path, opened(real)).images}
    assert not calibrates & {image.tobytes() for image in images}
    place = {image.tobytes(): i for i, image in enumerate(real.train.images)}
    np.testing.assert_array_equal(labels, [real.train.labels[place[image.tobytes()]] for image in images])
    np.testing.assert_allclose(np.bincount(labels, minlength=3) / len(labels), np.array(counts) / sum(counts), atol=0.1)
    assert images.base is not None  # a view: nothing is read into memory


def test_the_search_is_measured_on_at_most_ten_thousand_images() -> None:
    for count, searched in ((2, 1), (19_999, 9_999), (20_000, 10_000), (20_001, 5_000), (50_000, 8_334)):
        split = Split(np.empty((count, 1, 1, 1), np.uint8), np.array([0, 1, count]))
        assert len(search_images(split)[0]) == searched


def test_calibration_that_does_not_fit(student_path: Path, tmp_path: Path) -> None:
    few, large = write_set(tmp_path / "few.safetensors", count=9), write_set(tmp_path / "large.safetensors", size=16)
    for data, says in (
        (DataArguments(data=str(few)), r"--calibration: 9 images .*expected 10"),
        (DataArguments(data=str(large)), r"--calibration: .* takes 3x8x8 images, tiny-ipc4 has 3x16x16"),
        (opened(build_real((6, 6, 6))), r"--calibration: 9 images, every second training image, .*expected 10"),
        (opened(build_real(size=16)), r"tiny .*16x16 rgb .* 8x8 rgb: pass --size 8 --resize crop"),
        (opened(build_real(channels=1)), r"tiny .*8x8 gray .* 8x8 rgb: pass --color rgb"),
    ):
        with pytest.raises(UserError, match=says):
            found(student_path, data)


def test_a_set_of_mosaics_calibrates_by_the_images_that_students_see(student_path: Path, tmp_path: Path) -> None:
    """Decoded, and rounded to the nearest byte."""
    small = build_set("single", 2, ipc=2)
    set_file.save(small, tmp_path / "set.safetensors")
    calibration = found(student_path, DataArguments(data=str(tmp_path / "set.safetensors")))
    expected = np.concatenate([naive_decode(image, 2) for image in small.images.numpy().astype(np.float64)])
    assert calibration.images.dtype == np.uint8
    assert calibration.images.shape == expected.shape == (24, 3, 8, 8)
    assert np.abs(calibration.images - expected).max() < 0.5001
    assert np.abs(np.floor(expected) - expected).max() > 0.6  # so truncated values would be farther off
