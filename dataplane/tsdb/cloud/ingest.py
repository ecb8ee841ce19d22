"""Import: what edges have put into the bucket becomes part of the database, without a byte of it being moved.

    shipped/<edge>/<next> ──► signature ──► every file checked (`file_checks.py`) ──► one manifest entry ──► ack
             absent: nothing to do        └── anything wrong: refused whole, with reasons ──► quarantine, ack

A batch is taken whole or not at all, so that what a vehicle sent together appears together. A refused one uses up its
number: it does not stand in the way of the edge's later batches, and the edge, told which files were at fault, ships
the others again. Importers may run in several processes; the manifest takes each batch once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import IO, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dataplane.ledger.entry import Command
from dataplane.tsdb.cloud import file_checks as checks
from dataplane.tsdb.cloud.byte_budget import ByteBudget
from dataplane.tsdb.cloud.file_checks import Check, Policy
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import batch_refused, files_added
from dataplane.tsdb.cloud.manifest_fold import faults
from dataplane.tsdb.cloud.manifest_state import ManifestState, Refusal
from dataplane.tsdb.schema.files import (
    BATCH_BYTES_MAX,
    FRESH_ID,
    FileMeta,
    ShippedBatch,
    ack,
    ack_key,
    batch_key,
    opened,
    quarantine_key,
    sst_key,
)
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import AlreadyExists, Conflict, Corrupt, Invalid, NotFound, Unavailable
from providers.base.objects import ObjectStore
from providers.base.streams import ABREAST, PART_BYTES

T = TypeVar("T")
log = logging.getLogger(__name__)
PIECES_BYTES = ABREAST * PART_BYTES
"""Of one file, fetched ahead."""
SPOOLED_BYTES = 8 << 20
"""A file that is to be decoded is kept in memory up to this size, and on disk beyond."""
ACKS_LOOKED_BACK = 1_000
"""Batches whose acks a fresh importer makes sure of, for one that died between commit and ack."""


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """Of one importer process."""

    policy: Policy = field(default_factory=Policy)
    files_at_once: int = 16
    """Files being read, of all edges together."""
    bytes_at_once: int = 128 << 20
    """Of those files, in memory: each holds itself or the few pieces that are fetched ahead, whichever is less."""
    edges_at_once: int = 8
    tries_max: int = 6
    """Tries of a request that the bucket refuses for now (throttling); the batch then waits for a later turn."""
    retry_first_ms: float = 100
    retry_max_ms: float = 5_000
    poll_ms: float = 500
    """Between two looks for new batches: one request an edge."""
    create_tables: bool = False
    """Whether a batch may bring a table that is not there."""
    spool_folder: str | None = None
    """Where files lie while their pages are decoded (`Check.PAGES`); None: where the machine has its temporary files.
    At most `files_at_once` of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch. `refused`: why none of it was taken; `files`: of those at fault, why."""

    edge: str
    number: int
    imported: int = 0
    rows: int = 0
    refused: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        what = f"refused: {self.refused}" if self.refused else f"imported, {self.imported} files, {self.rows} rows"
        return f"batch {self.number} of edge {self.edge} {what}"


class Importer:
    """Follows the edges that it trusts. Several may work on one database."""

    def __init__(
        self,
        manifest: Manifest,
        store: ObjectStore,
        trust: Mapping[str, Ed25519PublicKey],
        *,
        clock: Clock,
        rng: Rng,
        settings: ImportSettings = ImportSettings(),
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._trust = trust
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._files = asyncio.Semaphore(settings.files_at_once)
        self._bytes = ByteBudget(settings.bytes_at_once)
        self._edges = asyncio.Semaphore(settings.edges_at_once)
        self._acked: dict[str, int] = {}

    async def run(self) -> None:
        """Import until cancelled. A bucket that does not answer is asked again later."""
        while True:
            try:
                await self.turn()
            except Unavailable as error:
                log.warning("import-waits: %s", error)
            await self._clock.sleep_ms(self._settings.poll_ms)

    async def turn(self) -> list[Outcome]:
        """Import all that is there now, of every edge; one edge's trouble does not hold up another's.

        Raises:
            Unavailable: the bucket refused some of it for now, after all the rest was done.
        """
        await self._manifest.poll()
        done = await asyncio.gather(*(self._follow(edge) for edge in self._trust), return_exceptions=True)
        outcomes: list[Outcome] = []
        trouble: BaseException | None = None
        for result in done:
            if isinstance(result, BaseException):
                trouble = result if trouble is None or isinstance(trouble, Unavailable) else trouble
            else:
                outcomes += result
        if trouble is not None:
            raise trouble
        return outcomes

    async def _follow(self, edge: str) -> list[Outcome]:
        outcomes = []
        async with self._edges:
            await self._tell(edge)
            while (outcome := await self.import_next(edge)) is not None:
                log.info("%s", outcome)
                outcomes.append(outcome)
        return outcomes

    async def import_next(self, edge: str) -> Outcome | None:
        """Deal with the edge's next batch; None: there is none yet.

        Raises:
            Unavailable: the bucket refuses for now; nothing was decided. NotFound: no key is known for this edge.
        """
        key = self._trust.get(edge)
        if key is None:
            raise NotFound(f"edge {edge!r} is not in this database's list of trusted keys")
        number = self._manifest.state.edges.get(edge, 0) + 1
        name = batch_key(self._manifest.database, edge, number)
        try:
            data = await self._patiently(lambda: self._store.get(name, length=BATCH_BYTES_MAX + 1))
        except NotFound:
            return None
        outcome = await self._import(edge, number, data, key)
        await self._tell(edge)
        return outcome

    async def _import(self, edge: str, number: int, data: bytes, key: Ed25519PublicKey) -> Outcome:
        try:
            if len(data) > BATCH_BYTES_MAX:
                raise Invalid(f"it has more than {BATCH_BYTES_MAX} bytes")
            batch = await asyncio.to_thread(opened, data, key, self._manifest.database, edge, number)
        except (Invalid, ValueError, KeyError, TypeError) as error:
            return await self._refuse(edge, number, str(error), {})
        if why := checks.why_not_listed(batch):
            return await self._refuse(edge, number, why, {})
        if whys := await self._faults(batch):
            first = next(iter(whys.items()))
            return await self._refuse(
                edge, number, f"{len(whys)} of {len(batch.files)} files are at fault; {first[0]}: {first[1]}", whys
            )
        try:
            wanted = await self._deal_with(
                edge,
                number,
                lambda state: files_added(
                    state.epoch,
                    batch.files,
                    batch.schemas,
                    edge=edge,
                    number=number,
                    create_tables=self._settings.create_tables,
                ),
            )
        except Conflict as error:
            whys = faults(self._manifest.state, batch.files, batch.schemas)
            return await self._refuse(edge, number, str(error), whys)
        except Invalid as error:
            return await self._refuse(edge, number, str(error), {})
        if not wanted:
            return self._by_another(edge, number)
        return Outcome(edge, number, len(batch.files), sum(meta.rows for meta in batch.files))

    async def _refuse(self, edge: str, number: int, reason: str, files: Mapping[str, str]) -> Outcome:
        now = self._clock.wall_ms()
        try:
            wanted = await self._deal_with(
                edge, number, lambda state: batch_refused(state.epoch, edge, number, reason, now, files)
            )
        except Conflict:
            wanted = False
        return Outcome(edge, number, refused=reason, files=files) if wanted else self._by_another(edge, number)

    async def _deal_with(self, edge: str, number: int, how: Callable[[ManifestState], Command]) -> bool:
        """Commit it, unless somebody else has dealt with this batch: then false."""
        return await self._manifest.commit_one(lambda state: None if state.edges.get(edge, 0) >= number else how(state))

    def _by_another(self, edge: str, number: int) -> Outcome:
        refusal = self._refusal(edge, number)
        return Outcome(edge, number, refused=refusal.reason if refusal else None)

    def _refusal(self, edge: str, number: int) -> Refusal | None:
        found = (r for r in self._manifest.state.refusals if (r.edge, r.number) == (edge, number))
        return next(found, None)

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _faults(self, batch: ShippedBatch) -> dict[str, str]:
        """What is wrong with which file."""
        schemas = {(schema.name, schema.fingerprint): schema for schema in batch.schemas}
        whys = await asyncio.gather(
            *(self._why_not(meta, schemas[meta.table, meta.fingerprint]) for meta in batch.files)
        )
        return {meta.file_id: why for meta, why in zip(batch.files, whys, strict=True) if why is not None}

    async def _why_not(self, meta: FileMeta, schema: TableSchema) -> str | None:
        there = self._manifest.state.tables.get(meta.table)
        if there is not None and meta.file_id in there.files and there.files[meta.file_id].sha256 == meta.sha256:
            return None  # imported earlier; the fold passes it over
        if meta.file_id in self._manifest.state.gone:
            return None  # likewise, or condemned: the fold says so
        if why := checks.why_not_in_time(meta, schema, self._settings.policy, self._clock.wall_ms()):
            return why
        read, held = self._whole, min(meta.size, PIECES_BYTES)
        if self._settings.policy.check is Check.FOOTER:
            read, held = self._footer, meta.footer_bytes
        async with self._files, self._bytes.hold(held):
            try:
                return await self._patiently(lambda: read(meta, schema))
            except NotFound:
                return f"it is not in the bucket; {FRESH_ID}"
            except Corrupt as error:
                return f"the bucket cannot read it: {str(error)[:200]}; {FRESH_ID}"

    async def _footer(self, meta: FileMeta, schema: TableSchema) -> str | None:
        """One request: a byte more than the footer is asked for, so that the answer's length tells the file's."""
        key = sst_key(self._manifest.database, meta.table, meta.file_id)
        tail = await self._store.get(key, start=meta.size - meta.footer_bytes, length=meta.footer_bytes + 1)
        if len(tail) != meta.footer_bytes:
            return (
                f"it is {'longer' if len(tail) > meta.footer_bytes else 'shorter'} than {meta.size} bytes; {FRESH_ID}"
            )
        return await asyncio.to_thread(checks.why_not_footer, tail, meta, schema)

    async def _whole(self, meta: FileMeta, schema: TableSchema) -> str | None:
        """Each byte once. Only for its pages to be decoded is a file kept whole: a large one on disk."""
        if self._settings.policy.check is not Check.PAGES:
            return await self._streamed(meta, schema, None)
        with tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=self._settings.spool_folder) as spool:
            why = await self._streamed(meta, schema, spool)
            return why if why is not None else await asyncio.to_thread(checks.why_not_pages, spool)

    async def _streamed(self, meta: FileMeta, schema: TableSchema, spool: IO[bytes] | None) -> str | None:
        key = sst_key(self._manifest.database, meta.table, meta.file_id)
        digest = hashlib.sha256()
        size = 0
        kept = bytearray()

        def take(piece: bytes) -> None:
            digest.update(piece)
            if spool is not None:
                spool.write(piece)

        async with aclosing(self._store.get_stream(key)) as stream:
            async for piece in stream:
                size += len(piece)
                if size > meta.size:
                    return f"it is longer than {meta.size} bytes; {FRESH_ID}"
                await asyncio.to_thread(take, piece)
                kept += piece[-meta.footer_bytes :]
                del kept[: -meta.footer_bytes]
        if size != meta.size:
            return f"it has {size} bytes, not {meta.size}; {FRESH_ID}"
        if digest.hexdigest() != meta.sha256:
            return f"its bytes are not those that the edge signed: SHA-256 differs; {FRESH_ID}"
        return await asyncio.to_thread(checks.why_not_footer, bytes(kept), meta, schema)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tell(self, edge: str) -> None:
        """See to it that every batch dealt with has its ack, whoever dealt with it and died before saying so."""
        last = self._manifest.state.edges.get(edge, 0)
        if edge not in self._acked:
            self._acked[edge] = await self._acked_before(edge, last)
        for number in range(self._acked[edge] + 1, last + 1):
            refusal = self._refusal(edge, number)
            if refusal is not None:
                body = {
                    "edge": edge,
                    "number": number,
                    "reason": refusal.reason,
                    "at_ms": refusal.at_ms,
                    "files": dict(refusal.files),
                }
                await self._put(quarantine_key(self._manifest.database, edge, number), json.dumps(body).encode())
            answer = ack(number, refusal.reason, refusal.files) if refusal is not None else ack(number)
            await self._put(ack_key(self._manifest.database, edge, number), answer)
            self._acked[edge] = number

    async def _acked_before(self, edge: str, last: int) -> int:
        for number in range(last, max(0, last - ACKS_LOOKED_BACK), -1):
            key = ack_key(self._manifest.database, edge, number)
            try:
                await self._patiently(lambda key=key: self._store.head(key))  # type: ignore[misc]
                return number
            except NotFound:
                continue
        return max(0, last - ACKS_LOOKED_BACK)

    async def _put(self, key: str, data: bytes) -> None:
        try:
            await self._patiently(lambda: self._store.put(key, data, if_absent=True))
        except AlreadyExists:
            pass  # whoever said it said the same: it follows from the manifest

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer; one that the bucket refuses for now is made again, later and later."""
        for attempt in range(self._settings.tries_max):
            try:
                return await call()
            except (Unavailable, Conflict) as error:
                if isinstance(error, AlreadyExists):
                    raise
                if attempt == self._settings.tries_max - 1:
                    raise Unavailable(f"given up for now after {attempt + 1} tries: {error}") from error
            first_ms, max_ms = self._settings.retry_first_ms, self._settings.retry_max_ms
            await self._clock.sleep_ms(backoff_ms(self._rng, attempt, first_ms=first_ms, max_ms=max_ms))
        raise Unavailable("no try is allowed")
