"""Carries a takeover out: fence and read one side of the dead epoch's WAL, upload what object storage lacks, say so in
one ledger entry.

Every step may be repeated, and any survivor may finish what another began: objects are uploaded under the recoverer's
own names, and the first accepted
`broker-recovered` wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataplane.failover.takeover import Replay, select, spread
from dataplane.ledger.commands import CommittedObject, NodeEpoch, Range, broker_recovered
from dataplane.ledger.entry import Command
from dataplane.ledger.log import Ledger
from dataplane.ledger.object_names import object_key
from dataplane.ledger.state import Broker, BrokerStatus, CellState
from dataplane.stream.batch import Buffer, parse_header
from dataplane.stream.objects import Section, build
from dataplane.stream.upload import OBJECT_BYTES_MAX, put_object
from dataplane.wal.base import WalReader
from dataplane.wal.recover import recover
from providers.base.clock import Clock
from providers.base.errors import YunheError
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

UPLOADS_IN_FLIGHT_MAX = 2


class OpenReaders(Protocol):
    """Opens the sides of a fenced epoch's WAL that can be reached from here, by side name."""

    async def __call__(self, victim: Broker, me: NodeEpoch) -> Mapping[str, WalReader]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """`accepted`: the ledger took *this* recovery, and not another's. `sentence`: what was done."""

    accepted: bool
    sentence: str


async def take_over(
    victim: Broker,
    *,
    me: NodeEpoch,
    ledger: Ledger[CellState],
    open_readers: OpenReaders,
    store: ObjectStore,
    name_prefix: str,
    clock: Clock,
    rejoin: Command | None = None,
) -> Outcome:
    """Recover a fenced epoch, which the ledger must already say it is.

    Raises:
        Unavailable: no side can be reached, or the bucket is away; try again, or let another survivor.
        Fenced: this broker has been overtaken itself.
        Corrupt: an acked record is missing or damaged; nothing was committed, and nothing is until somebody decides.
    """
    began_ms = clock.monotonic_ms()
    async with _opened(victim, me, ledger, open_readers) as readers:
        recovered = await recover(readers, victim.wal.sides, victim.wal.floor)
        read_ms = clock.monotonic_ms()
        replays = select(ledger.state, victim.id, (r for block in recovered.blocks for r in block.records))
        objects = await _upload(replays, store, name_prefix, clock)
        upload_ms = clock.monotonic_ms()

        def decide(state: CellState) -> list[Command] | None:
            broker = state.brokers.get(victim.node)
            if broker is None or broker.epoch != victim.epoch or broker.status is not BrokerStatus.FENCED:
                return None  # another survivor was first; the objects uploaded here are orphans
            owners = spread(state, victim.id, keep_on=me.node if rejoin is not None else None)
            return [broker_recovered(victim.id, by=me, objects=objects, owners=owners, rejoin=rejoin)]

        appended = await ledger.append(decide)

    who = f"broker {victim.node} epoch {victim.epoch}"
    if appended is None:
        return Outcome(False, f"{who} was recovered by another")
    if appended.rejections[0] is not None:
        return Outcome(False, f"recovery of {who} was refused: {appended.rejections[0]}")
    records = sum(len(r.records) for r in replays)
    return Outcome(
        True,
        f"recovered {who}: fenced and read side {recovered.side} in {read_ms - began_ms:.0f} ms, "
        f"uploaded {records} batches in {upload_ms - read_ms:.0f} ms, "
        f"committed in {clock.monotonic_ms() - upload_ms:.0f} ms",
    )


@contextlib.asynccontextmanager
async def _opened(
    victim: Broker, me: NodeEpoch, ledger: Ledger[CellState], open_readers: OpenReaders
) -> AsyncIterator[Mapping[str, WalReader]]:
    """The sides within reach. Blocks and reservation are given up at the end only if the ledger holds what was in them;
    otherwise they wait for the next attempt."""
    readers = await open_readers(victim, me)
    try:
        yield readers
    finally:
        broker = ledger.state.brokers[victim.node]
        over = broker.epoch != victim.epoch or broker.status is not BrokerStatus.FENCED
        for reader in readers.values():
            try:
                await (reader.release() if over else reader.close())
            except YunheError as error:
                log.warning("wal-reader-not-closed", extra={"side": reader.name, "error": str(error)})


async def _upload(
    replays: Sequence[Replay], store: ObjectStore, name_prefix: str, clock: Clock
) -> list[CommittedObject]:
    """Write the records as stream-set objects; nothing to write gives no object."""
    limit = asyncio.Semaphore(UPLOADS_IN_FLIGHT_MAX)

    async def put(number: int, group: Sequence[Replay]) -> CommittedObject:
        sections = [_section(replay) for replay in group]
        name = object_key(name_prefix, number)
        async with limit:
            data = build(sections)
            await put_object(store, name, data, clock)
        ranges = tuple(Range(r.stream, r.epoch, r.start, r.end) for r in group)
        return CommittedObject(name, len(data), ranges)

    groups = _groups(replays, OBJECT_BYTES_MAX)
    return list(await asyncio.gather(*(put(number, group) for number, group in enumerate(groups))))


def _groups(replays: Sequence[Replay], bytes_max: int) -> list[list[Replay]]:
    """Split into groups of about `bytes_max`, keeping each stream's records in order (a stream may go on in the next
    group).
    """
    groups: list[list[Replay]] = [[]]
    room = bytes_max
    for replay in replays:
        start = replay.start
        pending = list(replay.records)
        while pending:
            taken = 0
            while taken < len(pending) and (room > 0 or not groups[-1]):
                room -= len(pending[taken].payload)
                taken += 1
                if room <= 0:
                    break
            if taken:
                part = Replay(replay.stream, replay.epoch, start, tuple(pending[:taken]))
                groups[-1].append(part)
                start, pending = part.end, pending[taken:]
            if room <= 0 or not taken:
                groups.append([])
                room = bytes_max
    return [group for group in groups if group]


def _section(replay: Replay) -> Section:
    batches: list[tuple[int, int, int, Buffer]] = []
    for record in replay.records:
        header = parse_header(record.payload)
        batches.append((record.base_offset, record.base_offset + record.offsets, header.max_timestamp, record.payload))
    return Section(replay.stream, replay.start, replay.end, batches, producers=None)
