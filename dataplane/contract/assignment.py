"""Assignment: what one agent is told to run. Report: what it says it runs.

An assignment is complete (not a change to an earlier one), numbered and immutable. Its number is the generation
`(store_incarnation, revision)`: a store restored from a backup begins a new incarnation, so that its revisions are
never mistaken for older ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from dataplane.contract.database import DatabaseSpec
from dataplane.contract.security import SecuritySpec
from dataplane.contract.wal_mode import WalMode as WalMode
from providers.base.registry import StoreAddress, VolumesAddress

CONTRACT_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """The number of an assignment. Compared as a pair: a later store incarnation beats any revision of an earlier
    one.
    """

    incarnation: int
    revision: int


@dataclass(frozen=True, slots=True)
class WalSpec:
    """A broker's WAL. Only the fields of its mode are set; the others are None."""

    mode: WalMode
    bytes_max: int = 256 << 20
    """Un-uploaded bytes at which appends are pushed back; also the ring's size on a block volume."""
    volume: str | None = None
    """Id of the block volume that holds the ring (`regional-block`, `zonal-block`, the block side of
    `block+express`).
    """
    volume_zones: tuple[str, ...] = ()
    """Zones where the volume is attached beforehand: brokers there may take over without the cloud's API."""
    express: str | None = None
    """Name, in the assignment's `express` map, of the S3 Express bucket (in another zone than the broker's)."""


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """One broker process. `node_id` is stable for the life of the cluster and unique in the cell."""

    node_id: int
    name: str
    zone: str
    wal: WalSpec
    host: str = "127.0.0.1"
    kafka_port: int = 0
    """0: the agent picks a free one, once, and journals it, so that a restarted broker keeps its address."""
    spare: int = 0
    """Its rank among the cluster's spare brokers, from 1: it runs while the cell's controller asks for as many of them,
    or more. 0: it always runs."""


@dataclass(frozen=True, slots=True, order=True)
class SparesWanted:
    """A controller's word of how many spare brokers shall run. The later word is the greater."""

    term: int = 0
    """The controller's; 0: nobody has said anything yet."""
    number: int = 0
    """Of its words."""
    count: int = 0


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """How a cell decides how many of its spare brokers run."""

    brokers_max: int
    """The most at once, spare or not."""
    target: float
    """Use of each broker, 0 to 1, that is aimed at."""
    broker_bytes_per_s: int | None
    """What a broker carries, written and read together; None: only the processor counts."""
    out_after_ms: int
    in_after_ms: int
    cool_down_ms: int


@dataclass(frozen=True, slots=True)
class DiskCacheSpec:
    """Where on its host's disk a broker keeps blocks that it has read of the bucket."""

    path: str
    """A folder; each broker has its own below it."""
    bytes_max: int
    """Of one broker's files."""


