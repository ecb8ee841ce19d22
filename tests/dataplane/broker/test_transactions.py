"""The transaction coordinator's promises, under simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from kio.schema.errors import ErrorCode

from dataplane.broker import transactions
from dataplane.broker.engine import KafkaError, Message
from dataplane.broker.group import Committed
from dataplane.broker.groups import OFFSETS_TOPIC, GroupCoordinator
from dataplane.broker.transaction import EPOCH_LAST, TransactionState
from dataplane.broker.transaction_services import TransactionServices
from dataplane.broker.transactions import TRANSACTIONS_TOPIC
from dataplane.broker.txn_offsets import TxnOffsets
from dataplane.broker.txn_verify import Writer
from dataplane.stream.batch import parse_header
from dataplane.stream.transactions import Marker, parse_marker
from providers.base.clock import LoopClock
from tests.dataplane.broker.memory_engine import MemoryCell
from tests.dataplane.stream.batches import batch
from tests.sim.virtualtime import run

MINUTE_MS = 60_000


class Broker:
    """One broker's coordinators over the memory engine."""

    def __init__(self, cell: MemoryCell, node: int) -> None:
        self.engine = cell.broker(node)
        clock = LoopClock()
        self.groups = GroupCoordinator(self.engine, clock=clock)  # type: ignore[arg-type]
        self.services = TransactionServices(self.engine, self.groups, clock)  # type: ignore[arg-type]
        self.coordinator = self.services.coordinator
        self.offsets = TxnOffsets(self.groups)

    async def close(self) -> None:
        await self.coordinator.close()
        await self.groups.close()


class World:
    """Two brokers; the first owns everything at first. Topic t has two partitions."""

    def __init__(self) -> None:
        self.cell = MemoryCell()
        self.a, self.b = Broker(self.cell, 1), Broker(self.cell, 2)
        self.cell.create(TRANSACTIONS_TOPIC, 1, 1, internal=True)
        self.cell.create(OFFSETS_TOPIC, 1, 1, internal=True)
        self.cell.create("t", 2, 1)

    async def write(self, producer: tuple[int, int], partition: int = 0, sequence: int = 0) -> None:
        """As the produce handler does."""
        log = self.cell.brokers[self.cell.leaders["t", partition]].partition("t", partition)
        made = batch(b"v", producer=producer[0], epoch=producer[1], sequence=sequence, transactional=True)
        if log.producers.begins_unasked(parse_header(made)):
            writer = Writer("x", *producer, ("t", partition))
            number = await self.a.services.verifier.round_of(writer)
            log.producers.transactions.allow(*producer, number)
        await log.append(made)

    def markers(self, partition: int = 0) -> list[Marker]:
        batches = self.cell.records["t", partition].batches
        return [parse_marker(b) for b in batches if parse_header(b).attributes & 0x20]

    def open_from(self, partition: int = 0) -> int | None:
        return self.cell.records["t", partition].producers.transactions.first_open


