"""An edge's upload queue: files of its flash go to the bucket, a signed batch tells the cloud of them, and what the
cloud acks is removed here. Open this file first.

    file ──► sst/… ──► noted: which files, which number ──► shipped/<edge>/<number> ──► acked/… ──► removed
    (put where     `ship_state.py`: survives a power cut       imported ──────────────────────────────┘
     nothing is)   `ship_plan.py`: what goes next              refused: at fault set aside, the others again

Every step is noted on the flash before the next one depends on it, and may be done twice: a power cut anywhere costs
time. Nothing is removed from the flash that the cloud has not acked, however full the flash; what the cloud refuses for
good is kept up to a bound (`UploadSettings.aside_bytes_max`), and said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.tsdb.edge import ship_state as noted
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.outbox import Outbox
from dataplane.tsdb.edge.ship_batch import batch_bytes, is_ours
from dataplane.tsdb.edge.ship_bytes import chunks, intact
from dataplane.tsdb.edge.ship_parts import KeptUpload
from dataplane.tsdb.edge.ship_plan import Fault, Limits, Pending, batch_of, fault, over_bound
from dataplane.tsdb.edge.ship_queue import Queue
from dataplane.tsdb.edge.ship_settings import ShipCounters, UploadSettings
from dataplane.tsdb.edge.ship_state import Shipment
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.edge.throttle import Throttle
from dataplane.tsdb.edge.uplink import Uplink
from dataplane.tsdb.schema.files import (
    BATCH_BYTES_MAX,
    FRESH_ID,
    FileMeta,
    ack_key,
    answer,
    batch_key,
    numbered_prefixes,
    sst_key,
)
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import AlreadyExists, Corrupt, NotFound, YunheError
from providers.base.objects import ObjectStore

__all__ = ["ShipCounters", "Shipper", "UploadSettings"]

T = TypeVar("T")
log = logging.getLogger(__name__)

DESCRIBED_BYTES_MAX = BATCH_BYTES_MAX * 3 // 4
"""Of what a batch says of its files."""
ACK_BYTES_MAX = 4 << 20


class Shipper:
    """See the module. One of an edge, and the only one that removes its files."""

    def __init__(
        self,
        database: EdgeDatabase,
        bucket: ObjectStore,
        key: Ed25519PrivateKey,
        upload: UploadSettings,
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._database = database
        self._key = key
        self._settings = upload
        self._clock = clock
        self._rng = rng
        self._uplink = Uplink(bucket, Throttle(upload.bytes_per_s, clock), clock, rng, upload.tries)
        self._edge = ""
        self._files = Queue()
        self._open: dict[int, Shipment] = {}
        self._there: set[int] = set()
        """Open batches that are in the bucket for certain."""
        self._first_sent_ms: float | None = None
        """Of the files that are sent and in no batch."""
        self._limit = upload.batch_files_max
        self._refused_in_a_row = 0
        self._may_close_ms = 0.0
        self._ask_ms = 0.0
        self._asked_in_a_row = 0
        self._counters = ShipCounters()
        self._began = False
        self._looked_ms = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, wherever it is: the next life goes on from there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def counters(self) -> ShipCounters:
        """As of now."""
        found, now = self._counters, self._clock.monotonic_ms()
        found.bytes_sent, found.requests = self._uplink.bytes, self._uplink.requests
        found.retries = self._uplink.retries
        found.waiting_files = len(self._files.pending)
        found.waiting_bytes = sum(file.meta.size for file in self._files.pending.values())
        found.open_batches = len(self._open)
        found.oldest_unacked_ms = now - min((file.seen_ms for file in self._files.pending.values()), default=now)
        return found

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                more = await self.turn()
                failures = 0
                await self._clock.sleep_ms(0 if more else self._settings.interval_ms)
                continue
            except YunheError as error:
                log.warning("ship-waits: %d files wait: %s", len(self._files.pending), error)
            except Exception:  # a bug, or an SDK's own error: what waits is not lost by it
                log.exception("ship-waits: %d files wait", len(self._files.pending))
            self._counters.failed_turns += 1
            first, longest = self._settings.interval_ms, self._settings.failed_ms_max
            await self._clock.sleep_ms(backoff_ms(self._rng, failures, first_ms=first, max_ms=longest))
            failures = min(failures + 1, 20)

    async def turn(self) -> bool:
        """One look: what is new, what the cloud has answered, a few files, a batch if one is due. Whether there is more
        to do at once.

        Raises:
            Unavailable: the bucket refuses for now, or the flash errs. Full: the flash is, to the last byte.
        """
        await self._look()
        for number in sorted(self._open.keys() - self._there):
            await self._put_batch(self._open[number])
        await self._hear()
        await self._forget()
        await self._send()
        return await self._close_batch() or (self._files.to_send > 0 and len(self._files.sent) < self._limit)

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        """Files that came since the last look, and those that went with their table."""
        now = self._clock.monotonic_ms()
        if self._began and self._files.to_send and now - self._looked_ms < self._settings.interval_ms:
            return
        known, began = set(self._files.pending), self._began

        def look(outbox: Outbox) -> tuple[set[str], list[Pending]]:
            metas = outbox.unshipped()
            batches = {file_id: s.number for s in outbox.state.open.values() for file_id in s.file_ids}
            fresh = [self._seen(outbox, m, batches, now, began) for m in metas if m.file_id not in known]
            return known - {meta.file_id for meta in metas}, fresh

        gone, fresh = await self._outbox(look)
        for file_id in gone:
            self._files.drop(file_id)
        for file in fresh:
            self._files.add(file)
        if not began:
            self._edge, self._open = await self._outbox(lambda outbox: (outbox.edge, dict(outbox.state.open)))
            await self._bound_aside()
        self._began, self._looked_ms = True, now

    @staticmethod
    def _seen(outbox: Outbox, meta: FileMeta, batches: Mapping[str, int], now_ms: float, began: bool) -> Pending:
        options = outbox.options(meta.table)
        batch = batches.get(meta.file_id, 0)
        return Pending(
            meta,
            options.upload_priority,
            merges=not options.append_mode,
            seen_ms=now_ms,
            there=batch > 0,
            unsure=not began,
            batch=batch,
        )

    async def _send(self) -> None:
        # Not more than a batch holds: while batches wait for answers, what is sent would only wait in the bucket.
        room = min(self._settings.files_at_once, self._limit - len(self._files.sent))
        files = self._files.take(room)
        results = await asyncio.gather(*(self._send_one(file) for file in files), return_exceptions=True)
        for file, result in zip(files, results, strict=True):
            if isinstance(result, BaseException):
                self._files.put_back(file)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _send_one(self, file: Pending) -> None:
        meta = file.meta
        key = sst_key(self._settings.database, meta.table, meta.file_id)
        try:
            await self._uplink.put_file(
                key,
                meta.size,
                lambda: chunks(self._database, meta),
                look_first=file.unsure,
                progress=lambda: self._progress(meta.file_id),
            )
        except NotFound:
            self._files.drop(meta.file_id)  # its table was dropped meanwhile
            return
        except Corrupt as error:
            await self._note_aside({meta.file_id: str(error)})
            return
        except AlreadyExists:
            await self._rename(meta.file_id)  # nobody's file but a fault of the store's: it has to be another name
            return
        self._files.is_there(file)
        self._counters.files_sent += 1
        if self._first_sent_ms is None:
            self._first_sent_ms = self._clock.monotonic_ms()

    async def _progress(self, file_id: str) -> KeptUpload:
        upload = await self._outbox(lambda outbox: outbox.state.uploads.get(file_id))
        return KeptUpload(file_id, upload, self._note, self._uplink.pay)

    # ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _close_batch(self) -> bool:
        """Close a batch if one is due; whether there was one."""
        now = self._clock.monotonic_ms()
        if now < self._may_close_ms or len(self._open) >= self._settings.batches_open_max:
            return False
        sent = [file.meta.size for file in self._files.sent.values()]
        waited = self._first_sent_ms is not None and now - self._first_sent_ms >= self._settings.interval_ms
        full = len(sent) >= self._limit or sum(sent) >= self._settings.batch_bytes_max
        if not sent or not (full or waited or not self._files.to_send):
            return False
        number = await self._next_number()
        limits = Limits(self._limit, self._settings.batch_bytes_max, DESCRIBED_BYTES_MAX)

        def make(outbox: Outbox) -> Shipment | None:
            pending = [file for file in self._files.pending.values() if outbox.meta(file.meta.file_id)]
            schemas = {(f.meta.table, f.meta.fingerprint): outbox.schema(f.meta) for f in pending if f.there}
            files = batch_of(pending, limits, schemas, now)
            if not files:
                return None  # all of them wait for older ones' acks
            made = Shipment(number, self._clock.wall_ms(), tuple(file.meta.file_id for file in files))
            outbox.note(noted.batch_made(made))
            return made

        shipment = await self._outbox(make)
        if shipment is None:
            return False
        self._open[number] = shipment
        self._files.batched(shipment.file_ids, number)
        self._first_sent_ms = now if self._files.sent else None
        self._counters.batches += 1
        await self._put_batch(shipment)
        return True

    async def _put_batch(self, shipment: Shipment) -> None:
        """See to it that the batch is in the bucket, whoever put it there."""
        number, database = shipment.number, self._settings.database

        data = await self._outbox(lambda outbox: batch_bytes(outbox, shipment, database, self._key))
        if data is None:  # dropped with their tables: the number is the next batch's, unless this one was put
            await self._withdraw(shipment, number)
            return
        there = await self._uplink.put_batch(batch_key(database, self._edge, number), data)
        if there == data or is_ours(there, shipment, database, self._edge, self._key):
            self._there.add(number)
            self._ask_soon()
            log.info(
                "shipped: batch %d, %d files; %d files wait, %d bytes sent so far",
                number,
                len(shipment.file_ids),
                len(self._files.pending) - sum(len(s.file_ids) for s in self._open.values()),
                self._uplink.bytes,
            )
            return
        log.error(
            "ship-number-taken: batch %d of edge %s is another's; is there another edge of that name?",
            number,
            self._edge,
        )
        await self._withdraw(shipment, await self._free_number(number + 1))

    async def _withdraw(self, shipment: Shipment, next_number: int) -> None:
        await self._note(noted.batch_withdrawn(shipment, next_number))
        self._reopen(shipment)

    def _reopen(self, shipment: Shipment) -> list[Pending]:
        """The batch is over, and none of its files is acked."""
        self._open.pop(shipment.number, None)
        self._there.discard(shipment.number)
        files = self._files.unbatched(shipment.file_ids)
        if files and self._first_sent_ms is None:
            self._first_sent_ms = self._clock.monotonic_ms()
        return files

    async def _next_number(self) -> int:
        """The catalog's, or where there is none, the first that nobody has used or been answered for."""
        return await self._outbox(lambda outbox: outbox.state.next_number) or await self._free_number(1)

    async def _free_number(self, least: int) -> int:
        """The first number from `least` on behind every batch and every ack of this edge in the bucket."""
        last = least - 1
        for prefix in numbered_prefixes(self._settings.database, self._edge):
            last = await self._uplink.last_number(prefix, last)
        return last + 1

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hear(self) -> None:
        """What the cloud says of open batches: it answers in the order of their numbers."""
        while self._open and self._clock.monotonic_ms() >= self._ask_ms:
            shipment = self._open[min(self._open)]
            data = await self._uplink.get(ack_key(self._settings.database, self._edge, shipment.number), ACK_BYTES_MAX)
            if data is None:
                first, longest = self._settings.interval_ms, self._settings.answer_ms_max
                pause = min(first * 2 ** min(self._asked_in_a_row, 20), max(first, longest))
                self._ask_ms = self._clock.monotonic_ms() + pause
                self._asked_in_a_row += 1
                return
            said = answer(data, shipment.number)
            self._asked_in_a_row = 0
            if said.refused is None:
                await self._imported(shipment)
            else:
                await self._refused(shipment, said.refused, said.files)

    def _ask_soon(self) -> None:
        self._ask_ms, self._asked_in_a_row = 0.0, 0

    async def _imported(self, shipment: Shipment) -> None:
        await self._note(noted.batch_imported(shipment, self._clock.wall_ms()))
        files = self._reopen(shipment)
        for file in files:
            self._files.drop(file.meta.file_id)
        self._counters.batches_imported += 1
        self._counters.files_acked += len(files)
        self._counters.bytes_acked += sum(file.meta.size for file in files)
        self._limit = min(self._limit * 2, self._settings.batch_files_max)
        self._refused_in_a_row = 0
        log.info("acked: batch %d, %d files; %d files wait", shipment.number, len(files), len(self._files.pending))

    async def _refused(self, shipment: Shipment, reason: str, whys: Mapping[str, str]) -> None:
        log.error("ship-refused: batch %d: %s", shipment.number, reason)
        copies = await self._outbox(lambda outbox: dict(outbox.state.copies))
        aside: dict[str, str] = {}
        again: list[str] = []
        for file_id in shipment.file_ids:
            file, why = self._files.pending.get(file_id), whys.get(file_id)
            if file is None or why is None:
                continue
            whole = await intact(self._database, file.meta)
            fresh = why.endswith(FRESH_ID)
            if fault(fresh, whole, copies.get(file_id, 0), self._settings.copies_max) is Fault.AGAIN:
                again.append(file_id)
            else:
                aside[file_id] = why if whole or not fresh else f"it is damaged on the flash; {why}"
        await self._note(noted.batch_refused(shipment, aside))
        files = self._reopen(shipment)
        for file_id in aside:
            self._files.drop(file_id)
        self._counters.batches_refused += 1
        if not aside and not again:
            self._wait_refused(files)
        for file_id in again:
            await self._rename(file_id)
        await self._bound_aside()

    def _wait_refused(self, files: list[Pending]) -> None:
        """Nobody says which file is at fault, or it is none: a key that the cloud does not know, a table that is not
        there yet. They wait, and go on behind the others, in smaller batches."""
        now, first, longest = self._clock.monotonic_ms(), self._settings.interval_ms, self._settings.refused_ms_max
        for file in files:
            pause = backoff_ms(self._rng, min(file.refusals, 20), first_ms=first, max_ms=longest)
            file.not_before_ms, file.refusals = now + pause, file.refusals + 1
        pause = backoff_ms(self._rng, self._refused_in_a_row, first_ms=first, max_ms=longest)
        self._may_close_ms, self._refused_in_a_row = now + pause, min(self._refused_in_a_row + 1, 20)
        self._limit = max(1, self._limit // 2)

    async def _rename(self, file_id: str) -> None:
        try:
            meta = await self._outbox(lambda outbox: outbox.rename(file_id))
        except NotFound:  # dropped with its table
            self._files.drop(file_id)
            return
        old = self._files.drop(file_id)
        self._counters.files_renamed += 1
        log.warning("ship-renamed: file %s is sent again as %s", file_id, meta.file_id)
        if old is not None:
            self._files.add(replace(old, meta=meta, there=False, unsure=False, batch=0))

    # ── what is over ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _forget(self) -> None:
        """Remove files that the cloud has had for long enough."""
        now, keep = self._clock.wall_ms(), self._settings.keep_local_ms

        def forget(store: EdgeStore) -> None:
            # A clock that was set back keeps nothing for ever.
            due = [name for name, at in store.outbox.state.acked.items() if not 0 <= now - at < keep]
            if due:
                store.forget(due)

        await self._database.with_store(forget)

    async def _note_aside(self, whys: dict[str, str]) -> None:
        await self._note({"aside": whys})
        for file_id in whys:
            self._files.drop(file_id)
        await self._bound_aside()

    async def _bound_aside(self) -> None:
        """Of files set aside the oldest go, until the rest is within its bound: the one way to lose rows here, and
        said."""

        def bound(store: EdgeStore) -> tuple[dict[str, str], int, int]:
            state, meta = store.outbox.state, store.outbox.meta
            sizes = [(name, found.size) for name in state.aside if (found := meta(name)) is not None]
            gone = {name: state.aside[name] for name in over_bound(sizes, self._settings.aside_bytes_max)}
            store.forget(gone)
            left = [size for name, size in sizes if name not in gone]
            return gone, len(left), sum(left)

        gone, self._counters.aside_files, self._counters.aside_bytes = await self._database.with_store(bound)
        for file_id, why in gone.items():
            self._counters.files_dropped += 1
            log.error("ship-dropped: file %s, which the cloud refused, makes room for others: %s", file_id, why)

    # ── the store ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _note(self, entry: dict[str, Any]) -> None:
        await self._outbox(lambda outbox: outbox.note(entry))

    async def _outbox(self, what: Callable[[Outbox], T]) -> T:
        return await self._database.with_store(lambda store: what(store.outbox))
