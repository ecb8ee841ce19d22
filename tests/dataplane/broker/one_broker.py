"""A whole broker on loopback for tests with real Kafka clients: in a thread of its own, over a bucket in memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

from dataplane.broker.net import KafkaServer
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.peers import Message, TcpPeers
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import BrokerSettings, BrokerSpec, WalMode, WalSpec
from dataplane.ledger.state import CellState
from providers.base.clock import SystemClock, SystemRng
from providers.base.loops import run_loop
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

HOST = "127.0.0.1"


class OneBroker:
    """`bootstrap`: where clients connect. `state`: what its ledger says, to be read and no more."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self._port: int = probe.getsockname()[1]
        self.bootstrap = f"{HOST}:{self._port}"
        self.failed: BaseException | None = None

    @property
    def state(self) -> CellState:
        return self._node.state

    @property
    def objects(self) -> set[str]:
        """Names of all data objects in the bucket."""
        return {name for name in list(self._bucket.objects) if name.startswith("c/objects/")}

    async def main(self, up: threading.Event) -> None:
        clock, rng = SystemClock(), SystemRng()
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        world = World(clock, rng)
        self._bucket = MemoryBucket(world, "bucket", faults=Faults(latency_ms=(0.1, 0.5)))
        store = MemoryObjectStore(Process(world, "b1"), self._bucket)
        spec = BrokerSpec(1, "b1", "z", WalSpec(WalMode.OBJECT), host=HOST)
        peers = TcpPeers()

        async def handle(message: Message) -> Message | None:
            return await engine.handle(message)

        peer_port = await peers.start(HOST, 0, handle)
        node = self._node = Node(
            NodeConfig("cell", "c", spec, self._settings, self._port, peer_port),
            store=store,
            logs=AssignedLogs("c", spec, bucket=store, volumes=None, express={}, clock=clock),
            peers=peers,
            clock=clock,
            rng=rng,
        )
        engine = NodeEngine(node, peers, clock=clock, rng=rng)
        server = KafkaServer(engine, clock=clock, rng=rng)
        try:
            await node.start()
            await server.start(HOST, self._port)
            engine.attach()
            while engine.controller_id is None:  # noqa: ASYNC110 -- no event tells of it
                await asyncio.sleep(0.02)
            up.set()
            await self._done.wait()
            if node.failed.done():
                self.failed = node.failed.result()
        finally:
            await node.kill()
            await server.close()
            await peers.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)


@contextlib.contextmanager
def one_broker(settings: BrokerSettings) -> Iterator[OneBroker]:
    """A broker that is up, until the end of the block; it must not have failed by then."""
    broker, up = OneBroker(settings), threading.Event()
    thread = threading.Thread(target=lambda: run_loop(broker.main(up)), name="broker")
    thread.start()
    try:
        assert up.wait(30), "the broker did not come up"
        yield broker
    finally:
        broker.end()
        thread.join(30)
    assert not thread.is_alive() and broker.failed is None, broker.failed
