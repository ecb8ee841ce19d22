"""Fetch: from the log cache at once where possible; else from object storage, or a wait for the next ack. Consumers
that say where they are may be sent to a broker of their zone (`zone_reads.py`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.answer_room import AnswerRoom, AnswerShare
from dataplane.broker.authorize import Access
from dataplane.broker.engine import Engine, KafkaError, PartitionLog, ReplicaLog
from dataplane.broker.fetch_sessions import Asked, FetchSession, FetchSessions, key_of
from dataplane.broker.handlers.produce import elsewhere
from dataplane.broker.handlers.records import READ_COMMITTED, check_epoch
from dataplane.broker.handlers.zone_reads import Sent, ZoneMeter, ZoneReads
from dataplane.broker.request_meter import FETCH
from dataplane.broker.wire_fetch import NO_REPLICA, FetchAnswer, FetchedPartition, TopicKey
from dataplane.stream.batch import Buffer, iter_batches
from dataplane.stream.transactions import Aborted
from providers.base.clock import Clock, Rng

FETCH_BYTES_MAX = 55 << 20
"""Kafka's own default of `fetch.max.bytes`; bounds what one request may pin."""

NOT_LEADER = ErrorCode.not_leader_or_follower.value
SAID_WITH_LEADER = (NOT_LEADER, ErrorCode.fenced_leader_epoch.value)
"""Refusals that come with who leads instead."""

LOOK_AGAIN_MS = 20.0
"""Pause before a second look at data that is there and cannot be read yet (owed, and nobody has it at hand)."""


@dataclass(frozen=True, slots=True)
class _Cold:
    """What is to be read from object storage: as the leader, or as a broker of the consumer's zone (`replica`)."""

    part: FetchedPartition
    key: tuple[str, int]
    asked: Any
    log: PartitionLog | None = None
    replica: ReplicaLog | None = None

    def room(self, look: _Look) -> int:
        """Bytes at most."""
        wanted: int = self.asked.partition_max_bytes
        return max(0, min(wanted, look.room))


@dataclass(slots=True)
class _Look:
    """One pass over a request's partitions."""

    answer: FetchAnswer
    room: int
    committed: bool
    """Only what is decided of transactions is wanted."""
    access: Access | None = None
    size: int = 0
    failed: bool = False
    logs: list[tuple[PartitionLog, int]] = field(default_factory=list)
    """What to wait for: each log with the offset that its reader is at."""
    cold: list[_Cold] = field(default_factory=list)
    """To be read from object storage."""
    zone: str = ""
    """Where the consumer is, if it says so."""
    session: FetchSession | None = None
    looked: list[tuple[Asked, FetchedPartition]] = field(default_factory=list)
    """What of the session was looked at."""


