"""A whole cell under simulated time: brokers join, serve, die, freeze, are cut off, come back, hand partitions over, on
a hostile network.

The judge is at the end of this file and shares nothing with the brokers: it knows what was acked to whom, and what
readers get when everything is calm again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from dataplane.broker.autoscaler import Autoscaler
from dataplane.broker.engine import KafkaError
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import BrokerSettings, BrokerSpec, WalMode, WalSpec
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.state import BrokerStatus
from dataplane.stream import compaction
from dataplane.stream.batch import iter_batches
from providers.base.clock import SeededRng
from providers.base.errors import NotFound, YunheError
from providers.base.objects import ObjectInfo
from tests.dataplane.stream.batches import LZ4, SNAPPY, ZSTD, batch, keyed, packed, read_back
from tests.sim.hub import Hub, Message
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, HOSTILE, Bucket, DeviceClient, Disk, Faults, Host, StoreClient, World

PARTITIONS = 4
WAL_BYTES = 8 << 20
OBJECTS = "c/objects/"
CODECS = [0, SNAPPY, LZ4, ZSTD]
"""Of a compacted topic's batches, in turn."""
NEVER = 1_000_000_000
"""Retention lets whole blocks go, and so few records would be in one as soon as they are merged."""


@pytest.fixture(autouse=True)
def compact_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's records here are few: they are worth merging all the same."""
    monkeypatch.setattr(compaction, "BYTES_MIN", 1)
    monkeypatch.setattr(compaction, "FANOUT", 3)


class Volumes:
    """`BlockVolumes` of one host: the disks are attached everywhere beforehand."""

    def __init__(self, host: Host, disks: Mapping[str, Disk]) -> None:
        self._host = host
        self._disks = disks

    async def open(self, volume_id: str, zone: str) -> DeviceClient:
        if volume_id not in self._disks:
            raise NotFound(volume_id)
        return DeviceClient(self._host, self._disks[volume_id])

    async def close(self) -> None:
        pass


class ListingStore(StoreClient):
    """The bucket of a cell also lists: to find the newest snapshot."""

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1_000) -> Sequence[ObjectInfo]:
        def apply() -> Sequence[ObjectInfo]:
            keys = sorted(k for k in self.bucket.objects if k.startswith(prefix) and k > start_after)
            return [ObjectInfo(k, len(self.bucket.objects[k])) for k in keys[:limit]]

        found: Sequence[ObjectInfo] = await self._call("list", apply, changes=False)
        return found


class Life:
    """One process: from a start to a crash."""

    def __init__(self, cell: Cell, node_id: int) -> None:
        self.host = Host(cell.world, f"n{node_id}.{cell.lives}")
        cell.lives += 1
        self.address = ("10.0.0.1", 1_000 * node_id + cell.lives)
        wal = WalSpec(
            cell.mode,
            bytes_max=WAL_BYTES,
            volume=f"v{node_id}",
            volume_zones=("a", "b"),
            express="x",
        )
        broker = BrokerSpec(node_id, f"b-{node_id}", "ab"[node_id % 2], wal, host=self.address[0])
        bucket = ListingStore(self.host, cell.bucket)
        peers = cell.hub.peers_of(self.address)
        rng = SeededRng(f"{cell.seed}-{cell.lives}")
        self.node = Node(
            NodeConfig("cell", "c", broker, cell.settings, 9_092, self.address[1]),
            store=bucket,
            logs=AssignedLogs(
                "c",
                broker,
                bucket=bucket,
                volumes=Volumes(self.host, cell.disks),  # type: ignore[arg-type]
                express={"x": StoreClient(self.host, cell.express)},
                clock=self.host,
            ),
            peers=peers,
            clock=self.host,
            rng=rng,
            autoscaler=cell.autoscaler(node_id),
        )
        self.engine = NodeEngine(self.node, peers, clock=self.host, rng=rng)
        self.ready = False

    async def handle(self, message: Message) -> Message | None:
        await self.host.running()
        return await self.engine.handle(message) if self.ready else None


