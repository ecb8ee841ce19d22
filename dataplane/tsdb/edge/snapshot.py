"""One moment of an edge's tables, for queries that read files while writes, flushes and uploads go on.

Taking one copies nothing: messages in memory never change, and files stay on the flash while a snapshot pins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dataplane.tsdb.query.engine import TableView
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.memtable import Message, parts_of


@dataclass(frozen=True, slots=True)
class Moment:
    """Of one table, as the store hands it out."""

    schema: TableSchema
    files: Sequence[FileMeta]
    messages: Sequence[Message]


class Snapshot(Mapping[str, TableView]):
    """Views by table name, each made when it is asked for: an edge has hundreds of tables, a query few."""

    def __init__(self, number: int, moments: Mapping[str, Moment]) -> None:
        self.number = number
        self._moments = moments

    def __getitem__(self, name: str) -> TableView:
        moment = self._moments[name]
        memory = [taken_in(moment.schema, part) for part in parts_of(moment.messages)]
        return TableView(moment.schema, moment.files, memory)

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)


class Pins:
    """Which snapshots are alive, and which files are to be removed once none of them has them."""

    def __init__(self) -> None:
        self._taken = 0
        self._alive: set[int] = set()
        self._waiting: list[tuple[int, str]] = []
        """Snapshots up to that number may have the file."""

    def take(self) -> int:
        """A new snapshot's number."""
        self._taken += 1
        self._alive.add(self._taken)
        return self._taken

    def release(self, number: int) -> list[str]:
        """The snapshot is over; files that may go now."""
        self._alive.discard(number)
        oldest = min(self._alive, default=self._taken + 1)
        free = [name for last, name in self._waiting if last < oldest]
        self._waiting = [entry for entry in self._waiting if entry[0] >= oldest]
        return free

    def removable(self, names: Sequence[str]) -> list[str]:
        """Those that may go now; the others wait for `release`."""
        if not self._alive:
            return list(names)
        self._waiting += [(self._taken, name) for name in names]
        return []