class Fetch:
    """Handler over an engine."""

    def __init__(self, engine: Engine, clock: Clock, rng: Rng, refused: Counter[tuple[int, int]] | None = None) -> None:
        """`refused` counts refused partitions, by api key and error code."""
        self._engine = engine
        self._clock = clock
        self._refused = Counter() if refused is None else refused
        self._zones = ZoneReads(engine, clock)
        self.meter = ZoneMeter()
        self.sessions = FetchSessions(clock, rng)

    def begin(
        self, request: Any, access: Access | None = None, sent: Sent | None = None, share: AnswerShare | None = None
    ) -> FetchAnswer | Coroutine[Any, Any, FetchAnswer]:
        """The answer, if it is in memory; else what will find it. `access`: what the client may do, None for
        everything. `sent`: the connection's memory of where its consumer was sent. `share`: how much it may hold of
        answers, and where what it holds is counted."""
        try:
            session = self.sessions.find(request)
        except KafkaError as error:
            self._refused[FETCH, error.code] += 1
            return FetchAnswer(error_code=error.code)
        share = share if share is not None else AnswerShare(AnswerRoom(FETCH_BYTES_MAX))
        look = self._look(request, session, access, share.left)
        if not look.cold and self._enough(request, look):
            share.take(look.size)
            return self._answer(request, look)
        return self._wait(request, look, sent if sent is not None else Sent(), share)

    def _enough(self, request: Any, look: _Look) -> bool:
        asked: object = look.logs if look.session is None else look.session.parts
        return look.size >= request.min_bytes or look.failed or not asked or not request.max_wait

    def _answer(self, request: Any, look: _Look) -> FetchAnswer:
        self.meter.count(look.zone, self._engine.zone if look.zone else "", look.size)
        if look.session is not None:
            return look.session.answer(look.looked)
        look.answer.session_id = self.sessions.begin(request, look.answer)
        return look.answer

    async def _wait(self, request: Any, look: _Look, sent: Sent, share: AnswerShare) -> FetchAnswer:
        deadline = self._clock.monotonic_ms() + request.max_wait.total_seconds() * 1000
        while True:
            expected = look.size + min(look.room, sum(cold.asked.partition_max_bytes for cold in look.cold))
            share.take(expected)
            await self._read_cold(look, sent)
            share.take(look.size - expected)
            left_ms = deadline - self._clock.monotonic_ms()
            if self._enough(request, look) or left_ms <= 0:
                return self._answer(request, look)
            share.take(-look.size)
            if _more_to_come(look):
                left_ms = min(left_ms, LOOK_AGAIN_MS)
            if look.session is not None:
                await look.session.wait(left_ms)
            else:
                await _until_any(look.logs, left_ms)
            look = self._look(request, look.session, look.access, share.left)

    def _look(self, request: Any, session: FetchSession | None, access: Access | None, room: int) -> _Look:
        committed = getattr(request, "isolation_level", 0) == READ_COMMITTED
        room = min(request.max_bytes, FETCH_BYTES_MAX, room)
        look = _Look(FetchAnswer(), room, committed, access, session=session)
        look.zone = getattr(request, "rack_id", "")
        if session is not None:
            for asked in session.to_look_at(self._clock.monotonic_ms()):
                self._look_in_session(asked, look)
            return look
        for topic in request.topics:
            key = key_of(topic)
            parts = [self._look_at(key, part, look) for part in topic.partitions]
            look.answer.topics.append((key, parts))
        return look

    def _look_in_session(self, asked: Asked, look: _Look) -> None:
        before = len(look.logs)
        part = self._look_at(asked.topic, asked, look)
        look.looked.append((asked, part))
        if len(look.logs) == before:
            return  # an error: it is looked at again and again, until it is forgotten or works
        log, offset = look.logs[-1]
        asked.watch(log)
        if offset >= (part.last_stable_offset if look.committed else part.high_watermark) and not asked.news(part):
            asked.session.idle(asked)

    def _look_at(self, key: TopicKey, asked: Any, look: _Look) -> FetchedPartition:
        part = FetchedPartition(asked.partition)
        topic = ""
        try:
            topic = key if isinstance(key, str) else self._name_of(key, asked)
            if look.access is not None and not look.access.may_read(topic):
                raise KafkaError(ErrorCode.topic_authorization_failed.value, "not allowed to read this topic")
            if look.zone and (replica := self._zones.replica((topic, asked.partition), look.zone)) is not None:
                look.cold.append(_Cold(part, (topic, asked.partition), asked, replica=replica))
                return part
            log = self._engine.partition(topic, asked.partition)
            check_epoch(log, getattr(asked, "current_leader_epoch", -1))
            offset = asked.fetch_offset
            # The first batch is returned whole however large it is, so that a consumer always gets on (KIP-74).
            limit = max(0, min(asked.partition_max_bytes, look.room))
            if limit > 0 or look.size == 0:
                found = log.read_cached(offset, limit, minimum_one=look.size == 0, committed=look.committed)
                if found and look.committed:
                    part.aborted = _pairs(log.aborted_known(offset, _end(found)))
                if found is None or (found and look.committed and part.aborted is None):
                    look.cold.append(_Cold(part, (topic, asked.partition), asked, log))
                else:
                    _take(look, part, found)
            part.high_watermark, part.last_stable_offset = log.high_watermark, log.last_stable_offset
            part.log_start_offset = log.start_offset
            look.logs.append((log, offset))
        except KafkaError as error:
            look.failed = True
            part.error_code = error.code
            self._refused[FETCH, error.code] += 1
            if error.code in SAID_WITH_LEADER:
                part.leader = elsewhere(self._engine, topic, asked.partition)
        return part

    def _name_of(self, topic_id: uuid.UUID, asked: Any) -> str:
        """
        Raises:
            KafkaError: there is no such topic: UNKNOWN_TOPIC_ID; UNKNOWN_TOPIC_OR_PARTITION or INCONSISTENT_TOPIC_ID
            where a session has known it, and its name is free or another topic's now.
        """
        name = self._engine.topic_name(topic_id)
        known = getattr(asked, "name", None)
        if name is None:
            if known is None:
                raise KafkaError(ErrorCode.unknown_topic_id.value, f"there is no topic with id {topic_id}")
            if self._engine.topic(known) is None:
                raise KafkaError(ErrorCode.unknown_topic_or_partition.value, f"topic {known} was deleted")
            raise KafkaError(ErrorCode.inconsistent_topic_id.value, f"topic {known} was made anew, under another id")
        if known is None and isinstance(asked, Asked):
            asked.name = name
        return name

    async def _read_cold(self, look: _Look, sent: Sent) -> None:
        for cold in look.cold:
            try:
                if cold.replica is not None:
                    await self._read_replica(look, cold, cold.replica)
                elif cold.log is not None:
                    await self._read_log(look, cold, cold.log, sent)
            except KafkaError as error:
                look.failed = True
                cold.part.error_code = error.code
                self._refused[FETCH, error.code] += 1
                if error.code in SAID_WITH_LEADER:
                    cold.part.leader = elsewhere(self._engine, *cold.key)
        look.cold.clear()

    async def _read_log(self, look: _Look, cold: _Cold, log: PartitionLog, sent: Sent) -> None:
        part, offset, limit = cold.part, cold.asked.fetch_offset, cold.room(look)
        if look.zone:
            part.read_replica = await self._zones.better(cold.key, offset, look.zone, sent)
            if part.read_replica != NO_REPLICA:
                look.failed = True  # at once: it has to ask somebody else
                return
        if limit == 0 and look.size:
            return
        data = await log.read(offset, limit, minimum_one=look.size == 0, committed=look.committed)
        if data and look.committed:
            part.aborted = _pairs(await log.aborted(offset, _end([data])))
        _take(look, part, [data] if data else [])

    async def _read_replica(self, look: _Look, cold: _Cold, replica: ReplicaLog) -> None:
        part, offset, limit = cold.part, cold.asked.fetch_offset, cold.room(look)
        look.failed = True  # there is nothing to wait for here: what comes next, the leader has
        epoch = getattr(cold.asked, "current_leader_epoch", -1)
        end = await self._zones.look(cold.key, replica, part, offset, epoch, look.committed)
        if end <= offset or (limit == 0 and look.size):
            return
        data = await replica.read(offset, limit, end, minimum_one=look.size == 0)
        if data and look.committed:
            part.aborted = _pairs(await replica.aborted(offset, _end([data])))
        if not data and look.size == 0:
            self._zones.to_leader(cold.key, part, offset)  # objects whose records were all superseded
        _take(look, part, [data] if data else [])


def _pairs(aborted: Sequence[Aborted] | None) -> list[tuple[int, int]] | None:
    return None if aborted is None else sorted(((a.producer_id, a.first) for a in aborted), key=lambda pair: pair[1])


def _end(records: Sequence[Buffer]) -> int:
    """The offset behind consecutive pieces of whole batches."""
    *_, header = (header for header, _ in iter_batches(records[-1]))
    return header.base_offset + header.last_offset_delta + 1


def _take(look: _Look, part: FetchedPartition, records: Sequence[Buffer]) -> None:
    part.records = records
    size = part.size
    look.size += size
    look.room -= size


def _more_to_come(look: _Look) -> bool:
    """At the end of a log one waits for the next ack; before it, there is data that is only not readable yet, and a
    short look again is right."""
    committed = look.committed
    return any(offset < (log.last_stable_offset if committed else log.high_watermark) for log, offset in look.logs)


async def _until_any(logs: list[tuple[PartitionLog, int]], timeout_ms: float) -> None:
    """Until one of the logs has more than it has now, or the time is over."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(timeout_ms / 1000, wake)
    for log, _ in logs:
        log.watch(wake)
    try:
        await woken
    finally:
        timer.cancel()
        for log, _ in logs:
            log.unwatch(wake)