class Cell:
    """Brokers by node id, and the world they live in."""

    life_kind: type[Life] = Life

    def __init__(self, seed: int, mode: WalMode, faults: Faults, nodes: int = 3) -> None:
        self.seed, self.mode = seed, mode
        self.rng = random.Random(seed)
        self.world = World(seed, faults)
        self.hub = Hub(self.rng)
        self.bucket = Bucket("bucket", appends=False)
        self.express = Bucket("express", appends=True)
        self.disks = {f"v{n}": Disk(self.world, f"v{n}", WAL_BYTES, preempt_aborts=True) for n in range(1, nodes + 1)}
        self.settings = BrokerSettings(
            upload_interval_ms=700,
            cache_bytes_max=8 << 10,
            compaction_interval_ms=1_500,
            orphan_interval_ms=5_000,
        )
        self.autoscaler: Callable[[int], Autoscaler] = lambda _: Autoscaler()
        """Of a node that starts."""
        self.lives = 0
        self.nodes: dict[int, Life] = {}
        self.starting: dict[int, asyncio.Task[None]] = {}
        self.acked: dict[int, dict[bytes, int]] = {p: {} for p in range(PARTITIONS)}
        """Per partition: value → offset that its ack said."""
        self.seen: dict[int, dict[int, bytes]] = {p: {} for p in range(PARTITIONS)}
        """Per partition: offset → value that a consumer was shown while things went wrong."""
        self.writing = True
        self.configs: dict[str, str] = {}
        self.keys = 0
        """Keys that records have, in turn; 0: none."""

    async def start(self, node_id: int) -> None:
        """A process manager: starts the node, and starts it again whenever it gives up."""

        async def keep() -> None:
            while True:
                life = self.life_kind(self, node_id)
                self.nodes[node_id] = life
                self.hub.listen(life.address, life.handle)
                try:
                    await life.node.start()
                    life.ready = True
                    self.world.note(f"n{node_id} serves epoch {life.node.me.epoch}")
                    why: object = await asyncio.shield(life.node.failed)
                except YunheError as error:
                    why = error
                self.world.note(f"n{node_id} gave up: {why}")
                await self.crash(life)
                await asyncio.sleep(0.3)

        self.starting[node_id] = asyncio.create_task(keep())

    async def crash(self, life: Life) -> None:
        life.ready = False
        self.hub.leave(life.address)
        await life.node.kill()

    async def kill(self, node_id: int) -> None:
        self.starting.pop(node_id).cancel()
        await self.crash(self.nodes[node_id])
        self.world.note(f"n{node_id} killed")

    def serving(self, partition: int) -> list[Life]:
        """Who believes to serve it: more than one while an old owner does not know yet."""
        found = []
        for life in self.nodes.values():
            if not life.ready:
                continue
            topic = life.node.state.topics.get("t")
            if topic is not None and life.node.partitions.get(topic.streams[partition]) is not None:
                found.append(life)
        return found

    async def producer(self, partition: int) -> None:
        """Appends numbered values one at a time, idempotently, until acked or given up, through whoever claims to
        serve.
        """
        number = 0
        sequence, epoch = 0, 0
        while self.writing:
            value = b"p%d-%d" % (partition, number)
            while self.writing:
                claimants = self.serving(partition)
                if not claimants:
                    await asyncio.sleep(0.05)
                    continue
                life = self.rng.choice(claimants)
                key = b"%d" % (number % self.keys) if self.keys else None
                data = keyed((key, value), producer=100 + partition, epoch=epoch, sequence=sequence)
                if codec := CODECS[number % len(CODECS)] if self.keys else 0:
                    data = packed(data, codec)
                try:
                    async with asyncio.timeout(2):
                        await life.host.running()
                        done = await life.engine.partition("t", partition).append(data)
                except TimeoutError:
                    continue
                except KafkaError as error:
                    if "sequence" in str(error):
                        raise AssertionError(f"an idempotent producer lost its place: {error}") from error
                    await asyncio.sleep(0.05)
                    continue
                before = self.acked[partition].setdefault(value, done.base_offset)
                assert before == done.base_offset
                break
            else:
                return
            number += 1
            sequence += 1
            await asyncio.sleep(self.rng.uniform(0, 0.02))

    async def consumer(self, partition: int) -> None:
        """Reads on from where it is, of whoever claims to serve."""
        offset = 0
        while self.writing:
            await asyncio.sleep(self.rng.uniform(0.05, 0.2))
            claimants = self.serving(partition)
            if not claimants:
                continue
            try:
                log = self.rng.choice(claimants).engine.partition("t", partition)
                async with asyncio.timeout(2):
                    got = read_back(await log.read(offset, 4_096, minimum_one=True))
            except (KafkaError, TimeoutError):
                continue
            for at, value in got:
                before = self.seen[partition].setdefault(at, value)
                assert before == value, f"seed {self.seed}: offset {at} was {before!r}, and is {value!r}"
            offset = max([offset, *(at + 1 for at, _ in got)])

    async def _check_alive(self) -> None:
        """A broken test harness (or a bug that is no YunheError) must not look like a hung cell."""
        for task in self.starting.values():
            if task.done() and not task.cancelled():
                task.result()

    async def until(self, what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            await self._check_alive()
            assert asyncio.get_running_loop().time() < deadline, f"seed {self.seed}: {what} did not come about"
            await asyncio.sleep(0.05)

    async def create_topic(self) -> None:
        """Through whoever is ready, until the ledger has it."""
        for _ in range(100):
            life = next((x for x in self.nodes.values() if x.ready), None)
            try:
                if life is not None:
                    await life.engine.create_topic("t", PARTITIONS, self.configs)
                    return
            except KafkaError as error:
                if "exists" in str(error) or "changed meanwhile" in str(error):
                    return
            await asyncio.sleep(0.2)
        raise AssertionError("no topic")

    def all_serve(self) -> bool:
        lives = [life for life in self.nodes.values() if life.ready]
        return len(lives) == len(self.disks) and all(
            len({id(life) for life in self.serving(p)}) == 1 for p in range(PARTITIONS)
        )

    async def read_everything(self, partition: int) -> list[tuple[int, bytes]]:
        """As a consumer does: whoever serves it is asked, again after a move, until the high watermark is reached."""
        found: list[tuple[int, bytes]] = []
        offset: int | None = None
        for _ in range(2_000):
            try:
                [life] = self.serving(partition)
                log = life.engine.partition("t", partition)
                offset = log.start_offset if offset is None else offset
                if offset >= log.high_watermark:
                    return found
                data = await log.read(offset, 4_096, minimum_one=True)
            except (KafkaError, ValueError):
                data = b""  # it is being moved: balancing goes on
            if not data:
                await asyncio.sleep(0.05)
                continue
            found += [(o, v) for o, v in read_back(data) if o >= (offset or 0)]
            last = list(iter_batches(data))[-1][0]  # a compacted topic's batch may be empty
            offset = last.base_offset + last.last_offset_delta + 1
        raise AssertionError(f"seed {self.seed}: partition {partition} is not readable beyond {offset}")


async def disturb(cell: Cell, turns: int) -> None:
    """One disturbance after another, each undone before long."""
    for _ in range(turns):
        await asyncio.sleep(cell.rng.uniform(0.2, 2.5))
        victim = cell.rng.choice(list(cell.disks)).removeprefix("v")
        node_id = int(victim)
        life = cell.nodes[node_id]
        kind = cell.rng.choice(["kill", "freeze", "cut", "move", "move", "outage"])
        cell.world.note(f"disturbance {kind} n{node_id}")
        if kind == "kill" and node_id in cell.starting:
            await cell.kill(node_id)
            await asyncio.sleep(cell.rng.choice([0.2, 1.0, 4.0]))
            await cell.start(node_id)
        elif kind == "freeze":
            life.host.freeze()
            await asyncio.sleep(cell.rng.choice([0.5, 2.0, 8.0]))
            life.host.thaw()
        elif kind == "cut":
            others = [o for n, o in cell.nodes.items() if n != node_id]
            pairs = {frozenset((life.address, o.address)) for o in others}
            cell.hub.cut |= pairs
            await asyncio.sleep(cell.rng.choice([0.5, 3.0, 6.0]))
            cell.hub.cut -= pairs
        elif kind == "move" and life.ready:
            partition, target = cell.rng.randrange(PARTITIONS), cell.rng.randrange(1, len(cell.disks) + 1)
            try:
                async with asyncio.timeout(10):
                    await life.engine.move_partition("t", partition, target)
            except (KafkaError, TimeoutError) as error:
                cell.world.note(f"move refused: {error}")
        elif kind == "outage":
            hosts = [o.host for o in cell.nodes.values()]
            for host in hosts:
                host.cut_from.add(cell.bucket.name)
            await asyncio.sleep(cell.rng.choice([0.5, 3.0]))
            for host in hosts:
                host.cut_from.discard(cell.bucket.name)


async def scenario(
    seed: int,
    mode: WalMode,
    faults: Faults,
    turns: int,
    *,
    nodes: int = 3,
    configs: dict[str, str] | None = None,
    keys: int = 0,
    disturb: Callable[[Cell, int], Coroutine[None, None, None]] = disturb,
) -> tuple[Cell, list[str]]:
    cell = Cell(seed, mode, faults, nodes)
    cell.configs, cell.keys = configs or {}, keys
    for n in range(1, len(cell.disks) + 1):
        await cell.start(n)
    await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == len(cell.disks))
    await cell.create_topic()
    producers = [asyncio.create_task(cell.producer(p)) for p in range(PARTITIONS)]
    consumers = [asyncio.create_task(cell.consumer(p)) for p in range(PARTITIONS)]
    await disturb(cell, turns)
    cell.world.faults = CALM
    await cell.until("all partitions are served again", cell.all_serve)
    await asyncio.sleep(1)
    cell.writing = False
    await asyncio.gather(*producers, *consumers)
    await cell.until("all partitions are served again", cell.all_serve)
    await asyncio.sleep(100)  # what nothing refers to is deleted a minute after it was seen
    problems = judge_objects(CellMachine().dump(cell.nodes[1].node.state), cell.bucket.objects.keys())
    for p in range(PARTITIONS):
        read = await cell.read_everything(p)
        if keys:
            problems += judge_compacted(p, cell.acked[p], read, keys)
            continue
        problems += judge(p, cell.acked[p], read)
        problems += [f"partition {p}: {o} was shown and is gone" for o, v in cell.seen[p].items() if (o, v) not in read]
    for n in list(cell.starting):
        await cell.kill(n)
    return cell, problems


