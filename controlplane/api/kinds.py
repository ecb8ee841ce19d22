"""The kinds: Cloud, BrokerCluster, Topic; Database is in `databases.py`. Frozen; field names are camelCase in YAML;
unknown fields are refused.

A default shown here is what is stored when the field is left out, so that a later version's other default never changes
a running cluster by itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from controlplane.api.autoscale import BROKERS_MAX, Autoscale
from controlplane.api.databases import Database
from controlplane.api.kubernetes import AutoMq, Kubernetes
from controlplane.api.listeners import Authorization, Listeners, check_authorization
from controlplane.api.model import Metadata, Model, each_once
from controlplane.api.quantities import Bytes, Duration, Name, Names, Refused, Zone, duration_ms
from dataplane.contract.assignment import BrokerSettings as ContractSettings

API_VERSION = "yunhe.io/v1alpha1"
PARTITIONS_MAX = 1000
ZONES_MAX = 8

_CONTRACT = ContractSettings()
_WAL_BYTES_MIN = 4 << 20

NOT_HERE_YET_ENGINES = {"kafka": "Apache Kafka", "strimzi": "Apache Kafka by Strimzi"}


def _engine(value: Any) -> Any:
    if isinstance(value, str) and value in NOT_HERE_YET_ENGINES:
        raise Refused(
            f"engine {value!r} ({NOT_HERE_YET_ENGINES[value]}) is not here yet, see README.md",
            "leave engine out, or write embedded or automq",
        )
    return value


class RealTarget(Model):
    """How a real cloud is reached. References only: a secret is never part of a spec."""

    bucket: Annotated[StrictStr, Field(min_length=3, max_length=63)]
    """Existing bucket (Azure: container) that holds the cell."""
    endpoint: StrictStr | None = None
    """Base URL where the cloud's own does not serve: a private S3's. http or https, without user or password."""
    credentials_file: StrictStr | None = None
    """Path, on each host, of a JSON file with the credentials; left out, the SDK's own chain is asked."""
    resource_group: StrictStr | None = None
    """Azure: the resource group of machines and volumes, for `yunhe probe`."""
    control_endpoint: StrictStr | None = None
    """Base URL of the control API where the cloud's own does not serve: the lab's (`yunhe lab up`)."""

    @model_validator(mode="after")
    def _endpoints_are_plain(self) -> RealTarget:
        for name, url in (("endpoint", self.endpoint), ("controlEndpoint", self.control_endpoint)):
            if url is None:
                continue
            scheme, separator, rest = url.partition("://")
            if not separator or scheme not in ("http", "https") or not rest:
                raise Refused(f"{name} {url!r} is not a URL", "write it as https://host or http://host:port")
            if "@" in rest.partition("/")[0]:
                raise Refused(
                    f"{name} holds a user or a password", "put credentials into the file that credentialsFile names"
                )
        return self


class CapabilityOverrides(Model):
    """What the user knows better than the catalogue. Each replaces a documented or probed fact; left out, that fact
    stands."""

    object_store: Literal["regional", "zonal", "none"] | None = None
    """What one zone's loss leaves of the object store: regional survives it."""
    create_if_absent: StrictBool | None = None
    """Whether creating an object can be made to fail when the name exists. Without it nothing here works."""
    regional_block: StrictBool | None = None
    """Whether the region offers zone-redundant volumes."""
    cross_zone_multi_attach: StrictBool | None = None
    """Whether such a volume may be attached in two zones at once."""
    persistent_reservations: StrictBool | None = None
    """Whether such a volume honours persistent reservations (NVMe or SCSI)."""
    share_max: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    """How many hosts may attach one volume."""
    express_zones: tuple[Zone, ...] | None = None
    """Zones that have the low-latency, appendable, zonal object store (S3 Express One Zone; GCS Rapid)."""


