"""A body of lines becomes columns. Begin at `LineReader.read`.

Clients send lines of the same few shapes: the same measurement and tags, the same fields in the same order with values
of the same types. Of a shape seen twice a regular expression is kept, which takes a line apart in one step; its values
become columns all at once, by Arrow. What fits no known shape, and each line of a column that Arrow refuses, is read by
the whole grammar (`line_protocol.py`): the outcome is the same, only slower.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.protocols.line_protocol import Bad, LineError, Point, read_point
from dataplane.tsdb.schema.tables import ColumnType

ERRORS_MAX = 100
"""Refused lines that are described; the others are counted."""
REFUSED_MAX = 10_000
"""Refused lines after which the rest of a body is refused unread: what is no line protocol takes long to say."""
SHOWN_CHARACTERS = 200
SHAPES_MAX = 4
"""Of one measurement and its tags."""
SHAPE_FIELDS_MAX = 256
FAMILIES_MAX = 4_096
SERIES_MAX = 65_536
HEAD_CHARACTERS_MAX = 512
"""What is remembered between bodies; when there is more, all of it is forgotten."""

_PATTERNS = {
    ColumnType.FLOAT64: r"(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)",
    ColumnType.INT64: r"(-?[0-9]+)i",
    ColumnType.UINT64: r"([0-9]+)u",
    ColumnType.BOOL: r"(t|T|true|True|TRUE|f|F|false|False|FALSE)",
    ColumnType.STRING: r'"([^"\\\n]*)"',
}

ShapeKey = tuple[tuple[tuple[str, ColumnType], ...], bool]
"""Fields in their order, with types, and whether a time follows."""
FamilyKey = tuple[str, tuple[str, ...]]
"""A measurement, and its tags' names in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Group:
    """Points of one measurement with the same tags and fields, as columns."""

    measurement: str
    tags: dict[str, pa.Array]
    fields: dict[str, pa.Array]
    """Of type float64, int64, uint64, bool or string; without nulls."""
    times: pa.Array
    """int64: nanoseconds since the epoch."""
    at: np.ndarray
    """Where each point's line begins in the text: their order."""
    form: object | None = None
    """The same object of all groups with this measurement, these tags and these fields and types; None: unknown."""


@dataclass(slots=True)
class Refusals:
    """Lines that were refused: as many as there were, and where and why of the first of them."""

    count: int = 0
    kept: list[tuple[int, int, str]] = field(default_factory=list)
    """Where the line begins, the offending character, the reason."""

    @property
    def open(self) -> bool:
        """Whether one more would be described."""
        return len(self.kept) < ERRORS_MAX

    def add(self, line: int, at: int, reason: str) -> None:
        self.count += 1
        if self.open:
            self.kept.append((line, at, reason))

    def described(self, text: str) -> list[LineError]:
        """By line."""
        found = []
        counted, line = 0, 1
        for begin, at, reason in sorted(self.kept, key=lambda one: one[1]):
            line += text.count("\n", counted, at)
            counted = at
            # A character that offends by being missing may be the line's own end.
            column = at - text.rfind("\n", 0, at)
            end = text.find("\n", begin)
            shown = text[begin : min(len(text) if end < 0 else end, begin + SHOWN_CHARACTERS)].rstrip("\r")
            found.append(LineError(line, column, reason, shown))
        return found


@dataclass(frozen=True, slots=True)
class Lines:
    """What a body holds."""

    text: str
    unit: int
    groups: list[Group]
    refusals: Refusals


class _Shape:
    def __init__(self, key: ShapeKey) -> None:
        self.fields, self.timed = key
        self.counts: dict[ColumnType, int] = {}
        """Of its fields, by type."""
        for _, kind in self.fields:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        body = ",".join(re.escape(name) + "=" + _PATTERNS[kind] for name, kind in self.fields)
        self.match = re.compile(body + (" (-?[0-9]+)" if self.timed else "") + r"\r?").fullmatch


class _Chunk:
    """Lines of one shape in the present body, taken apart but not yet understood."""

    __slots__ = ("at", "family", "match", "owners", "rows", "shape")

    def __init__(self, family: _Family, shape: _Shape) -> None:
        self.family = family
        self.shape = shape
        self.match = shape.match
        self.rows: list[tuple[str, ...]] = []
        self.owners: list[_Series] = []
        self.at: list[int] = []


class _Family:
    """One measurement with the same tags: its shapes, and its chunks in the present body, the last used first."""

    __slots__ = ("chunk", "chunks", "key", "seen", "shapes")

    def __init__(self, key: FamilyKey) -> None:
        self.key = key
        self.shapes: dict[ShapeKey, _Shape] = {}
        self.seen: list[ShapeKey] = []
        self.chunk: _Chunk | None = None
        self.chunks: list[_Chunk] = []


