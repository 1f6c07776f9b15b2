"""Settings from flags and files."""

from pathlib import Path

import pytest

from ncfmkit.errors import UserError
from ncfmkit.jobs import setup

pytestmark = pytest.mark.usefixtures("one_cache")


def test_class_lists_from_files(tmp_path: Path) -> None:
    listed, empty, binary = (tmp_path / n for n in ("classes.txt", "empty.txt", "binary"))
    listed.write_text("3\n\n 5 \n")
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert setup.make_settings("digits", None, {"data.classes": str(listed)}).data.classes == ("3", "5")
    assert setup.make_settings("digits", None, {"classes": "a, b"}).data.classes == ("a", "b")
    long = ",".join(f"class-{i:04d}" for i in range(1000))  # longer than any file name may be
    assert len(setup.make_settings("digits", None, {"data.classes": long}).data.classes) == 1000
    with pytest.raises(UserError, match="expected one class a line, got an empty file"):
        setup.make_settings("digits", None, {"data.classes": str(empty)})
    with pytest.raises(UserError, match="expected a text file with one class a line"):
        setup.make_settings("digits", None, {"data.classes": str(binary)})


def test_a_budget_that_leaves_stored_images_without_training_is_refused() -> None:
    bound = {"distill.decode": "bound", "distill.ipc": 3, "distill.factor": 2}
    for budget in ("none", 12, 13, 15):
        assert setup.make_settings("digits", None, bound | {"distill.decoded_per_class": budget})
    for budget in (1, 11, 16):
        with pytest.raises(UserError, match=rf"distill.decoded_per_class {budget}: .* expected 12 .* to 15 "):
            setup.make_settings("digits", None, bound | {"distill.decoded_per_class": budget})
