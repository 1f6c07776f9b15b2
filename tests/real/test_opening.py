"""Data that is not found, or of no known kind."""

import pytest
from source_files import PLAIN

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.opening import open_real


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
