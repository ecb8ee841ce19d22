"""Whether the lengths in a request can be true, asked before kio's reader sees it: that one takes the memory for an
array when it has read its count, and a count of four billion in a frame of fifty bytes ends the whole process.

A walk over the frame by its schema, compiled once an api and version; it looks at lengths and counts alone, and is
stricter than the reader, so that what the reader meets is what was walked over.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any

from dataplane.broker.wire_primitives import Malformed, read_uvarint

Walk = Callable[[bytes, int], int]
"""From a position in a frame to the one behind what is walked over. Raises Malformed or IndexError."""

FIXED: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "error_code": 2,
    "int32": 4,
    "timedelta_i32": 4,
    "int64": 8,
    "timedelta_i64": 8,
    "datetime_i64": 8,
    "float64": 8,
    "uuid": 16,
}
"""Bytes of what has always as many."""


def check_lengths(schema: Any, frame: bytes, at: int) -> None:
    """Walk over the request at `at`, which is of this schema.

    Raises:
        Malformed: a length or a count leads beyond the frame.
    """
    try:
        end = _struct(schema)(frame, at)
    except IndexError as error:
        raise Malformed("a request is cut short") from error
    if end > len(frame):
        raise Malformed("a request is cut short")


@functools.cache
def _struct(kind: Any) -> Walk:
    hints = typing.get_type_hints(kind)
    flexible = bool(kind.__flexible__)
    walks: list[Walk | int] = []
    tagged: dict[int, Walk] = {}
    for field in dataclasses.fields(kind):
        walk = _field(field, hints[field.name], flexible)
        if "tag" in field.metadata:
            tagged[int(field.metadata["tag"])] = _skip(walk) if isinstance(walk, int) else walk
        elif isinstance(walk, int) and walks and isinstance(walks[-1], int):
            walks[-1] += walk
        else:
            walks.append(walk)
    steps = [_skip(walk) if isinstance(walk, int) else walk for walk in walks]
    if flexible:
        steps.append(_tags(tagged))

    def run(frame: bytes, at: int) -> int:
        for step in steps:
            at = step(frame, at)
        return at

    return run


def _field(field: Any, hint: Any, flexible: bool) -> Walk | int:
    plain: Any = next((a for a in typing.get_args(hint) if a is not type(None)), hint) if _nullable(hint) else hint
    if dataclasses.is_dataclass(plain):
        struct = _struct(typing.cast(typing.Hashable, plain))
        return _perhaps(struct) if _nullable(hint) else struct
    if typing.get_origin(plain) is tuple:
        item: Any = typing.get_args(plain)[0]
        walk = (
            _struct(typing.cast(typing.Hashable, item))
            if dataclasses.is_dataclass(item)
            else _value(field.metadata["kafka_type"], flexible)
        )
        return _array(walk, flexible, least=-1 if _nullable(hint) else 0)
    return _value(field.metadata["kafka_type"], flexible)


def _nullable(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _value(kind: str, flexible: bool) -> Walk | int:
    if kind in FIXED:
        return FIXED[kind]
    if flexible:
        return _compact_bytes
    return _classic_string if kind == "string" else _classic_bytes


def _skip(size: int) -> Walk:
    return lambda frame, at: at + size


def _perhaps(walk: Walk) -> Walk:
    """A structure behind a mark that says whether it is there."""

    def run(frame: bytes, at: int) -> int:
        match frame[at]:
            case 0xFF:
                return at + 1
            case 1:
                return walk(frame, at + 1)
        raise Malformed("neither there nor not there")

    return run


def _array(item: Walk | int, flexible: bool, least: int) -> Walk:
    """`least`: -1 where the array may be null."""
    if isinstance(item, int):
        size = item

        def run_fixed(frame: bytes, at: int) -> int:
            count, at = _count(frame, at, flexible, least)
            return at + count * size

        return run_fixed
    walk = item

    def run(frame: bytes, at: int) -> int:
        count, at = _count(frame, at, flexible, least)
        for _ in range(count):
            at = walk(frame, at)
        return at

    return run


def _count(frame: bytes, at: int, flexible: bool, least: int) -> tuple[int, int]:
    if flexible:
        count, at = _uvarint(frame, at)
        count -= 1
    else:
        count, at = int.from_bytes(frame[at : at + 4], "big", signed=True), at + 4
    if count > len(frame) - at:  # an item has a byte at least
        raise Malformed(f"an array of {count} items in {len(frame) - at} bytes")
    if count < least:
        raise Malformed(f"an array of {count} items")
    return max(count, 0), at


def _compact_bytes(frame: bytes, at: int) -> int:
    size, at = _uvarint(frame, at)
    return _behind(frame, at, size - 1)


def _classic_string(frame: bytes, at: int) -> int:
    return _behind(frame, at + 2, int.from_bytes(frame[at : at + 2], "big", signed=True))


def _classic_bytes(frame: bytes, at: int) -> int:
    return _behind(frame, at + 4, int.from_bytes(frame[at : at + 4], "big", signed=True))


def _behind(frame: bytes, at: int, size: int) -> int:
    if size < -1 or at + size > len(frame):
        raise Malformed(f"a length of {size}, with {len(frame) - at} bytes left")
    return at + max(size, 0)


def _tags(known: Mapping[int, Walk]) -> Walk:
    def run(frame: bytes, at: int) -> int:
        if frame[at] == 0:
            return at + 1
        count, at = _uvarint(frame, at)
        for _ in range(count):
            tag, at = _uvarint(frame, at)
            size, at = _uvarint(frame, at)
            end = _behind(frame, at, size)
            walk = known.get(tag)
            if walk is not None and walk(frame, at) != end:
                raise Malformed(f"tagged field {tag} is not as long as it says")
            at = end
        return at

    return run


def _uvarint(frame: bytes, at: int) -> tuple[int, int]:
    first = frame[at]
    if first < 0x80:
        return first, at + 1
    value, at = read_uvarint(typing.cast(memoryview, frame), at)
    if value > 0xFFFFFFFF:
        raise Malformed("a number is too large")
    return value, at
