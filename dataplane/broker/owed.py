"""Reads of what is owed, from the memory of whoever has it, while object storage is slow or away.

    consumer ──► new owner: not in memory, in no object, owed by epoch 3 of broker 1
                   ├── had here: this node recovers broker 1, or was the owner before
                   ├── broker 1 lives: it is asked (a planned move)
                   └── broker 1 is fenced: who may be recovering it is asked, in the order in which they try
                         └── had nowhere, or no answer: the consumer waits for the upload, as it would have

Shown is only what an accepted entry of the ledger says is there: the asker names the end that it has read in the
ledger, a former owner gives what was acked below it, and a recoverer what the closed span holds (`recovered.py`).
What is decided of transactions there has travelled to the new owner with the producers, so that it needs no word of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from dataplane.broker.engine import Message
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.peer_channel import DATA
from dataplane.broker.peers import Peers
from dataplane.failover.recovered import Recovered
from dataplane.failover.takeover import able
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import Broker, BrokerStatus, CellState, Span, Stream
from dataplane.stream.batch import Buffer, iter_batches, verify
from dataplane.stream.owed import fitting
from providers.base.clock import Clock
from providers.base.errors import Corrupt, Unavailable

log = logging.getLogger(__name__)

OP = "read-owed"
ANSWER_BYTES_MAX = 1 << 20
"""Of batches in one answer; the largest batch that is taken needs a few bytes more, and a frame has room for it."""
ASKS_MAX = 4
"""Under way to other brokers at the same time: what their answers may hold here, and make each of them hold."""
ANSWER_MS = 1_000
SILENT_MS = 3_000
"""Who has not answered is not asked for so long: readers of other partitions wait behind those of this one."""
NOWHERE_MS = 200
"""A stream of which nobody had anything is not asked for again for so long."""
NOWHERE_KEPT = 1_000
"""Such streams that are remembered without a look at whose time is over."""
ASKED_MAX = 3
"""Brokers asked for one read; the next read goes on behind them."""


class OwedReads:
    """Both sides of it: `read` for the partitions that are open here, `answer` for those that are open elsewhere."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        partitions: Callable[[], PartitionSet],
        recovered: Recovered,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._me = me
        self._state = state
        self._partitions = partitions
        self._recovered = recovered
        self._peers = peers
        self._clock = clock
        self._limit = asyncio.Semaphore(ASKS_MAX)
        self._silent_until_ms: dict[int, float] = {}  # by node
        self._nowhere_until_ms: dict[int, float] = {}  # by stream
        self._next: dict[int, int] = {}  # by the node that owes: whom to ask first

    async def read(self, stream: Stream, span: Span, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        """See `ReadOwed`."""
        end = span.end if span.end is not None else span.start
        if here := fitting(self._here(stream.id, span.epoch, offset), end, bytes_max, minimum_one=minimum_one):
            return here
        async with self._limit:
            if self._clock.monotonic_ms() < self._nowhere_until_ms.get(stream.id, 0):
                return b""
            request = {
                "op": OP,
                "stream": stream.id,
                "epoch": span.epoch,
                "offset": offset,
                "end": end,
                "bytes": min(bytes_max, ANSWER_BYTES_MAX),
                "one": minimum_one,
            }
            whom = self._whom(span)
            for broker in whom[:ASKED_MAX]:
                if found := await self._ask(broker, request):
                    self._next[span.node] = broker.node
                    return found
            if len(whom) > ASKED_MAX:
                self._next[span.node] = whom[ASKED_MAX].node
            self._note_nowhere(stream.id)
            return b""

    def answer(self, message: Message) -> Message:
        """What another broker's `read` is told: batches as "data", if this node has any."""
        found = self._here(int(message["stream"]), int(message["epoch"]), int(message["offset"]))
        room = min(int(message["bytes"]), ANSWER_BYTES_MAX)
        return {DATA: fitting(found, int(message["end"]), room, minimum_one=bool(message["one"]))}

    def _here(self, stream: int, epoch: int, offset: int) -> Iterator[tuple[int, Buffer]]:
        partition = self._partitions().holding(stream, epoch)
        if partition is not None:
            yield from ((batch.end, batch.data) for batch in partition.acked_from(offset))
        else:
            yield from self._recovered.read(stream, epoch, offset)

    def _whom(self, span: Span) -> Sequence[Broker]:
        """Who may have it, and has not been silent lately: whoever had something of that owner's last comes first."""
        state, now_ms = self._state(), self._clock.monotonic_ms()
        owner = state.brokers.get(span.node)
        if owner is None or owner.id != span.owner or owner.status is BrokerStatus.GONE:
            return ()  # all of it is in object storage, as the ledger will show
        brokers = [owner] if owner.status is BrokerStatus.LIVE else able(state, owner)
        first = next((i for i, b in enumerate(brokers) if b.node == self._next.get(span.node)), 0)
        return [
            broker
            for broker in brokers[first:] + brokers[:first]
            if broker.id != self._me
            and self._silent_until_ms.get(broker.node, 0) <= now_ms
            and not self._peers.refuses((broker.host, broker.peer_port))
        ]

    async def _ask(self, broker: Broker, request: Message) -> bytes:
        try:
            answer = await self._peers.request((broker.host, broker.peer_port), request, ANSWER_MS)
            found: bytes = answer.get(DATA, b"")  # none either from a broker that does not know of this
            _check(found, request)
        except Unavailable as error:
            log.info("owed-unanswered", extra={"node": broker.node, "error": str(error)})
            self._silent_until_ms[broker.node] = self._clock.monotonic_ms() + SILENT_MS
            return b""
        except Corrupt as error:
            log.error("owed-corrupt", extra={"node": broker.node, "stream": request["stream"], "error": str(error)})
            return b""
        return found

    def _note_nowhere(self, stream: int) -> None:
        now_ms = self._clock.monotonic_ms()
        if len(self._nowhere_until_ms) >= NOWHERE_KEPT:
            self._nowhere_until_ms = {s: until for s, until in self._nowhere_until_ms.items() if until > now_ms}
        self._nowhere_until_ms[stream] = now_ms + NOWHERE_MS


def _check(found: bytes, request: Message) -> None:
    """
    Raises:
        Corrupt: not whole batches of that epoch, one behind the other from the one that holds the offset asked for.
    """
    at: int | None = None
    for header, batch in iter_batches(found):
        verify(batch, header)
        base, behind = header.base_offset, header.base_offset + header.last_offset_delta + 1
        follows = base <= request["offset"] < behind if at is None else base == at
        if not follows or behind > request["end"] or header.leader_epoch != request["epoch"]:
            raise Corrupt(f"offsets [{base}, {behind}) of epoch {header.leader_epoch} are not what was asked for")
        at = behind
