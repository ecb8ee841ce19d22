"""A Parquet footer cut down to a few of its columns, without parsing the others.

Parsing a footer of a hundred columns costs several times what reading one of them does. It is one structure in Thrift's
compact protocol (https://github.com/apache/parquet-format, `parquet.thrift`; Thrift's `thrift-compact-protocol.md`), in
which nothing says where the n-th column's part begins. But files of one writer and schema begin with the same bytes,
the schema, which is walked once and remembered (`Layout`); and of a column its path is written once in a row group. So
the path is searched for, which costs microseconds, and the fields around it are walked. A path that is found twice (in
a value of some statistics), a file of several row groups, or anything else that is not as our writers write it, is not
guessed at: the answer is None, and who asks parses the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BOOLS = (1, 2)
_BYTE, _VARINTS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 3, (4, 5, 6), 7, 8, (9, 10), 12
_DEPTH_MAX = 8
"""Structures in structures; Parquet's footers have four."""
_ENCODINGS_MAX = 8
"""Of one column, as our writers write them: one byte each."""
_TAIL_BYTES = 8
"""Length and magic behind the structure."""
_ROOT_NAME, _ROOT_CHILDREN = b"\x48\x06schema", b"\x15"
_COLUMN_BEGIN, _COLUMN_END = b"\x26\x00\x1c", b"\x00"
"""A column chunk whose metadata are in the footer: file_offset 0, then the structure."""
_TYPE_ORDER = b"\x1c\x00\x00"
"""A column's statistics are by its type's own order."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column by the footer's schema. `element`: its bytes there."""

    name: bytes
    field_id: int | None
    element: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """What files of one writer and schema have in common. `head`: the bytes that their footers begin with."""

    head: bytes
    leaves: tuple[Leaf, ...]
    by_id: Mapping[int, int]
    """Places of columns by their field ids."""
    by_name: Mapping[bytes, int]


def layout_of(footer: bytes) -> Layout | None:
    """Of a whole footer; None: it is not of a flat table, or not as our writers write it."""
    try:
        at = _past(footer, 1, _VARINTS[1], 0) if footer[0] == 0x15 else -1
        if at < 0 or footer[at] != 0x19:
            return None
        count, kind, at = _list(footer, at + 1)
        leaves = []
        for number in range(count if kind == _STRUCT else 0):
            begin = at
            numbers, name, at = _element(footer, at)
            if number == 0:
                if numbers.get(5) != count - 1:
                    return None
            elif 5 in numbers or 1 not in numbers:
                return None
            else:
                leaves.append(Leaf(name, numbers.get(9), footer[begin:at]))
        by_id = {leaf.field_id: place for place, leaf in enumerate(leaves) if leaf.field_id is not None}
    except (IndexError, ValueError):
        return None
    by_name = {leaf.name: place for place, leaf in enumerate(leaves)}
    return Layout(footer[:at], tuple(leaves), by_id, by_name) if len(leaves) == len(by_name) > 0 else None


def narrowed(footer: bytes, layout: Layout, wanted: Sequence[int]) -> bytes | None:
    """A footer of the same rows with just the columns at the places `wanted`, in that order; their pages are where they
    were. None: see the module."""
    if not footer.startswith(layout.head) or b"ARROW:schema" in footer:
        return None
    try:
        at = len(layout.head)
        begin = at + 1
        at = _past(footer, begin, _VARINTS[2], 0)
        rows = footer[begin:at]
        if footer[begin - 1] != 0x16 or footer[at : at + 3] != b"\x19\x1c\x19":
            return None  # not one row group
        count, kind, at = _list(footer, at + 3)
        if (count, kind) != (len(layout.leaves), _STRUCT):
            return None
        columns = [_column(footer, at, layout.leaves[place].name) for place in wanted]
    except (IndexError, ValueError):
        return None
    if None in columns:
        return None
    orders = _orders(len(layout.leaves))
    if not footer.endswith(b"\x19" + orders, 0, len(footer) - _TAIL_BYTES):
        return None
    elements = b"".join(layout.leaves[place].element for place in wanted)
    body = b"".join(
        (
            b"\x15\x04\x19",
            _list_header(1 + len(wanted)),
            _ROOT_NAME + _ROOT_CHILDREN + _varint_of(2 * len(wanted)) + b"\x00",
            elements,
            b"\x16" + rows + b"\x19\x1c\x19",
            _list_header(len(wanted)),
            *(_COLUMN_BEGIN + column + _COLUMN_END for column in columns if column is not None),
            b"\x16" + rows + b"\x16" + rows + b"\x00",
            b"\x39" + _orders(len(wanted)),
        )
    )
    return body + len(body).to_bytes(4, "little") + b"PAR1"