@dataclass(frozen=True, slots=True)
class MetricsSpec:
    """Where a process tells Prometheus what it has counted. Nobody has to log in there."""

    enabled: bool = True
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Broker with node id n listens on `port` + n; 0: on a free one, another at each start, which its agent reports."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Settings that all brokers of a cluster share."""

    heartbeat_interval_ms: int = 250
    """Between brokers, directly; not through the bucket."""
    session_timeout_ms: int = 1500
    """Silence after which a broker counts as lost. Six heartbeats: a pause of Python's collector or of a busy two-core
    machine stays well below it.
    """
    ledger_poll_interval_ms: int = 500
    """How often an idle broker reads the next ledger name when no peer has told it of a new one."""
    upload_interval_ms: int = 10_000
    """Longest time that an acked record stays only in the WAL while the bucket answers."""
    upload_bytes: int = 32 << 20
    """Un-uploaded bytes that start an upload before the interval is over."""
    cache_bytes_max: int = 64 << 20
    """Log cache and block cache together, a broker."""
    balance_interval_ms: int = 1_000
    """How often the cell's controller looks whether partitions should be led elsewhere; 0: never."""
    retention_interval_ms: int = 30_000
    """How often a broker looks whether records are beyond their topic's retention."""
    compaction_interval_ms: int = 60_000
    """How often a broker looks whether small extents of its partitions should become one object, and whether compacted
    topics should be cleaned of superseded records."""
    compaction_bytes_per_s: int = 16 << 20
    """Bytes that a broker's compaction reads a second, at most, and about as many that it writes: a part of what a
    small node's network has."""
    orphan_interval_ms: int = 3_600_000
    """How often the controller looks through the bucket for objects that were never committed: each look lists all."""
    disk_cache: DiskCacheSpec | None = None
    """A second tier of the block cache; None: there is none."""
    zone_reads: bool = True
    """Consumers that say where they are and are far behind read from a broker of their own zone, out of object storage,
    instead of across zones from the leader."""
    scale: ScaleSpec | None = None
    """None: there are no spare brokers."""
    metrics: MetricsSpec = field(default_factory=MetricsSpec)


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that one agent runs."""

    cell: str
    """Name of the Cloud, which is the name of the cell."""
    cluster: str
    """Name of the BrokerCluster; the ledger's prefix in the bucket."""
    agent: str
    zone: str
    generation: Generation
    bucket: StoreAddress
    brokers: tuple[BrokerSpec, ...]
    volumes: VolumesAddress | None = None
    express: dict[str, StoreAddress] = field(default_factory=dict)
    settings: BrokerSettings = field(default_factory=BrokerSettings)
    security: SecuritySpec = field(default_factory=SecuritySpec)
    databases: tuple[DatabaseSpec, ...] = ()
    database_peers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Cloud databases: name → node → `host:http_port`, of all its nodes in the cell; empty text where no agent has
    reported the node's port yet."""
    version: int = CONTRACT_VERSION


class ProcessState(StrEnum):
    """A broker's or a database's process as its agent sees it.

    Starting -> Running -> (Exited -> Starting, with back-off) ; Held: not to be restarted until the hold expires (a
    drill) ; Stopped: not assigned any more ; Spare: it runs when the cell's controller asks for it
    """

    STARTING = "Starting"
    RUNNING = "Running"
    EXITED = "Exited"
    HELD = "Held"
    STOPPED = "Stopped"
    SPARE = "Spare"


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """One broker in a report. `sentence`: what the agent did last about it, and why."""

    node_id: int
    name: str
    pid: int | None
    state: ProcessState
    host: str
    kafka_port: int
    sentence: str
    outdated: bool = False
    """It runs with another WAL or other settings than are assigned, and is to start anew."""
    slow: str | None = None
    """Why the cell's controller calls it slow and leads its partitions elsewhere; None: it does not."""
    metrics: str | None = None
    """`host:port` where it serves `/metrics`; None: nowhere, or it does not serve yet."""

    @property
    def settled(self) -> bool:
        """It runs with what is assigned, or is spare and need not run."""
        return self.state is ProcessState.SPARE or (self.state is ProcessState.RUNNING and not self.outdated)


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """One database process in a report. `sentence`: what the agent did last about it, and why."""

    database: str
    node: str
    pid: int | None
    state: ProcessState
    host: str
    http_port: int
    mysql_port: int
    sentence: str
    public_key: str | None = None
    """Edge: the public half, in hex, of the key that it made for itself."""
    owner: bool | None = None
    """Cloud: whether it says that it owns its database; None: it says nothing."""
    postgres_port: int = 0


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What an agent says: appended to its report log when it changes, and not otherwise."""

    agent: str
    zone: str
    pid: int
    incarnation: str
    """The agent process's own claim of its mailbox; one that sees a later claim stops its processes."""
    generation: Generation | None
    """Greatest assignment carried out so far."""
    brokers: tuple[BrokerReport, ...]
    autonomy_seconds_left: float | None = None
    """Seconds until something needed (certificate, token, WAL space) runs out; None: nothing does."""
    refused: str | None = None
    """Why the newest assignment read was not carried out, if it was not."""
    metrics: str | None = None
    """`host:port` where the agent itself serves `/metrics`; None: nowhere."""
    databases: tuple[DatabaseReport, ...] = ()
    version: int = CONTRACT_VERSION
