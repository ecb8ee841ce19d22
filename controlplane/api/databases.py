"""The kind Database: a time-series database in the cloud, or a set of edge databases that send it their files.

What a column type or an option means is the database's own (`dataplane/tsdb/schema/tables.py`), which nothing here may
import; its words and defaults stand here again, and a test holds them equal.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from controlplane.api.kubernetes import GreptimeDb
from controlplane.api.listeners import Reference
from controlplane.api.model import Metadata, Model, each_once
from controlplane.api.quantities import Bytes, Duration, Name, Refused, duration_ms
from dataplane.contract.database import ColumnSpec, TableSpec
from providers.base.hosts import is_loopback

NODES_MAX = 3
EDGES_MAX = 200
TABLES_MAX = 1_000
COLUMNS_MAX = 2_000
DECIMALS_MAX = 9
NAME_BYTES_MAX = 200

_NAME = re.compile(r"[^\x00-\x1f\"`/\\]+")
_WIDTHS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def _wal_mode(value: Any) -> Any:
    if value in ("regional-block", "block+express", "zonal-block"):
        raise Refused(f"wal.mode {value!r} is not here yet for databases", "leave wal out, or write `mode: object`")
    return value


def _off(value: Any) -> Any:
    # YAML reads a bare `off` as false.
    return "off" if value is False else value


def _type(value: Any) -> Any:
    # Brackets cannot stand unquoted in `{name: ts, type: timestamp[ms]}`; timestamp_ms can.
    return re.sub(r"^timestamp_(s|ms|us|ns)$", r"timestamp[\1]", value) if isinstance(value, str) else value


def _called(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value.encode()) > NAME_BYTES_MAX or value.startswith("__"):
        raise Refused(
            f"{value!r} is not a name of a table or column",
            f"1 to {NAME_BYTES_MAX} bytes without quotes, slashes or control characters, and no two underscores first",
        )
    return value


Called = Annotated[StrictStr, AfterValidator(_called)]
"""A name of a table or a column."""
ColumnTypeName = Literal[
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
    "bool",
    "string",
    "binary",
    "timestamp[s]",
    "timestamp[ms]",
    "timestamp[us]",
    "timestamp[ns]",
]
ColumnRoleName = Literal["tag", "field", "time"]


class TableColumn(Model):
    """A column. Its place in the list is its identity in files: new ones are added at the end."""

    name: Called
    type: Annotated[ColumnTypeName, BeforeValidator(_type)]
    """By Arrow's names; timestamp[ms] may be written timestamp_ms."""
    role: ColumnRoleName = "field"
    """tag: names the series. time: orders its rows. field: what was measured."""
    nullable: StrictBool | None = None
    """Left out: true, but of the time index false."""
    decimals: Annotated[StrictInt, Field(ge=0, le=DECIMALS_MAX)] | None = None
    """Of a field of floating point: values are rounded to so many digits behind the point, and files are smaller by it.
    It cannot change."""


class TableOptions(Model):
    """What may be said of a table besides its columns."""

    append_mode: StrictBool = False
    """true: rows are never merged, and none can be deleted."""
    merge_mode: Literal["last_row", "last_non_null"] = "last_row"
    """Of rows with one series and time: the last one whole, or of each field the last that is not null."""
    ttl: Duration | None = None
    """Rows older than this are removed. Left out: kept for ever."""
    wal: Annotated[Literal["always", "periodic", "off"], BeforeValidator(_off)] = "always"
    """What an ack waits for: the log on stable storage; the log written, and synced every `walSyncInterval` (a power
    cut loses what came since); nothing (a power cut loses what is in no file yet)."""
    wal_sync_interval: Duration = "5s"
    memtable_bytes: Annotated[Bytes, Field(ge=64 << 10, le=1 << 34)] = 1 << 20
    """Edge: bytes in memory at which the table pushes back; it is flushed at half of them and refuses at twice."""
    flush_interval: Duration = "60s"
    """Longest time that a row stays in memory only."""
    upload_priority: Annotated[StrictInt, Field(ge=-1_000, le=1_000)] = 0
    """Edge: files of a higher one are sent first."""
    greptime_columns: StrictBool = False
    """true: files carry GreptimeDB's internal columns, for a real GreptimeDB to read."""

    @model_validator(mode="after")
    def _spans_are_positive(self) -> TableOptions:
        for name, value in (("walSyncInterval", self.wal_sync_interval), ("flushInterval", self.flush_interval)):
            if duration_ms(value) <= 0:
                raise Refused(f"{name} must be more than 0", "for example 1s")
        if self.ttl is not None and duration_ms(self.ttl) <= 0:
            raise Refused("ttl must be more than 0", "leave it out to keep rows for ever")
        return self


