"""From the WAL to object storage: one stream-set object at a time, committed through the ledger, then the WAL is
trimmed.

An object's name is its uploader's own (broker epoch, incarnation and counter), so that no two uploaders ever share one.
The floor sent with a commit is the number of the first WAL block that still holds something not in object storage: it
counts what is owed by closed partitions too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataplane.ledger.commands import CommittedObject, Range
from dataplane.ledger.object_names import object_key
from dataplane.stream.cache import CachedBatch
from dataplane.stream.objects import Section, build_aside
from dataplane.stream.partition import Partition
from dataplane.wal.base import Wal
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Fenced, Full, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

OBJECT_BYTES_MAX = 32 << 20
"""A single request uploads it on every cloud. Joining twice as much would hold up appends for twice as long; half as
much would need twice as many requests and ledger entries."""

PUT_ATTEMPTS_MAX = 8
RETRY_FIRST_MS = 100
RETRY_MAX_MS = 5_000


class Commit(Protocol):
    """Appends `objects-committed` to the ledger; returns None when accepted, else why not."""

    async def __call__(self, objects: Sequence[CommittedObject], floor: int) -> str | None: ...


async def put_object(store: ObjectStore, name: str, data: bytes, clock: Clock) -> None:
    """Create an object under a name that is the caller's alone, whatever becomes of single answers.

    Raises:
        Unavailable: not within PUT_ATTEMPTS_MAX attempts.
    """
    pause_ms = float(RETRY_FIRST_MS)
    for attempt in range(PUT_ATTEMPTS_MAX):
        try:
            return await store.put(name, data, if_absent=True)
        except AlreadyExists:
            return None  # nobody else uses this name: an earlier attempt of this very call, with these bytes
        except (Unavailable, Full) as error:
            # A full bucket is mended by others: until then it is one that does not answer.
            if attempt == PUT_ATTEMPTS_MAX - 1:
                raise OutcomeUnknown(f"object {name} could not be written: {error}", hint=error.hint) from error
            await clock.sleep_ms(pause_ms)
            pause_ms = min(pause_ms * 2, RETRY_MAX_MS)
    raise AssertionError  # the loop above returns or raises


@dataclass(slots=True)
class UploadCounters:
    """Of an uploader's life."""

    objects: int = 0
    bytes: int = 0
    failures: int = 0
    """Uploads that did not go through, and are tried again."""


@dataclass(frozen=True, slots=True)
class _Part:
    partition: Partition
    batches: list[CachedBatch]
    size: int


