"""Results that are kept in a folder: measured once for each set of conditions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ncfmkit.errors import UserError
from ncfmkit.kept import Kept
from ncfmkit.records import Record


class Found(Record):
    value: float
    names: tuple[str, ...] = ()


def kept(folder: Path, **conditions: object) -> Kept:
    return Kept(folder=folder, conditions=conditions)


def test_a_result_is_measured_once_for_its_conditions(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure() -> Found:
        measured.append(len(measured))
        return Found(value=len(measured), names=("a", "b"))

    here = kept(tmp_path / "results", data="x", seed=0)
    assert not here.has(row="one")
    assert here.read(Found, row="one") is None
    assert not (tmp_path / "results").exists()
    first = here.measured(Found, measure, row="one")
    assert first == Found(value=1, names=("a", "b"))
    assert here.has(row="one")
    assert here.measured(Found, measure, row="one") == first
    assert kept(tmp_path / "results", seed=0, data="x").measured(Found, measure, row="one") == first
    assert measured == [0]
    others = [
        here.measured(Found, measure, row="two"),
        here.measured(Found, measure, row="one", epochs=3),
        kept(tmp_path / "results", data="x", seed=1).measured(Found, measure, row="one"),
        kept(tmp_path / "other", data="x", seed=0).measured(Found, measure, row="one"),
    ]
    assert [found.value for found in others] == [2, 3, 4, 5]
    assert here.measured(Found, measure, row="one") == first
    on_disk = json.loads(here.path(row="one").read_text(encoding="utf-8"))
    assert on_disk.pop("seconds") == pytest.approx(here.seconds(row="one"))
    assert on_disk == {"conditions": {"data": "x", "seed": 0, "row": "one"}, "result": first.to_dict()}


def test_the_time_of_a_result_counts_its_parts_whenever_they_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def takes(seconds: float) -> Found:
        nonlocal now
        now += seconds
        return Found(value=seconds)

    def both() -> Found:
        parts = [here.measured(Found, lambda s=s: takes(s), part=s) for s in (3.0, 5.0)]  # type: ignore[misc]
        return Found(value=sum(part.value for part in parts) + takes(1.0).value)

    here = kept(tmp_path)
    here.measured(Found, lambda: takes(3.0), part=3.0)
    here.read(Found, part=3.0)  # read before: not a part of what follows
    assert here.measured(Found, both, row="both").value == 9
    assert here.seconds(row="both") == 9
    assert here.seconds(part=5.0) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"conditions": {}, "result": {}, "seconds": 1}',
        '{"conditions": {}, "result": {"value": "3"}, "seconds": 1}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    here = kept(tmp_path)
    path = here.path(row="one")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{path} is damaged: .*\n(.*\n)*remove that file, and the same command"):
        here.measured(Found, lambda: Found(value=1), row="one")
    assert path.read_text(encoding="utf-8") == text


def test_each_result_is_kept_before_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time since the one before; those that are there are not asked for again."""
    now, asked = 0.0, list[list[int]]()
    monkeypatch.setattr("time.monotonic", lambda: now)
    here = kept(tmp_path)

    def conditions(k: int) -> dict[str, int]:
        return {"row": 7, "repeat": k}

    def measure(left: list[int], stop: int | None = None) -> Iterator[tuple[int, Found]]:
        nonlocal now
        asked.append(left)
        for k in left[::-1]:  # in any order
            if k == stop:
                raise KeyboardInterrupt
            now += 1 + k
            yield k, Found(value=10 * k)

    with pytest.raises(KeyboardInterrupt):
        here.each(Found, 4, lambda left: measure(left, stop=1), conditions)
    assert here.left(4, conditions) == [0, 1]
    assert [here.seconds(**conditions(k)) for k in (2, 3)] == [3, 4]
    now += 100
    assert [found.value for found in here.each(Found, 4, measure, conditions)] == [0, 10, 20, 30]
    assert [here.seconds(**conditions(k)) for k in range(4)] == [1, 2, 3, 4]
    assert [found.value for found in here.each(Found, 3, measure, conditions)] == [0, 10, 20]
    assert asked == [[0, 1, 2, 3], [0, 1]]
    assert here.left(5, conditions) == [4]
    total = here.measured(
        Found, lambda: Found(value=sum(f.value for f in here.each(Found, 5, measure, conditions))), row="sum"
    )
    assert total.value == 100
    assert here.seconds(row="sum") == 1 + 2 + 3 + 4 + 5  # whenever they were measured
