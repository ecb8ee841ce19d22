"""Lines that were taken apart become columns, all values of a type at once. Begin at `columns`.

A call of Arrow costs as much as the parsing of some hundred numbers, and an object of Python's as much as that of
several: so the values of a body are parsed together, whosever they are, and are no objects before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.protocols.line_protocol import FALSE, TRUE
from dataplane.tsdb.protocols.line_shapes import Shape, Sheet
from dataplane.tsdb.schema.tables import ColumnType

FamilyKey = tuple[str, tuple[str, ...]]
"""A measurement, and its tags' names in the order in which they are written."""
Kind = ColumnType | None
"""Of texts: that of the values, or, of times, none."""

_ARROW: dict[Kind, pa.DataType] = {None: pa.int64(), **{kind: kind.arrow for kind in ColumnType}}
_SUFFIXES: dict[Kind, str] = {ColumnType.INT64: "i", ColumnType.UINT64: "u"}
_CHARACTERS: dict[Kind, bytes] = {
    ColumnType.FLOAT64: b"0123456789.eE+-",
    ColumnType.INT64: b"0123456789-i",
    ColumnType.UINT64: b"0123456789u",
    None: b"0123456789-",
}
"""That numbers consist of. Arrow reads `nan`, `inf` and `0x10` as well; what it takes of these characters alone, the
grammar takes too, and as the same number."""


@dataclass(frozen=True, slots=True)
class Group:
    """Points of one measurement with the same tags and fields, as columns."""

    measurement: str
    tags: dict[str, pa.Array]
    fields: dict[str, pa.Array]
    """Of type float64, int64, uint64, bool or string; without nulls."""
    times: pa.Array
    """int64: nanoseconds since the epoch. These and the fields may be parts of larger arrays: copy what is kept."""
    at: np.ndarray
    """Where each point's line begins in the text: their order."""
    form: object | None = None
    """The same object of all groups with this measurement, these tags and these fields and types; None: unknown."""


class Chunk:
    """Lines of one shape in a body, taken apart but not yet understood. `plain`: by their separators, so that it is not
    known yet whether they have the shape."""

    __slots__ = ("at", "family", "lines", "plain", "shape", "tags", "texts")

    def __init__(self, family: FamilyKey, shape: Shape, *, plain: bool) -> None:
        self.family = family
        self.shape = shape
        self.plain = plain
        self.lines: list[int] = []
        """Numbers of plain lines."""
        self.texts: list[tuple[str, ...]] = []
        """Of lines that are not plain, as `Shape.texts`."""
        self.at: list[int] = []
        """Where each line begins in the text."""
        self.tags: list[tuple[str, ...]] = []

    def takes(self, sheet: Sheet, line: int, begin: int, end: int) -> bool:
        """Whether it takes the line of this number, whose fields are at [begin, end); `at` and `tags` are the caller's
        to add."""
        if self.plain:
            if not self.shape.likely(sheet, line, begin):
                return False
            self.lines.append(line)
            return True
        texts = self.shape.texts(sheet.text, begin, end)
        if texts is None:
            return False
        self.texts.append(texts)
        return True

    def without(self, rows: Iterable[int]) -> Chunk:
        """The chunk, plain, without the lines at these places in it."""
        kept = sorted(set(range(len(self.at))) - set(rows))
        found = Chunk(self.family, self.shape, plain=True)
        found.lines = [self.lines[row] for row in kept]
        found.at = [self.at[row] for row in kept]
        found.tags = [self.tags[row] for row in kept]
        return found


def columns(sheet: Sheet, chunks: Sequence[Chunk], unit: int, now_ns: int) -> list[Group]:
    """The chunks' points. Plain ones have no line among them that has other names (`strangers`). `unit`: nanoseconds of
    a time's unit; `now_ns`: the time of points that have none.

    Raises:
        pa.ArrowInvalid: a text is not what its type wants, or a number is out of range.
    """
    laid_out = _laid_out(sheet, chunks)
    texts: dict[Kind, list[pa.Array]] = {}
    for each in laid_out:
        for kind, found in each.texts(sheet).items():
            texts.setdefault(kind, []).append(found)
    values = {kind: _values(kind, pa.concat_arrays(found)) for kind, found in texts.items()}
    if None in values and unit != 1:
        values[None] = pc.multiply_checked(values[None], unit)
    groups = []
    used = dict.fromkeys(values, 0)
    for each in laid_out:
        groups += each.groups(values, used, now_ns)
    return groups


def strangers(sheet: Sheet, chunks: Sequence[Chunk]) -> dict[Chunk, list[int]]:
    """Of plain chunks, those with lines that have other names than their shape, and where in them these are."""
    found: dict[Chunk, list[int]] = {}
    for each in _laid_out(sheet, [chunk for chunk in chunks if chunk.plain]):
        for at in each.strangers(sheet).tolist():
            number = int(np.searchsorted(each.begins, at, side="right")) - 1
            found.setdefault(each.chunks[number], []).append(at - int(each.begins[number]))
    return found


