"""Data that is not found, or of no known kind."""

import os
import shutil

import pytest
from PIL import Image
from source_files import PLAIN

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real import opening
from ncfmkit.real.fingerprint import stat_key
from ncfmkit.real.opening import find_real, open_real


def test_unknown_data_names_near_matches(tmp_path):
    with pytest.raises(UserError, match=r"'cifar-10'; did you mean 'cifar10'.*Accepted: digits, cifar10"):
        open_real("cifar-10", PLAIN)
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"did you mean '.*flowers'"):
        open_real(str(tmp_path / "flower"), PLAIN)
    with pytest.raises(UserError, match=r"no data found at .*none-\*\.parquet"):
        open_real(str(tmp_path / "none-*.parquet"), PLAIN)
    with pytest.raises(UserError, match=r"no data found at 'a\{b"):
        open_real("a{b", PLAIN)
    (tmp_path / "set.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"folder, \.parquet or \.tar .*got .*\.zip"):
        open_real(str(tmp_path / "set.zip"), PLAIN)


def test_settings_that_are_new_leave_the_fingerprints_of_earlier_sets_alone():
    """Sets and runs hold these: of the digits as they are, and of two of their classes."""
    assert open_real("digits", PLAIN).fingerprint.startswith("dcf4ba7c288816b5")
    assert open_real("digits", DataSettings(classes=("1", "2"))).fingerprint.startswith("4f9b7e0809c2c0f4")


def test_columns_are_no_part_of_the_fingerprint_where_a_source_has_none():
    """A set of Parquet carries its columns, and may be scored on the same pictures in folders."""
    named = DataSettings(label_column="kind", image_column="photo")
    assert open_real("digits", named).fingerprint == open_real("digits", PLAIN).fingerprint


def folder_of(root, shade):
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), shade).save(root / name / f"{number}.bmp")
    return root


def test_pictures_that_change_while_they_are_read_make_no_store(tmp_path, monkeypatch):
    """It would have the fingerprint of the pictures before, and be found for a copy of those."""
    folder, digest = folder_of(tmp_path / "photos", 10), opening.fingerprint

    def changed(*arguments):
        found = digest(*arguments)
        Image.new("L", (8, 8), 250).save(folder / "a" / "0.bmp")
        return found

    monkeypatch.setattr(opening, "fingerprint", changed)
    with pytest.raises(UserError, match="photos: its files changed while they were read: run the command again"):
        open_real(str(folder), DataSettings(holdout=0.4))
    monkeypatch.undo()
    assert open_real(str(folder), DataSettings(holdout=0.4)).train.images.max() == 250
    again = open_real(str(folder_of(tmp_path / "pristine", 10)), DataSettings(holdout=0.4))
    assert again.train.images.max() == 10


def test_files_of_the_same_size_and_time_are_read_again(tmp_path):
    """As an archive restores them that gives all files one time."""
    for shade in (10, 250):
        folder = folder_of(tmp_path / str(shade), shade).rename(tmp_path / "photos")
        for file in folder.rglob("*.bmp"):
            os.utime(file, (0, 0))
        assert open_real(str(folder), DataSettings(holdout=0.4)).train.images.max() == shade
        shutil.rmtree(folder)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path, capsys):
    folder = folder_of(tmp_path / "photos", 10)
    os.mkfifo(folder / "a" / "9.bmp")
    assert len(open_real(str(folder), DataSettings(holdout=0.4)).train.images) == 4
    assert "left out 1 pipes, sockets and devices" in capsys.readouterr().err


def test_a_file_that_is_gone_is_named(tmp_path):
    source = find_real(str(folder_of(tmp_path / "photos", 10)), PLAIN)
    (tmp_path / "photos" / "a" / "0.bmp").unlink()
    with pytest.raises(UserError, match=r"a/0\.bmp cannot be read: No such file"):
        stat_key(source, {})
