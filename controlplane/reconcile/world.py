"""What the reconcilers and the steps share: the desired state with all that follows from it, the open cells, and what
this host knows of processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from controlplane.api.specs import Specs, key_of
from controlplane.apply import acts
from controlplane.apply.cells import Cell, Locator, open_cell
from controlplane.apply.observe import ClusterView, Observed, view
from controlplane.apply.observe_databases import view_database
from controlplane.apply.render import VolumeNeed, agent_name, assignments, volumes
from controlplane.apply.render_databases import bare, node_specs, peers_of, staged_databases, with_databases
from controlplane.apply.staging import staged, waits_for_its_turn
from controlplane.plan.databases import ResolvedDatabase, resolve_databases
from controlplane.plan.kubernetes_engines import run_by_agents
from controlplane.plan.model import Recorded
from controlplane.plan.resolve import ResolvedCluster, facts_of, resolve
from controlplane.store.base import Key, Plain, Store
from controlplane.store.recorded import recorded_of
from dataplane.contract.assignment import Assignment
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Unavailable
from providers.base.registry import StoreAddress


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
    databases: dict[str, ResolvedDatabase]
    whole: Specs
    """All recorded objects, those too that no agent runs: their engines run on Kubernetes."""
    elsewhere: tuple[Key, ...]
    """Keys of those: in `whole`, and not in `specs`."""


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
        self._watchers: dict[Key, list[asyncio.Future[ClusterView]]] = {}

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
        """Every object that is desired of agents, or that something is still known of."""
        desired = self.desired()
        found = {**dict.fromkeys(map(key_of, desired.specs)), **dict.fromkeys(self.store.statuses())}
        return [key for key in found if key not in desired.elsewhere]

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

    def resolved_database(self, name: str) -> ResolvedDatabase:
        """Raises Conflict when the database is not desired any more."""
        found = self.desired().databases.get(name)
        if found is None:
            raise Conflict(f"Database {name} is not desired any more")
        return found

    def zones(self, cloud: str) -> Sequence[str]:
        """All zones of a desired cloud: an agent may run in each."""
        return self.desired().specs.clouds[cloud].spec.zones

    def cluster_of(self, cloud: str) -> ResolvedCluster | None:
        """The desired cluster of a cloud; an agent carries out one assignment, and that has one cluster at most."""
        return next((c for c in self.desired().resolved.values() if c.cloud == cloud), None)

    async def cell_at(self, cloud: str) -> Cell:
        """The open cell of a desired cloud, whether it has a cluster or not."""
        cluster = self.cluster_of(cloud)
        return await self.cell(cloud, cluster.name if cluster is not None else cloud)

    async def publish(self, cluster: str) -> tuple[Cell, str]:
        """As `publish_cell`, of the cluster's cell. Raises Conflict when the cluster is not desired any more."""
        return await self.publish_cell(self.resolved(cluster).cloud)

    async def publish_cell(self, cloud: str) -> tuple[Cell, str]:
        """Read what is new in a cell, and tell its agents what to run if they were not told that. One at a time, so
        that steps and turns do not tell them at once. Returns the cell as read, and a sentence.

        Raises:
            Unavailable: the bucket does not answer.
        """
        async with self.publishing(cloud):
            cell = await self.cell_at(cloud)
            await cell.refresh([agent_name(cloud, zone) for zone in self.zones(cloud)])
            return cell, await acts.publish(cell, self.rendered(cloud, cell), self.store)

    def publishing(self, cloud: str) -> asyncio.Lock:
        """Held by whoever tells a cloud's agents something."""
        return self._publishing.setdefault(cloud, asyncio.Lock())

    def rendered(self, cloud: str, cell: Cell) -> dict[str, Assignment]:
        """The assignments of a cloud's agents, also of those that were told something and now run nothing; of changes
        that go one by one, the one whose turn it is."""
        agents = [agent_name(cloud, zone) for zone in self.zones(cloud)]
        newest = {agent: cell.newest_assignment(agent) for agent in agents}
        heard = {agent: cell.report(agent) for agent in agents}
        told = [one for one in newest.values() if one is not None]
        reports = [one for one in heard.values() if one is not None]
        databases = [d for d in self.desired().databases.values() if d.cloud == cloud]
        zones = {zone for database in databases for zone in database.zones}
        wanted = staged(self._wanted(cloud, cell, zones), newest, cell.state, heard)
        before = {d.node: (d, one.generation) for one in told for d in one.databases}
        specs = node_specs(
            databases,
            buckets=self._buckets(databases),
            pins={name: self.pins_for(name) for d in databases for name in (d.name, d.upload and d.upload.to) if name},
            told={node: spec for node, (spec, _) in before.items()},
            brokers=self._brokers(),
        )
        specs = staged_databases(specs, before, {d.node: (d, r.generation) for r in reports for d in r.databases})
        return with_databases(wanted, specs, peers_of(databases, reports, told))

    def _wanted(self, cloud: str, cell: Cell, zones: Iterable[str] = ()) -> dict[str, Assignment]:
        """What the agents of a cloud shall be told in the end, of its databases nothing yet: those of the cluster's
        zones, of `zones`, and those that were told something before."""
        told = (z for z in self.zones(cloud) if cell.newest_assignment(agent_name(cloud, z)) is not None)
        everywhere = sorted({*told, *zones})
        if (cluster := self.cluster_of(cloud)) is None:
            return bare(cloud, everywhere, cell.places)
        specs = self.desired().specs
        spec, kubernetes = specs.clusters[cluster.name], specs.clouds[cloud].spec.kubernetes
        return assignments(cloud, spec, cluster, cell.places, everywhere, kubernetes)

    async def retire_database(self, name: str) -> str:
        """Stop a database that is not desired any more, by what is still known of it.

        Raises:
            Unavailable: its agents have not all stopped it yet, or the bucket does not answer.
        """
        status = self.status(("Database", name))
        cloud = status.get("cloud")
        if cloud is None:
            return "it never ran"
        cluster = self.cluster_of(cloud)
        cell = await self.cell(str(cloud), cluster.name if cluster is not None else str(cloud))
        async with self.publishing(cloud):
            return await acts.retire_database(
                cell, name, [str(a["name"]) for a in status.get("agents", [])], self.store
            )

    def pins_for(self, database: str) -> dict[str, str]:
        """Edges that upload to a database, each with the key that is pinned; empty text: none yet."""
        return {
            node.node: str(self.status(("Database", edge.name)).get("pins", {}).get(node.node, ""))
            for edge in self.desired().databases.values()
            if edge.upload is not None and edge.upload.to == database
            for node in edge.nodes
        }

    def _buckets(self, databases: Sequence[ResolvedDatabase]) -> dict[str, StoreAddress]:
        """Of the clouds that are uploaded to, the buckets that were proved to keep create-if-absent."""
        found = {}
        for cloud in {d.target_cloud for d in databases if d.target_cloud is not None and d.via is None}:
            if self.status(("Cloud", cloud)).get("bucket"):
                try:
                    found[cloud] = self._locator.places(cloud).bucket
                except Unavailable:
                    continue  # it is not running here: this cell goes on with what it was told
        return found

    def _brokers(self) -> dict[str, tuple[str, ...]]:
        """Where each cluster's brokers are, of all that have been seen: whether they serve just now is no matter."""
        found = {}
        for name in self.desired().resolved:
            brokers = self.status(("BrokerCluster", name)).get("brokers", [])
            found[name] = tuple(f"{b['host']}:{b['kafkaPort']}" for b in brokers if b.get("kafkaPort"))
        return found

    def volume_needs(self, cluster: str) -> tuple[VolumeNeed, ...]:
        """The volumes that a cluster's brokers need."""
        resolved = self.resolved(cluster)
        cloud = self.desired().specs.clouds[resolved.cloud]
        return volumes(facts_of(cloud), resolved)

    def observe(self, cluster: str, cell: Cell) -> ClusterView:
        """How the cluster is, from what was read of its cell last."""
        resolved, key = self.resolved(cluster), ("BrokerCluster", cluster)
        was_ready = bool(self.status(key).get("wasReady"))
        observed = replace(self._observed(resolved.cloud, cell), waiting=self._waiting(resolved.cloud, cell))
        return self._seen(key, view(resolved, observed, was_ready=was_ready))

    def observe_database(self, database: str, cell: Cell) -> ClusterView:
        """How the database is, from what was read of its cell last."""
        resolved, key = self.resolved_database(database), ("Database", database)
        target = resolved.target_cloud
        waits = None
        if resolved.via is not None:
            if not self._brokers().get(resolved.via.cluster):
                waits = f"waits until the brokers of {resolved.via.cluster} are known"
        elif target is not None and target not in self._buckets([resolved]):
            waits = f"waits until the bucket of {target} is verified"
        observed = self._observed(resolved.cloud, cell)
        return self._seen(key, view_database(resolved, observed, self.status(key), waits_for=waits))

    def _observed(self, cloud: str, cell: Cell) -> Observed:
        published, reports = {}, {}
        for zone in self.zones(cloud):
            agent = agent_name(cloud, zone)
            newest, report = cell.newest_assignment(agent), cell.report(agent)
            if newest is not None:
                published[zone] = newest.generation
            if report is not None:
                reports[zone] = report
        return Observed(
            cell=cloud,
            state=cell.state,
            reports=reports,
            published=published,
            broker_alive=lambda _, pid: self._host.alive(pid),
            agent_pid=lambda zone: self._host.agent_pid(cloud, zone),
        )

    def _waiting(self, cloud: str, cell: Cell) -> frozenset[str]:
        """Zones whose agents have not been told yet what their brokers shall read at their next start."""
        wanted = self._wanted(cloud, cell).values()
        return frozenset(one.zone for one in wanted if waits_for_its_turn(one, cell.newest_assignment(one.agent)))

    def _seen(self, key: Key, seen: ClusterView) -> ClusterView:
        for waiting in self._watchers.pop(key, []):
            if not waiting.done():
                waiting.set_result(seen)
        return seen

    async def next_view(self, key: Key) -> ClusterView:
        """What the next turn of the reconciler of that cluster or database sees."""
        waiting: asyncio.Future[ClusterView] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(key, []).append(waiting)
        return await waiting

    def status(self, key: Key) -> Plain:
        """The status document of an object, empty when there is none."""
        return self.store.status(key)

    def put_status(self, key: Key, status: dict[str, Any]) -> None:
        """Record a status; written only when it differs."""
        if self.status(key) != status:
            self.store.put_status(key, status)

    async def close(self) -> None:
        """Close all cells."""
        for cell in self._cells.values():
            await cell.close()
        self._cells.clear()


def _desired(revision: int, recorded: Recorded) -> Desired:
    whole = recorded.as_specs()
    specs = run_by_agents(whole)
    ours, resolved = set(map(key_of, specs)), resolve(whole, settled=recorded.settled())
    return Desired(
        revision,
        specs,
        {name: cluster for name, cluster in resolved.items() if name in specs.clusters},
        resolve_databases(whole),
        whole,
        tuple(key for key in map(key_of, whole) if key not in ours),
    )