class CloudSpec(Model):
    """A provider, an account, a region, its zones. The cell's name is the Cloud's name."""

    provider: Literal["aliyun", "azure", "gcp", "aws", "private"]
    account: StrictStr | None = None
    """Account, subscription or project id; shown, and never a secret."""
    region: Annotated[StrictStr, Field(min_length=1, max_length=40)]
    zones: Annotated[tuple[Zone, ...], Field(min_length=1, max_length=ZONES_MAX), AfterValidator(each_once)]
    """As that cloud writes them, in the order in which brokers are spread. AWS: zone ids (use1-az4), for names differ
    between accounts."""
    target: Literal["lab", "real"] = "lab"
    """lab: emulated on this machine. real: the cloud itself, reached as `real` says."""
    real: RealTarget | None = None
    capabilities: CapabilityOverrides | None = None
    kubernetes: Kubernetes | None = None
    """Where its engines run as pods. Left out: agents run on machines of their own."""

    @model_validator(mode="after")
    def _is_consistent(self) -> CloudSpec:
        if self.target == "real" and self.real is None:
            raise Refused("target real needs the field real", "add `real: {bucket: …, credentialsFile: …}`")
        if self.target == "lab" and self.real is not None:
            raise Refused("real is set although target is lab", "set `target: real`, or remove the field real")
        if self.kubernetes is not None:
            if self.target == "lab":
                raise Refused("kubernetes is set although target is lab", "set `target: real`, or remove kubernetes")
            for zone in self.kubernetes.storage_classes or {}:
                if zone not in self.zones:
                    raise Refused(f"kubernetes.storageClasses names {zone}, which is none of the cloud's zones")
        return self


class Cloud(Model):
    """A cell: one provider's region with its zones, where brokers may run."""

    api_version: Literal["yunhe.io/v1alpha1"]
    kind: Literal["Cloud"]
    metadata: Metadata
    spec: CloudSpec


class WalPolicy(Model):
    """Where an append is durable before it is acked."""

    mode: Literal["auto", "regional-block", "block+express", "object", "zonal-block"] = "auto"
    """auto: the first row of the decision table whose needs the cloud meets; `yunhe explain wal CLOUD` says which and
    why."""
    bytes_max: Annotated[Bytes, Field(ge=_WAL_BYTES_MIN, le=1 << 46)] | None = None
    """Un-uploaded bytes a broker at which appends are pushed back. Left out: 256 MiB, or what `surviveObjectOutage`
    needs."""
    accept_zone_loss_rpo: StrictBool = False
    """true allows zonal-block, which loses the un-uploaded tail when its zone dies. Never chosen without it."""


class Objectives(Model):
    """What must hold. An objective that the chosen WAL cannot meet is refused with the reason; nothing else is chosen
    silently."""

    produce_p99_ms: Annotated[StrictInt, Field(ge=1, le=60_000)] | None = None
    """Produce latency at P99, milliseconds."""
    rpo_zone_loss: Duration | None = None
    """Longest stretch of acked records that a zone's loss may take: 0 for none."""
    survive_object_outage: Duration | None = None
    """How long appends go on being acked while the object store is down. Sizes the WAL."""
    ingest_mib_s: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = Field(default=None, alias="ingestMiBs")
    """Expected writes, MiB/s over all brokers after compression: prices and the WAL's size follow from it. Left out:
    100."""


def _folder(value: Any) -> Any:
    if isinstance(value, str) and not (value.startswith("/") and value.strip("/") and "\0" not in value):
        raise Refused(f"{value!r} is no absolute path of a folder", "for example /var/cache/yunhe")
    return value


class DiskCache(Model):
    """A second tier of a broker's block cache, on its host's disk."""

    path: Annotated[StrictStr, BeforeValidator(_folder), Field(max_length=512)]
    """A folder on each host, absolute; each broker makes its own below it. What is there may be lost without harm."""
    size: Annotated[Bytes, Field(ge=64 << 20, le=1 << 40)]
    """Bytes of one broker's files, at most."""


class Metrics(Model):
    """Where each broker serves `GET /metrics` to Prometheus. Nobody has to log in there, and topics are named."""

    enabled: StrictBool = _CONTRACT.metrics.enabled
    host: Annotated[StrictStr, Field(min_length=1, max_length=253)] = _CONTRACT.metrics.host
    """Address to listen on: by default for this host alone; 0.0.0.0 for all who reach it."""
    port: Annotated[StrictInt, Field(ge=0, le=64_000)] = _CONTRACT.metrics.port
    """Broker b-1 listens on the port after this one, b-2 on the next, and so on; 0: each on a free one, another at each
    start, which `yunhe status -o json` shows."""


