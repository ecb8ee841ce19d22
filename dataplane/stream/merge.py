"""Merges a stream's extents into an object of its own, piece by piece: no more of them is in memory than a few pieces.

Blocks are checked as they are read; small ones are joined; batches may be rewritten on the way (`cleaning.py`). The
idempotent producers' state at the end of the merged range is carried over: it is the newest that the extents carry, and
what the batches behind it say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from dataplane.ledger.state import Extent
from dataplane.stream.batch import BatchHeader, Buffer, iter_batches, parse_header
from dataplane.stream.objects import BLOCK_BYTES, ObjectWriter
from dataplane.stream.producers import ProducerTable
from dataplane.stream.reader import ObjectReader
from dataplane.stream.transactions import joined
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Full, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore

PUT_ATTEMPTS_MAX = 3
"""Each reads the extents again. A merge that fails is tried again anyway, by a later turn."""
RETRY_MS = 1_000

Pace = Callable[[int], Awaitable[None]]
"""Called with the bytes just read; returns when more may be."""


T = TypeVar("T")


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    ahead = list(items)
    return zip(ahead, [False] * (len(ahead) - 1) + [True], strict=True) if ahead else iter(())


class Rewrite(Protocol):
    """What becomes of a batch: the same object, another, or None for nothing. Never nothing where it is the `last`."""

    async def __call__(self, header: BatchHeader, batch: Buffer, *, last: bool) -> Buffer | None: ...


class Merge:
    """One merge of `extents`, which follow each other; what lies below `start` is left out. `size`: the object's bytes,
    once `chunks` has ended. With `rewrite` batches may vanish, so the producers' state has to be known: `before` says
    what it is at an offset, in case the extents do not carry a later one.
    """

    def __init__(
        self,
        reader: ObjectReader,
        stream: int,
        extents: Sequence[Extent],
        start: int,
        pace: Pace,
        *,
        rewrite: Rewrite | None = None,
        before: tuple[ProducerTable, int] | None = None,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._extents = extents
        self._start = start
        self._pace = pace
        self._rewrite = rewrite
        self._before = before
        self.size = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The object's bytes, in order.

        Raises, while it is read:
            Corrupt: a block fails its checksum; nothing may be concluded from what came before.
            NotFound, Unavailable: as the store says.
        """
        size = 0
        writer = ObjectWriter()
        table, known_at = await self._producers()
        pending: list[Buffer] = []
        held, start, newest = 0, self._extents[0].start, -1
        for extent in self._extents:
            async for entry, block in self._reader.scan(extent, self._stream, max(self._start, extent.start)):
                if table is not None and entry.end > known_at:
                    for header, whole in iter_batches(block):
                        if header.base_offset >= known_at:
                            table.record(header, header.base_offset, whole)
                if self._rewrite is None:
                    pending.append(block)
                    held += len(block)
                    newest = max(newest, entry.max_timestamp)
                else:
                    for batch in await self._rewritten(block, entry.end == self._extents[-1].end):
                        pending.append(batch)
                        held += len(batch)
                        newest = max(newest, parse_header(batch).max_timestamp)
                    await self._pace(len(block))
                if held >= BLOCK_BYTES:
                    made = writer.block(self._stream, start, entry.end, newest, pending)
                    size += len(made)
                    yield made
                    if self._rewrite is None:
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

    async def _rewritten(self, block: bytes, last_block: bool) -> list[Buffer]:
        assert self._rewrite is not None
        made = [await self._rewrite(*of, last=last and last_block) for of, last in with_last(iter_batches(block))]
        return [batch for batch in made if batch is not None]

    async def _producers(self) -> tuple[ProducerTable | None, int]:
        """The newest state that is known within the extents, and at which offset; None when there is none: then a
        reader finds an older one, and goes through all batches."""
        told, at = [], 0
        for extent in self._extents:
            dumped = await self._reader.producers(extent, self._stream)
            if dumped is not None:
                told.append(dumped)
                at = extent.end
        # Of aborted transactions each part tells only its own: the merged one tells those of all.
        everything = joined(told)
        if told and (self._before is None or at > self._before[1]):
            return ProducerTable.load(everything, at), at
        if self._before is None:
            return None, 0
        table = self._before[0].copy()
        table.transactions.also(everything)
        return table, self._before[1]


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
