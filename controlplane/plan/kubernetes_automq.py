"""`engine: automq` on Kubernetes: AutoMQ's own configuration, and its pods as StatefulSets, a pool of brokers a zone.

Node ids: controllers 0 to 4; broker n of the cloud's zone z is 1000 + 100 z + n, so that brokers and zones that come
later change nobody's id.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping

from controlplane.api.kinds import BrokerCluster, Cloud
from controlplane.api.kubernetes import AutoMq, Kubernetes
from controlplane.plan.kubernetes import (
    CONTAINER_SECURITY,
    PART,
    ZONE,
    Manifest,
    Rendered,
    apart_from,
    claim,
    disruption_budget,
    from_secret,
    headless,
    in_order,
    in_zone,
    kubernetes_of,
    label,
    manifest,
    pod_common,
    resources,
    slug,
    spread,
    stateful_set,
)
from controlplane.plan.kubernetes_wal import automq_of
from controlplane.plan.resolve import ResolvedCluster
from dataplane.contract.assignment import WalMode
from providers.base.errors import Invalid

IMAGES = {"statefulsets": "automqinc/automq:1.5.0-bitnami", "strimzi": "automqinc/automq:1.6.5-strimzi"}
KAFKA_PORT, CONTROLLER_PORT = 9092, 9093
FIRST_BROKER, BROKERS_A_ZONE = 1000, 100
WAL_DEVICE = "/dev/wal"
_UPLOAD_MAX = 500 << 20
_BALANCER = "kafka.autobalancer.metricsreporter.AutoBalancerMetricsReporter"
_SECRET_KEYS = {"aliyun": "access-key-secret", "azure": "account-key"}
_ACCESS_KEYS = {"azure": "account-name"}
GRACE_S = 120
"""AutoMQ uploads what is only in its WAL before it ends: up to 500 MiB."""

_START = """\
set -eu
id=$((NODE_ID_BASE + ${HOSTNAME##*-}))
{ cat /etc/automq/server.properties
  echo "node.id=$id"
  echo "advertised.listeners=$(printf '%s' "$ADVERTISED" | sed "s/HOST/$HOSTNAME.$SERVICE/g")"
} > /tmp/server.properties
kafka=/opt/bitnami/kafka
"$kafka/bin/kafka-storage.sh" format --ignore-formatted -t "$CLUSTER_ID" -c /tmp/server.properties
exec "$kafka/bin/kafka-server-start.sh" /tmp/server.properties
"""


def image_of(automq: AutoMq) -> str:
    """The image.

    Raises:
        Invalid: the enterprise edition's is its owner's to name.
    """
    if automq.image is not None:
        return automq.image
    if automq.edition == "enterprise":
        raise Invalid("the enterprise edition of AutoMQ has no public image", hint="name yours: `automq: {image: …}`")
    return IMAGES[automq.deploy]


def bucket_uri(cloud: Cloud, automq: AutoMq, kubernetes: Kubernetes, id_: int) -> str:
    """The cell's bucket as AutoMQ writes it, without credentials.

    Raises:
        Invalid: the edition cannot reach that cloud's object store, or not without keys.
    """
    spec, real = cloud.spec, cloud.spec.real
    assert real is not None, "target real, by the spec's validator"
    secret = kubernetes.credentials_secret
    keys: dict[str, str] = {"region": spec.region}
    scheme, endpoint = "s3", real.endpoint
    match spec.provider:
        case "aliyun":
            keys["region"] = f"oss-{spec.region}"
            endpoint = endpoint or f"https://oss-{spec.region}.aliyuncs.com"
        case "gcp":
            endpoint = endpoint or "https://storage.googleapis.com"
            if secret is None:
                raise Invalid(
                    "AutoMQ reaches Google's storage through its S3 form, which knows no identity but HMAC keys",
                    hint="name a Secret with access-key-id and secret-access-key: kubernetes.credentialsSecret",
                )
        case "azure":
            if automq.edition == "open":
                raise Invalid(
                    "the open edition of AutoMQ cannot keep its data in Azure Blob Storage",
                    hint="use `edition: enterprise`, or the engine embedded",
                )
            if endpoint is None:
                raise Invalid("AutoMQ needs the storage account's address", hint="real.endpoint: https://ACCOUNT.blob…")
            scheme = "azblob"
        case "private":
            if endpoint is None:
                raise Invalid("a private cloud's object store has no address of its own", hint="set real.endpoint")
            keys["pathStyle"] = "true"
    if endpoint is not None:
        keys["endpoint"] = endpoint
    keys["authType"] = "static" if secret is not None else "instance"
    return f"{id_}@{scheme}://{real.bucket}?" + "&".join(f"{key}={value}" for key, value in keys.items())


def wal_uri(cloud: Cloud, automq: AutoMq, kubernetes: Kubernetes, resolved: ResolvedCluster) -> str:
    """Where the brokers' WAL is, by the chosen mode."""
    if resolved.choice.mode is WalMode.OBJECT:
        return bucket_uri(cloud, automq, kubernetes, 0)
    return f"0@block://{WAL_DEVICE}?capacity={resolved.choice.bytes_max}"


def cluster_id(cloud: str, cluster: str) -> str:
    """Kafka's form of a UUID, 22 characters, the same at each rendering."""
    raw = hashlib.sha256(f"{cloud}/{cluster}".encode()).digest()[:16]
    # Kafka's tools take an id that begins with '-' for an option.
    return base64.urlsafe_b64encode(bytes([raw[0] & 0x7F]) + raw[1:]).decode().rstrip("=")


def engine_properties(
    cloud: Cloud, cluster: BrokerCluster, resolved: ResolvedCluster, kubernetes: Kubernetes
) -> dict[str, str]:
    """AutoMQ's documented keys, which are the same however it is deployed. The upload threshold is a third of the log
    cache, as AutoMQ itself has it."""
    automq = automq_of(cluster)
    return {
        "elasticstream.enable": "true",
        "s3.data.buckets": bucket_uri(cloud, automq, kubernetes, 0),
        "s3.ops.buckets": bucket_uri(cloud, automq, kubernetes, 1),
        "s3.wal.path": wal_uri(cloud, automq, kubernetes, resolved),
        "s3.wal.cache.size": str(automq.wal_cache),
        "s3.block.cache.size": str(automq.wal_cache // 2),
        "s3.wal.upload.threshold": str(min(automq.wal_cache // 3, _UPLOAD_MAX)),
        "metric.reporters": _BALANCER,
        "broker.session.timeout.ms": str(max(cluster.spec.settings.session_timeout_ms, 3000)),
    }


def pools(cloud: Cloud, resolved: ResolvedCluster) -> dict[str, int]:
    """How many brokers in which zone, in the cloud's order."""
    count = Counter(broker.zone for broker in resolved.brokers)
    return {zone: count[zone] for zone in cloud.spec.zones if count[zone]}


def first_id(cloud: Cloud, zone: str) -> int:
    """The lowest node id of a zone's brokers."""
    return FIRST_BROKER + BROKERS_A_ZONE * cloud.spec.zones.index(zone)


def credentials(cloud: Cloud, kubernetes: Kubernetes) -> list[Manifest]:
    """The bucket's keys in the environment, by reference."""
    secret, provider = kubernetes.credentials_secret, cloud.spec.provider
    if secret is None:
        return []
    return [
        from_secret("KAFKA_S3_ACCESS_KEY", secret, _ACCESS_KEYS.get(provider, "access-key-id")),
        from_secret("KAFKA_S3_SECRET_KEY", secret, _SECRET_KEYS.get(provider, "secret-access-key")),
    ]


def require_plain(cluster: BrokerCluster) -> None:
    """Refuse what is said of the embedded engine's listeners and is not carried over.

    Raises:
        Invalid: the spec asks for TLS, SASL or ACLs.
    """
    if cluster.spec.listeners.protocol != "PLAINTEXT" or cluster.spec.authorization is not None:
        raise Invalid(
            f"BrokerCluster {cluster.metadata.name}: listeners and authorization of engine automq are not rendered yet",
            hint="leave both out, and keep its port inside the cluster by a NetworkPolicy",
        )


def render_automq(cloud: Cloud, cluster: BrokerCluster, resolved: ResolvedCluster) -> Rendered:
    """The cluster as StatefulSets: one of controllers, and one of brokers a zone.

    Raises:
        Invalid: the cloud has no Kubernetes, or the edition lacks what is asked for.
    """
    name, automq = cluster.metadata.name, automq_of(cluster)
    kubernetes = kubernetes_of(cloud.metadata.name, cloud.spec, f"BrokerCluster {name} (engine automq)")
    require_plain(cluster)
    where = (kubernetes.namespace, f"BrokerCluster.{name}")
    shared = engine_properties(cloud, cluster, resolved, kubernetes)
    id_ = cluster_id(cloud.metadata.name, name)
    quorum = f"{name}-controller"
    voters = ",".join(
        f"{n}@{quorum}-{n}.{quorum}.{kubernetes.namespace}.svc:{CONTROLLER_PORT}" for n in range(automq.controllers)
    )
    common = {
        **shared,
        "cluster.id": id_,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": "/var/lib/automq/logs",
    }
    controller = {**common, "process.roles": "controller", "listeners": f"CONTROLLER://:{CONTROLLER_PORT}"}
    found = [
        *_set(quorum, where, kubernetes, automq, {PART: "controller"}, controller, cloud, id_, automq.controllers),
        disruption_budget(quorum, where, {PART: "controller"}),
        disruption_budget(f"{name}-broker", where, {PART: "broker"}),
    ]
    for zone, count in pools(cloud, resolved).items():
        broker = {
            **common,
            "process.roles": "broker",
            "broker.rack": zone,
            "listeners": f"PLAINTEXT://:{KAFKA_PORT}",
        }
        labels = {PART: "broker", ZONE: label(zone)}
        pool = f"{name}-{slug(zone)}"
        block = resolved.choice.mode is not WalMode.OBJECT
        wal_bytes = resolved.choice.bytes_max if block else 0
        found += _set(pool, where, kubernetes, automq, labels, broker, cloud, id_, count, zone, wal_bytes)
    bootstrap = {
        "selector": {"yunhe.io/of": where[1], PART: "broker"},
        "ports": [{"name": "kafka", "port": KAFKA_PORT, "targetPort": KAFKA_PORT}],
    }
    found.append(manifest("v1", "Service", name, where, bootstrap))
    return Rendered(
        "BrokerCluster", name, cloud.metadata.name, where[0], in_order(found), resolved.choice.edition_notes
    )


def _set(
    name: str,
    where: tuple[str, str],
    kubernetes: Kubernetes,
    automq: AutoMq,
    labels: Mapping[str, str],
    properties: Mapping[str, str],
    cloud: Cloud,
    id_: str,
    replicas: int,
    zone: str | None = None,
    wal_bytes: int = 0,
) -> list[Manifest]:
    """A StatefulSet with its configuration and its service. `zone` None: spread over all."""
    port = KAFKA_PORT if zone is not None else CONTROLLER_PORT
    protocol = "PLAINTEXT" if zone is not None else "CONTROLLER"
    text = "".join(f"{key}={value}\n" for key, value in sorted(properties.items()))
    config = manifest(
        "v1", "ConfigMap", name, where, {}, labels=labels, data={"server.properties": text, "start.sh": _START}
    )
    environment = [
        {"name": "NODE_ID_BASE", "value": str(first_id(cloud, zone) if zone is not None else 0)},
        {"name": "CLUSTER_ID", "value": id_},
        {"name": "SERVICE", "value": f"{name}.{kubernetes.namespace}.svc"},
        {"name": "ADVERTISED", "value": f"{protocol}://HOST:{port}"},
        *credentials(cloud, kubernetes),
    ]
    container: Manifest = {
        "name": "automq",
        "image": image_of(automq),
        "command": ["/bin/bash", "/etc/automq/start.sh"],
        "env": environment,
        "ports": [{"name": "kafka" if zone is not None else "controller", "containerPort": port}],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": 3},
        "startupProbe": {"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": 60},
        "resources": resources(kubernetes),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "data", "mountPath": "/var/lib/automq"},
            {"name": "config", "mountPath": "/etc/automq", "readOnly": True},
        ],
    }
    claims = [claim("data", kubernetes, zone, kubernetes.volume_size)]
    if wal_bytes:
        container["volumeDevices"] = [{"name": "wal", "devicePath": WAL_DEVICE}]
        # The ring and its two headers of 4 KiB, in whole GiB.
        gib = -(-(wal_bytes + (8 << 10)) // (1 << 30))
        claims.append(claim("wal", kubernetes, zone, f"{max(gib, 10)}Gi", block=True))
    of_part = {"yunhe.io/of": where[1], PART: labels[PART]}
    pod = {
        **pod_common(kubernetes),
        "terminationGracePeriodSeconds": GRACE_S,
        "affinity": in_zone(cloud.spec, zone, of_part) if zone is not None else apart_from(of_part),
        "topologySpreadConstraints": spread(of_part, strictly=zone is None),
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    ports = {"kafka" if zone is not None else "controller": port}
    made = stateful_set(
        name,
        where,
        kubernetes=kubernetes,
        labels=labels,
        service=name,
        replicas=replicas,
        pod=pod,
        claims=claims,
        settings={"properties": properties, "start": _START},
    )
    return [config, headless(name, where, labels, ports), made]
