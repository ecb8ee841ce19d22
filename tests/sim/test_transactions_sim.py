"""Transactions in a whole cell under simulated time: coordinators, owners and clients die, freeze, are cut off and move
while producers write to several partitions at once.

The judge knows which transactions were committed, and reads with aiokafka's own reader of fetched records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.groups import OFFSETS_TOPIC, GroupCoordinator
from dataplane.broker.transaction_services import TransactionServices
from dataplane.broker.transactions import TRANSACTIONS_TOPIC
from dataplane.broker.txn_verify import Writer
from dataplane.contract.assignment import WalMode
from dataplane.stream.batch import iter_batches, parse_header
from tests.dataplane.stream.batches import LZ4, SNAPPY, ZSTD, batch, keyed, packed, unpacked
from tests.sim.test_cell_sim import PARTITIONS, Cell, Life, disturb
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, HOSTILE

T = TypeVar("T")

CLIENTS = 3
COMPACTED = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"}
LOST = {  # what ends a transaction for its producer; anything else is tried again
    ErrorCode.producer_fenced,
    ErrorCode.invalid_producer_epoch,
    ErrorCode.invalid_txn_state,
    ErrorCode.invalid_producer_id_mapping,
    ErrorCode.out_of_order_sequence_number,
}


class TxnLife(Life):
    """A broker with its coordinators."""

    def __init__(self, cell: Cell, node_id: int) -> None:
        self._ready = False
        super().__init__(cell, node_id)
        self.groups = GroupCoordinator(self.engine, clock=self.host)
        self.services = TransactionServices(self.engine, self.groups, self.host)

    @property
    def ready(self) -> bool:
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        if ready and not self._ready:
            self.engine.attach()
        self._ready = ready


class TxnCell(Cell):
    """Brokers that coordinate transactions, and what their clients know."""

    life_kind = TxnLife

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.committed: set[bytes] = set()
        self.seen: set[bytes] = set()
        """What readers of committed records were given at any time."""
        self.ended = 0
        self.placed: dict[bytes, tuple[int, bytes, int]] = {}
        """Of a compacted topic: partition, key and acked offset of each value."""

    def key(self, value: bytes) -> bytes:
        """One of `keys`."""
        return b"%d" % (sum(value) % self.keys)

    async def crash(self, life: Life) -> None:
        await super().crash(life)
        assert isinstance(life, TxnLife)
        await life.services.coordinator.close()
        await life.groups.close()

    async def ask(self, call: Callable[[TxnLife], Awaitable[T]], lives: Callable[[], list[Any]]) -> T:
        """Until somebody has done it: a time-out is asked again, as a client does.

        Raises:
            KafkaError: one of LOST.
        """
        while True:
            ready = [life for life in lives() if life.ready]
            if ready:
                life = self.rng.choice(ready)
                try:
                    async with asyncio.timeout(3):
                        await life.host.running()
                        return await call(life)
                except TimeoutError:
                    continue
                except asyncio.CancelledError:
                    still_wanted()
                except KafkaError as error:
                    if ErrorCode(error.code) in LOST:
                        raise
            await asyncio.sleep(0.03)

    def everybody(self) -> list[Any]:
        return list(self.nodes.values())


def still_wanted() -> None:
    """The broker that was asked died in the middle; unless it is the asker that is to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Client:
    """A transactional producer, which crashes now and then and begins anew."""

    def __init__(self, cell: TxnCell, number: int) -> None:
        self.cell, self.name = cell, f"x{number}"
        self.timeout_ms = 4_000 if number == 0 else 60_000
        self.producer = (-1, -1)
        self.sequences: dict[int, int] = {}
        self.late: set[asyncio.Task[None]] = set()

    async def init(self) -> None:
        self.producer = await self.cell.ask(
            lambda life: life.services.coordinator.initialise(self.name, self.timeout_ms, (-1, -1)),
            self.cell.everybody,
        )
        self.sequences = {}

    async def run(self) -> None:
        count = 0
        await self.init()
        while self.cell.writing:
            count += 1
            try:
                if not await self.transaction(count):
                    await self.init()
            except KafkaError as error:
                self.cell.world.note(f"{self.name} lost transaction {count}: {error.message}")
                await self.init()
        await self.init()  # whatever it left open is aborted
        await asyncio.gather(*self.late)

    async def transaction(self, count: int) -> bool:
        """False when the client crashed in the middle."""
        cell, rng = self.cell, self.cell.rng
        partitions = rng.sample(range(PARTITIONS), rng.randint(1, 3))
        coordinators = cell.everybody
        producer = self.producer
        where = [("t", p) for p in partitions]
        await cell.ask(lambda life: life.services.coordinator.add(self.name, producer, where), coordinators)
        values = []
        for p in partitions:
            for k in range(rng.randint(1, 2)):
                value = f"{self.name}-{count}-{p}-{k}".encode()
                await self.send(p, value)
                values.append(value)
        if rng.random() < 0.1:
            return False
        commit = rng.random() < 0.6
        await cell.ask(lambda life: life.services.coordinator.end(self.name, producer, commit), coordinators)
        if commit:
            cell.committed.update(values)
        cell.ended += 1
        await asyncio.sleep(rng.uniform(0, 0.1))
        return True

    async def send(self, partition: int, value: bytes) -> None:
        sequence = self.sequences.get(partition, 0)
        self.sequences[partition] = sequence + 1
        made = self.made(value, sequence)
        writer = Writer(self.name, *self.producer, ("t", partition))

        async def append(life: TxnLife) -> None:
            log = life.engine.partition("t", partition)
            if log.producers.begins_unasked(parse_header(made)):
                number = await life.services.verifier.round_of(writer)
                log.producers.transactions.allow(*self.producer, number)
            done = await log.append(made)
            if self.cell.keys:
                before = self.cell.placed.setdefault(value, (partition, self.cell.key(value), done.base_offset))
                assert before[2] == done.base_offset

        await self.cell.ask(append, lambda: self.cell.serving(partition))
        if self.cell.rng.random() < 0.15:  # the network delivers it once more, much later
            delay = self.cell.rng.uniform(0.05, 5)
            task = asyncio.create_task(self.again(append, partition, delay))
            self.late.add(task)
            task.add_done_callback(self.late.discard)

    def made(self, value: bytes, sequence: int) -> bytes:
        """A batch; of a compacted topic with a key, and compressed now and then."""
        producer, epoch = self.producer
        if not self.cell.keys:
            return batch(value, producer=producer, epoch=epoch, sequence=sequence, transactional=True)
        record = (self.cell.key(value), value)
        made = keyed(record, producer=producer, epoch=epoch, sequence=sequence, transactional=True)
        codec = self.cell.rng.choice([0, SNAPPY, LZ4, ZSTD])
        return packed(made, codec) if codec else made

    async def again(self, append: Callable[[TxnLife], Awaitable[None]], partition: int, delay: float) -> None:
        await asyncio.sleep(delay)
        for life in self.cell.serving(partition):
            assert isinstance(life, TxnLife)
            try:
                async with asyncio.timeout(3):
                    await life.host.running()
                    await append(life)
            except (KafkaError, TimeoutError):
                pass
            except asyncio.CancelledError:
                still_wanted()


