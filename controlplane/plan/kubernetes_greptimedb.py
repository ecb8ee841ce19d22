"""`engine: greptimedb` on Kubernetes: a GreptimeDBStandalone, or for several nodes a GreptimeDBCluster, of GreptimeDB's
operator. Only keys that its API (greptime.io/v1alpha1) documents.
"""

from __future__ import annotations

from controlplane.api.databases import Database
from controlplane.api.kinds import Cloud
from controlplane.api.kubernetes import GreptimeDb, Kubernetes
from controlplane.plan.greptimedb import IMPORT_NOTE
from controlplane.plan.kubernetes import (
    Manifest,
    Rendered,
    apart_from,
    kubernetes_of,
    manifest,
    resources,
    storage_class,
    zone_requirement,
)
from providers.base.errors import Invalid

API = "greptime.io/v1alpha1"
NO_FAILOVER_NOTE = (
    "the write-ahead log is on each node's own volume: what a lost node had is served again when its volume is; "
    "name Kafka brokers (greptimedb.kafka) for other nodes to take it over"
)


def render_greptimedb(cloud: Cloud, database: Database) -> Rendered:
    """The database as a resource of GreptimeDB's operator.

    Raises:
        Invalid: the cloud has no Kubernetes, several nodes have no etcd, or the store cannot be named.
    """
    name, spec = database.metadata.name, database.spec
    kubernetes = kubernetes_of(cloud.metadata.name, cloud.spec, f"Database {name} (engine greptimedb)")
    greptime, nodes = spec.greptimedb or GreptimeDb(), spec.nodes or 1
    where = (kubernetes.namespace, f"Database.{name}")
    image = greptime.image or (f"greptime/greptimedb:{greptime.version}" if greptime.version else None)
    if image is None:
        raise Invalid(
            f"Database {name}: which GreptimeDB is to run is not said",
            hint="for example `greptimedb: {version: v1.0.0}`",
        )
    main: Manifest = {"image": image, "resources": resources(kubernetes)}
    base: Manifest = {"main": main, "affinity": _in_zones(cloud)}
    if kubernetes.service_account is not None:
        base["serviceAccountName"] = kubernetes.service_account
    if kubernetes.priority_class is not None:
        base["priorityClassName"] = kubernetes.priority_class
    shared: Manifest = {
        "objectStorage": _object_storage(cloud, name, kubernetes),
        "wal": _wal(name, greptime, kubernetes),
    }
    if greptime.version is not None:
        shared["version"] = greptime.version
    notes = [IMPORT_NOTE] if spec.tables else []
    if nodes == 1:
        standalone = {"base": base, **shared, "datanodeStorage": _disk(name, kubernetes)}
        found = manifest(API, "GreptimeDBStandalone", name, where, standalone)
        return Rendered("Database", name, cloud.metadata.name, where[0], (found,), tuple(notes))
    if not greptime.etcd:
        raise Invalid(
            f"Database {name} has {nodes} nodes, whose metadata is in etcd",
            hint="name it: `greptimedb: {etcd: [etcd.databases.svc:2379]}`",
        )
    apart = apart_from({"app.greptime.io/component": f"{name}-datanode"})
    cluster: Manifest = {
        "base": base,
        **shared,
        "frontend": {"replicas": min(nodes, 2)},
        "meta": {
            "replicas": min(nodes, 2),
            "backendStorage": {"etcd": {"endpoints": list(greptime.etcd), "storeKeyPrefix": name}},
            # Another node can take a region over only where the log is not on the lost node's volume.
            "enableRegionFailover": bool(greptime.kafka),
        },
        "datanode": {
            "replicas": nodes,
            "storage": _disk(name, kubernetes),
            "template": {"affinity": {**_in_zones(cloud), **apart}},
        },
    }
    if not greptime.kafka:
        notes.append(NO_FAILOVER_NOTE)
    found = manifest(API, "GreptimeDBCluster", name, where, cluster)
    return Rendered("Database", name, cloud.metadata.name, where[0], (found,), tuple(notes))


def _in_zones(cloud: Cloud) -> Manifest:
    requirements = [zone_requirement(cloud.spec, zone) for zone in cloud.spec.zones]
    one = {**requirements[0], "values": [value for found in requirements for value in found["values"]]}
    terms = [{"matchExpressions": [one]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _disk(name: str, kubernetes: Kubernetes) -> Manifest:
    return {"fs": _fs("datanode", kubernetes)}


def _fs(name: str, kubernetes: Kubernetes) -> Manifest:
    found: Manifest = {
        "name": name,
        "storageSize": kubernetes.volume_size,
        "mountPath": "/data/greptimedb" if name == "datanode" else "/wal",
        "storageRetainPolicy": "Delete" if kubernetes.delete_volumes else "Retain",
    }
    if (named := storage_class(kubernetes)) is not None:
        found["storageClassName"] = named
    return found


def _wal(name: str, greptime: GreptimeDb, kubernetes: Kubernetes) -> Manifest:
    if greptime.kafka:
        return {"kafka": {"brokerEndpoints": list(greptime.kafka)}}
    return {"raftEngine": {"fs": _fs("wal", kubernetes)}}


def _object_storage(cloud: Cloud, name: str, kubernetes: Kubernetes) -> Manifest:
    """Exactly one store, by the cloud's provider."""
    spec, real = cloud.spec, cloud.spec.real
    assert real is not None, "target real, by the spec's validator"
    secret = {"secretName": kubernetes.credentials_secret} if kubernetes.credentials_secret else {}
    endpoint = {"endpoint": real.endpoint} if real.endpoint else {}
    match spec.provider:
        case "aliyun":
            endpoint = endpoint or {"endpoint": f"https://oss-{spec.region}-internal.aliyuncs.com"}
            return {"oss": {"bucket": real.bucket, "region": spec.region, "root": name, **secret, **endpoint}}
        case "azure":
            if not endpoint:
                raise Invalid(f"Database {name}: the storage account's address is missing", hint="set real.endpoint")
            return {"azblob": {"container": real.bucket, "root": name, **secret, **endpoint}}
        case "gcp":
            return {"gcs": {"bucket": real.bucket, "root": name, **secret, **endpoint}}
        case "private" if not endpoint:
            raise Invalid(f"Database {name}: the object store's address is missing", hint="set real.endpoint")
        case _:
            return {"s3": {"bucket": real.bucket, "region": spec.region, "root": name, **secret, **endpoint}}
