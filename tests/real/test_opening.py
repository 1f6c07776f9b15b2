"""Data that is not found, or of no known kind."""

import pytest
from source_files import PLAIN

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
