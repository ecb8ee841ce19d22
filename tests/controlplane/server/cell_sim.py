"""A private cell in memory: its bucket, and agents that do what their mailboxes say, for tests under virtual time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path

from controlplane.apply.cells import Cell
from controlplane.apply.render import Places
from controlplane.reconcile.world import World
from controlplane.server.service import Service
from controlplane.store.sqlite import SqliteStore
from dataplane.contract.assignment import AgentReport, BrokerReport, DatabaseReport, Generation, ProcessState
from dataplane.contract.database import DatabaseRole, DatabaseSpec
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.commands import NodeEpoch, broker_joined, controller_elected
from dataplane.ledger.entry import Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.mailbox import claim, open_mailbox, open_reports, report
from dataplane.ledger.state import BrokerStatus, CellState
from providers.base.clock import Clock, LoopClock, Rng, SeededRng
from providers.base.errors import Unavailable
from providers.base.registry import StoreAddress
from providers.memory.faults import CALM, Faults, Process
from providers.memory.faults import World as Memory
from providers.memory.objects import MemoryBucket, MemoryObjectStore

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [a, b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: plant, brokers: 2}
---
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: orders}
spec: {clusters: [main], partitions: 4}
"""


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait, in virtual time, until it is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the level is what is waited for, and nothing tells of its change
            await asyncio.sleep(0.1)


