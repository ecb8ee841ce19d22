"""Nodes of a cloud database in one simulated world: a bucket that loses, delays and doubles answers, nodes that are
killed and frozen, peers that hear each other or not. What is read for judging is read past all that, from the bucket.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.database import CloudDatabase
from dataplane.tsdb.cloud.flushing import TenureSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.node import Node, NodeSettings
from dataplane.tsdb.cloud.ownership import Word
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.query.scan import TableView
from dataplane.tsdb.schema.files import FileMeta, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, WalSync
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Unavailable
from providers.memory.faults import CALM, Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

T = TypeVar("T")
DATABASE = "fleet"
COLUMNS = (
    Column(0, "source", ColumnType.STRING, ColumnRole.TAG, nullable=False),
    Column(0, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(0, "n", ColumnType.INT64),
)
APPENDS = TableOptions(append_mode=True, flush_interval_ms=2_000)
MERGES = TableOptions(flush_interval_ms=1_500)
UNLOGGED = TableOptions(wal=WalSync.OFF, append_mode=True, flush_interval_ms=1_000)
ROUGH = Faults(unavailable=0.03, throttled=0.02, lost_response=0.03, delayed=0.02, duplicated=0.03)


async def at_once(what: Callable[[], T]) -> T:
    return what()


def rows(first: int, count: int = 1, source: str = "s", at: int | None = None) -> pa.Table:
    """Numbers `first` on, each at a time of its own, or all at `at`."""
    numbers = list(range(first, first + count))
    return pa.table(
        {
            "source": pa.array([source] * count),
            "ts": pa.array(numbers if at is None else [at] * count, pa.int64()).cast(pa.timestamp("ms")),
            "n": pa.array(numbers, pa.int64()),
        }
    )


@dataclass
class Member:
    """A node's present life."""

    name: str
    process: Process
    node: Node
    database: CloudDatabase
    frozen: bool = False
    dead: bool = False

    @property
    def owns(self) -> bool:
        return self.database.owns and not self.dead and not self.frozen


class SimPeers:
    """`Peers` between the members of a region."""

    def __init__(self, region: Region, me: str) -> None:
        self._region = region
        self._me = me

    @property
    def names(self) -> Sequence[str]:
        return [name for name in self._region.names if name != self._me]

    async def ask(self, node: str) -> Word:
        await self._region.clock.sleep_ms(2)
        member = self._region.members.get(node)
        cut = frozenset((self._me, node)) in self._region.cut
        if member is None or member.dead or member.frozen or cut:
            await self._region.clock.sleep_ms(10_000)
            raise Unavailable(f"{node} does not answer")
        return member.node.word()