def simulated(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await asyncio.sleep(0.1)
        try:
            await test(world)
        finally:
            await world.a.close()
            await world.b.close()

    run(main())


async def refused(code: ErrorCode, work: Awaitable[object]) -> None:
    with pytest.raises(KafkaError) as error:
        await work
    assert ErrorCode(error.value.code) is code, error.value.message


def test_a_committed_transaction_has_a_marker_in_each_of_its_partitions() -> None:
    async def test(w: World) -> None:
        producer = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add("x", producer, [("t", 0), ("t", 1)])
        await w.write(producer, 0)
        await w.write(producer, 1)
        await w.a.coordinator.end("x", producer, commit=True)
        await asyncio.sleep(0.1)
        assert w.markers(0) == w.markers(1) == [Marker(True, 1, 1)]
        assert w.a.coordinator.describe("x").state is TransactionState.COMPLETE_COMMIT
        await w.a.coordinator.end("x", producer, commit=True)  # its answer was lost
        await refused(ErrorCode.invalid_txn_state, w.a.coordinator.end("x", producer, commit=False))
        await w.a.coordinator.add("x", producer, [("t", 0)])
        await w.write(producer, 0, sequence=1)
        await w.a.coordinator.end("x", producer, commit=False)
        await asyncio.sleep(0.1)
        assert w.markers(0) == [Marker(True, 1, 1), Marker(False, 1, 2)] and len(w.markers(1)) == 1

    simulated(test)


def test_a_new_instance_aborts_what_is_open_and_the_old_one_is_fenced() -> None:
    async def test(w: World) -> None:
        zombie = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add("x", zombie, [("t", 0)])
        await w.write(zombie)
        heir = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        assert heir[0] == zombie[0] and heir[1] > zombie[1]
        assert w.markers() == [Marker(False, 1, 1)] and w.open_from() is None
        await refused(ErrorCode.producer_fenced, w.a.coordinator.add("x", zombie, [("t", 0)]))
        await refused(ErrorCode.producer_fenced, w.a.coordinator.end("x", zombie, commit=True))
        await refused(ErrorCode.producer_fenced, w.a.coordinator.initialise("x", MINUTE_MS, zombie))

    simulated(test)


def test_a_decision_survives_its_coordinator_and_the_next_one_sends_the_markers() -> None:
    async def test(w: World) -> None:
        producer = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add("x", producer, [("t", 0), ("t", 1)])
        await w.write(producer, 0)
        await w.write(producer, 1)
        sent: list[Message] = []

        async def lost(message: Message) -> Message:
            sent.append(message)
            raise KafkaError(ErrorCode.request_timed_out.value, "nobody there")

        real, w.a.engine.answers["txn-markers"] = w.a.engine.answers["txn-markers"], lost
        await w.a.coordinator.end("x", producer, commit=True)
        await asyncio.sleep(0.5)
        assert sent and not w.markers(0)
        await refused(ErrorCode.concurrent_transactions, w.a.coordinator.add("x", producer, [("t", 0)]))
        w.cell.move(TRANSACTIONS_TOPIC, 0, 2)
        w.cell.move("t", 1, 2)
        w.a.engine.answers["txn-markers"] = real
        await asyncio.sleep(2)
        assert w.markers(0) == w.markers(1) == [Marker(True, 2, 1)], "the second coordinator's"
        await refused(ErrorCode.not_coordinator, w.a.coordinator.end("x", producer, commit=True))
        assert w.b.coordinator.describe("x").state is TransactionState.COMPLETE_COMMIT

    simulated(test)


def test_markers_whose_answers_are_lost_are_sent_again_and_written_once() -> None:
    async def test(w: World) -> None:
        producer = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add("x", producer, [("t", 0), ("t", 1)])
        await w.write(producer, 0)
        losses = 3

        def unheard(node: int, message: Message) -> bool:
            nonlocal losses
            losses -= message["op"] == "txn-markers"
            return message["op"] == "txn-markers" and losses >= 0

        w.cell.unheard = unheard
        await w.a.coordinator.end("x", producer, commit=False)
        await asyncio.sleep(60)
        assert losses < 0
        assert w.markers(0) == w.markers(1) == [Marker(False, 1, 1)]
        assert w.a.coordinator.describe("x").state is TransactionState.COMPLETE_ABORT

    simulated(test)


def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_may_go_on_with_a_new_epoch() -> None:
    async def test(w: World) -> None:
        producer = await w.a.coordinator.initialise("x", 5_000, (-1, -1))
        await w.a.coordinator.add("x", producer, [("t", 0)])
        await w.write(producer)
        await asyncio.sleep(4.5)
        assert w.open_from() == 0
        await asyncio.sleep(1.5)
        assert w.markers() == [Marker(False, 1, 1)] and w.open_from() is None
        await refused(ErrorCode.producer_fenced, w.a.coordinator.end("x", producer, commit=True))
        again = await w.a.coordinator.initialise("x", 5_000, producer)
        assert again == (producer[0], producer[1] + 1)
        await w.a.coordinator.add("x", again, [("t", 0)])
        await w.write(again)
        await w.a.coordinator.end("x", again, commit=True)

    simulated(test)


def test_a_late_batch_opens_no_transaction_that_nobody_will_end() -> None:
    async def test(w: World) -> None:
        producer = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add("x", producer, [("t", 1)])
        await refused(ErrorCode.invalid_txn_state, w.write(producer, 0))
        await w.a.coordinator.end("x", producer, commit=False)
        await asyncio.sleep(0.1)
        await refused(ErrorCode.invalid_txn_state, w.write(producer, 1))
        assert w.open_from(0) is None and w.open_from(1) is None

    simulated(test)


def test_an_epoch_bump_sent_again_gets_the_same_answer_and_a_used_up_epoch_a_new_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(w: World) -> None:
        first = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        bumped = await w.a.coordinator.initialise("x", MINUTE_MS, first)
        assert bumped == (first[0], first[1] + 1)
        assert await w.a.coordinator.initialise("x", MINUTE_MS, first) == bumped
        await refused(ErrorCode.producer_fenced, w.a.coordinator.initialise("x", MINUTE_MS, (first[0], 9)))
        monkeypatch.setattr("dataplane.broker.transaction.EPOCH_LAST", bumped[1])
        fresh = await w.a.coordinator.initialise("x", MINUTE_MS, bumped)
        assert fresh[0] != first[0] and fresh[1] == 0
        assert await w.a.coordinator.initialise("x", MINUTE_MS, bumped) == fresh
        assert EPOCH_LAST < 32_767, "an abort may need one more"

    simulated(test)


def test_offsets_are_pending_until_the_commit_also_for_the_next_coordinator() -> None:
    async def test(w: World) -> None:
        async def commit(offset: int, number: int) -> None:
            shard = w.a.groups.shard("g")
            where = {("t", 0): Committed(offset, -1, None)}
            await w.a.offsets.commit(shard, "g", producer[0], number, where)

        def seen(broker: Broker) -> int | None:
            committed = broker.groups.committed("g", [("t", 0)])["t", 0]
            return committed.offset if committed is not None else None

        producer = await w.a.coordinator.initialise("x", MINUTE_MS, (-1, -1))
        await w.a.coordinator.add_offsets("x", producer, "g")
        await commit(5, 1)
        assert seen(w.a) is None
        await w.a.coordinator.end("x", producer, commit=False)
        await asyncio.sleep(0.1)
        assert seen(w.a) is None
        await refused(ErrorCode.invalid_txn_state, commit(5, 1))
        await w.a.coordinator.add_offsets("x", producer, "g")
        await commit(7, 2)
        await w.a.groups._snapshot(w.a.groups.shard("g"))
        w.cell.move(OFFSETS_TOPIC, 0, 2)
        await asyncio.sleep(0.1)
        assert seen(w.b) is None
        await w.a.coordinator.end("x", producer, commit=True)
        await asyncio.sleep(0.1)
        assert seen(w.b) == 7
        w.cell.move(OFFSETS_TOPIC, 0, 1)
        await asyncio.sleep(0.1)
        assert seen(w.a) == 7

    simulated(test)


def test_unused_ids_are_forgotten_and_the_log_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.broker.table_log.SNAPSHOT_PUTS", 20)
    monkeypatch.setattr(transactions, "EXPIRY_MS", 3_600_000)

    async def test(w: World) -> None:
        for i in range(15):
            producer = await w.a.coordinator.initialise(f"x{i}", MINUTE_MS, (-1, -1))
            await w.a.coordinator.add(f"x{i}", producer, [("t", 0)])
            await w.a.coordinator.end(f"x{i}", producer, commit=True)
        await asyncio.sleep(1)
        records = w.cell.records[TRANSACTIONS_TOPIC, 0]
        assert records.start > 20, "trimmed behind a snapshot"
        w.cell.move(TRANSACTIONS_TOPIC, 0, 2)
        await asyncio.sleep(1)
        assert {t.state for t in w.b.coordinator.everything()} == {TransactionState.COMPLETE_COMMIT}
        assert len(w.b.coordinator.everything()) == 15
        await asyncio.sleep(3_700)
        assert w.b.coordinator.everything() == []
        w.cell.move(TRANSACTIONS_TOPIC, 0, 1)
        await asyncio.sleep(1)
        assert w.a.coordinator.everything() == []

    simulated(test)
