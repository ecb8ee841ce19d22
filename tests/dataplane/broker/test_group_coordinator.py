"""What the coordinator promises around its groups: silence, late members, durability, snapshots, a successor. Over a
log in memory, in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from dataplane.broker.classic_groups import ClassicGroups
from dataplane.broker.consumer_group import JOIN, LEAVE, NOTHING, Beat, Beaten, Parts
from dataplane.broker.consumer_groups import SESSION_MS, ConsumerGroups
from dataplane.broker.engine import Appended, KafkaError, PartitionView, TopicView
from dataplane.broker.group import Committed, Member
from dataplane.broker.groups import OFFSETS_TOPIC, SNAPSHOT_COMMITS, GroupCoordinator
from dataplane.stream.batch import parse_header, patch
from providers.base.clock import LoopClock, SeededRng
from tests.sim.virtualtime import run

ID = "0" * 32


class Log:
    """The offsets topic's one partition. `refuses`: appends are, from now on; `moved`: it is another broker's."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bytes]] = []
        self.start_offset = self.high_watermark = 0
        self.refuses = self.moved = False

    async def append(self, batch: bytes) -> Appended:
        if self.refuses:
            raise KafkaError(ErrorCode.request_timed_out.value, "full")
        if self.moved:
            raise KafkaError(ErrorCode.not_leader_or_follower.value, "moved")
        base, header = self.high_watermark, parse_header(batch)
        placed = bytearray(batch)
        patch(placed, base, 0)
        self.batches.append((base, bytes(placed)))
        last = base + header.last_offset_delta
        self.high_watermark = last + 1
        await asyncio.sleep(0.001)
        return Appended(base, last, 0)

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        return next((data for base, data in self.batches if base >= offset), b"")

    @property
    def records(self) -> int:
        return sum(parse_header(data).record_count for base, data in self.batches if base >= self.start_offset)


class Engine:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.partitions = 4
        self.changed: Callable[[str, int, Any], None] = lambda *_: None

    def topic(self, name: str) -> TopicView | None:
        count = {OFFSETS_TOPIC: 1, "t": self.partitions}.get(name)
        return None if count is None else TopicView(name, ID, [PartitionView(p, p, 1, 0) for p in range(count)])

    def brokers(self) -> list[Any]:
        return []

    def on_partitions_changed(self, callback: Callable[[str, int, Any], None]) -> None:
        self.changed = callback

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        self.log.start_offset = before_offset
        self.log.batches = [(base, data) for base, data in self.log.batches if base >= before_offset]
        return before_offset


class Coordinator:
    """One broker's, over a log that outlives it."""

    def __init__(self, log: Log) -> None:
        engine: Any = Engine(log)
        self.engine: Engine = engine
        clock = LoopClock()
        self.groups = GroupCoordinator(engine, clock=clock)
        self.consumers = ConsumerGroups(self.groups, engine, clock)
        self.classic = ClassicGroups(self.groups, clock=clock, rng=SeededRng(1))

    async def begin(self) -> Coordinator:
        self.engine.changed(OFFSETS_TOPIC, 0, self.engine.log)
        while not self.groups.shards():  # noqa: ASYNC110 -- loading has no event for tests
            await asyncio.sleep(0.001)
        return self

    async def beat(self, member: str, epoch: int, owned: Parts | None = None) -> Beaten:
        joins = {"topics": ("t",), "rebalance_timeout_ms": 10_000} if epoch == JOIN else {}
        beaten, _ = await self.consumers.heartbeat("g", Beat(member, epoch, owned=owned, **joins))  # type: ignore[arg-type]
        return beaten

    def commit(self, offset: int, member: str = "", epoch: int = -1) -> Coroutine[Any, Any, ErrorCode]:
        return self.groups.commit("g", member, epoch, {("t", 0): Committed(offset, -1, None)})

    @property
    def members(self) -> set[str]:
        found = self.consumers.find("g")
        return set(found.members) if found is not None else set()

    async def live(self, seconds: float, **epochs: int) -> None:
        """These members go on heartbeating."""
        for _ in range(int(seconds)):
            for member, epoch in epochs.items():
                epochs[member] = (await self.beat(member, epoch)).epoch
            await asyncio.sleep(1)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__ = test.__name__
    return in_virtual_time


@virtually
async def test_a_member_that_falls_silent_is_put_out_and_its_partitions_are_others() -> None:
    here = await Coordinator(Log()).begin()
    await here.beat("one", JOIN)
    await here.beat("two", JOIN)
    one = await here.beat("one", 1, NOTHING)
    two = await here.beat("two", 2)
    await here.live(SESSION_MS / 1000 - 1, two=two.epoch)
    assert here.members == {"one", "two"}
    await here.live(4, two=two.epoch)
    assert here.members == {"two"}
    with pytest.raises(KafkaError) as refused:
        await here.beat("one", one.epoch)
    assert refused.value.code == ErrorCode.unknown_member_id
    found = here.consumers.find("g")
    assert found is not None and len(found.members["two"].assigned) == 4


@virtually
async def test_a_member_that_does_not_give_back_in_time_is_put_out() -> None:
    here = await Coordinator(Log()).begin()
    one = await here.beat("one", JOIN)
    await here.beat("two", JOIN)
    await here.live(9, one=one.epoch, two=2)
    assert here.members == {"one", "two"}
    with pytest.raises(KafkaError):
        await here.live(5, one=one.epoch, two=2)
    assert here.members == {"two"}


