"""An edge's files on their way into a topic instead of a bucket (`schema/records.py`): each is one record, and leaves
the flash once the brokers have it for certain.

One after the other, in the order of writing: where a table merges rows, the later file wins. A file may be sent again
after a power cut; the cloud takes it once. What the cloud refuses of a topic it says in its quarantine: the edge, whose
part ends at the brokers' ack, does not hear of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.ship_bytes import chunks
from dataplane.tsdb.edge.throttle import Throttle
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.records import sst_record
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import Corrupt, Invalid, NotFound, YunheError

log = logging.getLogger(__name__)


class RecordSink(Protocol):
    """A topic, written to."""

    async def send(self, key: bytes, headers: Mapping[str, bytes], value: bytes) -> None:
        """Returns once the record is as durable as the topic is.

        Raises:
            Invalid: the brokers will never take it: it is too large. Unavailable: they may have it, or not.
        """
        ...


@dataclass(frozen=True, slots=True)
class TopicUploadSettings:
    """Of one edge."""

    database: str
    """The cloud database that consumes the topic."""
    bytes_per_s: int | None = None
    """Cap on what is sent; None: what the line takes."""
    interval_ms: float = 1_000
    """Between two looks at what is to be sent."""
    failed_ms_max: float = 60_000


@dataclass(slots=True)
class TopicShipCounters:
    """Since the start."""

    files_sent: int = 0
    bytes_sent: int = 0
    failed_turns: int = 0
    files_aside: int = 0
    """Kept on the flash, for the topic never takes them."""
    waiting_files: int = 0


class TopicShipper:
    """See the module. One of an edge, and the only one that removes its files."""

    def __init__(
        self,
        database: EdgeDatabase,
        sink: RecordSink,
        key: Ed25519PrivateKey,
        settings: TopicUploadSettings,
        *,
        clock: Clock,
        rng: Rng,
        counters: TopicShipCounters | None = None,
    ) -> None:
        """`counters`: those to count on, of an earlier one of the same process."""
        self._database = database
        self._sink = sink
        self._key = key
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._throttle = Throttle(settings.bytes_per_s, clock)
        self._task: asyncio.Task[None] | None = None
        self.counters = TopicShipCounters() if counters is None else counters

    async def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, wherever it is: the next life goes on from there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.turn()
                failures, pause_ms = 0, self._settings.interval_ms
            except YunheError as error:
                log.warning("topic-ship-waits: %d files wait: %s", self.counters.waiting_files, error)
                self.counters.failed_turns += 1
                first, longest = self._settings.interval_ms, self._settings.failed_ms_max
                pause_ms = backoff_ms(self._rng, failures, first_ms=first, max_ms=longest)
                failures = min(failures + 1, 20)
            await self._clock.sleep_ms(pause_ms)

    async def turn(self) -> int:
        """Send every file that waits; returns how many.

        Raises:
            Unavailable: the brokers do not answer, or the flash errs; what was sent is removed.
        """
        waiting = await self._database.with_store(
            lambda store: [
                (meta, store.outbox.schema(meta), store.outbox.options(meta.table).upload_priority)
                for meta in store.outbox.unshipped()
            ]
        )
        waiting.sort(key=lambda item: (-item[2], item[0].sequence))
        sent = 0
        for at, (meta, schema, _) in enumerate(waiting):
            self.counters.waiting_files = len(waiting) - at
            sent += await self._send(meta, schema)
        self.counters.waiting_files = 0
        return sent

    async def _send(self, meta: FileMeta, schema: TableSchema) -> bool:
        """Whether it is in the topic, and gone from here."""
        try:
            data = b"".join([chunk async for chunk in chunks(self._database, meta)])
            edge = meta.origin
            headers, value = sst_record(
                self._settings.database, edge, meta, schema, data, self._key, self._clock.wall_ms()
            )
            await self._throttle.take(len(value))
            await self._sink.send(edge.encode(), headers, value)
        except NotFound:
            return False  # dropped with its table
        except (Corrupt, Invalid) as error:
            log.error("topic-ship-aside: file %s stays here: %s", meta.file_id, error)
            why = str(error)
            await self._database.with_store(lambda store: store.outbox.note({"aside": {meta.file_id: why}}))
            self.counters.files_aside += 1
            return False
        await self._database.with_store(lambda store: store.forget([meta.file_id]))
        self.counters.files_sent += 1
        self.counters.bytes_sent += len(value)
        return True
