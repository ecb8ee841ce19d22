"""`engine: automq`, `deploy: strimzi`: the same cluster as Strimzi's Kafka and KafkaNodePool, a pool of brokers a zone.

Strimzi rolls its pods itself, and takes care of listeners, node ids and racks: keys of those are not written.
"""

from __future__ import annotations

from controlplane.api.kinds import BrokerCluster, Cloud
from controlplane.api.kubernetes import Kubernetes
from controlplane.plan.kubernetes import (
    OF,
    PART,
    ZONE,
    ZONE_KEY,
    Manifest,
    Rendered,
    apart_from,
    in_order,
    in_zone,
    kubernetes_of,
    label,
    manifest,
    resources,
    slug,
    spread,
    storage_class,
)
from controlplane.plan.kubernetes_automq import (
    BROKERS_A_ZONE,
    GRACE_S,
    KAFKA_PORT,
    credentials,
    engine_properties,
    first_id,
    image_of,
    pools,
    require_plain,
)
from controlplane.plan.kubernetes_wal import automq_of
from controlplane.plan.resolve import ResolvedCluster
from dataplane.contract.assignment import WalMode
from providers.base.errors import Invalid

API = "kafka.strimzi.io/v1beta2"
KAFKA_VERSION = "3.9.1"
"""AutoMQ is Kafka 3.9: Strimzi 0.47 and its like; Strimzi 1.0 wants Kafka 4.1."""
NOTE = "the Strimzi operator (0.47) must be there, with automqinc/automq as its image of Kafka 3.9.1"


def render_strimzi(cloud: Cloud, cluster: BrokerCluster, resolved: ResolvedCluster) -> Rendered:
    """The cluster as Strimzi's objects.

    Raises:
        Invalid: the cloud has no Kubernetes, or neither the edition nor Strimzi has what is asked for.
    """
    name, automq = cluster.metadata.name, automq_of(cluster)
    kubernetes = kubernetes_of(cloud.metadata.name, cloud.spec, f"BrokerCluster {name} (engine automq)")
    require_plain(cluster)
    if resolved.choice.mode is not WalMode.OBJECT:
        raise Invalid(
            f"BrokerCluster {name}: Strimzi gives its pods no raw device, which wal {resolved.choice.mode} is on",
            hint="use `deploy: statefulsets`, or `wal: {mode: object}`",
        )
    where = (kubernetes.namespace, f"BrokerCluster.{name}")
    spec: Manifest = {
        "kafka": {
            "version": KAFKA_VERSION,
            "image": image_of(automq),
            "listeners": [{"name": "plain", "port": KAFKA_PORT, "type": "internal", "tls": False}],
            "rack": {"topologyKey": ZONE_KEY},
            "config": {
                **engine_properties(cloud, cluster, resolved, kubernetes),
                "autobalancer.client.listener.name": "PLAIN-9092",
            },
        }
    }
    annotations = {
        "strimzi.io/kraft": "enabled",
        "strimzi.io/node-pools": "enabled",
        "strimzi.io/skip-broker-scaledown-check": "true",
    }
    found = [
        manifest(API, "Kafka", name, where, spec, annotations=annotations),
        _pool("controller", name, where, cloud, kubernetes, automq.controllers, (0, 4)),
    ]
    for zone, count in pools(cloud, resolved).items():
        ids = first_id(cloud, zone)
        found.append(
            _pool(slug(zone), name, where, cloud, kubernetes, count, (ids, ids + BROKERS_A_ZONE - 1), zone, "broker")
        )
    notes = (NOTE, *resolved.choice.edition_notes)
    return Rendered("BrokerCluster", name, cloud.metadata.name, where[0], in_order(found), notes)


def _pool(
    pool: str,
    cluster: str,
    where: tuple[str, str],
    cloud: Cloud,
    kubernetes: Kubernetes,
    replicas: int,
    ids: tuple[int, int],
    zone: str | None = None,
    role: str = "controller",
) -> Manifest:
    labels = {"strimzi.io/cluster": cluster, PART: role, **({ZONE: label(zone)} if zone is not None else {})}
    mine = {OF: where[1], PART: role}
    pod: Manifest = {
        "metadata": {"labels": {**mine, **({ZONE: label(zone)} if zone is not None else {})}},
        "terminationGracePeriodSeconds": GRACE_S,
        "affinity": in_zone(cloud.spec, zone, mine) if zone is not None else apart_from(mine),
        "topologySpreadConstraints": spread(mine, strictly=zone is None),
    }
    if kubernetes.priority_class is not None:
        pod["priorityClassName"] = kubernetes.priority_class
    volume: Manifest = {
        "type": "persistent-claim",
        "size": kubernetes.volume_size,
        "deleteClaim": kubernetes.delete_volumes,
    }
    if (named := storage_class(kubernetes, zone)) is not None:
        volume["class"] = named
    template: Manifest = {"pod": pod}
    if environment := credentials(cloud, kubernetes):
        template["kafkaContainer"] = {"env": environment}
    spec = {
        "replicas": replicas,
        "roles": [role],
        "storage": volume,
        "resources": resources(kubernetes),
        "template": template,
    }
    annotations = {"strimzi.io/next-node-ids": f"[{ids[0]}-{ids[1]}]"}
    return manifest(API, "KafkaNodePool", pool_name(cluster, pool), where, spec, labels=labels, annotations=annotations)


def pool_name(cluster: str, pool: str) -> str:
    """A pool's name, unique in the namespace."""
    return f"{cluster}-{pool}"
