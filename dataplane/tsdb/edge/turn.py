"""A turn: the rows of many writes, one batch a table, in as few records of the log as its bound allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dataplane.tsdb.edge.intake import Intake
from dataplane.tsdb.schema.tables import TableSchema, WalSync
from dataplane.tsdb.sst.memtable import Memtable, Message


@dataclass(slots=True)
class OpenTable:
    """What is at hand of a table that is there."""

    schema: TableSchema
    intake: Intake
    memtable: Memtable

    @property
    def share(self) -> float:
        """Of what it may hold in memory before it pushes back, what it holds."""
        return self.memtable.bytes / self.schema.options.memtable_bytes_max

    @property
    def logged(self) -> bool:
        """Whether its rows go into the log."""
        return self.schema.options.wal is not WalSync.OFF


@dataclass(slots=True)
class TurnBatch:
    """One table's rows of a turn, joined where several writes have some."""

    table: OpenTable
    deletes: bool
    pieces: list[pa.RecordBatch]

    def message(self) -> Message:
        """A copy of the rows, for the log and for memory."""
        columns = self.table.intake.columns(deletes=self.deletes)
        whole = self.pieces[0]
        if len(self.pieces) > 1:
            whole = pa.concat_batches([pa.RecordBatch.from_arrays(p.columns, schema=columns) for p in self.pieces])
        return Message(columns, whole.serialize())


@dataclass(slots=True)
class Group:
    """Writes that become one record, or, of tables without a log, none."""

    logged: bool
    bytes: int = 0
    writes: list[int] = field(default_factory=list)
    batches: list[TurnBatch] = field(default_factory=list)
    newest: dict[str, TurnBatch] = field(default_factory=dict)

    def add(self, write: int, batches: Sequence[tuple[OpenTable, bool, pa.RecordBatch]], size: int) -> None:
        """One write's batches, with whether each of them deletes; `size`: their bytes."""
        self.writes.append(write)
        self.bytes += size
        for table, deletes, batch in batches:
            last = self.newest.get(table.schema.name)
            # A delete has its place between the rows before it and those after it: nothing is joined across it.
            if last is None or last.deletes is not deletes:
                last = self.newest[table.schema.name] = TurnBatch(table, deletes, [])
                self.batches.append(last)
            last.pieces.append(batch)