@dataclass
class Region:
    """A bucket and the nodes on it."""

    seed: int = 1
    names: tuple[str, ...] = ("a", "b", "c")
    faults: Faults = CALM
    settings: NodeSettings = field(
        default_factory=lambda: NodeSettings(lease_ms=3_000, tenure=TenureSettings(flush_bytes=20_000))
    )

    def __post_init__(self) -> None:
        self.clock = LoopClock()
        self.rng = SeededRng(self.seed)
        self.world = World(self.clock, self.rng)
        self.bucket = MemoryBucket(self.world, "bucket", faults=self.faults)
        self.members: dict[str, Member] = {}
        self.cut: set[frozenset[str]] = set()
        self.lives = 0
        self.read: dict[str, pa.Table] = {}

    async def start(self, name: str) -> Member:
        """A life of a node. The bucket may refuse its first steps: it begins again, as its agent would."""
        while True:
            self.lives += 1
            process = Process(self.world, f"{name}.{self.lives}")
            store = MemoryObjectStore(process, self.bucket)
            rng = SeededRng(f"{self.seed}/{name}/{self.lives}")
            writer = Writer(name, rng.token())
            manifest = Manifest(store, DATABASE, writer, clock=self.clock, rng=rng)
            files = SstFiles(store, DATABASE, name, clock=self.clock, rng=rng, worker=at_once)
            node = Node(name, manifest, files, SimPeers(self, name), clock=self.clock, rng=rng, settings=self.settings)
            try:
                await node.start()
            except Unavailable:
                await self.clock.sleep_ms(500)
                continue
            database = CloudDatabase(DATABASE, node, clock=self.clock, queries=self.answer)
            member = self.members[name] = Member(name, process, node, database)
            return member

    async def begin(self) -> None:
        for name in self.names:
            await self.start(name)
        await self.owner()

    def kill(self, member: Member) -> None:
        member.dead = True
        member.process.kill()
        loop, tenure = member.node._loop, member.node.tenure
        if loop is not None:
            loop.cancel()
        if tenure is not None:
            tenure._keeper.cancel()

    def freeze(self, member: Member) -> None:
        member.frozen = True
        member.process.freeze()

    def thaw(self, member: Member) -> None:
        member.frozen = False
        member.process.thaw()

    async def owner(self, within_ms: float = 300_000) -> Member:
        """The node of the greatest epoch that serves, once there is one that the bucket's manifest agrees with."""
        deadline = self.clock.monotonic_ms() + within_ms
        while self.clock.monotonic_ms() < deadline:
            serving = [m for m in self.members.values() if m.owns]
            if serving:
                best = max(serving, key=lambda m: m.node.tenure.epoch if m.node.tenure else 0)
                truth = await self.truth()
                if best.node.tenure is not None and best.node.tenure.epoch == truth.state.epoch:
                    return best
            await self.clock.sleep_ms(50)
        raise AssertionError(f"nobody owned the database within {within_ms} ms: {self.saying()}")

    def saying(self) -> dict[str, str]:
        return {name: member.node.said for name, member in self.members.items()}

    async def truth(self) -> Manifest:
        """The manifest as a reader without faults sees it."""
        world = World(self.clock, SeededRng(0))
        bucket = MemoryBucket(world, "truth", faults=Faults(latency_ms=(0, 0)))
        bucket.objects = self.bucket.objects
        store = MemoryObjectStore(Process(world, "judge"), bucket)
        manifest = Manifest(store, DATABASE, Writer("judge", "judge"), clock=self.clock, rng=SeededRng(0))
        await manifest.open()
        return manifest

    def read_file(self, meta: FileMeta) -> pa.Table:
        """With pyarrow alone: none of the code under test."""
        if meta.file_id not in self.read:
            data = self.bucket.objects[sst_key(DATABASE, meta.table, meta.file_id)]
            self.read[meta.file_id] = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
        return self.read[meta.file_id]

    def numbers(self, moment: TableView) -> Counter[int]:
        """How often each number is in the table: of one that appends."""
        found: Counter[int] = Counter()
        for part in [*(self.read_file(meta) for meta in moment.files), *moment.memory]:
            found.update(part.column("n").to_pylist())
        return found

    def latest(self, moment: TableView) -> dict[tuple[str, int], int]:
        """Of each source and time the last number: of a table in which the last row wins."""
        found: dict[tuple[str, int], int] = {}
        ordered = sorted(moment.files, key=lambda meta: meta.sequence)
        for part in [*(self.read_file(meta) for meta in ordered), *moment.memory]:
            columns = [part.column("source").to_pylist(), part.column("ts").cast(pa.int64()).to_pylist()]
            deletes = part.column("__op_type").to_pylist() if "__op_type" in part.column_names else [1] * len(part)
            for source, ts, n, op in zip(*columns, part.column("n").to_pylist(), deletes, strict=True):
                if op:
                    found[source, ts] = n
                else:
                    found.pop((source, ts), None)
        return found

    async def answer(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table:
        """A stand-in for the query engine: all numbers of the table that `select` names."""
        return pa.table({"n": sorted(self.numbers(tables[select]).elements())})


async def write(member: Member, table: str, data: pa.Table) -> None:
    await member.database.write([Rows(table, data)])


async def eventually(region: Region, condition: Callable[[], bool], within_ms: float = 60_000) -> None:
    deadline = region.clock.monotonic_ms() + within_ms
    while not condition():
        assert region.clock.monotonic_ms() < deadline, f"not within {within_ms} ms: {region.saying()}"
        await asyncio.sleep(0.02)
