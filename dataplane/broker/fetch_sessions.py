"""Fetch sessions (KIP-227): the broker remembers what a consumer reads, requests say what has changed in that, and
answers hold only partitions of which there is something to say.

A session's partitions are watched, not polled: a fetch over thousands of idle ones looks at none of them. `hot` are
those to look at: asked for anew, changed since, with more to read, or in error.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError, PartitionLog
from dataplane.broker.wire_fetch import IDS_FROM, NO_REPLICA, FetchAnswer, FetchedPartition, TopicKey
from providers.base.clock import Clock, Rng

SESSIONS_MAX = 1_000
"""Kafka's own default of `max.incremental.fetch.session.cache.slots`."""
PARTITIONS_MAX = 500_000
"""Of all sessions together; beyond, consumers are served without sessions."""
EVICTION_MS = 120_000
"""Kafka's own default of `min.incremental.fetch.session.eviction.ms`: how long a session is safe."""
LOOK_AT_ALL_MS = 1_000
"""How often idle partitions are looked at all the same: a start moves unseen, and an owner may have become stale."""
INITIAL, FINAL = 0, -1
"""Epochs of requests that begin a session, and that end one or want none."""
EPOCH_MAX = (1 << 31) - 1

Key = tuple[TopicKey, int]

NO_ID = uuid.UUID(int=0)


def key_of(topic: Any) -> TopicKey:
    """How a request of either kind names this topic."""
    if hasattr(topic, "topic"):
        name: str = topic.topic
        return name
    topic_id: uuid.UUID | None = topic.topic_id
    return topic_id or NO_ID


def _by_ids(request: Any) -> bool:
    return bool(request.__version__ >= IDS_FROM)


class Asked:
    """One partition of a session: what the consumer asked (fields as in a request), and what it was told last."""

    __slots__ = (
        *("current_leader_epoch", "fetch_offset", "high_watermark", "key", "log_start_offset", "name"),
        *("partition", "partition_max_bytes", "session", "topic", "watched"),
    )

    def __init__(self, session: FetchSession, topic: TopicKey, asked: Any) -> None:
        self.session = session
        self.topic, self.partition = self.key = topic, asked.partition
        self.name: str | None = None
        """What the topic of this id was called when there was one."""
        self.high_watermark = self.log_start_offset = -1
        self.watched: PartitionLog | None = None
        self.update(asked)

    def update(self, asked: Any) -> None:
        self.fetch_offset: int = asked.fetch_offset
        self.partition_max_bytes: int = asked.partition_max_bytes
        self.current_leader_epoch: int = getattr(asked, "current_leader_epoch", -1)

    def watch(self, log: PartitionLog) -> None:
        """Hear of the next change."""
        self.unwatch()
        self.watched = log
        log.watch(self.wake)

    def unwatch(self) -> None:
        if self.watched is not None:
            self.watched.unwatch(self.wake)
            self.watched = None

    def wake(self) -> None:
        # Once: whoever looks next watches again. A consumer that never comes back costs one call.
        self.unwatch()
        self.session.hot[self.key] = None
        self.session.wake()

    def news(self, part: FetchedPartition) -> bool:
        """Whether there is something to say."""
        return bool(
            part.records
            or part.error_code
            or part.read_replica != NO_REPLICA
            or part.high_watermark != self.high_watermark
            or part.log_start_offset != self.log_start_offset
        )

    def told(self, part: FetchedPartition) -> None:
        # In an error both are -1, so that the next answer without one says so.
        self.high_watermark, self.log_start_offset = part.high_watermark, part.log_start_offset


