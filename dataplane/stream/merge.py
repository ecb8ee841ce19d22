"""Merges a stream's extents into an object of its own, piece by piece: no more of them is in memory than a few pieces.

Blocks are checked as they are read; small ones are joined. The idempotent producers' state at the end of the merged
range is carried over: it is the newest that the extents carry, and what the batches behind it say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from dataplane.ledger.state import Extent
from dataplane.stream.batch import iter_batches
from dataplane.stream.objects import BLOCK_BYTES, ObjectWriter
from dataplane.stream.producers import ProducerTable
from dataplane.stream.reader import ObjectReader
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Full, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore

PUT_ATTEMPTS_MAX = 3
"""Each reads the extents again. A merge that fails is tried again anyway, by a later turn."""
RETRY_MS = 1_000

Pace = Callable[[int], Awaitable[None]]
"""Called with the bytes just read; returns when more may be."""


class Merge:
    """One merge of `extents`, which follow each other; what lies below `start` is left out. `size`: the object's bytes,
    once `chunks` has ended.
    """

    def __init__(self, reader: ObjectReader, stream: int, extents: Sequence[Extent], start: int, pace: Pace) -> None:
        self._reader = reader
        self._stream = stream
        self._extents = extents
        self._start = start
        self._pace = pace
        self.size = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The object's bytes, in order.

        Raises, while it is read:
            Corrupt: a block fails its checksum; nothing may be concluded from what came before.
            NotFound, Unavailable: as the store says.
        """
        size = 0
        writer = ObjectWriter()
        table, known_from = await self._producers()
        pending: list[bytes] = []
        held, start, newest = 0, self._extents[0].start, -1
        for i, extent in enumerate(self._extents):
            async for entry, block in self._reader.scan(extent, self._stream, max(self._start, extent.start)):
                if table is not None and i >= known_from:
                    for header, _ in iter_batches(block):
                        table.record(header, header.base_offset)
                pending.append(block)
                held += len(block)
                newest = max(newest, entry.max_timestamp)
                if held >= BLOCK_BYTES:
                    made = writer.block(self._stream, start, entry.end, newest, pending)
                    size += len(made)
                    yield made
                    await self._pace(held)
                    pending, held, start, newest = [], 0, entry.end, -1
        if pending:
            made = writer.block(self._stream, start, self._extents[-1].end, newest, pending)
            size += len(made)
            yield made
        if table is not None:
            writer.producers(table.dump())
        tail = writer.finish()
        yield tail
        self.size = size + len(tail)

    async def _producers(self) -> tuple[ProducerTable | None, int]:
        """The newest state that the extents carry, and the index of the first extent behind it; None when they carry
        none: then a reader finds an older one, and goes through all batches."""
        for i in range(len(self._extents) - 1, -1, -1):
            dumped = await self._reader.producers(self._extents[i], self._stream)
            if dumped is not None:
                return ProducerTable.load(dumped), i + 1
        return None, 0


async def store(bucket: ObjectStore, name: str, merge: Merge, clock: Clock) -> None:
    """Write the merged object under a name that is the caller's alone.

    Raises:
        Unavailable: not within PUT_ATTEMPTS_MAX attempts. NotFound, Corrupt: as `Merge.chunks`.
    """
    for attempt in range(PUT_ATTEMPTS_MAX):
        try:
            return await bucket.put_stream(name, merge.chunks(), if_absent=True)
        except AlreadyExists:
            return None  # an earlier attempt of this very call, with these bytes: extents do not change
        except (Unavailable, Full) as error:
            if attempt == PUT_ATTEMPTS_MAX - 1:
                raise OutcomeUnknown(f"object {name} could not be written: {error}", hint=error.hint) from error
            await clock.sleep_ms(RETRY_MS)
    raise AssertionError  # the loop above returns or raises
