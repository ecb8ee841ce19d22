"""Objects to try: whole ones of each kind, and values, good and bad, that are put into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GONE = ...
"""In place of a value: the field is left out."""

_TIME = {"name": "ts", "type": "timestamp_ms", "role": "time"}
_TABLE = {
    "name": "t",
    "columns": [{"name": "v", "type": "string", "role": "tag"}, _TIME, {"name": "x", "type": "int8"}],
}
_SASL = {
    "protocol": "SASL_SSL",
    "tls": {"certificateFile": "/c.pem", "keyFile": "/k.pem"},
    "sasl": {"users": "env:USERS"},
    "peerSecret": "file:/p.json",
}

WHOLE: Mapping[str, tuple[dict[str, Any], ...]] = {
    "Cloud": (
        {"provider": "azure", "region": "eastus", "zones": [1, "2"]},
        {"provider": "private", "region": "p", "zones": ["a"], "target": "real", "real": {"bucket": "cell"}},
        {
            "provider": "private",
            "region": "p",
            "zones": ["a"],
            "target": "real",
            "real": {"bucket": "cell"},
            "kubernetes": {},
        },
    ),
    "BrokerCluster": (
        {"cloud": "c", "brokers": 2},
        {"cloud": "c", "brokers": 2, "engine": "automq"},
        {"cloud": "c", "brokersPerZone": {"a": 2, "b": 0}},
        {"cloud": "c", "brokers": 1, "listeners": _SASL, "authorization": {"superUsers": ["User:admin"]}},
        {"cloud": "c", "brokers": 2, "autoscale": {"brokersMax": 4}},
    ),
    "Topic": ({"clusters": ["c"], "partitions": 4},),
    "Database": (
        {"role": "cloud", "cloud": "c", "tables": [_TABLE, {**_TABLE, "name": "u"}]},
        {"role": "cloud", "cloud": "c", "engine": "greptimedb"},
        {"role": "edge", "cloud": "c", "edges": 3, "upload": {"to": "d"}},
    ),
}

_WORDS = ("", 3, True, None, "a word", {}, [])
_NAMES = ("a", "A", "a" * 41, "-a", "a-", "a\n", 1, "")
_SIZES = (0, -1, 1 << 20, 1 << 23, 1 << 50, "1MiB", "256 MiB", "64KiB", "0", "9999TiB", "999999999999999TiB", "1.5GiB",
          "1 MiB", "x", True, "20TiB", "1\tGiB")  # fmt: skip
_SPANS = (
    0,
    1,
    "0s",
    "0",
    "49ms",
    "50ms",
    "499ms",
    "500ms",
    "10m",
    "11m",
    "1h",
    "1d",
    "90s",
    "000s",
    "1 s",
    "1w",
    "",
    True,
)
_NUMBERS = (-2, -1, 0, 1, 2, 3, 64, 65, 200, 201, 1000, 1001, 100_000, 10**12, "1", True)
_AMOUNTS = ("1", 1, "500m", "4Gi", "1.5", "Gi", "", -1, 0, "4GiB", True, "1" * 21)
_BOOLS = (True, False, "true", 1)
_FILES = ("/a", "", "env:A", "a{b", 'a"b', "a'b", "-----BEGIN", "a\nb", 4)
_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::1", "10.0.0.1", "127.1.2.3", "host", "", 1)
_URLS = ("https://h", "http://h:1/p@q", "ftp://h", "https://", "https://u:p@h", "h", "", 1)
_ZONES = (["a"], ["a", "a"], [1, "1"], [1, 2], [], ["a", ""], ["z" * 41], [str(i) for i in range(9)], "a", [True])
_TLS = (GONE, {}, _SASL["tls"], {**_SASL["tls"], "clientAuth": "required"},  # type: ignore[dict-item]
        {**_SASL["tls"], "clientAuth": "required", "clientCaFile": "/ca"}, {**_SASL["tls"], "clientAuth": "some"})  # type: ignore[dict-item]  # fmt: skip
_USERS = {"users": "/u"}
_LOGINS = (GONE, {}, _USERS, {**_USERS, "mechanisms": ["PLAIN"]}, {**_USERS, "mechanisms": []},
           {**_USERS, "mechanisms": ["PLAIN", "PLAIN"]}, {**_USERS, "reauthenticate": "1h"},
           {"users": "a\nb"})  # fmt: skip


def _column(**fields: Any) -> list[dict[str, Any]]:
    return [_TIME, {"name": "c", "type": "int8", **fields}]


_COLUMNS = (
    [], [_TIME], [_TIME, _TIME], [_TIME, {**_TIME, "name": "t2"}], [{**_TIME, "type": "int64"}],
    [{**_TIME, "nullable": True}], [{**_TIME, "nullable": False}], [{"name": "x", "type": "int8"}],
    *(_column(role="tag", type=t) for t in ("float32", "float64", "binary", "string", "bool", "timestamp_s")),
    *(_column(type=t) for t in ("timestamp_s", "timestamp[ns]", "timestamp_d", "text", 8)),
    *(_column(name=n) for n in ("__c", "_c", "a/b", 'a"b', "a`b", "a\\b", "a\x01", "é", "", "x" * 200, "x" * 201)),
    *(_column(name=n) for n in ("ts", "TS", 1)),
    *(_column(nullable=n) for n in _BOOLS), _column(role="key"), _column(extra=1),
    *(_column(type=t, decimals=2) for t in ("float32", "float64", "int8", "string")),
    *(_column(type="float64", decimals=n) for n in (-1, 0, 9, 10, 1.5, "2", True)),
    _column(type="int64", role="tag", decimals=1), [{**_TIME, "decimals": 3}],
)  # fmt: skip

_FIELDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "Cloud": {
        "provider": ("aws", "AWS", *_WORDS),
        "account": _WORDS,
        "region": ("x" * 40, "x" * 41, *_WORDS),
        "zones": _ZONES,
        "target": ("lab", "real", "Lab"),
        "real": (GONE, {}, {"bucket": "ab"}, {"bucket": "abc"}, {"bucket": "b" * 64}),
        "real.endpoint": _URLS,
        "real.controlEndpoint": _URLS,
        "real.credentialsFile": ("/f", 1, ""),
        "capabilities": (None, {}, {"objectStore": "zonal"}, {"objectStore": "all"}, {"shareMax": 65}, {"more": 1}),
        "capabilities.expressZones": _ZONES,
        "capabilities.createIfAbsent": _BOOLS,
        "kubernetes": (
            GONE,
            {},
            {"storageClasses": {"a": "fast"}},
            {"storageClasses": {"z": "fast"}},
            {"image": "a b"},
        ),
        "kubernetes.volumeSize": _AMOUNTS,
        "kubernetes.resources.cpu": _AMOUNTS,
        "kubernetes.storageClass": ("a", "A", "a.b", "", "a" * 254, 1),
        "kubernetes.image": ("a/b:1", "A", "a@sha256:1", "", f"a@sha256:{'0' * 64}"),
        "more": (1,),
    },
    "BrokerCluster": {
        "cloud": (*_NAMES, GONE),
        "brokers": (GONE, *_NUMBERS),
        "brokersPerZone": (
            GONE,
            {},
            {"a": 0},
            {"a": 64},
            {"a": 64, "b": 1},
            {"a": 65},
            {"": 1},
            {"z" * 41: 1},
            {"a": "1"},
        ),
        "engine": ("embedded", "automq", "x"),
        "automq": (GONE, {}, {"controllers": 2}, {"controllers": 3}, {"edition": "free"}, {"walCache": "1MiB"}),
        "wal.mode": ("auto", "object", "zonal-block", "disk"),
        "wal.bytesMax": _SIZES,
        "wal.acceptZoneLossRpo": _BOOLS,
        "objectives.produceP99Ms": _NUMBERS,
        "objectives.rpoZoneLoss": _SPANS,
        "objectives.surviveObjectOutage": _SPANS,
        "objectives.ingestMiBs": _NUMBERS,
        "listeners.host": ("0.0.0.0", 1, "h"),
        "listeners.protocol": ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", "TLS"),
        "listeners.tls": _TLS,
        "listeners.sasl": _LOGINS,
        "listeners.peerSecret": (GONE, *_FILES),
        "authorization": (
            GONE,
            {},
            {"superUsers": []},
            {"superUsers": ["User:a"]},
            {"superUsers": ["User:"]},
            {"superUsers": ["a"]},
            {"superUsers": ["User:a", "User:a"]},
        ),
        "settings.uploadBytes": _SIZES,
        "settings.cacheBytesMax": _SIZES,
        "autoscale": (
            GONE,
            {},
            {"brokersMax": 2},
            {"brokersMax": 3},
            {"brokersMax": 64, "targetPercent": 90, "brokerMiBs": 1, "outAfter": "0s", "inAfter": 0, "coolDown": "1m"},
            {"brokersMax": 65},
            {"brokersMax": 3, "targetPercent": 9},
            {"brokersMax": 3, "brokerMiBs": 0},
            {"brokersMax": 3, "outAfter": "soon"},
            {"brokersMax": 3, "most": 4},
            [],
        ),
        "settings.diskCache": (
            GONE,
            {},
            {"path": "/c", "size": "1GiB"},
            {"path": "c", "size": "1GiB"},
            {"path": "/", "size": "1GiB"},
            {"path": "/c", "size": "1MiB"},
            {"path": "/c"},
            [],
        ),
        "settings.metrics": (GONE, {}, {"enabled": False}, {"enabled": "no"}, {"host": ""}, {"path": "/m"}, []),
        "settings.metrics.host": ("0.0.0.0", "h" * 254, 1),
        "settings.metrics.port": (*_NUMBERS, 64_000, 64_001),
        "settings.compactionBytesPerS": _SIZES,
        "settings.heartbeatIntervalMs": _NUMBERS,
        "settings.sessionTimeoutMs": _NUMBERS,
        "settings.balanceIntervalMs": _NUMBERS,
    },
    "Topic": {
        "clusters": ([], ["a"], ["a", "a"], ["a", "b"], ["A"], [1], GONE, [f"c{i}" for i in range(65)]),
        "partitions": (GONE, *_NUMBERS),
        "configs": ({}, {"retention.ms": -1}, {"retention.ms": -2}, {"cleanup.policy": "compact"}, []),
        "configs.retention~bytes": _NUMBERS,
    },
    "Database": {
        "role": ("edge", "cloud", "both", GONE),
        "cloud": _NAMES,
        "engine": ("embedded", "greptimedb", "influx"),
        "greptimedb": (GONE, {}, {"version": "v1.0.0"}, {"version": "one"}, {"version": "v1.0.0", "image": "a"}),
        "greptimedb.etcd": (["e:2379"], ["e:65536"], ["e:65535"], ["e:0"], ["e"], ["e:1", "e:1"], "e:1", ["e:99999"]),
        "tables": ([], [_TABLE], [_TABLE, _TABLE], GONE, {}),
        "tables.0.columns": _COLUMNS,
        "tables.0.options.ttl": _SPANS,
        "tables.0.options.walSyncInterval": _SPANS,
        "tables.0.options.flushInterval": _SPANS,
        "tables.0.options.wal": ("off", "always", "periodic", "on", True),
        "tables.0.options.memtableBytes": _SIZES,
        "tables.0.options.uploadPriority": _NUMBERS,
        "host": _HOSTS,
        "users": (GONE, *_FILES),
        "memory": _SIZES,
        "nodes": _NUMBERS,
        "wal": ({}, {"mode": "object"}, {"mode": "zonal-block"}, []),
        "lease": _SPANS,
        "cache": _SIZES,
        "createTables": _BOOLS,
        "edges": (GONE, *_NUMBERS),
        "edgeNames": (["a"], ["a", "a"], [], ["A"], ["a", "b"]),
        "upload": (GONE, {}, {"to": "d"}, {"to": "D"}),
        "upload.bytesPerSecond": _SIZES,
        "upload.interval": _SPANS,
        "upload.keepLocal": _SPANS,
        "upload.batchFilesMax": _NUMBERS,
    },
}

Mutation = tuple[str, Any]


def mutations(kind: str) -> Iterator[Mutation]:
    """(dotted path, value) pairs; a ~ in a path stands for a dot in a field's own name."""
    for path, values in _FIELDS[kind].items():
        yield from ((path, value) for value in values)


def mutated(spec: Any, path: str, value: Any) -> None:
    """Put `value` at `path` of `spec`, making what is on the way; where the way is barred nothing happens."""
    *way, last = path.split(".")
    for part in way:
        if isinstance(spec, list):
            if int(part) >= len(spec):
                return
            spec = spec[int(part)]
        elif isinstance(spec, dict):
            if not isinstance(spec.get(part), (dict, list)):
                spec[part] = [] if part == "tables" else {}
            spec = spec[part]
    if not isinstance(spec, dict):
        return
    last = last.replace("~", ".")
    if value is GONE:
        spec.pop(last, None)
    else:
        spec[last] = value
