"""Bodies of line protocol into a database. A measurement is a table (`growing_tables.py`), whose time index is in
nanoseconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols.growing_tables import Refused, TableWriter
from dataplane.tsdb.protocols.line_batches import LineReader, Lines
from dataplane.tsdb.protocols.line_protocol import Bad, LineError, read_point
from providers.base.clock import Clock

INLINE_BYTES = 16 << 10
"""A body up to this is read in less time than it takes to hand it to a thread."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a body: rows stored, lines refused, and the first of those by line."""

    rows: int
    refused: int
    errors: tuple[LineError, ...]


class InfluxWriter:
    """See the module."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._tables = TableWriter(database)
        self._clock = clock
        self._reader = LineReader()
        self._reading = asyncio.Lock()

    async def write(self, body: bytes, unit: int, *, partial: bool = True) -> Written:
        """`unit`: nanoseconds of a time's unit. `partial` false: nothing is stored if a line is refused.

        Raises:
            Full, Unavailable, Fenced: as the database's `write`; writing the same lines again is harmless.
        """
        now_ns = self._clock.wall_ms() * 1_000_000
        async with self._reading:  # two at once would only take turns
            if len(body) <= INLINE_BYTES:
                lines = self._reader.read(body, unit=unit, now_ns=now_ns)
            else:
                lines = await asyncio.to_thread(self._reader.read, body, unit=unit, now_ns=now_ns)
        refused = Refused(lines.refusals, lambda at, field: _place(lines, at, field))
        stored = await self._tables.store(lines.groups, refused, partial=partial)
        errors = tuple(refused.refusals.described(lines.text)) if refused.count else ()
        return Written(stored, refused.count, errors)


def _place(lines: Lines, at: int, field: str | None) -> int:
    """Where in the text the field's value is, of the point whose line begins at `at`."""
    if field is None:
        return at
    try:
        point = read_point(lines.text, at, lines.unit)
    except Bad:
        return at
    found = () if isinstance(point, int) else point.fields
    return next((one.at for one in found if one.key == field), at)
