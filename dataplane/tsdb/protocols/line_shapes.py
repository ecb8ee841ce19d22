"""Shapes of lines: what a line is taken apart by, without reading it letter by letter. Begin at `Sheet` and `Shape`.

A shape is what comes after a line's head: names of fields in their order, the types of their values, and whether a time
follows. Where a line has a shape's separators and no strings, what lies between them are its names and values: whether
they are the shape's is seen of all lines at once (`line_columns.py`). Of strings, and of lines that are written
otherwise, a regular expression says it. Neither takes anything that the grammar (`line_protocol.py`) would not take, or
would take otherwise.
"""

from __future__ import annotations

import functools
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.schema.tables import ColumnType

_PATTERNS = {
    ColumnType.FLOAT64: r"(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)",
    ColumnType.INT64: r"(-?[0-9]+i)",
    ColumnType.UINT64: r"([0-9]+u)",
    ColumnType.BOOL: r"(t|T|true|True|TRUE|f|F|false|False|FALSE)",
    ColumnType.STRING: r'"([^"\\\n]*)"',
}
_SEPARATORS = b',= "\r'
"""Quotes and carriage returns are among them, so that a line with one has not the separators of a shape."""
_NO_SEPARATORS = bytes(each for each in range(256) if each not in _SEPARATORS + b"\n")
_TO_COMMAS = bytes.maketrans(_SEPARATORS + b"\n", b"," * (len(_SEPARATORS) + 1))

ShapeKey = tuple[tuple[tuple[str, ColumnType], ...], bool]
"""Fields in their order, with types, and whether a time follows."""


class Sheet:
    """A body's text, and what lies between the separators of all its lines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._raw = text.encode()
        self.separators = self._raw.translate(None, _NO_SEPARATORS).split(b"\n")
        """Of each line, in their order."""

    @functools.cached_property
    def tokens(self) -> pa.StringArray:
        """What the separators and line breaks divide, of all lines one after the other."""
        whole = pa.array([self._raw.translate(_TO_COMMAS)], pa.binary())
        return pc.split_pattern(whole, b",").values.view(pa.string())

    @functools.cached_property
    def first(self) -> np.ndarray:
        """Of each line, the number of its first token."""
        counts = np.fromiter(map(len, self.separators), np.int64, len(self.separators)) + 1
        found: np.ndarray = np.cumsum(counts) - counts
        return found


class Shape:
    """See the module. `tags`: how many the line's head has."""

    def __init__(self, key: ShapeKey, tags: int) -> None:
        self.fields, self.timed = key
        self.kinds = tuple(kind for _, kind in self.fields)
        self.head = 1 + 2 * tags
        """Tokens of a line's head."""
        self.plain = ColumnType.STRING not in self.kinds
        """Whether a line may be told by its separators."""
        self._separators = b",=" * tags + b" =" + b",=" * (len(self.fields) - 1) + (b" " if self.timed else b"")
        self._begins = self.fields[0][0] + "="
        body = ",".join(re.escape(name) + "=" + _PATTERNS[kind] for name, kind in self.fields)
        self._match = re.compile(body + (" (-?[0-9]+)" if self.timed else "") + r"\r?").fullmatch

    def likely(self, sheet: Sheet, line: int, begin: int) -> bool:
        """Whether the line of this number, whose fields begin at `begin`, has the shape's separators and first name;
        of a plain shape."""
        return sheet.separators[line] == self._separators and sheet.text.startswith(self._begins, begin)

    def texts(self, text: str, begin: int, end: int) -> tuple[str, ...] | None:
        """Of the line whose fields are at [begin, end), the texts of its values and of its time, each as its type wants
        it, but for its range; None: it has another shape."""
        match = self._match(text, begin, end)
        return match.groups() if match else None
