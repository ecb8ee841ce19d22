"""The least of Strimzi's and GreptimeDB's definitions: the keys that their makers document and nothing else, so that
the API server refuses any other.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
FREE: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TEXTS: Schema = {"type": "array", "items": TEXT}
MAP: Schema = {"type": "object", "additionalProperties": TEXT}


def of(**keys: Schema) -> Schema:
    return {"type": "object", "properties": keys}


def some(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def crd(group: str, version: str, kind: str, spec: Schema) -> Schema:
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


RESOURCES = of(requests=MAP, limits=MAP)


def strimzi_crds() -> list[Schema]:
    listener = of(name=TEXT, port=WHOLE, type=TEXT, tls=FLAG)
    kafka = of(
        version=TEXT,
        image=TEXT,
        listeners=some(listener),
        rack=of(topologyKey=TEXT),
        config=MAP,
    )
    volume = of(**{"type": TEXT, "size": TEXT, "class": TEXT, "deleteClaim": FLAG})
    pod = of(
        metadata=of(labels=MAP, annotations=MAP),
        terminationGracePeriodSeconds=WHOLE,
        affinity=FREE,
        topologySpreadConstraints=some(FREE),
        priorityClassName=TEXT,
        tolerations=some(FREE),
    )
    reference = of(secretKeyRef=of(name=TEXT, key=TEXT))
    container = of(env=some(of(name=TEXT, value=TEXT, valueFrom=reference)))
    pool = of(
        replicas=WHOLE,
        roles=TEXTS,
        storage=volume,
        resources=RESOURCES,
        template=of(pod=pod, kafkaContainer=container),
    )
    return [
        crd("kafka.strimzi.io", "v1beta2", "Kafka", of(kafka=kafka, entityOperator=FREE)),
        crd("kafka.strimzi.io", "v1beta2", "KafkaNodePool", pool),
    ]


def greptimedb_crds() -> list[Schema]:
    main = of(image=TEXT, resources=RESOURCES, env=some(FREE))
    template = of(
        main=main,
        nodeSelector=MAP,
        affinity=FREE,
        tolerations=some(FREE),
        serviceAccountName=TEXT,
        priorityClassName=TEXT,
    )
    fs = of(
        name=TEXT,
        useEmptyDir=FLAG,
        storageClassName=TEXT,
        storageSize=TEXT,
        mountPath=TEXT,
        storageRetainPolicy={"type": "string", "enum": ["Retain", "Delete"]},
        labels=MAP,
        annotations=MAP,
    )
    bucket = {"bucket": TEXT, "root": TEXT, "secretName": TEXT, "endpoint": TEXT}
    stores = {
        "s3": of(**bucket, region=TEXT, enableVirtualHostStyle=FLAG),
        "oss": of(**bucket, region=TEXT),
        "gcs": of(**bucket, scope=TEXT),
        "azblob": of(container=TEXT, root=TEXT, secretName=TEXT, endpoint=TEXT),
    }
    shared = {
        "base": template,
        "version": TEXT,
        "initializer": of(image=TEXT),
        "objectStorage": {**of(**stores, cache=of(fs=fs, cacheCapacity=TEXT)), "minProperties": 1, "maxProperties": 2},
        "wal": {
            **of(raftEngine=of(fs=fs), kafka=of(brokerEndpoints=TEXTS)),
            "minProperties": 1,
            "maxProperties": 1,
        },
    }
    backend = of(etcd=of(endpoints=TEXTS, enableCheckEtcdService=FLAG, storeKeyPrefix=TEXT))
    cluster = of(
        **shared,
        frontend=of(replicas=WHOLE, config=TEXT, template=template),
        meta=of(replicas=WHOLE, backendStorage=backend, enableRegionFailover=FLAG),
        datanode=of(replicas=WHOLE, storage=of(dataHome=TEXT, fs=fs), template=template),
    )
    standalone = of(**shared, replicas=WHOLE, datanodeStorage=of(dataHome=TEXT, fs=fs))
    return [
        crd("greptime.io", "v1alpha1", "GreptimeDBCluster", cluster),
        crd("greptime.io", "v1alpha1", "GreptimeDBStandalone", standalone),
    ]
