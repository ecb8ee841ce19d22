"""`engine: greptimedb`: a Database as GreptimeDB's own configuration files and statements. Pure.

What its open edition has not is not written: an import of files as they are is its makers' paid edition's, so that an
edge's files come in by `COPY FROM`, which decodes every row and writes it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataplane.contract.database import TableSpec
from providers.base.registry import StoreAddress

Value = str | int | bool | Sequence[str]
Section = Mapping[str, Value]

STORE_TYPES = {"aws": "S3", "private": "S3", "aliyun": "Oss", "azure": "Azblob", "gcp": "Gcs"}
IMPORT_NOTE = (
    "GreptimeDB's open edition imports an edge's files by COPY FROM, which writes every row again: expect a few "
    "million points a second of each core, and no check of a file's signature or checksum."
)
SECRETS_NOTE = (
    "Credentials are in no file: GreptimeDB reads them from its environment, "
    "e.g. GREPTIMEDB_DATANODE__STORAGE__SECRET_ACCESS_KEY."
)
_TYPES = {
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INT",
    "int64": "BIGINT",
    "uint8": "TINYINT UNSIGNED",
    "uint16": "SMALLINT UNSIGNED",
    "uint32": "INT UNSIGNED",
    "uint64": "BIGINT UNSIGNED",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "STRING",
    "binary": "BINARY",
    "timestamp[s]": "TIMESTAMP(0)",
    "timestamp[ms]": "TIMESTAMP(3)",
    "timestamp[us]": "TIMESTAMP(6)",
    "timestamp[ns]": "TIMESTAMP(9)",
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to be configured. `nodes` 1 is a standalone; more are datanodes of a cluster."""

    name: str
    store: StoreAddress
    nodes: int = 1
    kafka: tuple[str, ...] = ()
    """Brokers, `host:port`, of a cluster that holds the write-ahead log; none: each node's own disk does."""
    etcd: tuple[str, ...] = ()
    """Of a cluster's metadata."""
    metasrv: tuple[str, ...] = ("metasrv:3002",)
    data_home: str = "/data/greptimedb"


def configuration(deployment: Deployment) -> dict[str, str]:
    """File name to TOML."""
    storage, wal = _storage(deployment), _wal(deployment)
    if deployment.nodes == 1:
        return {"standalone.toml": toml({"storage": storage, "wal": wal})}
    meta_client: Section = {"metasrv_addrs": deployment.metasrv}
    # A log on a node's own disk is lost with the node: another may take a region over only where the log is Kafka's.
    metasrv: Section = {
        "backend": "etcd_store",
        "store_addrs": deployment.etcd,
        "store_key_prefix": deployment.name,
        "enable_region_failover": bool(deployment.kafka),
    }
    return {
        "metasrv.toml": toml({"": metasrv, "wal": _metasrv_wal(deployment)}),
        **{
            f"datanode-{node}.toml": toml(
                {"": {"node_id": node}, "meta_client": meta_client, "storage": storage, "wal": wal}
            )
            for node in range(deployment.nodes)
        },
        "frontend.toml": toml({"meta_client": meta_client}),
    }


def _storage(deployment: Deployment) -> Section:
    store = deployment.store
    kind = STORE_TYPES[store.provider]
    found: dict[str, Value] = {"data_home": deployment.data_home, "type": kind, "root": deployment.name}
    found["container" if kind == "Azblob" else "bucket"] = store.bucket
    if kind == "S3":
        found["region"] = store.region
    if store.endpoint is not None:
        found["endpoint"] = store.endpoint
    elif kind == "Oss":
        found["endpoint"] = f"https://oss-{store.region}-internal.aliyuncs.com"
    return found


def _wal(deployment: Deployment) -> Section:
    if deployment.kafka:
        return {"provider": "kafka", "broker_endpoints": deployment.kafka}
    # GreptimeDB's own default acks before its log is on the disk, and a power cut loses five seconds.
    return {"provider": "raft_engine", "dir": f"{deployment.data_home}/wal", "sync_write": True}


def _metasrv_wal(deployment: Deployment) -> Section:
    if not deployment.kafka:
        return {"provider": "raft_engine"}
    return {
        "provider": "kafka",
        "broker_endpoints": deployment.kafka,
        "auto_create_topics": True,
        "topic_name_prefix": f"{deployment.name}_wal",
        # One copy: brokers over shared storage have every record where no broker's death reaches it.
        "replication_factor": 1,
    }


def toml(sections: Mapping[str, Section]) -> str:
    """TOML of flat sections; the one named "" comes first."""
    parts = []
    for name in sorted(sections, key=lambda name: name != ""):
        # JSON's strings, numbers, booleans and arrays of strings are TOML's too.
        lines = [f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in sections[name].items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def create_table(table: TableSpec) -> str:
    """The statement that makes the same table there."""
    [time] = [column.name for column in table.columns if column.role == "time"]
    tags = [_quoted(column.name) for column in table.columns if column.role == "tag"]
    lines = [
        f"{_quoted(c.name)} {_TYPES[c.type]}{'' if c.nullable and c.role != 'time' else ' NOT NULL'}"
        for c in table.columns
    ]
    lines.append(f"TIME INDEX ({_quoted(time)})")
    lines += [f"PRIMARY KEY ({', '.join(tags)})"] if tags else []
    options = {}
    if table.options.get("append_mode"):
        options["append_mode"] = "true"
    elif (mode := table.options.get("merge_mode")) is not None:
        options["merge_mode"] = str(mode)
    if (ttl_ms := table.options.get("ttl_ms")) is not None:
        options["ttl"] = f"{ttl_ms}ms"
    if table.options.get("wal") == "off":
        options["skip_wal"] = "true"
    text = ", ".join(f"'{key}' = '{value}'" for key, value in options.items())
    body = ",\n  ".join(lines)
    return f"CREATE TABLE IF NOT EXISTS {_quoted(table.name)} (\n  {body}\n)" + (f" WITH ({text});" if text else ";")


def copy_files(table: str, deployment: Deployment, folder: str) -> str:
    """The statement that copies the Parquet files under `folder` of the bucket into a table."""
    scheme = {"S3": "s3", "Oss": "oss", "Azblob": "azblob", "Gcs": "gcs"}[STORE_TYPES[deployment.store.provider]]
    place = f"{scheme}://{deployment.store.bucket}/{folder.strip('/')}/"
    return f"COPY {_quoted(table)} FROM '{place}' WITH (FORMAT = 'parquet', PATTERN = '.*[.]parquet');"


def _quoted(name: str) -> str:
    return f'"{name}"'
