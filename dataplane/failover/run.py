"""Carries a takeover out.

    fence ──► read ──► little: write it ────────────────────────────────► `broker-recovered`: objects and owners
                 │       └── not in time (the bucket is slow)
                 └──► much: keep the tail ──► `broker-closed`: ends and owners ──► write it ──► `broker-recovered`
                                                    └── from here on the new owners ack

Every step may be repeated, and any survivor may finish what another began: objects are written under the recoverer's
own names, and the first accepted `broker-recovered` wins; after `broker-closed` it has to bring what that entry
states.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataplane.failover.recovered import Recovered
from dataplane.failover.tail import completed, decode_tail, encode_tail, tail_of
from dataplane.failover.takeover import Replay, ends, select, spread
from dataplane.failover.writing import insist, write
from dataplane.ledger.commands import CommittedObject, NodeEpoch, broker_closed, broker_recovered
from dataplane.ledger.entry import Command
from dataplane.ledger.log import Ledger
from dataplane.ledger.object_names import tail_key
from dataplane.ledger.state import Broker, BrokerStatus, CellState
from dataplane.stream.batch import parse_header
from dataplane.stream.opening import producers_at
from dataplane.stream.producers import HANDOVER_PRODUCERS_MAX, ProducerTable
from dataplane.stream.reader import ObjectReader
from dataplane.stream.upload import OBJECT_BYTES_MAX, put_object
from dataplane.wal.base import Block, WalIdentity, WalReader
from dataplane.wal.recover import recover
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable, YunheError
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

CLOSE_FIRST_BYTES = 4 << 20
"""Un-uploaded bytes from which streams are handed out before these are written. Less is written in the time that the
entry would take, and consumers then never wait."""
WRITE_FIRST_MS = 1_000
"""How long writing that little may take. Longer, the streams are handed out, as those of much are."""
CLOSE_PRODUCERS_MAX = 8 * HANDOVER_PRODUCERS_MAX
"""Idempotent producers in one entry, at about 250 bytes each: half of what an entry may hold."""
OBJECTS_IN_TIME_MAX = -(-CLOSE_FIRST_BYTES // OBJECT_BYTES_MAX)
"""Names that the first writing may have used: what it may have written under them may differ from what is written
after the streams were handed out."""
PRODUCERS_READ_MAX = 16
"""Streams whose producers are read at the same time."""
PRODUCERS_CACHE_BYTES = 8 << 20


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
    recovered: Recovered | None = None,
    handed_out: Callable[[], None] = lambda: None,
) -> Outcome:
    """Recover a fenced epoch, which the ledger must already say it is. `handed_out`: called when its streams have new
    owners, before the recovery is over. From then on what is owed can be read in `recovered`, and a bucket that is away
    is waited for: another attempt would need it to begin with.

    Raises:
        Unavailable: no side can be reached, or the bucket is away; try again, or let another survivor.
        Fenced: this broker has been overtaken itself.
        Corrupt: an acked record is missing or damaged; nothing was committed, and nothing is until somebody decides.
    """
    return await _Takeover(victim.id, me, ledger, store, name_prefix, clock, recovered or Recovered()).run(
        victim, open_readers, rejoin, handed_out
    )


class _Takeover:
    """One attempt. The victim's state is read from the ledger each time: others may be at it too."""

    def __init__(
        self,
        victim: NodeEpoch,
        me: NodeEpoch,
        ledger: Ledger[CellState],
        store: ObjectStore,
        name_prefix: str,
        clock: Clock,
        recovered: Recovered,
    ) -> None:
        self._victim = victim
        self._me = me
        self._ledger = ledger
        self._store = store
        self._name_prefix = name_prefix
        self._clock = clock
        self._recovered = recovered
        self._who = f"broker {victim.node} epoch {victim.epoch}"
        self._tail_name = tail_key(name_prefix)
        # A block does not name its cluster.
        self._identity = WalIdentity("", victim.node, victim.epoch)

    async def run(
        self, victim: Broker, open_readers: OpenReaders, rejoin: Command | None, handed_out: Callable[[], None]
    ) -> Outcome:
        began_ms = self._clock.monotonic_ms()
        async with self._opened(victim, open_readers) as readers:
            recovered = await recover(readers, victim.wal.sides, victim.wal.floor)
            read_ms = self._clock.monotonic_ms()
            replays = self._select(await self._with_tail(recovered.blocks))
            size = sum(replay.size_bytes for replay in replays)
            producers = await self._producers(replays)
            objects = await self._written_in_time(replays, size, producers) if rejoin is None else None
            if rejoin is None and objects is None:
                tail = tail_of(recovered.blocks) if victim.wal.sides != ["object"] else ()
                if await self._close(replays, producers, tail):
                    handed_out()
                    closed_ms = self._clock.monotonic_ms()
                    log.warning(
                        "handed-out",
                        extra={"node": self._victim.node, "epoch": self._victim.epoch, "ms": closed_ms - began_ms},
                    )
                # By this entry or another's, the streams may end elsewhere now than where this reading saw them end.
                replays = self._select(await self._with_tail(recovered.blocks))
            write_ms = self._clock.monotonic_ms()
            with self._recovered.holding(self._victim, self._ledger.state, replays):
                if objects is None:
                    objects = await self._write(replays, producers, first=OBJECTS_IN_TIME_MAX)
                written_ms = self._clock.monotonic_ms()

                def decide(state: CellState) -> list[Command] | None:
                    if not self._pending(state) or (rejoin is None and not state.is_live(self._me)):
                        return None  # another survivor was first; the objects written here are orphans
                    owners = spread(state, self._victim, keep_on=self._me.node if rejoin is not None else None)
                    return [broker_recovered(self._victim, by=self._me, objects=objects, owners=owners, rejoin=rejoin)]

                append = functools.partial(self._ledger.append, decide)
                appended = await insist(append, self._handed_out, self._clock, "recovery-waits", node=self._victim.node)

        if appended is None:
            return Outcome(False, f"{self._who} was recovered by another")
        if appended.rejections[0] is not None:
            return Outcome(False, f"recovery of {self._who} was refused: {appended.rejections[0]}")
        return Outcome(
            True,
            f"recovered {self._who}: fenced and read side {recovered.side} in {read_ms - began_ms:.0f} ms, "
            f"handed out or got ready in {write_ms - read_ms:.0f} ms, "
            f"wrote {size} bytes in {written_ms - write_ms:.0f} ms, "
            f"committed in {self._clock.monotonic_ms() - written_ms:.0f} ms",
        )

    async def _written_in_time(
        self, replays: Sequence[Replay], size: int, producers: Mapping[tuple[int, int], ProducerTable]
    ) -> Sequence[CommittedObject] | None:
        """The objects, for `size` bytes of records, where that takes no longer than to hand the streams out before
        would. None when there are no streams to hand out, or too much to write, or the bucket is slow: what it takes
        later is an orphan."""
        if not self._ledger.state.owned(self._victim) or size >= CLOSE_FIRST_BYTES:
            return None
        with self._recovered.holding(self._victim, self._ledger.state, replays):
            try:
                async with asyncio.timeout(WRITE_FIRST_MS / 1000):
                    return await self._write(replays, producers, first=0)
            except TimeoutError:
                return None

    async def _write(
        self, replays: Sequence[Replay], producers: Mapping[tuple[int, int], ProducerTable], *, first: int
    ) -> Sequence[CommittedObject]:
        return await write(
            replays,
            producers,
            store=self._store,
            name_prefix=self._name_prefix,
            clock=self._clock,
            first=first,
            goes_on=self._handed_out,
        )

    def _handed_out(self) -> bool:
        """The victim's streams have new owners, whose consumers wait for what is held here; and nobody else has
        finished, nor has this node been overtaken, as far as it knows."""
        state = self._ledger.state
        return self._pending(state) is not None and not state.owned(self._victim) and state.is_live(self._me)

    def _pending(self, state: CellState) -> Broker | None:
        """The victim, while it is to be recovered."""
        broker = state.brokers.get(self._victim.node)
        return (
            broker
            if broker is not None and broker.id == self._victim and broker.status is BrokerStatus.FENCED
            else None
        )

    def _select(self, blocks: Sequence[Block]) -> list[Replay]:
        return select(self._ledger.state, self._victim, (r for block in blocks for r in block.records))

    async def _with_tail(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """With the last blocks that another recoverer has read, if there was one."""
        broker = self._pending(self._ledger.state)
        if broker is None or broker.wal.tail in (None, self._tail_name):
            return blocks
        try:
            data = await self._store.get(broker.wal.tail or "")
        except NotFound as error:
            # Removed once the recovery is over, which this view of the ledger does not show yet.
            raise Unavailable(f"{broker.wal.tail} is gone: another has recovered {self._who}") from error
        return completed(blocks, decode_tail(self._identity, data))

    async def _producers(self, replays: Sequence[Replay]) -> dict[tuple[int, int], ProducerTable]:
        """By stream and epoch, the state of the producers at the end of its records; of open epochs alone, for a closed
        one's has travelled with its move. Where it cannot be told now, the next owner has to find out."""
        limit = asyncio.Semaphore(PRODUCERS_READ_MAX)
        reader = ObjectReader(self._store, PRODUCERS_CACHE_BYTES)
        found: dict[tuple[int, int], ProducerTable] = {}

        async def at_end(replay: Replay) -> None:
            stream = self._ledger.state.streams.get(replay.stream)
            if stream is None or stream.epoch != replay.epoch:
                return
            try:
                async with limit:
                    table = await producers_at(stream, reader, replay.start)
            except (Unavailable, NotFound, Corrupt) as error:
                log.warning("producers-unknown", extra={"stream": replay.stream, "error": str(error)})
                return
            for record in replay.records:
                table.record(parse_header(record.payload), record.base_offset, record.payload)
            found[replay.stream, replay.epoch] = table

        await asyncio.gather(*map(at_end, replays))
        return found

    async def _close(
        self, replays: Sequence[Replay], producers: Mapping[tuple[int, int], ProducerTable], tail: Sequence[Block]
    ) -> bool:
        """End the victim's open streams and give them new owners, as far as one entry can; whether it was accepted."""
        dumped = {stream: table.dump(HANDOVER_PRODUCERS_MAX) for (stream, _), table in producers.items()}
        opened = {(s.id, s.epoch) for s in self._ledger.state.owned(self._victim)}
        if not opened or not opened & {(r.stream, r.epoch) for r in replays} <= producers.keys():
            return False
        if sum(min(len(table), HANDOVER_PRODUCERS_MAX) for table in producers.values()) > CLOSE_PRODUCERS_MAX:
            return False
        name = self._tail_name if tail else None
        if name is not None:
            await put_object(self._store, name, encode_tail(self._identity, tail), self._clock)

        def decide(state: CellState) -> list[Command] | None:
            if not self._pending(state) or not state.is_live(self._me):
                return None
            owners, reached = spread(state, self._victim), ends(state, self._victim, replays)
            rows = [(s, reached[s], owner, dumped.get(s)) for s, owner in sorted(owners.items())]
            return [broker_closed(self._victim, by=self._me, streams=rows, tail=name)] if rows else None

        appended = await self._ledger.append(decide)
        return appended is not None and appended.rejections[0] is None

    @contextlib.asynccontextmanager
    async def _opened(self, victim: Broker, open_readers: OpenReaders) -> AsyncIterator[Mapping[str, WalReader]]:
        """The sides within reach. Blocks and reservation are given up at the end only if the ledger holds what was in
        them; otherwise they wait for the next attempt."""
        readers = await open_readers(victim, self._me)
        try:
            yield readers
        finally:
            over = self._pending(self._ledger.state) is None
            for reader in readers.values():
                try:
                    await (reader.release() if over else reader.close())
                except YunheError as error:
                    log.warning("wal-reader-not-closed", extra={"side": reader.name, "error": str(error)})
