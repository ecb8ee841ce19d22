"""A body of lines becomes columns. Begin at `LineReader.read`.

Clients send lines of the same few shapes: the same measurement and tags, the same fields in the same order with values
of the same types. A shape seen twice is remembered (`line_shapes.py`): its lines are told by their separators, and all
of a body's become columns at once (`line_columns.py`). What fits no known shape, or turns out to be something else, is
read by the whole grammar (`line_protocol.py`): the outcome is the same, only slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dataplane.tsdb.protocols.line_columns import Chunk, FamilyKey, Group, columns, strangers
from dataplane.tsdb.protocols.line_protocol import Bad, LineError, Point, read_point
from dataplane.tsdb.protocols.line_shapes import Shape, ShapeKey, Sheet
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


class _Family:
    """One measurement with the same tags: its shapes, and its chunks in the present body."""

    __slots__ = ("chunk", "chunks", "key", "seen", "shapes")

    def __init__(self, key: FamilyKey) -> None:
        self.key = key
        self.shapes: dict[ShapeKey, Shape] = {}
        self.seen: list[ShapeKey] = []
        self.chunk: Chunk | None = None
        """The last used."""
        self.chunks: list[Chunk] = []

    def other(self, sheet: Sheet, line: int, begin: int, end: int) -> Chunk | None:
        """The chunk that takes the line, as `Chunk.takes`; the next line is tried with it first."""
        for shape in self.shapes.values():
            for plain in (True, False) if shape.plain else (False,):
                chunk = next((one for one in self.chunks if one.shape is shape and one.plain is plain), None)
                found = chunk or Chunk(self.key, shape, plain=plain)
                if found is not self.chunk and found.takes(sheet, line, begin, end):
                    if chunk is None:
                        self.chunks.append(found)
                    self.chunk = found
                    return found
        return None


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
        sheet = Sheet(text)
        touched: dict[_Family, None] = {}
        points = self._take_apart(sheet, unit, touched, refusals)
        chunks = [chunk for family in touched for chunk in family.chunks]
        for family in touched:
            family.chunk, family.chunks = None, []
        odd = strangers(sheet, chunks)
        again = [chunk.at[row] for chunk, rows in odd.items() for row in rows]
        chunks = [chunk.without(odd[chunk]) if chunk in odd else chunk for chunk in chunks]
        chunks = [chunk for chunk in chunks if chunk.at]
        groups = []
        try:
            groups = columns(sheet, chunks, unit, now_ns)
        except pa.ArrowInvalid:  # a value is none, or out of range: whose?
            for chunk in chunks:
                try:
                    groups += columns(sheet, [chunk], unit, now_ns)
                except pa.ArrowInvalid:
                    again += chunk.at
        if again:
            groups += self._again(sheet, again, unit, now_ns, points, refusals)
        groups += _grouped(points, now_ns)
        if len(self._families) > FAMILIES_MAX or len(self._series) > SERIES_MAX:
            self._families, self._series = {}, {}
        return Lines(text, unit, groups, refusals)

    def _take_apart(
        self, sheet: Sheet, unit: int, touched: dict[_Family, None], refusals: Refusals
    ) -> list[tuple[int, Point]]:
        """Lines of known shapes go into their chunks; all others are read, and returned."""
        points: list[tuple[int, Point]] = []
        text, known = sheet.text, self._series.get
        find = text.find
        at, line, size = 0, 0, len(text)
        while at < size:
            end = find("\n", at)
            if end < 0:
                end = size
            space = find(" ", at, end)
            if space > 0 and (series := known(text[at:space])) is not None:
                chunk = series.family.chunk
                if chunk is None or not chunk.takes(sheet, line, space + 1, end):
                    chunk = series.family.other(sheet, line, space + 1, end)
                    touched[series.family] = None
                if chunk is not None:
                    chunk.at.append(at)
                    chunk.tags.append(series.tags)
                    at, line = end + 1, line + 1
                    continue
            began = at
            at = self._by_grammar(text, at, unit, points, refusals)
            line += text.count("\n", began, at)
            if refusals.count >= REFUSED_MAX and at < size:
                refusals.count += text.count("\n", at) + (not text.endswith("\n"))
                break
        return points

    def _by_grammar(self, text: str, at: int, unit: int, points: list[tuple[int, Point]], refusals: Refusals) -> int:
        """Read the line at `at` into `points` or `refusals`, and learn from it; where the next one begins."""
        try:
            point = read_point(text, at, unit)
        except Bad as bad:
            refusals.add(at, bad.at, bad.reason)
            return bad.end
        if isinstance(point, int):
            return point
        points.append((at, point))
        if (space := text.find(" ", at, point.end)) > 0:
            self._learn(text, at, space, point)
        return point.end

    def _again(
        self,
        sheet: Sheet,
        lines: Iterable[int],
        unit: int,
        now_ns: int,
        points: list[tuple[int, Point]],
        refusals: Refusals,
    ) -> list[Group]:
        """Lines, by where they begin, some of which are not what they seemed: what each is by itself. Most are still of
        some shape; of the others, after `REFUSED_MAX` refused lines all are refused unread."""
        chunks: dict[Shape, Chunk] = {}
        doubtful = []
        text = sheet.text
        for at in lines:
            end, space = text.find("\n", at), text.index(" ", at)
            series = self._series[text[at:space]]
            for shape in series.family.shapes.values():
                chunk = chunks.get(shape) or Chunk(series.family.key, shape, plain=False)
                if chunk.takes(sheet, 0, space + 1, len(text) if end < 0 else end):
                    chunks[shape] = chunk
                    chunk.at.append(at)
                    chunk.tags.append(series.tags)
                    break
            else:
                doubtful.append(at)
        groups = []
        for chunk in chunks.values():
            try:
                groups += columns(sheet, [chunk], unit, now_ns)
            except pa.ArrowInvalid:  # out of range
                doubtful += chunk.at
        for number, at in enumerate(doubtful):
            if refusals.count >= REFUSED_MAX:
                refusals.count += len(doubtful) - number
                break
            self._by_grammar(text, at, unit, points, refusals)
        return groups

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
        family.shapes[shape] = Shape(shape, len(point.tags))


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