@virtually
async def test_what_cannot_be_made_durable_is_refused_and_has_not_happened() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    one = await here.beat("one", JOIN)
    log.refuses = True
    for change in (here.beat("two", JOIN), here.beat("one", LEAVE)):
        with pytest.raises(KafkaError) as refused:
            await change
        assert refused.value.code == ErrorCode.coordinator_not_available
    assert await here.commit(5, "one", one.epoch) is not ErrorCode.none
    assert here.members == {"one"} and here.groups.committed("g", None) == {}
    assert (await here.beat("one", one.epoch)).epoch == one.epoch, "which changes nothing"
    log.refuses = False
    assert (await here.beat("two", JOIN)).epoch == one.epoch + 1


@virtually
async def test_whoever_has_lost_the_partition_says_that_it_is_not_the_coordinator() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    one = await here.beat("one", JOIN)
    joined = await here.classic.join(
        "c", Member("", None, "client", "host", 10_000, 10_000, [("range", b"")], 0.0), "consumer", id_required=False
    )
    log.moved = True
    with pytest.raises(KafkaError) as refused:
        await here.beat("two", JOIN)
    assert refused.value.code == ErrorCode.not_coordinator
    assert await here.commit(1, "one", one.epoch) is ErrorCode.not_coordinator
    synced = await here.classic.sync("c", joined.member_id, joined.generation, {joined.member_id: b"all"})
    assert (synced.error, synced.assignment) == (ErrorCode.not_coordinator, b"")


@virtually
async def test_changes_of_one_group_are_decided_one_after_the_other() -> None:
    here = await Coordinator(Log()).begin()
    beaten = await asyncio.gather(*(here.beat(f"m{i}", JOIN) for i in range(20)))
    assert sorted(b.epoch for b in beaten) == list(range(1, 21))
    assert len(here.members) == 20


@virtually
async def test_a_successor_knows_everything_even_after_snapshots() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    one = await here.beat("one", JOIN)
    joining = asyncio.create_task(
        here.classic.join(
            "c", Member("", "i", "client", "host", 10_000, 10_000, [("range", b"")], 0.0), "consumer", id_required=False
        )
    )
    joined = await joining
    synced = await here.classic.sync("c", joined.member_id, joined.generation, {joined.member_id: b"all"}, "i")
    assert synced.assignment == b"all"
    for offset in range(SNAPSHOT_COMMITS + 10):
        assert await here.commit(offset, "one", one.epoch) is ErrorCode.none
    await asyncio.sleep(0.1)
    assert log.start_offset > 0 and log.records < 100, "a snapshot was taken, and what is before it trimmed"
    successor = await Coordinator(log).begin()
    assert successor.groups.committed("g", None)["t", 0] == Committed(SNAPSHOT_COMMITS + 9, -1, None)
    assert successor.consumers.find("g") == here.consumers.find("g")
    assert (await successor.beat("one", one.epoch)).epoch == one.epoch
    assert successor.classic.heartbeat("c", joined.member_id, joined.generation, "i") is ErrorCode.none
    again = await successor.classic.sync("c", joined.member_id, joined.generation, {}, "i")
    assert again.assignment == b"all"


@virtually
async def test_a_group_without_members_and_offsets_is_forgotten_and_one_with_offsets_is_not() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    one = await here.beat("one", JOIN)
    await here.commit(1, "one", one.epoch)
    await here.beat("one", LEAVE)
    await asyncio.sleep(1)
    assert here.consumers.find("g") is not None
    assert (await Coordinator(log).begin()).consumers.find("g") is not None
    assert await here.groups.delete("g") is ErrorCode.none
    await asyncio.sleep(1)
    successor = await Coordinator(log).begin()
    for coordinator in (here, successor):
        assert coordinator.consumers.find("g") is None and coordinator.groups.find("g") is None


@virtually
async def test_a_group_is_deleted_durably_or_not_at_all() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    one = await here.beat("one", JOIN)
    await here.commit(1, "one", one.epoch)
    assert await here.groups.delete("g") is ErrorCode.non_empty_group
    await here.beat("one", LEAVE)
    log.refuses = True
    assert await here.groups.delete("g") is not ErrorCode.none
    assert here.consumers.find("g") is not None and here.groups.committed("g", None)
    log.refuses = False
    assert await here.groups.delete("g") is ErrorCode.none
    successor = await Coordinator(log).begin()
    assert successor.consumers.find("g") is None and successor.groups.committed("g", None) == {}


@virtually
async def test_a_classic_group_that_emptied_is_empty_for_its_successor() -> None:
    log = Log()
    here = await Coordinator(log).begin()
    new = Member("", None, "client", "host", 10_000, 10_000, [("range", b"")], 0.0)
    joined = await here.classic.join("c", new, "consumer", id_required=False)
    await here.classic.sync("c", joined.member_id, joined.generation, {})
    assert here.classic.leave("c", joined.member_id, None) is ErrorCode.none
    await asyncio.sleep(1)
    assert (await Coordinator(log).begin()).groups.find("c") is None


@virtually
async def test_members_of_one_protocol_keep_those_of_the_other_out() -> None:
    here = await Coordinator(Log()).begin()
    one = await here.beat("one", JOIN)

    def newcomer() -> Member:
        return Member("", None, "client", "host", 10_000, 10_000, [("range", b"")], 0.0)

    refused = await here.classic.join("g", newcomer(), "consumer", id_required=False)
    assert refused.error is ErrorCode.inconsistent_group_protocol
    await here.beat("one", LEAVE)
    assert (
        one.epoch == 1
        and (await here.classic.join("g", newcomer(), "consumer", id_required=False)).error is ErrorCode.none
    )
    with pytest.raises(KafkaError) as other:
        await here.beat("one", JOIN)
    assert other.value.code == ErrorCode.group_id_not_found