class Settings(Model):
    """Settings of the data plane that a cluster's brokers share."""

    upload_interval_ms: Annotated[StrictInt, Field(ge=100, le=3_600_000)] = _CONTRACT.upload_interval_ms
    """Longest time that an acked record stays only in the WAL while the bucket answers."""
    upload_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 30)] = _CONTRACT.upload_bytes
    """Un-uploaded bytes that start an upload before the interval is over."""
    cache_bytes_max: Annotated[Bytes, Field(ge=8 << 20, le=1 << 40)] = _CONTRACT.cache_bytes_max
    """Log cache and block cache together, a broker."""
    heartbeat_interval_ms: Annotated[StrictInt, Field(ge=50, le=60_000)] = _CONTRACT.heartbeat_interval_ms
    """Between brokers, directly."""
    session_timeout_ms: Annotated[StrictInt, Field(ge=300, le=600_000)] = _CONTRACT.session_timeout_ms
    """Silence after which a broker counts as lost."""
    balance_interval_ms: Annotated[StrictInt, Field(ge=0, le=3_600_000)] = _CONTRACT.balance_interval_ms
    """How often the cell looks whether partitions should be led elsewhere, by itself; 0 turns that off."""
    retention_interval_ms: Annotated[StrictInt, Field(ge=100, le=3_600_000)] = _CONTRACT.retention_interval_ms
    """How often a broker looks whether records are beyond their topic's retention."""
    compaction_interval_ms: Annotated[StrictInt, Field(ge=100, le=86_400_000)] = _CONTRACT.compaction_interval_ms
    """How often a broker looks what should be compacted: small objects into large ones, and topics by their keys."""
    compaction_bytes_per_s: Annotated[Bytes, Field(ge=1 << 20, le=1 << 40)] = _CONTRACT.compaction_bytes_per_s
    """What a broker's compaction reads a second, at most."""
    orphan_interval_ms: Annotated[StrictInt, Field(ge=1_000, le=604_800_000)] = _CONTRACT.orphan_interval_ms
    """How often a cell looks through its bucket for objects that were never committed."""
    disk_cache: DiskCache | None = None
    """Where brokers keep what catch-up reads got from the bucket, so that the next ones do not ask it. Left out:
    nowhere."""
    zone_reads: StrictBool = _CONTRACT.zone_reads
    """Whether consumers that say where they are (`client.rack`) read what is old from a broker in their own zone."""
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _timeout_spans_heartbeats(self) -> Settings:
        if self.session_timeout_ms < 3 * self.heartbeat_interval_ms:
            raise Refused(
                f"sessionTimeoutMs {self.session_timeout_ms} is less than three heartbeats of "
                f"{self.heartbeat_interval_ms} ms",
                "one late heartbeat would count as a death",
            )
        return self


