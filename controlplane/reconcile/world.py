"""What the reconcilers and the steps share: the desired state with all that follows from it, the open cells, and what
this host knows of processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controlplane.api.specs import Specs
from controlplane.apply import acts
from controlplane.apply.cells import Cell, Locator, open_cell
from controlplane.apply.observe import ClusterView, Observed, view
from controlplane.apply.render import VolumeNeed, agent_name, assignments, volumes
from controlplane.apply.staging import staged
from controlplane.plan.model import Recorded
from controlplane.plan.resolve import ResolvedCluster, facts_of, resolve
from controlplane.store.base import Key, Plain, Store
from controlplane.store.recorded import recorded_of
from dataplane.contract.assignment import Assignment
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict


class Host(Protocol):
    """What this host knows of the processes on it. On real clouds agents run elsewhere, and it knows nothing."""

    def agent_pid(self, cloud: str, zone: str) -> int | None:
        """The agent's pid if it runs here."""
        ...

    def alive(self, pid: int) -> bool:
        """Whether a process of ours with this pid runs here."""
        ...


@dataclass(frozen=True, slots=True)
class Desired:
    """What shall be, and what follows from it."""

    revision: int
    specs: Specs
    resolved: dict[str, ResolvedCluster]


class World:
    """One a control plane. Cells are opened at first use and kept open while their addresses stay."""

    def __init__(
        self,
        store: Store,
        locator: Locator,
        host: Host,
        *,
        clock: Clock,
        rng: Rng,
        opener: Callable[..., Awaitable[Cell]] = open_cell,
    ) -> None:
        """`opener`: how a cell is opened; simulation has its own."""
        self.store = store
        self.clock = clock
        self.rng = rng
        self._locator = locator
        self._host = host
        self._open = opener
        self._cells: dict[str, Cell] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._desired: Desired | None = None
        self._publishing: dict[str, asyncio.Lock] = {}
        self._watchers: dict[str, list[asyncio.Future[ClusterView]]] = {}

    def recorded(self) -> Recorded:
        """What the last accepted plan left."""
        return recorded_of(self.store.recorded())

    def desired(self) -> Desired:
        """The newest desired state; computed once a revision."""
        revision = self.store.revision()
        if self._desired is None or self._desired.revision != revision:
            self._desired = _desired(revision, self.recorded())
        return self._desired

    @staticmethod
    def preview(recorded: Plain) -> Desired:
        """What would be desired if this were recorded."""
        after = recorded_of(recorded)
        return _desired(after.revision, after)

    def keys(self) -> list[Key]:
        """Every object that is desired, or that something is still known of."""
        specs = self.desired().specs
        return list({**dict.fromkeys(specs.plain()), **dict.fromkeys(self.store.statuses())})

    async def cell(self, cloud: str, cluster: str) -> Cell:
        """The open cell of a cluster.

        Raises:
            Unavailable: the cloud is not running here.
            Invalid: its credentials or its address are wrong.
        """
        async with self._opening.setdefault(cluster, asyncio.Lock()):
            places = self._locator.places(cloud)
            cell = self._cells.get(cluster)
            if cell is not None and cell.places != places:
                del self._cells[cluster]
                await cell.close()
                cell = None
            if cell is None:
                cell = self._cells[cluster] = await self._open(places, cluster, clock=self.clock, rng=self.rng)
            return cell

    async def cell_of(self, cluster: str) -> Cell:
        """The open cell of a desired cluster."""
        return await self.cell(self.resolved(cluster).cloud, cluster)

    def resolved(self, cluster: str) -> ResolvedCluster:
        """Raises Conflict when the cluster is not desired any more."""
        found = self.desired().resolved.get(cluster)
        if found is None:
            raise Conflict(f"BrokerCluster {cluster} is not desired any more")
        return found

    def zones(self, cloud: str) -> Sequence[str]:
        """All zones of a desired cloud: an agent may run in each."""
        return self.desired().specs.clouds[cloud].spec.zones

    async def publish(self, cluster: str) -> tuple[Cell, str]:
        """Read what is new in a cluster's cell, and tell its agents what to run if they were not told that. One at a
        time, so that a step and a turn do not both tell them. Returns the cell as read, and a sentence.

        Raises:
            Unavailable: the bucket does not answer.
        """
        async with self._publishing.setdefault(cluster, asyncio.Lock()):
            cloud, cell = self.resolved(cluster).cloud, await self.cell_of(cluster)
            await cell.refresh([agent_name(cloud, zone) for zone in self.zones(cloud)])
            return cell, await acts.publish(cell, self.rendered(cluster, cell), self.store)

    def rendered(self, cluster: str, cell: Cell) -> dict[str, Assignment]:
        """The assignments of a cluster's agents, also of those that were told something and now run nothing; of changes
        of WALs the one whose turn it is."""
        resolved = self.resolved(cluster)
        cloud = resolved.cloud
        newest = {z: cell.newest_assignment(agent_name(cloud, z)) for z in self.zones(cloud)}
        spec = self.desired().specs.clusters[cluster]
        wanted = assignments(cloud, spec, resolved, cell.places, [z for z, one in newest.items() if one is not None])
        return staged(wanted, {agent_name(cloud, z): one for z, one in newest.items()}, cell.state)

    def volume_needs(self, cluster: str) -> tuple[VolumeNeed, ...]:
        """The volumes that a cluster's brokers need."""
        resolved = self.resolved(cluster)
        cloud = self.desired().specs.clouds[resolved.cloud]
        return volumes(facts_of(cloud), resolved)

    def observe(self, cluster: str, cell: Cell) -> ClusterView:
        """How the cluster is, from what was read of its cell last."""
        resolved = self.resolved(cluster)
        published, reports = {}, {}
        for zone in self.zones(resolved.cloud):
            agent = agent_name(resolved.cloud, zone)
            newest, report = cell.newest_assignment(agent), cell.report(agent)
            if newest is not None:
                published[zone] = newest.generation
            if report is not None:
                reports[zone] = report
        observed = Observed(
            cell=resolved.cloud,
            state=cell.state,
            reports=reports,
            published=published,
            broker_alive=lambda _, pid: self._host.alive(pid),
            agent_pid=lambda zone: self._host.agent_pid(resolved.cloud, zone),
        )
        before = self.status(("BrokerCluster", cluster))
        seen = view(resolved, observed, was_ready=bool(before.get("wasReady")))
        for waiting in self._watchers.pop(cluster, []):
            if not waiting.done():
                waiting.set_result(seen)
        return seen

    async def next_view(self, cluster: str) -> ClusterView:
        """What the next turn of the cluster's reconciler sees."""
        waiting: asyncio.Future[ClusterView] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(cluster, []).append(waiting)
        return await waiting

    def status(self, key: Key) -> Plain:
        """The status document of an object, empty when there is none."""
        return self.store.status(key)

    def put_status(self, key: Key, status: dict[str, Any]) -> None:
        """Record a status, stamped with the revision it speaks of; written only when it differs."""
        stamped = {**status, "observedRevision": self.desired().revision}
        if self.status(key) != stamped:
            self.store.put_status(key, stamped)

    async def close(self) -> None:
        """Close all cells."""
        for cell in self._cells.values():
            await cell.close()
        self._cells.clear()


def _desired(revision: int, recorded: Recorded) -> Desired:
    specs = recorded.as_specs()
    return Desired(revision, specs, resolve(specs, settled=recorded.settled()))
