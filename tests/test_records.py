"""Typed records: what is refused, and what is kept."""

import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from ncfmkit.errors import UserError
from ncfmkit.records import LONGEST_SHOWN, Record, problems


class Inner(Record):
    share: Annotated[float, Field(ge=0, le=1)]


class Outer(Record):
    count: Annotated[int, Field(ge=1)]
    names: tuple[str, ...]
    inner: Inner | None = None


GOOD = {"count": 3, "names": ["a", "b"], "inner": {"share": 0.5}}


def test_a_record_comes_back_with_keys_that_are_not_known(tmp_path: Path) -> None:
    newer = GOOD | {"later": [1, {"x": None}], "inner": {"share": 1, "unit": "%"}}
    (tmp_path / "a.json").write_text(json.dumps(newer))
    record = Outer.read(tmp_path / "a.json")
    assert (record.count, record.names) == (3, ("a", "b"))
    assert record.to_dict() == newer
    record.write(tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_bytes()) == newer


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"count": "3"}, "count"),
        ({"count": True}, "count"),
        ({"count": 3.0}, "count"),
        ({"count": 0}, "count"),
        ({"names": "ab"}, "names"),
        ({"names": [1, "b"]}, "names.0"),
        ({"inner": {"share": 1.5}}, "inner.share"),
        ({"inner": {}}, "inner.share"),
    ],
)
def test_other_types_and_values_are_refused(tmp_path: Path, change: dict[str, object], where: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=rf"a\.json is damaged: {where}: "):
        Outer.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"count": NaN}', '{"count": 1, "names": [], "inner": {"share": NaN}}']
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        Outer.read(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Outer.read(tmp_path / "a.json")


def test_messages_show_a_part_of_a_long_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"count": "9" * 10_000, "names": ()})
    (line,) = problems(caught.value)
    assert line.startswith("count: input should be a valid integer, got '999")
    assert len(line) < LONGEST_SHOWN + 60


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Inner(share=0.5).share = 0.6  # type: ignore[misc]