def _orders(count: int) -> bytes:
    """The list of as many columns' orders, and the footer's end."""
    return _list_header(count) + _TYPE_ORDER * count + b"\x00"


def _column(footer: bytes, since: int, name: bytes) -> bytes | None:
    """The metadata of the column chunk of that path, behind `since`."""
    path = b"\x19\x18" + _varint_of(len(name)) + name + b"\x15"
    at = footer.find(path, since)
    if at < 0 or footer.find(path, at + 1) >= 0:
        return None
    # In front of the path are the type and the list of encodings, whose bytes are even, as its header is not.
    count = next((n for n in range(1, _ENCODINGS_MAX + 1) if footer[at - n - 1] & 1), 0)
    begin = at - count - 4
    if not count or footer[at - count - 1] != count << 4 | 5:
        return None
    if footer[begin] != 0x15 or footer[begin + 2] != 0x19 or footer[begin + 1] >= 0x80:
        return None
    return footer[begin : _past_fields(footer, at + len(path) - 1, 1)]


def _element(footer: bytes, at: int) -> tuple[dict[int, int], bytes, int]:
    """A schema element: its numbers and name by field, and where it ends."""
    numbers: dict[int, int] = {}
    name = b""
    field = 0
    while (header := footer[at]) != 0:
        if not header >> 4:
            raise ValueError("a field's number is written out")
        field, kind = field + (header >> 4), header & 15
        begin, at = at + 1, _past(footer, at + 1, kind, 1)
        if kind == _VARINTS[1]:
            number, _ = _varint(footer, begin)
            numbers[field] = number >> 1 ^ -(number & 1)
        elif (field, kind) == (4, _BINARY):
            _, begin = _varint(footer, begin)
            name = footer[begin:at]
    return numbers, name, at + 1


def _past_fields(data: bytes, at: int, depth: int) -> int:
    """Where the structure ends whose next field's header is at `at`."""
    while (header := data[at]) != 0:
        if not header >> 4:
            raise ValueError("a field's number is written out")
        at = _past(data, at + 1, header & 15, depth)
    return at + 1


def _past(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where the value of that kind ends."""
    if kind in _VARINTS:
        while data[at] >= 0x80:
            at += 1
        return at + 1
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind == _STRUCT and depth < _DEPTH_MAX:
        return _past_fields(data, at, depth + 1)
    if kind in _LISTS and depth < _DEPTH_MAX:
        count, inner, at = _list(data, at)
        for _ in range(count):  # each has a byte or more: the data's end is this loop's
            at = at + 1 if inner in _BOOLS else _past(data, at, inner, depth + 1)
            data[at - 1]
        return at
    if kind in _BOOLS:
        return at
    if kind == _BYTE:
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    raise ValueError(f"kind {kind} is not in Parquet's footers")


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """A list's length, the kind of what is in it, and where that begins."""
    header = data[at]
    if header >> 4 < 15:
        return header >> 4, header & 15, at + 1
    count, at = _varint(data, at + 1)
    return count, header & 15, at


def _list_header(count: int) -> bytes:
    """Of a list of structures."""
    return bytes([count << 4 | _STRUCT]) if count < 15 else bytes([0xF0 | _STRUCT]) + _varint_of(count)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varint_of(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
