"""The published JSON Schema says what the loader does."""

from __future__ import annotations

import json
from typing import Any

from controlplane.api.kinds import KINDS
from controlplane.api.load import schema


def model(name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema()["$defs"][name]
    return found


def test_schema_has_every_kind_and_is_json() -> None:
    whole = json.loads(json.dumps(schema()))
    assert [ref["$ref"].rsplit("/", 1)[1] for ref in whole["oneOf"]] == list(KINDS)
    assert all(whole["$defs"][kind]["properties"]["kind"]["const"] == kind for kind in KINDS)


def test_schema_refuses_unknown_fields_everywhere() -> None:
    assert all(d["additionalProperties"] is False for d in schema()["$defs"].values() if d.get("type") == "object")


def test_schema_names_fields_as_yaml_does_and_describes_them() -> None:
    spec = model("BrokerClusterSpec")["properties"]
    assert {"cloud", "brokers", "brokersPerZone", "wal", "objectives"} <= set(spec)
    assert "acceptZoneLossRpo" in model("WalPolicy")["properties"]
    assert set(model("TopicConfigs")["properties"]) == {"retention.ms", "retention.bytes"}
    assert model("Settings")["properties"]["uploadIntervalMs"]["default"] == 10_000
    assert "WAL" in model("Settings")["properties"]["uploadIntervalMs"]["description"]
    assert set(model("CloudSpec")["required"]) == {"provider", "region", "zones"}