class Table(Model):
    """A table that is there from the start; more can be made by clients."""

    name: Called
    columns: Annotated[tuple[TableColumn, ...], Field(min_length=1, max_length=COLUMNS_MAX)]
    options: TableOptions = TableOptions()

    @model_validator(mode="after")
    def _is_a_schema(self) -> Table:
        each_once(tuple(column.name for column in self.columns))
        times = [column for column in self.columns if column.role == "time"]
        if len(times) != 1:
            raise Refused(
                f"table {self.name} needs exactly one column with role time, and has {len(times)}",
                "for example {name: ts, type: timestamp_ms, role: time}",
            )
        if not times[0].type.startswith("timestamp"):
            raise Refused(
                f"the time index {times[0].name} of {self.name} must be a timestamp", "for example timestamp_ms"
            )
        if times[0].nullable:
            raise Refused(f"the time index {times[0].name} of {self.name} cannot be nullable", "remove nullable there")
        for column in self.columns:
            if column.role == "tag" and column.type in ("float32", "float64", "binary"):
                raise Refused(
                    f"tag {column.name} of {self.name} is a {column.type}, which names no series",
                    "floats and bytes are fields",
                )
            if column.decimals is not None and (column.role != "field" or column.type not in ("float32", "float64")):
                raise Refused(
                    f"column {column.name} of {self.name} is a {column.role} of type {column.type}, and has decimals",
                    "decimals are of fields of type float32 or float64",
                )
        return self

    def to_contract(self) -> TableSpec:
        """The table as the database is told of it, options written out."""
        options = self.options
        return TableSpec(
            self.name,
            tuple(
                ColumnSpec(c.name, c.type, c.role, c.role != "time" if c.nullable is None else c.nullable, c.decimals)
                for c in self.columns
            ),
            {
                "append_mode": options.append_mode,
                "merge_mode": options.merge_mode,
                **({} if options.ttl is None else {"ttl_ms": duration_ms(options.ttl)}),
                "wal": options.wal,
                "wal_sync_interval_ms": duration_ms(options.wal_sync_interval),
                "memtable_bytes_max": options.memtable_bytes,
                "flush_interval_ms": duration_ms(options.flush_interval),
                "upload_priority": options.upload_priority,
                "greptime_columns": options.greptime_columns,
            },
        )


class ServerTls(Model):
    """PEM files on each process's host; they are read again when they change, without a restart."""

    certificate_file: StrictStr
    """The server's certificate, and those between it and the root."""
    key_file: StrictStr
    """Its key, unencrypted, readable for the agent's user alone."""


class DatabaseWal(Model):
    """Cloud: where its own writes are durable before they are acked."""

    mode: Annotated[Literal["object"], BeforeValidator(_wal_mode)] = "object"


class Via(Model):
    """Edge: files go as records into a topic, which the cloud database's owner consumes, each once."""

    cluster: Name
    """Name of the BrokerCluster; it may be in another Cloud than either."""
    topic: StrictStr
    """Name of a Topic of that cluster."""
    login: Reference | None = None
    """Where a JSON object with username and password is, at each edge and at each node of the database. For clusters
    with SASL."""
    ca_file: StrictStr | None = None
    """PEM, at each edge and node: who signed the brokers' certificates. Left out: those whom the machine trusts."""
    skip_gone: StrictBool = False
    """Whether records that the topic dropped before the database has imported them are passed over. Left out, import
    of that partition waits until somebody decides."""


class Upload(Model):
    """Edge: where files go, and how."""

    to: Name
    """Name of the Database with role cloud that imports them; it may be in another Cloud."""
    bytes_per_second: Annotated[Bytes, Field(ge=1 << 10, le=1 << 40)] | None = None
    """What is sent a second at most, an edge. Left out: what the line takes."""
    interval: Duration = "1s"
    """Between two looks at what is to be sent, and at acks."""
    batch_files_max: Annotated[StrictInt, Field(ge=1, le=10_000)] = 200
    keep_local: Duration = "0s"
    """How long a file stays on the flash after the cloud has taken it."""
    via: Via | None = None
    """Left out: by the bucket of the database's cloud."""

    @model_validator(mode="after")
    def _looks_now_and_then(self) -> Upload:
        if duration_ms(self.interval) < 50:
            raise Refused("upload.interval must be at least 50ms", "each look costs a request")
        if self.via is not None and (duration_ms(self.keep_local) > 0 or self.batch_files_max != 200):
            raise Refused(
                "keepLocal and batchFilesMax are for uploads to the bucket, and this one goes via a topic",
                "by a topic files go one by one, and leave the flash when the brokers have them",
            )
        return self


_OF_ROLE = {
    "edge": ("edges", "edge_names", "upload"),
    "cloud": ("nodes", "wal", "lease", "cache", "create_tables"),
}
_YAML = {"create_tables": "createTables", "edge_names": "edgeNames"}


