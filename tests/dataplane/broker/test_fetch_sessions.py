"""What fetch sessions (KIP-227) promise, by requests of kio's schema: only changes travel, nothing is missed, idle
partitions cost nothing, and the cache is bounded as Kafka's is.
"""

from __future__ import annotations

import asyncio
import datetime
import random
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from kio import index

from dataplane.broker import fetch_sessions
from dataplane.broker.engine import KafkaError
from dataplane.broker.fetch_sessions import EPOCH_MAX, EVICTION_MS, FINAL, INITIAL, LOOK_AT_ALL_MS
from dataplane.broker.handlers.fetch import Fetch
from dataplane.broker.wire_fetch import FetchAnswer, FetchedPartition
from providers.base.clock import LoopClock, SeededRng
from tests.sim.virtualtime import run

RECORD = b"0123456789"
NOT_LEADER, NOT_FOUND, WRONG_EPOCH = 6, 70, 71
UNKNOWN_PARTITION, UNKNOWN_ID, INCONSISTENT_ID, SESSION_IDS = 3, 100, 103, 106
SCHEMA: Any = index.load_request_schema(1, 12)
MODULE = __import__(SCHEMA.__module__, fromlist=["FetchTopic"])
SCHEMA_OF_IDS: Any = index.load_request_schema(1, 18)
MODULE_OF_IDS = __import__(SCHEMA_OF_IDS.__module__, fromlist=["FetchTopic"])

Positions = Mapping[tuple[str, int], int]


