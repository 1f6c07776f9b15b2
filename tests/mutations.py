"""Random damage as Hypothesis strategies: of any format's bytes, of JSON values, of folders, and of files from within.

A reader must refuse what comes out of them, or read the same as before. The last ones take a file apart and put it
together again with right lengths and checksums, as somebody would who means harm.
"""

import copy
import io
import json
import pickletools
import string
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

MOST_BYTES = 16  # written or inserted at once
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "images", "\ud800", "\0", [], {}, [[]], [0, 255], [None]),
    *(0, -1, 1, 2, 3, 8, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
)


def _one_of(draw: DrawFn, items: Sequence[Any]) -> Any:
    """As `st.sampled_from`, several times as fast."""
    return items[draw(st.integers(0, len(items) - 1))]


@st.composite
def mutated(draw: DrawFn, content: bytes, *, most: int = 4) -> bytes:
    """`content` after one to `most` changes, each a row of CHANGES at a random place."""
    for _ in range(draw(st.integers(1, most))):
        content = _one_of(draw, CHANGES)(draw, content)
    return content


@st.composite
def mutated_json(draw: DrawFn, value: Any, *, most: int = 3) -> Any:
    """A JSON value after one to `most` changes somewhere inside it; `value`, a dict or list, stays as it is.

    NaN, infinities and lone surrogates are among what is written.
    """
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(value))
        if places:
            _one_of(draw, JSON_CHANGES)(draw, places)
    return value


def _range(draw: DrawFn, content: bytes) -> tuple[int, int]:
    start = draw(st.integers(0, len(content)))
    return start, draw(st.integers(start, len(content)))


def _flip_bit(draw: DrawFn, content: bytes) -> bytes:
    if not content:
        return content
    place = draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _overwrite(draw: DrawFn, content: bytes) -> bytes:
    start, new = draw(st.integers(0, len(content))), draw(st.binary(min_size=1, max_size=MOST_BYTES))
    return (content[:start] + new + content[start + len(new) :])[: len(content)]


def _insert(draw: DrawFn, content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    return content[:start] + draw(st.binary(min_size=1, max_size=MOST_BYTES)) + content[start:]


def _remove(draw: DrawFn, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return content[:start] + content[stop:]


def _repeat(draw: DrawFn, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return content[:stop] + content[start:]


def _swap(draw: DrawFn, content: bytes) -> bytes:
    """Two ranges that follow each other change places."""
    start, stop = _range(draw, content)
    middle = draw(st.integers(start, stop))
    return content[:start] + content[middle:stop] + content[start:middle] + content[stop:]


def _copy_over(draw: DrawFn, content: bytes) -> bytes:
    """A range is written over another place; the length stays."""
    (start, stop), place = _range(draw, content), draw(st.integers(0, len(content)))
    return (content[:place] + content[start:stop] + content[place + stop - start :])[: len(content)]


def _zero(draw: DrawFn, content: bytes) -> bytes:
    start, stop = _range(draw, content)
    return content[:start] + bytes(stop - start) + content[stop:]


def _truncate(draw: DrawFn, content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content)))]


def _change_digit(draw: DrawFn, content: bytes) -> bytes:
    """A decimal digit becomes another: lengths and numbers written as text."""
    digits = [place for place, byte in enumerate(content) if byte in string.digits.encode()]
    if not digits:
        return content
    place = _one_of(draw, digits)
    return content[:place] + _one_of(draw, string.digits).encode() + content[place + 1 :]


CHANGES = (
    *(_flip_bit, _overwrite, _insert, _remove, _repeat),
    *(_swap, _copy_over, _zero, _truncate, _change_digit),
)


Place = tuple[Any, Any]  # a dict or list, and a key or index in it


def _places(value: Any) -> Iterator[Place]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _replace(draw: DrawFn, places: list[Place]) -> None:
    container, key = _one_of(draw, places)
    container[key] = copy.deepcopy(_one_of(draw, ODD_VALUES))


def _nudge(draw: DrawFn, places: list[Place]) -> None:
    """A number becomes its neighbor, of the same type or as a float."""
    numbers = [place for place in places if type(place[0][place[1]]) in (int, float)]
    numbers = [(container, key) for container, key in numbers if abs(container[key]) < 2**64]  # others have none
    if numbers:
        container, key = _one_of(draw, numbers)
        with suppress(OverflowError):  # 10**400 is no float
            container[key] += _one_of(draw, (-1, 1, 0.0))


def _delete(draw: DrawFn, places: list[Place]) -> None:
    container, key = _one_of(draw, places)
    del container[key]


def _rename(draw: DrawFn, places: list[Place]) -> None:
    """A key changes; an element of a list comes twice."""
    container, key = _one_of(draw, places)
    if isinstance(container, dict):
        container[_one_of(draw, ("", f"{key} ", "format", "pixels"))] = container.pop(key)
    else:
        container.insert(key, copy.deepcopy(container[key]))