class DatabaseSpec(Model):
    """One database in a cloud, or many alike in vehicles."""

    role: Literal["edge", "cloud"]
    """cloud: one database over the cell's bucket. edge: so many of their own, each with its flash and its key."""
    cloud: Name
    """Name of the Cloud whose cell it is in; of edges, the one whose agents run them."""
    engine: Literal["embedded", "greptimedb"] = "embedded"
    """greptimedb: cloud; as resources of its operator in a Cloud that has `kubernetes`, and else only as configuration
    (`yunhe database render`)."""
    greptimedb: GreptimeDb | None = None
    """Engine greptimedb: its image, its metadata store and its log."""
    tables: Annotated[tuple[Table, ...], Field(max_length=TABLES_MAX)] = ()
    """Of edges that upload, left out: those of the database that they upload to."""
    host: StrictStr = "127.0.0.1"
    """Address to bind and to advertise. Ports are picked free by the agents, once."""
    users: Reference | None = None
    """Where a JSON object of user and password is, at each node: who may connect. Left out: everybody, which is for a
    host on the loopback alone."""
    tls: ServerTls | None = None
    """HTTP is https then, and the wires of MySQL and Postgres want TLS of their clients. Left out: in the clear."""
    memory: Annotated[Bytes, Field(ge=1 << 20, le=1 << 40)] = 50 << 20
    """Rows that are in no file yet, of all tables, a process."""
    nodes: Annotated[StrictInt, Field(ge=1, le=NODES_MAX)] | None = None
    """Cloud: processes, spread over the zones in order; one of them owns the database at a time. Left out: 1."""
    wal: DatabaseWal | None = None
    lease: Duration | None = None
    """Cloud: silence of the owner after which another node takes over. Left out: 3s."""
    cache: Annotated[Bytes, Field(ge=16 << 20, le=1 << 46)] | None = None
    """Cloud: files on a node's local disk, lost without harm. Left out: 1GiB."""
    create_tables: StrictBool | None = None
    """Cloud: whether an edge may bring a table that is not there. Left out: false."""
    edges: Annotated[StrictInt, Field(ge=1, le=EDGES_MAX)] | None = None
    """Edge: how many; they are named <database>-1, <database>-2 …"""
    edge_names: (
        Annotated[tuple[Name, ...], Field(min_length=1, max_length=EDGES_MAX), AfterValidator(each_once)] | None
    ) = None
    """Instead of edges: the name of each, under which its batches are signed."""
    upload: Upload | None = None
    """Edge: left out, files stay on the flash."""

    @model_validator(mode="after")
    def _is_consistent(self) -> DatabaseSpec:
        other = "cloud" if self.role == "edge" else "edge"
        for name in _OF_ROLE[other]:
            if getattr(self, name) is not None:
                field = _YAML.get(name, name)
                raise Refused(f"{field} is for role {other}, and this is role {self.role}", f"remove the field {field}")
        if self.users is None and not is_loopback(self.host):
            raise Refused(
                f"host {self.host} is reached by others, and without users everybody could read and write",
                "name where users and their passwords are: users: /etc/yunhe/users.json",
            )
        if self.greptimedb is not None and self.engine != "greptimedb":
            what = f"greptimedb is set although engine is {self.engine}"
            raise Refused(what, "set `engine: greptimedb`, or remove greptimedb")
        if self.tls is not None and self.engine != "embedded":
            raise Refused(f"tls is not rendered for engine {self.engine}", "remove the field tls, and set it there")
        if self.role == "edge" and self.engine != "embedded":
            raise Refused(f"engine {self.engine} is for role cloud", "leave engine out, or write embedded")
        if self.role == "edge" and (self.edges is None) == (self.edge_names is None):
            raise Refused("role edge needs either edges or edgeNames, and not both", "for example `edges: 10`")
        if self.lease is not None and not 500 <= duration_ms(self.lease) <= 600_000:
            raise Refused("lease must be 500ms to 10m", "shorter, and a pause of a busy machine is a failover")
        each_once(tuple(table.name for table in self.tables))
        return self


class Database(Model):
    """A time-series database, role `edge` or `cloud`."""

    api_version: Literal["yunhe.io/v1alpha1"]
    kind: Literal["Database"]
    metadata: Metadata
    spec: DatabaseSpec

    @property
    def node_names(self) -> tuple[str, ...]:
        """Its processes: unique over all databases, for an edge's name is what its batches are signed under."""
        spec = self.spec
        if spec.edge_names is not None:
            return spec.edge_names
        count = spec.edges or spec.nodes or 1
        return tuple(f"{self.metadata.name}-{ordinal}" for ordinal in range(1, count + 1))


def differs_from_target(mine: Table, target: Table) -> str | None:
    """Why files of an edge's table will not be taken for the cloud's table of that name; None: nothing seen from here.
    One may have more nullable fields at the end than the other, and the exact rule of types is the database's own."""
    for at, (ours, theirs) in enumerate(zip(mine.columns, target.columns, strict=False), 1):
        if ours.name != theirs.name:
            return f"column {at} is {ours.name} here and {theirs.name} there"
        if ours.role != theirs.role:
            return f"column {ours.name} is a {ours.role} here and a {theirs.role} there"
        numbers = ours.type in _WIDTHS and theirs.type in _WIDTHS and ours.role == "field"
        if ours.type != theirs.type and not numbers:
            return f"column {ours.name} is {ours.type} here and {theirs.type} there"
        if ours.decimals != theirs.decimals:
            return f"column {ours.name} has other decimals here than there"
    shared = min(len(mine.columns), len(target.columns))
    for column in (*mine.columns[shared:], *target.columns[shared:]):
        if column.role != "field" or column.nullable is False:
            return f"column {column.name} is only on one side, and is no nullable field"
    return None