def judge(partition: int, acked: Mapping[bytes, int], read: Sequence[tuple[int, bytes]]) -> list[str]:
    """What is wrong with what was read, given what was acked: lost, moved, doubled, out of order, or with holes."""
    problems = []
    by_offset = dict(read)
    if [o for o, _ in read] != list(range(len(read))):
        problems.append(f"partition {partition}: offsets are not consecutive from 0")
    if len({v for _, v in read}) != len(read):
        problems.append(f"partition {partition}: a record was written twice")
    for value, offset in acked.items():
        if by_offset.get(offset) != value:
            problems.append(
                f"partition {partition}: {value!r} was acked at {offset}, where {by_offset.get(offset)!r} is"
            )
    numbers = [int(v.split(b"-")[1]) for _, v in read]
    if numbers != sorted(numbers):
        problems.append(f"partition {partition}: records are out of order")
    return problems


def judge_compacted(
    partition: int, acked: Mapping[bytes, int], read: Sequence[tuple[int, bytes]], keys: int
) -> list[str]:
    """What is wrong with what was read of a compacted topic: an acked record is gone that no newer one of its key
    replaces; one is elsewhere than where it was acked; out of order, or doubled; more is there than should be."""
    problems = []
    offsets = [o for o, _ in read]
    newest = {int(v.split(b"-")[1]) % keys: o for o, v in read}
    by_offset = dict(read)
    if offsets != sorted(set(offsets)) or len({v for _, v in read}) != len(read):
        problems.append(f"partition {partition}: records are out of order or doubled")
    for value, offset in acked.items():
        there = by_offset.get(offset)
        if there is not None and there != value:
            problems.append(f"partition {partition}: {value!r} was acked at {offset}, where {there!r} is")
        if there is None and newest.get(int(value.split(b"-")[1]) % keys, -1) <= offset:
            problems.append(f"partition {partition}: {value!r} at {offset} is gone, and nothing newer is there")
    if len(read) > len(acked) / 2:
        problems.append(f"partition {partition}: {len(read)} of {len(acked)} are still there")
    return problems