class FetchSession:
    """See the module."""

    def __init__(self, session_id: int, now_ms: float, *, by_ids: bool) -> None:
        self.id = session_id
        self.by_ids = by_ids
        """Its requests name topics by ids."""
        self.epoch = INITIAL + 1
        """Of the next request."""
        self.created_ms = self.used_ms = now_ms
        self.parts: dict[Key, Asked] = {}
        self.hot: OrderedDict[Key, None] = OrderedDict()
        self._looked_at_all_ms = now_ms
        self._woken: asyncio.Future[None] | None = None

    def change(self, request: Any) -> None:
        """Take in what a request adds, changes and forgets."""
        for topic in request.topics:
            for asked in topic.partitions:
                self.ask(key_of(topic), asked)
        for topic in request.forgotten_topics_data:
            for partition in topic.partitions:
                gone = self.parts.pop((key_of(topic), partition), None)
                if gone is not None:
                    gone.unwatch()
                    self.hot.pop(gone.key, None)

    def ask(self, topic: TopicKey, asked: Any) -> Asked:
        part = self.parts.get((topic, asked.partition))
        if part is None:
            part = self.parts[topic, asked.partition] = Asked(self, topic, asked)
        else:
            part.update(asked)
        self.hot[part.key] = None
        return part

    def to_look_at(self, now_ms: float) -> list[Asked]:
        """What to look at now, in the order in which it may fill the answer."""
        if now_ms - self._looked_at_all_ms >= LOOK_AT_ALL_MS:
            self._looked_at_all_ms = now_ms
            for key in self.parts:
                self.hot.setdefault(key)
        return [self.parts[key] for key in self.hot]

    def idle(self, asked: Asked) -> None:
        """There is nothing to say of it until it wakes."""
        self.hot.pop(asked.key, None)

    def answer(self, looked: Iterable[tuple[Asked, FetchedPartition]]) -> FetchAnswer:
        """What of it is news. Partitions that gave something get their next turn after the others."""
        topics: dict[TopicKey, list[FetchedPartition]] = {}
        for asked, part in looked:
            if asked.news(part):
                topics.setdefault(asked.topic, []).append(part)
                if part.records and asked.key in self.hot:
                    self.hot.move_to_end(asked.key)
                asked.told(part)
        return FetchAnswer(session_id=self.id, topics=list(topics.items()))

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def wait(self, timeout_ms: float) -> None:
        """Until a partition wakes, or the time is over."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_later(timeout_ms / 1000, self.wake)
        try:
            await self._woken
        finally:
            timer.cancel()
            self._woken = None

    def end(self) -> None:
        for part in self.parts.values():
            part.unwatch()


class FetchSessions:
    """The sessions of a broker, bounded as Kafka's are."""

    def __init__(self, clock: Clock, rng: Rng) -> None:
        self._clock = clock
        self._rng = rng
        self._sessions: OrderedDict[int, FetchSession] = OrderedDict()
        """By last use, the oldest first."""

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, request: Any) -> FetchSession | None:
        """The session that a request goes on with, changed as it says; None for a full fetch. A request that begins or
        ends one ends the one that it names.

        Raises:
            KafkaError: FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH, FETCH_SESSION_TOPIC_ID_ERROR (a session
            of names goes on with ids, or the reverse).
        """
        session_id, epoch = getattr(request, "session_id", 0), getattr(request, "session_epoch", FINAL)
        if epoch in (INITIAL, FINAL):
            self._end(session_id)
            return None
        session = self._sessions.get(session_id)
        if session is None:
            raise KafkaError(ErrorCode.fetch_session_id_not_found.value, f"there is no fetch session {session_id}")
        if epoch != session.epoch:
            raise KafkaError(
                ErrorCode.invalid_fetch_session_epoch.value, f"epoch {epoch} of a session that is at {session.epoch}"
            )
        if _by_ids(request) != session.by_ids:
            raise KafkaError(ErrorCode.fetch_session_topic_id_error.value, "a session names topics in one way")
        session.epoch = 1 if epoch == EPOCH_MAX else epoch + 1
        session.used_ms = self._clock.monotonic_ms()
        self._sessions.move_to_end(session_id)
        session.change(request)
        return session

    def begin(self, request: Any, answer: FetchAnswer) -> int:
        """The id of a new session over what was asked in full, and answered so; 0 when there is none."""
        wanted = getattr(request, "session_epoch", FINAL) == INITIAL
        count = sum(len(topic.partitions) for topic in request.topics)
        if not wanted or not count or not self._make_room(count):
            return 0
        session_id = 0
        while not session_id or session_id in self._sessions:
            session_id = int(self._rng.token()[:8], 16) & EPOCH_MAX
        session = self._sessions[session_id] = FetchSession(
            session_id, self._clock.monotonic_ms(), by_ids=_by_ids(request)
        )
        for topic, (key, parts) in zip(request.topics, answer.topics, strict=True):
            for asked, part in zip(topic.partitions, parts, strict=True):
                session.ask(key, asked).told(part)
        return session_id

    def _make_room(self, count: int) -> bool:
        """As Kafka does: for the session that nobody has used for long, or for a smaller one that has had its time."""
        if sum(len(s.parts) for s in self._sessions.values()) + count > PARTITIONS_MAX:
            return False
        if len(self._sessions) < SESSIONS_MAX:
            return True
        now = self._clock.monotonic_ms()
        oldest = next(iter(self._sessions.values()))
        if now - oldest.used_ms <= EVICTION_MS:
            safe = [s for s in self._sessions.values() if now - s.created_ms > EVICTION_MS]
            smallest = min(safe, key=lambda s: len(s.parts), default=None)
            if smallest is None or len(smallest.parts) >= count:
                return False
            oldest = smallest
        self._end(oldest.id)
        return True

    def _end(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.end()
