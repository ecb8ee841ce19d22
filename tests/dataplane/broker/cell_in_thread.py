"""A real cell over a bucket in memory, in a thread of its own: nodes, engines and Kafka listeners as a broker process
puts them together, for tests whose clients block.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from dataplane.broker.net import KafkaServer, ServerSettings
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.peers import Message, TcpPeers
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import BrokerSettings, BrokerSpec, WalMode, WalSpec
from providers.base.clock import SystemClock, SystemRng
from providers.base.loops import run_loop
from providers.base.ports import free_port
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

T = TypeVar("T")
HOST = "127.0.0.1"
START_S = 30


class Broker:
    """One broker of the cell."""

    def __init__(self, node_id: int, world: World, bucket: MemoryBucket, settings: BrokerSettings, port: int) -> None:
        self.node_id = node_id
        self.port = port
        store = MemoryObjectStore(Process(world, f"b-{node_id}"), bucket)
        spec = BrokerSpec(node_id, f"b-{node_id}", f"zone-{node_id}", WalSpec(WalMode.OBJECT))
        rng = SystemRng()
        self.peers = TcpPeers()
        self._spec, self._store, self._settings, self._rng, self._clock = spec, store, settings, rng, world.clock

    async def start(self, server_settings: ServerSettings | None) -> None:
        async def handle(message: Message) -> Message | None:
            return await self.engine.handle(message)

        peer_port = await self.peers.start(HOST, 0, handle)
        clock, spec = self._clock, self._spec
        self.node = Node(
            NodeConfig("cell", "c", spec, self._settings, self.port, peer_port),
            store=self._store,
            logs=AssignedLogs("c", spec, bucket=self._store, volumes=None, express={}, clock=clock),
            peers=self.peers,
            clock=clock,
            rng=self._rng,
        )
        self.engine = NodeEngine(self.node, self.peers, clock=clock, rng=self._rng)
        self.server = KafkaServer(self.engine, clock=clock, rng=self._rng, settings=server_settings)
        await self.node.start()
        await self.server.start(HOST, self.port)
        self.engine.attach()

    async def stop(self) -> None:
        await self.node.kill()
        await self.server.close()
        await self.peers.close()


class RunningCell:
    """The cell as a test sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, brokers: list[Broker]) -> None:
        self._loop = loop
        self.brokers = brokers
        self.bootstrap = ",".join(f"{HOST}:{b.port}" for b in brokers)
        self.trouble: list[dict[str, Any]] = []
        """What the loop's exception handler was told: a task or a callback that nobody caught."""
        self.longest_turn_s = 0.0
        """Processor time of the longest turn of the loop, to about a hundredth of a second: what one request can keep
        all others waiting for, however loaded the machine is."""

    def measure_turns(self, before_s: float | None = None) -> None:
        """Called by the loop, again and again."""
        now_s = time.thread_time()
        if before_s is not None:
            self.longest_turn_s = max(self.longest_turn_s, now_s - before_s)
        self._loop.call_later(0.01, self.measure_turns, now_s)

    def do(self, work: Coroutine[Any, Any, T], timeout_s: float = 30) -> T:
        """Run something in the cell's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def see(self, what: Callable[[], T]) -> T:
        """The value of something that only the cell's loop may look at."""

        async def look() -> T:
            return what()

        return self.do(look())


@contextlib.contextmanager
def running_cell(
    brokers: int = 1, *, settings: BrokerSettings | None = None, server_settings: ServerSettings | None = None
) -> Iterator[RunningCell]:
    """A cell of so many brokers, stopped afterwards."""
    started, stop_me = threading.Event(), []
    cells: list[RunningCell] = []
    failures: list[BaseException] = []

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        world = World(SystemClock(), SystemRng())
        bucket = MemoryBucket(world, "bucket")
        given = settings or BrokerSettings(balance_interval_ms=0)
        some = [Broker(i + 1, world, bucket, given, free_port(HOST, SystemRng())) for i in range(brokers)]
        cell = RunningCell(loop, some)
        loop.set_exception_handler(lambda _, context: cell.trouble.append(context))
        try:
            for broker in some:
                await broker.start(server_settings)
            # Clients that do not find a controller wait for minutes before they look again.
            while any(b.engine.controller_id is None for b in some):  # noqa: ASYNC110 -- it has no event for tests
                await asyncio.sleep(0.01)
            cells.append(cell)
            stop_me.append(lambda: loop.call_soon_threadsafe(stop.set))
            cell.measure_turns()
            started.set()
            await stop.wait()
        finally:
            for broker in some:
                await broker.stop()

    def run() -> None:
        try:
            run_loop(main())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="cell")
    thread.start()
    assert started.wait(START_S), "the cell did not start"
    try:
        if failures:
            raise failures[0]
        yield cells[0]
    finally:
        for stop_it in stop_me:
            stop_it()
        thread.join(START_S)
        assert not thread.is_alive(), "the cell did not stop"
    if failures:
        raise failures[0]
