"""Batches that come to a partition's old owner a moment after it was moved: who may have them taken on, what is acked,
and what the client is told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kio.schema.errors import ErrorCode

from dataplane.broker import forwarding, partitions
from dataplane.broker.connected import ConnectedProducers
from dataplane.broker.engine import Busy, KafkaError
from dataplane.broker.forwarding import OP
from dataplane.broker.partitions import MOVED_LATELY_MS
from dataplane.contract.assignment import WalMode
from dataplane.stream.batch import parse_header
from tests.dataplane.broker.cell import cell
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import Cell, Life
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM

NOT_LEADER = ErrorCode.not_leader_or_follower.value
PRODUCER = 9
Answer = tuple[int, int, bool]
"""First offset, Kafka's code, and whether the client is told who leads."""


class Moving:
    """Two brokers; partition 0 is moved from `old` to `new`."""

    def __init__(self, cell: Cell, old: Life, new: Life) -> None:
        self.cell, self.old, self.new = cell, old, new
        [self.stream, *_] = old.node.state.topics["t"].streams

    async def move(self, life: Life, to: Life) -> None:
        await life.engine.move_partition("t", 0, to.node.node_id)
        await self.until_end(to, 0)

    def send(self, life: Life, sequence: int, producer: int = PRODUCER, **more: Any) -> asyncio.Future[Answer]:
        """One record, its number as its sequence.

        Raises:
            KafkaError: refused at once.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        made = batch(b"%d" % sequence, producer=producer, epoch=0 if producer >= 0 else -1, sequence=sequence, **more)

        def done(base_offset: int, error: KafkaError | None, moved: bool = False, /) -> None:
            answer.set_result((base_offset, error.code if error is not None else 0, moved))

        life.engine.writable("t", 0).begin(bytearray(made), parse_header(made), done)
        return answer

    async def until_end(self, life: Life, end: int) -> None:
        while self.end(life) < end:  # noqa: ASYNC110 -- of the broker's insides, which have no event for tests
            await asyncio.sleep(0.000_1)

    def end(self, life: Life) -> int:
        partition = life.node.partitions.get(self.stream)
        return partition.high_watermark if partition is not None else -1


def moving(test: Callable[[Moving], Awaitable[None]]) -> None:
    async def main() -> None:
        cell = Cell(1, WalMode.REGIONAL_BLOCK, CALM, nodes=2)
        for node in (1, 2):
            await cell.start(node)
        await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == 2)
        await cell.create_topic()
        await cell.until("all partitions are served", cell.all_serve)
        [old] = cell.serving(0)
        new = next(life for life in cell.nodes.values() if life is not old)
        try:
            async with asyncio.timeout(60):
                await test(Moving(cell, old, new))
        finally:
            for node in (1, 2):
                await cell.kill(node)

    run(main())


def test_what_waits_while_the_partition_moves_is_acked_by_the_new_owner() -> None:
    async def test(here: Moving) -> None:
        assert await here.send(here.old, 0) == (0, 0, False)
        move = asyncio.create_task(here.move(here.old, here.new))
        answers = []
        while not move.done():
            answers.append(here.send(here.old, len(answers) + 1))
            await asyncio.sleep(0.001)
        late = here.send(here.old, len(answers) + 1)
        assert [(await a)[:2] for a in [*answers, late]] == [(n, 0) for n in range(1, len(answers) + 2)]
        assert here.end(here.new) == len(answers) + 2 and here.end(here.old) == -1

    moving(test)


def test_the_new_leader_is_told_to_producers_that_are_connected_to_it() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        assert await here.send(here.old, 0) == (0, 0, False)
        here.new.engine.connected.note(PRODUCER, set())
        assert await here.send(here.old, 1) == (1, 0, True)

    moving(test)


def test_plain_producers_are_sent_to_the_new_owner_and_so_is_everybody_when_the_moment_is_over() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        with pytest.raises(KafkaError, match="moved"):
            here.send(here.old, -1, producer=-1)
        assert await here.send(here.old, 0) == (0, 0, False), "which does not disturb the others"
        await asyncio.sleep(MOVED_LATELY_MS / 1_000)
        with pytest.raises(KafkaError, match="not served"):
            here.send(here.old, 1)

    moving(test)


def test_a_lost_answer_is_not_known_to_be_one_and_nothing_overtakes_what_is_sent_again() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        first = here.send(here.old, 0)
        behind = here.send(here.old, 1)
        await here.until_end(here.new, 1)
        pair = frozenset((here.old.address, here.new.address))
        here.cell.hub.cut.add(pair)
        assert await first == (-1, ErrorCode.request_timed_out.value, False)
        here.cell.hub.cut.discard(pair)
        assert (await behind)[1] in (NOT_LEADER, ErrorCode.request_timed_out.value)
        with pytest.raises(KafkaError):
            here.send(here.old, 2)
        # The client sends again, and in order.
        assert [await here.send(here.new, n) for n in range(3)] == [(n, 0, False) for n in range(3)]

    moving(test)


@pytest.mark.parametrize("answer", [{"outcomes": [["a", 0, "", False]]}, {"outcomes": [[0]]}, {"outcomes": None}])
def test_an_answer_that_cannot_be_read_is_not_known_either_and_holds_nothing_up(answer: dict[str, Any]) -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)

        async def garbled(*_: Any) -> dict[str, Any]:
            return answer

        here.old.engine.forwarder._peers.request = garbled  # type: ignore[method-assign]
        assert await here.send(here.old, 0) == (-1, ErrorCode.request_timed_out.value, False)
        assert not here.old.engine.forwarder.under_way(here.stream)

    moving(test)


def test_a_message_that_comes_twice_is_appended_once() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        made = [batch(b"%d" % n, producer=PRODUCER, epoch=0, sequence=n) for n in range(2)]
        epoch = here.new.node.state.streams[here.stream].epoch
        message = {"op": OP, "stream": here.stream, "epoch": epoch, "sizes": [len(m) for m in made]}
        for _ in range(2):
            answer = await here.new.handle({**message, "data": b"".join(made)})
            assert answer == {"outcomes": [(0, 0, "", False), (0, 1, "", False)]}
        assert here.end(here.new) == 2
        # Damaged on the way: neither it nor what is behind it.
        damaged = [batch(b"%d" % n, producer=PRODUCER, epoch=0, sequence=n) for n in (2, 3)]
        data = bytearray(b"".join(damaged))
        data[len(damaged[0]) - 1] ^= 1
        answer = await here.new.handle({**message, "sizes": [len(m) for m in damaged], "data": bytes(data)})
        assert answer is not None
        assert [o[0] for o in answer["outcomes"]] == [ErrorCode.corrupt_message.value, NOT_LEADER]
        assert here.end(here.new) == 2

    moving(test)


def test_a_transactions_first_batch_is_taken_of_its_own_client_only() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        assert (await here.send(here.old, 0, transactional=True))[1] == NOT_LEADER
        assert here.end(here.new) == 0

    moving(test)


def test_what_is_on_its_way_to_the_other_owner_comes_before_what_is_sent_when_the_partition_is_back() -> None:
    async def test(here: Moving) -> None:
        await here.move(here.old, here.new)
        there = here.new.node.partitions.get(here.stream)
        assert there is not None
        await there.freeze()
        first = here.send(here.old, 0)
        back = asyncio.create_task(here.move(here.new, here.old))
        await here.until_end(here.old, 0)
        assert not first.done()
        with pytest.raises(Busy):
            here.send(here.old, 1)
        await back
        assert (await first)[:2] == (0, 0)
        assert (await here.send(here.old, 1))[:2] == (1, 0)

    moving(test)


def test_a_connection_counts_for_its_producers_until_it_is_closed() -> None:
    connected = ConnectedProducers()
    one: set[int] = set()
    other: set[int] = set()
    for connection in (one, one, other):
        connected.note(PRODUCER, connection)
    connected.gone(one)
    assert PRODUCER in connected
    connected.gone(other)
    assert PRODUCER not in connected


def test_a_librdkafka_producer_that_is_connected_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its back-off is longer than the test: were one of its batches refused, the flush would not end in time. What is
    a moment for a broker is long here, for a busy machine's sake."""
    monkeypatch.setattr(partitions, "MOVED_LATELY_MS", 20_000)
    monkeypatch.setattr(forwarding, "OPEN_MS", 10_000)
    monkeypatch.setattr(forwarding, "ANSWER_MS", 15_000)
    with cell("a", "b") as brokers:
        admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
        admin.create_topics([NewTopic("t", 2)])["t"].result(10)
        patient = {"retry.backoff.ms": 30_000, "retry.backoff.max.ms": 30_000, "linger.ms": 1}
        producer = Producer({"bootstrap.servers": brokers.bootstrap, "enable.idempotence": True, **patient})
        offsets: dict[int, list[int | None]] = {0: [], 1: []}
        stop = threading.Event()

        def acked(error: object, message: Message) -> None:
            assert error is None
            offsets[message.partition() or 0].append(message.offset())

        for partition in (0, 1):  # one partition a broker: it is connected to both
            producer.produce("t", b"x", partition=partition, on_delivery=acked)
        assert producer.flush(10) == 0
        sent = 1

        def move() -> None:
            for _ in range(2):
                leader = brokers.call(lambda: brokers.brokers[1].engine.topic("t")).partitions[0].leader
                brokers.run(brokers.brokers[1].engine.move_partition("t", 0, 3 - leader))
                stop.wait(0.6)
            stop.set()

        mover = threading.Thread(target=move)
        mover.start()
        while not stop.is_set():
            producer.produce("t", b"%d" % sent, partition=0, on_delivery=acked)
            producer.poll(0.002)
            sent += 1
        mover.join()
        assert producer.flush(10) == 0
        assert offsets[0] == list(range(sent))
