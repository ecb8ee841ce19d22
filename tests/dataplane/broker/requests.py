"""Requests at random, of every api and version that is served, written by kio's codec; and what becomes of frames on a
bad way. Everything is drawn from the `random.Random` that is handed in.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import io
import random
import typing
import uuid
from collections.abc import Sequence
from typing import Any

from kio import index
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from dataplane.broker import wire

NUMBERS = (0, 1, -1, 2, 3, 5, 7, 100, 1_000, -2, -3, -4, -5, -100)
INT_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
ITEMS_MAX = 3
DESCRIBE_TRANSACTIONS = 65
NEVER = b"\xff" * 8


class Maker:
    """Makes requests. `names` are what strings are mostly taken from: of topics that are there, of groups, and odd
    ones."""

    def __init__(self, rng: random.Random, names: Sequence[str]) -> None:
        self._rng = rng
        self._names = names

    def frame(self, api_key: int, version: int, correlation_id: int) -> bytes:
        """A request as it goes over the wire, without its length."""
        schema = index.load_request_schema(api_key, version)
        header: Any = schema.__header_schema__
        named: dict[str, Any] = {
            "request_api_key": api_key,
            "request_api_version": version,
            "correlation_id": correlation_id,
        }
        if "client_id" in header.__dataclass_fields__:
            named["client_id"] = "fuzz"
        out = io.BytesIO()
        entity_writer(header)(out, header(**named))
        entity_writer(schema)(out, self._entity(schema))
        return out.getvalue()

    def _entity(self, kind: Any) -> Any:
        fields = {}
        for field, hint in _hints(kind):
            if dataclasses.is_dataclass(_plain(hint)):
                fields[field.name] = (
                    None if _nullable(hint) and self._rng.random() < 0.3 else self._entity(_plain(hint))
                )
            elif typing.get_origin(_plain(hint)) is tuple:
                fields[field.name] = self._tuple(field, hint)
            else:
                nullable = _nullable(hint) and self._rng.random() < 0.2
                fields[field.name] = None if nullable else self._value(field.metadata["kafka_type"])
        return kind(**fields)

    def _tuple(self, field: Any, hint: Any) -> Any:
        if _nullable(hint) and self._rng.random() < 0.2:
            return None
        [item, *_] = typing.get_args(_plain(hint))
        count = self._rng.randint(0, ITEMS_MAX)
        if dataclasses.is_dataclass(item):
            return tuple(self._entity(item) for _ in range(count))
        return tuple(self._value(field.metadata["kafka_type"]) for _ in range(count))

    def _value(self, kind: str) -> Any:
        rng = self._rng
        if kind in INT_BITS:
            bits = INT_BITS[kind]
            edge = rng.choice((-(1 << bits - 1), (1 << bits - 1) - 1))
            number = edge if rng.random() < 0.15 else rng.choice(NUMBERS)
            return max(-(1 << bits - 1), min(number, (1 << bits - 1) - 1))
        match kind:
            case "uint16":
                return rng.choice((0, 1, 65_535))
            case "string":
                return rng.choice(self._names) if rng.random() < 0.9 else "x" * rng.choice((0, 1, 300, 5_000))
            case "bytes" | "records":
                return rng.randbytes(rng.choice((0, 1, 20, 61, 70, 400)))
            case "bool":
                return rng.random() < 0.5
            case "uuid":
                return uuid.UUID(int=rng.choice((0, 1, rng.getrandbits(128))))
            case "timedelta_i32":
                return datetime.timedelta(milliseconds=rng.choice((0, 1, -1, 5, 10, 6_000, 30_000, 2**31 - 1)))
            case "timedelta_i64":
                return datetime.timedelta(milliseconds=rng.choice((0, 1, -1, 5, 10_000)))
            case "error_code":
                return ErrorCode.none
            case "float64":
                return rng.choice((0.0, -1.0, 1e300, float("nan")))
        raise AssertionError(f"no value of {kind} is known")


@functools.cache
def _hints(kind: Any) -> tuple[tuple[Any, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind))


def _nullable(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _plain(hint: Any) -> Any:
    return next(arm for arm in typing.get_args(hint) if arm is not type(None)) if _nullable(hint) else hint


def spoil(frame: bytes, rng: random.Random) -> bytes:
    """The frame after a bad way: bits flipped, bytes lost or repeated, a length that lies, or only its beginning."""
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 16)] or b"\xff"
            case 4:
                number = rng.choice((0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x00FFFFFF, 0x0000FFFF))
                data[at : at + 4] = number.to_bytes(4, "big")
            case _:
                del data[max(at, 8) :]
        if len(data) < 9:
            return bytes(data.ljust(9, b"\0"))
    return bytes(data)


def read_answer(api_key: int, version: int, frame: bytes) -> tuple[int, Any]:
    """Correlation id and body of an answer (without its length), read to its last byte by kio's codec."""
    schema = index.load_response_schema(api_key, version)
    header, at = entity_reader(schema.__header_schema__)(frame, 0)
    if api_key == DESCRIBE_TRANSACTIONS:
        # A transaction that has not begun began at -1 in Kafka too, and kio's reader refuses that as a time.
        frame = frame.replace(NEVER, bytes(8))
    body, size = entity_reader(schema)(frame, at)
    assert at + size == len(frame), "the answer is longer than what it says"
    return header.correlation_id, body


SERVED = [(key, version) for key, (low, high) in sorted(wire.ADVERTISED.items()) for version in range(low, high + 1)]
"""Every api and version that is served."""
