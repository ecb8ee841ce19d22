"""A table of small records in an internal partition: each put is durable before it counts, whoever owns the partition
next reads all of it back, and now and then everything is written once more and the log is trimmed to there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from dataplane.broker.engine import PartitionLog
from dataplane.stream.batch import iter_batches
from dataplane.stream.encode import KeyValue, decode_batch, encode_batch
from providers.base.clock import Clock

SNAPSHOT_PUTS = 5_000
"""Puts between two snapshots: what a load reads at most, beside the snapshot itself."""
BATCH_BYTES = 512 << 10
BATCH_RECORDS = 500
LOAD_BYTES = 4 << 20
OWED_WAIT_MS = 50


class TableLog:
    """See the module. `everything`: the records of all that is in the table now."""

    def __init__(
        self, partition_log: PartitionLog, everything: Callable[[], Iterable[KeyValue]], *, clock: Clock
    ) -> None:
        self._log = partition_log
        self._everything = everything
        self._clock = clock
        self._puts = 0
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._snapshotting = asyncio.Lock()

    @property
    def epoch(self) -> int:
        """The ownership under which this is written."""
        return self._log.leader_epoch

    async def load(self, apply: Callable[[bytes, bytes | None], None]) -> None:
        """Tell `apply` of every record, oldest first.

        Raises:
            KafkaError: they cannot be read now.
        """
        at = self._log.start_offset
        while at < self._log.high_watermark:
            data = await self._log.read(at, LOAD_BYTES, minimum_one=True)
            if not data:
                # Owed, and nobody has it at hand: it is being uploaded.
                await self._clock.sleep_ms(OWED_WAIT_MS)
            for header, batch in iter_batches(data):
                for _, (key, value) in decode_batch(batch):
                    apply(key, value)
                at = header.base_offset + header.last_offset_delta + 1

    async def put(self, records: Sequence[KeyValue], apply: Callable[[], None]) -> None:
        """Make records durable, and then `apply` them to the table.

        Raises:
            KafkaError: they are not, and must not be applied.
        """
        async with self._snapshotting:
            # Held only to get past a snapshot: puts themselves run side by side and share the WAL's blocks.
            self._under_way += 1
            self._quiet.clear()
        try:
            for batch in _batches(records):
                await self._log.append(encode_batch(batch, self._clock.wall_ms()))
            apply()
        finally:
            self._under_way -= 1
            self._puts += 1
            if not self._under_way:
                self._quiet.set()

    @property
    def long(self) -> bool:
        """It is time for a snapshot."""
        return self._puts >= SNAPSHOT_PUTS

    async def snapshot(self, trim: Callable[[int], Awaitable[object]]) -> None:
        """Write everything once more, and `trim` what is before. Puts wait meanwhile, so that none lies before the
        snapshot without being in it.

        Raises:
            KafkaError: nothing was trimmed.
        """
        self._puts = 0
        async with self._snapshotting:
            await self._quiet.wait()
            start = self._log.high_watermark
            for batch in _batches(list(self._everything())):
                await self._log.append(encode_batch(batch, self._clock.wall_ms()))
        await trim(start)


def _batches(records: Sequence[KeyValue]) -> Iterable[Sequence[KeyValue]]:
    batch: list[KeyValue] = []
    size = 0
    for key, value in records:
        more = len(key) + len(value or b"")
        if batch and (len(batch) >= BATCH_RECORDS or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += more
    if batch:
        yield batch
