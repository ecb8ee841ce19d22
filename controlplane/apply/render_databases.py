"""What a cell's agents are told of its databases: specs by zone, peers, and who may be trusted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from controlplane.apply.render import UNNUMBERED, Places, agent_name
from controlplane.plan.databases import ResolvedDatabase, upload_spec
from dataplane.contract.assignment import AgentReport, Assignment, DatabaseReport, Generation, ProcessState
from dataplane.contract.database import LIVE_FIELDS, DatabaseRole, DatabaseSpec, TopicSpec, needs_restart
from providers.base.registry import StoreAddress

Peers = dict[str, dict[str, str]]


def bare(cell: str, zones: Iterable[str], places: Places) -> dict[str, Assignment]:
    """Assignments without brokers for the agents of a cell that has no cluster. It stands for one by its own name."""
    return {
        agent_name(cell, zone): Assignment(
            cell,
            cell,
            agent_name(cell, zone),
            zone,
            UNNUMBERED,
            places.bucket,
            (),
            places.volumes,
            dict(places.express),
        )
        for zone in zones
    }


def node_specs(
    databases: Iterable[ResolvedDatabase],
    *,
    buckets: Mapping[str, StoreAddress],
    pins: Mapping[str, Mapping[str, str]],
    told: Mapping[str, DatabaseSpec],
    brokers: Mapping[str, tuple[str, ...]] = {},
) -> list[DatabaseSpec]:
    """The processes of a cell's databases, complete but for ports.

    `buckets`: of clouds whose bucket is verified, for uploads; edges whose target's is not there stay as they were
    `told` (by node), and new ones wait. `pins`: database → its edges' keys; an edge that has none here keeps the one
    that was told, so that a control plane that begins anew takes no trust away. `brokers`: of clusters that carry
    uploads, where they are; while that is not known, what was told stays, and new edges wait.
    """
    specs = []
    for database in databases:
        for node in database.nodes:
            before = told.get(node.node)
            if node.role is DatabaseRole.CLOUD:
                mine = pins.get(database.name, {})
                kept = {} if before is None else {e: k for e, k in before.trust.items() if e in mine}
                keys = {**kept, **{edge: key for edge, key in mine.items() if key}}
                topics = _placed(node.topics, brokers, () if before is None else before.topics)
                specs.append(replace(node, trust=dict(sorted(keys.items())), topics=topics))
            elif database.upload is None or database.target_cloud is None:
                specs.append(node)
            elif database.via is not None:
                known = before.upload.via if before is not None and before.upload is not None else None
                for via in _placed((database.via,), brokers, () if known is None else (known,)):
                    pin = pins.get(database.upload.to, {}).get(node.node) or (before.pin if before else None)
                    specs.append(replace(node, upload=upload_spec(database.upload, None, via), pin=pin))
            elif (bucket := buckets.get(database.target_cloud)) is not None:
                specs.append(replace(node, upload=upload_spec(database.upload, bucket)))
            elif before is not None:
                specs.append(before)
    return specs


def _placed(
    topics: Iterable[TopicSpec], brokers: Mapping[str, tuple[str, ...]], told: Iterable[TopicSpec]
) -> tuple[TopicSpec, ...]:
    """`topics` whose brokers are known, or were told."""
    before = {topic.cluster: topic.bootstrap for topic in told}
    found = (replace(t, bootstrap=brokers.get(t.cluster) or before.get(t.cluster, ())) for t in topics)
    return tuple(topic for topic in found if topic.bootstrap)


def peers_of(
    databases: Iterable[ResolvedDatabase], reports: Iterable[AgentReport], told: Iterable[Assignment]
) -> Peers:
    """Where each node of a cloud database with more than one is, by what agents report, or said when they were told
    last; empty text where nobody has said it yet."""
    known = {node: address for one in told for nodes in one.database_peers.values() for node, address in nodes.items()}
    known |= {r.node: f"{r.host}:{r.http_port}" for one in reports for r in one.databases if r.http_port}
    return {
        database.name: {node.node: known.get(node.node, "") for node in database.nodes}
        for database in databases
        if database.role is DatabaseRole.CLOUD and len(database.nodes) > 1
    }


def with_databases(
    rendered: Mapping[str, Assignment], specs: Iterable[DatabaseSpec], peers: Peers
) -> dict[str, Assignment]:
    """`rendered`, each agent with the databases of its zone and the peers of those."""
    every = list(specs)
    result = {}
    for agent, one in rendered.items():
        mine = tuple(spec for spec in every if spec.zone == one.zone)
        names = {spec.database for spec in mine}
        result[agent] = replace(one, databases=mine, database_peers={n: p for n, p in peers.items() if n in names})
    return result


def staged_databases(
    specs: Iterable[DatabaseSpec],
    told: Mapping[str, tuple[DatabaseSpec, Generation]],
    reports: Mapping[str, tuple[DatabaseReport, Generation | None]],
) -> list[DatabaseSpec]:
    """`specs`, with a cloud database's nodes that must start anew left as they were `told` but for the one whose turn
    it is: its others serve meanwhile. Both maps by node, with the generation of the assignment told, or carried out.

    A level, not a sequence, as `staging.py` is: whoever comes after a crash goes on where it stopped.
    """
    result = []
    turns: dict[str, str] = {}
    wanted = sorted(specs, key=lambda spec: spec.node)
    for spec in wanted:
        if spec.role is DatabaseRole.CLOUD and spec.node in told and needs_restart(told[spec.node][0], spec):
            others = [s.node for s in wanted if s.database == spec.database and s.node != spec.node and s.node in told]
            if all(_serves(told[node][1], reports.get(node)) for node in others):
                turns.setdefault(spec.database, spec.node)
            if turns.get(spec.database) != spec.node:
                live = {name: getattr(spec, name) for name in LIVE_FIELDS}
                result.append(replace(told[spec.node][0], **live))
                continue
        result.append(spec)
    return result


def _serves(told: Generation, reported: tuple[DatabaseReport, Generation | None] | None) -> bool:
    """Whether it serves as it was told last."""
    if reported is None:
        return False
    report, carried = reported
    return report.state is ProcessState.RUNNING and carried is not None and carried >= told


def without_database(newest: Assignment, database: str) -> Assignment:
    """What an agent is told when a database is removed: run the rest."""
    left = tuple(spec for spec in newest.databases if spec.database != database)
    peers = {name: nodes for name, nodes in newest.database_peers.items() if name != database}
    return replace(newest, databases=left, database_peers=peers, generation=UNNUMBERED)