class Log:
    """A partition of records of ten bytes; counts how often it is looked at."""

    leader_epoch = 0

    def __init__(self) -> None:
        self.high_watermark = self.start_offset = self.looks = 0
        self.open = True
        self.watchers: set[Callable[[], None]] = set()

    def append(self, count: int = 1) -> None:
        self.high_watermark += count
        self.wake()

    def wake(self) -> None:
        for wake in list(self.watchers):
            wake()

    @property
    def last_stable_offset(self) -> int:
        return self.high_watermark

    def read_cached(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> list[bytes]:
        self.looks += 1
        count = max(bytes_max // len(RECORD), 1 if minimum_one else 0)
        return [RECORD] * min(count, self.high_watermark - offset)

    def watch(self, wake: Callable[[], None]) -> None:
        self.watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self.watchers.discard(wake)


def id_of(topic: str, life: int = 1) -> uuid.UUID:
    """The id of a topic that was made for the first, second, … time."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{topic}-{life}")


class Engine:
    node_id = 1

    def __init__(self, **partitions: int) -> None:
        self.ids = {id_of(topic): topic for topic in partitions}
        self.logs = {(topic, p): Log() for topic, count in partitions.items() for p in range(count)}

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return self.ids.get(topic_id)

    def topic(self, name: str) -> str | None:
        return name if name in self.ids.values() else None

    def leader(self, topic: str, partition: int) -> None:
        return None

    def partition(self, topic: str, partition: int) -> Log:
        log = self.logs.get((topic, partition))
        if log is None or not log.open:
            raise KafkaError(NOT_LEADER, "elsewhere")
        return log


def request(
    session: int = 0, epoch: int = FINAL, asked: Positions | None = None, wait_ms: int = 0, **fields: Any
) -> Any:
    """`ids`: name topics by these ids, in a version of the protocol that does."""
    ids: Mapping[str, uuid.UUID] | None = fields.get("ids")
    schema, kinds = (SCHEMA, MODULE) if ids is None else (SCHEMA_OF_IDS, MODULE_OF_IDS)

    def named(name: str) -> dict[str, Any]:
        return {"topic": name} if ids is None else {"topic_id": ids[name]}

    topics: dict[str, list[Any]] = {}
    for (topic, partition), offset in (asked or {}).items():
        part = kinds.FetchPartition(
            partition=partition, fetch_offset=offset, partition_max_bytes=fields.get("part_bytes", 1 << 20)
        )
        topics.setdefault(topic, []).append(part)
    forgotten: dict[str, list[int]] = {}
    for topic, partition in fields.get("forgotten", ()):
        forgotten.setdefault(topic, []).append(partition)
    return schema(
        max_wait=datetime.timedelta(milliseconds=wait_ms),
        min_bytes=1,
        max_bytes=fields.get("bytes_max", 1 << 20),
        session_id=session,
        session_epoch=epoch,
        topics=tuple(kinds.FetchTopic(**named(name), partitions=tuple(parts)) for name, parts in topics.items()),
        forgotten_topics_data=tuple(
            kinds.ForgottenTopic(**named(name), partitions=tuple(parts)) for name, parts in forgotten.items()
        ),
    )


class World:
    def __init__(self, **partitions: int) -> None:
        self.engine = Engine(**partitions)
        self.fetch = Fetch(self.engine, LoopClock(), SeededRng(1))  # type: ignore[arg-type]

    async def ask(self, *args: Any, **kwargs: Any) -> FetchAnswer:
        found = self.fetch.begin(request(*args, **kwargs))
        return found if isinstance(found, FetchAnswer) else await found

    async def begin(self, asked: Positions, **kwargs: Any) -> int:
        answer = await self.ask(0, INITIAL, asked, **kwargs)
        assert len(told(answer)) == len(asked), "the first answer is whole"
        assert answer.session_id > 0
        return answer.session_id

    @property
    def looks(self) -> int:
        return sum(log.looks for log in self.engine.logs.values())


def told(answer: FetchAnswer) -> dict[Any, FetchedPartition]:
    assert answer.error_code == 0
    return {(topic, part.partition): part for topic, parts in answer.topics for part in parts}


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__, in_virtual_time.__doc__ = test.__name__, test.__doc__
    return in_virtual_time


@virtually
async def test_an_answer_holds_only_what_has_changed() -> None:
    world = World(t=3)
    session = await world.begin({("t", p): 0 for p in range(3)})
    assert told(await world.ask(session, 1)) == {}
    world.engine.logs["t", 1].append(2)
    [(key, part)] = told(await world.ask(session, 2)).items()
    assert (key, part.size, part.high_watermark) == (("t", 1), 20, 2)
    assert told(await world.ask(session, 3, {("t", 1): 2})) == {}, "the consumer has gone on"
    world.engine.logs["t", 2].start_offset = 5
    await asyncio.sleep(LOOK_AT_ALL_MS / 1000)
    [(key, part)] = told(await world.ask(session, 4)).items()
    assert (key, part.log_start_offset) == (("t", 2), 5)


@virtually
async def test_records_that_the_consumer_does_not_go_on_from_are_sent_again() -> None:
    world = World(t=1)
    session = await world.begin({("t", 0): 0})
    world.engine.logs["t", 0].append()
    for epoch in (1, 2, 3):
        assert told(await world.ask(session, epoch))["t", 0].size == 10


@virtually
async def test_a_fetch_that_waits_wakes_at_the_first_record() -> None:
    world = World(t=200)
    session = await world.begin({("t", p): 0 for p in range(200)})
    await world.ask(session, 1)
    waiting = asyncio.create_task(world.ask(session, 2, wait_ms=60_000))
    await asyncio.sleep(0.5)
    before = world.looks
    world.engine.logs["t", 77].append()
    assert list(told(await waiting)) == [("t", 77)]
    assert world.looks - before == 1 and asyncio.get_running_loop().time() < 1


@virtually
async def test_a_fetch_over_idle_partitions_looks_at_none_of_them() -> None:
    world = World(t=1_000)
    session = await world.begin({("t", p): 0 for p in range(1_000)})
    await world.ask(session, 1)
    before = world.looks
    for epoch in range(2, 12):
        assert told(await world.ask(session, epoch)) == {}
    assert world.looks == before
    for epoch in range(12, 32):
        await world.ask(session, epoch, wait_ms=500)
    assert world.looks - before <= 10 * 1_000, "once a second they are"


@virtually
async def test_what_is_added_and_forgotten_counts_at_once() -> None:
    world = World(t=2, u=1)
    session = await world.begin({("t", 0): 0})
    for log in world.engine.logs.values():
        log.append()
    assert told(await world.ask(session, 1, {("u", 0): 0})).keys() == {("t", 0), ("u", 0)}
    assert told(await world.ask(session, 2, forgotten=[("t", 0), ("t", 9)])).keys() == {("u", 0)}
    waiting = asyncio.create_task(world.ask(session, 3, {("u", 0): 1}, wait_ms=100))
    await asyncio.sleep(0.01)
    world.engine.logs["t", 0].append()
    assert told(await waiting) == {} and not world.engine.logs["t", 0].watchers


@virtually
async def test_a_partition_that_goes_and_comes_back_is_told_both_times() -> None:
    world = World(t=2)
    session = await world.begin({("t", p): 0 for p in range(2)})
    await world.ask(session, 1)
    log = world.engine.logs["t", 0]
    waiting = asyncio.create_task(world.ask(session, 2, wait_ms=60_000))
    await asyncio.sleep(0.01)
    log.open = False
    log.wake()
    assert told(await waiting)["t", 0].error_code == NOT_LEADER
    assert told(await world.ask(session, 3))["t", 0].error_code == NOT_LEADER
    world.engine.logs["t", 0] = Log()
    [(key, part)] = told(await world.ask(session, 4)).items()
    assert (key, part.error_code, part.high_watermark) == (("t", 0), 0, 0)
    assert told(await world.ask(session, 5)) == {}


@virtually
async def test_partitions_with_much_to_read_do_not_starve_others() -> None:
    world = World(t=4)
    for log in world.engine.logs.values():
        log.append(1_000)
    session = await world.begin({("t", p): 0 for p in range(4)}, bytes_max=20)
    at = dict.fromkeys(range(4), 0)
    asked: dict[tuple[str, int], int] = {}
    for epoch in range(1, 41):
        answer = told(await world.ask(session, epoch, asked, bytes_max=20, part_bytes=1_000))
        for (_, p), part in answer.items():
            at[p] += part.size // 10
        asked = {key: at[key[1]] for key in answer}
    assert max(at.values()) - min(at.values()) <= 2 < min(at.values())


@virtually
async def test_unknown_sessions_and_wrong_epochs_are_refused_and_change_nothing() -> None:
    world = World(t=1)
    assert (await world.ask(12345, 1)).error_code == NOT_FOUND
    session = await world.begin({("t", 0): 0})
    for epoch in (2, 7, EPOCH_MAX):
        assert (await world.ask(session, epoch)).error_code == WRONG_EPOCH
    await world.ask(session, 1)
    assert (await world.ask(session, 1)).error_code == WRONG_EPOCH, "each epoch once"
    told(await world.ask(session, 2))


@virtually
async def test_a_request_that_ends_a_session_ends_it_and_is_answered_in_full() -> None:
    world = World(t=1)
    session = await world.begin({("t", 0): 0})
    answer = await world.ask(session, FINAL, {("t", 0): 0})
    assert answer.session_id == 0 and len(told(answer)) == 1
    assert (await world.ask(session, 1)).error_code == NOT_FOUND
    first = await world.begin({("t", 0): 0})
    second = await world.ask(first, INITIAL, {("t", 0): 0})
    assert second.session_id not in (0, first) and (await world.ask(first, 1)).error_code == NOT_FOUND


@virtually
async def test_epochs_begin_anew_after_the_last_one() -> None:
    world = World(t=1)
    session = await world.begin({("t", 0): 0})
    world.fetch.sessions._sessions[session].epoch = EPOCH_MAX
    told(await world.ask(session, EPOCH_MAX))
    told(await world.ask(session, 1))


IDS = {topic: id_of(topic) for topic in ("t", "u")}


@virtually
async def test_topics_that_are_named_by_ids_are_answered_by_ids() -> None:
    world = World(t=2, u=1)
    world.engine.logs["u", 0].append()
    key_t, key_u = IDS["t"], IDS["u"]
    first = await world.ask(0, INITIAL, {("t", 0): 0, ("u", 0): 0}, ids=IDS)
    assert {key: part.size for key, part in told(first).items()} == {(key_t, 0): 0, (key_u, 0): 10}
    session = first.session_id
    world.engine.logs["t", 0].append()
    assert told(await world.ask(session, 1, {("u", 0): 1}, ids=IDS)).keys() == {(key_t, 0)}
    world.engine.logs["t", 1].append()
    assert told(await world.ask(session, 2, {("t", 1): 0}, forgotten=[("t", 0)], ids=IDS)).keys() == {(key_t, 1)}
    whole = await world.ask(session, FINAL, {("t", 0): 0}, ids=IDS)
    assert (whole.session_id, told(whole)[key_t, 0].size) == (0, 10)


@virtually
async def test_an_id_that_no_topic_has_is_refused_until_one_has_it() -> None:
    world = World(t=1)
    ids = {**IDS, "t": id_of("t", 2)}
    first = await world.ask(0, INITIAL, {("t", 0): 0}, ids=ids)
    assert [part.error_code for part in told(first).values()] == [UNKNOWN_ID]
    zero = await world.ask(0, FINAL, {("t", 0): 0}, ids={"t": uuid.UUID(int=0)})
    assert [part.error_code for part in told(zero).values()] == [UNKNOWN_ID]
    assert [part.error_code for part in told(await world.ask(first.session_id, 1, ids=ids)).values()] == [UNKNOWN_ID]
    world.engine.ids = {ids["t"]: "t"}
    [(key, part)] = told(await world.ask(first.session_id, 2, ids=ids)).items()
    assert (key, part.error_code, part.high_watermark) == ((ids["t"], 0), 0, 0)


@virtually
async def test_a_session_hears_that_its_topic_is_gone_or_another_one_now() -> None:
    world = World(t=1)
    session = (await world.ask(0, INITIAL, {("t", 0): 0}, ids=IDS)).session_id
    await world.ask(session, 1, ids=IDS)
    world.engine.logs["t", 0].wake()
    world.engine.ids = {}
    assert [part.error_code for part in told(await world.ask(session, 2, ids=IDS)).values()] == [UNKNOWN_PARTITION]
    world.engine.ids = {id_of("t", 2): "t"}
    assert [part.error_code for part in told(await world.ask(session, 3, ids=IDS)).values()] == [INCONSISTENT_ID]
    again = {**IDS, "t": id_of("t", 2)}
    answer = told(await world.ask(session, 4, {("t", 0): 0}, forgotten=[], ids=again))
    assert answer[again["t"], 0].error_code == 0 and answer[IDS["t"], 0].error_code == INCONSISTENT_ID


@virtually
async def test_a_session_names_topics_in_one_way() -> None:
    world = World(t=1)
    by_name = await world.begin({("t", 0): 0})
    assert (await world.ask(by_name, 1, ids=IDS)).error_code == SESSION_IDS
    by_id = (await world.ask(0, INITIAL, {("t", 0): 0}, ids=IDS)).session_id
    assert (await world.ask(by_id, 1)).error_code == SESSION_IDS
    for session, ids in ((by_name, None), (by_id, IDS)):
        told(await world.ask(session, 1, ids=ids))


@pytest.mark.parametrize("sessions", [3])
def test_a_full_cache_evicts_as_kafka_does(sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_sessions, "SESSIONS_MAX", sessions)

    async def main() -> None:
        world = World(t=9)
        some = {("t", p): 0 for p in range(2)}
        ids = [await world.begin(some) for _ in range(sessions)]
        answer = await world.ask(0, INITIAL, some)
        assert (answer.session_id, len(told(answer))) == (0, 2), "all are new: served without a session"
        await asyncio.sleep(EVICTION_MS / 1000 / 2)
        told(await world.ask(ids[0], 1))
        await asyncio.sleep(EVICTION_MS / 1000 / 2 + 1)
        new = await world.begin(some)  # nobody has used the second for long
        assert (await world.ask(ids[1], 1)).error_code == NOT_FOUND
        told(await world.ask(ids[2], 1))
        assert (await world.ask(0, INITIAL, {("t", 0): 0})).session_id == 0, "no larger than any that has had its time"
        await world.begin({("t", p): 0 for p in range(9)})
        gone = [s for s, epoch in ((ids[0], 2), (ids[2], 2), (new, 1)) if (await world.ask(s, epoch)).error_code]
        assert len(gone) == 1 and gone != [new]

    run(main())


def test_the_partitions_of_all_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_sessions, "PARTITIONS_MAX", 5)

    async def main() -> None:
        world = World(t=3)
        three = {("t", p): 0 for p in range(3)}
        await world.begin(three)
        assert (await world.ask(0, INITIAL, three)).session_id == 0

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_a_consumer_with_a_session_reads_everything_whatever_happens(seed: int) -> None:
    """Partitions grow, go and come back; requests and answers get lost; the consumer follows the protocol."""

    async def main() -> None:
        rng = random.Random(seed)
        world = World(t=5)
        logs = world.engine.logs
        at = dict.fromkeys(logs, 0)
        known_end = dict.fromkeys(logs, -1)
        session, epoch, changed = 0, INITIAL, dict(at)
        forgotten: list[tuple[str, int]] = []
        asking = set(logs)
        for turn in range(400):
            calm = turn >= 360
            for log in logs.values():
                if not calm and rng.random() < 0.05:
                    log.append(rng.randint(1, 5))
                if rng.random() < (1 if calm else 0.03):
                    log.open = calm or not log.open
                    log.wake()
            answer = await world.ask(
                session, epoch, changed, rng.choice([0, 20]), bytes_max=rng.choice([10, 50, 1_000]), forgotten=forgotten
            )
            if rng.random() < 0.05 and not calm:
                session, epoch, asking = session, INITIAL, set(logs)  # the answer is lost
                changed, forgotten = dict(at), []
                continue
            assert answer.error_code == 0
            session = answer.session_id
            epoch = epoch + 1 if session else INITIAL
            moved = set()
            for key, part in told(answer).items():
                if not part.error_code:
                    at[key] += part.size // 10
                    known_end[key] = part.high_watermark
                    moved.add(key)
            pause = set(logs) if calm else {key for key in logs if rng.random() < 0.9}
            changed = {key: at[key] for key in pause if key in moved or key not in asking}
            forgotten = sorted(asking - pause)
            asking = pause
            assert all(at[key] <= logs[key].high_watermark for key in logs)
        ends = {key: log.high_watermark for key, log in logs.items()}
        assert (at, known_end) == (ends, ends)

    run(main())
