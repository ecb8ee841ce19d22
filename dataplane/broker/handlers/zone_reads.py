"""Fetches in the consumer's own zone (KIP-392, decision 27): who is far behind is sent from the leader to a broker of
its zone, which reads from object storage, and from there back to the leader for what only that one has.

    leader, the records are not in memory, much is in objects ──► "read from the broker in your zone"
    broker in the zone, in objects ──► records;  not in objects ──► "read from the leader"
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError, ReplicaLog
from dataplane.broker.wire_fetch import NO_REPLICA, FetchedPartition
from dataplane.broker.zones import ZoneReaders
from providers.base.clock import Clock

WORTH_BYTES = 4 << 20
"""What has to lie ahead in object storage for a consumer to be sent away: a change of brokers costs a client a round
trip, and librdkafka half a second if it is the second one in a minute."""
BACK_AT_ONCE_MS = 30_000.0
"""A consumer that asks for the same offset again so soon after it was sent away could not be served there."""
BARRED_MS = 60_000.0
"""How long it is not sent there again."""
SENT_MAX = 10_000
"""Partitions of one connection that are remembered."""

Key = tuple[str, int]


@dataclass(slots=True)
class Sent:
    """Where one connection's consumer was sent: each partition's offset and the time; and until when not again."""

    at: dict[Key, tuple[int, float]] = field(default_factory=dict)
    barred_until_ms: dict[Key, float] = field(default_factory=dict)

    def may_go(self, key: Key, offset: int, now_ms: float) -> bool:
        """Whether to send it now. It is then remembered as sent, if `send` is called."""
        before = self.at.pop(key, None)
        if before is not None and before[0] == offset and now_ms - before[1] < BACK_AT_ONCE_MS:
            self.barred_until_ms[key] = now_ms + BARRED_MS
        return now_ms >= self.barred_until_ms.get(key, now_ms)

    def send(self, key: Key, offset: int, now_ms: float) -> None:
        if len(self.at) + len(self.barred_until_ms) >= SENT_MAX:
            self.at.clear()
            self.barred_until_ms.clear()
        self.barred_until_ms.pop(key, None)
        self.at[key] = offset, now_ms


@dataclass(slots=True)
class ZoneMeter:
    """Bytes of records that consumers have got from this broker, by where they are. What crosses zones is paid for."""

    own_bytes: int = 0
    other_bytes: int = 0
    unknown_bytes: int = 0
    """Of consumers that do not say where they are."""

    def count(self, consumers: str, own: str, size: int) -> None:
        if not consumers:
            self.unknown_bytes += size
        elif consumers == own:
            self.own_bytes += size
        else:
            self.other_bytes += size


class ZoneReads:
    """Over an engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def better(self, key: Key, offset: int, zone: str, sent: Sent) -> int:
        """The leader's side: the broker in `zone` that should read from `offset` on instead; NO_REPLICA: nobody.

        Raises:
            KafkaError: as `Engine.replica` and `ReplicaLog.bytes_ahead`.
        """
        engine = self._engine
        if zone in ("", engine.zone) or not engine.zone_reads:
            return NO_REPLICA
        replica = engine.replica(*key)
        reader = ZoneReaders(engine.brokers()).reader(zone, replica.stream)
        now_ms = self._clock.monotonic_ms()
        if reader is None or not sent.may_go(key, offset, now_ms):
            return NO_REPLICA
        if await replica.bytes_ahead(offset, WORTH_BYTES) < WORTH_BYTES:
            return NO_REPLICA
        sent.send(key, offset, now_ms)
        return reader

    def replica(self, key: Key, zone: str) -> ReplicaLog | None:
        """The other side: what this broker can read for a consumer of its own zone, of a partition that another one
        leads, or nobody at the moment; None where it is not to.

        Raises:
            KafkaError: as `Engine.replica`.
        """
        engine = self._engine
        if not zone or zone != engine.zone or not engine.zone_reads:
            return None
        found = engine.leader(*key)
        return None if found is not None and found[0].node_id == engine.node_id else engine.replica(*key)

    async def look(
        self, key: Key, replica: ReplicaLog, part: FetchedPartition, offset: int, epoch: int, committed: bool
    ) -> int:
        """Fill in what is known of the partition here; up to which offset records may be read. At `offset` there are
        none: `part` then names the leader.

        Raises:
            KafkaError: FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, OFFSET_OUT_OF_RANGE; OFFSET_NOT_AVAILABLE: nobody
            leads; KAFKA_STORAGE_ERROR.
        """
        if epoch > replica.leader_epoch or replica.end(offset) <= offset:
            await replica.refresh()  # the leader may have read on in the ledger, and be right to send it here
        if epoch not in (-1, replica.leader_epoch):
            code = ErrorCode.fenced_leader_epoch if epoch < replica.leader_epoch else ErrorCode.unknown_leader_epoch
            raise KafkaError(code.value, f"leader epoch {epoch} is not the one known here, {replica.leader_epoch}")
        if offset < replica.start_offset:
            raise KafkaError(ErrorCode.offset_out_of_range.value, f"offset {offset} is below the start")
        end = await replica.stable_end(offset) if committed else replica.end(offset)
        part.high_watermark, part.log_start_offset = replica.high_watermark, replica.start_offset
        part.last_stable_offset = min(end, part.high_watermark) if committed else part.high_watermark
        if end <= offset:
            self.to_leader(key, part, offset)
        return end

    def to_leader(self, key: Key, part: FetchedPartition, offset: int) -> None:
        """Send the consumer to the leader.

        Raises:
            KafkaError: OFFSET_NOT_AVAILABLE: nobody leads.
        """
        found = self._engine.leader(*key)
        if found is None:
            raise KafkaError(ErrorCode.offset_not_available.value, f"offset {offset} is not here, and nobody leads")
        part.read_replica = found[0].node_id