class Plant:
    """One cloud with its bucket and the agents of its zones."""

    def __init__(self, seed: int, faults: Faults = CALM) -> None:
        self.clock = LoopClock()
        self.rng = SeededRng(seed)
        self.memory = Memory(self.clock, self.rng)
        self.bucket = MemoryBucket(self.memory, "yunhe-plant", faults=faults)
        self.running = True
        self.agents: dict[str, asyncio.Task[None]] = {}
        self.brokers: dict[str, set[str]] = {}
        """Zone → names of the brokers that its agent runs."""
        self.databases: dict[str, dict[str, DatabaseSpec]] = {}
        """Zone → what its agent was told of each node."""
        self.peers: dict[str, dict[str, dict[str, str]]] = {}
        self.keys: dict[str, str] = {}
        """Edge → the key it shows, where it is not its first."""
        self.states: dict[str, ProcessState] = {}
        self.owner = "fleet-1"
        self.away: set[str] = set()
        """Clouds that do not run."""
        self.shut: set[str] = set()
        """Buckets that do not answer."""
        self.generations: list[tuple[str, Generation]] = []
        """(zone, generation) in the order in which agents carried them out."""

    def store(self, who: str) -> MemoryObjectStore:
        return MemoryObjectStore(Process(self.memory, who), self.bucket)

    def start_agent(self, zone: str, cloud: str = "plant") -> None:
        self.agents[zone] = asyncio.create_task(self._agent(zone, cloud))

    async def _agent(self, zone: str, cloud: str) -> None:
        name, incarnation = f"{cloud}-{zone}", self.rng.token()
        store, writer = self.store(name), Writer(name, incarnation)
        mailbox = open_mailbox(store, name, writer, clock=self.clock, rng=self.rng)
        reports = open_reports(store, name, writer, clock=self.clock, rng=self.rng)
        ledger = Ledger(store, "main", CellMachine(), Writer(f"b-{zone}", incarnation), clock=self.clock, rng=self.rng)
        carried: Generation | None = None
        said: AgentReport | None = None
        opened = False
        while True:
            try:
                if not opened:
                    for log in (mailbox, reports, ledger):
                        await log.open()  # type: ignore[attr-defined]
                    await claim(mailbox, incarnation)
                    opened = True
                await mailbox.poll()
                newest = mailbox.state.newest
                if newest is not None:
                    for broker in newest.brokers:
                        await ledger.append(lambda state, b=broker: self._join(state, b.node_id, b.name, zone))
                    running = tuple(
                        BrokerReport(
                            b.node_id, b.name, 1000 + b.node_id, ProcessState.RUNNING, b.host, 9000 + b.node_id, ""
                        )
                        for b in newest.brokers
                    )
                    databases = tuple(self._database(spec) for spec in newest.databases)
                    now = AgentReport(name, zone, 99, incarnation, newest.generation, running, databases=databases)
                    if now != said:
                        await report(reports, now)
                        said = now
                    self.brokers[zone] = {b.name for b in newest.brokers}
                    self.databases[zone] = {spec.node: spec for spec in newest.databases}
                    self.peers[zone] = newest.database_peers
                    if newest.generation != carried:
                        carried = newest.generation
                        self.generations.append((zone, carried))
            except Unavailable:
                pass
            await asyncio.sleep(0.2)

    def _database(self, spec: DatabaseSpec) -> DatabaseReport:
        """A process that serves at once, with the key and the claim that the test gives it."""
        edge = spec.role is DatabaseRole.EDGE
        key = self.keys.get(spec.node, f"key-of-{spec.node}") if edge else None
        state = self.states.get(spec.node, ProcessState.RUNNING)
        http = 4000 + zlib.crc32(spec.node.encode()) % 1000
        owner = None if edge else spec.node == self.owner
        mysql, postgres = (0, 0) if edge else (http + 1000, http + 2000)
        return DatabaseReport(spec.database, spec.node, 7, state, spec.host, http, mysql, "", key, owner, postgres)

    @staticmethod
    def _join(state: CellState, node: int, name: str, zone: str) -> list[dict[str, object]]:
        if node in state.brokers and state.brokers[node].status is BrokerStatus.LIVE:
            return []
        wal = {"mode": "object", "sides": ["bucket"], "volume": None, "volume_zones": [], "express": None}
        me = NodeEpoch(node, 1)
        joined = broker_joined(me, name=name, zone=zone, host="127.0.0.1", kafka_port=9000 + node, peer_port=1, wal=wal)
        return [joined, controller_elected(state.term + 1, me)]

    async def cell_state(self) -> CellState:
        """The cell's state as an onlooker folds it from the bucket, by no cache of the control plane's."""
        self.bucket.faults = CALM
        writer = Writer("onlooker", self.rng.token())
        ledger = Ledger(self.store("onlooker"), "main", CellMachine(), writer, clock=self.clock, rng=self.rng)
        await ledger.open()
        return ledger.state

    # ── what the control plane is given ──────────────────────────────────────────────────────────────────────────────

    def places(self, cloud: str) -> Places:
        if not self.running or cloud in self.away:
            raise Unavailable(f"cloud {cloud} is not running in the lab")
        return Places(StoreAddress("private", f"yunhe-{cloud}", "plant", "http://memory"))

    def agent_pid(self, cloud: str, zone: str) -> int | None:
        task = self.agents.get(zone)
        return 99 if task is not None and not task.done() else None

    def alive(self, pid: int) -> bool:
        return True

    async def open(self, places: Places, cluster: str, *, clock: Clock, rng: Rng) -> Cell:
        if places.bucket.bucket in self.shut:
            raise Unavailable(f"bucket {places.bucket.bucket} does not answer")
        return Cell(self.store("controlplane"), places, cluster, clock=clock, rng=rng)


class Control:
    """A control plane over a `Plant`; `stop` is as sudden as a crash, except for the store's file handle."""

    def __init__(self, plant: Plant, path: Path) -> None:
        self.store = SqliteStore(path, clock=plant.clock)
        self.world = World(self.store, plant, plant, clock=plant.clock, rng=plant.rng, opener=plant.open)
        self.service = Service(self.store, self.world, clock=plant.clock, rng=plant.rng)
        self.service.doubt()
        self.task = asyncio.create_task(self.service.run())

    async def apply(self, text: str = SPEC, *, prune: bool = False) -> str:
        shown = await self.service.plan([("spec.yaml", text)], prune=prune)
        return str((await self.service.apply(shown["hash"]))["id"])

    async def until_ended(self, operation: str, seconds: float = 200.0) -> str:
        await until(lambda: self.service.operation(operation)["outcome"] is not None, seconds)
        return str(self.service.operation(operation)["outcome"])

    async def until_ready(self, seconds: float = 200.0) -> None:
        await until(lambda: self.service.status()["state"] == "Ready", seconds)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        await self.service.close()
        self.store.close()
