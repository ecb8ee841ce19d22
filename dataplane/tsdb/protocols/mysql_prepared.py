"""Prepared statements of the MySQL wire: parameters are bound as tokens, never as text.

A parameter takes the place of its `?` among the statement's tokens, as the literal that it is; whatever is in it, it
stays one. (mysql-mimic pastes parameters into the SQL between quotes, unescaped: that is not used.)
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

from mysql_mimic.types import ColumnType, read_str_len

from dataplane.tsdb.protocols.lexer import Kind, Token
from providers.base.errors import Invalid

STATEMENTS_MAX = 1_000
"""Of one connection."""
PARAMETERS_MAX = 65_535
LONG_DATA_BYTES_MAX = 16 << 20
"""Of one statement, sent ahead of its execution."""

_FIXED: dict[ColumnType, tuple[str, str]] = {
    ColumnType.TINY: ("b", "B"),
    ColumnType.BOOL: ("b", "B"),
    ColumnType.SHORT: ("h", "H"),
    ColumnType.YEAR: ("h", "H"),
    ColumnType.LONG: ("i", "I"),
    ColumnType.INT24: ("i", "I"),
    ColumnType.LONGLONG: ("q", "Q"),
    ColumnType.FLOAT: ("f", "f"),
    ColumnType.DOUBLE: ("d", "d"),
}
"""Formats, signed and unsigned."""
_MOMENTS = (ColumnType.DATE, ColumnType.DATETIME, ColumnType.TIMESTAMP)
_BINARY = (ColumnType.TINY_BLOB, ColumnType.MEDIUM_BLOB, ColumnType.LONG_BLOB, ColumnType.BLOB)
_STRINGS = (ColumnType.VARCHAR, ColumnType.VAR_STRING, ColumnType.STRING, ColumnType.ENUM, ColumnType.SET, *_BINARY)
_DECIMALS = (ColumnType.DECIMAL, ColumnType.NEWDECIMAL)
_NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NULL = (Kind.WORD, "NULL")

Literal = tuple[Kind, str]


@dataclass(slots=True)
class Prepared:
    """A prepared statement of one connection."""

    id: int
    sql: str
    tokens: list[Token]
    types: list[tuple[ColumnType, bool]] = field(default_factory=list)
    """Of its parameters, with whether unsigned: a client may leave them out when it executes again."""
    long_data: dict[int, bytearray] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(token.kind is Kind.PARAMETER for token in self.tokens)

    def append(self, parameter: int, data: bytes) -> None:
        """Take a part of a parameter's value. Raises Invalid: too much."""
        if sum(map(len, self.long_data.values())) + len(data) > LONG_DATA_BYTES_MAX:
            self.long_data.clear()
            raise Invalid(f"more than {LONG_DATA_BYTES_MAX} bytes of parameters")
        self.long_data.setdefault(parameter, bytearray()).extend(data)

    def bound(self, data: bytes) -> list[Token]:
        """The statement with the parameters of a COM_STMT_EXECUTE after its iteration count.

        Raises:
            Invalid: they cannot be read.
        """
        literals = iter(self._literals(data))
        bound = []
        for token in self.tokens:
            if token.kind is Kind.PARAMETER:
                kind, value = next(literals)
                bound.append(Token(kind, value, token.start, token.end))
            else:
                bound.append(token)
        return bound

    def _literals(self, data: bytes) -> Sequence[Literal]:
        count = self.parameters
        if not count:
            return []
        reader = BytesIO(data)
        try:
            nulls = int.from_bytes(_exactly(reader, (count + 7) // 8), "little")
            if _exactly(reader, 1) == b"\x01":
                self.types = [
                    (ColumnType(kind), bool(flags & 0x80))
                    for kind, flags in struct.iter_unpack("<BB", _exactly(reader, 2 * count))
                ]
            if len(self.types) != count:
                raise Invalid("the parameters of a prepared statement came without their types")
            return [self._literal(reader, at, bool(nulls & 1 << at)) for at in range(count)]
        except (struct.error, ValueError, EOFError) as error:
            raise Invalid(f"the parameters of a prepared statement cannot be read: {error}") from None

    def _literal(self, reader: BytesIO, at: int, is_null: bool) -> Literal:
        kind, unsigned = self.types[at]
        if at in self.long_data:
            return _string(bytes(self.long_data[at]), kind)
        if is_null or kind is ColumnType.NULL:
            return _NULL
        if kind in _FIXED:
            form = "<" + _FIXED[kind][unsigned]
            (number,) = struct.unpack(form, _exactly(reader, struct.calcsize(form)))
            if isinstance(number, float) and not math.isfinite(number):
                return Kind.STRING, str(number)
            return Kind.NUMBER, repr(number)
        if kind in _STRINGS:
            return _string(_text(reader), kind)
        if kind in _DECIMALS:
            digits = _text(reader)
            if not _NUMBER.fullmatch(digits):
                raise Invalid(f"parameter {at + 1} is not a number: {digits[:40]!r}")
            return Kind.NUMBER, digits.decode().removeprefix("+")
        if kind in _MOMENTS:
            return Kind.STRING, _moment(_text(reader))
        raise Invalid(f"parameter {at + 1} is of a type that is not there: {kind.name}")


def _string(data: bytes, kind: ColumnType) -> Literal:
    if kind not in _BINARY or b"\0" not in data:
        try:
            return Kind.STRING, data.decode()
        except UnicodeDecodeError:
            pass
    return Kind.BYTES, data.hex()


def _text(reader: BytesIO) -> bytes:
    data: bytes = read_str_len(reader)
    return data


def _exactly(reader: BytesIO, count: int) -> bytes:
    data = reader.read(count)
    if len(data) != count:
        raise EOFError("they end too early")
    return data


def _moment(data: bytes) -> str:
    """`2024-01-31 12:00:00.000001`."""
    if len(data) not in (4, 7, 11):
        raise Invalid("a parameter is a time of no known form")
    year, month, day = struct.unpack_from("<HBB", data)
    shown = f"{year:04}-{month:02}-{day:02}"
    if len(data) > 4:
        hour, minute, second = data[4:7]
        shown += f" {hour:02}:{minute:02}:{second:02}"
    if len(data) > 7:
        shown += f".{struct.unpack_from('<I', data, 7)[0]:06}"
    return shown
