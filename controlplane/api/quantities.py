"""The scalar types of the specs: names, byte sizes, durations, zone names. Each refuses with one sentence that says
what is allowed."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, StrictStr, WithJsonSchema

NAME_CHARS_MAX = 40
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Refused(ValueError):
    """A value that a validator here refuses; `hint` says what to write instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def parse_bytes(value: Any) -> Any:
    """`268435456` or `256MiB` as a number of bytes; other types are left for the type check to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,15})\s?([KMGT]iB|)", value)
    if match is None:
        raise Refused(
            f"{value!r} is not a size in bytes", "write a whole number, or one with KiB, MiB, GiB or TiB, as in 256MiB"
        )
    return int(match[1]) * _BYTES[match[2]]


def parse_duration(value: Any) -> Any:
    """`90s`, `101m` … in its own form; `0` needs no unit."""
    if type(value) is int and value == 0:
        return "0s"
    if not isinstance(value, str) or re.fullmatch(r"\d{1,9}(ms|s|m|h|d)", value) is None:
        raise Refused(f"{value!r} is not a duration", "write a whole number with ms, s, m, h or d, as in 90s")
    return value


def duration_ms(text: str) -> int:
    """Milliseconds of a duration that `parse_duration` has accepted."""
    number = text.rstrip("msdh")
    return int(number) * _DURATION_MS[text[len(number) :]]


def _name(value: Any) -> Any:
    if isinstance(value, str) and (len(value) > NAME_CHARS_MAX or re.fullmatch(NAME_PATTERN, value) is None):
        raise Refused(
            f"{value!r} is not a name",
            f"1 to {NAME_CHARS_MAX} of a-z, 0-9 and '-', beginning and ending with a letter or digit (RFC 1123)",
        )
    return value


def _zone(value: Any) -> Any:
    # Azure's zones are called 1, 2 and 3, which YAML reads as numbers.
    return str(value) if type(value) is int else value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Name = Annotated[
    StrictStr,
    BeforeValidator(_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN, "minLength": 1, "maxLength": NAME_CHARS_MAX}),
]
"""An RFC 1123 label of at most 40 characters: names of buckets, volumes and processes are built from it and stay inside
every cloud's limit of 63."""

Zone = Annotated[
    StrictStr,
    BeforeValidator(_zone),
    Field(min_length=1, max_length=NAME_CHARS_MAX),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]}),
]
"""A zone as its cloud writes it."""

Bytes = Annotated[
    StrictInt,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d{1,15}\s?([KMGT]iB|)$"}]}),
]
"""Bytes: a whole number, or one with KiB, MiB, GiB, TiB."""

Duration = Annotated[
    StrictStr,
    BeforeValidator(parse_duration),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\d{1,9}(ms|s|m|h|d)$"}, {"const": 0}]}),
]
"""A duration with its unit: 90s, 101m."""

Names = Annotated[tuple[Name, ...], BeforeValidator(_one_or_many)]
"""A list of names; a single one may stand without brackets."""