async def read_committed(cell: TxnCell, partition: int) -> list[bytes]:
    """As a consumer does, from the beginning to the last stable offset."""
    found: list[bytes] = []
    offset = 0
    while True:
        lives = cell.serving(partition)
        if not lives:
            await asyncio.sleep(0.05)
            continue
        life = cell.rng.choice(lives)
        try:
            async with asyncio.timeout(3):
                await life.host.running()
                log = life.engine.partition("t", partition)
                if offset >= log.last_stable_offset:
                    return found
                data = await log.read(offset, 2_000, minimum_one=True, committed=True)
                end = offset
                at = 0
                while at < len(data):
                    header = parse_header(data, at)
                    end, at = header.base_offset + header.last_offset_delta + 1, at + header.size
                aborted = await log.aborted(offset, end)
        except (KafkaError, TimeoutError):
            await asyncio.sleep(0.05)
            continue
        if not data:
            await asyncio.sleep(0.05)
            continue
        records = PartitionRecords(
            TopicPartition("t", partition),
            MemoryRecords(b"".join(unpacked(bytes(one)) for _, one in iter_batches(data))),
            [(a.producer_id, a.first) for a in sorted(aborted, key=lambda a: a.first)],
            offset,
            None,
            None,
            True,
            READ_COMMITTED,
        )
        found += [record.value for record in records]
        offset = end


