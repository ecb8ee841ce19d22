"""From databases' specs to their processes: which runs where, and with what. Pure.

Node i runs in zone (i - 1) mod Z of its cloud, as brokers do; so do edges, whose agents stand for the vehicles' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.api.check_databases import tables_of
from controlplane.api.databases import Database, Upload
from controlplane.api.quantities import duration_ms
from controlplane.api.specs import Specs
from dataplane.contract.database import DatabaseRole, DatabaseSpec, UploadSpec
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
            memory_bytes_max=spec.memory,
            create_tables=bool(spec.create_tables),
            wal=WalMode(spec.wal.mode) if spec.wal is not None else WalMode.OBJECT,
            lease_ms=duration_ms(spec.lease) if spec.lease is not None else LEASE_DEFAULT_MS,
            cache_bytes_max=spec.cache if cloud and spec.cache is not None else CACHE_DEFAULT_BYTES,
        )
        for at, node in enumerate(database.node_names)
    )
    target = specs.databases[spec.upload.to].spec.cloud if spec.upload is not None else None
    return ResolvedDatabase(name, spec.cloud, DatabaseRole(spec.role), nodes, spec.upload, target)


def zones_by_cloud(databases: Mapping[str, ResolvedDatabase]) -> dict[str, list[str]]:
    """The zones in which each cloud needs an agent for its databases."""
    zones: dict[str, list[str]] = {}
    for database in databases.values():
        zones.setdefault(database.cloud, []).extend(database.zones)
    return zones


def upload_spec(upload: Upload, bucket: StoreAddress) -> UploadSpec:
    """What an edge is told of its upload, its target's bucket known."""
    return UploadSpec(
        database=upload.to,
        bucket=bucket,
        bytes_per_s=upload.bytes_per_second,
        interval_ms=duration_ms(upload.interval),
        batch_files_max=upload.batch_files_max,
        keep_local_ms=duration_ms(upload.keep_local),
    )
