"""One broker's life without the Kafka protocol: ledger, WAL, partitions, failover. The server is a shell over it;
simulation runs it as it is.

join ──► follow the ledger ──► reconcile partitions ──► serve
                │                                        │
                ├── heartbeats ──► judge ──► fence, stand for controller, take over
                └── fenced, or the WAL is dead ──► stop for good (the agent starts the next epoch)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane.broker.autoscaler import Autoscaler
from dataplane.broker.balancing import Balancer
from dataplane.broker.handover import Handover, share_out
from dataplane.broker.housekeeping import housekeeping
from dataplane.broker.join import join
from dataplane.broker.owed import OwedReads
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.peers import Message, Peers
from dataplane.broker.wals import Logs, change_of, stands
from dataplane.broker.watch import Watch, heard_while
from dataplane.contract.assignment import BrokerSettings, BrokerSpec
from dataplane.failover.recovered import Recovered
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.commands import (
    CommittedObject,
    NodeEpoch,
    broker_joined,
    broker_left,
    objects_committed,
)
from dataplane.ledger.entry import Command, Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.object_names import committed, lane_prefix
from dataplane.ledger.state import BrokerStatus, CellState
from dataplane.stream.cache import CacheBudget
from dataplane.stream.disk_cache import DiskCache
from dataplane.stream.partition import NotOwner
from dataplane.stream.reader import ObjectReader
from dataplane.stream.upload import Uploader
from dataplane.wal.base import Wal
from providers.base.clock import Clock, Rng
from providers.base.errors import Fenced, Internal, Unavailable, YunheError, invariant
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

RECONCILE_MS = 5_000
"""How often partitions are compared with the ledger although it has not moved: one that could not be opened is tried
again. With thousands of partitions each look takes milliseconds."""
LEAVE_POLL_MS = 5
"""How soon a leaving node tries again what could not be handed over just now."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node is told. Addresses are those that others reach it at."""

    cell: str
    cluster: str
    broker: BrokerSpec
    settings: BrokerSettings
    kafka_port: int
    peer_port: int