def judge_objects(state: Mapping[str, Any], bucket: Collection[str]) -> list[str]:
    """What is wrong with the bucket, given the ledger's state as plain values: an object that a stream needs and that
    is not there; one that is there and that no stream needs."""
    needed = {extent["object"] for stream in state["streams"].values() for extent in stream["extents"]}
    there = {name for name in bucket if name.startswith(OBJECTS)}
    return [f"{name} is missing" for name in sorted(needed - there)] + [
        f"{name} is left over" for name in sorted(there - needed)
    ]


def test_the_judge_of_objects_sees_what_is_missing_and_what_is_left_over() -> None:
    state = {"streams": {"1": {"extents": [{"object": "c/objects/a"}]}}}
    assert judge_objects(state, ["c/objects/a", "c/ledger/1"]) == []
    assert judge_objects(state, ["c/objects/b"]) == ["c/objects/a is missing", "c/objects/b is left over"]


def test_the_judge_sees_loss_duplicates_and_disorder() -> None:
    good = [(0, b"p0-0"), (1, b"p0-1"), (2, b"p0-2")]
    acked = {v: o for o, v in good}
    assert judge(0, acked, good) == []
    assert judge(0, acked, good[:2])
    assert judge(0, acked, [good[0], (1, b"p0-2"), (2, b"p0-1")])
    assert judge(0, {}, [good[0], (1, b"p0-0")])
    assert judge(0, {}, [good[0], (2, b"p0-1")])


