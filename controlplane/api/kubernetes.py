"""What a spec says of Kubernetes: the cluster that a Cloud's engines run on, and how AutoMQ and GreptimeDB are made
there. References only: a Secret is named, never written.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr, model_validator

from controlplane.api.model import Model, each_once
from controlplane.api.quantities import Bytes, Name, Refused, Zone

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")
_IMAGE = re.compile(r"[a-z0-9][-a-z0-9._:/]*(@sha256:[0-9a-f]{64})?", re.IGNORECASE)
_ENDPOINT = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]*:[0-9]{1,5}")
_CLASS = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def _quantity(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and _QUANTITY.fullmatch(value) is None:
        raise Refused(f"{value!r} is not a quantity of Kubernetes", "for example 500m, 2 or 4Gi")
    return value


def _image(value: Any) -> Any:
    if isinstance(value, str) and _IMAGE.fullmatch(value) is None:
        raise Refused(f"{value!r} is not the name of an image", "for example registry.example.com/yunhe:0.1.0")
    return value


def _endpoint(value: Any) -> Any:
    if isinstance(value, str) and (_ENDPOINT.fullmatch(value) is None or int(value.rpartition(":")[2]) > 65_535):
        raise Refused(f"{value!r} is not host:port", "for example etcd.databases.svc:2379")
    return value


def _class(value: Any) -> Any:
    if isinstance(value, str) and _CLASS.fullmatch(value) is None:
        raise Refused(f"{value!r} is not the name of a StorageClass", "a name as `kubectl get storageclass` shows it")
    return value


Quantity = Annotated[StrictStr, BeforeValidator(_quantity), Field(max_length=20)]
"""An amount as Kubernetes writes it: 500m, 2, 4Gi."""
Image = Annotated[StrictStr, BeforeValidator(_image), Field(min_length=1, max_length=255)]
Endpoint = Annotated[StrictStr, BeforeValidator(_endpoint), Field(max_length=255)]
StorageClass = Annotated[StrictStr, BeforeValidator(_class), Field(max_length=253)]


class Resources(Model):
    """What one pod of brokers or of a database asks for. The memory is its limit too; processor time has none, for a
    limit there only makes latency worse."""

    cpu: Quantity = "1"
    memory: Quantity = "4Gi"


class Kubernetes(Model):
    """The Kubernetes cluster beside a real cloud, where pods run in the Cloud's zones."""

    namespace: Name = "yunhe"
    """Existing namespace that everything is made in."""
    context: StrictStr | None = None
    """Of the kubeconfig, where the operator does not run in that cluster itself. Left out: the operator's own."""
    storage_class: StorageClass | None = None
    """Of all volumes. Left out: the cluster's default. It should bind late (WaitForFirstConsumer)."""
    storage_classes: dict[Zone, StorageClass] | None = None
    """By zone, where zones have classes of their own; `storageClass` serves the zones that are not named."""
    credentials_secret: Name | None = None
    """Secret with the bucket's credentials, in the namespace. Left out: the pods' own identity. Its keys are those that
    GreptimeDB documents (S3: access-key-id, secret-access-key; OSS: access-key-id, access-key-secret; GCS:
    service-account-key; Azure: account-name, account-key), and for the engine embedded `credentials.json`."""
    service_account: Name | None = None
    """ServiceAccount of the pods, for a cloud identity. Left out: the namespace's default."""
    priority_class: StorageClass | None = None
    """PriorityClass of brokers and databases, above batch work that shares their nodes."""
    image: Image | None = None
    """Image of Yunhe's agents, for the engine embedded."""
    volume_size: Quantity = "20Gi"
    """Of one pod's volume: an agent's journal and databases, AutoMQ's metadata, a GreptimeDB node's disk."""
    delete_volumes: StrictBool = False
    """Whether a volume goes with the pod that is not wanted any more. false: PersistentVolumeClaims stay for ever."""
    resources: Resources = Resources()


class AutoMq(Model):
    """How a BrokerCluster with engine automq is made."""

    edition: Literal["open", "enterprise"] = "open"
    """Which of its makers' editions is installed. The open one has no WAL but the object WAL."""
    deploy: Literal["statefulsets", "strimzi"] = "statefulsets"
    """strimzi: as Kafka and KafkaNodePool of the Strimzi operator, which must be there already."""
    image: Image | None = None
    """Left out: AutoMQ's image for that way to deploy, where the edition has a public one."""
    controllers: Literal[1, 3, 5] = 3
    """Nodes of the metadata quorum."""
    wal_cache: Annotated[Bytes, Field(ge=64 << 20, le=1 << 40)] = 512 << 20
    """Memory of the log cache, a broker; the block cache has half of it."""


class GreptimeDb(Model):
    """How a Database with engine greptimedb is made on Kubernetes."""

    version: Annotated[StrictStr, Field(pattern=r"^v?[0-9]+\.[0-9]+\.[0-9]+[-.a-z0-9]*$")] | None = None
    """Tag of GreptimeDB's image. Left out: `image`, or the operator's own choice."""
    image: Image | None = None
    """Left out: greptime/greptimedb with `version`."""
    etcd: Annotated[tuple[Endpoint, ...], Field(max_length=16), AfterValidator(each_once)] = ()
    """host:port of the etcd that has the metadata of a database with several nodes."""
    kafka: Annotated[tuple[Endpoint, ...], Field(max_length=64), AfterValidator(each_once)] = ()
    """host:port of brokers that hold the write-ahead log. Left out: each node's own volume, and no node takes over
    what another had."""

    @model_validator(mode="after")
    def _one_image(self) -> GreptimeDb:
        if self.version is not None and self.image is not None:
            raise Refused("version and image are both set", "write the version as the image's tag, and drop version")
        return self