@dataclass(slots=True)
class _Series:
    family: _Family
    tags: tuple[str, ...]


class LineReader:
    """Reads bodies one after the other and remembers their shapes. Not for several threads at once."""

    def __init__(self) -> None:
        self._families: dict[FamilyKey, _Family] = {}
        self._series: dict[str, _Series] = {}

    def read(self, body: bytes, *, unit: int, now_ns: int) -> Lines:
        """`unit`: nanoseconds of a time's unit; `now_ns`: the time of points that have none. Bytes that are not UTF-8
        refuse the lines that they are in."""
        refusals = Refusals()
        text = _decoded(body, refusals)
        touched: list[_Family] = []
        points = self._take_apart(text, unit, touched, refusals)
        chunks = [chunk for family in touched for chunk in family.chunks]
        for family in touched:
            family.chunk, family.chunks = None, []
        groups = []
        try:
            groups = _columns(chunks, unit, now_ns)
        except pa.ArrowInvalid:  # some value is out of range: whose?
            for chunk in chunks:
                try:
                    groups += _columns([chunk], unit, now_ns)
                except pa.ArrowInvalid:
                    points += _again(text, chunk.at, unit, refusals)
        groups += _grouped(points, now_ns)
        if len(self._families) > FAMILIES_MAX or len(self._series) > SERIES_MAX:
            self._families, self._series = {}, {}
        return Lines(text, unit, groups, refusals)

    def _take_apart(self, text: str, unit: int, touched: list[_Family], refusals: Refusals) -> list[tuple[int, Point]]:
        """Lines of known shapes go into their chunks; all others are read, and returned."""
        points: list[tuple[int, Point]] = []
        find, known = text.find, self._series.get
        at, size = 0, len(text)
        while at < size:
            end = find("\n", at)
            if end < 0:
                end = size
            space = find(" ", at, end)
            if space > 0 and (series := known(text[at:space])) is not None:
                chunk = series.family.chunk
                match = chunk.match(text, space + 1, end) if chunk is not None else None
                if match is None:
                    chunk, match = self._other_shape(series.family, text, space + 1, end, touched)
                if match is not None and chunk is not None:
                    chunk.rows.append(match.groups())
                    chunk.owners.append(series)
                    chunk.at.append(at)
                    at = end + 1
                    continue
            try:
                point = read_point(text, at, unit)
            except Bad as bad:
                refusals.add(at, bad.at, bad.reason)
                at = bad.end
                if refusals.count >= REFUSED_MAX and at < size:
                    refusals.count += text.count("\n", at) + (not text.endswith("\n"))
                    break
                continue
            if isinstance(point, int):
                at = point
                continue
            points.append((at, point))
            if space > 0:
                self._learn(text, at, space, point)
            at = point.end
        return points

    def _other_shape(
        self, family: _Family, text: str, begin: int, end: int, touched: list[_Family]
    ) -> tuple[_Chunk | None, re.Match[str] | None]:
        for shape in family.shapes.values():
            if match := shape.match(text, begin, end):
                chunk = next((c for c in family.chunks if c.shape is shape), None)
                if chunk is None:
                    chunk = _Chunk(family, shape)
                    if not family.chunks:
                        touched.append(family)
                    family.chunks.append(chunk)
                family.chunk = chunk
                return chunk, match
        return None, None

    def _learn(self, text: str, at: int, space: int, point: Point) -> None:
        """Remember the point's series and shape, where its text is the plain one."""
        head = text[at:space]
        plain = point.measurement + "".join(f",{key}={value}" for key, value in point.tags)
        if head != plain or len(head) > HEAD_CHARACTERS_MAX or head[0] in " \t#":
            return
        key = (point.measurement, tuple(name for name, _ in point.tags))
        family = self._families.get(key)
        if family is None:
            family = self._families[key] = _Family(key)
        if head not in self._series:
            self._series[head] = _Series(family, tuple(value for _, value in point.tags))
        fields = tuple((one.key, one.type) for one in point.fields)
        shape = (fields, point.time is not None)
        if shape in family.shapes or len(fields) > SHAPE_FIELDS_MAX:
            return
        if shape not in family.seen:
            family.seen = [shape, *family.seen[: SHAPES_MAX - 1]]
            return
        if len(family.shapes) >= SHAPES_MAX:
            # Its chunk of the present body keeps what it holds.
            family.shapes.pop(next(iter(family.shapes)))
        family.shapes[shape] = _Shape(shape)


