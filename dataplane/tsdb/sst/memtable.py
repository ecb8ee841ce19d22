"""A table's rows that are in no file yet: Arrow IPC messages, in the order in which they were written.

A message of 23 rows by 11 columns is one buffer of 1.9 KB, a batch of the same some fifty objects of 7 KB; and it is
what the log has written already. Sorting and merging wait for the flush, which sees all rows at once. Small messages
are joined as they come, sixteen at a time, each row a logarithmic number of times, for each costs a few hundred bytes
beside its values. An edge packs what is joined: 368 rows of ten signals, 20 KB, are 5 KB by zstd's first level, for 56
µs of processor time and 28 to unpack them. The message is packed as one, which is several times cheaper than column by
column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.order import OP_TYPE, PUT
from dataplane.tsdb.sst.writer import arrow_schema

MESSAGE_OVERHEAD_BYTES = 256
"""A message's own cost beside its bytes: the objects that hold it, and what the allocator rounds up."""
JOINED = 16
"""So many messages of a level become one of the next."""
LARGE_BYTES = 128 << 10
"""A message from this size on is joined no more."""
PACKED_COLUMN_BYTES = 1_536
"""The same for each column, where what is joined is packed: from there on it becomes little smaller by the row."""
PACKED_LEVEL = 1
"""Of zstd."""
PACKED_SHARE_MAX = 0.9
"""Of a message's bytes, what it is to be packed to; else it stays as it is."""


@dataclass(frozen=True, slots=True)
class Message:
    """Rows of one table. `body`: an Arrow IPC message of one batch with the columns of `schema`; where there is
    `unpacked`, its bytes before, the same packed by zstd."""

    schema: pa.Schema
    body: pa.Buffer | bytes
    unpacked: int | None = None

    @property
    def bytes(self) -> int:
        """That it holds in memory, about."""
        return len(self.body) + MESSAGE_OVERHEAD_BYTES

    def batch(self) -> pa.RecordBatch:
        """The rows; without a copy, where they are not packed."""
        body = self.body if self.unpacked is None else pa.decompress(self.body, self.unpacked, codec="zstd")
        return pa.ipc.read_record_batch(body, self.schema)

    def packed(self) -> Message:
        """The same rows, in less memory if they can be."""
        if self.unpacked is not None:
            return self
        # As bytes: of a buffer, pyarrow keeps the room that incompressible data would have taken.
        body = pa.Codec("zstd", compression_level=PACKED_LEVEL).compress(self.body, asbytes=True)
        if len(body) > PACKED_SHARE_MAX * len(self.body):
            return self
        return Message(self.schema, body, len(self.body))


def message_of(batch: pa.RecordBatch) -> Message:
    """A copy of the batch's rows."""
    return Message(batch.schema, batch.serialize())


class Memtable:
    """Rows, counted in bytes."""

    def __init__(self, *, packs: bool = False) -> None:
        """`packs`: what is joined is kept packed, and unpacked whenever rows are asked for."""
        self._packs = packs
        self._settled: list[Message] = []
        """Older than all in `_levels`."""
        self._levels: list[list[Message]] = [[]]
        """Newest in the first; in each, oldest first."""
        self._schema: pa.Schema | None = None
        """Of what is in `_levels`."""
        self.bytes = 0
        self.first_sequence: int | None = None
        """Of the WAL: the oldest record whose rows are here."""
        self.last_sequence: int | None = None

    def add(self, message: Message, sequence: int | None) -> None:
        """`sequence`: of the WAL's record; None: it is in none."""
        if self.first_sequence is None:
            self.first_sequence = sequence
        self.last_sequence = sequence if sequence is not None else self.last_sequence
        self.bytes += message.bytes
        if self._schema is not message.schema:
            if self._schema is not None and not self._schema.equals(message.schema):
                self._settle()  # rows that delete have a column more
            self._schema = message.schema
        self._levels[0].append(message)
        large = PACKED_COLUMN_BYTES * len(message.schema) if self._packs else LARGE_BYTES
        for level, messages in enumerate(self._levels):
            if len(messages) < JOINED and len(messages) * messages[-1].bytes < 2 * large:
                break
            whole = messages[0]
            if len(messages) > 1:
                whole = message_of(pa.concat_batches([each.batch() for each in messages]))
            is_large = whole.bytes >= large
            if is_large and self._packs:
                whole = whole.packed()
            self.bytes += whole.bytes - sum(each.bytes for each in messages)
            self._levels[level] = []
            if is_large:
                for older in reversed(self._levels[level + 1 :]):
                    self._settled += older
                    older.clear()
                self._settled.append(whole)
                break
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(whole)

    def messages(self) -> list[Message]:
        """All rows, oldest first."""
        return [*self._settled, *(each for level in reversed(self._levels) for each in level)]

    def parts(self) -> list[pa.Table]:
        """All rows, oldest first, each part in the columns that it was written with."""
        return parts_of(self.messages())

    def _settle(self) -> None:
        self._settled = self.messages()
        self._levels = [[]]


def parts_of(messages: Sequence[Message]) -> list[pa.Table]:
    """The rows of messages; neighbours of the same columns are one part."""
    found: list[pa.Table] = []
    run: list[pa.RecordBatch] = []
    for at, message in enumerate(messages):
        run.append(message.batch())
        if at + 1 == len(messages) or not message.schema.equals(messages[at + 1].schema):
            found.append(pa.Table.from_batches(run))
            run = []
    return found


def size_of(batch: pa.RecordBatch) -> int:
    """Bytes that the batch's message will hold in memory."""
    return int(pa.ipc.get_record_batch_size(batch)) + MESSAGE_OVERHEAD_BYTES


def joined(schema: TableSchema, parts: Sequence[pa.Table]) -> pa.Table:
    """All rows in the table's columns, with `__op_type` if some of them may delete. Parts may be of older versions of
    the table: names stay, types widen, and what has been added since is null."""
    target = arrow_schema(schema, deletes=any(OP_TYPE in part.column_names for part in parts))
    return pa.concat_tables([target.empty_table(), *(_as_of(target, part) for part in parts)])


def _as_of(target: pa.Schema, part: pa.Table) -> pa.Table:
    if part.schema.equals(target):
        return part
    for name in target.names:
        if name == OP_TYPE and name not in part.column_names:
            part = with_operation(part, PUT)
        elif name not in part.column_names:
            part = part.append_column(name, pa.nulls(len(part), target.field(name).type))
    return part.select(target.names).cast(target)


def with_operation(rows: pa.Table, operation: int) -> pa.Table:
    """`rows`, all of them put or all of them deleted (`order.PUT`, `order.DELETE`)."""
    return rows.append_column(OP_TYPE, pa.repeat(pa.scalar(operation, pa.uint8()), len(rows)))