class Node:
    """See the module. `failed` completes with the reason when the node must stop."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        store: ObjectStore,
        logs: Logs,
        peers: Peers,
        clock: Clock,
        rng: Rng,
        disk: DiskCache | None = None,
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self.config = config
        self.node_id = config.broker.node_id
        self._settings = config.settings
        self._store = store
        self._logs = logs
        self._peers = peers
        self._clock = clock
        self.incarnation = rng.token()
        self.ledger: Ledger[CellState] = Ledger(
            store, config.cluster, CellMachine(), Writer(config.broker.name, self.incarnation), clock=clock, rng=rng
        )
        self.reader = ObjectReader(store, config.settings.cache_bytes_max // 4, disk)
        self.budget = CacheBudget(config.settings.cache_bytes_max * 3 // 4)
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._me: NodeEpoch | None = None
        self.wal: Wal | None = None
        self._partitions: PartitionSet | None = None
        self._owed: OwedReads | None = None
        self.uploader: Uploader | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._poke = asyncio.Event()
        self._leaving = False
        self._reconciled = (0, 0)
        self._reconciled_ms = 0.0
        self._watch: Watch | None = None
        self._handover: Handover | None = None
        self._balancer: Balancer | None = None
        self.on_health: Callable[[str | None], None] = lambda _: None
        """Told why this broker counts as slow, and None when it is well again."""
        self._autoscaler = autoscaler or Autoscaler()

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def me(self) -> NodeEpoch:
        invariant(self._me is not None, "the node has joined")
        assert self._me is not None
        return self._me

    @property
    def partitions(self) -> PartitionSet:
        if self._partitions is None:
            raise Internal("the node has not joined")
        return self._partitions

    @property
    def owed(self) -> OwedReads:
        if self._owed is None:
            raise Internal("the node has not joined")
        return self._owed

    @property
    def wal_bytes_used(self) -> int:
        """Of blocks that are not wholly in object storage yet."""
        return self.wal.bytes_used if self.wal is not None else 0

    @property
    def state(self) -> CellState:
        return self.ledger.state

    async def start(self) -> None:
        """Join, recovering the former epoch if there was one, open the WAL and begin to serve.

        Raises:
            Unavailable, Corrupt: as `join`.
            Fenced: taken over before it could begin.
        """
        await self.ledger.open()
        self._me = await join(
            self.node_id,
            ledger=self.ledger,
            joined=self._joined,
            open_readers=self._logs.readers,
            store=self._store,
            cluster=self.config.cluster,
            incarnation=self.incarnation,
            clock=self._clock,
        )
        self.wal = await heard_while(
            self._logs.open(self._me, self._change_membership, self._fail),
            me=self._me,
            ledger=self.ledger,
            peers=self._peers,
            clock=self._clock,
            interval_ms=self._settings.heartbeat_interval_ms,
        )
        self.uploader = Uploader(
            store=self._store,
            wal=self.wal,
            partitions=lambda: self.partitions.everything(),
            commit=self._commit,
            name_prefix=lane_prefix(self.config.cluster, self._me, self.incarnation),
            clock=self._clock,
            interval_ms=self._settings.upload_interval_ms,
            bytes_trigger=min(self._settings.upload_bytes, self.config.broker.wal.bytes_max // 3),
        )
        recovered = Recovered()
        self._owed = OwedReads(
            self._me,
            state=lambda: self.state,
            partitions=lambda: self.partitions,
            recovered=recovered,
            peers=self._peers,
            clock=self._clock,
        )
        self._partitions = PartitionSet(
            self._me,
            wal=self.wal,
            reader=self.reader,
            budget=self.budget,
            clock=self._clock,
            on_acked=self.uploader.acked,
            owed=self._owed.read,
        )
        self._handover = Handover(
            self._me,
            state=lambda: self.state,
            partitions=self._partitions,
            append=self.append_each,
            refresh=self.refresh,
            clock=self._clock,
            retry_ms=self._settings.ledger_poll_interval_ms,
        )
        self._watch = Watch(
            self._me,
            settings=self._settings,
            ledger=self.ledger,
            append=self.append,
            open_readers=self._logs.readers,
            store=self._store,
            peers=self._peers,
            cluster=self.config.cluster,
            incarnation=self.incarnation,
            clock=self._clock,
            recovered=recovered,
            behind=self._poke.set,
            load=lambda: self._balancer.report() if self._balancer is not None else {},
        )
        if self._settings.balance_interval_ms:
            self._balancer = Balancer(
                self._me,
                state=lambda: self.state,
                partitions=lambda: self.partitions,
                move=self.move,
                leaving=lambda: self._leaving,
                peers=self._peers,
                wal=self.wal,
                on_health=lambda why: self.on_health(why),
                clock=self._clock,
                interval_ms=self._settings.balance_interval_ms,
                autoscaler=self._autoscaler,
            )
        self._reconcile()
        loops = [self._follow(), self._watch.run(), self.uploader.run()]
        if self._balancer is not None:
            loops.append(self._balancer.run())
        uploader = self.uploader
        loops += housekeeping(
            self._me,
            cluster=self.config.cluster,
            incarnation=self.incarnation,
            settings=self._settings,
            state=lambda: self.state,
            partitions=self._partitions,
            reader=self.reader,
            store=self._store,
            append=self.append,
            busy=lambda: uploader.behind,
            clock=self._clock,
        )
        for loop in loops:
            self._tasks.append(asyncio.create_task(self._guard(loop)))
        self._announce()

    async def stop(self) -> None:
        """Shut down in order: upload what only the WAL holds, hand every partition to others, leave. Bounded; what
        cannot be done is left to recovery.
        """
        if self.uploader is not None and not self.failed.done():
            try:
                async with asyncio.timeout(5):
                    await self._leave()
            except (TimeoutError, YunheError) as error:
                log.warning("left-without-goodbye", extra={"error": str(error)})
        await self.kill()
        if self.wal is not None:
            await self.wal.close()

    async def kill(self) -> None:
        """End all tasks at once, as a crash would (simulation), or as the last part of `stop`."""
        if self._partitions is not None:
            self._partitions.close_all(NotOwner("this broker has stopped"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _leave(self) -> None:
        self._leaving = True
        self._announce()  # so that nothing is moved here any more
        assert self.uploader is not None and self._handover is not None
        while self.state.owned(self.me):
            leaving = self._balancer.leaving() if self._balancer is not None else set()
            others = {b.node for b in self.state.live() if b.node != self.node_id} - leaving
            others = others - self.slow_nodes() or others
            mine = [p for p in self.partitions.everything() if not p.closed]
            if not others:
                break  # nobody stays: what is uploaded below need not be recovered by whoever comes back first
            refused = await self._handover.move_all(share_out(self.state, mine, others))
            if refused or not mine:
                await self._clock.sleep_ms(LEAVE_POLL_MS)  # being moved by another, or just being opened
        while await self.uploader.upload_once():
            pass
        me = self.me
        await self.ledger.append(
            lambda state: (
                [broker_left(me)] if state.is_live(me) and not state.owned(me) and not state.owes(me) else None
            )
        )
        self._announce()

    def _fail(self, why: Exception) -> None:
        if not self.failed.done():
            self.failed.set_result(why)
            if self._partitions is not None:
                self._partitions.close_all(NotOwner(f"this broker stops: {why}"))

    async def _guard(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever ends a loop ends the node: half a broker is worse than none
            log.error("node-loop-failed", exc_info=error)
            self._fail(error)

    def _joined(self, me: NodeEpoch) -> Command:
        broker = self.config.broker
        return broker_joined(
            me,
            name=broker.name,
            zone=broker.zone,
            host=broker.host,
            kafka_port=self.config.kafka_port,
            peer_port=self.config.peer_port,
            wal=self._logs.describe(),
        )

    # ── ledger ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.ledger_poll_interval_ms / 1000):
                    await self._poke.wait()
            except TimeoutError:
                pass
            self._poke.clear()
            try:
                await self.refresh()
            except Unavailable as error:
                log.debug("bucket-unavailable", extra={"error": str(error)})

    async def refresh(self) -> None:
        """Read the ledger now and act on what it says.

        Raises:
            Unavailable: it cannot be read.
        """
        await self.ledger.poll()
        # An append that failed may have read on, and a ledger read anew may be no longer than before: so neither what
        # this poll found nor its length says whether anything is new.
        seen = (self.ledger.seq, id(self.state))
        if seen != self._reconciled or self._clock.monotonic_ms() - self._reconciled_ms > RECONCILE_MS:
            self._reconcile()

    def _reconcile(self) -> None:
        me = self.me
        self._reconciled, self._reconciled_ms = (self.ledger.seq, id(self.state)), self._clock.monotonic_ms()
        broker = self.state.brokers.get(me.node)
        if broker is None or broker.epoch != me.epoch or broker.status is not BrokerStatus.LIVE:
            if self._leaving:
                return
            self._fail(
                Fenced(f"broker {me.node} epoch {me.epoch} is no longer live: {broker and broker.fenced_reason}")
            )
            return
        if self.partitions.reconcile(self.state) and self.uploader is not None:
            self.uploader.kick()
        if self._watch is not None:
            self._watch.begin_takeovers()

    async def append(self, decide: Callable[[CellState], Sequence[Command] | None], *, term: int = 0) -> str | None:
        """Append and act on the outcome; None when accepted, or why not. A `decide` that wants nothing counts as
        refused.

        Raises:
            Unavailable: the outcome is not known.
        """
        rejections = await self.append_each(decide, term=term)
        if rejections is None:
            return "the state has changed meanwhile"
        return next((r for r in rejections if r is not None), None)

    async def append_each(
        self,
        decide: Callable[[CellState], Sequence[Command] | None],
        *,
        term: int = 0,
        unsent_ms_max: float | None = None,
    ) -> tuple[str | None, ...] | None:
        """As `append`, with the outcome of each command; None when `decide` wanted nothing. `unsent_ms_max`: as
        `Ledger.append`."""
        appended = await self.ledger.append(decide, term=term, unsent_ms_max=unsent_ms_max)
        self._reconcile()
        if appended is None:
            return None
        self._announce()
        return appended.rejections

    async def _commit(self, objects: Sequence[CommittedObject], floor: int) -> str | None:
        me = self.me

        def decide(state: CellState) -> list[Command] | None:
            # An earlier attempt, whose answer was lost, may have been the one.
            return None if committed(state, me, objects) else [objects_committed(me, objects, floor)]

        refused = await self.append(decide)
        return None if committed(self.state, me, objects) else refused

    async def _change_membership(self, sides: Sequence[str], start: int, instance: int | None = None) -> bool:
        me = self.me
        refused = await self.append(lambda state: change_of(state, me, sides, start, instance))
        accepted = stands(self.state, me, sides, instance)
        log.warning("wal-membership-changed", extra={"sides": list(sides), "start": start, "refused": refused})
        return accepted

    async def move(self, stream: int, target: int) -> str | None:
        """Hand an own partition over: see `Handover.move`."""
        invariant(self._handover is not None, "the node has joined")
        assert self._handover is not None
        return await self._handover.move(stream, target)

    # ── others ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, message: Message) -> None:
        """Take in a peer's heartbeat."""
        if self._watch is not None:
            self._watch.hear(message)
        if self._balancer is not None:
            self._balancer.hear(message)

    def slow_nodes(self) -> set[int]:
        """Nodes that should lead nothing new while others can: the cell's controller calls them slow."""
        return self._balancer.slow() if self._balancer is not None else set()

    def ledger_is_stale(self) -> bool:
        """True when this node has not read the ledger for long and some peer has: it may have been fenced."""
        return self._watch is not None and self._watch.ledger_is_stale()

    def _announce(self) -> None:
        if self._watch is not None:
            self._watch.announce()