def _decoded(body: bytes, refusals: Refusals) -> str:
    """The text; of bytes that are not UTF-8 in place of their lines comments, so that all others keep their number."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        pass
    lines, at = [], 0
    for raw in body.split(b"\n"):
        try:
            lines.append(raw.decode())
        except UnicodeDecodeError as error:
            where = at + len(raw[: error.start].decode())
            lines.append("#" + raw.decode(errors="replace")[1:])
            refusals.add(at, where, "a byte that is not UTF-8")
        at += len(lines[-1]) + 1
    return "\n".join(lines)


def _again(text: str, at: Sequence[int], unit: int, refusals: Refusals) -> list[tuple[int, Point]]:
    """Each line by the whole grammar: one of them holds a value that is out of range."""
    points = []
    for begin in at:
        try:
            point = read_point(text, begin, unit)
        except Bad as bad:
            refusals.add(begin, bad.at, bad.reason)
            continue
        if not isinstance(point, int):
            points.append((begin, point))
    return points


def _columns(chunks: Sequence[_Chunk], unit: int, now_ns: int) -> list[Group]:
    """The chunks' values. Numbers of one type are parsed all at once, whosever they are: a call of Arrow costs as much
    as some hundred of them.

    Raises:
        pa.ArrowInvalid: one of them is out of range.
    """
    texts: dict[ColumnType, list[str]] = {ColumnType.FLOAT64: [], ColumnType.INT64: [], ColumnType.UINT64: []}
    times: list[str] = []
    taken = [list(zip(*chunk.rows, strict=True)) for chunk in chunks]
    for chunk, columns in zip(chunks, taken, strict=True):
        for (_, kind), column in zip(chunk.shape.fields, columns, strict=False):
            if kind in texts:
                texts[kind] += column
        if chunk.shape.timed:
            times += columns[-1]
    numbers = {kind: _Numbers(pa.array(found, pa.string()).cast(kind.arrow)) for kind, found in texts.items()}
    if not np.isfinite(numbers[ColumnType.FLOAT64].values).all():
        raise pa.ArrowInvalid("out of range")
    given = pa.array(times, pa.string()).cast(pa.int64())
    clock = _Numbers(given if unit == 1 else pc.multiply_checked(given, unit))
    return [_group(chunk, columns, numbers, clock, now_ns) for chunk, columns in zip(chunks, taken, strict=True)]


class _Numbers:
    """Of one type, to be handed out in the order in which they were collected."""

    def __init__(self, values: pa.Array) -> None:
        self.values: np.ndarray = values.to_numpy()
        self._at = 0

    def take(self, count: int) -> pa.Array:
        """The next ones; a copy, so that a table that stays in memory does not keep the whole body there."""
        self._at += count
        return pa.array(self.values[self._at - count : self._at].copy())


def _group(
    chunk: _Chunk, columns: list[tuple[str, ...]], numbers: dict[ColumnType, _Numbers], clock: _Numbers, now_ns: int
) -> Group:
    rows = len(chunk.rows)
    blocks = {kind: numbers[kind].take(count * rows) for kind, count in chunk.shape.counts.items() if kind in numbers}
    used = dict.fromkeys(blocks, 0)
    fields: dict[str, pa.Array] = {}
    for (name, kind), column in zip(chunk.shape.fields, columns, strict=False):
        if kind in blocks:
            fields[name] = blocks[kind].slice(used[kind], rows)
            used[kind] += rows
        elif kind is ColumnType.BOOL:
            fields[name] = pa.array([raw[0] in "tT" for raw in column], pa.bool_())
        else:
            fields[name] = pa.array(column, pa.string())
    times = clock.take(rows) if chunk.shape.timed else pa.array(np.full(rows, now_ns, dtype=np.int64))
    measurement, tag_names = chunk.family.key
    values = zip(*(owner.tags for owner in chunk.owners), strict=True) if tag_names else ()
    tags = {name: pa.array(column, pa.string()) for name, column in zip(tag_names, values, strict=True)}
    return Group(measurement, tags, fields, times, np.array(chunk.at, dtype=np.int64), chunk.shape)


def _grouped(points: list[tuple[int, Point]], now_ns: int) -> list[Group]:
    by: dict[tuple[FamilyKey, tuple[tuple[str, ColumnType], ...]], list[tuple[int, Point]]] = {}
    for at, point in points:
        family = (point.measurement, tuple(name for name, _ in point.tags))
        by.setdefault((family, tuple((one.key, one.type) for one in point.fields)), []).append((at, point))
    groups = []
    for ((measurement, tag_names), kinds), found in by.items():
        tags = {
            name: pa.array([point.tags[number][1] for _, point in found], pa.string())
            for number, name in enumerate(tag_names)
        }
        fields = {
            name: pa.array([point.fields[number].value for _, point in found], kind.arrow)
            for number, (name, kind) in enumerate(kinds)
        }
        times = pa.array([now_ns if point.time is None else point.time for _, point in found], pa.int64())
        groups.append(Group(measurement, tags, fields, times, np.array([at for at, _ in found], dtype=np.int64)))
    return groups