class BrokerClusterSpec(Model):
    """A Kafka-compatible cluster inside one cell."""

    cloud: Name
    """Name of the Cloud it runs in."""
    brokers: Annotated[StrictInt, Field(ge=1, le=BROKERS_MAX)] | None = None
    """How many, spread over the cloud's zones in order: broker b-i runs in zone (i - 1) mod (number of zones)."""
    brokers_per_zone: dict[Zone, Annotated[StrictInt, Field(ge=0, le=BROKERS_MAX)]] | None = None
    """Instead of brokers: how many in which zone."""
    autoscale: Autoscale | None = None
    """Left out: as many brokers as said, and never another."""
    engine: Annotated[Literal["embedded", "automq"], BeforeValidator(_engine)] = "embedded"
    """automq: AutoMQ as pods, in a Cloud that has `kubernetes`."""
    automq: AutoMq | None = None
    """Engine automq: its edition and how it is deployed. Left out: the open edition, as StatefulSets."""
    wal: WalPolicy = WalPolicy()
    objectives: Objectives = Objectives()
    listeners: Listeners = Listeners()
    authorization: Authorization | None = None
    """Whether ACLs decide what clients may do. Left out: everybody may do everything."""
    settings: Settings = Settings()

    @model_validator(mode="after")
    def _is_consistent(self) -> BrokerClusterSpec:
        if (self.brokers is None) == (self.brokers_per_zone is None):
            raise Refused("either brokers or brokersPerZone is needed, and not both", "for example `brokers: 2`")
        if self.brokers_per_zone is not None and not 1 <= sum(self.brokers_per_zone.values()) <= BROKERS_MAX:
            raise Refused(f"brokersPerZone must add up to 1 to {BROKERS_MAX} brokers")
        if self.autoscale is not None:
            self._can_autoscale(self.autoscale)
        if self.wal.mode == "zonal-block" and not self.wal.accept_zone_loss_rpo:
            raise Refused(
                "wal.mode zonal-block loses acked records when its zone dies, and that has not been accepted",
                "add `acceptZoneLossRpo: true` to wal, or choose another mode",
            )
        if self.automq is not None and self.engine != "automq":
            raise Refused(f"automq is set although engine is {self.engine}", "set `engine: automq`, or remove automq")
        check_authorization(self.listeners, self.authorization)
        objectives = self.objectives
        if (
            self.wal.mode == "zonal-block"
            and objectives.rpo_zone_loss is not None
            and duration_ms(objectives.rpo_zone_loss) == 0
        ):
            raise Refused("objectives.rpoZoneLoss 0 contradicts wal.mode zonal-block", "drop one of the two")
        return self

    def _can_autoscale(self, autoscale: Autoscale) -> None:
        if self.engine != "embedded":
            raise Refused(f"autoscale is set although engine is {self.engine}", "remove autoscale")
        if self.brokers is None:
            raise Refused("autoscale is set without brokers", "write brokers, the least, instead of brokersPerZone")
        if autoscale.brokers_max <= self.brokers:
            raise Refused(
                f"autoscale.brokersMax {autoscale.brokers_max} is no more than brokers, {self.brokers}",
                "write more, or remove autoscale",
            )
        if not self.settings.balance_interval_ms:
            raise Refused(
                "autoscale is set although settings.balanceIntervalMs 0 turns balancing off",
                "a new broker would get no partition: remove one of the two",
            )


class BrokerCluster(Model):
    """Brokers with their WAL in one Cloud."""

    api_version: Literal["yunhe.io/v1alpha1"]
    kind: Literal["BrokerCluster"]
    metadata: Metadata
    spec: BrokerClusterSpec


class TopicConfigs(Model):
    """The Kafka topic configs that the brokers honour. Any other is refused by name, since a config that does nothing
    misleads."""

    model_config = ConfigDict(alias_generator=lambda field: field.replace("_", "."))

    retention_ms: Annotated[StrictInt, Field(ge=-1)] | None = None
    """Age after which records go, milliseconds; -1, or left out: never."""
    retention_bytes: Annotated[StrictInt, Field(ge=-1)] | None = None
    """Bytes a partition beyond which the oldest records go; -1, or left out: no bound."""


class TopicSpec(Model):
    """A topic, the same on each of its clusters."""

    clusters: Annotated[Names, Field(min_length=1, max_length=64), AfterValidator(each_once)]
    """Names of the BrokerClusters that have it; each cluster has partitions of its own."""
    partitions: Annotated[StrictInt, Field(ge=1, le=PARTITIONS_MAX)]
    """Partitions on each cluster. May grow, never shrink."""
    configs: TopicConfigs = TopicConfigs()


class Topic(Model):
    """A Kafka topic named as the object is."""

    api_version: Literal["yunhe.io/v1alpha1"]
    kind: Literal["Topic"]
    metadata: Metadata
    spec: TopicSpec


type_of_kind: dict[str, type[Cloud] | type[BrokerCluster] | type[Topic] | type[Database]] = {
    "Cloud": Cloud,
    "BrokerCluster": BrokerCluster,
    "Topic": Topic,
    "Database": Database,
}
Resource = Cloud | BrokerCluster | Topic | Database

KINDS = tuple(type_of_kind)
KINDS_TO_COME = ("Link", "AccessPoint", "TrafficPolicy", "Drill")