class _Layout:
    """Chunks whose lines have the same types at the same tokens: their values are taken field by field, in each field
    chunk by chunk."""

    def __init__(self, chunks: list[Chunk], first: np.ndarray) -> None:
        self.chunks = chunks
        self._shape = chunks[0].shape
        self._plain = chunks[0].plain
        counts = [len(chunk.at) for chunk in chunks]
        self._rows = sum(counts)
        self.begins = np.cumsum([0, *counts[:-1]])
        """Of each chunk, its first row."""
        self._counts = counts
        lines = np.fromiter(chain.from_iterable(chunk.lines for chunk in chunks), np.int64)
        self._names = first[lines] + self._shape.head + 2 * np.arange(len(self._shape.kinds) + 1)[:, None]
        """Of plain chunks: the tokens of names, by field and row; the last are those of times."""

    def strangers(self, sheet: Sheet) -> np.ndarray:
        """The rows that have other names than their chunk."""
        fields = len(self._shape.kinds)
        known = pa.array([name for chunk in self.chunks for name, _ in chunk.shape.fields], pa.string())
        mine = np.repeat(np.arange(len(self.chunks)) * fields, self._counts) + np.arange(fields)[:, None]
        given = sheet.tokens.take(pa.array(self._names[:-1].ravel()))
        same = pc.equal(given, known.take(pa.array(mine.ravel()))).to_numpy(zero_copy_only=False)
        rows: np.ndarray = np.flatnonzero(~same.reshape(fields, self._rows).all(axis=0))
        return rows

    def texts(self, sheet: Sheet) -> dict[Kind, pa.Array]:
        """Of each type, the texts of its fields, and of the times."""
        places: dict[Kind, list[int]] = {}
        for at, kind in enumerate(self._shape.kinds):
            places.setdefault(kind, []).append(at)
        if self._plain:
            found = {kind: self._names[fields].ravel() + 1 for kind, fields in places.items()}
            if self._shape.timed:
                found[None] = self._names[-1]
            return {kind: sheet.tokens.take(pa.array(tokens)) for kind, tokens in found.items()}
        by_field = list(zip(*chain.from_iterable(chunk.texts for chunk in self.chunks), strict=True))
        if self._shape.timed:
            places[None] = [len(self._shape.kinds)]
        return {
            kind: pa.array(list(chain.from_iterable(by_field[at] for at in fields)), pa.string())
            for kind, fields in places.items()
        }

    def groups(self, values: dict[Kind, pa.Array], used: dict[Kind, int], now_ns: int) -> list[Group]:
        """The next of `values`, of which `used` were before them, by chunk."""
        taken = []
        for kind in self._shape.kinds:
            taken.append((values[kind], used[kind]))
            used[kind] += self._rows
        if self._shape.timed:
            times, skipped = values[None], used[None]
            used[None] += self._rows
        else:
            times, skipped = pa.array(np.full(self._rows, now_ns, dtype=np.int64)), 0
        groups = []
        for chunk, begin, count in zip(self.chunks, self.begins.tolist(), self._counts, strict=True):
            measurement, names = chunk.family
            by_name = zip(*chunk.tags, strict=True) if names else ()
            tags = {name: pa.array(column, pa.string()) for name, column in zip(names, by_name, strict=True)}
            fields = {
                name: column.slice(before + begin, count)
                for (name, _), (column, before) in zip(chunk.shape.fields, taken, strict=True)
            }
            at = np.array(chunk.at, dtype=np.int64)
            groups.append(Group(measurement, tags, fields, times.slice(skipped + begin, count), at, chunk.shape))
        return groups


def _laid_out(sheet: Sheet, chunks: Sequence[Chunk]) -> list[_Layout]:
    by: dict[tuple[bool, int, tuple[ColumnType, ...], bool], list[Chunk]] = {}
    for chunk in chunks:
        shape = chunk.shape
        by.setdefault((chunk.plain, shape.head, shape.kinds, shape.timed), []).append(chunk)
    return [_Layout(mine, sheet.first) for mine in by.values()]


def _values(kind: Kind, texts: pa.Array) -> pa.Array:
    """Of texts as lines have them; of strings, without their quotes. Floats are finite.

    Raises:
        pa.ArrowInvalid: one of them is no such value, or is out of range.
    """
    if kind is ColumnType.STRING:
        return texts
    if kind is ColumnType.BOOL:
        known = pc.index_in(texts, pa.array([*TRUE, *FALSE]))
        if known.null_count:
            raise pa.ArrowInvalid("no boolean")
        return pc.less(known, len(TRUE))
    characters = _characters(texts)
    if characters.translate(None, _CHARACTERS[kind]):
        raise pa.ArrowInvalid("no number")
    if suffix := _SUFFIXES.get(kind):
        if characters.count(suffix.encode()) != len(texts) or not pc.all(pc.ends_with(texts, suffix)).as_py():
            raise pa.ArrowInvalid("a suffix is missing")
        texts = pc.utf8_rtrim(texts, suffix)
    found = texts.cast(_ARROW[kind])
    if kind is ColumnType.FLOAT64 and not np.isfinite(found.to_numpy()).all():
        raise pa.ArrowInvalid("out of range")
    return found


def _characters(texts: pa.StringArray) -> bytes:
    """All texts without anything between them: an array's own bytes, where it is no part of another one."""
    if not len(texts):
        return b""
    _, offsets, data = texts.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]].tolist()
    return data.slice(first, last - first).to_pybytes() if data is not None else b""