async def scenario(seed: int, mode: WalMode, keys: int = 0) -> tuple[TxnCell, list[str]]:
    """`keys`: of a compacted topic; 0: it is not compacted."""
    cell = TxnCell(seed, mode, HOSTILE)
    cell.keys, cell.configs = keys, COMPACTED if keys else {}
    for n in range(1, len(cell.disks) + 1):
        await cell.start(n)
    await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == len(cell.disks))
    await cell.create_topic()
    for topic in (TRANSACTIONS_TOPIC, OFFSETS_TOPIC):
        await cell.ask(lambda life, topic=topic: create(life, topic), cell.everybody)
    clients = [Client(cell, i) for i in range(CLIENTS)]
    working = [asyncio.create_task(client.run()) for client in clients]

    async def watch() -> None:
        while cell.writing:
            cell.seen.update(await read_committed(cell, cell.rng.randrange(PARTITIONS)))
            await asyncio.sleep(cell.rng.uniform(0.05, 0.5))

    watching = asyncio.create_task(watch())
    await disturb(cell, 12)
    cell.world.faults = CALM
    await cell.until("all partitions are served again", cell.all_serve)
    await asyncio.sleep(1)
    cell.writing = False
    await asyncio.gather(watching, *working)
    await cell.until("all partitions are served again", cell.all_serve)

    def nothing_open() -> bool:
        logs = [life.engine.partition("t", p) for p in range(PARTITIONS) for life in cell.serving(p)]
        return all(log.last_stable_offset == log.high_watermark for log in logs)

    await cell.until("every transaction is decided in every partition", nothing_open)
    if keys:
        await asyncio.sleep(10)  # the cleaner has its turns
    visible: list[bytes] = []
    for p in range(PARTITIONS):
        visible += await read_committed(cell, p)
    if keys:
        problems = judge_compacted(cell, visible)
        for n in list(cell.starting):
            await cell.kill(n)
        return cell, problems
    problems = [f"{value!r} was committed and is not there" for value in cell.committed - set(visible)]
    problems += [f"{value!r} is there and was not committed" for value in set(visible) - cell.committed]
    problems += [f"{value!r} was shown and withdrawn" for value in cell.seen - set(visible)]
    if len(set(visible)) != len(visible):
        problems.append("a record is there twice")
    for n in list(cell.starting):
        await cell.kill(n)
    return cell, problems


def judge_compacted(cell: TxnCell, visible: list[bytes]) -> list[str]:
    """A committed value is there, or a committed one of its key behind it; nothing else is."""
    newest: dict[tuple[int, bytes], int] = {}
    for value in visible:
        partition, key, offset = cell.placed[value]
        newest[partition, key] = max(offset, newest.get((partition, key), -1))
    there = set(visible)
    problems = [f"{value!r} is there and was not committed" for value in there - cell.committed]
    for value in (cell.committed | cell.seen) - there:
        partition, key, offset = cell.placed[value]
        if newest.get((partition, key), -1) <= offset:
            problems.append(f"{value!r} is gone, and nothing newer of its key is there")
    if len(there) != len(visible):
        problems.append("a record is there twice")
    if len(visible) > 2 * PARTITIONS * cell.keys:
        problems.append(f"{len(visible)} of {len(cell.committed)} are still there")
    return problems


async def create(life: TxnLife, topic: str) -> None:
    if life.engine.topic(topic) is None:
        await life.engine.create_topic(topic, 1, {}, internal=True)


@pytest.mark.parametrize("mode", list(WalMode))
@pytest.mark.parametrize("seed", range(3))
def test_transactions_are_whole_or_nothing_whatever_happens_to_the_cell(seed: int, mode: WalMode) -> None:
    cell, problems = run(scenario(seed, mode))
    assert problems == [], f"seed {seed}\n" + "\n".join(cell.world.trace[-60:])
    assert cell.ended > 10, "nothing was tried"


@pytest.mark.parametrize("mode", [WalMode.REGIONAL_BLOCK, WalMode.OBJECT])
@pytest.mark.parametrize("seed", range(4))
def test_of_committed_transactions_the_newest_record_of_each_key_stays_whatever_happens(
    seed: int, mode: WalMode
) -> None:
    cell, problems = run(scenario(seed, mode, keys=5))
    assert problems == [], f"seed {seed}\n" + "\n".join(cell.world.trace[-60:])
    assert cell.ended > 10, "nothing was tried"
