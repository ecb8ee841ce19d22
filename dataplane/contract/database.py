"""A database process as an assignment describes it, and the configuration file that its agent hands it.

Plain values: what a column type or an option means is the database's own (`dataplane/tsdb/schema/tables.py`), which
checks them when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from dataplane.contract.codec import LEFT_OUT
from dataplane.contract.security import ListenerProtocol, Mechanism, TlsSpec
from dataplane.contract.wal_mode import WalMode
from providers.base.registry import StoreAddress


class DatabaseRole(StrEnum):
    """Which side a process is: beside the application, or over a cell's bucket."""

    EDGE = "edge"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A column. `type` and `role` by the names of `ColumnType` and `ColumnRole`."""

    name: str
    type: str
    role: str = "field"
    nullable: bool = True
    decimals: int | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table that the database has from its start. Options that are left out have the database's own defaults."""

    name: str
    columns: tuple[ColumnSpec, ...]
    options: dict[str, str | int | bool] = field(default_factory=dict)
    """By the names of `TableOptions`' fields."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic between edges and their cloud database, and how its brokers are reached. Without a secret."""

    cluster: str
    """Name of the BrokerCluster: a topic of that name on another one is another topic."""
    topic: str
    partitions: int
    bootstrap: tuple[str, ...]
    """`host:port` of the cluster's brokers."""
    protocol: ListenerProtocol = ListenerProtocol.PLAINTEXT
    mechanism: Mechanism | None = None
    login: str | None = None
    """Reference to a JSON object with `username` and `password`."""
    ca_file: str | None = None
    """PEM: who signed the brokers' certificates; None: those whom the machine trusts."""
    edges: tuple[str, ...] = ()
    """Cloud: who sends by it. Of these a record whose key is not known yet waits for it."""
    skip_gone: bool = False
    """Cloud: records that the topic dropped before they were imported are passed over."""


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """Where an edge's files go, and how."""

    database: str
    """The cloud database: its prefix in the bucket."""
    bucket: StoreAddress | None
    """None: by a topic."""
    bytes_per_s: int | None = None
    """Cap on what is sent, all requests together; None: what the line takes."""
    interval_ms: int = 1_000
    """Between two looks at what is to be sent, and at acks."""
    batch_files_max: int = 200
    keep_local_ms: int = 0
    """How long a file stays on the flash after the cloud's ack."""
    via: TopicSpec | None = None


@dataclass(frozen=True, slots=True)
class DatabaseSpec:
    """One database process. An edge has one; a cloud database has one or more, of which one owns it at a time."""

    database: str
    """The Database's name: for the cloud side its prefix in the bucket."""
    node: str
    """This process's name, unique in the cell: for an edge its name among the database's edges."""
    role: DatabaseRole
    zone: str
    tables: tuple[TableSpec, ...] = ()
    host: str = "127.0.0.1"
    http_port: int = 0
    """0: the agent picks a free one, once."""
    mysql_port: int = 0
    """Cloud side; 0: the agent picks a free one, once."""
    postgres_port: int = 0
    """The same."""
    users: str | None = None
    """Where a JSON object of user and password is (`providers/base/credentials.py`): who may connect, by HTTP and by
    the wires of MySQL and Postgres. None: everybody, on the loopback alone."""
    tls: TlsSpec | None = None
    """HTTP is https, and the wires of MySQL and Postgres want TLS of their clients, whose certificates are not asked
    for."""
    memory_bytes_max: int = 50 << 20
    """Rows that are in no file yet, all tables'."""
    upload: UploadSpec | None = None
    """Edge: None keeps its files on the flash."""
    trust: dict[str, str] = field(default_factory=dict)
    """Cloud: edges whose batches are imported, each with its Ed25519 public key in hex."""
    pin: str | None = None
    """Edge that uploads by a topic: its public key, in hex, as the cloud database is told of it. Files wait until it is
    the edge's own: what arrives under another key is passed over, and an edge does not hear of it."""
    topics: tuple[TopicSpec, ...] = ()
    """Cloud: what its owner consumes."""
    create_tables: bool = False
    """Cloud: whether an edge's batch may bring a table that is not there."""
    wal: WalMode = WalMode.OBJECT
    """Cloud: where its own writes are durable before they are acked."""
    lease_ms: int = 3_000
    """Cloud: silence of the owner after which another of its nodes takes over."""
    cache_bytes_max: int = 1 << 30
    """Cloud: files on local disk, lost without harm."""


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """The file behind `python -m dataplane.tsdb.process --config FILE`."""

    cell: str
    bucket: StoreAddress
    """The cell's. An edge process does not open it."""
    spec: DatabaseSpec
    """With the ports that the agent picked."""
    folder: str
    """The process's own, which outlives it: an edge's flash, its key; a cloud node's cache."""
    ready_file: str
    """Written when it serves: a JSON object with `pid`, `http_port`, `mysql_port` and `postgres_port` (cloud) and
    `public_key` (edge, hex). A cloud node also writes `owner`, whether it owns its database, and writes the file anew
    when that changes."""
    peers: dict[str, str] = field(default_factory=dict)
    """Cloud: the database's other nodes, by name, each `host:http_port`."""


LIVE_FIELDS = ("trust", "topics", "pin")
"""Of `DatabaseSpec`: what a running process takes over at SIGHUP, its agent having replaced the file; and of an edge's
topic, where its brokers are."""


_PORTS = ("http_port", "mysql_port", "postgres_port")


def needs_restart(running: DatabaseSpec, wanted: DatabaseSpec) -> bool:
    """Whether a process started with the one has to be started anew for the other. Ports that are 0 in `wanted` are the
    agent's to pick, and no difference."""
    same = {name: getattr(wanted, name) for name in LIVE_FIELDS}
    ports = {name: getattr(wanted, name) or getattr(running, name) for name in _PORTS}
    return replace(_unplaced(running), **same) != replace(_unplaced(wanted), **ports)


def _unplaced(spec: DatabaseSpec) -> DatabaseSpec:
    """Without where an edge's brokers are, and how many partitions they have: those change as the cluster does."""
    if spec.upload is None or spec.upload.via is None:
        return spec
    return replace(spec, upload=replace(spec.upload, via=replace(spec.upload.via, bootstrap=(), partitions=0)))
