"""A small cell for tests with real Kafka clients: whole brokers on loopback, in one thread, over a bucket in memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from dataplane.broker.net import KafkaServer
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.peers import Message, TcpPeers
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import BrokerSettings, BrokerSpec, WalMode, WalSpec
from providers.base.clock import LoopClock, SeededRng, SystemRng
from providers.base.loops import run_loop
from providers.base.ports import free_port
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

T = TypeVar("T")
HOST = "127.0.0.1"
QUICK = Faults(latency_ms=(0.1, 0.5))
UNBALANCED = BrokerSettings(balance_interval_ms=0)


class Broker:
    """One broker, as `dataplane/broker/process.py` puts it together."""

    def __init__(self, cell: Cell, node_id: int) -> None:
        self.port = free_port(HOST, SystemRng())
        self._peers = TcpPeers()
        self._store = MemoryObjectStore(Process(cell.world, f"b{node_id}"), cell.bucket)
        self._spec = BrokerSpec(node_id, f"b{node_id}", cell.zones[node_id - 1], WalSpec(WalMode.OBJECT))
        self._cell = cell
        self.node_id = node_id
        self.zone = self._spec.zone

    async def start(self) -> None:
        clock, rng = LoopClock(), self._cell.rng

        async def handle(message: Message) -> Message | None:
            return await self.engine.handle(message)

        peer_port = await self._peers.start(HOST, 0, handle)
        self.node = Node(
            NodeConfig("cell", "c", self._spec, self._cell.settings, self.port, peer_port),
            store=self._store,
            logs=AssignedLogs("c", self._spec, bucket=self._store, volumes=None, express={}, clock=clock),
            peers=self._peers,
            clock=clock,
            rng=rng,
        )
        self.engine = NodeEngine(self.node, self._peers, clock=clock, rng=rng)
        self.server = KafkaServer(self.engine, clock=clock, rng=rng)
        await self.node.start()
        await self.server.start(HOST, self.port)
        self.engine.attach()

    async def kill(self) -> None:
        """As a crash would: nothing is handed over."""
        await self.node.kill()
        await self.server.close()
        await self._peers.close()


class Cell:
    """Brokers 1, 2, … Call `run` from the test's thread for whatever is to happen on their loop."""

    def __init__(self, zones: tuple[str, ...], settings: BrokerSettings) -> None:
        self.zones = zones
        self.settings = settings
        self.rng = SeededRng(7)
        self.brokers: dict[int, Broker] = {}

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def call(self, work: Callable[[], T]) -> T:
        async def once() -> T:
            return work()

        return self.run(once())

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{HOST}:{b.port}" for b in self.brokers.values())

    def kill(self, node_id: int) -> None:
        self.run(self.brokers.pop(node_id).kill())

    async def main(self, up: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self.world = World(LoopClock(), self.rng)
        self.bucket = MemoryBucket(self.world, "bucket", faults=QUICK)
        try:
            for node_id in range(1, len(self.zones) + 1):
                broker = self.brokers[node_id] = Broker(self, node_id)
                await broker.start()
            while any(b.engine.controller_id is None for b in self.brokers.values()):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.02)
            up.set()
            await self._done.wait()
        finally:
            for broker in self.brokers.values():
                await broker.kill()
            up.set()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)


@contextlib.contextmanager
def cell(*zones: str, settings: BrokerSettings = UNBALANCED) -> Iterator[Cell]:
    """One broker a zone named."""
    one, up = Cell(zones, settings), threading.Event()
    thread = threading.Thread(target=lambda: run_loop(one.main(up)), name="cell")
    thread.start()
    try:
        assert up.wait(30), "the cell did not come up"
        yield one
    finally:
        one.end()
        thread.join(30)
        assert not thread.is_alive()