def test_a_broker_that_comes_back_gets_its_share_of_the_partitions_and_loses_nothing() -> None:
    async def main() -> None:
        cell = Cell(7, WalMode.REGIONAL_BLOCK, CALM)
        for n in (1, 2, 3):
            await cell.start(n)
        await cell.until("three brokers", lambda: all(n in cell.nodes and cell.nodes[n].ready for n in (1, 2, 3)))
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)
        await cell.kill(2)
        await cell.until("the others serve all", lambda: all(len(cell.serving(p)) == 1 for p in range(PARTITIONS)))
        began = asyncio.get_running_loop().time()
        await cell.start(2)

        def led() -> list[int]:
            state = cell.nodes[1].node.state
            return sorted(sum(s.open.node == n for s in state.streams.values()) for n in (1, 2, 3))

        await cell.until("each leads its share", lambda: led()[0] >= 1 and cell.all_serve(), 30)
        assert asyncio.get_running_loop().time() - began < 10
        await asyncio.sleep(5)
        entries = cell.nodes[1].node.ledger.seq
        await asyncio.sleep(60)
        assert cell.nodes[1].node.ledger.seq == entries, "an idle cell that is even appends nothing"

    run(main())


@pytest.mark.parametrize("way", ["delete-records", "retention"])
def test_an_idempotent_producer_is_known_after_its_records_are_gone_and_its_broker_too(way: str) -> None:
    async def main() -> None:
        cell = Cell(11, WalMode.REGIONAL_BLOCK, CALM)
        cell.settings = dataclasses.replace(
            cell.settings, retention_interval_ms=1_000, balance_interval_ms=0, compaction_interval_ms=NEVER
        )
        for n in (1, 2, 3):
            await cell.start(n)
        await cell.until("three brokers", lambda: all(n in cell.nodes and cell.nodes[n].ready for n in (1, 2, 3)))
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)

        async def send(sequence: int, producer: int) -> None:
            for _ in range(200):
                try:
                    [life] = cell.serving(0)
                    data = batch(bytes(1_000), producer=producer, epoch=0, sequence=sequence)
                    await life.engine.partition("t", 0).append(data)
                    return
                except KafkaError as error:
                    assert "sequence" not in str(error), f"refused: {error}"
                except ValueError:
                    pass  # nobody serves it now
                await asyncio.sleep(0.1)
            raise AssertionError("not taken")

        for i in range(5):
            await send(i, 77)
        for i in range(30):
            await send(i, 78)  # another producer's records come last
            await asyncio.sleep(0.1)
        await asyncio.sleep(3)
        [owner] = cell.serving(0)
        before = owner.engine.partition("t", 0).start_offset
        if way == "delete-records":
            await owner.engine.delete_records("t", 0, -1)
        else:
            await owner.engine.configure_topic("t", {"retention.bytes": "2000"})
        await cell.until("records are gone", lambda: owner.engine.partition("t", 0).start_offset > before)
        await asyncio.sleep(3)
        await cell.kill(owner.node.node_id)
        await cell.until("another serves it", lambda: any(x is not owner for x in cell.serving(0)))
        await send(5, 77)
        await send(30, 78)

    run(main())


