"""Promises of `engine: greptimedb`: only keys that GreptimeDB documents, no secret, no promise that its edition breaks.

`tests/golden/greptimedb-keys.txt` has the keys of GreptimeDB 1.3's four example configurations, commented ones too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlglot

from controlplane.plan.greptimedb import STORE_TYPES, Deployment, configuration, copy_files, create_table
from dataplane.contract.database import ColumnSpec, TableSpec
from providers.base.registry import PROVIDERS, StoreAddress

DOCUMENTED = {tuple(line.split()) for line in (Path(__file__).parents[2] / "golden/greptimedb-keys.txt").open()}


def keys(found: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def deployment(provider: str, *, nodes: int = 1, kafka: tuple[str, ...] = ()) -> Deployment:
    store = StoreAddress(provider, "fleet-bucket", "eu-1", credentials_file="/run/secrets/store.json")
    return Deployment("fleet", store, nodes=nodes, kafka=kafka, etcd=("etcd-0:2379",))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("kafka", [(), ("broker-0:9092", "broker-1:9092")])
def test_every_key_is_documented_for_its_role_and_none_holds_a_secret(
    provider: str, nodes: int, kafka: tuple[str, ...]
) -> None:
    files = configuration(deployment(provider, nodes=nodes, kafka=kafka))
    assert sorted(files) == (
        ["standalone.toml"]
        if nodes == 1
        else ["datanode-0.toml", "datanode-1.toml", "datanode-2.toml", "frontend.toml", "metasrv.toml"]
    )
    for name, text in files.items():
        role = name.removesuffix(".toml").partition("-")[0]
        found = tomllib.loads(text)
        assert {(role, key) for key in keys(found)} <= DOCUMENTED, name
        assert "secret" not in text and "access_key" not in text and "account_key" not in text
        if role in ("standalone", "datanode"):
            assert found["storage"]["type"] == STORE_TYPES[provider]
            assert found["wal"]["provider"] == ("kafka" if kafka else "raft_engine")
            assert kafka or found["wal"]["sync_write"] is True, "an ack is durable"


def test_regions_fail_over_only_where_no_nodes_disk_holds_the_log() -> None:
    for kafka in ((), ("broker-0:9092",)):
        files = configuration(deployment("aws", nodes=2, kafka=kafka))
        assert tomllib.loads(files["metasrv.toml"])["enable_region_failover"] is bool(kafka)


def test_statements_make_the_same_table_and_copy_its_files() -> None:
    table = TableSpec(
        "can bus",
        (
            ColumnSpec("vehicle", "string", "tag", nullable=False),
            ColumnSpec("ts", "timestamp[ms]", "time"),
            ColumnSpec("speed", "float32"),
        ),
        {"merge_mode": "last_non_null", "ttl_ms": 86_400_000, "wal": "off", "append_mode": False},
    )
    statement = create_table(table)
    assert '"ts" TIMESTAMP(3) NOT NULL' in statement and '"speed" FLOAT,' in statement
    assert 'TIME INDEX ("ts")' in statement and 'PRIMARY KEY ("vehicle")' in statement
    for option in ("'merge_mode' = 'last_non_null'", "'ttl' = '86400000ms'", "'skip_wal' = 'true'"):
        assert option in statement
    assert "append_mode" not in statement
    copy = copy_files("can bus", deployment("gcp"), "fleet/sst/can=20bus")
    assert copy.startswith("COPY \"can bus\" FROM 'gcs://fleet-bucket/fleet/sst/can=20bus/'")
    sqlglot.tokenize(statement + copy)


@pytest.mark.parametrize("options", [{"append_mode": True, "merge_mode": "last_row"}, {}])
def test_a_table_that_appends_merges_nothing(options: dict[str, str | int | bool]) -> None:
    statement = create_table(TableSpec("t", (ColumnSpec("ts", "timestamp[ns]", "time"),), options))
    assert ("'append_mode' = 'true'" in statement) == bool(options)
    assert "merge_mode" not in statement and "PRIMARY KEY" not in statement
