"""Consumers that ask for much and take nothing cost a broker one room together, and one batch each beyond it; whoever
takes what it was given gets the rest. Over whole brokers, by sockets of the test's own.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from controlplane.bench.load import fetch_frame
from dataplane.broker.answer_room import AnswerRoom
from dataplane.contract.assignment import BrokerSettings
from tests.dataplane.broker.cell import HOST, Cell, cell
from tests.dataplane.broker.test_group_clients import make_topic, until
from tests.dataplane.broker.test_zone_reads import fill

VALUE_BYTES = 60_000
BATCH_BYTES_MAX = 100_000 + VALUE_BYTES
COUNT = 500
ROOM = 45 << 20
CLIENTS = 12


@pytest.fixture(scope="module", params=[64 << 20, 2 << 20], ids=["from memory", "from object storage"])
def brokers(request: pytest.FixtureRequest) -> Iterator[Cell]:
    settings = BrokerSettings(balance_interval_ms=0, cache_bytes_max=request.param, upload_interval_ms=1_000)
    with cell("zone-a", settings=settings) as running:
        yield running


def asking(brokers: Cell, topic: str) -> socket.socket:
    """A client that has asked for all of the topic."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect((HOST, brokers.brokers[1].port))
    client.settimeout(20)
    client.sendall(fetch_frame(topic, 0, 50 << 20))
    return client


def received(sock: socket.socket) -> int:
    """Bytes of one whole answer."""
    head = sock.recv(4, socket.MSG_WAITALL)
    [left] = struct.unpack(">i", head)
    size = 0
    while size < left:
        size += len(sock.recv(min(1 << 20, left - size)))
    return size


def test_who_takes_nothing_holds_little_of_a_broker(brokers: Cell) -> None:
    topic = make_topic(brokers, 1)
    fill(brokers, topic, COUNT)
    server = brokers.brokers[1].server
    room: AnswerRoom = server.answers
    room.bytes_max = ROOM

    def held() -> int:
        return brokers.call(lambda: room.bytes_held)

    clients = [asking(brokers, topic) for _ in range(CLIENTS)]
    try:
        until(lambda: len(select.select(clients, [], [], 0)[0]) == CLIENTS)
        assert ROOM // 2 < held() <= ROOM + CLIENTS * BATCH_BYTES_MAX
        sizes = [received(client) for client in clients]
        assert all(size > VALUE_BYTES for size in sizes), "each got on"
        assert sum(sizes) <= ROOM + CLIENTS * BATCH_BYTES_MAX
        until(lambda: held() == 0)
        clients[-1].sendall(fetch_frame(topic, 0, 50 << 20))
        assert received(clients[-1]) > 4 * BATCH_BYTES_MAX, "there is room again"
    finally:
        for client in clients:
            client.close()


def test_who_leaves_gives_back_what_it_held(brokers: Cell) -> None:
    topic = make_topic(brokers, 1)
    fill(brokers, topic, COUNT)
    room: AnswerRoom = brokers.brokers[1].server.answers
    with asking(brokers, topic):
        until(lambda: brokers.call(lambda: room.bytes_held) > 0)
    until(lambda: brokers.call(lambda: room.bytes_held) == 0)