class Uploader:
    """One a broker epoch. `partitions` yields every partition that may hold un-uploaded records, closed ones that still
    owe included.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        wal: Wal,
        partitions: Callable[[], Iterable[Partition]],
        commit: Commit,
        name_prefix: str,
        clock: Clock,
        interval_ms: float,
        bytes_trigger: int,
    ) -> None:
        self._store = store
        self._wal = wal
        self._partitions = partitions
        self._commit = commit
        self._name_prefix = name_prefix
        self._clock = clock
        self._interval_ms = interval_ms
        self._bytes_trigger = bytes_trigger
        self._counter = 0
        self.uploads = UploadCounters()
        self._last_block = 0
        self._pending_bytes = 0
        self._kick = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def acked(self, size: int, block: int) -> None:
        """Bytes in WAL block `block` were acked: upload now if there are enough, else by the interval."""
        self._last_block = block
        self._pending_bytes += size
        if self._pending_bytes >= self._bytes_trigger:
            self._kick.set()

    @property
    def behind(self) -> bool:
        """More is waiting than starts an upload: what is not urgent should wait."""
        return self._pending_bytes >= self._bytes_trigger

    def kick(self) -> None:
        """Upload now: something is owed, or the WAL is filling."""
        self._kick.set()

    async def run(self) -> None:
        """Upload until cancelled, or until this epoch is fenced (raises Fenced)."""
        while True:
            try:
                async with asyncio.timeout(self._interval_ms / 1000):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()
            try:
                while await self.upload_once() and self._backlog():
                    pass
            except Unavailable as error:
                # The bucket is away: the WAL keeps what is acked, and pushes back when it is full.
                log.warning("upload-unavailable", extra={"error": str(error)})
                self.uploads.failures += 1
                await self._clock.sleep_ms(RETRY_FIRST_MS * 5)
                self._kick.set()

    async def upload_once(self) -> int:
        """Upload one object's worth; returns its bytes, 0 when there was nothing.

        Raises:
            Fenced: the ledger does not accept this epoch's commit.
            Unavailable: put or commit did not go through; nothing is lost, try again.
        """
        async with self._one_at_a_time:
            parts, sections, ranges = self._collect()
            if not parts:
                return 0
            self._pending_bytes = 0
            data = await build_aside(sections)
            self._counter += 1
            name = object_key(self._name_prefix, self._counter)
            await put_object(self._store, name, data, self._clock)
            after = {part.partition.id: part.batches[-1].end for part in parts}
            floor = self._floor(after)
            refused = await self._commit_for_sure([CommittedObject(name, len(data), tuple(ranges))], floor)
            if refused is not None:
                raise Fenced(f"the ledger refused a commit: {refused}")
            for part in parts:
                part.partition.mark_uploaded(part.batches[-1].end, part.size)
                if part.partition.closed and part.partition.unuploaded_bytes == 0:
                    part.partition.drop_cache()
            await self._wal.trim(floor)
            self.uploads.objects += 1
            self.uploads.bytes += len(data)
            log.debug("uploaded", extra={"bytes": len(data), "partitions": len(parts), "object": name, "floor": floor})
            return len(data)

    def _backlog(self) -> bool:
        """Whether another object is due at once: a closed partition owes, or half an object's worth has gathered. Under
        steady traffic there is always something new, and an object a pass would be thousands of small ones."""
        owed = 0
        for partition in self._partitions():
            if partition.unuploaded_bytes and partition.closed:
                return True
            owed += partition.unuploaded_bytes
        return owed >= OBJECT_BYTES_MAX // 2

    async def _commit_for_sure(self, objects: Sequence[CommittedObject], floor: int) -> str | None:
        """Commit, and ask again while the outcome is not known: the same ranges in another object would be refused if
        these are there."""
        while True:
            try:
                return await self._commit(objects, floor)
            except Unavailable as error:
                log.warning("commit-unanswered", extra={"error": str(error)})
                await self._clock.sleep_ms(RETRY_FIRST_MS * 5)

    def _collect(self) -> tuple[list[_Part], list[Section], list[Range]]:
        parts: list[_Part] = []
        sections: list[Section] = []
        ranges: list[Range] = []
        room = OBJECT_BYTES_MAX
        for partition in self._partitions():
            batches, producers = partition.uploadable(room)
            if not batches:
                continue
            size = sum(len(b.data) for b in batches)
            parts.append(_Part(partition, batches, size))
            sections.append(
                Section(
                    stream=partition.id,
                    start=batches[0].base,
                    end=batches[-1].end,
                    batches=[(b.base, b.end, b.max_timestamp, b.data) for b in batches],
                    producers=producers.dump() if producers is not None else None,
                )
            )
            ranges.append(Range(partition.id, partition.epoch, batches[0].base, batches[-1].end))
            room -= size
            if room <= 0:
                break
        return parts, sections, ranges

    def _floor(self, after: dict[int, int]) -> int:
        """First block still needed once the offsets in `after` are committed. Taken before the commit is sent: what is
        acked meanwhile lies above it.

        The WAL may count a block as acked before the partitions have heard of it. While anything is under way, only the
        last block that they
        heard of is a bound; blocks are heard of in order, and that one perhaps in part.
        """
        floor = self._wal.last_acked + 1
        for partition in self._partitions():
            if partition.next_offset > partition.high_watermark:
                floor = min(floor, max(self._last_block, 1))
            block = partition.oldest_block(after.get(partition.id, partition.uploaded))
            if block is not None:
                floor = min(floor, block)
        return floor
