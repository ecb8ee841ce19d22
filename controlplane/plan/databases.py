"""From databases' specs to their processes: which runs where, and with what. Pure.

Node i runs in zone (i - 1) mod Z of its cloud, as brokers do; so do edges, whose agents stand for the vehicles' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.api.check_databases import tables_of
from controlplane.api.databases import Database, Upload
from controlplane.api.quantities import duration_ms
from controlplane.api.specs import Specs
from dataplane.contract.database import DatabaseRole, DatabaseSpec, TopicSpec, UploadSpec
from dataplane.contract.security import ListenerProtocol, Mechanism, TlsSpec
from dataplane.contract.wal_mode import WalMode
from providers.base.errors import Invalid
from providers.base.registry import StoreAddress

LEASE_DEFAULT_MS = 3_000
CACHE_DEFAULT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ResolvedDatabase:
    """A database with its processes, in their order."""

    name: str
    cloud: str
    role: DatabaseRole
    nodes: tuple[DatabaseSpec, ...]
    """All that follows from specs alone: without ports, and without what other cells and processes say (`upload`,
    `trust`)."""
    upload: Upload | None = None
    target_cloud: str | None = None
    """Where the database is that it uploads to."""
    via: TopicSpec | None = None
    """By which topic it uploads; where its brokers are is not known from here."""

    @property
    def zones(self) -> tuple[str, ...]:
        """Where it has processes."""
        return tuple(dict.fromkeys(node.zone for node in self.nodes))


def resolve_databases(specs: Specs) -> dict[str, ResolvedDatabase]:
    """Each database of `specs` by name.

    Databases that GreptimeDB's operator runs are not among them: no agent has a part in those.

    Raises:
        Invalid: one has an engine that is not run from here; says where it was written.
    """
    for name, database in specs.databases.items():
        cloud = specs.clouds[database.spec.cloud].spec
        if database.spec.engine != "embedded" and cloud.kubernetes is None:
            where = specs.where("Database", name, "spec", "engine")
            raise Invalid(
                f"{where}: engine {database.spec.engine} is not run from here",
                hint=f"`yunhe database render {name} --spec FILE --bucket NAME` writes its configuration; "
                "with `kubernetes` in its Cloud it is run there",
            )
    return {
        name: _resolved(specs, database)
        for name, database in specs.databases.items()
        if database.spec.engine == "embedded"
    }


def _resolved(specs: Specs, database: Database) -> ResolvedDatabase:
    name, spec = database.metadata.name, database.spec
    zones = specs.clouds[spec.cloud].spec.zones
    tables = tuple(table.to_contract() for table in tables_of(database, specs))
    cloud = spec.role == "cloud"
    nodes = tuple(
        DatabaseSpec(
            database=name,
            node=node,
            role=DatabaseRole(spec.role),
            zone=zones[at % len(zones)],
            tables=tables,
            host=spec.host,
            users=spec.users,
            tls=TlsSpec(spec.tls.certificate_file, spec.tls.key_file) if spec.tls is not None else None,
            memory_bytes_max=spec.memory,
            topics=_consumed(specs, name) if cloud else (),
            create_tables=bool(spec.create_tables),
            wal=WalMode(spec.wal.mode) if spec.wal is not None else WalMode.OBJECT,
            lease_ms=duration_ms(spec.lease) if spec.lease is not None else LEASE_DEFAULT_MS,
            cache_bytes_max=spec.cache if cloud and spec.cache is not None else CACHE_DEFAULT_BYTES,
        )
        for at, node in enumerate(database.node_names)
    )
    target = specs.databases[spec.upload.to].spec.cloud if spec.upload is not None else None
    via = _topic(specs, spec.upload) if spec.upload is not None else None
    via = None if via is None else replace(via, skip_gone=False)
    return ResolvedDatabase(name, spec.cloud, DatabaseRole(spec.role), nodes, spec.upload, target, via)


def _topic(specs: Specs, upload: Upload) -> TopicSpec | None:
    via = upload.via
    if via is None:
        return None
    listeners = specs.clusters[via.cluster].spec.listeners
    served = () if listeners.sasl is None else listeners.sasl.mechanisms
    # The strongest that is served.
    mechanism = next(
        (m for m in (Mechanism.SCRAM_SHA_512, Mechanism.SCRAM_SHA_256, Mechanism.PLAIN) if m in served), None
    )
    return TopicSpec(
        cluster=via.cluster,
        topic=via.topic,
        partitions=specs.topics[via.topic].spec.partitions,
        bootstrap=(),
        protocol=ListenerProtocol(listeners.protocol),
        mechanism=mechanism,
        login=via.login,
        ca_file=via.ca_file,
        skip_gone=via.skip_gone,
    )


def shown_via(upload: Upload | None) -> str | None:
    """By which topic an upload goes, in words; None: by no topic."""
    return (
        f"topic {upload.via.topic} of {upload.via.cluster}" if upload is not None and upload.via is not None else None
    )


def _consumed(specs: Specs, name: str) -> tuple[TopicSpec, ...]:
    """The topics by which edges upload to it; of several databases of edges on one, the first says how to log in."""
    found: dict[tuple[str, str], TopicSpec] = {}
    for edges in sorted(specs.databases.values(), key=lambda d: d.metadata.name):
        upload = edges.spec.upload
        topic = _topic(specs, upload) if upload is not None and upload.to == name else None
        if topic is not None:
            first = found.setdefault((topic.cluster, topic.topic), topic)
            skip = first.skip_gone or topic.skip_gone
            found[topic.cluster, topic.topic] = replace(first, edges=first.edges + edges.node_names, skip_gone=skip)
    return tuple(found.values())


def zones_by_cloud(databases: Mapping[str, ResolvedDatabase]) -> dict[str, list[str]]:
    """The zones in which each cloud needs an agent for its databases."""
    zones: dict[str, list[str]] = {}
    for database in databases.values():
        zones.setdefault(database.cloud, []).extend(database.zones)
    return zones


def upload_spec(upload: Upload, bucket: StoreAddress | None, via: TopicSpec | None = None) -> UploadSpec:
    """What an edge is told of its upload, its target's bucket known, or where its topic's brokers are."""
    return UploadSpec(
        database=upload.to,
        bucket=bucket,
        bytes_per_s=upload.bytes_per_second,
        interval_ms=duration_ms(upload.interval),
        batch_files_max=upload.batch_files_max,
        keep_local_ms=duration_ms(upload.keep_local),
        via=via,
    )