def _copy_value(draw: DrawFn, places: list[Place]) -> None:
    """A value is written in another's place."""
    (container, key), (other, there) = _one_of(draw, places), _one_of(draw, places)
    container[key] = copy.deepcopy(other[there])


JSON_CHANGES = (_replace, _nudge, _delete, _rename, _copy_value)


def _shuffle(draw: DrawFn, items: list[Any]) -> None:
    """An element goes, comes twice, or changes places with another."""
    if not items:
        return
    one, other = (draw(st.integers(0, len(items) - 1)) for _ in range(2))
    match draw(st.integers(0, 2)):
        case 0:
            del items[one]
        case 1:
            items.insert(other, copy.copy(items[one]))
        case _:
            items[one], items[other] = items[other], items[one]


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


Tree = dict[str, bytes | Link | None]  # what lies in a folder, by relative path; none: a folder


@st.composite
def mutated_tree(draw: DrawFn, tree: Tree, outside: str) -> Tree:
    """Files added, removed, copied, renamed, exchanged, made links or folders; `outside` is a file elsewhere."""
    tree = dict(tree)
    for _ in range(draw(st.integers(1, 2))):
        name, other = (_one_of(draw, sorted(tree)) for _ in range(2))
        match draw(st.integers(0, 6)):
            case 0:
                del tree[name]
            case 1:
                tree[_sibling(draw, name)] = tree[name]
            case 2:
                tree[_sibling(draw, name)] = tree.pop(name)
            case 3:
                tree[name], tree[other] = tree[other], tree[name]
            case 4:
                tree[name] = Link(_one_of(draw, (outside, "nowhere", "/dev/zero", "/dev/full", ".", "..", other)))
            case 5:
                tree[name] = None
            case _:
                tree[_sibling(draw, name)] = _one_of(draw, (None, b"", b"x", Link(outside), Link("..")))
        if not tree:
            break
    return tree


def _sibling(draw: DrawFn, name: str) -> str:
    """Another name in the same folder, or in a new one."""
    folder, _, rest = name.rpartition("/")
    start = f"{folder}/" if folder else ""
    stem, _, suffix = rest.rpartition(".")
    names = (f"{stem}2.{suffix}", f"{rest}.tmp", f".{rest}", rest.upper(), "synthetic.safetensors", "new\nline", "a\\b")
    return _one_of(draw, (*(start + n for n in names), f"extra/{rest}", "data/train-00000-of-00002.parquet"))


@st.composite
def mutated_header(draw: DrawFn, content: bytes) -> bytes:
    """A safetensors file with a changed header, and sometimes another length of it than it has."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    text = json.dumps(draw(mutated_json(header))).encode()
    told = _one_of(draw, (len(text),) * 9 + (0, 2**24, 2**31, 2**63, 2**64 - 1))
    return told.to_bytes(8, "little") + text + data


HOSTILE_CODE = (
    *(b"R", b"b", b"\x81", b"0", b"2", b"(", b"t", b")", b"]", b"}", b"N", b"a", b"s", b"u", b"Q", b"."),
    *(b"\x85", b"h\x00", b"K\x00", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"I9999\n"),
    *(b"\x8a\x05\x00\x10\xa5\xd4\xe8", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"X\x03\x00\x00\x00cpu", b"\x80\x05"),
    *(b"cos\nsystem\n", b"c__builtin__\neval\n", b"c__builtin__\nbytearray\n", b"\x93"),
    *(b"ctorch.storage\nUntypedStorage\n", b"ctorch.storage\nTypedStorage\n", b"ctorch\nDoubleStorage\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"),
)  # fmt: skip


@st.composite
def mutated_zip(draw: DrawFn, content: bytes) -> bytes:
    """A zip archive as torch writes it with other members or another pickle; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    packed = _one_of(draw, (zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, max(0, len(members) - 1)))
        match draw(st.integers(0, 7)):
            case 0:
                _shuffle(draw, members)
            case 1 if members:
                name = draw(
                    st.sampled_from(("../up", "/etc/passwd", "data/data.pkl", "data/0", "data/constants.pkl", "x"))
                )
                members[place] = name, members[place][1]
            case 2 | 3 if members:
                members[place] = members[place][0], draw(mutated(members[place][1], most=2))
            case _:
                members = [(n, _other_pickle(draw, c) if n.endswith(".pkl") else c) for n, c in members]
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", packed) as new:  # names may come twice
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data, packed)
    return file.getvalue()


def _other_pickle(draw: DrawFn, content: bytes) -> bytes:
    """A pickle with an opcode removed, doubled, moved, replaced or added."""
    with suppress(ValueError):
        with warnings.catch_warnings(action="ignore"):  # of what an earlier change made an escape
            starts = [at for _, _, at in pickletools.genops(content)]
        codes = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
        place = draw(st.integers(0, len(codes) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                _shuffle(draw, codes)
            case 1:
                codes[place] = _one_of(draw, HOSTILE_CODE)
            case _:
                codes.insert(place, _one_of(draw, HOSTILE_CODE))
        content = b"".join(codes)
    return content