def test_retention_by_size_lets_the_oldest_go_and_its_objects_too() -> None:
    async def main() -> None:
        cell = Cell(9, WalMode.REGIONAL_BLOCK, CALM)
        cell.settings = dataclasses.replace(cell.settings, retention_interval_ms=2_000, compaction_interval_ms=NEVER)
        for n in (1, 2, 3):
            await cell.start(n)
        await cell.until("three brokers", lambda: all(n in cell.nodes and cell.nodes[n].ready for n in (1, 2, 3)))
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)
        engine = cell.nodes[1].engine
        await engine.configure_topic("t", {"retention.bytes": "20000"})
        sent: list[bytes] = []
        for i in range(60):
            sent.append(b"%04d" % i + bytes(1_000))
            for _ in range(50):
                try:
                    [life] = cell.serving(0)
                    await life.engine.partition("t", 0).append(batch(sent[-1]))
                    break
                except (KafkaError, ValueError):
                    await asyncio.sleep(0.1)  # balancing moves it
            await asyncio.sleep(0.2)
        names = {name for name in cell.bucket.objects if "/objects/" in name}
        await asyncio.sleep(90)
        found = await cell.read_everything(0)
        assert [value for _, value in found] == sent[found[0][0] :], "what is left is the end, whole and in order"
        held = sum(len(value) for _, value in found)
        assert 18_000 < held < 26_000, held
        gone = names - set(cell.bucket.objects)
        assert len(gone) > 10, "objects that hold nothing any more are deleted"

    run(main())


def test_the_judge_of_compacted_topics_sees_loss_and_disorder() -> None:
    acked = {b"p0-%d" % i: i for i in range(10)}
    good = [(8, b"p0-8"), (9, b"p0-9")]
    assert judge_compacted(0, acked, good, 2) == []
    assert judge_compacted(0, acked, good[1:], 2), "the even ones are gone"
    assert judge_compacted(0, acked, [(6, b"p0-6"), (9, b"p0-9")], 2), "a newer one is gone"
    assert judge_compacted(0, acked, [(8, b"p0-9"), (9, b"p0-8")], 2)
    assert judge_compacted(0, acked, [(o, v) for v, o in acked.items()], 2), "nothing was compacted"


MODES = [WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS, WalMode.OBJECT]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("seed", range(1, 9))
def test_nothing_acked_is_lost_doubled_or_reordered_whatever_happens_to_the_brokers(mode: WalMode, seed: int) -> None:
    print(f"seed {seed}")
    cell, problems = run(scenario(seed, mode, HOSTILE, turns=12))
    assert problems == [], f"seed {seed}: {problems}"
    assert sum(len(a) for a in cell.acked.values()) > 100
    assert any("-compaction/" in name for name in cell.nodes[1].node.state.objects), "something was compacted"
    statuses = [b.status for b in cell.nodes[1].node.state.brokers.values()]
    assert all(s is BrokerStatus.LIVE for s in statuses)


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_compacted_topic_keeps_each_key_s_newest_acked_record_whatever_happens_to_the_brokers(seed: int) -> None:
    print(f"seed {seed}")
    eager = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"}
    cell, problems = run(scenario(seed, WalMode.REGIONAL_BLOCK, HOSTILE, turns=12, configs=eager, keys=9))
    assert problems == [], f"seed {seed}: {problems}"
    assert sum(len(a) for a in cell.acked.values()) > 100
