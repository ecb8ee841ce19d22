"""The ring's bytes: a header, and records of rows. `docs/ring.md` says the same in words; begin with `Shape`.

    memory   [header, 4,096 bytes][ring, a power of two]
    ring     [record][record] … [wrap marker]   each on an 8-byte boundary, none across the ring's end
    record   [head, 32 bytes][validity bitmaps][values, a column after the other][text of the strings][to 8 bytes]

Where a value lies follows from the declared columns and the number of rows alone, so that many records of one shape are
read as one matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataplane.tsdb.schema.tables import ColumnType

MAGIC = b"YUNHRING"
VERSION = 1
HEADER_BYTES = 4_096
RING_BYTES_MIN = 1 << 16
ROWS_MAX = 1 << 20
"""In a record."""
WRAP = 0xFFFF_FFFF
"""In place of a record's length: the next record begins at the ring's start."""
ROWS = 1
"""A record's kind; there is no other yet."""
HAS_NULLS = 1
"""A record's flag: bitmaps come before the values. Without it every value is valid."""

PREAMBLE = struct.Struct("<8sIIQ")
"""What the header begins with: magic, version, `HEADER_BYTES`, bytes of the ring."""
RECORD = struct.Struct("<IIHHIIIQ")
"""A record's head: its length; CRC-32C of all that follows this field; kind; flags; the table's number on this
connection; rows; bytes of text; the record's number, counted from 1."""

# Words of the header, by their index as 64 bits or as 32. Either side writes to its own cache line, but for the flag by
# which the other asks to be woken.
CONSUMED = 64 // 8
"""Reader: bytes taken since the start. What lies before is the writer's again."""
READER_SLEEPS = 72 // 4
"""The reader sets it before it sleeps; a writer that has published clears it and sends a wake-up."""
CLOSED = 76 // 4
"""Reader: not 0 once nobody will take anything more."""
PUBLISHED = 128 // 8
"""Writer: bytes published since the start. A record exists when this word says so, and not before."""
WRITER_WAITS = 136 // 4
"""The writer sets it before it waits for room; the reader clears it and sends word."""

_T = ColumnType
_DTYPES: dict[ColumnType, np.dtype] = {
    **{kind: np.dtype("<i8") for kind in ColumnType if kind.is_timestamp},
    _T.INT8: np.dtype("i1"),
    _T.INT16: np.dtype("<i2"),
    _T.INT32: np.dtype("<i4"),
    _T.INT64: np.dtype("<i8"),
    _T.UINT8: np.dtype("u1"),
    _T.UINT16: np.dtype("<u2"),
    _T.UINT32: np.dtype("<u4"),
    _T.UINT64: np.dtype("<u8"),
    _T.FLOAT32: np.dtype("<f4"),
    _T.FLOAT64: np.dtype("<f8"),
    _T.BOOL: np.dtype("u1"),
    _T.STRING: np.dtype("<u4"),
    _T.BINARY: np.dtype("<u4"),
}


def dtype(kind: ColumnType) -> np.dtype:
    """Of a column's values in the ring. A bool is a byte, 0 or 1; a string's are offsets into its text."""
    return _DTYPES[kind]


def has_text(kind: ColumnType) -> bool:
    """Whether its values lie in a record's text, and offsets in their place: one more than there are rows."""
    return kind in (_T.STRING, _T.BINARY)


@dataclass(frozen=True, slots=True)
class Shape:
    """Where in a record of `rows` rows everything lies; bytes from the end of its head."""

    rows: int
    bitmap_bytes: int
    """Of one column's bitmap, least significant bit first, 1 for a value that is there; 0: the record has none. They
    follow each other from offset 0."""
    values: tuple[int, ...]
    """Offset of each column's values, on a boundary of their width."""
    fixed: int
    """Bytes of all this; the text begins here, column after column, without gaps."""
    runs: tuple[tuple[int, int, int, int], ...]
    """Neighbours of one width, read together: offset, width, the first column, how many columns. Each column of text is
    one by itself."""

    def record_bytes(self, text: int) -> int:
        """Of the whole record, head and padding included."""
        return aligned(RECORD.size + self.fixed + text, 8)


@dataclass(slots=True)
class Shapes:
    """The shapes of one declared list of columns."""

    types: Sequence[ColumnType]
    _known: dict[tuple[int, int], Shape] = field(default_factory=dict)

    def of(self, rows: int, flags: int) -> Shape:
        """The shape of records with so many rows."""
        shape = self._known.get((rows, flags))
        if shape is None:
            if len(self._known) >= 1_000:
                self._known.clear()
            shape = self._known[rows, flags] = self._made(rows, flags)
        return shape

    def _made(self, rows: int, flags: int) -> Shape:
        bitmap = (rows + 7) // 8 if flags & HAS_NULLS else 0
        at = aligned(bitmap * len(self.types), 8)
        values = []
        for kind in self.types:
            width = dtype(kind).itemsize
            at = aligned(at, width)
            values.append(at)
            at += width * (rows + 1 if has_text(kind) else rows)
        return Shape(rows, bitmap, tuple(values), at, tuple(self._runs(values)))

    def _runs(self, values: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
        begin = 0
        for at, kind in enumerate(self.types):
            following = self.types[at + 1] if at + 1 < len(self.types) else None
            width = dtype(kind).itemsize
            if has_text(kind) or following is None or has_text(following) or dtype(following).itemsize != width:
                yield values[begin], width, begin, at + 1 - begin
                begin = at + 1


def aligned(size: int, to: int) -> int:
    """The next multiple of `to`, a power of two."""
    return (size + to - 1) & -to
