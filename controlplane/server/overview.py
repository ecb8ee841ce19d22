"""All clouds in one document: `yunhe status -o json`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.api.specs import Specs
from controlplane.plan.databases import shown_via
from controlplane.plan.resolve import ResolvedCluster

Statuses = Mapping[tuple[str, str], Mapping[str, Any]]

LOCAL = "local"
"""Where the one replica of the control plane runs: on this host, beside the clouds and in none of them."""


def overview(
    specs: Specs, resolved: Mapping[str, ResolvedCluster], statuses: Statuses, *, control_plane_pid: int
) -> dict[str, Any]:
    """The document, from what the reconcilers recorded last."""
    clouds = [_cloud(name, specs, resolved, statuses) for name in specs.clouds]
    topics = []
    for name, topic in specs.topics.items():
        status = statuses.get(("Topic", name), {})
        topics.append(
            {
                "name": name,
                "partitions": topic.spec.partitions,
                "clusters": list(topic.spec.clusters),
                "state": status.get("state", "Pending"),
                "sentence": status.get("sentence", "not looked at yet"),
            }
        )
    databases = [_database(name, specs, statuses) for name in specs.databases]
    for cloud in clouds:
        # Where there is no cluster, a database's look knows the agents.
        mine = [d for d in databases if d["cloud"] == cloud["name"]]
        cloud["agents"] = cloud["agents"] or next((d["agents"] for d in mine if d["agents"]), [])
    for database in databases:
        del database["agents"]
    return {
        "state": summary_state([one["state"] for one in (*clouds, *topics, *databases)]),
        "clouds": clouds,
        "topics": topics,
        "databases": databases,
        "controlPlane": [{"cloud": LOCAL, "pid": control_plane_pid, "state": "Running"}],
    }


def _cloud(name: str, specs: Specs, resolved: Mapping[str, ResolvedCluster], statuses: Statuses) -> dict[str, Any]:
    spec, cloud = specs.clouds[name].spec, statuses.get(("Cloud", name), {})
    shown: dict[str, Any] = {
        "name": name,
        "provider": spec.provider,
        "region": spec.region,
        "target": spec.target,
        "state": cloud.get("state", "Pending"),
        "sentence": cloud.get("sentence", "not looked at yet"),
        "cluster": None,
        "wal": None,
        "bootstrap": None,
        "bootstrapServers": None,
        "brokers": [],
        "agents": [],
    }
    cluster = next((c for c in resolved.values() if c.cloud == name), None)
    if cluster is None:
        return shown
    status = statuses.get(("BrokerCluster", cluster.name), {})
    state = summary_state([str(shown["state"]), str(status.get("state", "Pending"))])
    # The cluster's own words, unless it is the cloud that holds it up.
    blocked = shown["state"] not in ("Ready", "Pending", "Progressing")
    sentence = shown["sentence"] if blocked else status.get("sentence", shown["sentence"])
    shown.update(
        state=state,
        sentence=sentence,
        cluster=cluster.name,
        wal={"mode": cluster.choice.mode.value, "reasons": list(cluster.choice.reasons)},
        bootstrap=status.get("bootstrap"),
        bootstrapServers=status.get("bootstrapServers"),
        controller=status.get("controller"),
        brokers=status.get("brokers", _pending(cluster)),
        agents=status.get("agents", []),
    )
    return shown


_PORTS = ("httpPort", "mysqlPort", "postgresPort")


def _database(name: str, specs: Specs, statuses: Statuses) -> dict[str, Any]:
    spec, status = specs.databases[name].spec, statuses.get(("Database", name), {})
    pending = [
        {"name": node, "zone": None, "pid": None, "state": "Pending", "host": None, **dict.fromkeys(_PORTS)}
        for node in specs.databases[name].node_names
    ]
    nodes = list(status.get("nodes", pending))
    # Of a cloud database the owner takes writes: it comes first.
    serving = sorted((n for n in nodes if n["httpPort"]), key=lambda n: n["name"] != status.get("owner"))
    return {
        "name": name,
        "cloud": spec.cloud,
        "role": spec.role,
        "state": status.get("state", "Pending"),
        "sentence": status.get("sentence", "not looked at yet"),
        "owner": status.get("owner"),
        "uploadTo": spec.upload.to if spec.upload is not None else None,
        "uploadVia": shown_via(spec.upload),
        "tls": spec.tls is not None,
        "http": [f"{'https' if spec.tls else 'http'}://{n['host']}:{n['httpPort']}" for n in serving],
        "mysql": [f"{n['host']}:{n['mysqlPort']}" for n in serving if n["mysqlPort"]],
        "postgres": [postgres_address(n, tls=spec.tls is not None) for n in serving if n.get("postgresPort")],
        "nodes": nodes,
        "strangers": dict(status.get("strangers", {})),
        "agents": list(status.get("agents", [])),
    }


def postgres_address(node: Mapping[str, Any], *, tls: bool) -> str:
    """Of a node's Postgres port, as that wire's clients are told it."""
    asks = "?sslmode=require" if tls else ""
    return f"postgres://{node['host'] or '127.0.0.1'}:{node['postgresPort']}/public{asks}"


def _pending(cluster: ResolvedCluster) -> list[dict[str, Any]]:
    return [
        {"id": b.node_id, "name": b.name, "zone": b.zone, "pid": None, "state": "Pending", "kafkaPort": None}
        for b in cluster.brokers
    ]


_WORST_FIRST = ("Failed", "Down", "Unavailable", "Degraded", "Progressing", "Pending", "Ready")


def summary_state(states: Iterable[str]) -> str:
    """The worst of the states; Stopped when there are none."""
    present = set(states)
    return next((state for state in _WORST_FIRST if state in present), "Stopped")
